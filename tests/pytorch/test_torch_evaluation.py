"""Evaluation: in eval and inference mode, with the averaged weights; training goes on as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_parts import Data, Net, a_model, on_asyncio, same_bits, train

from asyncloop import AfterBatch, Engine, Hook
from asyncloop.torch import EMA, Loss, TorchModel

pytestmark = pytest.mark.anyio


class Seeing(Net):
    """Notes in which modes it runs and with which weights. A part of it stays in eval mode, come what may."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(12, affine=False)
        self.frozen.eval()
        self.fails = fails
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(
            {
                "training": self.training,
                "body": all(part.training for part in self.body),
                "frozen": self.frozen.training,
                "inference": torch.is_inference_mode_enabled(),
                "grad": torch.is_grad_enabled(),
                "weight": self.head.weight.detach().clone(),
            }
        )
        if self.fails == "evaluation" and not self.training:
            raise ZeroDivisionError
        return super().forward(self.frozen(x))

    def modes(self, training: bool) -> list[dict[str, Any]]:
        """What it saw in passes of one kind, but for the weights."""
        chosen = [each for each in self.seen if each["training"] == training]
        return [{name: value for name, value in each.items() if name != "weight"} for each in chosen]


TRAINING = {"training": True, "body": True, "frozen": False, "inference": False, "grad": True}
EVALUATING = {"training": False, "body": False, "frozen": False, "inference": True, "grad": False}


def modes_of(model: TorchModel) -> dict[str, bool]:
    return {name: part.training for name, part in model.module.named_modules()}


@on_asyncio
async def test_each_kind_of_pass_runs_in_its_mode() -> None:
    net = Seeing()
    model = a_model(module=net)
    before = modes_of(model)
    await train(model, Data(4), epochs=2, extra_streams=["valid"], evaluate_every="3 steps", skip_zeroth_epoch=False)
    assert net.modes(True) == [TRAINING] * 8
    assert net.modes(False) == [EVALUATING] * (4 + 3 * 5)
    assert modes_of(model) == before


@on_asyncio
async def test_evaluations_leave_no_trace_in_what_is_trained() -> None:
    without, with_many = a_model(ema=EMA(0.5)), a_model(ema=EMA(0.5))
    torch.manual_seed(7)
    await train(without, Data(4), epochs=2)
    torch.manual_seed(7)
    await train(with_many, Data(4), epochs=2, extra_streams=["valid"], evaluate_every="1 step", skip_zeroth_epoch=False)
    for part in ("module", "average"):
        assert same_bits(with_many.state_dict()[part], without.state_dict()[part])


@on_asyncio
async def test_modes_and_weights_are_back_after_an_evaluation_that_fails() -> None:
    net = Seeing(fails="evaluation")
    model = a_model(module=net, ema=EMA(0.5))
    before = modes_of(model)
    with pytest.raises(ZeroDivisionError):
        await train(model, Data(4), extra_streams=["valid"])
    assert modes_of(model) == before
    raw = net.head.weight.detach().clone()
    assert torch.equal(model.state_dict()["module"]["head.weight"], raw)
    assert not torch.equal(model.state_dict()["average"]["head.weight"], raw)


