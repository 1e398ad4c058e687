"""Shards: arrays that several processes share, each with its part. Saved part by part, read in whatever parts are wanted.

The files are those of PyTorch's distributed checkpoints in the safetensors format (a file a process, the parts' offsets
in the header's metadata), so its readers read them, too. Written and read here without pickle, and byte by byte the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from asyncloop.trees import Array, RawTensor, numpy_of, safetensors, stored_dtype

__all__ = ["Shard", "ShardedArray", "read_shards", "shard_file", "shard_of", "shards_as_safetensors", "split"]

_OFFSETS = "DCP_SHARDING_INFO"
"""The key under which PyTorch's distributed checkpoints keep the offsets."""

_LONGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One process's part of an array of `shape`, a copy of it; `offsets` say where it begins."""

    array: Array | RawTensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


def shard_of(tensor: Any, copy: Any) -> Shard:
    """What this process has of a tensor that processes share (a DTensor), copied by `copy`."""
    chunk = tensor.__create_chunk_list__()[0]
    return Shard(copy(tensor.to_local()), tuple(chunk.offsets), tuple(tensor.shape))


def shard_file(part: str, rank: int, size: int) -> str:
    """The file of a process's shards of a part of a checkpoint."""
    return f"{part}.shard-{rank + 1:05}-of-{size:05}.safetensors"


def split(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Shard]]:
    """The arrays that are whole, and the shards."""
    shards = {name: each for name, each in arrays.items() if isinstance(each, Shard)}
    return {name: each for name, each in arrays.items() if name not in shards}, shards


def shards_as_safetensors(shards: Mapping[str, Shard]) -> list[Any]:
    """The file of one process's shards, in parts."""
    offsets = {name: {"saved_offsets": list(each.offsets)} for name, each in sorted(shards.items())}
    metadata = {_OFFSETS: json.dumps(offsets, separators=(",", ":"))}
    return safetensors({name: each.array for name, each in shards.items()}, metadata)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an array in a file."""

    file: Path
    begin: int
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


class ShardedArray:
    """An array in pieces on disk. `array[slices]` reads the part that is wanted, `array[...]` all of it."""

    def __init__(self, shape: Sequence[int], kind: str, pieces: Sequence[_Piece]) -> None:
        self.shape, self._kind, self._pieces = tuple(shape), kind, pieces

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[...], dtype)

    def __getitem__(self, where: Any) -> Any:
        """A part, given by a slice for each axis (or `...`): a numpy array, or a tensor of a dtype that numpy lacks."""
        slices = tuple(slice(0, n) for n in self.shape) if where is ... else cast("tuple[slice, ...]", where)
        begins = [part.start for part in slices]
        found: Array = np.empty([part.stop - part.start for part in slices], stored_dtype(self._kind))
        for piece in self._pieces:
            low = [max(b, o) for b, o in zip(begins, piece.offsets, strict=True)]
            high = [min(part.stop, o + n) for part, o, n in zip(slices, piece.offsets, piece.shape, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                inside = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, piece.offsets, strict=True))
                there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begins, strict=True))
                found[there] = self._mapped(piece)[inside]
        return numpy_of(found, self._kind)

    def _mapped(self, piece: _Piece) -> Array:
        return np.memmap(piece.file, stored_dtype(self._kind), "r", piece.begin, piece.shape)


def read_shards(files: Iterable[Path]) -> dict[str, tuple[str, list[_Piece]]]:
    """Array's name → its dtype as the format calls it, and its pieces. Reads headers only. ValueError if one is damaged."""
    found: dict[str, tuple[str, list[_Piece]]] = {}
    for file in files:
        header, begin = _header(file)
        offsets = json.loads(header.pop("__metadata__")[_OFFSETS])
        for name, entry in header.items():
            piece = _Piece(
                file, begin + entry["data_offsets"][0], tuple(offsets[name]["saved_offsets"]), tuple(entry["shape"])
            )
            found.setdefault(name, (entry["dtype"], []))[1].append(piece)
    return found


def _header(file: Path) -> tuple[dict[str, Any], int]:
    with open(file, "rb") as opened:
        n = int.from_bytes(opened.read(8), "little")
        if n > _LONGEST_HEADER:
            raise ValueError(f"{file} has a header of {n} bytes")
        return json.loads(opened.read(n)), 8 + n
