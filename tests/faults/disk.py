"""A disk that fails: the n-th call to the file system below a run's directory says no, n = 1, 2, 3, … until none does.

`python tests/faults/disk.py --all` fails every call with every error, for a moment and for good, in a run that begins and
in one that goes on; the suite runs a share of it.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import faulthandler
import io
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "resume"))
from stopping_project import digest, make_project, outcome

import asyncloop
from asyncloop import blame
from asyncloop.blame import code_of, is_others
from asyncloop.checkpoint import Checkpoints, remedy_for
from asyncloop.cli import trouble
from asyncloop.cli.trouble import tell
from asyncloop.errors import alone

CHANGES = frozenset(
    ["create", "write", "close", "fsync", "mkdir", "unlink", "rmdir", "rename", "replace", "truncate", "sendfile"]
)
LOOKS = frozenset(["open", "read", "stat", "scandir", "listdir"])
BY_NAME = frozenset(["create", "open", "mkdir", "unlink", "rmdir", "rename", "replace", "truncate", "stat", "scandir"])

ERRORS = {
    "ENOSPC": CHANGES,
    "EIO": CHANGES | LOOKS,
    "EDQUOT": CHANGES,
    "EACCES": BY_NAME | {"listdir"},
    "EROFS": BY_NAME - {"open", "stat", "scandir"},
    "EMFILE": frozenset(["create", "open", "scandir", "listdir"]),
    "half": frozenset(["write", "sendfile"]),
}
"""Error → the calls it can strike. `half`: half of the data is written, then the disk is full."""


class Disk:
    """A context manager: below `root`, the `n`-th call that the error can strike fails; `for_good` all after it too.

    `os`, `open` and `io.open` are replaced in this process. Files are opened by a subclass of `io.FileIO`, so that what
    fails is what the kernel would be asked, behind all buffers.
    """

    def __init__(self, root: Path, error: str = "EIO", n: int = 0, *, for_good: bool = False) -> None:
        self.root = os.path.abspath(root)
        self.error, self.n, self.for_good = error, n, for_good
        self.errno = errno.ENOSPC if error == "half" else getattr(errno, error)
        self.calls: Counter[str] = Counter()
        self.failed_at = ""
        """The first call that failed."""
        self.complete: set[str] = set()
        """The checkpoints that were complete then."""
        self.before_write: Callable[[str], None] = lambda path: None
        self._strikes = ERRORS[error]
        self._n_seen = 0
        self._handles: dict[int, str] = {}
        self._lock = threading.RLock()
        self._own = threading.local()
        self._patches: list[Any] = []

    # --- the calls ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Disk:
        replaced: list[tuple[Any, str, Any]] = [
            (builtins, "open", self._open(open)),
            (io, "open", self._open(io.open)),
            (os, "open", self._os_open(os.open)),
            (os, "close", self._os_close(os.close)),
            (os, "sendfile", self._sendfile(os.sendfile)),
        ]
        names = [
            "stat",
            "lstat",
            "mkdir",
            "unlink",
            "remove",
            "rmdir",
            "rename",
            "replace",
            "truncate",
            "ftruncate",
            "scandir",
            "listdir",
            "fsync",
        ]
        kinds = {"lstat": "stat", "remove": "unlink", "ftruncate": "truncate"}
        replaced += [(os, name, self._checked(getattr(os, name), kinds.get(name, name))) for name in names]
        self._patches = [mock.patch.object(*each) for each in replaced]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()

    def _checked(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.check(kind, args[0] if args else ".", kwargs.get("dir_fd", kwargs.get("src_dir_fd")))
            return real(*args, **kwargs)

        return call

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            where = self.check("create" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "open", path, dir_fd)
            handle = real(path, flags, mode, dir_fd=dir_fd)
            if where is not None:
                self._handles[handle] = where
            return handle

        return call

    def _os_close(self, real: Callable[[int], None]) -> Callable[[int], None]:
        """Never fails: nothing is written by handles, only directories are synced and a lock is held."""

        def call(handle: int) -> None:
            self._handles.pop(handle, None)
            real(handle)

        return call

    def _sendfile(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(out: int, *args: Any) -> int:
            self.check("sendfile", out)
            return real(out, *args)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or self._below(file, None) is None:
                return real(file, mode, buffering, *args, **kwargs)
            raw = _File(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
            if "+" in mode:
                buffered: Any = io.BufferedRandom(raw)
            else:
                buffered = io.BufferedReader(raw) if raw.readable() else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

        return call

    # --- the fault ----------------------------------------------------------------------------------------------

    def check(
        self, kind: str, path: Any, dir_fd: int | None = None, half: Callable[[], Any] | None = None
    ) -> str | None:
        """Count a call; raise if it is the one. The path if it is below the root."""
        where = self._below(path, dir_fd)
        if where is None or getattr(self._own, "looking", False):
            return where
        with self._lock:
            self.calls[kind] += 1
            if kind not in self._strikes:
                return where
            self._n_seen += 1
            if self.n == 0 or self._n_seen < self.n or (self._n_seen > self.n and not self.for_good):
                return where
            if not self.failed_at:
                self.failed_at = f"{kind} {where}"
                self.complete = self._look()
        if self.error == "half" and half is not None:
            half()
        raise OSError(self.errno, os.strerror(self.errno), where)

    def _below(self, path: Any, dir_fd: int | None) -> str | None:
        if isinstance(path, int):
            return self._handles.get(path)
        where = os.fsdecode(path)
        if dir_fd is not None:
            where = os.path.join(self._handles.get(dir_fd, "/"), where)
        where = os.path.abspath(where)
        return where if where == self.root or where.startswith(self.root + os.sep) else None

    def _look(self) -> set[str]:
        self._own.looking = True
        try:
            found = [path.parent.name for path in Path(self.root).glob("**/*step-*/manifest.json")]
            return {name.removeprefix(".tmp-before-") for name in found if name.startswith(("step-", ".tmp-before-"))}
        finally:
            self._own.looking = False

    def opened(self, handle: int, path: str) -> None:
        self._handles[handle] = os.path.abspath(path)

    def closed(self, handle: int) -> None:
        self._handles.pop(handle, None)


class _File(io.FileIO):
    """A file whose calls may fail."""

    def __init__(self, disk: Disk, path: str, mode: str) -> None:
        self._disk, self._path = disk, path
        disk.check("open" if mode == "r" else "create", path)
        super().__init__(path, mode)
        disk.opened(self.fileno(), path)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._disk.before_write(self._path)
        self._disk.check("write", self._path, half=lambda: super(_File, self).write(view[: len(view) // 2]))
        return super().write(data) or 0

    def readinto(self, buffer: Any, /) -> int:
        self._disk.check("read", self._path)
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self._disk.check("read", self._path)
        return super().readall() or b""

    def close(self) -> None:
        if not hasattr(self, "_disk") or self.closed:
            return
        try:
            self._disk.closed(self.fileno())
        finally:
            super().close()
        if self.writable_once:
            self._disk.check("close", self._path)

    @property
    def writable_once(self) -> bool:
        return self.mode != "rb"


# --- one run on such a disk ---------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the runs. `broken` says how a promise was broken."""

    outcomes: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    """By kind of call."""
    broken: list[str] = field(default_factory=list)
    raw: Counter[str] = field(default_factory=Counter)
    """Calls whose OSError came out as it was; the command line tells such ones in words."""

    def __str__(self) -> str:
        struck = ", ".join(f"{kind} {n}" for kind, n in self.struck.most_common())
        return (
            f"{sum(self.outcomes.values())} faults {dict(self.outcomes)}, {len(self.broken)} broken; struck: {struck}"
        )

    def __iadd__(self, other: Tally) -> Tally:
        self.outcomes += other.outcomes
        self.struck += other.struck
        self.broken += other.broken
        self.raw += other.raw
        return self


