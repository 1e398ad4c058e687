"""Storage: a refusal is never taken for "nothing there", and what has to stay is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import CHANGES, Disk

from asyncloop import StorageError
from asyncloop.archive import find_run
from asyncloop.checkpoint import Checkpoints
from asyncloop.control import Claim
from asyncloop.saved_config import SavedConfig, check_stored
from asyncloop.storage import append, clear_away, content_of, entries_of, is_dir, is_file, is_there

LOOKS: list[Callable[[Path], object]] = [is_there, is_file, is_dir, entries_of, content_of]


@pytest.mark.parametrize("error", ["EACCES", "EIO"])
@pytest.mark.parametrize("look", LOOKS)
def test_what_nobody_may_look_at_is_not_taken_for_missing(
    tmp_path: Path, look: Callable[[Path], object], error: str
) -> None:
    with Disk(tmp_path, error, 1), pytest.raises(OSError, match=str(tmp_path)):
        look(tmp_path / "some" / "where")


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["nowhere", "file/below", "itself", "x" * 300])
def test_what_is_not_there_is_no_error(tmp_path: Path, look: Callable[[Path], object], name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "itself").symlink_to("itself")
    assert not look(tmp_path / name)


def test_what_is_there_is_told_by_kind(tmp_path: Path) -> None:
    (tmp_path / "b-file").write_bytes(b"text")
    (tmp_path / "b-folder").mkdir()
    (tmp_path / "a-link").symlink_to("b-folder")
    assert [is_file(tmp_path / name) for name in ("b-file", "b-folder", "a-link")] == [True, False, False]
    assert [is_dir(tmp_path / name) for name in ("b-file", "b-folder", "a-link")] == [False, True, True]
    assert [entry.name for entry in entries_of(tmp_path)] == ["a-link", "b-file", "b-folder"]
    assert [entry.name for entry in entries_of(tmp_path, "b-")] == ["b-file", "b-folder"]
    assert content_of(tmp_path / "b-file") == b"text"


def test_what_is_cleared_away_is_gone_and_what_has_to_stay_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper" / "file").touch()
    (tmp_path / "link").symlink_to("one")
    for name in ("link", "two", "nowhere"):
        clear_away(tmp_path / name)
    assert [entry.name for entry in entries_of(tmp_path)] == ["one"]
    assert not caplog.text
    with Disk(tmp_path, "EACCES", 1, only="unlink .*"):
        clear_away(tmp_path / "one")
    assert f"cannot remove {tmp_path / 'one'}: Permission denied; check the permissions" in caplog.text
    assert is_dir(tmp_path / "one")


def test_what_is_appended_is_all_there_or_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert append(path, b"one\n") == 4
    with Disk(tmp_path, "half", 1):
        with pytest.raises(OSError, match="No space left"):
            append(path, b"lost\n")
        assert path.read_bytes() == b"one\n"
        assert append(path, b"two\n") == 8
    assert path.read_bytes() == b"one\ntwo\n"


def test_checkpoints_that_nobody_may_look_at_are_an_error_and_not_none(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write(1, {"model": {}, "hooks": {}}, {}, [])
    for only in ("listdir .*", "stat .*/manifest.json"):
        with Disk(tmp_path, "EACCES", 1, only=only), pytest.raises(StorageError, match="cannot look into"):
            Checkpoints(tmp_path).read_newest()


def test_a_step_that_is_written_again_is_durable_before_the_old_one_goes(tmp_path: Path) -> None:
    checkpoints, name = Checkpoints(tmp_path), "step-00000001"
    checkpoints.write(1, {"model": {}, "hooks": {}}, {}, [Claim("all")])
    calls: list[tuple[str, str]] = []
    with Disk(tmp_path) as disk:
        disk.seen = lambda kind, path: calls.append((kind, os.path.relpath(path, tmp_path)))
        checkpoints.write(1, {"model": {}, "hooks": {}}, {}, [Claim("all")])
    changes = [call for call in calls if call[0] in CHANGES]
    renamed = changes.index(("rename", f".tmp-{name}"))
    assert changes[renamed - 1 : renamed + 2] == [("rename", name), ("rename", f".tmp-{name}"), ("fsync", ".")]
    assert ("rmdir", f".tmp-before-{name}") in changes[renamed + 2 :]


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("stat .*/resolved.toml", "cannot look for"),
        ("open .*/resolved.toml", "cannot read"),
        ("read .*/resolved.toml", "cannot read"),
        ("open .*/run.json", "cannot read"),
        ("stat .*/code", "cannot look for the classes of"),
    ],
)
def test_a_stored_config_that_the_disk_refuses_is_the_disks_fault(tmp_path: Path, only: str, said: str) -> None:
    (tmp_path / "resolved.toml").write_text("[dataset]\nclass = 'nowhere:Data'\n[model]\nclass = 'nowhere:Model'\n")
    (tmp_path / "run.json").write_text("{}")
    with Disk(tmp_path, "EIO", 1, only=only), pytest.raises(StorageError, match=rf"{said} {tmp_path}.*Input/output"):
        check_stored(tmp_path)
        SavedConfig(tmp_path).load()


def test_a_run_that_is_given_by_its_path_is_not_missed_because_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with Disk(tmp_path, "EACCES", 1), pytest.raises(StorageError, match=f"cannot look for a run in {tmp_path}: Perm"):
        find_run(tmp_path)
