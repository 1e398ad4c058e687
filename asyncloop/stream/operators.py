"""What a Stream is made of: nodes that say how to make their elements from the nodes before them.

Every node is one async generator of (element, cursor) pairs. A chain in which nothing needs the event loop never
suspends, so a thread can walk the very same generators (`walked`); there is no second implementation. A source that is
`Plain` is a plain generator to begin with. A cursor is the position right after an element; `elements(at, cursor)` goes
on from there.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from asyncloop.batch import Cursor, Portion
from asyncloop.errors import DataError
from asyncloop.stream.collate import stack
from asyncloop.stream.order import Pass, Share, keyed_permutation
from asyncloop.stream.sharing import ELSEWHERE, portion_of, shared_call

__all__ = [
    "Batched",
    "Elements",
    "Item",
    "MapInline",
    "Node",
    "Over",
    "Plain",
    "RangeSource",
    "Repeated",
    "SharedOut",
    "Shuffled",
    "Taken",
    "names_parameter",
    "shared_out",
    "walked",
]

Item: TypeAlias = tuple[Any, Cursor]
Elements: TypeAlias = AsyncGenerator[Item, None]

_CHUNK = 4096


class Node(Protocol):
    """One operator with everything before it. Immutable; opening it starts from `cursor` (None: the beginning)."""

    @property
    def needs_loop(self) -> bool:
        """Whether some part waits on the event loop, so that only a task can walk it."""
        ...

    @property
    def opaque(self) -> bool:
        """Whether it holds an iterator of the user's, which must stay on one thread for a pass."""
        ...

    def elements(self, at: Pass, cursor: Cursor) -> Elements: ...


class Plain:
    """A source that is a plain generator: a thread walks it as it is, a chain on the loop sees it as any other node."""

    __slots__ = ()

    def walk(self, at: Pass, cursor: Cursor) -> Generator[Item, None, None]:
        raise NotImplementedError

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        for item in self.walk(at, cursor):
            yield item


def walked(node: Node, at: Pass, cursor: Cursor) -> Generator[Item, None, None]:
    """The elements of a stream that never suspends, for a thread to iterate over and close; no event loop is needed."""
    return node.walk(at, cursor) if isinstance(node, Plain) else _stepped(node.elements(at, cursor))


def _stepped(elements: Elements) -> Generator[Item, None, None]:
    step = elements.__anext__
    try:
        while True:
            try:
                step().send(None)
            except StopIteration as given:
                item = given.value
            except StopAsyncIteration:
                return
            else:
                raise RuntimeError("a stream that was said not to need the event loop waits for it")
            yield item
    finally:
        try:
            elements.aclose().send(None)
        except StopIteration:
            pass


