"""Everything asyncloop raises by itself. Exceptions of your own code keep their type; we only add a note.

    AsyncloopError                 exit code of the command line
    ├── ConfigError                2   the config or the arguments are wrong; nothing was made
    ├── DataError                  3   a stream or a batch breaks a rule
    ├── ModelError                 3   the model's outputs break a rule
    ├── HookError                  3   a hook asks for what does not exist
    ├── NonFiniteError             3   a loss is NaN or infinite
    ├── StorageError               4   the file system said no
    │   └── CheckpointError        4   a checkpoint could not be written or is damaged
    ├── NothingToResumeError       5
    ├── PeerError                  3   another process that trains the same model has failed or gone
    ├── StalledError               6   something did not answer within its deadline
    └── UsageError                 1   the Python API was called in an order that makes no sense

`StopTraining` is no error: raising it from a hook ends the run with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

__all__ = [
    "AsyncloopError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HookError",
    "ModelError",
    "NonFiniteError",
    "NothingToResumeError",
    "PeerError",
    "StalledError",
    "StopTraining",
    "StorageError",
    "UsageError",
    "alone",
    "grouped",
    "joined",
]

logger = logging.getLogger("asyncloop")


class AsyncloopError(Exception):
    """The root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(AsyncloopError, ValueError):
    """The config or the arguments are wrong. `problems` holds one message for each mistake found."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class DataError(AsyncloopError, ValueError):
    """A stream or a batch breaks a rule; the message names stream, index and source."""

    exit_code = 3


class ModelError(AsyncloopError, ValueError):
    """What the model returned breaks a rule; the message names stream, index and output."""

    exit_code = 3


class HookError(AsyncloopError, ValueError):
    """A hook asks for a variable or a stream that does not exist, or met a value it cannot use."""

    exit_code = 3


class NonFiniteError(AsyncloopError, ArithmeticError):
    """A loss (or a weight about to be saved) is NaN or infinite."""

    exit_code = 3


class StorageError(AsyncloopError, OSError):
    """The file system refused; the message names path, cause and remedy."""

    exit_code = 4


class CheckpointError(StorageError):
    """A checkpoint could not be written, or what is on disk is damaged."""


class NothingToResumeError(AsyncloopError):
    """There is no run, or no checkpoint, to continue from."""

    exit_code = 5


class PeerError(AsyncloopError):
    """Another process that trains the same model has failed or gone; the message says which, and its reason if known."""

    exit_code = 3


class StalledError(AsyncloopError, TimeoutError):
    """A producer, a hook or a step did not answer within its deadline."""

    exit_code = 6


class UsageError(AsyncloopError, RuntimeError):
    """The Python API was used in an order that makes no sense, e.g. one engine trained twice at once."""


class StopTraining(Exception):
    """Raise it from a hook to end the run normally. The reason goes into the result and `run.json`."""

    def __init__(self, reason: str = "stopped by a hook") -> None:
        super().__init__(reason)
        self.reason = reason


def grouped(error: BaseException) -> Sequence[BaseException]:
    """The errors of a group; none if it is no group."""
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def alone(error: BaseException) -> BaseException:
    """A group of one says less than the one."""
    while len(parts := grouped(error)) == 1:
        error = parts[0]
    return error


def joined(first: BaseException | None, second: BaseException) -> BaseException:
    """The first error stays the error; the second is logged and noted on it, so neither hides the other."""
    if first is None or first is second:
        return second
    told_in_words = isinstance(second, AsyncloopError)
    logger.error(
        "another error, after %s: %s", type(first).__name__, second, exc_info=None if told_in_words else second
    )
    first.add_note(f"after that, also {type(second).__name__}: {second}")
    return first
