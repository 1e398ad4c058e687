"""Reading a config: a TOML file or a mapping, with what it `extends`, as a tree of nodes that know their place."""

from __future__ import annotations

import os
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, cast

import spanned_toml

from asyncloop.config.problem import InvalidConfig, Origin, Problem, suggestion
from asyncloop.config.syntax import syntax_problem
from asyncloop.config.toml import dumps
from asyncloop.config.tree import Node, Path, dotted, from_value, merge, shown

__all__ = ["parse", "read"]

_EQUALS = re.compile(r"[\"']?[ \t]*=[ \t]*")
_ELEMENT_HEADER = re.compile(r"^[ \t]*(\[\[[ \t]*([^\]\n]*?)[ \t]*\]\])", re.M)


def read(source: str | FilePath | Mapping[str, Any]) -> tuple[Node, FilePath | None, str]:
    """The merged tree of `source`, its path (None for a mapping) and its text. Raises InvalidConfig."""
    if isinstance(source, Mapping):
        tree, problems = from_value(source)
        if problems:
            raise InvalidConfig(*problems)
        return _extended(tree, FilePath()), None, dumps(tree.given())
    path = _file(FilePath(source))
    text = _text(path, Origin())
    return _extended(parse(text, str(path)), path.parent, (path.resolve(),)), path, text


def _file(path: FilePath) -> FilePath:
    if not path.is_dir():
        return path
    if (path / "cfg.toml").is_file():
        return path / "cfg.toml"
    raise InvalidConfig(
        Problem(f"{path} is a directory without a cfg.toml", hint="name the config file", origin=Origin())
    )


def _text(path: FilePath, origin: Origin, key: str = "") -> str:
    prefix = f"{key}: " if key else ""
    try:
        return path.read_bytes().decode("utf-8-sig")  # what some editors put before the text is no part of it
    except UnicodeDecodeError as error:
        message = f"{prefix}{path} is not UTF-8 text (byte {error.start})"
        raise InvalidConfig(Problem(message, key, origin, cause=error)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        missing = isinstance(error, FileNotFoundError)
        message = f"{prefix}there is no file {path}" if missing else f"{prefix}cannot read {path}: {reason}"
        hint = _other_files(path, but=origin.file) if missing else ""
        raise InvalidConfig(Problem(message, key, origin, hint, error)) from error


def _other_files(missing: FilePath, but: str | None) -> str:
    """A hint with the config beside the missing file that may have been meant."""
    try:
        beside = sorted(str(missing.with_name(each.name)) for each in missing.parent.glob("*.toml"))
    except OSError:
        return ""
    configs = [each for each in beside if each not in (but, str(missing.with_name("pyproject.toml")))]
    return suggestion(str(missing), configs) or (f"there is {configs[0]}" if len(configs) == 1 else "")


def _extended(tree: Node, folder: FilePath, chain: tuple[FilePath, ...] = ()) -> Node:
    """`tree` merged over the files it extends, the later over the earlier ones. `chain` finds cycles."""
    extends = (tree.table or {}).get("extends")
    if extends is None:
        return tree
    base: Node | None = None
    for entry in extends.items if extends.items is not None else [extends]:
        if not isinstance(entry.value, str):
            message = f"extends must be a file name or a list of them, not {shown(entry)}"
            raise InvalidConfig(Problem(message, "extends", entry.at))
        path = FilePath(os.path.normpath(folder / entry.value))
        if path.resolve() in chain:
            circle = " → ".join(each.name for each in (*chain, path))
            raise InvalidConfig(Problem(f"extends goes in a circle: {circle}", "extends", entry.at))
        text = _text(path, entry.at, "extends")
        found = _extended(parse(text, str(path)), path.parent, (*chain, path.resolve()))
        base = found if base is None else merge(base, found)
    own = tree.without("extends")
    return own if base is None else merge(base, own)


def parse(text: str, file: str) -> Node:
    """TOML as a tree of nodes. tomllib decides what is valid; spanned_toml only tells the places."""
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise InvalidConfig(Problem("nested too deeply", origin=Origin(file=file))) from None
    except ValueError as error:
        raise InvalidConfig(syntax_problem(error, text, file)) from error
    spanned = cast(Any, spanned_toml.loads(text))
    if spanned.unspan() != values and "nan" not in text:
        return from_value(values, at=Origin(file=file))[0]
    return _Places(text, file).node(spanned, Origin(file=file), ())


class _Places:
    """Turns offsets in a text into origins."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.element_headers: dict[str, list[slice]] = {}
        for match in _ELEMENT_HEADER.finditer(text):
            self.element_headers.setdefault(match[2], []).append(slice(*match.span(1)))

    def node(self, spanned: Any, key_at: Origin, path: Path, after: int | None = None) -> Node:
        """The node of a value; `after` is where its key ends."""
        inner, span = spanned.inner(), spanned.span()
        at = key_at if span.stop == 0 or not path else self.origin(span, path)
        if isinstance(inner, str) and after is not None:
            # The span of a string with escapes begins after the last of them.
            equals = _EQUALS.match(self.text, after)
            at = self.origin(slice(equals.end(), span.stop), path) if equals else at
        if isinstance(inner, dict):
            table = cast(dict[Any, Any], inner)
            value: Any = {
                key.inner(): self.node(child, self.origin(key.span(), keys), keys, key.span().stop)
                for key, child in table.items()
                for keys in [(*path, key.inner())]
            }
        elif isinstance(inner, list):
            value = [
                self.node(child, self.element(child, at, (*path, index), len(children)), (*path, index))
                for children in [cast(list[Any], inner)]
                for index, child in enumerate(children)
            ]
        else:
            value = inner
        return Node(value, at, key_at)

    def origin(self, span: slice, path: Path) -> Origin:
        line = bisect_right(self.line_starts, span.start)
        column = span.start - self.line_starts[line - 1] + 1
        end = self.line_starts[line] - 1 if line < len(self.line_starts) else len(self.text)
        return Origin(dotted(path), self.file, line, column, max(1, min(span.stop, end) - span.start))

    def element(self, spanned: Any, array_at: Origin, path: Path, count: int) -> Origin:
        """Where an array's element begins: at its own span, or at its `[[…]]` if these can be told apart."""
        if spanned.span().stop:
            return self.origin(spanned.span(), path)
        headers = self.element_headers.get(dotted(path[:-1]), [])
        if len(headers) == count:
            return self.origin(headers[int(path[-1])], path)
        first_keys = [key.span() for key in cast(dict[Any, Any], spanned.inner())]
        if not first_keys:
            return replace(array_at, key=dotted(path))
        return self.origin(min(first_keys, key=lambda span: span.start), path)
