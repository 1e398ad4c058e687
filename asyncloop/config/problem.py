"""Problem: one mistake in a config, with its place as data; messages and carets are made from it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from asyncloop.errors import ConfigError

__all__ = ["InvalidConfig", "Origin", "Problem", "nearest"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file with a place in it, a `--set`, or the dotted `key` of a mapping.

    `line` and `column` count from 1, in characters; `width` is how many characters a caret line marks.
    """

    key: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    width: int = 1

    def __str__(self) -> str:
        if self.file is None:
            return self.key
        if self.line is None:
            return self.file
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at `key` (dotted, of the config as it takes effect), and in `hint` what to do next."""

    message: str
    key: str = ""
    origin: Origin = field(default_factory=Origin)
    hint: str = ""
    cause: BaseException | None = field(default=None, compare=False)

    @property
    def file(self) -> str | None:
        return self.origin.file

    @property
    def line(self) -> int | None:
        return self.origin.line

    @property
    def column(self) -> int | None:
        return self.origin.column

    def __str__(self) -> str:
        where = str(self.origin)
        prefix = "" if not where or self.message.startswith(where) else f"{where}: "
        return f"{prefix}{self.message}" + (f"; {self.hint}" if self.hint else "")


class InvalidConfig(ConfigError):
    """The ConfigError of this package: `details` holds the problems with their places, `problems` their texts."""

    def __init__(self, *details: Problem) -> None:
        super().__init__(*map(str, details))
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.details


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that `name` looks like, or nothing rather than a wrong suggestion."""
    by_folded = {_folded(each): each for each in known}
    close = difflib.get_close_matches(_folded(name), by_folded, n=1, cutoff=0.66)
    return f"did you mean `{by_folded[close[0]]}`?" if close else ""


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")