class Sweep:
    """A project in a folder, a whole run of it, and runs of it on disks that fail."""

    def __init__(self, folder: Path, stop_at: int = 5, **setting: Any) -> None:
        self.folder, self.setting = folder, {"engine.epochs": 1, **setting}
        make_project(folder)
        self.whole = outcome(self.train(source=self.config, set=self.setting, output_dir=folder / "whole"))
        os.environ["STOP_AT"] = str(stop_at)
        self.stopped = self.train(source=self.config, set=self.setting, output_dir=folder / "stopped")
        del os.environ["STOP_AT"]
        self.root = folder / "out"
        self.run = self.root / "runs" / "run"

    @property
    def config(self) -> Path:
        return self.folder / "cfg.toml"

    def train(self, **options: Any) -> Path:
        async def main() -> Path:
            async with asyncloop.open_run(**options) as live:
                await live
            assert live.dir is not None
            return live.dir

        return anyio.run(main)

    def sweep(self, error: str, *, for_good: bool, resumes: bool, every: int = 1, first: int = 1) -> Tally:
        """Fail the first call, then each `every`-th, until a run gets through untouched."""
        tally = Tally()
        n = first
        while self.one(tally, Disk(self.root, error, n, for_good=for_good), resumes):
            n += every
        return tally

    def one(self, tally: Tally, disk: Disk, resumes: bool) -> bool:
        """One run on a failing disk, and on a whole one afterwards; False if nothing failed."""
        shutil.rmtree(self.root, ignore_errors=True)
        options: dict[str, Any] = {"source": self.config, "set": self.setting, "output_dir": self.run}
        if resumes:
            shutil.copytree(self.stopped, self.run)
            options = {"resume": self.run}
        error: Exception | None = None
        with _noticed() as (problems, _):
            with disk:
                try:
                    self.train(**options)
                except Exception as caught:
                    error = caught
            if not disk.failed_at:
                return False
            wrong = [*problems, *self._wrong_with(error, disk)]
        kind = disk.failed_at.partition(" ")[0]
        tally.struck[kind] += 1
        if error is not None and not isinstance(alone(error), asyncloop.StorageError):
            tally.raw[disk.failed_at.replace(str(self.run), "")] += 1
        try:
            ending = "went on" if error is None else "resumed exactly"
            if error is not None and not (self.run / "run.json").exists():
                ending = "began anew"
                shutil.rmtree(self.root, ignore_errors=True)
                self.train(source=self.config, set=self.setting, output_dir=self.run)
            elif error is not None:
                with _noticed() as (_, said):
                    self.train(resume=self.run)
                if not resumes and any("what it lacks stays lost" in line for line in said):
                    ending = "resumed with a gap, told"
            if ending != "resumed with a gap, told":
                found = outcome(self.run)
                wrong += [
                    _difference(part, found[part], self.whole[part])
                    for part in self.whole
                    if found[part] != self.whole[part]
                ]
            else:
                saved = Checkpoints(self.run / "checkpoints").read()
                wrong += [] if digest(saved.model) == self.whole["model"] else ["the weights differ"]
            wrong += _unreadable(self.run)
        except Exception as failure:
            ending = "not repaired"
            wrong.append("after the repair: " + "".join(traceback.format_exception_only(failure)).strip())
        tally.outcomes["broken" if wrong else ending] += 1
        if wrong:
            which = f"{disk.error} {'for good' if disk.for_good else 'once'} at {disk.n}: {disk.failed_at}"
            what = "" if error is None else f"\n   {type(error).__name__}: {str(error)[:300]}"
            tally.broken.append(f"{'resume' if resumes else 'run'}, {which}\n   {'; '.join(wrong)}{what}")
        return True

    def _wrong_with(self, error: Exception | None, disk: Disk) -> Iterator[str]:
        if error is not None:
            told = io.StringIO()
            with redirect_stderr(told):
                tell(error)
            error_said = told.getvalue()
            config = any(name in disk.failed_at for name in ("/resolved.toml", "/config.toml"))
            if code_of(error) != 4 and not (code_of(error) == 2 and config):  # a config that cannot be read
                yield f"exit code {code_of(error)}: {''.join(traceback.format_exception(error))[-1500:]}"
            lacks = [each for each in (str(self.root), os.strerror(disk.errno)) if each not in error_said]
            if remedy_for(OSError(disk.errno, "")) not in error_said and code_of(error) == 4:
                lacks.append("a remedy")
            if lacks:
                yield f"the message lacks {', '.join(lacks)}"
            if "Traceback" in told.getvalue() or "bug of" in told.getvalue():
                yield f"a traceback: {told.getvalue()[-1500:]}"
        yield from _unreadable(self.run)
        if disk.complete:
            newest = max(disk.complete)
            checkpoints = Checkpoints(self.run / "checkpoints")
            there = [*checkpoints.names(), *(path.name[12:] for path in checkpoints.directory.glob(".tmp-before-*"))]
            if not there or max(there) < newest:
                yield f"{newest} was complete and is gone (there: {there})"


