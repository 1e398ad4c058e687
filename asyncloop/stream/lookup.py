"""Finding a stream by name: dataset method `<name>_stream()` for stream `<name>`."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from asyncloop.errors import ConfigError
from asyncloop.stream.description import Stream
from asyncloop.stream.operators import Node
from asyncloop.stream.order import Pass
from asyncloop.stream.sources import called, source_node
from asyncloop.threads import off_loop

__all__ = ["check_streams", "dataset_streams", "open_node"]

_SUFFIX = "_stream"


def dataset_streams(dataset: object) -> list[str]:
    """The names of the streams a dataset has."""
    names = (name for name in dir(dataset) if name.endswith(_SUFFIX) and not name.startswith("_"))
    return [name.removesuffix(_SUFFIX) for name in names if callable(getattr(dataset, name, None))]


def check_streams(dataset: object, names: list[str]) -> None:
    """ConfigError for each name without its method: says which method to write, and what there is."""
    there = dataset_streams(dataset)
    problems: list[str] = []
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            has = ", ".join(repr(known) for known in there) or "none"
            problems.append(
                f"dataset {type(dataset).__name__} has no stream {name!r}: write a method "
                f"`def {name}{_SUFFIX}(self)` that yields batches or returns a Stream (its streams: {has}){hint}"
            )
    if problems:
        raise ConfigError(*problems)


async def open_node(dataset: object, name: str, given: object | None, at: Pass) -> Node:
    """The node of a stream for one pass: of the source `given`, or of the dataset's method, called off the loop.

    A generator function is not called here but where it will be iterated. Raises what the method raises.
    """
    source: Any = given
    if source is None:
        check_streams(dataset, [name])
        source = getattr(dataset, name + _SUFFIX)
        if not inspect.isgeneratorfunction(source) and not inspect.isasyncgenfunction(source):
            if inspect.iscoroutinefunction(source):
                source = await called(source, at)
            else:
                source = await off_loop(f"opening {name!r}", called, source, at)
    if isinstance(source, Stream):
        return source.node
    try:
        return source_node(source, None, "replay")
    except ValueError as error:
        error.add_note(f"stream {name!r}: {name}{_SUFFIX}() gave {source!r:.60}")
        raise
