"""Order and randomness as pure functions of (seed, stream, pass, index): nothing is consumed, so nothing must be replayed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

__all__ = ["Pass", "Share", "keyed_permutation"]

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Share:
    """One process's share of each batch, of `size` that train together: every `size`-th example from `rank` on.

    So the order of the data does not depend on how many there are, and a short last batch is shared out evenly.
    """

    rank: int
    size: int

    def of(self, index: int) -> bool:
        """Whether the example at this index of a batch is this process's."""
        return index % self.size == self.rank


@dataclass(slots=True)
class Pass:
    """One opening of a stream: what its order depends on, and where its workers live.

    `tasks` is the task group of the pass when it is produced on the event loop, None when a thread walks it.
    """

    stream: str
    number: int
    seed: int
    path: tuple[int, ...] = ()
    tasks: TaskGroup | None = None
    share: Share | None = None
    """What this process is to have of each batch; None: all of it."""
    wanted: Callable[[int], bool] | None = None
    """Which elements of the stream at hand somebody will use, by index; None: all. Maps leave the others out."""
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # pyright: ignore[reportUnknownVariableType]

    def inside(self, number: int) -> Pass:
        """The pass of a part of the stream that is opened several times (a round of `repeat`), with its own closers."""
        return replace(self, path=(*self.path, number) if number else self.path, closers=[], wanted=None)

    def for_elements(self, wanted: Callable[[int], bool] | None) -> Pass:
        """The same pass for the stream before, of which only these elements are wanted (None: all)."""
        return self if wanted is None and self.wanted is None else replace(self, wanted=wanted)

    def key(self, what: str, *numbers: int, seed: int | None = None) -> int:
        """A 128-bit key for one use (`what`) inside this pass."""
        own = self.stream if seed is None else ""
        text = f"{what}|{self.seed if seed is None else seed}|{own}|{self.number}|{self.path}|{numbers}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")

    def generator(self, key: int, index: int) -> np.random.Generator:
        """The numpy Generator of element `index`: counter-based (Philox), so any element's is made without the others'."""
        return np.random.Generator(np.random.Philox(key=key, counter=index << 128))


def keyed_permutation(indices: npt.NDArray[np.int64], n: int, key: int) -> npt.NDArray[np.int64]:
    """Where a keyed permutation of range(n) sends each of `indices`; O(len(indices)) time and memory for any n.

    A balanced Feistel network over the next even number of bits, walked on until it falls back into range(n)
    (M. Luby, C. Rackoff, "How to construct pseudorandom permutations", 1988; cycle walking: J. Black, P. Rogaway, 2002).
    """
    half = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    digest = hashlib.blake2b(key.to_bytes(16, "little"), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype=np.uint64)
    out = indices.astype(np.uint64)
    pending: Any = slice(None)
    while True:
        walked = out[pending]
        left, right = walked >> shift, walked & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        out[pending] = (left << shift) | right
        pending = np.flatnonzero(out >= np.uint64(n))
        if pending.size == 0:
            return out.astype(np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (S. Vigna), wrapping as intended."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
