"""What went wrong, told on standard error, and the exit code that says whose fault it was.

Mistakes in a config and refusals of the file system are told in words. An exception of the user's code comes with the
frames of that code and without ours. Only what is neither is a bug of asyncloop, told in full.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import asyncloop
from asyncloop.cli.terminal import complain, strong
from asyncloop.errors import AsyncloopError, ConfigError

__all__ = ["code_of", "tell"]

_BUG = 1
_USERS_CODE = 3
_FILES = 4

_OURS = os.path.dirname(os.path.realpath(asyncloop.__file__))
_PYTHON = tuple({os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})
_LIBRARIES = ("anyio", "numpy", "pydantic", "pydantic_core", "rich", "safetensors", "spanned_toml", "typer", "uvloop")
"""What asyncloop itself calls, so that a frame there is no sign of somebody else's code."""


def tell(error: BaseException) -> int:
    """Tell the user about an exception that ended a command; the exit code."""
    error = _alone(error)
    code = code_of(error)
    if isinstance(error, ConfigError):
        _tell_problems(error)
    elif code == _BUG:
        complain(f"{strong('a bug of asyncloop')}: please report it with what follows")
        complain("".join(traceback.format_exception(error)).rstrip())
    elif isinstance(error, AsyncloopError) or code == _FILES:
        complain("\n".join([f"{strong('error')}: {error}", *_notes(error)]))
        if code != _FILES and error.__cause__ is not None and _has_frames(error.__cause__):
            complain(_shortened(error.__cause__))
    else:
        complain(f"{strong('error')}: {type(error).__name__} in your code")
        complain(_shortened(error))
    return code


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this exception."""
    error = _alone(error)
    if isinstance(error, AsyncloopError):
        return error.exit_code
    if parts := _grouped(error):
        return max(map(code_of, parts))
    if _has_frames(error) or _notes(error):  # asyncloop adds notes only to what others raise
        return _USERS_CODE
    return _FILES if isinstance(error, OSError) else _BUG


def _alone(error: BaseException) -> BaseException:
    """A group of one says less than the one."""
    while len(parts := _grouped(error)) == 1:
        error = parts[0]
    return error


def _grouped(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _notes(error: BaseException) -> list[str]:
    return [f"  {note}" for note in getattr(error, "__notes__", ())]


# --- the user's frames --------------------------------------------------------------------------------------------


def _has_frames(error: BaseException) -> bool:
    return any(_is_others(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))


def _shortened(error: BaseException) -> str:
    told = traceback.TracebackException.from_exception(error)
    for part in _parts(told):
        frames = [frame for frame in part.stack if _is_users(frame.filename)]
        frames = frames or [frame for frame in part.stack if _is_others(frame.filename)]
        part.stack = traceback.StackSummary.from_list(frames)
    return "".join(
        line for line in told.format() if line != "Traceback (most recent call last):\n" or told.stack
    ).rstrip()


def _parts(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """The exception, what it was raised from, and what it groups; without what only happened before it in our code."""
    yield told
    if told.__cause__ is not None:
        yield from _parts(told.__cause__)
    if told.__context__ is not None and not any(_is_others(frame.filename) for frame in told.__context__.stack):
        told.__context__ = None
    if told.__context__ is not None:
        yield from _parts(told.__context__)
    for each in told.exceptions or ():
        yield from _parts(each)


def _is_users(file: str) -> bool:
    """A file of the user's own, not of something that was installed."""
    return _is_others(file) and not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _is_others(file: str) -> bool:
    """A file that is neither ours nor Python's, nor of a library that we call ourselves."""
    if file.startswith("<") or Path(file).parts[:1] in [(name,) for name in _LIBRARIES]:  # uvloop/loop.pyx
        return False
    path = Path(os.path.realpath(file))
    parts = path.parts
    for home in ("site-packages", "dist-packages"):
        if home in parts:
            return parts[parts.index(home) + 1].removesuffix(".py") not in _LIBRARIES
    return not any(path.is_relative_to(home) for home in (_OURS, *_PYTHON))


# --- mistakes in a config -----------------------------------------------------------------------------------------


def _tell_problems(error: ConfigError) -> None:
    from asyncloop.config import InvalidConfig

    details = error.details if isinstance(error, InvalidConfig) else [None] * len(error.problems)
    for text, problem in zip(error.problems, details, strict=True):
        complain(f"{strong('error')}: {text}")
        if problem is not None and problem.file and problem.line and problem.column:
            complain(_pointed_at(problem.file, problem.line, problem.column, problem.origin.width))
    for note in _notes(error):
        complain(note)


def _pointed_at(file: str, line: int, column: int, width: int) -> str:
    """The line of the file with carets under the place, or nothing if the file has changed meanwhile."""
    try:
        text = Path(file).read_text().split("\n")[line - 1]
    except (OSError, ValueError, IndexError):
        return ""
    before, marked = text[: column - 1], text[column - 1 : column - 1 + width]
    space = "".join(char if char == "\t" else " " * _cells(char) for char in before)
    return f"  {line:>4} | {text}\n       | {space}{'^' * max(1, sum(map(_cells, marked)))}"


def _cells(char: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
