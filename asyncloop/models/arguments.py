"""Arguments: what a model was configured with, checked all at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real

from asyncloop.errors import ConfigError

__all__ = ["Arguments"]


class Arguments:
    """Collects what is wrong with the arguments of `owner`, so that `done` can report all of it together."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._problems: list[str] = []

    def done(self) -> None:
        """ConfigError with one message for each mistake found so far, if there is one."""
        if self._problems:
            raise ConfigError(*self._problems)

    def whole(self, name: str, value: object, *, at_least: int) -> None:
        """`value` is a whole number, `at_least` or more."""
        if not _is_whole(value, at_least):
            self._add(name, value, f"a whole number of at least {at_least}")

    def number(self, name: str, value: object, *, below: float = math.inf) -> None:
        """`value` is a finite number from 0, included, to `below`, excluded."""
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
            self._add(
                name,
                value,
                "a finite number of at least 0" + (f" and below {below}" if below < math.inf else ""),
            )

    def choice(self, name: str, value: object, allowed: Sequence[str]) -> None:
        """`value` is one of `allowed`."""
        if value not in allowed:
            self._add(name, value, "one of " + ", ".join(map(repr, allowed)) + _nearest(value, allowed))

    def sizes(self, name: str, value: Sequence[object]) -> None:
        """`value` is a list of whole numbers, 1 or more each; it may be empty."""
        if not isinstance(value, Sequence) or not all(_is_whole(size, 1) for size in value):  # pyright: ignore[reportUnnecessaryIsInstance]
            expected = "a list of whole numbers of at least 1, such as [64, 32]; [] for no hidden layer"
            self._add(name, value, expected)

    def sources(self, **values: object) -> None:
        """Each of `values` is the name of a source, another one each."""
        for name, value in values.items():
            if not isinstance(value, str) or not value:
                self._add(name, value, "the name of a source of the batch")
        if len({repr(value) for value in values.values()}) < len(values):
            names = " and ".join(values)
            self._problems.append(f"{self._owner}: {names} name the same source; give each a source of its own")

    def known(self, names: Iterable[str], allowed: Sequence[str]) -> None:
        """Each of `names` is one of `allowed`."""
        for name in names:
            if name not in allowed:
                what = ", ".join(map(repr, allowed)) + _nearest(name, allowed)
                self._problems.append(f"{self._owner}: {name!r} cannot be changed while it runs; only {what} can")

    def _add(self, name: str, value: object, expected: str) -> None:
        self._problems.append(f"{self._owner}: {name} = {value!r:.80}, expected {expected}; change {name}")


def _is_whole(value: object, at_least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= at_least


def _nearest(value: object, allowed: Sequence[str]) -> str:
    close = get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
