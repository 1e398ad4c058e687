"""Trees on disk: nested mappings and lists of arrays and plain values as JSON and as arrays in the safetensors format.

What JSON cannot hold stands in it as a reference to an array. Read without running any code.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import safetensors as library

from asyncloop.errors import CheckpointError

__all__ = [
    "DEEPEST",
    "Array",
    "Buffer",
    "Partial",
    "RawTensor",
    "decoded",
    "encoded",
    "is_long",
    "key_name",
    "numpy_of",
    "plain_key",
    "read_safetensors",
    "safetensors",
    "stored_dtype",
    "unsavable",
]

_SAFETENSORS_NAMES = {
    **{
        f"{kind}{bits}": f"{letter}{bits}" for kind, letter in (("int", "I"), ("uint", "U")) for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bool": "BOOL",
}
"""What the format has a name for; other arrays are stored as bytes, with their dtype in the JSON."""

_TORCH_NAMES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""What it has a name for and numpy has not."""

_NUMPY_NAMES = {kind: name for name, kind in _SAFETENSORS_NAMES.items()}

DEEPEST = 100
"""Levels of a state or a cursor; what is nested deeper holds itself, or would meet Python's limit when it is read."""

_LONG_INT_BITS = 2048
"""Python reads and writes longer ints as decimals only up to a limit, which may be as low as 640 digits."""

Array = np.ndarray[Any, Any]
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """A tensor of PyTorch's whose dtype numpy does not have, as its bytes (uint8, flat)."""

    dtype: str
    shape: tuple[int, ...]
    raw: Array

    @classmethod
    def of(cls, tensor: Any) -> RawTensor:
        """A copy of a tensor, on whatever device."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(importlib.import_module("torch").uint8).numpy().copy()
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), raw)

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def tensor(self) -> Any:
        """As a tensor that shares these bytes. CheckpointError without PyTorch."""
        try:
            torch: Any = importlib.import_module("torch")
        except ModuleNotFoundError:
            raise CheckpointError(
                f"a {self.dtype} array can be read with PyTorch only, which is not installed"
            ) from None
        return torch.from_numpy(self.raw).view(getattr(torch, self.dtype)).reshape(self.shape)


class Partial(Protocol):
    """A leaf that is only a part of an array; whoever saves it knows how the parts come together."""

    @property
    def offsets(self) -> tuple[int, ...]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


Leaves = dict[str, Any]
"""Path → array, RawTensor or Partial."""


def encoded(tree: Any) -> tuple[Any, Leaves]:
    """A tree as JSON with references to its arrays, and the arrays by path."""
    arrays: Leaves = {}
    return _encoded(tree, "", arrays), arrays


def _encoded(value: Any, path: str, arrays: Leaves) -> Any:
    """No function inside `encoded`: one that calls itself would keep the arrays alive until the garbage is collected."""
    if isinstance(value, np.ndarray | np.generic | RawTensor) or hasattr(value, "offsets"):
        return _reference(cast(Any, value), path, arrays)
    if isinstance(value, Mapping):
        return {"items": [_item(*item, path, arrays) for item in cast("Mapping[Any, Any]", value).items()]}
    if isinstance(value, list | tuple):
        return [_encoded(part, f"{path}/{i}", arrays) for i, part in enumerate(cast("Sequence[Any]", value))]
    if is_long(value):
        return {"hex": hex(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise unsavable(value, path)


def _item(key: Any, part: Any, path: str, arrays: Leaves) -> list[Any]:
    key = plain_key(key, path)
    here = f"{path}/{key_name(key)}" if path else key_name(key)
    return [_encoded(key, path, arrays), _encoded(part, here, arrays)]


def key_name(key: Any) -> str:
    """A mapping's key in a path."""
    return hex(key) if is_long(key) else str(key)


def is_long(value: Any) -> bool:
    """Whether it is an int that JSON does not hold for any Python, whatever its limits."""
    return isinstance(value, int) and value.bit_length() > _LONG_INT_BITS


def plain_key(key: Any, path: str) -> bool | int | float | str | None:
    """A mapping's key as JSON holds it; CheckpointError for what it cannot. `path`: of the mapping."""
    if isinstance(key, np.generic):
        key = cast(Any, key.item())
    if key is None or isinstance(key, bool | int | float | str):
        return key
    raise CheckpointError(
        f"a state_dict holds a mapping with the key {key!r:.60}, a {type(key).__name__}{_at(path)}; "
        "only strings, numbers and None can be keys"
    )


def unsavable(value: object, path: str) -> CheckpointError:
    """What is wrong with a leaf that no checkpoint can hold."""
    return CheckpointError(
        f"a state_dict holds a {type(value).__name__} ({value!r:.60}){_at(path)}; "
        "only mappings, lists, arrays, numbers, strings and None can be saved"
    )


