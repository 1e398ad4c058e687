"""Node: a config value that knows where it was written. A config is a tree of them until it is validated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from numbers import Integral, Real
from typing import Any, cast

from asyncloop.config.problem import Origin, Problem

__all__ = ["REPLACE", "Node", "Path", "dotted", "from_value", "merge", "shown", "without_markers"]

Path = tuple[str | int, ...]

REPLACE = "!replace"
"""The key that makes a table replace the one of the same name instead of being merged into it."""

_SCALARS = (str, bool, int, float, date, time, type(None))


@dataclass(frozen=True, slots=True)
class Node:
    """`value` is a dict or a list of nodes, or a scalar of TOML (or None, from a Python mapping)."""

    value: Any
    at: Origin
    key_at: Origin
    spare: Node | None = None
    """Another reading of the same text, taken where the first does not fit: `--set run.name=7` is a string."""
    reference: str | None = None
    """The text with `${env:…}` that gave the value; the value itself is shown and stored nowhere."""
    broken: bool = False
    """Already reported: no further complaint about this value."""

    @property
    def table(self) -> dict[str, Node] | None:
        return cast(dict[str, Node], self.value) if type(cast(object, self.value)) is dict else None

    @property
    def items(self) -> list[Node] | None:
        return cast(list[Node], self.value) if type(cast(object, self.value)) is list else None

    def child(self, part: str | int) -> Node | None:
        """The node under a key or at a number (of an array, also written as text), or None."""
        if self.table is not None:
            return self.table.get(str(part))
        if self.items is not None and str(part).isdecimal() and int(part) < len(self.items):
            return self.items[int(part)]
        return None

    def descend(self, path: Path) -> Node | None:
        node: Node | None = self
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def children(self) -> Iterator[tuple[str | int, Node]]:
        if self.table is not None:
            yield from self.table.items()
        elif self.items is not None:
            yield from enumerate(self.items)

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """This node and all below it, with their paths."""
        yield path, self
        for part, child in self.children():
            yield from child.walk((*path, part))

    def plain(self) -> Any:
        """The value in plain Python, with what the environment gave."""
        if self.table is not None:
            return {key: node.plain() for key, node in self.table.items()}
        if self.items is not None:
            return [node.plain() for node in self.items]
        return self.value

    def given(self) -> Any:
        """The value as it was given, references unresolved, but for None, which TOML cannot say."""
        if self.table is not None:
            return {key: node.given() for key, node in self.table.items() if node.value is not None}
        return [node.given() for node in self.items] if self.items is not None else self.value

    def written(self) -> Any:
        """The value as a config would state it: secrets as their reference, no None, `${` escaped."""
        if self.reference is not None:
            return self.reference
        if self.table is not None:
            return {key: node.written() for key, node in self.table.items() if node.value is not None}
        if self.items is not None:
            return [node.written() for node in self.items if node.value is not None]
        return self.value.replace("${", "$${") if isinstance(self.value, str) else self.value

    def with_child(self, part: str | int, child: Node) -> Node:
        """A copy with one key or element replaced."""
        if self.items is not None:
            return replace(self, value=[child if i == int(part) else each for i, each in enumerate(self.items)])
        return replace(self, value={**(self.table or {}), str(part): child})

    def without(self, *keys: str) -> Node:
        return replace(self, value={k: v for k, v in (self.table or {}).items() if k not in keys})


def dotted(path: Path) -> str:
    """`hooks.0.every`; a key that is no bare key of TOML is quoted."""
    return ".".join(str(p) if re.fullmatch(r"[\w-]+", str(p)) else f'"{p}"' for p in path)


def from_value(value: Any, path: Path = (), *, at: Origin | None = None) -> tuple[Node, list[Problem]]:
    """A Python value as a node, and what in it has no place in TOML. Without `at`, origins are dotted keys."""
    origin = at or Origin(dotted(path))
    problems: list[Problem] = []

    def converted(child: Any, part: str | int) -> Node:
        node, found = from_value(child, (*path, part), at=at)
        problems.extend(found)
        return node

    if isinstance(value, Mapping):
        table = cast(Mapping[object, Any], value)
        if strange := [key for key in table if not isinstance(key, str)]:
            problems.append(Problem(f"a key must be a string, not {strange[0]!r}", dotted(path), origin))
        node: Any = {str(key): converted(child, str(key)) for key, child in table.items()}
    elif isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        if None in items:
            problems.append(Problem("None has no place in a list: TOML has no null", dotted(path), origin))
        node = [converted(child, index) for index, child in enumerate(items)]
    elif isinstance(value, _SCALARS):
        node = value
    elif isinstance(value, os.PathLike):
        node = os.fspath(cast("os.PathLike[str]", value))
    elif isinstance(value, Integral):
        node = int(value)
    elif isinstance(value, Real):
        node = float(value)
    else:
        name = type(cast(object, value)).__name__
        hint = 'name a class as "module:Name"' if isinstance(value, type) else ""
        problems.append(Problem(f"a config cannot hold a value of type {name}", dotted(path), origin, hint))
        return Node(None, origin, origin, broken=True), problems
    return Node(node, origin, origin), problems


def merge(base: Node, over: Node) -> Node:
    """Tables are merged key by key, everything else is replaced, also by a table that says `"!replace" = true`."""
    if base.table is None or over.table is None or _replaces(over):
        return over
    merged = dict(base.table)
    for key, node in over.table.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return replace(over, value=merged)


def without_markers(node: Node, problems: list[Problem], path: Path = (), *, skip: str | None = None) -> Node:
    """The tree without `"!replace"` keys (they have done their work), but for the top-level table `skip`."""
    if node.table is not None:
        marker = node.table.get(REPLACE)
        if marker is not None and not isinstance(marker.value, bool):
            message = f'"{REPLACE}" must be true or false, not {shown(marker)}'
            problems.append(Problem(message, dotted((*path, REPLACE)), marker.at))
        rest = {key: child for key, child in node.table.items() if key != REPLACE}
        kept = {
            key: child if key == skip else without_markers(child, problems, (*path, key)) for key, child in rest.items()
        }
        return replace(node, value=kept)
    if node.items is not None:
        return replace(node, value=[without_markers(n, problems, (*path, i)) for i, n in enumerate(node.items)])
    return node


def _replaces(node: Node) -> bool:
    marker = (node.table or {}).get(REPLACE)
    return marker is not None and marker.value is True


def shown(node: Node) -> str:
    """The value for a message, short, in TOML's words; what came from the environment stays its reference."""
    value = node.value
    if node.reference is not None:
        return f"the value of {node.reference}"
    if node.table is not None:
        return "a table"
    if node.items is not None:
        return "a list" if len(node.items) else "an empty list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= 60 else f"{value[:57]}…"
        return f'the string "{text}"'.replace("\n", "\\n")
    if isinstance(value, datetime | date | time):
        return f"the date or time {value.isoformat()}"
    if value is None:
        return "None"
    return f"the {'integer' if isinstance(value, int) else 'number'} {_short(value)}"


def _short(number: float) -> str:
    try:
        text = repr(number)
    except ValueError:  # more digits than Python is willing to print
        return "of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}…"
