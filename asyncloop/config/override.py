"""`--set a.b=VALUE`: one value put into the tree, over everything the files say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncloop.config.problem import Origin, Problem
from asyncloop.config.tree import Node, Path, dotted, from_value, shown

__all__ = ["Override", "read_overrides", "toml_value"]

_PART = re.compile(r"""\s*(?:"(?P<basic>[^"]*)"|'(?P<literal>[^']*)'|(?P<bare>[^."'=\s]+))\s*""")


@dataclass(frozen=True, slots=True)
class Override:
    """`node` is to stand at `path`; numbers in the path reach into arrays."""

    path: Path
    node: Node

    def apply(self, tree: Node, problems: list[Problem]) -> Node:
        """The tree with the value in it, or as it was, with a problem."""
        return self._put(tree, 0, problems)

    def _put(self, parent: Node, depth: int, problems: list[Problem]) -> Node:
        if depth == len(self.path):
            return self.node
        part, above = str(self.path[depth]), dotted(self.path[:depth])
        if not self._reachable(parent, part, above, problems):
            return parent
        child = parent.child(part)
        if child is None:
            child = Node({}, self.node.at, self.node.at)
        changed = self._put(child, depth + 1, problems)
        return parent if changed is child else parent.with_child(part, changed)

    def _reachable(self, parent: Node, part: str, above: str, problems: list[Problem]) -> bool:
        message = ""
        if parent.items is not None:
            if not part.isdecimal():
                message = f"{above} is an array: `{part}` must be the number of an element, from 0"
            elif int(part) >= len(parent.items):
                message = f"{above} has {len(parent.items)} elements, the first is 0: there is no `{part}`"
        elif parent.table is None:
            message = f"{above} is {shown(parent)}: there is no `{part}` in it"
        elif part.isdecimal() and not parent.table and above:
            message = f"{above} has no element {part}: there is no such array"
        if message:
            problems.append(Problem(message, dotted(self.path), self.node.at))
        return not message


def read_overrides(given: Mapping[str, Any] | Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Overrides from `{"a.b": value}` or from texts `a.b=VALUE`, in their order, and what is wrong with them."""
    problems: list[Problem] = []
    if isinstance(given, str):
        given = [given]
    pairs: list[tuple[str, Path, Node]] = []
    if isinstance(given, Mapping):
        for name, value in given.items():
            origin = Origin(f"--set {name}")
            node, found = from_value(value, at=origin)
            problems += found
            pairs.append((name, _path(name), node))
    else:
        for text in given:
            name, found_equals, value = _split(text)
            origin = Origin(f"--set {name.strip()}")
            if not found_equals:
                problems.append(Problem("expected KEY=VALUE, e.g. `model.lr=0.1`", name, origin))
                continue
            pairs.append((name, _path(name), _read(value, name.strip(), origin, problems)))
    for name, path, _ in pairs:
        if not path:
            origin = Origin(f"--set {name.strip()}")
            problems.append(Problem(f"`{name.strip()}` is no key; write e.g. `model.lr`", name, origin))
    return [Override(path, node) for _, path, node in pairs if path], problems


def _split(text: str) -> tuple[str, str, str]:
    """At the first `=` outside quotes."""
    match = re.match(r"""(?:"[^"]*"|'[^']*'|[^="'])*""", text)
    end = match.end() if match else 0
    return (text[:end], "=", text[end + 1 :]) if text[end : end + 1] == "=" else text.partition("=")


def _path(name: str) -> Path:
    """The parts of a dotted key, quoted or bare; nothing if it is none."""
    parts: list[str] = []
    position = 0
    while match := _PART.match(name, position):
        parts.append(next(part for part in match.groups() if part is not None))
        position = match.end()
        if position == len(name):
            return tuple(parts)
        if name[position] != ".":
            break
        position += 1
    return ()


def _read(text: str, key: str, origin: Origin, problems: list[Problem]) -> Node:
    """VALUE as TOML with its bare text to spare, or as bare text where it is no TOML."""
    bare = Node(text, origin, origin)
    value = toml_value(text)
    if value is None:
        if text.lstrip()[:1] in ("[", "{", '"', "'") and text.strip():
            hint = "quote it once more for the shell if quotes got lost"
            problems.append(Problem(f"{text} begins like TOML but is not valid", key, origin, hint))
            return replace(bare, broken=True)
        return bare
    node, found = from_value(value, at=origin)
    problems += found
    return replace(node, spare=None if isinstance(node.value, str) else bare)


def toml_value(text: str) -> Any:
    """`text` as one value of TOML, or None if it is none."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return None
    return table["value"] if len(table) == 1 and "\n" not in text.strip() else None
