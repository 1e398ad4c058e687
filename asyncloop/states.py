"""States: what models and hooks keep, as a checkpoint holds it. Copied where it is taken, and looked at for NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from asyncloop.errors import AsyncloopError, CheckpointError, NonFiniteError
from asyncloop.shards import Shard, shard_of
from asyncloop.trees import DEEPEST, RawTensor, key_name, plain_key, unsavable

__all__ = ["bytes_of", "copy_of", "copy_state", "nonfinite_leaf", "refuse_nonfinite"]


def bytes_of(state: Any) -> int:
    """How much of a disk a state takes, without copying it. Thread: the state's owner."""
    if isinstance(state, Mapping):
        return sum(map(bytes_of, cast("Mapping[Any, Any]", state).values()))
    if isinstance(state, list | tuple):
        return sum(map(bytes_of, cast("Sequence[Any]", state)))
    return int(getattr(state, "nbytes", 16))


def copy_state(state: Any, path: tuple[str, ...] = ()) -> Any:
    """A deep copy of a model's or hook's state that later updates in place cannot reach. Thread: the state's owner.

    CheckpointError names the path of what no checkpoint can hold.
    """
    if len(path) > DEEPEST:
        raise CheckpointError(f"a state_dict is nested deeper than {DEEPEST} levels ({_path(path)!r:.60} …)")
    if isinstance(state, Mapping):
        items = [(plain_key(key, _path(path)), value) for key, value in cast("Mapping[Any, Any]", state).items()]
        return {key: copy_state(value, (*path, key_name(key))) for key, value in items}
    if isinstance(state, list | tuple):
        return [copy_state(value, (*path, str(i))) for i, value in enumerate(cast("Sequence[Any]", state))]
    if hasattr(state, "__create_chunk_list__"):
        return shard_of(state.detach(), _copy_of_tensor)
    if hasattr(state, "detach"):
        return _copy_of_tensor(state.detach())
    if isinstance(state, np.ndarray) and not state.dtype.hasobject:
        return np.array(cast("np.ndarray[Any, Any]", state), copy=True, order="C")
    if isinstance(state, np.generic) and not state.dtype.hasobject:
        scalar = cast("np.generic[Any]", state)
        return scalar.item() if scalar.dtype.kind in "biufU" else scalar
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise unsavable(cast(object, state), _path(path))


def copy_of(state: Any, whose: str, kind: type[AsyncloopError]) -> Any:
    """`copy_state` of what an object of the user's has given; an error of that `kind` names it if that cannot be saved."""
    try:
        return copy_state(state)
    except CheckpointError as error:
        raise kind(f"{whose}: {error}") from None


def _path(path: Sequence[str]) -> str:
    return "/".join(path)


def _copy_of_tensor(tensor: Any) -> np.ndarray[Any, Any] | RawTensor:
    try:
        array: np.ndarray[Any, Any] = tensor.cpu().numpy()
    except TypeError:  # bfloat16 and the like
        return RawTensor.of(tensor)
    return np.array(array, copy=True, order="C") if getattr(tensor, "is_cpu", True) else np.ascontiguousarray(array)


def nonfinite_leaf(state: Any, path: str = "") -> str | None:
    """The path of the first array with a NaN or infinity, or number that is NaN; None if there is none.

    A number may be infinite: a bound among the settings, a best value before there was one.
    """
    if isinstance(state, Mapping | list | tuple):
        parts = cast("Mapping[Any, Any] | Sequence[Any]", state)
        for key, value in parts.items() if isinstance(parts, Mapping) else enumerate(parts):
            found = nonfinite_leaf(value, f"{path}/{key_name(key)}" if path else key_name(key))
            if found:
                return found
    elif isinstance(state, float):
        return path if math.isnan(state) else None
    elif isinstance(state, Shard):
        return nonfinite_leaf(state.array, path)
    elif isinstance(state, RawTensor):
        if not state.tensor().float().isfinite().all():
            return path
    elif isinstance(state, np.ndarray):
        array = cast("np.ndarray[Any, Any]", state)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            return path
    return None


def refuse_nonfinite(step: int, model: Any) -> None:
    """NonFiniteError naming the weight, before a checkpoint with it could be written."""
    leaf = nonfinite_leaf(model)
    if leaf is not None:
        raise NonFiniteError(
            f"the weight {leaf!r} is not finite after step {step}; no checkpoint was written (on_nonfinite='error')"
        )
