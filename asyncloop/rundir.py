"""The run directory: what a run leaves behind, and who may write it.

config.toml  resolved.toml  run.json  trace.json  log.txt  events.jsonl  metrics.jsonl  code/  checkpoints/  lock
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from asyncloop._version import __version__
from asyncloop.errors import ConfigError, StorageError
from asyncloop.redact import RedactingFormatter, redacted
from asyncloop.run_json import sound_record
from asyncloop.snapshot import copy_code, git_state
from asyncloop.storage import (
    content_of,
    entries_of,
    is_dir,
    is_there,
    storage_errors,
    sync_directory,
    write_atomically,
    write_synced,
)

__all__ = ["LINE_FILES", "LOG_MARK", "RunDir", "current_run", "jsonable", "launch_id", "now"]

logger = logging.getLogger("asyncloop")

current_run: ContextVar[str | None] = ContextVar("current_run", default=None)
"""The id of the run whose code is executing, on whatever thread; log.txt takes only its own run's records."""


LINE_FILES: tuple[str, ...] = ("events.jsonl", "metrics.jsonl")
"""What the Recorder writes line by line."""

LOG_MARK = "checkpoint of step %d"
"""A line of log.txt, by which a resume finds how much of it belongs to a checkpoint."""

_NEVER_CUT = {"config.toml", "resolved.toml", "run.json", "lock", "code", "log.txt", "log.discarded.txt", "eval"}


