"""The archive: what runs have left on disk, found and read. Nothing here writes. Every function blocks on the disk."""

from __future__ import annotations

import fcntl
import logging
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from asyncloop.checkpoint import Checkpoints
from asyncloop.errors import NothingToResumeError, StorageError
from asyncloop.run_json import json_object, sound_record
from asyncloop.storage import content_of, is_file, storage_error, storage_errors

__all__ = [
    "SavedCheckpoint",
    "SavedRun",
    "find_run",
    "flattened",
    "is_run",
    "read_run",
    "run_in",
    "runs_below",
    "size_of",
]

logger = logging.getLogger("asyncloop")

_UNFINISHED = ("queued", "starting", "running", "paused", "stopping")
_MUST_BE = "give an id, a unique prefix or `latest`; a run that is elsewhere is given by its path"


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint; `names` are the pointers to it, `latest` and `best` among them."""

    path: Path
    step: int
    names: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        return size_of(self.path)


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run directory as it is now. `state` is that of its run.json, or `lost` if the process that wrote it is gone.

    `record` has been looked through by `read_run`: what is in it has the type that it should have.
    """

    path: Path
    record: Mapping[str, Any]
    state: str

    @property
    def id(self) -> str:
        return self.record.get("id") or self.path.name.rpartition("-")[2]

    @property
    def name(self) -> str:
        return self.record.get("name") or self.path.name

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return self.record.get("epochs") or 0

    @property
    def steps(self) -> int:
        return self.record.get("steps") or 0

    @property
    def is_over(self) -> bool:
        """Whether no process works on it any more."""
        return self.state not in _UNFINISHED

    def table(self, name: str) -> dict[str, Any]:
        """An entry of run.json that is a table; empty if it is not there."""
        return self.record.get(name) or {}

    def time(self, which: str) -> datetime | None:
        """When the run was `created`, `started` or `ended`."""
        text = self.table("times").get(which)
        return datetime.fromisoformat(text) if text else None

    @property
    def seconds(self) -> float | None:
        """How long it has run, or None if it never started. Of a lost run: until its last sign of life."""
        started, ended = self.time("started"), self.time("ended")
        if started is None:
            return None
        if ended is None:
            ended = _changed(self.path / "run.json") if self.is_over else datetime.now(UTC)
        return None if ended is None else max((ended - started).total_seconds(), 0.0)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Stream → variable → value of the last pass of each stream."""
        return self.table("metrics") or _last_metrics(self.path / "metrics.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty for a run that was started from an Engine."""
        try:
            return tomllib.loads((self.path / "resolved.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}

    @property
    def checkpoints(self) -> list[SavedCheckpoint]:
        """Complete checkpoints, oldest first."""
        checkpoints = Checkpoints(self.path / "checkpoints")
        pointers = checkpoints.pointers()
        return [
            SavedCheckpoint(
                checkpoints.directory / name,
                int(name.removeprefix("step-")),
                tuple(pointer for pointer, target in pointers.items() if target == name),
            )
            for name in checkpoints.names()
        ]


def find_run(run: str | Path, root: Path = Path("runs")) -> Path:
    """The directory of a run given as a path, `latest`, or by its id, its directory's name or a unique prefix of one.

    An evaluation is found like that, too, if no training run is; `latest` is always one that trains. Raises
    NothingToResumeError, with what there is; StorageError if nobody may look into the path or into `root`. Of the runs
    in `root`, those that cannot be read are named in a warning: one of them may be the one that is meant.
    """
    name = str(run)
    if not name:
        raise NothingToResumeError(f"an empty name is no run's; {_MUST_BE}")
    with storage_errors("look for a run in", Path(run)):
        if is_file(Path(run) / "run.json"):
            return Path(run)
    there = [entry for entry in _entries(root, links=True) if is_run(entry, warns=True)]
    if name == "latest" and there:
        return max(there, key=lambda entry: _age(read_run(entry, warns=True)))
    found = _matching(name, there)
    if not found and name != "latest":
        found = _matching(name, _evaluations_of(there))
    if len(found) != 1:
        what = f"{len(found)} runs match" if found else "no run matches"
        listed = sorted(entry.name for entry in found or there)
        names = ", ".join(listed[-10:]) or "none"
        more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
        raise NothingToResumeError(f"{what} {name!r} in {root} (there: {names}{more}); {_MUST_BE}")
    return found[0]


def _matching(name: str, there: Sequence[Path]) -> list[Path]:
    """The runs that are called so, by their directories or else by the ids in their records."""
    found = _named(name, {entry: _own_names(entry) for entry in there})
    own = [entry for entry in there if not found and not entry.is_symlink()]
    return found or _named(name, {entry: [read_run(entry, warns=True).id] for entry in own})


def _evaluations_of(runs: Iterable[Path]) -> list[Path]:
    """The evaluations of these runs, once each. Those that nobody may look at are named in a warning."""
    found: list[Path] = []
    links_first = sorted(runs, key=Path.is_symlink, reverse=True)
    for run in {entry.resolve(): entry for entry in links_first}.values():
        try:
            found += [entry for entry in _entries(run / "eval") if is_run(entry, warns=True)]
        except StorageError as error:
            logger.warning("%s", error)
    return found


def _own_names(path: Path) -> list[str]:
    return [path.name, path.name.rpartition("-")[2]]


def _named(name: str, names: Mapping[Path, Iterable[str]]) -> list[Path]:
    """Those with exactly this name, or else those with a name that begins like it."""
    exact = [path for path, own in names.items() if name in own]
    return exact or [path for path, own in names.items() if any(each.startswith(name) for each in own)]


def is_run(path: Path, *, warns: bool = False) -> bool:
    """Whether there is a run.json, as far as one may look; `warns`: names where one may not."""
    try:
        return is_file(path / "run.json")
    except OSError as error:
        if warns:
            logger.warning("%s", storage_error("look for a run in", path, error))
        return False


def read_run(path: Path, *, warns: bool = False) -> SavedRun:
    """The run in a directory. One whose run.json cannot be read has the state `unreadable` and an empty record.

    `warns`: says so if the disk refuses it.
    """
    try:
        return run_in(path)
    except StorageError as error:
        if warns:
            logger.warning("%s", error)
        return SavedRun(path, {}, "unreadable")


def run_in(path: Path) -> SavedRun:
    """The run in a directory, as `read_run` gives it, but StorageError if the disk refuses its run.json."""
    with storage_errors("read", path / "run.json"):
        record = sound_record(content_of(path / "run.json") or b"")
    state = record.get("state") or "unreadable"
    return SavedRun(path, record, "lost" if state in _UNFINISHED and not _is_held(path / "lock") else state)


def runs_below(root: Path, *, recursive: bool = False) -> list[SavedRun]:
    """The runs in a directory, oldest first; `recursive`: also those deeper down, evaluations of other runs included.

    No directory, no runs. Raises StorageError if it cannot be read; deeper ones that cannot are warned about.
    """
    found = [read_run(path) for path in _directories(root, recursive)]
    return sorted(found, key=_age)


def _age(run: SavedRun) -> tuple[datetime, str]:
    """To sort by, the oldest first."""
    return run.time("created") or datetime.min.replace(tzinfo=UTC), run.path.name


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what vanishes meanwhile counts nothing."""
    total = 0
    for entry in path.rglob("*") if path.is_dir() else [path]:
        try:
            total += 0 if entry.is_dir() else entry.lstat().st_size
        except OSError:
            continue
    return total


def flattened(value: Any, above: str = "") -> dict[str, Any]:
    """A config's values by dotted key; a list without tables is one value."""
    if isinstance(value, Mapping):
        parts = list(cast("Mapping[str, Any]", value).items())
    elif isinstance(value, list) and any(isinstance(each, dict) for each in cast("list[Any]", value)):
        parts = [(str(index), each) for index, each in enumerate(cast("list[Any]", value))]
    else:
        return {above: value}
    found: dict[str, Any] = {}
    for key, part in parts:
        found |= flattened(part, f"{above}.{key}" if above else str(key))
    return found


def _directories(root: Path, recursive: bool) -> Iterator[Path]:
    for entry in _entries(root):
        if is_run(entry):
            yield entry
        if recursive:
            try:
                yield from _directories(entry, True)
            except StorageError as error:
                logger.warning("%s", error)


def _entries(root: Path, *, links: bool = False) -> list[Path]:
    """The directories in a directory, by name; `links`: also what may be the name of one elsewhere."""
    try:
        with os.scandir(root) as entries:
            found = [each for each in entries if each.is_dir(follow_symlinks=False) or (links and each.is_symlink())]
            return sorted(root / each.name for each in found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error("look for runs in", root, error) from error


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock; it goes with the process, however that ends. Held, if nobody may look."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _changed(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:  # removed meanwhile
        return None


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    metrics: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        entry = json_object(line)  # the last line of a killed run may be half of one
        stream = entry.pop("stream", None)
        if isinstance(stream, str):
            metrics[stream] = {name: value for name, value in entry.items() if name not in ("step", "epoch", "time")}
    return metrics
