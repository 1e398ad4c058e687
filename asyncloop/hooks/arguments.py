"""What a hook was configured with: one message for each mistake, all mistakes at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import cast

from asyncloop.errors import ConfigError

__all__ = ["name", "names", "nearest", "one_of", "refuse", "whole"]


def refuse(owner: str, *problems: str | None) -> None:
    """ConfigError with those of the problems that are there; nothing if none is."""
    found = [f"{owner}: {problem}" for problem in problems if problem is not None]
    if found:
        raise ConfigError(*found)


def whole(key: str, value: object, at_least: int) -> str | None:
    """None (not set) or a whole number of `at_least` or more."""
    if value is None or (not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= at_least):
        return None
    return f"{key} is a whole number of at least {at_least}, not {value!r:.60}"


def one_of(key: str, value: object, allowed: Sequence[str]) -> str | None:
    if value in allowed:
        return None
    return f"{key} is {' or '.join(map(repr, allowed))}, not {value!r:.60}{nearest(value, allowed)}"


def name(key: str, value: object) -> str | None:
    return None if isinstance(value, str) and value else f"{key} is a name, not {value!r:.60}"


def names(key: str, value: object) -> str | None:
    """None (not set) or a list of names."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and all(isinstance(each, str) and each for each in cast("list[object]", value)):
        return None
    return f"{key} is a list of names, not {value!r:.60}"


def nearest(value: object, known: Iterable[str]) -> str:
    """What may have been meant, as the end of a message; empty if nothing is near."""
    close = get_close_matches(value, list(known), 1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
