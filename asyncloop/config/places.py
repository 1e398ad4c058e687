"""Places: where a config states what a component or the engine complains about when it is built."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from asyncloop.config.problem import InvalidConfig, Origin, Problem
from asyncloop.config.tree import Node, Path, dotted
from asyncloop.errors import ConfigError
from asyncloop.redact import redacted

__all__ = ["Places"]


_TOKEN = re.compile(r"'(?P<value>[^']*)'|(?P<name>\w+)")

Stated = tuple[str, Origin]
"""A dotted key, and where its value stands."""


@dataclass(frozen=True, slots=True)
class Places:
    """What may be complained about: keys by their name, and strings, which messages quote."""

    keys: Mapping[str, Stated] = field(default_factory=dict[str, Stated])
    strings: Mapping[str, Stated] = field(default_factory=dict[str, Stated])
    otherwise: Stated = ("", Origin())
    """The place of a complaint that names none of them."""

    @classmethod
    def of_component(cls, node: Node, path: Path) -> Places:
        """The arguments in one table."""
        table = node.without("class").table or {}
        keys = {name: (dotted((*path, name)), child.at) for name, child in table.items()}
        return cls(keys, {}, (dotted(path), node.key_at))

    @classmethod
    def of_config(cls, tree: Node) -> Places:
        """The keys of [engine], and what it and the hooks name: streams, variables."""
        nodes = {name: tree.child(name) or Node({}, Origin(), Origin()) for name in ("engine", "hooks")}
        keys = {name: (f"engine.{name}", child.at) for name, child in (nodes["engine"].table or {}).items()}
        strings = {
            node.value: (dotted(path), node.at)
            for name, section in nodes.items()
            for path, node in section.walk((name,))
            if isinstance(node.value, str) and node.reference is None
        }
        return cls(keys, strings)

    @contextmanager
    def named(self) -> Generator[None]:
        """Add the places to a ConfigError of somebody who knows what was given but not the config."""
        try:
            yield
        except InvalidConfig:
            raise
        except ConfigError as error:
            raise InvalidConfig(*dict.fromkeys(map(self._placed, error.problems))) from error

    def _placed(self, message: str) -> Problem:
        """With the place of the first key that is named before anything is quoted, or of what is quoted first."""
        key, origin = self.otherwise
        for token in _TOKEN.finditer(message):
            if token["name"] in self.keys:
                key, origin = self.keys[token["name"]]
                break
            if token["value"] is not None:
                key, origin = self.strings.get(token["value"], self.otherwise)
                break
        return Problem(redacted(message), key, origin)
