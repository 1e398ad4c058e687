"""Nested: a table inside a component's table that names a class of its own, with its arguments beside it.

    module = { class = "my_pkg.nets:Net", width = 128 }

A constructor says so by annotating the parameter, `module: Annotated[Any, Nested()]`; the config then checks class
and arguments like those of the component itself, before anything is built. `build` makes the object.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

__all__ = ["Nested", "build", "is_nested", "named"]


@dataclass(frozen=True, slots=True)
class Nested:
    """What the owner of the table adds to it."""

    own: frozenset[str] = field(default_factory=frozenset[str])
    """Keys of the table that are the owner's, not arguments of the class."""
    given: int = 0
    """How many of its first arguments the owner hands over by itself."""
    several: bool = False
    """Whether it may be a table of such tables, by name."""


def is_nested(value: object) -> bool:
    """Whether a value is a table that names a class."""
    return isinstance(value, Mapping) and isinstance(cast("Mapping[str, Any]", value).get("class"), str)


def build(table: Mapping[str, Any], *given: Any, own: frozenset[str] = frozenset()) -> Any:
    """The object of a table: its class called with `given` and the table's other keys, but for those in `own`.

    Arguments that are such tables themselves are built first. Raises what importing and constructing raise; a config
    has found most mistakes before.
    """
    arguments = {name: value for name, value in table.items() if name != "class" and name not in own}
    return named(table["class"])(*given, **{name: _built(value) for name, value in arguments.items()})


def named(path: str) -> Callable[..., Any]:
    """What `"module:Name"` names."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _built(value: Any) -> Any:
    return build(cast("Mapping[str, Any]", value)) if is_nested(value) else value