def _difference(part: str, found: Any, whole: Any) -> str:
    if isinstance(found, list | set):
        more, less = ([each for each in one if each not in other] for one, other in ((found, whole), (whole, found)))
        return f"{part}: too much {more}, missing {less}"
    return f"{part} differs"


def _unreadable(run: Path) -> Iterator[str]:
    checkpoints = Checkpoints(run / "checkpoints")
    pointers = [name for name in ("latest", "best") if (checkpoints.directory / name).exists()]
    for name in [*checkpoints.names(), *pointers]:
        try:
            checkpoints.read(name)
        except Exception as error:
            yield f"{name} cannot be read: {error}"


@contextmanager
def _noticed() -> Iterator[tuple[list[str], list[str]]]:
    """Tracebacks of ours on their way to the log, to a thread's end or nowhere; and all that is logged."""
    found, said = list[str](), list[str]()
    here = os.path.realpath(__file__)

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if record.exc_info and record.exc_info[0] is not None:
                found.append(f"a traceback in the log: {record.getMessage()}")

    handler, logger = Seen(), logging.getLogger()
    logger.addHandler(handler)
    patches = [
        mock.patch.object(blame, "is_others", lambda file: os.path.realpath(file) != here and is_others(file)),
        mock.patch.object(trouble, "is_others", lambda file: os.path.realpath(file) != here and is_others(file)),
        mock.patch.object(sys, "unraisablehook", lambda each: found.append(f"unraisable: {each.exc_value!r}")),
        mock.patch.object(threading, "excepthook", lambda each: found.append(f"in a thread: {each.exc_value!r}")),
    ]
    for patch in patches:
        patch.start()
    faulthandler.dump_traceback_later(60)
    try:
        yield found, said
    finally:
        faulthandler.cancel_dump_traceback_later()
        for patch in patches:
            patch.stop()
        logger.removeHandler(handler)


