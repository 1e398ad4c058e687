"""Problem: one mistake in a config, with its place as data; messages and carets are made from it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncloop.errors import ConfigError

__all__ = ["InvalidConfig", "Origin", "Problem", "nearest", "suggestion", "without_consequences"]


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
    meant: str = ""
    """For a name that is not known: the key that it was probably meant to be."""
    follows: str = ""
    """A key. If something is wrong with that one, or was meant to be that one, this problem only follows from it."""

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
        message = self.message.removeprefix(f"{where.removeprefix('--set ')}: ") if where else self.message
        prefix = "" if not where or message.startswith(where) else f"{where}: "
        return f"{prefix}{message}" + (f"; {self.hint}" if self.hint else "")


class InvalidConfig(ConfigError):
    """The ConfigError of this package: `details` holds the problems with their places, `problems` their texts."""

    def __init__(self, *details: Problem) -> None:
        super().__init__(*map(str, details))
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.details


def without_consequences(problems: Sequence[Problem]) -> list[Problem]:
    """One mistake is told once: without what is missing because its name is misspelt, and what refers to it."""
    roots = {each.meant or each.key for each in problems if not each.follows}
    kept: list[Problem] = []
    for each in problems:
        above = each.follows.split(".")
        if each.follows and any(".".join(above[:depth]) in roots for depth in range(1, len(above) + 1)):
            continue
        kept.append(each)
        if each.follows == each.key:
            roots.add(each.key)
    return kept


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` looks like, or nothing rather than a wrong one."""
    by_folded = {_folded(each): each for each in known}
    folded = _folded(name)
    swapped = [each for each in by_folded if len(each) > 1 and sorted(each) == sorted(folded)]
    close = swapped or difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.66)
    return by_folded[close[0]] if close else ""


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that `name` looks like, or nothing."""
    found = nearest(name, known)
    return f"did you mean `{found}`?" if found else ""


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")
