"""OutputFile: where in the run directory a hook writes, and errors that name path, cause and remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePath

from asyncloop.errors import HookError, StorageError
from asyncloop.events import Event
from asyncloop.storage import append, content_of, is_dir, is_there, storage_error, write_atomically

__all__ = ["OutputFile", "file_name"]


class OutputFile:
    """A file of one hook, in `output_dir` or else in the run's directory. Methods block: for the hook's own thread.

    All raise StorageError if the file system refuses, HookError if there is no directory at all.
    """

    def __init__(self, owner: str, name: str, output_dir: str | Path | None) -> None:
        self._owner, self._name = owner, name
        self._directory = None if output_dir is None else Path(output_dir)

    def path(self, event: Event) -> Path:
        directory = self._directory or event.run.dir
        if directory is None:
            raise HookError(
                f"{self._owner} has nowhere to write {self._name}: give the engine or the hook an output_dir"
            )
        return directory / self._name

    def size(self, event: Event) -> int:
        """Its bytes; 0 if it does not exist."""
        path = self.path(event)
        try:
            return path.stat().st_size if is_there(path) else 0
        except OSError as error:
            raise _refused("read", path, error) from error

    def read(self, event: Event) -> str:
        """Its text; empty if it does not exist."""
        path = self.path(event)
        try:
            return (content_of(path) or b"").decode()
        except OSError as error:
            raise _refused("read", path, error) from error

    def append(self, event: Event, text: str) -> int:
        """Write at the end, all of it or nothing; the file's size afterwards. Makes the directory if it has to, but not the run's."""
        path = self.path(event)
        try:
            self._make_parent(event, path)
            return append(path, text.encode())
        except OSError as error:
            raise _refused("write", path, error) from error

    def replace(self, event: Event, text: str) -> None:
        """Put the whole file aside and rename it, so that readers see the old one or the new one."""
        path = self.path(event)
        try:
            self._make_parent(event, path)
            write_atomically(path, text.encode())
        except OSError as error:
            raise _refused("write", path, error) from error

    def _make_parent(self, event: Event, path: Path) -> None:
        if self._directory is None and event.run.dir is not None and not is_dir(event.run.dir):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(event.run.dir))
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, event: Event, size: int) -> None:
        """Forget what stands behind the first `size` bytes."""
        path = self.path(event)
        try:
            if is_there(path) and path.stat().st_size > size:
                os.truncate(path, size)
        except OSError as error:
            raise _refused("cut", path, error) from error


def file_name(key: str, value: object) -> str | None:
    """What is wrong with the name of an output file, None if nothing is."""
    if isinstance(value, str) and value:
        path = PurePath(value)
        if path.name and not path.is_absolute() and ".." not in path.parts:
            return None
    return f"{key} is a path inside the run directory, such as 'training.csv', not {value!r:.60}"


def _refused(what: str, path: Path, error: OSError) -> StorageError:
    return error if isinstance(error, StorageError) else storage_error(what, path, error)
