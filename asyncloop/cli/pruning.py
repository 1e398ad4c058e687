"""`asyncloop prune`: removing runs that came to nothing, after asking."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncloop.archive import SavedRun, runs_below, size_of
from asyncloop.cli.terminal import complain, print_json, print_table
from asyncloop.cli.wording import ago, size
from asyncloop.errors import ConfigError, NothingToResumeError, StorageError
from asyncloop.storage import storage_error

__all__ = ["prune_runs"]

_PARTS = {"checkpoints", "code", "eval"}
"""Directories in a run's own that belong to every run."""


def prune_runs(root: str, *, epochs: int | None, subdirectories: bool, yes: bool, as_json: bool) -> int:
    """Remove runs with fewer than `epochs` epochs done (None: without a checkpoint) that no process works on.

    Anything that is no run stays. `subdirectories`: also what hooks have put into directories of their own in the runs
    that stay (pictures, tables).
    """
    if not Path(root).is_dir():
        raise NothingToResumeError(f"there is no directory {root}")
    doomed = list(_doomed(Path(root), epochs, subdirectories))
    if not doomed:
        return _told([], as_json, "nothing to remove")
    if not yes:
        _show(doomed)
        if not _agreed(len(doomed)):
            return _told([], as_json, "nothing was removed")
    removed = [path for path, run in doomed if _remove(path, run)]
    return _told(removed, as_json, f"removed {len(removed)}")


def _doomed(root: Path, epochs: int | None, subdirectories: bool) -> Iterator[tuple[Path, SavedRun]]:
    for run in runs_below(root):
        if not run.is_over or run.state == "unreadable" or _is_evaluated(run):
            continue
        if (run.epochs < epochs) if epochs is not None else _has_saved_nothing(run):
            yield run.path, run
        elif subdirectories:
            inner = (entry for entry in sorted(run.path.iterdir()) if entry.is_dir() and not entry.is_symlink())
            yield from ((entry, run) for entry in inner if entry.name not in _PARTS)


def _is_evaluated(run: SavedRun) -> bool:
    """Whether an evaluation of it is under way: that holds a lock of its own, not the run's."""
    try:
        return any(not each.is_over for each in runs_below(run.path / "eval"))
    except StorageError:  # nobody may look
        return True


def _has_saved_nothing(run: SavedRun) -> bool:
    folder = run.path / "checkpoints"
    return not run.checkpoints and (not folder.exists() or os.access(folder, os.R_OK | os.X_OK))


def _show(doomed: list[tuple[Path, SavedRun]]) -> None:
    rows = [
        (str(path), run.state, f"{run.epochs} epochs, {run.steps} steps", ago(run.time("created")), size(size_of(path)))
        for path, run in doomed
    ]
    print_table(rows, file=sys.stderr)


def _agreed(n: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("prune asks before it removes, and standard input is no terminal; add --yes")
    sys.stdout.flush()
    print(f"remove these {n}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove(path: Path, run: SavedRun) -> bool:
    """Under the run's lock, so that nobody can begin to resume what is being removed. False if somebody is at work."""
    try:
        lock = os.open(run.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_evaluated(run):  # since it was shown
                raise BlockingIOError
            shutil.rmtree(path)
        finally:
            os.close(lock)
    except BlockingIOError:
        complain(f"{run.path} is in use and stays")
        return False
    except OSError as error:
        raise storage_error("remove", path, error) from error
    return True


def _told(removed: list[Path], as_json: bool, words: str) -> int:
    if as_json:
        found: dict[str, Any] = {"removed": [str(path) for path in removed]}
        print_json(found)
    else:
        complain(words)
        for path in removed:
            print(path)
    return 0
