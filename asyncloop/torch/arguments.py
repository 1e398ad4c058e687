"""What a TorchModel is told: spans of steps, patterns of names, and tables as the objects that they stand for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from asyncloop.cadence import Cadence
from asyncloop.errors import ConfigError
from asyncloop.nested import build, named

__all__ = ["Span", "Table", "close_to", "listed", "made", "matches", "matching", "of_kind"]

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


class Table:
    """What a table of a config stands for, as a dataclass: a key that it does not have is told with the nearest one."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(partial(_known_keys, cls), handler(source))


def _known_keys(cls: type[Any], value: Any) -> Any:
    known = [each.name for each in fields(cls)]
    for key in value if isinstance(value, Mapping) else ():
        if key not in known:
            hint = close_to(str(key), known) or f"; there are {', '.join(known)}"
            # `at`: of which part this is told
            raise PydanticCustomError("value_error", "there is no such key{hint}", {"hint": hint, "at": (key,)})
    return value


def of_kind(name: str, kind: type[T], value: object) -> T:
    """`value` if it is one, or made of a table; ConfigError that names the argument and the key."""
    if isinstance(value, kind):
        return value
    try:  # as JSON: so a table may stand for a dataclass, and yet no text for a number
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [".".join(map(str, (name, *each["loc"], *each.get("ctx", {}).get("at", ())))) for each in found]
        raise ConfigError(*(f"{place}: {each['msg']}" for place, each in zip(places, found, strict=True))) from None


def made(what: str, table: Mapping[str, Any], *given: Any, own: frozenset[str] = frozenset()) -> Any:
    """The object of a table, see `build`. A class of PyTorch's or torchmetrics' that refuses its arguments is a ConfigError."""
    try:
        return build(table, *given, own=own)
    except (TypeError, ValueError) as error:
        cls = named(table["class"])
        if isinstance(error, ConfigError) or cls.__module__.partition(".")[0] not in ("torch", "torchmetrics"):
            raise
        taken = _parameters_of(cls)
        strange = next((each for each in table.keys() - own - taken - {"class"} if close_to(each, taken)), None)
        hint = "" if strange is None else f" ({strange!r}{close_to(strange, taken)})"
        raise ConfigError(f"{what}: {cls.__name__} refuses its arguments: {error}{hint}") from error


def _parameters_of(cls: Any) -> set[str]:
    """What a class and those that it hands its `**kwargs` on to take, by name."""
    found: set[str] = set()
    for each in getattr(cls, "__mro__", (cls,)):
        for method in (vars(each).get("__init__"), vars(each).get("__new__")):
            if inspect.isfunction(method):
                found.update(inspect.signature(method).parameters)
    return found


def close_to(name: str, known: Collection[str]) -> str:
    """What may have been meant, as the end of a message; empty if nothing is near."""
    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def matching(patterns: str | Sequence[str], names: Iterable[str], what: str) -> list[str]:
    """The names that any pattern (`backbone.*`, as in a shell) matches; ConfigError for one that matches none.

    A pattern without wildcards also means all that is below it.
    """
    there = list(names)
    found: dict[str, None] = {}
    for pattern in listed(patterns):
        own = [name for name in there if matches(pattern, name)]
        if not own:
            close = get_close_matches(pattern.rstrip(".*"), there, 1, 0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(there[:8])}, …"
            raise ConfigError(f"{what}: the pattern {pattern!r} matches no name{hint}")
        found.update(dict.fromkeys(own))
    return [name for name in there if name in found]


def matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
