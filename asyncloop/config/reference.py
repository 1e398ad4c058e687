"""`${path.to.key}` and `${env:NAME}`: values taken from elsewhere in the config, or from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from asyncloop.config.override import toml_value
from asyncloop.config.problem import Origin, Problem, suggestion
from asyncloop.config.tree import Node, Path, dotted, from_value, merge, shown

__all__ = ["References"]

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[^{}]*)\}|\$\{")


@dataclass(slots=True)
class References:
    """Resolves the references of one tree; owns what has been resolved so far.

    A text that is one reference takes over the value with its type; within a longer text it becomes part of the
    string. `$${` is a literal `${`. What is not written is looked up in `defaults`. With `env_optional`, a variable
    that is not set is no problem, and the value counts as unknown.
    """

    tree: Node
    defaults: Node
    env_optional: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    problems: list[Problem] = field(default_factory=list[Problem])
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """What the environment gave → the reference that named it."""
    _done: dict[Path, Node] = field(default_factory=dict[Path, Node])
    _open: list[Path] = field(default_factory=list[Path])
    _all: Node | None = None

    def resolve(self, *, skip: str) -> Node:
        """The tree without references, but for the table `skip`, which stays as it is written."""
        self._all = merge(self.defaults, self.tree)
        table = {key: child if key == skip else self._at((key,)) for key, child in (self.tree.table or {}).items()}
        return replace(self.tree, value=table)

    def _at(self, path: Path) -> Node:
        if path not in self._done:
            node = self._all.descend(path) if self._all else None
            assert node is not None
            self._open.append(path)
            self._done[path] = self._resolved(node, path)
            self._open.pop()
        return self._done[path]

    def _resolved(self, node: Node, path: Path) -> Node:
        if node.table is not None:
            return replace(node, value={key: self._at((*path, key)) for key in node.table})
        if node.items is not None:
            return replace(node, value=[self._at((*path, index)) for index in range(len(node.items))])
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        try:
            return self._text(node, node.value)
        except _Unresolved as trouble:
            if trouble.message:
                problem = Problem(trouble.message, dotted(path), node.at, trouble.hint, follows=trouble.follows)
                self.problems.append(problem)
            return replace(node, broken=True, spare=None)

    def _text(self, node: Node, text: str) -> Node:
        whole = _REFERENCE.fullmatch(text)
        if whole is not None and whole["name"] is not None:
            target = self._target(whole["name"], node.at)
            if target.reference is not None or _holds_secret(target):
                target = replace(target, reference=text)
            return replace(target, at=node.at, key_at=node.key_at)
        reference: str | None = None
        parts: list[str] = []
        position = 0
        for match in _REFERENCE.finditer(text):
            parts.append(text[position : match.start()])
            position = match.end()
            if match[0] == "$${":
                parts.append("${")
                continue
            if match["name"] is None:
                raise _Unresolved(f"`{text[match.start() :]}` is a reference without its end", "close it with `}`")
            target = self._target(match["name"], node.at)
            reference = text if target.reference is not None else reference
            parts.append(_as_text(target, match[0]))
        return replace(node, value="".join([*parts, text[position:]]), spare=None, reference=reference)

    def _target(self, name: str, at: Origin) -> Node:
        if name.startswith("env:"):
            return self._environment(name.removeprefix("env:"), at)
        path: Path = tuple(part.strip().strip("\"'") for part in name.split("."))
        path = self._numbered(path)
        node = self._all.descend(path) if self._all else None
        if node is None or node.value is None:
            known = [dotted(p) for p, n in self._all.walk() if p and n.value is not None] if self._all else []
            what = f"there is no `{name}` in this config to refer to" if name else "`${}` refers to nothing"
            raise _Unresolved(what, suggestion(name, known), dotted(path))
        if path in self._open:
            circle = " → ".join(dotted(p) for p in [*self._open[self._open.index(path) :], path])
            raise _Unresolved(f"references go in a circle: {circle}")
        target = self._at(path)
        if target.broken:
            raise _Unresolved("")
        return target

    def _numbered(self, path: Path) -> Path:
        """The path with numbers where it goes into arrays, so that each value has one path."""
        numbered: Path = ()
        for part in path:
            above = self._all.descend(numbered) if self._all else None
            inside_array = above is not None and above.items is not None and str(part).isdecimal()
            numbered = (*numbered, int(part) if inside_array else part)
        return numbered

    def _environment(self, name: str, at: Origin) -> Node:
        value = self.environ.get(name)
        if value is None:
            if self.env_optional:
                raise _Unresolved("")
            what = f"the environment variable {name} is not set" if name else "`${env:}` names no variable"
            raise _Unresolved(what, "set it, or write the value" if name else "write `${env:NAME}`")
        reference = f"${{env:{name}}}"
        if value:
            self.secrets.setdefault(value, reference)
        other = toml_value(value)
        spare = None
        if other is not None and not isinstance(other, str):
            spare = replace(from_value(other, at=at)[0], reference=reference)
        return Node(value, at, at, spare=spare, reference=reference)


class _Unresolved(Exception):
    """A reference leads nowhere; without a message, that has been reported already."""

    def __init__(self, message: str, hint: str = "", follows: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.follows = follows
        """The key that is referred to, if something may be wrong with that one."""


def _holds_secret(node: Node) -> bool:
    return any(each.reference is not None for _, each in node.walk())


def _as_text(node: Node, reference: str) -> str:
    value = node.spare.value if node.spare is not None and isinstance(node.spare.value, str) else node.value
    if isinstance(value, bool):
        return str(value).lower()
    if node.table is not None or node.items is not None:
        message = f"{reference} is {shown(node)}, which cannot be part of a string"
        raise _Unresolved(message, follows=reference.removeprefix("${").removesuffix("}"))
    return value if isinstance(value, str) else str(value)
