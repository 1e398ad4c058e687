"""Live parameters: changed while a run is under way, kept in its checkpoints, and back when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch_parts import ADAM, Data, a_model, on_asyncio

import asyncloop
from asyncloop import AfterBatch, ConfigError, Engine, Hook
from asyncloop.checkpoint import Checkpoints
from asyncloop.torch import EMA, Clip, Schedule, TorchModel

pytestmark = pytest.mark.anyio

CHANGES = {"lr": 0.5, "weight_decay": 0.25, "clip_norm": 0.125, "ema_decay": 0.75}


def a_live_model() -> TorchModel:
    return a_model(
        optimizer={**ADAM, "groups": [{"match": "*.bias", "weight_decay": 0.0, "lr": 2e-2}]},
        clip=Clip(norm=1.0, norm_type=1.0),
        ema=EMA(0.9),
        schedule=Schedule("linear", until=16),
    )


def settings_of(model: TorchModel) -> dict[str, Any]:
    assert model.updates is not None
    assert model.average is not None
    groups = model.updates.optimizer.param_groups
    return {
        "lr": [group["lr"] for group in groups],
        "weight_decay": [group["weight_decay"] for group in groups],
        "clip": model.updates.clip,
        "ema_decay": model.average.decay,
    }


class Sets(Hook):
    """Sets parameters after a step; stops after another."""

    lockstep = True

    def __init__(self, at: int, stop_at: int, changes: dict[str, float]) -> None:
        self.at, self.stop_at, self.changes = at, stop_at, changes
        self.rates: dict[int, float] = {}

    async def after_batch(self, event: AfterBatch) -> None:
        self.rates[event.step] = event.outputs["lr"]
        if event.step == self.at:
            for name, value in self.changes.items():
                event.control.set(name, value)
        if event.step == self.stop_at:
            event.control.stop("told to")


def engine(model: TorchModel, *hooks: Hook) -> Engine:
    return Engine(model, Data(8), hooks, epochs=2, skip_zeroth_epoch=True, on_unused_sources="ignore")


@on_asyncio
async def test_a_change_acts_from_the_next_step_on_and_a_resume_has_it_again(tmp_path: Path) -> None:
    whole, hook = a_live_model(), Sets(3, 0, CHANGES)
    await engine(whole, hook).train()
    assert hook.rates[3] == pytest.approx(1e-2 * (1 - 2 / 16))
    assert hook.rates[4] == pytest.approx(0.5 * (1 - 3 / 16))

    stopped = a_live_model()
    async with asyncloop.open_run(engine=engine(stopped, Sets(3, 5, CHANGES)), output_dir=tmp_path / "run") as live:
        await live
    last = 0.5 * (1 - 4 / 16)
    assert settings_of(stopped) == {
        "lr": pytest.approx([last, 2 * last]),
        "weight_decay": [0.25, 0.0],
        "clip": Clip(norm=0.125, norm_type=1.0),
        "ema_decay": 0.75,
    }
    assert Checkpoints(tmp_path / "run" / "checkpoints").read().engine["changed"] == CHANGES
    resumed = a_live_model()
    async with asyncloop.open_run(engine=engine(resumed, Sets(0, 0, {})), resume=tmp_path / "run") as live:
        await live
    assert settings_of(resumed) == settings_of(whole)


def test_a_rate_of_zero_is_no_end() -> None:
    model = a_live_model()
    for rate in (0.0, 0.5):
        model.set_parameters(lr=rate)
    model.run(Data(1).batches[0], train=True, stream="train")
    assert settings_of(model)["lr"] == [0.5, 1.0]


def test_a_decay_of_zero_is_no_end() -> None:
    model = a_live_model()
    for decay in (0.0, 0.25):
        model.set_parameters(weight_decay=decay)
    assert settings_of(model)["weight_decay"] == [0.25, 0.0]


def test_where_no_group_has_a_decay_all_get_it() -> None:
    model = a_model(optimizer={"class": "torch.optim:SGD", "lr": 0.1})
    model.set_parameters(weight_decay=0.25)
    assert model.updates is not None
    assert [group["weight_decay"] for group in model.updates.optimizer.param_groups] == [0.25]


def test_only_what_there_is_can_be_set() -> None:
    assert a_model().live == {"lr": float, "weight_decay": float}
    assert a_model(clip=Clip(value=1.0)).live == {"lr": float, "weight_decay": float}
    assert a_live_model().live == dict.fromkeys(CHANGES, float)
    assert a_model(optimizer=None).live == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", -1.0, "lr is a number of at least 0, not -1.0"),
        ("clip_norm", 0.0, "clip_norm is positive, not 0"),
        ("ema_decay", 1.5, "decay is at least 0 and less than 1, not 1.5"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: float, message: str) -> None:
    model = a_live_model()
    before = settings_of(model)
    with pytest.raises(ConfigError, match=message):
        model.set_parameters(**{name: value})
    assert settings_of(model) == before
