"""Parameters: the named arrays of a network, side by side in one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Parameters"]

Array: TypeAlias = npt.NDArray[Any]


class Parameters:
    """Named arrays, zeros at first, that share one vector: an update is a few operations, not a few a layer.

    `flat` is the vector, `by_name` the views on it, `matrices` the view on its first part, which holds every
    array of more than one axis (what weight decay is for). Owned by the model thread.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: npt.DTypeLike) -> None:
        self.flat: Array = np.zeros(sum(map(_size, shapes.values())), dtype)
        self.by_name: dict[str, Array] = {}
        end = 0
        for name in sorted(shapes, key=lambda name: len(shapes[name]) == 1):  # matrices first, else as given
            begin, end = end, end + _size(shapes[name])
            self.by_name[name] = self.flat[begin:end].reshape(shapes[name])
        self.matrices: Array = self.flat[: sum(_size(shape) for shape in shapes.values() if len(shape) > 1)]

    def zeros_like(self) -> Parameters:
        """Parameters of the same names, shapes and dtype, all zero."""
        return Parameters({name: array.shape for name, array in self.by_name.items()}, self.flat.dtype)

    def differences(self, state: object, where: str) -> list[str]:
        """How `state` differs from a mapping that `assign` accepts, in words; empty if it does not."""
        if not isinstance(state, Mapping):
            return [f"{where} is a {type(state).__name__}, expected a mapping of arrays"]
        found: Mapping[object, object] = state  # pyright: ignore[reportUnknownVariableType]
        problems = [
            f"{where} has {name!r}, which this model does not have" for name in found if name not in self.by_name
        ]
        for name, own in self.by_name.items():
            if name not in found:
                problems.append(f"{where} has no {name!r} (expected {_describe(own)})")
            elif _describe(found[name]) != _describe(own):
                problems.append(f"{where}[{name!r}] is {_describe(found[name])}, expected {_describe(own)}")
        return problems

    def assign(self, state: Mapping[str, Array]) -> None:
        """Copy the arrays of `state` in. Call `differences` first."""
        for name, own in self.by_name.items():
            own[...] = state[name]


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        array: Array = value  # pyright: ignore[reportUnknownVariableType]
        return f"{array.dtype} of shape {array.shape}"
    return f"a {type(value).__name__}"
