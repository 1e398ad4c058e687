"""Collating: many examples become one batch, by stacking nested structures leaf by leaf."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from asyncloop.errors import DataError

__all__ = ["stack"]


def stack(examples: Sequence[Any], path: str = "") -> Any:
    """Stack examples along a new axis 0: mappings and tuples leaf by leaf, arrays, tensors, numbers and strings.

    Raises DataError naming the leaf when keys or shapes differ. Thread: the producer's.
    """
    first = examples[0]
    if isinstance(first, Mapping):
        keys = list(cast("Mapping[str, Any]", first))
        for i, example in enumerate(examples):
            if not isinstance(example, Mapping) or set(cast("Mapping[str, Any]", example)) != set(keys):
                found = (
                    list(cast("Mapping[str, Any]", example)) if isinstance(example, Mapping) else type(example).__name__
                )
                raise DataError(f"cannot stack{_at(path)}: example 0 has the keys {keys}, example {i} has {found}")
        return {key: stack([example[key] for example in examples], f"{path}/{key}" if path else key) for key in keys}
    if isinstance(first, tuple):
        columns = list(zip(*examples, strict=True))
        return tuple(stack(column, f"{path}/{i}" if path else str(i)) for i, column in enumerate(columns))
    if type(first).__module__.partition(".")[0] == "torch":
        return sys.modules["torch"].stack(list(examples))
    try:
        return np.stack(examples) if isinstance(first, np.ndarray) else np.asarray(examples)
    except ValueError as error:
        shapes = sorted({np.shape(example) for example in examples})
        raise DataError(
            f"cannot stack{_at(path)}: the examples have different shapes {shapes}; pad them, or give batch(n, collate=…)"
        ) from error


def _at(path: str) -> str:
    return f" source {path!r}" if path else ""