class RunDir:
    """One run's directory. `plan` only chooses a path; `create` makes it and takes the lock. Methods block (no loop)."""

    def __init__(self, path: Path, run_id: str, name: str) -> None:
        self.path, self.id, self.name = path, run_id, name
        self._record: dict[str, Any] = {}
        self._updating = threading.Lock()
        self._lock: int | None = None
        self._log: logging.Handler | None = None
        self._made: list[Path] = []
        """Directories that were not there before, the outermost first; with what is in them they are the run's own."""
        self._owned = False
        self.is_anothers = False
        """Whether another process of the same run writes it; this one then only knows where it is."""

    @classmethod
    def of_another(cls, path: Path, run_id: str, name: str) -> RunDir:
        """A directory that another process of the same run writes. Whatever this one would write is left out."""
        rundir = cls(path, run_id, name)
        rundir.is_anothers = True
        return rundir

    def inside(self, name: str) -> RunDir:
        """A directory in this one, for a part of the same run; it has no lock and no run.json of its own."""
        part = RunDir(self.path / name, self.id, self.name)
        part.is_anothers = self.is_anothers
        return part

    @classmethod
    def plan(cls, root: Path, name: str, exact: Path | None = None) -> RunDir:
        """Where the run will live: `root/<name>-<stamp>-<id>`, or exactly `exact`, which must be absent or empty."""
        run_id = uuid.uuid4().hex[:8]
        if exact is not None:
            with storage_errors("look into", exact):
                taken = is_there(exact) and (not is_dir(exact) or any(exact.iterdir()))
            if taken:
                raise ConfigError(f"the output directory {exact} exists and is not empty; choose another or empty it")
            return cls(exact.absolute(), run_id, name)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        return cls((root / f"{name}-{stamp}-{run_id}").absolute(), run_id, name)

    def create(self, files: Mapping[str, str], entries: Mapping[str, Any]) -> None:
        """Make the directory with its first files; `entries` join run.json. StorageError with path, cause and remedy."""
        if self.is_anothers:
            return
        with storage_errors("make the run directory", self.path):
            self._made = [each for each in (*reversed(self.path.parents), self.path) if not is_there(each)]
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if any(entry.name != "lock" for entry in self.path.iterdir()):  # somebody was faster
                raise ConfigError(f"the output directory {self.path} is not empty any more; choose another")
            self._owned = True
            for name, text in files.items():
                (self.path / name).parent.mkdir(exist_ok=True)
                write_synced(self.path / name, text.encode())
            self._record = {
                "id": self.id,
                "name": self.name,
                "state": "starting",
                "reason": None,
                "exit_code": None,
                "epochs": 0,
                "steps": 0,
                "times": {"created": now(), "started": None, "ended": None},
                **_process(),
                "git": None,
                **entries,
            }
            self.update()
            for made in self._made:
                if os.access(made.parent, os.R_OK):  # one may be allowed to make something in it and yet not to open it
                    sync_directory(made.parent)

    def _take_lock(self) -> None:
        """A lock that goes with the process, however it ends. Those who only look hold it for an instant."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for pause_s in (0.01, 0.05, 0.2, None):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if pause_s is None:
                    _close(handle)
                    raise StorageError(
                        f"another process is writing the run in {self.path}; one run, one writer"
                    ) from None
                time.sleep(pause_s)
            else:
                self._lock = handle
                _locks.add(handle)
                return

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """The directory of a run that is to go on; takes its lock. Raises StorageError if a process still writes it."""
        rundir = cls(path.absolute(), "", "")
        try:
            with storage_errors("open the run directory", path):
                rundir._take_lock()
                record = rundir._record = sound_record((path / "run.json").read_bytes())
            if not all(record.get(name) for name in ("id", "name", "times")):
                raise StorageError(
                    f"{path / 'run.json'} is damaged: it is not what a run writes; restore it from a copy"
                )
            rundir.id, rundir.name = record["id"], record["name"]
        except BaseException:
            rundir.close()
            raise
        return rundir

    def entry(self, name: str) -> Any:
        """What run.json says; None if it does not."""
        return self._record.get(name)

    def reopened(self) -> None:
        """Note that the run has not ended any more."""
        self.update(state="starting", reason=None, exit_code=None, times={"ended": None})

    def take_over(self, step: int, lines: Mapping[str, int] | None, files: Mapping[str, str], **entries: Any) -> None:
        """Bring a reopened directory back to a checkpoint: its files to the `lines` of then, None for an empty run.

        A file whose lines of then are not known keeps what it has, but for half a line at its end.

        `files` are written anew; `entries` join the record of this resume in run.json. Raises StorageError.
        """
        if self.is_anothers:
            return
        with storage_errors("bring back to a checkpoint", self.path):
            for leftover in entries_of(self.path, ".tmp-"):
                leftover.unlink(missing_ok=True)
            if lines is None:
                self._empty()
            else:
                for name in LINE_FILES:
                    self._cut(name, lines.get(name), step)
                self._cut_log(LOG_MARK % step)
            for name, text in files.items():
                write_atomically(self.path / name, text.encode())
        resumes = [*self._record.get("resumes", []), {"time": now(), "step": step, **_process(), **entries}]
        self.update(resumes=resumes)

    def _empty(self) -> None:
        """Nothing was saved, so the run begins again: whatever the lost attempt has written goes."""
        for entry in entries_of(self.path):
            if entry.name == "log.txt":
                self._cut_log(None)
            elif entry.name not in _NEVER_CUT:
                shutil.rmtree(entry) if is_dir(entry) else entry.unlink()

    def _cut(self, name: str, n_lines: int | None, step: int) -> None:
        """Forget what a file holds behind its first `n_lines` lines, but for events of the checkpoint itself.

        None: behind all its whole lines.
        """
        path = self.path / name
        there = (content_of(path) or b"").splitlines(keepends=True)
        if n_lines is None:
            n_lines = sum(line.endswith(b"\n") for line in there)
        if len(there) < n_lines:
            logger.warning("%s has %d lines and had %d at the checkpoint", path, len(there), n_lines)
        elif there[n_lines:]:
            write_atomically(path, b"".join([*there[:n_lines], *_of_checkpoint(there[n_lines:], step)]))

    def _cut_log(self, mark: str | None) -> None:
        """Put aside what the log holds behind the last line with the mark: it tells what failed. None: all of it."""
        path = self.path / "log.txt"
        lines = (content_of(path) or b"").decode(errors="replace").splitlines(keepends=True)
        marked = (n for n in range(len(lines), 0, -1) if mark is not None and lines[n - 1].rstrip().endswith(mark))
        keep = 0 if mark is None else next(marked, len(lines))
        if lines[keep:]:
            with open(self.path / "log.discarded.txt", "a", encoding="utf-8") as discarded:
                discarded.write("".join(lines[keep:]))
            write_atomically(path, "".join(lines[:keep]).encode())

    def update(self, **changes: Any) -> None:
        """Change entries of run.json; readers see the old or the new file, never half of one."""
        if self.is_anothers:
            return
        with self._updating:
            times = changes.pop("times", {})
            self._record.update(changes)
            self._record["times"] |= times
            path = self.path / "run.json"
            with storage_errors("write", path):
                write_atomically(path, (json.dumps(jsonable(self._record), indent=1) + "\n").encode())

    def remove(self) -> None:
        """Take back what was made, directories above included if nobody else has used them. Says what has to stay."""
        if not self._owned:
            return
        try:
            (self.path / "run.json").unlink(missing_ok=True)  # first: what has to stay must not pass for a run
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            for directory in reversed(self._made):
                directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                logger.warning("%s cannot be removed whole: %s", self.path, error)

    def snapshot_code(self, folders: Sequence[Path]) -> None:
        """Copy the user's .py and .toml files and note the git revision. What it cannot read is warned about."""
        if self.is_anothers:
            return
        for folder in folders:
            copy_code(folder, self.path / "code", self.path)
        self.update(git=git_state(folders))

    def open_log(self) -> None:
        """Let log.txt follow this run's records (and only this run's, also with several runs in a process)."""
        if self.is_anothers:
            return
        handler = _LogFile(self.path / "log.txt", delay=True, encoding="utf-8")
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
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
            handle, self._lock = self._lock, None
            if handle in _locks:  # else this is a forked child, which has let go of it
                _locks.remove(handle)
                _close(handle)


