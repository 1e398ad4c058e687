"""A step of one's own is one method; everything around it stays: backward, clipping, microbatches, metrics, modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, LOSS, Data, Net, a_model, by_hand, on_asyncio, same_bits

from asyncloop import AfterBatch, Engine, ModelError
from asyncloop.torch import Clip, TorchModel

pytestmark = pytest.mark.anyio


class Own(TorchModel):
    """The usual step, written by hand, with an output more."""

    calls: list[tuple[bool, str, int]] = []

    def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        Own.calls.append((train, stream, len(batch["x"])))
        logits = self.net(batch["x"])
        loss = nn.functional.cross_entropy(logits, batch["label"])
        return {"loss": loss, "right": (logits.argmax(1) == batch["label"]).float().mean(), "logits": logits}


def own(**settings: Any) -> Own:
    model = Own(Net(), ["x"], outputs=["logits"], optimizer=ADAM, device="cpu", **settings)
    torch.manual_seed(7)
    return model


@on_asyncio
@pytest.mark.parametrize(
    ("settings", "hand"), [({}, {}), ({"microbatches": 4, "clip": Clip(norm=0.5)}, {"microbatches": 4, "clip": 0.5})]
)
async def test_it_trains_as_a_loop_by_hand_does(settings: dict[str, Any], hand: dict[str, Any]) -> None:
    model, losses = own(**settings), list[float]()
    engine = Engine(model, Data(), epochs=2, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: losses.append(event.outputs["loss"]))
    await engine.train()
    net, expected, _ = by_hand(**hand)
    assert losses == expected
    assert same_bits(model.module.state_dict(), net.state_dict())


@on_asyncio
async def test_it_is_called_for_each_microbatch_of_a_training_and_once_for_an_evaluation() -> None:
    Own.calls.clear()
    engine = Engine(
        own(microbatches=4),
        Data(1),
        epochs=1,
        extra_streams=["valid"],
        skip_zeroth_epoch=True,
        on_unused_sources="ignore",
    )
    metrics = (await engine.train()).metrics
    assert Own.calls == [(True, "train", 4)] * 4 + [(False, "valid", 16)]
    assert 0 <= metrics["valid"]["right"] <= 1


def test_it_sees_every_source_numbers_as_tensors_and_anything_else_as_it_is() -> None:
    seen: dict[str, Any] = {}

    class Looking(TorchModel):
        def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            seen.update(batch)
            return {"loss": self.net(batch["x"]).mean()}

    model = Looking(Net(), ["x"], loss=LOSS, optimizer=ADAM, device="cpu")
    words, ragged = np.array(["a", "b"] * 8), [[1, 2], [3]] * 8
    model.run({**Data(1).batches[0], "word": words, "ragged": ragged}, train=True, stream="train")
    assert {name: type(value) for name, value in seen.items()} == {
        "x": torch.Tensor, "label": torch.Tensor, "id": torch.Tensor, "word": np.ndarray, "ragged": list
    }  # fmt: skip


def test_what_it_returns_must_hold_a_loss_when_it_trains() -> None:
    class Lossless(TorchModel):
        def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            return {"logits": self.net(batch["x"])}

    model = Lossless(Net(), ["x"], optimizer=ADAM, device="cpu")
    with pytest.raises(ModelError, match=r"there are logits\. Give the model a `loss`, or return one from .* step\(\)"):
        model.run(Data(1).batches[0], train=True, stream="train")


def test_it_may_use_what_the_usual_step_is_made_of() -> None:
    class Smoothed(TorchModel):
        def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            outputs = super().step(batch, train=train, stream=stream)
            return {**outputs, "loss": outputs["loss"] + 0.1 * outputs["output"].square().mean()}

    batch = Data(1).batches[0]
    settings: dict[str, Any] = {"inputs": ["x"], "loss": LOSS, "device": "cpu"}
    plain = a_model(optimizer=None).run(batch, train=False, stream="v")
    smoothed = Smoothed(Net(), **settings).run(batch, train=False, stream="v")
    assert smoothed["loss"] == pytest.approx(plain["loss"] + 0.1 * float(plain["output"]().square().mean()), rel=1e-6)
