"""TrainingTrace: trace.json at every stage of a run."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from engine_parts import Arrays, Counting
from hook_parts import Events

from asyncloop import Engine, StorageError
from asyncloop.hooks import StopAfter, TrainingTrace

pytestmark = pytest.mark.anyio


def trace(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "trace.json").read_text())


def test_it_is_written_at_the_start_after_each_epoch_and_at_the_end(tmp_path: Path) -> None:
    events, hook = Events(tmp_path), TrainingTrace()
    hook.before_training(events.before_training())
    first = trace(tmp_path)
    assert first | {"train_begin": 0} == {"train_begin": 0, "train_end": None, "epochs_done": 0, "exit_status": None}
    hook.after_epoch(events.after_epoch({}, epoch=1))
    assert trace(tmp_path) == first | {"epochs_done": 1}
    hook.after_training(events.after_training())
    last = trace(tmp_path)
    assert last | {"train_end": 0} == first | {"epochs_done": 1, "train_end": 0, "exit_status": 0}
    begin, end = (datetime.fromisoformat(last[name]) for name in ("train_begin", "train_end"))
    assert begin <= end
    assert begin.utcoffset() == end.utcoffset() == timedelta(0)


async def test_a_run_that_succeeds_ends_with_0(tmp_path: Path) -> None:
    await Engine(Counting(), Arrays(3), [TrainingTrace()], epochs=2, output_dir=tmp_path).train()
    assert (trace(tmp_path)["epochs_done"], trace(tmp_path)["exit_status"]) == (2, 0)


async def test_a_declared_stop_ends_with_0(tmp_path: Path) -> None:
    await Engine(Counting(), Arrays(3), [TrainingTrace(), StopAfter(steps=4)], output_dir=tmp_path).train()
    assert (trace(tmp_path)["epochs_done"], trace(tmp_path)["exit_status"]) == (1, 0)


async def test_a_failure_ends_with_1(tmp_path: Path) -> None:
    def fail(n: int, train: bool) -> None:
        if n == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Engine(Counting(fail), Arrays(3), [TrainingTrace()], output_dir=tmp_path, skip_zeroth_epoch=True).train()
    assert (trace(tmp_path)["epochs_done"], trace(tmp_path)["exit_status"]) == (1, 1)


def test_a_resumed_run_keeps_its_beginning_and_its_count(tmp_path: Path) -> None:
    events, hook, resumed = Events(tmp_path), TrainingTrace(), TrainingTrace()
    hook.before_training(events.before_training())
    hook.after_epoch(events.after_epoch({}, epoch=2))
    before = trace(tmp_path)
    resumed.before_training(events.before_training(step=9))
    assert trace(tmp_path) == before


def test_epochs_that_a_checkpoint_does_not_have_are_not_counted_by_a_resume(tmp_path: Path) -> None:
    events, hook, resumed = Events(tmp_path), TrainingTrace(), TrainingTrace()
    hook.before_training(events.before_training())
    hook.after_epoch(events.after_epoch({}, epoch=1))
    state = hook.state_dict()
    hook.after_epoch(events.after_epoch({}, epoch=2))
    resumed.load_state_dict(state)
    resumed.before_training(events.before_training(step=9))
    assert trace(tmp_path)["epochs_done"] == 1


async def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    engine = Engine(Counting(), Arrays(3), [TrainingTrace(output_dir=tmp_path)], epochs=1)
    await engine.train()
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_refusing_file_system_is_named_with_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "trace.json").mkdir()
    with pytest.raises(StorageError, match="trace.json"):
        TrainingTrace().before_training(Events(tmp_path).before_training())
