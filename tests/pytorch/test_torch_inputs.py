"""What a module is given, and what becomes of what it returns: by order or by name, in tuples, mappings or named tuples."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, LOSS, N_CLASSES, N_INPUTS, Data, a_model, on_asyncio, train

from asyncloop import AfterBatch, ConfigError, Engine, ModelError
from asyncloop.torch import TorchModel
from asyncloop.torch.metrics import Metric

pytestmark = pytest.mark.anyio


class Pair(NamedTuple):
    logits: torch.Tensor
    norm: torch.Tensor


class Net(nn.Module):
    """Returns its logits, and the size of its input as a scalar, in whichever form it is told to."""

    def __init__(self, form: str = "tuple") -> None:
        super().__init__()
        self.form, self.head = form, nn.Linear(N_INPUTS, N_CLASSES)
        self.seen: list[dict[str, Any]] = []

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> Any:
        self.seen.append({"image": image, "label": label})
        logits, norm = self.head(image), image.norm()
        if self.form == "named tuple":
            return Pair(logits, norm)
        return {"logits": logits, "norm": norm} if self.form == "mapping" else (logits, norm)


class Strict:
    """A metric that no value is right for."""

    def update(self, logits: torch.Tensor, label: torch.Tensor) -> None:
        raise ValueError("of another kind")

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None:
        pass


def batch() -> dict[str, Any]:
    return Data(1).batches[0]


def model(net: nn.Module, **settings: Any) -> TorchModel:
    loss = {**LOSS, "inputs": ["logits", "label"]}
    settings = {"inputs": ["x"], "outputs": ["logits", "norm"], "loss": loss, "optimizer": ADAM, **settings}
    return TorchModel(net, device="cpu", **settings)


def test_sources_are_passed_in_their_order() -> None:
    net = Net()
    model(net, inputs=["x", "label"]).run(batch(), train=False, stream="valid")
    assert np.array_equal(net.seen[0]["image"], batch()["x"])
    assert np.array_equal(net.seen[0]["label"], batch()["label"])


def test_a_table_of_inputs_names_the_arguments_and_the_sources() -> None:
    net = Net()
    model(net, inputs={"label": "label", "image": "x"}).run(batch(), train=False, stream="valid")
    assert np.array_equal(net.seen[0]["image"], batch()["x"])
    assert np.array_equal(net.seen[0]["label"], batch()["label"])


@pytest.mark.parametrize("form", ["tuple", "mapping", "named tuple"])
def test_whatever_form_a_module_returns_its_outputs_have_names(form: str) -> None:
    outputs = model(Net(form)).run(batch(), train=True, stream="train")
    assert outputs["norm"] == pytest.approx(float(np.linalg.norm(batch()["x"])))
    assert outputs["logits"]().shape == (16, N_CLASSES)
    assert set(outputs) == {"loss", "logits", "norm", "lr"}


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"inputs": ["label"]}, r"the module was given label: torch.int64 \(16,\)"),
        ({"inputs": {"image": "label"}}, r"the module was given label: torch.int64 \(16,\)"),
        (
            {"loss": {**LOSS, "inputs": ["logits", "x"]}},
            r"loss 'loss' was given logits: torch.float32 \(16, \d+\), x: torch.float32 \(16, \d+\)",
        ),
        (
            {"metrics": {"top": Metric(Strict(), ["logits", "label"])}},
            r"metric 'top' was given logits: torch.float32 \(16, \d+\), label: torch.int64 \(16,\)",
        ),
    ],
)
def test_an_error_inside_says_whose_it_is_and_what_was_given(settings: dict[str, Any], note: str) -> None:
    torchs = model(Net(), **settings)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        torchs.run(batch(), train=True, stream="train")
    assert any(re.fullmatch(note, each) for each in caught.value.__notes__), caught.value.__notes__


def test_as_many_outputs_as_there_are_names_or_an_error_that_counts_both() -> None:
    with pytest.raises(ModelError, match=r"returned 2 values, and `outputs` names 3: 'a', 'b', 'c'"):
        model(Net(), outputs=["a", "b", "c"]).run(batch(), train=False, stream="valid")


@on_asyncio
async def test_a_source_inside_a_nested_one_is_reached_by_its_path() -> None:
    class Nested(Data):
        def train_stream(self) -> Iterator[dict[str, Any]]:
            for each in self.batches:
                yield {"views": {"left": each["x"], "right": -each["x"]}, "label": each["label"]}

    net = Net()
    await train(model(net, inputs=["views/left"]), Nested(2))
    assert np.array_equal(net.seen[0]["image"], batch()["x"])


@on_asyncio
async def test_hooks_see_scalars_always_and_larger_outputs_only_when_they_name_them() -> None:
    without: list[set[str]] = []
    named: list[tuple[int, ...]] = []
    engine = Engine(model(Net()), Data(), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: without.append(set(event.outputs)))
    engine.bus.subscribe(
        AfterBatch, lambda event: named.append(event.outputs["logits"].shape), variables=["logits"], every="4 steps"
    )
    await engine.train()
    assert without == [{"loss", "norm", "lr"}] * 8
    assert named == [(16, N_CLASSES)] * 2


@on_asyncio
async def test_an_output_that_nobody_names_is_let_go_before_the_next_step() -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Large(Net):
        def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> Any:
            alive.append(sum(each() is not None for each in made))
            array = np.zeros((len(image), 1000), dtype=np.float32)
            made.append(weakref.ref(array))  # which the tensor made of it keeps
            return *super().forward(image, label), torch.from_numpy(array)

    await train(model(Large(), outputs=["logits", "norm", "large"]), Data(6))
    assert alive == [0] * 6


def test_microbatches_are_put_together_again() -> None:
    whole, parts = model(Net()), model(Net(), microbatches=3)
    parts.module.load_state_dict(whole.module.state_dict())
    one, three = (each.run(batch(), train=True, stream="train") for each in (whole, parts))
    assert torch.equal(three["logits"](), one["logits"]())
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)
    expected = sum(np.linalg.norm(x) * len(x) for x in np.array_split(batch()["x"], 3)) / 16
    assert three["norm"] == pytest.approx(float(expected))


def test_of_a_batch_with_fewer_examples_than_microbatches_each_is_one() -> None:
    small = {name: value[:3] for name, value in batch().items()}
    outputs = model(Net(), microbatches=8).run(small, train=True, stream="train")
    assert outputs["logits"]().shape == (3, N_CLASSES)


@on_asyncio
async def test_an_output_named_like_a_source_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"output 'id' is named like a source"):
        await train(model(Net(), outputs=["logits", "id"]))


def test_without_an_optimizer_it_evaluates_and_says_that_it_cannot_train() -> None:
    alone = a_model(optimizer=None)
    assert set(alone.run(batch(), train=False, stream="valid")) == {"loss", "output"}
    with pytest.raises(ConfigError, match=r"no optimizer: it can be evaluated, but not trained"):
        alone.run(batch(), train=True, stream="train")