class _LogFile(logging.FileHandler):
    """log.txt; a disk that refuses is told once in words, and the run goes on without it."""

    _has_ended = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError as error:  # it is opened with the first record
            self._end(error)

    def handleError(self, record: logging.LogRecord) -> None:
        self._end(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # some network disks refuse only now what they have taken before
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        logging.getLogger().removeHandler(self)
        if not self._has_ended:
            self._has_ended = True
            logger.warning("log.txt ends here: %s cannot be written: %s", self.baseFilename, error)


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


_locks: set[int] = set()
"""The locks that this process holds. A forked child has them, too, and would hold them on when this process is killed."""


def _let_go() -> None:
    for handle in _locks:
        _close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


def _close(handle: int) -> None:
    """The lock goes even where closing is said to have failed, and nothing was written that could be lost."""
    with suppress(OSError):
        os.close(handle)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def jsonable(value: Any) -> Any:
    """A value that JSON can hold: arrays as lists, non-finite numbers as null, others as text; no secrets."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(part) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(part) for part in cast("Iterable[Any]", value)]
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return redacted(str(value))


def _of_checkpoint(lines: Iterable[bytes], step: int) -> Iterator[bytes]:
    """Events that were written behind a checkpoint's mark and are not repeated: that it, or one before it, was saved."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # half a line
            continue
        if event.get("event") == "checkpoint_saved" and event["step"] <= step:
            yield line


def _process() -> dict[str, Any]:
    host = {"name": platform.node(), "pid": os.getpid(), "cpus": os.cpu_count(), "system": platform.platform()}
    launch = launch_id()
    return {"host": host, "versions": _versions(), "command": sys.argv, **({"launch": launch} if launch else {})}


def launch_id() -> str | None:
    """What tells a launch by torchrun from any other, and is the same when it starts its processes again."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if launch is None else f"{launch}@{platform.node()}:{os.getppid()}"


def _versions() -> dict[str, str]:
    versions = {"asyncloop": __version__, "python": platform.python_version()}
    for package in ("anyio", "numpy", "uvloop", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
