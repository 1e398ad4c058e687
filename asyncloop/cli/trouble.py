"""What went wrong, told on standard error, and the exit code that says whose fault it was.

Mistakes in a config and refusals of the file system are told in words. An exception of the user's code comes with the
frames of that code and without ours. Only what is neither is a bug of asyncloop, told in full.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from asyncloop.blame import BUG, FILES, code_of, has_frames, is_others, notes_of
from asyncloop.cli.terminal import cells, complain, strong
from asyncloop.errors import AsyncloopError, ConfigError, alone
from asyncloop.storage import remedy_for

__all__ = ["code_of", "tell", "users_traceback"]


def tell(error: BaseException) -> int:
    """Tell the user about an exception that ended a command; the exit code."""
    error = alone(error)
    code = code_of(error)
    if isinstance(error, ConfigError):
        _tell_problems(error)
    elif code == BUG:
        complain(f"{strong('a bug of asyncloop')}: please report it with what follows")
        complain("".join(traceback.format_exception(error)).rstrip())
    elif isinstance(error, AsyncloopError) or code == FILES:
        complain("\n".join([f"{strong('error')}: {_in_words(error)}", *notes_of(error)]))
        if code != FILES and error.__cause__ is not None and has_frames(error.__cause__):
            complain(_shortened(error.__cause__))
    else:
        complain(f"{strong('error')}: {type(error).__name__} in your code")
        complain(_shortened(error))
    return code


def _in_words(error: BaseException) -> str:
    """Of what the file system has refused without anybody expecting it: path, cause and remedy."""
    if isinstance(error, AsyncloopError) or not isinstance(error, OSError):
        return str(error)
    cause = error.strerror or str(error)
    where = "" if error.filename is None else f"cannot use {error.filename}: "
    return f"{where}{cause}; {remedy_for(error)}"


# --- the user's frames --------------------------------------------------------------------------------------------


def _shortened(error: BaseException) -> str:
    told = traceback.TracebackException.from_exception(error)
    for part in _parts(told):
        frames = [frame for frame in part.stack if _is_users(frame.filename)]
        frames = frames or [frame for frame in part.stack if is_others(frame.filename)]
        part.stack = traceback.StackSummary.from_list(frames)
    return "".join(
        line for line in told.format() if line != "Traceback (most recent call last):\n" or told.stack
    ).rstrip()


def _parts(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """The exception, what it was raised from, and what it groups; without what only happened before it in our code."""
    yield told
    if told.__cause__ is not None:
        yield from _parts(told.__cause__)
    if told.__context__ is not None and not any(is_others(frame.filename) for frame in told.__context__.stack):
        told.__context__ = None
    if told.__context__ is not None:
        yield from _parts(told.__context__)
    for each in told.exceptions or ():
        yield from _parts(each)


def users_traceback(error: BaseException) -> TracebackType | None:
    """The traceback of an exception down to the deepest frame that is not ours, for a debugger; else all of it."""
    whole: list[TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        whole.append(trace)
        trace = trace.tb_next
    others = [n for n, each in enumerate(whole, 1) if is_others(each.tb_frame.f_code.co_filename)]
    part = None
    for each in reversed(whole[: others[-1]] if others else whole):
        part = TracebackType(part, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return part


def _is_users(file: str) -> bool:
    """A file of the user's own, not of something that was installed."""
    return is_others(file) and not {"site-packages", "dist-packages"} & set(Path(file).parts)


# --- mistakes in a config -----------------------------------------------------------------------------------------


def _tell_problems(error: ConfigError) -> None:
    from asyncloop.config import InvalidConfig

    details = error.details if isinstance(error, InvalidConfig) else [None] * len(error.problems)
    for text, problem in zip(error.problems, details, strict=True):
        complain(f"{strong('error')}: {text}")
        if problem is not None and problem.file and problem.line and problem.column:
            complain(_pointed_at(problem.file, problem.line, problem.column, problem.origin.width))
    for note in notes_of(error):
        complain(note)


def _pointed_at(file: str, line: int, column: int, width: int) -> str:
    """The line of the file with carets under the place, or nothing if the file has changed meanwhile."""
    try:
        text = Path(file).read_text("utf-8-sig").split("\n")[line - 1]
    except (OSError, ValueError, IndexError):
        return ""
    before, marked = text[: column - 1], text[column - 1 : column - 1 + width]
    space = "".join(char if char == "\t" else " " * cells(char) for char in before)
    return f"  {line:>4} | {text}\n       | {space}{'^' * max(1, cells(marked))}"
