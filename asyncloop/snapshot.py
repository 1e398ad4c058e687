"""Snapshot: a copy of the user's code and the git revision that a run was started from. Bounded, and never fatal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from asyncloop.redact import redacted
from asyncloop.storage import clear_away

__all__ = ["copy_code", "copy_modules", "git_state"]

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
    root = os.path.realpath(folder)
    with _refusals() as refuse:
        files = _code_below(root, os.path.realpath(run_dir), refuse)
        _copy_all(((path, target / os.path.relpath(path, root)) for path in files), folder, refuse)


def copy_modules(modules: Iterable[Path], cwd: Path, folder: Path, target: Path, run_dir: Path) -> dict[str, str]:
    """Copy modules that lie below `cwd`, files or packages with all that is in them, to where they are seen from there.

    What is below `folder`, which is in `target` already, is not copied again. Bounded as `copy_code`, never raises.
    Returns the directories that the modules are imported from, each with that of its copies below `target`.
    """
    base_of = {place: folder if folder in place.parents else cwd for place in modules}
    with _refusals() as refuse:
        lacking = (
            (path, copy)
            for place, base in base_of.items()
            for path in _files_of(place, folder, os.path.realpath(run_dir), refuse)
            if not os.path.lexists(copy := target / os.path.relpath(path, base))
        )
        _copy_all(lacking, cwd, refuse)
    return {str(place.parent): os.path.relpath(place.parent, base) for place, base in base_of.items()}


def _files_of(module: Path, folder: Path, run_dir: str, refuse: Refusal) -> Iterator[str]:
    """The files of a module; of those below a `folder` that is in the package itself only what was imported as its."""
    if module.suffix == ".py":
        yield str(module)
        return
    loaded = _loaded(module.name) if folder.is_relative_to(module) else None
    for path in _code_below(str(module), run_dir, refuse):
        if loaded is None or not Path(path).is_relative_to(folder) or os.path.realpath(path) in loaded:
            yield path


def _loaded(package: str) -> set[str]:
    """The files that a package and its modules have been imported from."""
    own = [module for name, module in sys.modules.copy().items() if f"{name}.".startswith(f"{package}.")]
    return {os.path.realpath(file) for module in own if (file := getattr(module, "__file__", None))}


@contextmanager
def _refusals() -> Generator[Refusal]:
    """Collects what cannot be copied, and says so in one warning."""
    refused: list[str] = []
    yield lambda path, error: refused.append(f"{path}: {error.strerror or error}")
    if refused:
        logger.warning("the code snapshot lacks %d that cannot be copied, first %s", len(refused), refused[0])


def _copy_all(files: Iterable[tuple[str, Path]], owner: Path, refuse: Refusal) -> None:
    n_bytes = 0
    for n_files, (path, copy) in enumerate(files):
        n_bytes += _size(path)
        if n_files == _CODE_FILES or n_bytes > _CODE_BYTES:
            logger.warning("the code snapshot stops at %d files: %s holds too much code", n_files, owner)
            break
        _copy(path, copy, refuse)


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
