"""Disk: a disk that fails. The n-th call to the file system below a directory says no, and if it likes all that come after."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["CHANGES", "ERRORS", "Disk"]

CHANGES = frozenset(
    ["create", "write", "close", "fsync", "mkdir", "unlink", "rmdir", "rename", "replace", "truncate", "sendfile"]
)
LOOKS = frozenset(["open", "read", "stat", "lstat", "statvfs", "scandir", "listdir", "mkdir again"])
"""`mkdir again` is that of a directory which is there: the kernel says so before it says that the disk is full."""

BY_NAME = (CHANGES | LOOKS) - {"write", "close", "fsync", "sendfile", "read"}

ERRORS = {
    "ENOSPC": CHANGES,
    "EIO": CHANGES | LOOKS,
    "EDQUOT": CHANGES,
    "EACCES": BY_NAME,
    "EROFS": BY_NAME - LOOKS,
    "EMFILE": frozenset(["create", "open", "scandir", "listdir"]),
    "half": frozenset(["write", "sendfile"]),
}
"""Error → the calls it can strike. `half`: half of the data is written, then the disk is full."""


class Disk:
    """A context manager: below `root`, the `n`-th call that the error can strike fails; `for_good` all after it too.

    `only`: a pattern of the calls that are struck, "kind path".

    `os`, `open` and `io.open` are replaced in this process. Files are opened by a subclass of `io.FileIO`, so that what
    fails is what the kernel would be asked, behind all buffers.
    """

    def __init__(self, root: Path, error: str = "EIO", n: int = 0, *, for_good: bool = False, only: str = ".*") -> None:
        self.root = os.path.abspath(root)
        self.only = re.compile(only)
        self.error, self.n, self.for_good = error, n, for_good
        self.errno = errno.ENOSPC if error == "half" else getattr(errno, error)
        self.calls: Counter[str] = Counter()
        self.failed_at = ""
        """The first call that failed."""
        self.struck = threading.Event()
        """Set when it does."""
        self.refused: dict[tuple[str, str], None] = {}
        """Kind and path of each call that failed, in order."""
        self.complete: set[str] = set()
        """The checkpoints that were complete at the first of them."""
        self.before_write: Callable[[str], None] = lambda path: None
        self.seen: Callable[[str, str], None] = lambda kind, path: None
        """Told of each call below the root, in order."""
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
            "statvfs",
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
        kinds = {"remove": "unlink", "ftruncate": "truncate"}
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
            path, dir_fd = args[0] if args else ".", kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
            self.check("mkdir again" if kind == "mkdir" and self._is_there(path) else kind, path, dir_fd)
            return real(*args, **kwargs)

        return call

    def _is_there(self, path: Any) -> bool:
        with self._looking():
            return os.path.isdir(path)

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
            if buffering == 0:
                return raw
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
            self.seen(kind, where)
            if kind not in self._strikes or not self.only.fullmatch(f"{kind} {where}"):
                return where
            self._n_seen += 1
            if self.n == 0 or self._n_seen < self.n or (self._n_seen > self.n and not self.for_good):
                return where
            self.refused[kind, where] = None
            self.struck.set()
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
        with self._looking():
            found = [os.path.basename(folder) for folder, _, files in os.walk(self.root) if "manifest.json" in files]
            return {name.removeprefix(".tmp-before-") for name in found if name.startswith(("step-", ".tmp-before-"))}

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Calls of this thread in here are the disk's own."""
        before, self._own.looking = getattr(self._own, "looking", False), True
        try:
            yield
        finally:
            self._own.looking = before

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
