"""Batches and cursors, and what must hold for a batch before a model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from asyncloop.errors import DataError

__all__ = ["Batch", "Cursor", "Portion", "RunBatch", "as_batch", "n_examples_of", "nbytes_of", "run_batch"]

Batch: TypeAlias = Mapping[str, Any]
"""Source name → array-like whose axis 0 is the example axis. Nobody changes a batch after it was produced."""

Cursor: TypeAlias = "bool | int | float | str | list[Cursor] | dict[str, Cursor] | None"
"""The position of a stream right after a batch: a small JSON value that only the stream understands."""


class Portion:
    """One process's portion of a batch (or of the indices of one) that several share out among them.

    `n_own` of its examples count: none if a batch had too few for all, and this one has an example just to take part.
    """

    __slots__ = ("n_all", "n_own", "value")

    def __init__(self, value: Any, n_own: int, n_all: int) -> None:
        self.value, self.n_own, self.n_all = value, n_own, n_all

    def of(self, value: Any) -> Portion:
        """The same portion, after something was done to it."""
        return Portion(value, self.n_own, self.n_all)


class RunBatch(dict[str, Any]):
    """A batch on its way to the model, with what travels with it.

    `n_own` and `n_all`: how many of its examples count here, and in all processes together (None: it is whole).
    """

    __slots__ = ("_staged", "n_all", "n_own")

    def __init__(self, batch: Batch, staged: Any = None, n_own: int | None = None, n_all: int | None = None) -> None:
        super().__init__(batch)
        self._staged, self.n_own, self.n_all = staged, n_own, n_all

    def take(self) -> Any:
        """What the model has made of it ahead of the step, once; then None, so that who keeps the batch keeps not that."""
        staged, self._staged = self._staged, None
        return staged

    def with_sources(self, sources: Batch) -> RunBatch:
        """The same portion with other sources."""
        return RunBatch(sources, None, self.n_own, self.n_all)


def run_batch(value: Any) -> Any:
    """What a stream gave, as the model gets it."""
    if not isinstance(value, Portion):
        return value
    batch = value.value
    return RunBatch(cast(Batch, batch), None, value.n_own, value.n_all) if isinstance(batch, Mapping) else batch


def as_batch(value: object, stream: str, index: int) -> Batch:
    """`value` itself if it is a mapping with string keys, else a DataError that says what it is instead."""
    if isinstance(
        value, dict | Mapping
    ):  # dict first: the common kind, and the check of an ABC costs five times as much
        return cast(Batch, value)
    what = "None" if value is None else f"{type(value).__name__!r}"
    hint = ""
    if isinstance(value, tuple | list):
        n = len(value)  # pyright: ignore[reportUnknownArgumentType]
        names = ", ".join(f'"name{i}"' for i in range(n))
        hint = f"; name the {n} parts: Stream.of(source, names=({names}))"
    elif value is None:
        hint = "; to end a stream, let its iterator end (return) instead of yielding None"
    raise DataError(
        f"stream {stream!r}, batch {index}: a batch is a mapping of source names to arrays, not {what}{hint}"
    )


def n_examples_of(batch: Batch, stream: str, index: int) -> int:
    """The number of examples of a batch, 0 for an empty one; DataError if its sources disagree or have no length."""
    n = -1
    try:
        for source in batch.values():
            n_here = len(source) if source.__class__ is np.ndarray else _length(source)
            if n_here != n:
                if n >= 0:
                    raise _unequal(batch, stream, index)
                n = n_here
    except TypeError:
        name, source = next((name, source) for name, source in batch.items() if not _has_length(source))
        raise DataError(
            f"stream {stream!r}, batch {index}: source {name!r} is {_describe(source)} and has no example axis; "
            "every source needs one entry an example (wrap a constant in an array, or keep it in the model)"
        ) from None
    return max(n, 0)


def _unequal(batch: Batch, stream: str, index: int) -> DataError:
    found = ", ".join(f"{name} {len(source)}" for name, source in batch.items() if _has_length(source))
    return DataError(f"stream {stream!r}, batch {index}: the sources have unequal numbers of examples: {found}")


def nbytes_of(*parts: Mapping[str, Any]) -> int:
    """The bytes of the arrays in these mappings, as far as they say."""
    return sum(_nbytes(value) for values in parts for value in values.values())


def _nbytes(value: Any) -> int:
    try:
        return getattr(value, "nbytes", 0)
    except Exception:  # a sparse tensor raises RuntimeError
        return 0


def _length(source: Any) -> int:
    """`len` of a source; a tensor's own takes ten times as long as its shape."""
    shape: Any = getattr(source, "shape", None)
    if shape and isinstance(shape, tuple):
        return shape[0]  # pyright: ignore[reportUnknownVariableType]  # a cast is a call, and this is asked of each source
    if isinstance(source, Mapping):  # nested: as long as what is in it
        return _length(next(iter(cast("Mapping[str, Any]", source).values()), ()))
    return len(source)


def _has_length(source: Any) -> bool:
    try:
        _length(source)
    except TypeError:
        return False
    return True


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {shape}" if shape is not None else f" ({value!r:.40})")
