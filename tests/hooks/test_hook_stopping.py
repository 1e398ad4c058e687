"""StopAfter and StopOnNaN: where exactly a run ends, and what it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping
from hook_parts import Events

from asyncloop import ConfigError, Engine, StopTraining
from asyncloop.hooks import StopAfter, StopOnNaN

pytestmark = pytest.mark.anyio


class Endless:
    def train_stream(self) -> Iterator[dict[str, Any]]:
        for i in itertools.count():
            yield {"x": np.full(2, float(i))}


async def stopped(*hooks: Any, data: Any = None, model: Any = None, **options: Any) -> tuple[Any, Keeping]:
    keeping = Keeping()
    settings: dict[str, Any] = {"skip_zeroth_epoch": True, **options}
    engine = Engine(model or Counting(), data or Arrays(5), [*hooks, keeping], **settings)
    result = await engine.train()
    assert result.stopped
    return result, keeping


@pytest.mark.parametrize("buffer", [0, 3])
@pytest.mark.parametrize("steps", [1, 4, 5, 12])
async def test_steps_are_exact(steps: int, buffer: int) -> None:
    result, keeping = await stopped(StopAfter(steps=steps), buffer=buffer)
    assert (result.steps, result.reason) == (steps, f"StopAfter: {steps} steps done")
    assert keeping.steps == list(range(1, steps + 1))


async def test_batches_that_are_evaluated_are_no_steps() -> None:
    result, _ = await stopped(StopAfter(steps=7), extra_streams=["valid"])
    assert result.steps == 7


async def test_epochs_end_complete() -> None:
    result, keeping = await stopped(StopAfter(epochs=2), extra_streams=["valid"])
    assert (result.epochs, result.steps, result.reason) == (2, 10, "StopAfter: 2 epochs done")
    assert keeping.count("after_epoch") == keeping.count("after_epoch_profile") == 2


@pytest.mark.parametrize("skip", [False, True])
async def test_no_epoch_at_all_can_be_asked_for(skip: bool) -> None:
    result, keeping = await stopped(StopAfter(epochs=0), extra_streams=["valid"], skip_zeroth_epoch=skip)
    assert result.steps == 0
    assert keeping.count("after_epoch") == (0 if skip else 1)


async def test_minutes_end_a_run_that_knows_no_other_end() -> None:
    result, keeping = await stopped(StopAfter(minutes=1e-3), data=Endless())
    assert result.reason == "StopAfter: 0.001 minutes are over"
    assert keeping.steps == list(range(1, result.steps + 1))


@pytest.mark.parametrize(("minutes", "reason"), [(60, "StopAfter: 6 steps done"), (1e-4, "minutes are over")])
async def test_steps_and_minutes_work_together(minutes: float, reason: str) -> None:
    result, _ = await stopped(StopAfter(steps=6 if minutes == 60 else 10**9, minutes=minutes), data=Endless())
    assert reason in result.reason


async def test_of_several_limits_the_first_counts() -> None:
    result, _ = await stopped(StopAfter(epochs=3, steps=7))
    assert result.steps == 7


async def test_a_resumed_run_past_its_limits_stops_before_its_first_step() -> None:
    events = Events()
    with pytest.raises(StopTraining, match="7 of 5 steps"):
        await StopAfter(steps=5).before_training(events.before_training(step=7))
    with pytest.raises(StopTraining, match="2 epochs done"):
        await StopAfter(epochs=2).before_epoch(events.before_epoch(3))
    await StopAfter(epochs=2).before_epoch(events.before_epoch(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give at least one of epochs, steps, minutes"),
        ({"epochs": -1}, "epochs is a whole number of at least 0, not -1"),
        ({"steps": 0}, "steps is a whole number of at least 1, not 0"),
        ({"steps": 1.5}, "steps is a whole number"),
        ({"minutes": 0}, "minutes is a positive number, not 0"),
        ({"minutes": math.inf}, "minutes is a positive number"),
        ({"minutes": True}, "minutes is a positive number"),
    ],
)
def test_wrong_limits_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StopAfter(**arguments)


# --- StopOnNaN ------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


def poisoned(value: Any, at: int = 3) -> Counting:
    """Its output `y` has this value in the run number `at`."""
    return Counting(lambda n, _: {"y": value if n == at else np.zeros((2, 2))})


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (NAN, "'y' of stream train is NaN at step 4"),
        (np.float32(NAN), "'y' of stream train is NaN at step 4"),
        (np.array([[0, 1], [NAN, 0]]), "'y' of stream train is NaN"),
        (np.array([0.0, INF]), "'y' of stream train is infinite"),
        ({"head": [1.0, [NAN]]}, "'y/head/1/0' of stream train is NaN"),
        ({"note": "NaN", "parts": (-INF,)}, "'y/parts/0' of stream train is infinite"),
        (np.array([None, NAN], dtype=object), "'y/1' of stream train is NaN"),
    ],
)
async def test_a_value_that_is_not_finite_ends_the_run_at_its_step(value: Any, what: str) -> None:
    result, keeping = await stopped(StopOnNaN(), model=poisoned(value))
    assert what in result.reason
    assert result.steps == 4
    assert keeping.steps == [1, 2, 3, 4]


async def test_infinities_can_be_allowed() -> None:
    engine = Engine(
        poisoned(np.array([INF])), Arrays(5), [StopOnNaN(stop_on_inf=False)], epochs=1, skip_zeroth_epoch=True
    )
    assert not (await engine.train()).stopped


async def test_only_the_named_variables_count_and_sources_can_be_named() -> None:
    engine = Engine(poisoned(NAN), Arrays(5), [StopOnNaN(["loss", "x"])], epochs=1, skip_zeroth_epoch=True)
    assert not (await engine.train()).stopped
    result, _ = await stopped(StopOnNaN(["y"]), model=poisoned(NAN))
    assert result.steps == 4


async def test_the_epoch_data_is_looked_at_as_well() -> None:
    class Adding:
        async def after_epoch(self, event: Any) -> None:
            event.data["valid"]["gap"] = {"mean": NAN}

    result, _ = await stopped(Adding(), StopOnNaN(), extra_streams=["valid"])
    assert result.reason == "StopOnNaN: variable 'gap/mean' of stream valid (mean of epoch 1) is NaN at step 5"


async def test_lists_are_looked_into_as_well() -> None:
    with pytest.raises(StopTraining, match="'y/1/0' of stream train is NaN at step 1"):
        await StopOnNaN().after_batch(Events().batch({"y": [0.0, (NAN, 1.0)]}))


async def test_batches_that_are_evaluated_are_not_looked_at() -> None:
    engine = Engine(Counting(lambda n, train: {"y": np.full(2, 0 if train else NAN)}), Arrays(2), [StopOnNaN()],
                    epochs=1, extra_streams=["valid"])  # fmt: skip
    assert not (await engine.train()).stopped


async def test_a_cadence_makes_it_look_at_those_steps_only() -> None:
    hook = StopOnNaN()
    hook.every = "2 steps"
    result, _ = await stopped(hook, model=Counting(lambda n, _: {"y": np.array([NAN if n >= 2 else 0.0])}))
    assert result.steps == 4


class Tensor:
    """As much of a tensor as the hook may touch."""

    def __init__(self, *values: float) -> None:
        self._values = np.array(values)

    def isnan(self) -> Any:
        return np.isnan(self._values)

    def isinf(self) -> Any:
        return np.isinf(self._values)


@pytest.mark.parametrize(("tensor", "what"), [(Tensor(1, NAN), "NaN"), (Tensor(INF, 1), "infinite")])
async def test_tensors_are_asked_themselves(tensor: Tensor, what: str) -> None:
    with pytest.raises(StopTraining, match=what):
        await StopOnNaN().after_batch(Events().batch({"y": tensor}))
    await StopOnNaN().after_batch(Events().batch({"y": Tensor(1)}))


def test_it_says_which_outputs_the_engine_may_leave_to_it() -> None:
    assert StopOnNaN().takes_over_nonfinite is None
    assert StopOnNaN(["loss"]).takes_over_nonfinite == ("loss",)


def test_wrong_variables_are_named() -> None:
    with pytest.raises(ConfigError, match="variables is a list of names, not 'loss'"):
        StopOnNaN("loss")
