"""`asyncloop check --print-config`: every value a run would use, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from asyncloop.cli.terminal import print_json
from asyncloop.config import dumps, load_config
from asyncloop.config.document import parse, read
from asyncloop.config.override import read_overrides
from asyncloop.config.tree import Node, Path, dotted

__all__ = ["print_with_origins"]


def print_with_origins(source: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the resolved config as TOML that can be read again; comments tell the origins. Raises ConfigError."""
    config = load_config(source, set=overrides)
    text = dumps(config.resolved)
    values = parse(text, "resolved.toml")
    written = _as_written(source, overrides)
    origins = {path: _origin(written, path) for path, _ in _leaves(values)}
    if as_json:
        print_json({"config": config.resolved, "origins": {dotted(path): origin for path, origin in origins.items()}})
    else:
        lines = {node.at.line: origins[path] for path, node in _leaves(values)}
        print("\n".join(_annotated(text.splitlines(), lines)))
    return 0


def _as_written(source: str, overrides: Sequence[str]) -> Node:
    tree, _, _ = read(source)
    for override in read_overrides(overrides)[0]:
        tree = override.apply(tree, [])
    return tree


def _leaves(tree: Node) -> Iterator[tuple[Path, Node]]:
    """What stands on one line of the written config: scalars, and arrays that hold no tables."""
    for path, node in tree.walk():
        holds_tables = any(each.table is not None for each in node.items or ())
        within_array = any(isinstance(part, int) for part in path[-1:])
        if path and node.table is None and not holds_tables and not within_array:
            yield path, node


def _origin(written: Node, path: Path) -> str:
    node = written.descend(path)
    return "default" if node is None else str(node.at)


def _annotated(lines: Sequence[str], origins: Mapping[int | None, str]) -> Iterator[str]:
    width = min(60, max((len(lines[number - 1]) for number in origins if number), default=0))
    for number, line in enumerate(lines, 1):
        yield f"{line:<{width}}  # {origins[number]}" if number in origins else line
