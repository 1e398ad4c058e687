"""Aggregation: what several models say about the same batch, as one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, cast

import numpy as np

from asyncloop.errors import ModelError

__all__ = ["Aggregation", "aggregated", "is_lazy"]

Array = np.ndarray[Any, Any]
Aggregation = Literal["mean", "majority"]


def aggregated(name: str, values: Sequence[Any], owners: Sequence[str], how: Aggregation) -> Any:
    """The mean or the element-wise vote over one output of several models; `owners` says in messages who they are.

    Arrays of one shape give an array of that shape, scalars (arrays without axes too) a Python scalar, mappings a dict.
    If one is a callable, so is the result: it calls them, in their order. Tensors are brought to the host. The mean of
    integers is float64, that of floats keeps their dtype. ModelError names the first that differs, and the output.
    """
    if any(map(is_lazy, values)):
        return lambda: aggregated(name, [value() if is_lazy(value) else value for value in values], owners, how)
    if any(isinstance(value, Mapping) for value in values):
        return _of_mappings(name, values, owners, how)
    arrays = [_array(name, value, owner) for value, owner in zip(values, owners, strict=True)]
    for array, owner in zip(arrays, owners, strict=True):
        if array.shape != arrays[0].shape:
            _refuse(name, owner, f"has shape {array.shape}", owners[0], f"shape {arrays[0].shape}")
        if _sort(array) != _sort(arrays[0]):
            _refuse(name, owner, f"holds {_sort(array)}", owners[0], _sort(arrays[0]))
    try:
        result = np.stack(arrays).mean(axis=0) if how == "mean" else majority(np.stack(arrays))
    except (TypeError, ValueError) as error:
        remedy = 'aggregation = "majority" takes it' if how == "mean" else "leave it out"
        raise ModelError(
            f"output {name!r}, which holds {_sort(arrays[0])}, has no {how} ({error}); name the outputs to aggregate "
            f"in `outputs`, or {remedy}"
        ) from error
    return np.asarray(result).item() if not arrays[0].shape else result


def majority(votes: Array) -> Array:
    """The most frequent value along axis 0, of those that are equally frequent the smallest. Time: that of sorting."""
    votes = np.sort(votes, axis=0)
    winner = votes[0, ...].copy()
    in_a_row = np.ones(winner.shape, int)
    most = in_a_row.copy()
    for index in range(1, len(votes)):
        vote = votes[index, ...]
        in_a_row = np.where(vote == votes[index - 1, ...], in_a_row + 1, 1)
        np.copyto(winner, vote, where=in_a_row > most)
        most = np.maximum(in_a_row, most)
    return winner


def is_lazy(value: Any) -> bool:
    """Whether an output is a callable, to be called if somebody wants it."""
    return callable(value) and not hasattr(value, "ndim")


def _of_mappings(name: str, values: Sequence[Any], owners: Sequence[str], how: Aggregation) -> dict[str, Any]:
    for value, owner in zip(values, owners, strict=True):
        if not isinstance(value, Mapping) or not isinstance(values[0], Mapping):
            _refuse(name, owner, f"is a {_kind(value)}", owners[0], f"a {_kind(values[0])}")
        names, first = _names(cast("Mapping[str, Any]", value)), _names(cast("Mapping[str, Any]", values[0]))
        if names != first:
            _refuse(name, owner, f"has the parts {', '.join(names)}", owners[0], ", ".join(first))
    parts = cast("Sequence[Mapping[str, Any]]", values)
    return {key: aggregated(f"{name}/{key}", [each[key] for each in parts], owners, how) for key in parts[0]}


def _kind(value: Any) -> str:
    return cast("type[Any]", type(value)).__name__


def _names(value: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, value))


def _array(name: str, value: Any, owner: str) -> Array:
    try:
        return np.asarray(_on_host(value))
    except (TypeError, ValueError) as error:
        raise ModelError(f"output {name!r} of {owner} is no array ({error}), so it cannot be aggregated") from error


def _on_host(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and smaller ones, which numpy does not know and float32 holds
        return tensor.float().numpy()


def _sort(array: Array) -> str:
    if array.dtype.kind in "biufc":
        return "numbers"
    return {"U": "strings", "S": "bytes", "T": "strings", "M": "dates"}.get(array.dtype.kind, "objects")


def _refuse(name: str, owner: str, found: str, first: str, expected: str) -> NoReturn:
    raise ModelError(f"output {name!r} of {owner} {found}, that of {first} {expected}; they cannot be aggregated")
