"""Snapshot: a copy of the user's code and the git revision that a run was started from. Bounded, and never fatal."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from asyncloop.redact import redacted
from asyncloop.storage import clear_away

__all__ = ["copy_code", "git_state"]

logger = logging.getLogger("asyncloop")

_CODE_FILES = 500
_CODE_BYTES = 10 * 2**20
_ENTRIES = 20_000
"""Names looked at in search of code: a folder of data takes long to walk, the more so on a network."""
_DIFF_BYTES = 2**20
_GIT_S = 10.0
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "runs", "build", "dist"}
_OF_OTHERS = {"run.json", "pyvenv.cfg"}
"""What makes a directory a run's or an environment's."""

Refusal = Callable[[str, OSError], None]


# --- code ---------------------------------------------------------------------------------------------------------


def copy_code(folder: Path, target: Path, run_dir: Path) -> None:
    """Copy the .py and .toml files below `folder` to `target`, the nearest first, at most 500 files and 10 MiB.

    Never raises: a warning says how many are missing, and which of them first.
    """
    refused: list[str] = []

    def refuse(path: str, error: OSError) -> None:
        refused.append(f"{path}: {error.strerror or error}")

    root = os.path.realpath(folder)
    n_bytes = 0
    for n_files, path in enumerate(_code_below(root, os.path.realpath(run_dir), refuse)):
        n_bytes += _size(path)
        if n_files == _CODE_FILES or n_bytes > _CODE_BYTES:
            logger.warning("the code snapshot stops at %d files: %s holds too much code", n_files, folder)
            break
        _copy(path, target / os.path.relpath(path, root), refuse)
    if refused:
        logger.warning("the code snapshot lacks %d that cannot be copied, first %s", len(refused), refused[0])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # the copy tells
        return 0


def _copy(path: str, copy: Path, refuse: Refusal) -> None:
    at = path
    try:
        text = Path(path).read_bytes().decode(errors="surrogateescape")
        at = str(copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(redacted(text).encode(errors="surrogateescape"))
    except OSError as error:
        refuse(at, error)
        clear_away(copy)  # it may be part of a file


def _code_below(folder: str, run_dir: str, refuse: Refusal) -> Iterator[str]:
    left, folders = _ENTRIES, deque([folder])
    while folders:
        at = folders.popleft()
        try:
            with os.scandir(at) as entries:
                there = sorted(islice(entries, left), key=lambda entry: entry.name)
        except OSError as error:
            refuse(at, error)
            continue
        left -= len(there)
        if at != folder and _OF_OTHERS & {entry.name for entry in there}:
            continue
        yield from (entry.path for entry in there if entry.name.endswith((".py", ".toml")) and _is_file(entry))
        folders += [entry.path for entry in there if _may_hold_code(entry) and entry.path != run_dir]
        if left == 0:
            logger.warning("the code snapshot stops at %d names: %s holds too many files", _ENTRIES, folder)
            return


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to where nobody may look
        return False


def _may_hold_code(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in _SKIPPED


# --- git ----------------------------------------------------------------------------------------------------------


def git_state(folders: Iterable[Path]) -> dict[str, str] | None:
    """`revision` and `diff` (at most 1 MiB) of the first folder in a work tree, None without one; the index stays.

    Without `diff` if git cannot say it in ten seconds; a warning tells so.
    """
    return next((found for folder in folders if (found := _git(folder))), None)


def _git(folder: Path) -> dict[str, str] | None:
    command = ["git", "--no-optional-locks", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = {"revision": done.stdout.decode(errors="replace").strip()}
    try:
        return found | {"diff": _diff(folder)}
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the changes since the git revision are not recorded: %s", error)
        return found


def _diff(folder: Path) -> str:
    """The changes of tracked files; no program that the user has set up for people to read them is started."""
    plain = ["--no-ext-diff", "--no-textconv", "--no-color"]
    command = ["git", "--no-optional-locks", "diff", *plain, "HEAD"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as git:
        assert git.stdout is not None
        late = threading.Timer(_GIT_S, git.kill)
        late.start()
        try:
            text = git.stdout.read(_DIFF_BYTES)
            if len(text) == _DIFF_BYTES:
                git.kill()
            elif git.wait() != 0:
                raise subprocess.CalledProcessError(git.returncode, command)
        finally:
            late.cancel()
    return text.decode(errors="replace")