@on_asyncio
async def test_modes_and_weights_are_back_when_a_stop_ends_an_evaluation_in_its_middle() -> None:
    class Stops(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            if not event.train:
                event.control.stop("told to")

    class Endless(Data):
        def valid_stream(self) -> Any:
            while True:
                yield self.batches[0]

    expected, net = Seeing(), Seeing()
    reference, model = a_model(module=expected, ema=EMA(0.5)), a_model(module=net, ema=EMA(0.5))
    torch.manual_seed(7)
    await train(reference, Data(4))
    torch.manual_seed(7)
    await train(model, Endless(4), [Stops()], extra_streams=["valid"])
    assert modes_of(model)["frozen"] is False
    state = model.state_dict()
    assert modes_of(model) == modes_of(reference)
    for part in ("module", "average"):
        assert same_bits(state[part], reference.state_dict()[part])


@on_asyncio
async def test_training_after_an_evaluation_that_was_stopped_goes_on_with_the_raw_weights() -> None:
    model = a_model(module=Seeing(), ema=EMA(0.5))
    for batch in Data(3).batches:
        model.run(batch, train=True, stream="train")
    raw = model.module.get_parameter("head.weight").detach().clone()
    model.run(Data(1).batches[0], train=False, stream="valid")
    model.run(Data(1).batches[0], train=True, stream="train")
    seen: Any = model.module
    assert not torch.equal(seen.seen[-2]["weight"], raw)
    assert torch.equal(seen.seen[-1]["weight"], raw)
    assert seen.seen[-1]["training"]


# --- the average --------------------------------------------------------------------------------------------------


@on_asyncio
async def test_evaluations_use_the_average_and_training_the_raw_weights() -> None:
    net = Seeing()
    model = a_model(module=net, ema=EMA(0.75))
    engine = Engine(
        model, Data(4), epochs=1, extra_streams=["valid"], skip_zeroth_epoch=True, on_unused_sources="ignore"
    )
    await engine.train()
    raw = [each["weight"] for each in net.seen if each["training"]] + [model.state_dict()["module"]["head.weight"]]
    average = raw[0].clone()
    for weight in raw[1:]:
        average = 0.75 * average + 0.25 * weight
    evaluated = [each["weight"] for each in net.seen if not each["training"]]
    assert torch.allclose(evaluated[0], average, atol=1e-7)
    assert torch.equal(evaluated[0], model.weights()["head.weight"])
    assert not torch.allclose(evaluated[0], raw[-1], atol=1e-5)


def test_an_average_that_warms_up_forgets_its_start() -> None:
    model = a_model(ema=EMA(0.9999, warmup=True))
    first = model.weights()["head.weight"].clone()
    raw = []
    for batch in Data(3).batches:
        model.run(batch, train=True, stream="train")
        raw.append(model.module.get_parameter("head.weight").detach().clone())
    expected = first
    for n, weight in enumerate(raw, start=1):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(model.weights()["head.weight"], expected, atol=1e-7)


class Tied(nn.Module):
    """The output layer has the weights of the input layer, and a table that is in no state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


def test_tied_weights_stay_tied_in_the_average_and_wherever_it_goes() -> None:
    model, batch = a_model(module=Tied(), ema=EMA(0.5)), Data(1).batches[0]
    model.run(batch, train=True, stream="train")
    average = model.weights()
    assert set(average) == {"first.weight", "last.weight"}
    assert torch.equal(average["first.weight"], average["last.weight"])
    raw = model.module.get_parameter("first.weight").detach().clone()
    assert not torch.equal(average["first.weight"], raw)

    inference = a_model(module=Tied(), ema=EMA(0.5))
    inference.load_state_dict(model.state_dict())
    assert inference.run(batch, train=False, stream="v")["loss"] == model.run(batch, train=False, stream="v")["loss"]
    assert torch.equal(model.state_dict()["module"]["last.weight"], raw)

    begun = a_model(module=Tied())
    begun.load_weights(model.state_dict())
    assert torch.equal(begun.module.get_parameter("last.weight"), average["last.weight"])


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.scale * output, label)


def test_a_new_run_that_begins_with_old_weights_takes_the_average_and_what_losses_have_learned() -> None:
    def with_a_learned_loss() -> TorchModel:
        return a_model(ema=EMA(0.5), loss={"scaled": Loss(Scaled())})

    model = with_a_learned_loss()
    for batch in Data(2).batches:
        model.run(batch, train=True, stream="train")
    new = with_a_learned_loss()
    new.load_weights(model.state_dict())
    assert same_bits(new.state_dict()["losses"], model.state_dict()["losses"])
    assert float(new.state_dict()["losses"]["scaled.scale"]) != 1.0
    assert same_bits(new.state_dict()["module"], {**model.state_dict()["module"], **model.state_dict()["average"]})
    assert same_bits(new.state_dict()["average"], model.state_dict()["average"])
    assert new.state_dict()["updates"]["n_updates"] == 0