@dataclass(frozen=True, slots=True)
class RangeSource(Plain):
    """0, 1, …, n - 1, or a permutation of it keyed by (seed, pass). Cursor: how many were given."""

    n: int
    shuffle: bool
    seed: int | None
    needs_loop = False
    opaque = False

    def block(self, at: Pass, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Elements `start` … `stop` as an int64 array (stop - start,), whatever `n` is."""
        indices = np.arange(start, min(stop, self.n), dtype=np.int64)
        return keyed_permutation(indices, self.n, at.key("range", seed=self.seed)) if self.shuffle else indices

    def walk(self, at: Pass, cursor: Cursor) -> Generator[Item, None, None]:
        done = cast(int, cursor or 0)
        while done < self.n:
            for value in self.block(at, done, done + _CHUNK).tolist():
                done += 1
                yield value, done


@dataclass(frozen=True, slots=True)
class Over:
    """What every node on top of another shares: it needs what that one needs."""

    upstream: Node

    @property
    def needs_loop(self) -> bool:
        return self.upstream.needs_loop

    @property
    def opaque(self) -> bool:
        return self.upstream.opaque


@dataclass(frozen=True, slots=True)
class MapInline(Over):
    """`fn` of each element, called right where the stream is walked. Cursor: [elements given, cursor before]."""

    fn: Callable[..., Any]

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        n, before = cast("list[Any]", cursor or [0, None])
        call = calling(self.fn, at)
        async with aclosing(self.upstream.elements(at, before)) as upstream:
            async for value, position in upstream:
                result = call(value, n)
                n += 1
                yield result, [n, position]


def calling(fn: Callable[..., Any], at: Pass) -> Callable[[Any, int], Any]:
    """`fn` as a function of (element, index in the pass), with its own random generator if it names `rng`."""
    if names_parameter(fn, "rng"):
        key = at.key("map")
        return shared_call(lambda value, index: fn(value, rng=at.generator(key, index)), at)
    return shared_call(lambda value, index: fn(value), at)


def names_parameter(fn: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False


@dataclass(frozen=True, slots=True)
class Batched(Over):
    """`n` elements collated into one. Cursor: the one before, after the last element of the batch."""

    n: int
    drop_last: bool
    collate: Callable[[list[Any]], Any] | None
    is_shared: bool = False
    """Whether it is here that several processes share a batch out."""

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        share = at.share if self.is_shared else None
        if isinstance(self.upstream, RangeSource) and self.collate is None:
            source = self.upstream  # indices come as arrays already: no list of Python integers in between
            stop = source.n - source.n % self.n if self.drop_last else source.n
            per_chunk = max(_CHUNK // self.n, 1) * self.n
            for start in range(cast(int, cursor or 0), stop, per_chunk):
                chunk = source.block(at, start, min(start + per_chunk, stop))
                for offset in range(0, len(chunk), self.n):
                    indices = chunk[offset : offset + self.n]
                    value = indices if share is None else portion_of(indices, share)
                    yield value, start + offset + len(indices)
            return
        rows: list[Any] = []
        position = cursor
        before = at.for_elements(None if share is None else lambda index: share.of(index % self.n))
        async with aclosing(self.upstream.elements(before, cursor)) as upstream:
            async for value, position in upstream:
                rows.append(value)
                if len(rows) == self.n:
                    yield await self._collated(rows, share, before), position
                    rows = []
        if rows and not self.drop_last:
            yield await self._collated(rows, share, before), position

    async def _collated(self, rows: list[Any], share: Share | None, at: Pass) -> Any:
        """The batch of these rows, or this process's portion of it."""
        collate = self.collate or stack
        if share is None:
            return collate(rows)
        own = rows[share.rank :: share.size]
        return Portion(collate(own or [await self._stand_in(at, share)]), len(own), len(rows))

    async def _stand_in(self, at: Pass, share: Share) -> Any:
        """An element of this process's, for a last batch that has none for it; it takes part, and counts for nothing."""
        async with aclosing(self.upstream.elements(at.inside(0).for_elements(at.wanted), None)) as again:
            async for value, _ in again:
                if value is not ELSEWHERE:
                    return value
        raise DataError(
            f"stream {at.stream!r} has fewer elements than the {share.size} processes that share it; use fewer processes"
        )


@dataclass(frozen=True, slots=True)
class Shuffled(Over):
    """A keyed permutation inside consecutive blocks. Cursor: [block, cursor before the block, given of the block]."""

    block: int
    seed: int | None

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        number, before, given = cast("list[Any]", cursor or [0, None, 0])
        block: list[Any] = []
        async with aclosing(self.upstream.elements(at.for_elements(None), before)) as upstream:
            over = False
            while not over:
                end, over = before, True
                async for value, position in upstream:
                    block.append(value)
                    end = position
                    if len(block) == self.block:
                        over = False
                        break
                order = keyed_permutation(
                    np.arange(len(block), dtype=np.int64),
                    len(block),
                    at.key("shuffle", number, seed=self.seed),
                )
                for i in order[given:].tolist():
                    given += 1
                    yield block[i], [number, before, given]
                number, before, given, block = number + 1, end, 0, []


@dataclass(frozen=True, slots=True)
class Taken(Over):
    """The first `n` elements. Cursor: [elements given, cursor before]."""

    n: int

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        given, before = cast("list[Any]", cursor or [0, None])
        if given >= self.n:
            return
        async with aclosing(self.upstream.elements(at, before)) as upstream:
            async for value, position in upstream:
                given += 1
                yield value, [given, position]
                if given >= self.n:
                    return


@dataclass(frozen=True, slots=True)
class Repeated(Over):
    """`n` rounds of the same stream, each shuffled anew. Cursor: [round, cursor inside it]."""

    n: int

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        first, before = cast("list[Any]", cursor or [0, None])
        for number in range(first, self.n):
            inner = at.inside(number)
            try:
                async with aclosing(self.upstream.elements(inner, before)) as upstream:
                    async for value, position in upstream:
                        yield value, [number, position]
            finally:  # a round's workers end with it
                for close in reversed(inner.closers):
                    await close()
            before = None


@dataclass(frozen=True, slots=True)
class SharedOut(Over):
    """Whole batches of a source that knows nothing of other processes; of each, this one's portion. Cursor: the one before."""

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        assert at.share is not None
        async with aclosing(self.upstream.elements(at, cursor)) as upstream:
            async for value, position in upstream:
                is_batch = isinstance(value, Mapping)  # what is none is told of where it would be run
                yield portion_of(value, at.share) if is_batch else value, position


def shared_out(node: Node) -> Node:
    """The stream with each batch shared out among processes: where examples become batches, else at its end."""
    return _shared_where_batched(node) or SharedOut(node)


def _shared_where_batched(node: Node) -> Node | None:
    if isinstance(node, Batched):
        return replace(node, is_shared=True)
    upstream = _shared_where_batched(node.upstream) if isinstance(node, Over) else None
    return None if upstream is None else replace(cast(Any, node), upstream=upstream)
