"""Snapshot: a copy of the user's code and the git revision that a run was started from. Bounded, and never fatal."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["copy_code", "git_state"]

logger = logging.getLogger("asyncloop")

_CODE_FILES = 500
_CODE_BYTES = 10 * 2**20
_DIFF_BYTES = 2**20
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "runs", "build", "dist"}


def copy_code(folder: Path, target: Path, run_dir: Path) -> None:
    """Copy the .py and .toml files below `folder` to `target`, at most 500 files and 10 MiB. Warns, never raises."""
    try:
        _copy(folder.resolve(), target, run_dir.resolve())
    except OSError as error:
        logger.warning("the code snapshot is incomplete: %s", error)


def _copy(folder: Path, target: Path, run_dir: Path) -> None:
    n_files = n_bytes = 0
    for path in _walk(folder, lambda entry: entry.resolve() != run_dir):
        size = path.stat().st_size
        n_files, n_bytes = n_files + 1, n_bytes + size
        if n_files > _CODE_FILES or n_bytes > _CODE_BYTES:
            logger.warning("the code snapshot stops at %d files: %s holds too much code", n_files - 1, folder)
            return
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _walk(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            hidden = entry.name.startswith(".") or entry.name in _SKIPPED or (entry / "pyvenv.cfg").exists()
            if (
                not hidden
                and os.access(entry, os.R_OK | os.X_OK)
                and wanted(entry)
                and not (entry / "run.json").exists()
            ):
                yield from _walk(entry, wanted)
        elif entry.suffix in (".py", ".toml") and entry.is_file():
            yield entry


def git_state(folders: Iterable[Path]) -> dict[str, str] | None:
    """`revision` and `diff` (at most 1 MiB) of the first folder in a work tree, None without one; the index stays."""
    return next((found for folder in folders if (found := _git(folder))), None)


def _git(folder: Path) -> dict[str, str] | None:
    def ask(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=10, check=True)
        return done.stdout.decode(errors="replace")

    try:
        revision = ask("rev-parse", "HEAD").strip()
        return {"revision": revision, "diff": ask("diff", "HEAD")[:_DIFF_BYTES]}
    except (OSError, subprocess.SubprocessError):
        return None
