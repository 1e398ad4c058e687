"""SaveEvery, SaveLatest, SaveBest: which checkpoints are there in the end, and which steps they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping
from hook_parts import Events, pretend, read_names

from asyncloop import ConfigError, Engine, HookError
from asyncloop.checkpoint import Checkpoints
from asyncloop.hooks import ComputeStats, SaveBest, SaveEvery, SaveLatest
from asyncloop.runs import check

pytestmark = pytest.mark.anyio


def steps_saved(directory: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in read_names(directory)]


async def train(directory: Path, *hooks: Any, model: Any = None, **options: Any) -> None:
    settings: dict[str, Any] = {"epochs": 2, "skip_zeroth_epoch": True, **options}
    await Engine(model or Counting(), Arrays(5), hooks, output_dir=directory, **settings).train()


async def test_by_default_every_epoch_is_saved_and_all_stay(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery(), epochs=3)
    assert steps_saved(tmp_path) == [5, 10, 15]
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000015"


async def test_the_evaluation_before_training_is_not_saved(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery(), epochs=1, skip_zeroth_epoch=False)
    assert steps_saved(tmp_path) == [5]


async def test_zero_saves_the_untrained_model_as_well(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery(zero=True), epochs=1, skip_zeroth_epoch=False)
    assert steps_saved(tmp_path) == [0, 5]
    assert Checkpoints(tmp_path / "checkpoints").read("0").model["total"] == 0


def test_a_resumed_run_does_not_save_its_beginning_again() -> None:
    events = Events()
    drive(SaveEvery(zero=True).before_training(events.before_training(step=7)))
    assert not events.control.wants_checkpoint


@pytest.mark.parametrize("buffer", [0, 3])
async def test_a_cadence_in_steps_saves_exactly_those_steps_and_the_last(tmp_path: Path, buffer: int) -> None:
    await train(tmp_path, SaveEvery("3 steps"), buffer=buffer)
    assert steps_saved(tmp_path) == [3, 6, 9, 10]
    saved = Checkpoints(tmp_path / "checkpoints").read("6")
    assert saved.model["total"] == 4 * (0 + 1 + 2 + 3 + 4 + 0)


async def test_a_cadence_in_seconds_saves_the_last_step_at_least(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery("1 h"))
    assert steps_saved(tmp_path) == [10]


async def test_a_cadence_of_epochs_saves_those_epochs_and_the_last(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery("2 epochs"), epochs=5)
    assert steps_saved(tmp_path) == [10, 20, 25]


async def test_keep_leaves_the_newest_and_each_hook_keeps_its_own(tmp_path: Path) -> None:
    await train(tmp_path, SaveEvery("2 steps", keep=2), SaveEvery("5 steps"))
    assert steps_saved(tmp_path) == [5, 8, 10]


async def test_save_latest_leaves_one(tmp_path: Path) -> None:
    await train(tmp_path, SaveLatest(), epochs=3)
    assert steps_saved(tmp_path) == [15]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": "fortnight"}, "SaveEvery: every: a cadence must look like"),
        ({"every": 3}, "every is a text such as '1 epoch', not 3"),
        ({"keep": 0}, "keep is a whole number of at least 1, not 0"),
        ({"keep": 1.5}, "keep is a whole number"),
    ],
)
def test_wrong_arguments_of_save_every_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SaveEvery(**arguments)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SaveEvery("x", keep=0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("hook", [SaveEvery(), SaveLatest(), SaveBest()], ids=lambda hook: type(hook).__name__)
@pytest.mark.anyio
async def test_saving_needs_a_directory(hook: Any) -> None:
    with pytest.raises(ConfigError, match="no output_dir"):
        await Engine(Counting(), Arrays(), [hook]).train()


# --- SaveBest -------------------------------------------------------------------------------------------------------


class Scripted(Counting):
    """A model whose `score` in the n-th evaluation of `valid` is the n-th of these."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self._scores: Iterator[float] = iter(scores)
        self._score = 0.0

    def run(self, batch: Any, *, train: bool, stream: str) -> Any:
        if stream == "valid" and batch["x"][0] == 0:
            self._score = next(self._scores)
        return {**super().run(batch, train=train, stream=stream), "score": float(self._score)}


async def best(directory: Path, scores: list[float], *hooks: Any, **arguments: Any) -> str:
    """The checkpoint called best after epochs with these scores on `valid`."""
    hook = SaveBest(**{"variable": "score", **arguments})
    await train(directory, *hooks, hook, model=Scripted(*scores), epochs=len(scores), extra_streams=["valid"])
    return (directory / "checkpoints" / arguments.get("name", "best")).read_text().strip()


async def test_the_lowest_value_is_the_best(tmp_path: Path) -> None:
    assert await best(tmp_path, [3.0, 1.0, 2.0]) == "step-00000010"
    assert steps_saved(tmp_path) == [10, 15]  # the best, and the end


async def test_the_highest_value_can_be_the_best(tmp_path: Path) -> None:
    assert await best(tmp_path, [3.0, 1.0, 4.0, 2.0], mode="max", name="top") == "step-00000015"


async def test_an_equal_value_is_no_better(tmp_path: Path) -> None:
    assert await best(tmp_path, [2.0, 2.0]) == "step-00000005"


async def test_nan_is_never_best_and_blocks_nothing(tmp_path: Path) -> None:
    assert await best(tmp_path, [float("nan"), 5.0, float("nan"), 4.0, float("nan")]) == "step-00000020"


async def test_more_than_one_of_the_best_can_stay(tmp_path: Path) -> None:
    await best(tmp_path, [5.0, 4.0, 3.0, 9.0], keep=2)
    assert steps_saved(tmp_path) == [10, 15, 20]