@contextmanager
def sweeping(folder: Path, **setting: Any) -> Iterator[Sweep]:
    """A sweep in a folder, which is where the project's module comes from."""
    before, module = os.getcwd(), sys.modules.pop("exact_parts", None)
    level, logger = logging.root.level, logging.getLogger("asyncloop")
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    disabled, logger.propagate = logger.propagate, True
    try:
        yield Sweep(folder, **setting)
    finally:
        logger.propagate = disabled
        logging.root.setLevel(level)
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop("exact_parts", None)
        if module is not None:
            sys.modules["exact_parts"] = module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every call, not only every --every-th")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--errors", nargs="*", default=list(ERRORS))
    parser.add_argument("--show", type=int, default=10, help="broken promises to print of each sweep")
    asked = parser.parse_args()
    logging.lastResort = None
    total = Tally()
    place = Path(tempfile.mkdtemp(prefix="asyncloop-disk-"))
    with sweeping(place) as sweep:
        for name in asked.errors:
            for resumes in (False, True):
                for for_good in (False, True):
                    began = time.monotonic()
                    found = sweep.sweep(name, for_good=for_good, resumes=resumes, every=1 if asked.all else asked.every)
                    total += found
                    which = f"{name} {'for good' if for_good else 'once'} in a {'resume' if resumes else 'run'}"
                    print(f"{which}, {time.monotonic() - began:.0f} s: {found}", flush=True)
                    print(*found.broken[: asked.show], sep="\n", flush=True)
                    print(*(f"   raw: {call} ({n})" for call, n in found.raw.items()), sep="\n", flush=True)
    print(total)
    if not total.broken:
        shutil.rmtree(place)
    sys.exit(1 if total.broken else 0)