def _at(path: str) -> str:
    return f" at {path!r:.80}" if path else ""


def _reference(value: Any, path: str, arrays: Leaves) -> dict[str, Any]:
    path = path.encode(errors="backslashreplace").decode()  # half of a surrogate pair is no name in the format
    while path in arrays or path == "__metadata__":  # "a/b" beside "a" with a "b" in it
        path += "+"
    if hasattr(value, "offsets"):
        arrays[path] = value
        return {"array": path, "whole": list(value.shape)}
    if isinstance(value, RawTensor):
        arrays[path] = value if value.dtype in _TORCH_NAMES else value.raw
        return {"array": path, "torch": value.dtype, "shape": list(value.shape)}
    array: Array = np.asarray(value)
    entry: dict[str, Any] = {"array": path, **({"scalar": True} if isinstance(value, np.generic) else {})}
    if array.dtype.name not in _SAFETENSORS_NAMES or array.dtype.byteorder == ">":
        if array.dtype.hasobject:
            raise CheckpointError(f"a state_dict holds an array of Python objects{_at(path)}, which cannot be saved")
        entry |= {"dtype": array.dtype.str, "shape": list(array.shape)}
        array = np.frombuffer(array.tobytes(), dtype=np.uint8)
    arrays[path] = array
    return entry


def decoded(tree: Any, arrays: Mapping[str, Any], whole: Callable[[str, list[int]], Any] | None = None) -> Any:
    """The tree that `encoded` was given; what numpy has no dtype for as tensors. `arrays` are those read back.

    `whole(path, shape)` gives an array that was saved in parts.
    """
    if isinstance(tree, dict):
        entry = cast("dict[str, Any]", tree)
        if "hex" in entry:
            return int(entry["hex"], 16)
        if "array" not in entry:
            return {decoded(key, arrays): decoded(part, arrays, whole) for key, part in entry["items"]}
        if "whole" in entry and whole is not None:
            return whole(entry["array"], entry["whole"])
        array = arrays[entry["array"]]
        if "torch" in entry:
            return RawTensor(entry["torch"], tuple(entry["shape"]), array.copy()).tensor()
        if "dtype" in entry:
            raw: Any = np.frombuffer(array.tobytes(), dtype=np.dtype(entry["dtype"]))
            array = raw.reshape(entry["shape"]).copy()
        return array[()] if "scalar" in entry else array
    if isinstance(tree, list):
        return [decoded(part, arrays, whole) for part in cast("list[Any]", tree)]
    return tree


def safetensors(arrays: Mapping[str, Array | RawTensor], metadata: Mapping[str, str] | None = None) -> list[Buffer]:
    """A file of the safetensors format, in parts: the arrays themselves, for a copy of them would hold everybody up.

    Its library reads it; it lays arrays out by falling item size and name, so that each is aligned.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    buffers: list[Buffer] = []
    end = 0
    for name, array in sorted(arrays.items(), key=lambda item: (-_item_size(item[1]), item[0])):
        begin, end = end, end + array.nbytes
        is_raw = isinstance(array, RawTensor)
        kind = _TORCH_NAMES[array.dtype] if is_raw else _SAFETENSORS_NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
        buffers.append((array.raw if is_raw else np.ascontiguousarray(array).reshape(-1).view(np.uint8)).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *buffers]


def _item_size(array: Array | RawTensor) -> int:
    if not isinstance(array, RawTensor):
        return array.dtype.itemsize
    return 2 if array.dtype == "bfloat16" else 1


def stored_dtype(kind: str) -> str:
    """The dtype of numpy's in which arrays of a dtype of the format are at hand: its own, or numbers of the same size."""
    return _NUMPY_NAMES.get(kind) or ("uint16" if kind == "BF16" else "uint8")


def numpy_of(array: Array, kind: str) -> Any:
    """Such an array as what it is: itself, or a tensor of a dtype that numpy lacks."""
    if kind in _NUMPY_NAMES:
        return array
    name = next(name for name, own in _TORCH_NAMES.items() if own == kind)
    return RawTensor(name, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8)).tensor()


def read_safetensors(content: bytes) -> dict[str, Array]:
    """The arrays of a file; those of a dtype that numpy lacks as their bytes (uint8, flat). Raises SafetensorError."""
    found: dict[str, Array] = {}
    for name, entry in cast(Any, library).deserialize(content):
        raw: Array = np.frombuffer(entry["data"], dtype=np.uint8)
        kind = _NUMPY_NAMES.get(entry["dtype"])
        found[name] = raw if kind is None else raw.view(kind).reshape(entry["shape"])
    return found
