"""The archive: runs found and read on disk, whatever became of them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncloop import NothingToResumeError
from asyncloop.archive import find_run, read_run, runs_below, size_of
from asyncloop.rundir import RunDir


def saved(root: Path, name: str, created: str = "2026-01-01T00:00:00+00:00", **record: object) -> Path:
    path = root / name
    path.mkdir(parents=True)
    times = {"created": created, "started": created, "ended": None}
    (path / "run.json").write_text(json.dumps({"id": name.rpartition("-")[2], "times": times, **record}))
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


@pytest.mark.parametrize("state", ["queued", "starting", "running", "paused", "stopping"])
def test_a_run_whose_process_is_gone_is_lost(tmp_path: Path, state: str) -> None:
    path = saved(tmp_path, "a-1", state=state)
    assert read_run(path).state == "lost"
    with held(path):
        assert read_run(path).state == state
    assert read_run(path).state == "lost"


def test_the_end_of_a_run_is_told_without_a_lock(tmp_path: Path) -> None:
    assert read_run(saved(tmp_path, "a-1", state="completed")).state == "completed"


def test_a_run_is_found_by_path_id_prefix_name_and_as_the_latest(tmp_path: Path) -> None:
    old = saved(tmp_path, "digits-20260101-000000-abcd1234", "2026-01-01T00:00:00+00:00")
    new = saved(tmp_path, "moons-20260102-000000-abff5678", "2026-01-02T00:00:00+00:00")
    for name in (old, "abcd1234", "abc", "digits"):
        assert find_run(name, tmp_path) == old
    assert find_run("latest", tmp_path) == new
    for name, message in (("ab", "2 runs match"), ("zz", "no run matches"), ("", "2 runs match")):
        with pytest.raises(NothingToResumeError, match=message):
            find_run(name, tmp_path)


def test_a_damaged_record_is_unreadable_and_hides_no_other_run(tmp_path: Path) -> None:
    saved(tmp_path, "a-1", state="completed")
    (saved(tmp_path, "b-2") / "run.json").write_text('{"id": ')
    (saved(tmp_path, "c-3") / "run.json").write_text("[]")
    assert {run.path.name: run.state for run in runs_below(tmp_path)} == {
        "a-1": "completed",
        "b-2": "unreadable",
        "c-3": "unreadable",
    }


def test_evaluations_of_runs_are_listed_on_request_only(tmp_path: Path) -> None:
    run = saved(tmp_path, "a-1", state="completed")
    saved(run / "eval", "valid-2", state="completed")
    saved(tmp_path / "deeper", "b-3", state="completed")
    assert [found.id for found in runs_below(tmp_path)] == ["1"]
    assert {found.id for found in runs_below(tmp_path, recursive=True)} == {"1", "2", "3"}


def test_the_metrics_of_a_killed_run_are_its_last_whole_lines(tmp_path: Path) -> None:
    run = saved(tmp_path, "a-1", state="running")
    lines = [
        {"step": 1, "epoch": 1, "stream": "train", "time": "", "loss": 3.0},
        {"step": 2, "epoch": 2, "stream": "train", "time": "", "loss": 2.0},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert read_run(run).metrics == {"train": {"loss": 2.0}}


def test_fifty_starts_at_once_have_fifty_directories(tmp_path: Path) -> None:
    def start(_: int) -> Path:
        rundir = RunDir.plan(tmp_path, "same")
        rundir.create({}, {})
        rundir.close()
        return rundir.path

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(start, range(50)))
    assert len(set(paths)) == len(runs_below(tmp_path)) == 50


def test_what_was_there_before_is_not_taken_back(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine", tmp_path / "new"):
        rundir = RunDir.plan(Path(), "run", path)
        rundir.create({"config.toml": ""}, {})
        (path / "deep" / "er").mkdir(parents=True)
        rundir.remove()
        rundir.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert size_of(tmp_path) == 0
