"""Storage: what the file system says, in words, and what is there told apart from what nobody may look at.

`Path.exists`, `is_file`, `is_dir` and `glob` take a refusal for "not there", some of them since Python 3.13 or 3.14. A
resume that believed it would begin again and remove what was saved.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from asyncloop.errors import StorageError

__all__ = [
    "append",
    "clear_away",
    "content_of",
    "entries_of",
    "is_dir",
    "is_file",
    "is_there",
    "remedy_for",
    "storage_error",
    "storage_errors",
]

logger = logging.getLogger("asyncloop")

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another output directory",
    errno.EDQUOT: "free some of your quota, or choose another output directory",
    errno.EACCES: "check the permissions of the directory and its parents",
    errno.EPERM: "check the permissions of the directory and its parents",
    errno.EROFS: "the file system is read-only; choose another output directory",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "the directory has vanished; was it deleted or unmounted?",
    errno.EIO: "the device reports errors; check it and choose another output directory",
}

_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


# --- refusals in words --------------------------------------------------------------------------------------------


def storage_error(what: str, path: Path, error: OSError, kind: type[StorageError] = StorageError) -> StorageError:
    """An error that says path, cause and remedy."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    return kind(f"cannot {what} {path}: {cause}; {remedy_for(error)}")


@contextmanager
def storage_errors(what: str, path: Path) -> Generator[None]:
    """Whatever the file system refuses inside comes out as a StorageError with path, cause and remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(what, path, error) from error


def remedy_for(error: OSError) -> str:
    """What a user can do about it."""
    return _REMEDIES.get(error.errno or 0, "check the path and the device")


# --- what is there ------------------------------------------------------------------------------------------------


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, links followed. Raises OSError if nobody may look."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a file, links followed. Raises OSError if nobody may look."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: Path) -> bool:
    """Whether there is a directory, links followed. Raises OSError if nobody may look."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def entries_of(directory: Path, prefix: str = "") -> list[Path]:
    """What is in a directory under a name that begins like this, by name; nothing if there is no directory.

    Raises OSError if nobody may look.
    """
    try:
        return sorted(directory / name for name in os.listdir(directory) if name.startswith(prefix))
    except OSError as error:
        _raise_refusal(error)
        return []


def content_of(path: Path) -> bytes | None:
    """What stands in a file; None if there is none. Raises OSError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        _raise_refusal(error)
        return None


def append(path: Path, content: bytes) -> int:
    """Write at the end of a file, all of it or nothing; its size afterwards. Raises OSError.

    Nothing, as far as the file system lets what it has taken be cut off again.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):  # what was refused first is what the user has to know
                os.ftruncate(file.fileno(), size)
            raise
    return size + len(content)


def clear_away(path: Path) -> None:
    """Remove a file, or a directory with all that is in it, if it is there. A warning names what has to stay."""
    try:
        if is_dir(path) and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s", storage_error("remove", path, error))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError as error:
        _raise_refusal(error)
        return None
    except ValueError:  # a name that no file can have
        return None


def _raise_refusal(error: OSError) -> None:
    """Raise it, unless it only says that there is nothing."""
    if error.errno not in _NOTHING_THERE:
        raise error
