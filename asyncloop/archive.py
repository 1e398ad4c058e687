"""The archive: what runs have left on disk, found and read. Nothing here writes. Every function blocks on the disk."""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from asyncloop.checkpoint import Checkpoints
from asyncloop.errors import NothingToResumeError

__all__ = ["SavedCheckpoint", "SavedRun", "find_run", "flattened", "is_run", "read_run", "runs_below", "size_of"]

_UNFINISHED = ("queued", "starting", "running", "paused", "stopping")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint; `names` are the pointers to it, `latest` and `best` among them."""

    path: Path
    step: int
    names: tuple[str, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run directory as it is now. `state` is that of its run.json, or `lost` if the process that wrote it is gone."""

    path: Path
    record: Mapping[str, Any]
    state: str

    @property
    def id(self) -> str:
        return str(self.record.get("id", self.path.name.rpartition("-")[2]))

    @property
    def name(self) -> str:
        return str(self.record.get("name", self.path.name))

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return int(self.record.get("epochs") or 0)

    @property
    def steps(self) -> int:
        return int(self.record.get("steps") or 0)

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
            alive = (self.path / "run.json").stat().st_mtime
            ended = datetime.fromtimestamp(alive, UTC) if self.is_over else datetime.now(UTC)
        return max((ended - started).total_seconds(), 0.0)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Stream → variable → value of the last pass of each stream."""
        return self.table("metrics") or _last_metrics(self.path / "metrics.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty for a run that was started from an Engine."""
        try:
            return tomllib.loads((self.path / "resolved.toml").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def checkpoints(self) -> list[SavedCheckpoint]:
        """Complete checkpoints, oldest first."""
        folder = self.path / "checkpoints"
        pointers = _pointers(folder)
        return [
            SavedCheckpoint(
                folder / name, int(name.removeprefix("step-")), pointers.get(name, ()), size_of(folder / name)
            )
            for name in Checkpoints(folder).names()
        ]


def find_run(run: str | Path, root: Path = Path("runs")) -> Path:
    """The directory of a run given as a path, an id, a unique prefix of its id or name, or `latest`."""
    path = Path(run)
    if is_run(path):
        return path
    there = [entry for entry in root.glob("*") if is_run(entry)] if root.is_dir() else []
    if str(run) == "latest" and there:
        return max(there, key=lambda entry: str(_record(entry).get("times", {}).get("created", "")))
    found = [
        entry
        for entry in there
        if entry.name.startswith(str(run)) or entry.name.rpartition("-")[2].startswith(str(run))
    ]
    if len(found) != 1:
        what = f"{len(found)} runs match" if found else "no run matches"
        listed = sorted(entry.name for entry in found or there)
        names = ", ".join(listed[-10:]) or "none"
        more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
        raise NothingToResumeError(
            f"{what} {str(run)!r} in {root} (there: {names}{more}); give an id, a unique prefix, a path or `latest`"
        )
    return found[0]


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def read_run(path: Path) -> SavedRun:
    """The run in a directory. One whose run.json cannot be read has the state `unreadable` and an empty record."""
    record = _record(path)
    state = str(record.get("state", "unreadable"))
    return SavedRun(path, record, "lost" if state in _UNFINISHED and not _is_held(path / "lock") else state)


def runs_below(root: Path, *, recursive: bool = False) -> list[SavedRun]:
    """The runs in a directory, oldest first; `recursive`: also those deeper down, evaluations of other runs included."""
    found = [read_run(path) for path in _directories(root, recursive)]
    return sorted(found, key=lambda run: (run.time("created") or datetime.min.replace(tzinfo=UTC), run.path.name))


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
    try:
        entries = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:
        return
    for entry in entries:
        if is_run(entry):
            yield entry
        if recursive:
            yield from _directories(entry, True)


def _record(path: Path) -> dict[str, Any]:
    try:
        record: object = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", record) if isinstance(record, dict) else {}


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock; it goes with the process, however that ends."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    metrics: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a killed run may be half of one
            continue
        values = {name: value for name, value in entry.items() if name not in ("step", "epoch", "stream", "time")}
        metrics[entry["stream"]] = values
    return metrics


def _pointers(folder: Path) -> dict[str, tuple[str, ...]]:
    """Checkpoint directory → the small text files that name it."""
    names: dict[str, tuple[str, ...]] = {}
    for entry in sorted(folder.glob("*")) if folder.is_dir() else []:
        if entry.is_file() and entry.suffix == "" and not entry.name.startswith("."):
            target = entry.read_text().strip()
            names[target] = (*names.get(target, ()), entry.name)
    return names
