"""Storage: what the file system says, in words; what is there told apart from what nobody may look at; files written so
that they are whole or not there, and known again.

`Path.exists`, `is_file`, `is_dir` and `glob` take a refusal for "not there", some of them since Python 3.13 or 3.14. A
resume that believed it would begin again and remove what was saved.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asyncloop.errors import CheckpointError, StorageError

__all__ = [
    "append",
    "clear_away",
    "content_of",
    "entries_of",
    "is_dir",
    "is_file",
    "is_there",
    "json_bytes",
    "read_verified",
    "remedy_for",
    "sealed",
    "storage_error",
    "storage_errors",
    "sync_directory",
    "verify",
    "write_atomically",
    "write_synced",
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


# --- what is written, and known again ------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file so that readers see the old or the new content, also after a crash."""
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        write_synced(aside, content)
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):  # what was refused first is what the user has to know
            aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_synced(path: Path, *buffers: bytes | memoryview) -> dict[str, Any]:
    """Write a file and wait until it is on the disk; its SHA-256 and its bytes. Large buffers keep no other thread waiting."""
    digest, n_bytes = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for buffer in buffers:
            file.write(buffer)
            digest.update(buffer)
            n_bytes += len(buffer)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": n_bytes}


def sync_directory(path: Path) -> None:
    """Wait until what was made, renamed or removed in a directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: Any) -> bytes:
    """JSON as our files have it: the same bytes for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON with the SHA-256 of the rest in it: what was read is whole if this gives it again."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return json_bytes({**rest, "sha256": _digest(json_bytes(rest))})


def verify(path: Path, entry: Mapping[str, Any]) -> None:
    """CheckpointError if a file is not what `write_synced` wrote when it gave this entry. Keeps nothing of it in memory."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was noted")


def read_verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    """What `write_synced` wrote, if it gave this entry; CheckpointError if the file is another one now."""
    if path.stat().st_size != entry["bytes"]:
        raise CheckpointError(f"{path} is damaged: {path.stat().st_size} bytes instead of {entry['bytes']}")
    content = path.read_bytes()
    if _digest(content) != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was noted")
    return content


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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
