"""Stages and frozen weights: what does not train does not move, in exactly the steps in which it does not train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_parts import ADAM, LOSS, Data, Net, a_model, heads, on_asyncio

from asyncloop import AfterBatch, ConfigError, Engine
from asyncloop.torch import TorchModel

pytestmark = pytest.mark.anyio

STAGES = [
    {"until": "2 steps", "train": ["head"]},
    {"until": 5, "train": ["body.*"]},
    {},
]


def moved(model: TorchModel, n_steps: int) -> list[set[str]]:
    """The parameters that each step has changed."""
    found: list[set[str]] = []
    for batch in Data(n_steps).batches:
        before = {name: each.detach().clone() for name, each in model.module.named_parameters()}
        model.run(batch, train=True, stream="train")
        after = dict(model.module.named_parameters())
        found.append({name for name in after if not torch.equal(before[name], after[name])})
    return found


HEAD = {"head.weight", "head.bias"}
BODY = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}


def test_only_the_weights_of_a_stage_move_in_its_span() -> None:
    model = a_model(stages=STAGES, optimizer={**ADAM, "weight_decay": 0.1})
    assert moved(model, 7) == [HEAD] * 2 + [BODY] * 3 + [HEAD | BODY] * 2


def test_a_stage_goes_on_where_a_checkpoint_was_taken_inside_it() -> None:
    model = a_model(stages=STAGES)
    moved(model, 3)
    other = a_model(stages=STAGES)
    other.load_state_dict(model.state_dict())
    assert moved(other, 4) == [BODY] * 2 + [HEAD | BODY] * 2


def test_what_the_optimizer_keeps_of_a_resting_weight_stays() -> None:
    model = a_model(stages=[{"until": 2}, {"until": 4, "train": ["head"]}, {}])
    moved(model, 2)
    assert model.updates is not None
    weight = model.module.get_parameter("body.0.weight")
    kept = model.updates.optimizer.state[weight]["exp_avg"].clone()
    moved(model, 2)
    assert torch.equal(model.updates.optimizer.state[weight]["exp_avg"], kept)


@on_asyncio
async def test_only_the_losses_of_a_stage_count_and_hooks_may_name_the_others_all_the_same() -> None:
    stages = [{"until": 2, "losses": ["class_loss"]}, {"losses": ["back_loss"]}]
    told: list[dict[str, float]] = []
    asked: list[tuple[float, float]] = []
    model = heads(stages=stages)
    engine = Engine(model, Data(4), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: told.append(dict(event.outputs)))
    engine.bus.subscribe(
        AfterBatch,
        lambda event: asked.append((float(event.outputs["class_loss"]), float(event.outputs["back_loss"]))),
        variables=["class_loss", "back_loss"],
    )
    await engine.train()
    assert [set(outputs) for outputs in told] == [{"loss", "class_loss", "lr"}] * 2 + [{"loss", "back_loss", "lr"}] * 2
    assert [outputs["loss"] for outputs in told[:2]] == [class_loss for class_loss, _ in asked[:2]]
    assert [outputs["loss"] for outputs in told[2:]] == [0.25 * back_loss for _, back_loss in asked[2:]]
    assert all(back_loss > 0 for _, back_loss in asked)


def test_an_evaluation_has_all_losses_in_every_stage() -> None:
    model = heads(stages=[{"losses": ["class_loss"]}])
    model.run(Data(1).batches[0], train=True, stream="train")
    outputs = model.run(Data(1).batches[0], train=False, stream="valid")
    assert outputs["loss"] == pytest.approx(outputs["class_loss"] + 0.25 * outputs["back_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"train": ["head"]}, {}], "each but the last needs `until`"),
        ([{"until": 5}, {"until": 3}, {}], "a later one than the one before"),
        ([{"until": 5}, {"until": 3}], "a later one than the one before"),
        ([{"until": 5}, {"until": 5}, {}], "a later one than the one before"),
        ([{"until": 5, "losses": []}, {}], "stage 0 has no losses; leave `losses` out for all of them"),
        ([{"until": 5}, {"train": []}], "stage 1 has no train"),
        ([{"until": 2, "train": ["heads"]}, {}], r"stage 0: the pattern 'heads' matches no name; did you mean 'head"),
        ([{"until": 2, "losses": ["lost"]}, {}], "stage 0 wants the loss 'lost'; there are loss"),
        ([{"until": "2 epochs"}, {}], "counted in steps"),
        ([{"untill": 2}, {}], r"stages\.0\.untill: there is no such key; did you mean 'until'"),
    ],
)
def test_a_stage_that_is_none_is_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_model(stages=stages)


# --- frozen weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [["body"], ["body.*"], ["body.0.*", "body.1.weight", "body.1.bias"]])
def test_frozen_weights_never_move(patterns: list[str]) -> None:
    model = a_model(freeze=patterns, optimizer={**ADAM, "weight_decay": 0.5})
    assert moved(model, 3) == [HEAD] * 3
    assert model.updates is not None
    assert set(model.updates.parameters) == HEAD


def test_a_pattern_that_freezes_nothing_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"freeze: the pattern 'boddy\.\*' matches no name; did you mean 'body\."):
        a_model(freeze=["boddy.*"])


def test_when_everything_is_frozen_there_is_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="no parameter to train; leave the optimizer out, or thaw some"):
        a_model(freeze=["*"])


def test_a_frozen_module_in_eval_mode_stays_in_it() -> None:
    net = Net()
    net.body.eval()
    model = TorchModel(net, ["x"], loss=LOSS, optimizer=ADAM, freeze=["body"], device="cpu")
    mean = net.body[1].running_mean.clone()
    for batch in Data(2).batches:
        model.run(batch, train=True, stream="train")
        model.run(batch, train=False, stream="valid")
        model.end_stream("valid", train=False)
    assert net.training
    assert not any(part.training for part in net.body.modules())
    assert torch.equal(net.body[1].running_mean, mean)
