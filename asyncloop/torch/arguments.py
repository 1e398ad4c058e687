"""What a TorchModel is told: spans of steps, patterns of names, and tables as the dataclasses that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from asyncloop.cadence import Cadence
from asyncloop.errors import ConfigError

__all__ = ["Span", "listed", "matching", "of_kind"]

T = TypeVar("T")


def _steps(value: object) -> object:
    if not isinstance(value, str):
        return value
    cadence = Cadence.parse(value)
    if cadence.unit != "steps" or cadence.cap is not None:
        raise ValueError(f'a span is counted in steps, such as "500 steps", not {value!r}')
    return int(cadence.interval)


Span = Annotated[int, BeforeValidator(_steps)]
"""A number of steps, also written `"500 steps"`."""


def of_kind(name: str, kind: type[T], value: object) -> T:
    """`value` if it is one, or made of a table; ConfigError that names the argument and the key."""
    if isinstance(value, kind):
        return value
    try:
        return TypeAdapter(kind).validate_python(value, strict=True, extra="forbid")
    except ValidationError as error:
        problems = [
            f"{'.'.join([name, *map(str, each['loc'])])}: {each['msg']}" for each in error.errors(include_url=False)
        ]
        raise ConfigError(*problems) from None


def listed(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def matching(patterns: str | Sequence[str], names: Iterable[str], what: str) -> list[str]:
    """The names that any pattern (`backbone.*`, as in a shell) matches; ConfigError for one that matches none.

    A pattern without wildcards also means all that is below it.
    """
    there = list(names)
    found: dict[str, None] = {}
    for pattern in listed(patterns):
        own = [name for name in there if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not own:
            close = get_close_matches(pattern.rstrip(".*"), there, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(there[:8])}, …"
            raise ConfigError(f"{what}: the pattern {pattern!r} matches no name{hint}")
        found.update(dict.fromkeys(own))
    return [name for name in there if name in found]
