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
from failing_disk import Disk

from asyncloop import NothingToResumeError, StorageError
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


def test_a_run_whose_lock_nobody_may_look_at_is_not_called_lost(tmp_path: Path) -> None:
    path = saved(tmp_path, "a-1", state="running")
    (path / "lock").touch()
    assert read_run(path).state == "lost"
    with Disk(tmp_path, "EACCES", 1, only="open .*/lock"):
        assert read_run(path).state == "running"


@pytest.mark.parametrize("only", ["stat .*/b-2/run.json", "open .*/b-2/run.json"])
def test_a_run_that_the_disk_refuses_is_named_when_another_is_taken_for_the_latest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, only: str
) -> None:
    saved(tmp_path, "a-1", "2026-01-01T00:00:00+00:00")
    saved(tmp_path, "b-2", "2026-01-02T00:00:00+00:00")
    with Disk(tmp_path, "EIO", 1, for_good=True, only=only):
        assert find_run("latest", tmp_path).name == "a-1"
        assert "b-2" in caplog.text
        assert "Input/output error" in caplog.text
        assert [run.state for run in runs_below(tmp_path) if run.path.name == "b-2"] in ([], ["unreadable"])


def test_the_end_of_a_run_is_told_without_a_lock(tmp_path: Path) -> None:
    assert read_run(saved(tmp_path, "a-1", state="completed")).state == "completed"


def test_a_run_is_found_by_path_id_prefix_name_and_as_the_latest(tmp_path: Path) -> None:
    old = saved(tmp_path, "digits-20260101-000000-abcd1234", "2026-01-01T00:00:00+00:00")
    new = saved(tmp_path, "moons-20260102-000000-abff5678", "2026-01-02T00:00:00+00:00")
    for name in (old, "abcd1234", "abc", "digits"):
        assert find_run(name, tmp_path) == old
    assert find_run("latest", tmp_path) == new
    for name, message in (("ab", "2 runs match"), ("zz", "no run matches"), ("", "an empty name")):
        with pytest.raises(NothingToResumeError, match=message):
            find_run(name, tmp_path)


def test_an_evaluation_is_found_by_its_id_if_no_training_run_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, "digits-20260101-000000-abcd1234", "2026-01-01T00:00:00+00:00")
    one = saved(run / "eval", "valid-20260102-000000-abff5678", "2026-01-02T00:00:00+00:00")
    two = saved(run / "eval", "test-20260102-000000-ccff5678", "2026-01-02T00:00:00+00:00")
    assert find_run("latest", tmp_path) == run
    (tmp_path / "link").symlink_to(run)
    for name, path in (("abff5678", one), ("abf", one), (one.name, one), ("c", two), ("abcd", run)):
        assert find_run(name, tmp_path) == path
    scanned: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(Path(path)) or scandir(path))
    assert find_run("abcd", tmp_path) == run
    assert scanned == [tmp_path]


def test_a_run_whose_evaluations_nobody_may_see_hides_no_other_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(saved(tmp_path, "a-1") / "eval", "valid-3")
    found = saved(saved(tmp_path, "b-2") / "eval", "valid-4")
    with Disk(tmp_path, "EIO", 1, for_good=True, only="scandir .*/a-1/eval"):
        assert find_run("4", tmp_path) == found
    assert "a-1/eval: Input/output error" in caplog.text


def test_a_damaged_record_is_unreadable_and_hides_no_other_run(tmp_path: Path) -> None:
    saved(tmp_path, "a-1", state="completed")
    (saved(tmp_path, "b-2") / "run.json").write_text('{"id": ')
    (saved(tmp_path, "c-3") / "run.json").write_text("[]")
    assert {run.path.name: run.state for run in runs_below(tmp_path)} == {
        "a-1": "completed",
        "b-2": "unreadable",
        "c-3": "unreadable",
    }


@pytest.mark.parametrize(
    "record",
    [
        {"times": {"created": "yesterday"}},
        {"times": {"created": "2026-01-01T00:00:00"}},
        {"times": {"created": 3}},
        {"times": []},
        {"epochs": "x"},
        {"steps": 1.5},
        {"metrics": [1]},
        {"metrics": {"train": 3}},
        {"host": 3},
        {"git": {"revision": 3}},
        {"evaluation": {"checkpoint": "latest"}},
        {"tags": "one"},
        {"command": [1]},
        {"state": ["completed"]},
        {"name": 7},
    ],
)
def test_a_record_with_something_odd_in_it_is_not_believed(tmp_path: Path, record: dict[str, object]) -> None:
    saved(tmp_path, "a-1", state="completed")
    odd = saved(tmp_path, "b-2", state="completed")
    (odd / "run.json").write_text(json.dumps({"id": "2", "state": "completed", **record}))
    found = {run.path.name: run for run in runs_below(tmp_path)}
    assert (found["a-1"].state, found["b-2"].state) == ("completed", "unreadable")
    run = found["b-2"]
    assert (run.id, run.name, run.epochs, run.steps, run.seconds, run.metrics) == ("2", "b-2", 0, 0, None, {})
    assert find_run("latest", tmp_path).name == "a-1"


def test_metrics_and_pointers_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    run = saved(tmp_path, "a-1", state="failed")
    (run / "metrics.jsonl").write_bytes(
        b'{"stream": "train", "loss": 2.0}\n\xff\xfe\n[1]\n{"loss": 1}\n{"stream": [1]}\n'
    )
    folder = run / "checkpoints"
    for name in ("step-00000001", "step-one"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    (folder / "latest").write_text("step-00000001\n")
    (folder / "best").write_bytes(b"\xff\xfe")
    (run / "resolved.toml").write_bytes(b"\xff")
    found = read_run(run)
    assert found.metrics == {"train": {"loss": 2.0}}
    assert [(each.step, each.names) for each in found.checkpoints] == [(1, ("latest",))]
    assert found.config == {}


def test_a_run_in_a_directory_of_another_name_is_found_by_the_id_that_is_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, "mine")
    (path / "run.json").write_text(json.dumps({"id": "9c01abcd", "state": "completed"}))
    saved(tmp_path, "moons-20260102-000000-abff5678")
    (tmp_path / "link").symlink_to(path)
    listed = next(run.id for run in runs_below(tmp_path) if run.path == path)
    for name in (listed, "9c01", "mine"):
        assert find_run(name, tmp_path) == path
    assert find_run("link", tmp_path) == tmp_path / "link"
    with pytest.raises(NothingToResumeError, match="a run that is elsewhere is given by its path"):
        find_run("9c02", tmp_path)


def test_a_whole_name_wins_over_those_that_begin_with_it(tmp_path: Path) -> None:
    short, _ = saved(tmp_path, "digits"), saved(tmp_path, "digits-2")
    assert find_run("digits", tmp_path) == short


def test_a_directory_that_cannot_be_read_is_an_error_and_a_deeper_one_hides_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "open", "a-1", state="completed")
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir, is_file = os.scandir, Path.is_file

    def refuse(path: Path) -> None:
        if Path(path).is_relative_to(closed):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) or is_file(path))
    assert [run.id for run in runs_below(tmp_path, recursive=True)] == ["1"]
    assert "closed: Permission denied" in caplog.text
    with pytest.raises(StorageError, match=r"closed: Permission denied; check the permissions"):
        runs_below(closed)
    assert runs_below(tmp_path / "nowhere") == []


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