async def test_an_aggregate_can_be_compared(tmp_path: Path) -> None:
    stats = ComputeStats({"score": ["mean", "max"]})
    assert await best(tmp_path, [3.0, 1.0], stats, aggregation="max") == "step-00000010"


async def test_an_evaluation_inside_an_epoch_counts_and_saves_exactly_its_step(tmp_path: Path) -> None:
    hook = SaveBest("score")
    await train(
        tmp_path, hook, model=Scripted(2.0, 1.0, 3.0), epochs=1, extra_streams=["valid"], evaluate_every="2 steps"
    )
    assert (tmp_path / "checkpoints" / "best").read_text().strip() == "step-00000004"
    assert hook.state_dict() == {"best": 1.0, "goal": "the least mean score of valid"}
    assert Checkpoints(tmp_path / "checkpoints").read("best").hooks["SaveBest"] == hook.state_dict()


async def test_the_stream_that_is_trained_on_is_judged_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    await train(tmp_path, SaveBest("loss", "train"), extra_streams=["valid"])
    assert (tmp_path / "checkpoints" / "best").read_text().strip() == "step-00000005"


def drive(coroutine: Any) -> None:
    """Run a handler that never waits."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_a_resumed_hook_remembers_the_best() -> None:
    events, hook = Events(), SaveBest()
    hook.load_state_dict({"best": 1.0})
    drive(hook.after_evaluation(events.after_evaluation({"valid": {"loss": 1.5}}, ["valid"])))
    assert not events.control.wants_checkpoint
    drive(hook.after_evaluation(events.after_evaluation({"valid": {"loss": 0.5}}, ["valid"], step=2)))
    assert events.control.wants_checkpoint


def test_evaluations_of_other_streams_do_not_matter() -> None:
    events, hook = Events(), SaveBest()
    drive(hook.after_evaluation(events.after_evaluation({"test": {"loss": 1.0}}, ["test"])))
    assert not events.control.wants_checkpoint


@pytest.mark.parametrize(
    ("arguments", "value", "message"),
    [
        ({"variable": "lss"}, 1.0, "variable 'lss' of stream 'valid', which has only loss; did you mean 'loss'"),
        ({"aggregation": "max"}, 1.0, "aggregate 'max' of 'loss'.*has only mean; a ComputeStats before it"),
        ({"aggregation": "max"}, {"mean": 1, "min": 0}, "has only mean, min"),
        ({}, {"mean": "low"}, "compares numbers, but 'loss' of stream 'valid' is a str"),
        ({}, np.ones(2), "is a ndarray"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_what_there_is(arguments: Any, value: Any, message: str) -> None:
    events = Events()
    with pytest.raises(HookError, match=message):
        SaveBest(**arguments).after_evaluation(events.after_evaluation({"valid": {"loss": value}}, ["valid"])).send(
            None
        )


async def test_a_stream_that_the_dataset_lacks_fails_the_run_before_it_trains(tmp_path: Path) -> None:
    keeping = Keeping()
    with pytest.raises(HookError, match="stream 'vlid', but the dataset has .*did you mean 'valid'"):
        await train(tmp_path, SaveBest(stream="vlid"), keeping)
    assert keeping.steps == []


async def test_a_stream_that_was_never_evaluated_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await train(tmp_path, SaveBest())
    assert "SaveBest never saw the stream 'valid'" in caplog.text


async def test_unnamed_streams_need_no_dataset(tmp_path: Path) -> None:
    hook = SaveBest(stream="unnamed_eval_0")
    engine = Engine(Counting(), pretend(), [hook], output_dir=tmp_path)
    async with engine:
        await engine.epoch(evaluate=[[{"x": np.ones(2)}]])
    assert hook.state_dict()["best"] == 1.0


async def test_a_run_that_never_evaluates_what_save_best_waits_for_is_warned_of_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "never.py").write_text(NEVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"dataset": {"class": "never:Data"}, "model": {"class": "never:Model"}, "hooks": [{"class": "SaveBest"}]}
    await check({**config, "engine": {"epochs": 1, "extra_streams": ["valid"]}})
    assert "goes by evaluations" not in caplog.text
    await check({**config, "engine": {"epochs": 1}})
    assert "SaveBest goes by evaluations of 'valid', which this run does not make by itself" in caplog.text


NEVER = """
class Data:
    def train_stream(self):
        yield {"x": [1.0]}
    valid_stream = train_stream

class Model:
    input_names, output_names = ["x"], ["loss"]
    def run(self, batch, *, train, stream):
        return {"loss": 1.0}
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass
"""


def test_a_value_that_was_best_by_another_measure_counts_no_more(caplog: pytest.LogCaptureFixture) -> None:
    before, same, other = SaveBest("score"), SaveBest("score"), SaveBest("score", mode="max")
    state = {**before.state_dict(), "best": 1.0}
    same.load_state_dict(state)
    other.load_state_dict(state)
    assert (same.state_dict()["best"], other.state_dict()["best"]) == (1.0, None)
    assert "wanted the least mean score of valid and now wants the largest mean score of valid" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "lowest"}, "mode is 'min' or 'max', not 'lowest'"),
        ({"variable": ""}, "variable is a name"),
        ({"stream": None}, "stream is a name"),
        ({"aggregation": 3}, "aggregation is a name"),
        ({"keep": 0}, "keep is a whole number of at least 1"),
        *(({"name": name}, "name is a word such as 'best'") for name in ("a/b", "", "latest", "step-1", "12", "..", "claims.json")),
    ],
)  # fmt: skip
def test_wrong_arguments_of_save_best_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SaveBest(**arguments)
