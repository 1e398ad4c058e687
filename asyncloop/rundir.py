"""The run directory: what a run leaves behind, and who may write it.

config.toml  resolved.toml  run.json  trace.json  log.txt  events.jsonl  metrics.jsonl  code/  checkpoints/  lock
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from asyncloop._version import __version__
from asyncloop.checkpoint import storage_error, write_atomically
from asyncloop.errors import ConfigError, NothingToResumeError, StorageError

__all__ = ["RunDir", "current_run", "find_run", "jsonable", "now"]

logger = logging.getLogger("asyncloop")

current_run: ContextVar[str | None] = ContextVar("current_run", default=None)
"""The id of the run whose code is executing, on whatever thread; log.txt takes only its own run's records."""

_CODE_FILES = 500
_CODE_BYTES = 10 * 2**20
_DIFF_BYTES = 2**20
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "runs", "build", "dist"}


class RunDir:
    """One run's directory. `plan` only chooses a path; `create` makes it and takes the lock. Methods block (no loop)."""

    def __init__(self, path: Path, run_id: str, name: str) -> None:
        self.path, self.id, self.name = path, run_id, name
        self._record: dict[str, Any] = {}
        self._updating = threading.Lock()
        self._lock: int | None = None
        self._log: logging.Handler | None = None

    @classmethod
    def plan(cls, root: Path, name: str, exact: Path | None = None) -> RunDir:
        """Where the run will live: `root/<name>-<stamp>-<id>`, or exactly `exact`, which must be absent or empty."""
        run_id = uuid.uuid4().hex[:8]
        if exact is not None:
            if exact.exists() and (not exact.is_dir() or any(exact.iterdir())):
                raise ConfigError(f"the output directory {exact} exists and is not empty; choose another or empty it")
            return cls(exact.absolute(), run_id, name)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        return cls((root / f"{name}-{stamp}-{run_id}").absolute(), run_id, name)

    def create(self, files: Mapping[str, str], seed: int, tags: Iterable[str]) -> None:
        """Make the directory with its first files. Raises StorageError with path, cause and remedy."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = None
                raise
            for name, text in files.items():
                (self.path / name).write_text(text)
            self._record = {
                "id": self.id,
                "name": self.name,
                "state": "starting",
                "reason": None,
                "exit_code": None,
                "epochs": 0,
                "steps": 0,
                "seed": seed,
                "tags": list(tags),
                "times": {"created": now(), "started": None, "ended": None},
                "host": {
                    "name": platform.node(),
                    "pid": os.getpid(),
                    "cpus": os.cpu_count(),
                    "system": platform.platform(),
                },
                "versions": _versions(),
                "git": None,
                "command": sys.argv,
            }
            self.update()
        except BlockingIOError:
            raise StorageError(f"another process is writing the run in {self.path}") from None
        except OSError as error:
            raise storage_error("make the run directory", self.path, error) from error

    def update(self, **changes: Any) -> None:
        """Change entries of run.json; readers see the old or the new file, never half of one."""
        with self._updating:
            times = changes.pop("times", {})
            self._record.update(changes)
            self._record["times"] |= times
            path = self.path / "run.json"
            try:
                write_atomically(path, (json.dumps(jsonable(self._record), indent=1) + "\n").encode())
            except OSError as error:
                raise storage_error("write", path, error) from error

    def remove(self) -> None:
        """Take back a directory whose run was cancelled or failed before it began; nothing of the user's was in it."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def snapshot_code(self, folders: Iterable[Path]) -> None:
        """Copy the user's .py and .toml files (bounded in number and size) and note the git revision. Never fatal."""
        try:
            for folder in dict.fromkeys(path.resolve() for path in folders):
                _copy_code(folder, self.path / "code", self.path)
            self._record["git"] = next((found for folder in folders if (found := _git(folder))), None)
            self.update()
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("the code snapshot is incomplete: %s", error)

    def open_log(self) -> None:
        """Let log.txt follow this run's records (and only this run's, also with several runs in a process)."""
        handler = _LogFile(self.path / "log.txt", delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        handler.addFilter(lambda record: current_run.get() == self.id)
        logging.getLogger().addHandler(handler)
        self._log = handler
        _log_level.take()

    def close(self) -> None:
        """Close the log and give the lock back."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
            _log_level.give_back()
            self._log = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _LogFile(logging.FileHandler):
    """log.txt; a disk that refuses is told once in words, and the run goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logger.warning("log.txt ends here: %s cannot be written: %s", self.baseFilename, sys.exc_info()[1])


class _LogLevel:
    """The level of our logger while runs keep a log.txt: INFO, and afterwards what it was before the first of them."""

    def __init__(self) -> None:
        self._users = 0
        self._before = logging.NOTSET
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = logger.level
                if not logger.isEnabledFor(logging.INFO):
                    logger.setLevel(logging.INFO)

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                logger.setLevel(self._before)


_log_level = _LogLevel()


def find_run(run: str | Path, root: Path = Path("runs")) -> Path:
    """The directory of a run given as a path, an id, a unique prefix of its id or name, or `latest`."""
    path = Path(run)
    if (path / "run.json").is_file():
        return path
    there = [entry for entry in root.glob("*") if (entry / "run.json").is_file()] if root.is_dir() else []
    if str(run) == "latest" and there:
        return max(there, key=lambda entry: json.loads((entry / "run.json").read_text())["times"]["created"])
    found = [
        entry
        for entry in there
        if entry.name.startswith(str(run)) or entry.name.rpartition("-")[2].startswith(str(run))
    ]
    if len(found) != 1:
        what = f"{len(found)} runs match" if found else "no run matches"
        names = ", ".join(sorted(entry.name for entry in found or there)) or "none"
        raise NothingToResumeError(f"{what} {str(run)!r} in {root} (runs: {names})")
    return found[0]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def jsonable(value: Any) -> Any:
    """A value that JSON can hold: arrays as lists, non-finite numbers as null, anything unknown as its text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(part) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(part) for part in cast("Iterable[Any]", value)]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)


def _versions() -> dict[str, str]:
    versions = {"asyncloop": __version__, "python": platform.python_version()}
    for package in ("anyio", "numpy", "uvloop", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _copy_code(folder: Path, target: Path, run_dir: Path) -> None:
    n_files = n_bytes = 0
    for path in _walk(folder, lambda entry: entry.resolve() != run_dir.resolve()):
        size = path.stat().st_size
        n_files, n_bytes = n_files + 1, n_bytes + size
        if n_files > _CODE_FILES or n_bytes > _CODE_BYTES:
            logger.warning("the code snapshot stops at %d files: %s holds too much code", n_files - 1, folder)
            return
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _walk(folder: Path, wanted: Callable[[Path], bool]) -> Iterable[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            hidden = entry.name.startswith(".") or entry.name in _SKIPPED or (entry / "pyvenv.cfg").exists()
            if not hidden and wanted(entry) and not (entry / "run.json").exists():
                yield from _walk(entry, wanted)
        elif entry.suffix in (".py", ".toml") and entry.is_file():
            yield entry


def _git(folder: Path) -> dict[str, str] | None:
    """The revision and the difference to it; the index is not touched."""

    def ask(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=10, check=True, text=True).stdout

    try:
        revision = ask("rev-parse", "HEAD").strip()
        return {"revision": revision, "diff": ask("diff", "HEAD")[:_DIFF_BYTES]}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
