"""Blame: whose fault an exception is, as an exit code. The same answer goes into run.json and to the shell."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

from asyncloop.errors import AsyncloopError, alone, grouped

__all__ = ["BUG", "FILES", "code_of", "has_frames", "is_others", "notes_of"]

BUG = 1
USERS_CODE = 3
FILES = 4

_OURS = os.path.dirname(os.path.realpath(__file__))
_PYTHON = tuple({os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")})
_LIBRARIES = ("anyio", "numpy", "pydantic", "pydantic_core", "rich", "safetensors", "spanned_toml", "typer", "uvloop")
"""What asyncloop itself calls, so that a frame there is no sign of somebody else's code."""


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this exception."""
    error = alone(error)
    if isinstance(error, AsyncloopError):
        return error.exit_code
    if parts := grouped(error):
        return max(map(code_of, parts))
    if has_frames(error) or notes_of(error):  # asyncloop adds notes only to what others raise
        return USERS_CODE
    return FILES if isinstance(error, OSError) else BUG


def notes_of(error: BaseException) -> list[str]:
    return [f"  {note}" for note in getattr(error, "__notes__", ())]


def has_frames(error: BaseException) -> bool:
    return any(is_others(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))


def is_others(file: str) -> bool:
    """A file that is neither ours nor Python's, nor of a library that we call ourselves."""
    if file.startswith("<") or Path(file).parts[:1] in [(name,) for name in _LIBRARIES]:  # uvloop/loop.pyx
        return False
    path = Path(os.path.realpath(file))
    parts = path.parts
    for home in ("site-packages", "dist-packages"):
        if home in parts:
            return parts[parts.index(home) + 1].removesuffix(".py") not in _LIBRARIES
    return not any(path.is_relative_to(home) for home in (_OURS, *_PYTHON))
