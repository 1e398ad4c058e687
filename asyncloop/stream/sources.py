"""Sources of the user's: sequences, iterables, generators, async ones, and functions that make them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np

from asyncloop.batch import Cursor
from asyncloop.errors import DataError
from asyncloop.stream.buffer import EndOfStream, Interrupted, StreamBuffer
from asyncloop.stream.operators import Elements, Item, Plain, names_parameter
from asyncloop.stream.order import Pass
from asyncloop.threads import OwnThread
from asyncloop.trees import DEEPEST, is_long

__all__ = ["AsyncSource", "FactorySource", "IndexedSource", "Resume", "SequenceSource", "SyncSource", "source_node"]

Resume = Literal["replay", "continue", "error"]
Naming = tuple[str, ...] | None

_READ_AHEAD = 8


@runtime_checkable
class Stateful(Protocol):
    """An iterator that knows its position."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


@runtime_checkable
class Indexed(Protocol):
    """What PyTorch calls a map-style dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def source_node(
    source: object, names: Naming, resume: Resume
) -> SequenceSource | IndexedSource | SyncSource | AsyncSource | FactorySource:
    """The node for whatever the user has; DataError if it can be neither iterated nor called."""
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return SequenceSource(cast("Sequence[Any]", source), names)
    if inspect.isasyncgenfunction(source) or isinstance(source, AsyncIterable):
        return AsyncSource(cast(Any, source), names, resume)
    if inspect.isgeneratorfunction(source) or (
        isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping)
    ):
        return SyncSource(cast(Any, source), names, resume)
    if isinstance(source, Indexed) and not isinstance(source, str | bytes | Mapping | type):
        return IndexedSource(source, names)
    if callable(source):  # pyright: ignore[reportUnknownArgumentType]
        return FactorySource(cast("Callable[..., Any]", source), names, resume)
    raise DataError(
        f"a stream needs an iterable, an async iterable, an object with len() and an item for each index, a generator "
        f"function or a function that returns one, not {type(cast(object, source)).__name__!r}"
    )


def called(source: Any, at: Pass) -> Any:
    """`source` itself, or what it returns if it is a function; `epoch` gets the number of the pass."""
    if not callable(source) or isinstance(source, Iterable | AsyncIterable):
        return cast(Any, source)
    return source(epoch=at.number) if names_parameter(source, "epoch") else source()


def named(value: Any, names: Naming) -> Any:
    """A tuple batch as a mapping, if the stream was given names for its parts."""
    if names is None:
        return value
    if not isinstance(value, tuple | list) or len(cast("Sequence[Any]", value)) != len(names):
        found = (
            f"{len(cast('Sequence[Any]', value))} parts" if isinstance(value, tuple | list) else type(value).__name__
        )
        raise DataError(f"names={names} needs tuples of {len(names)} parts, but the source gave {found}")
    return dict(zip(names, cast("Sequence[Any]", value), strict=True))


@dataclass(frozen=True, slots=True)
class SequenceSource(Plain):
    """A list or tuple in memory. Cursor: how many were given."""

    sequence: Sequence[Any]
    names: Naming
    needs_loop = False
    opaque = False

    def walk(self, at: Pass, cursor: Cursor) -> Generator[Item, None, None]:
        sequence, names = self.sequence, self.names
        for i in range(cast(int, cursor or 0), len(sequence)):
            yield sequence[i] if names is None else named(sequence[i], names), i + 1


@dataclass(frozen=True, slots=True)
class IndexedSource:
    """An object with `__len__` and `__getitem__`, such as a map-style Dataset. Cursor: how many were given.

    What it takes to make an element is not known, so, other than a sequence in memory, it may be given to a thread.
    """

    items: Indexed
    names: Naming
    needs_loop = False
    opaque = False

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        items, names = self.items, self.names
        for i in range(cast(int, cursor or 0), len(items)):
            yield named(items[i], names), i + 1


@dataclass(frozen=True, slots=True)
class SyncSource(Plain):
    """An iterable or generator function. Cursor: how many were given, or the iterator's own state if it offers one."""

    source: Iterable[Any] | Callable[..., Iterable[Any]]
    names: Naming
    resume: Resume
    needs_loop = False
    opaque = True

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        if at.tasks is None:  # a thread walks us: the iterator lives and dies on it
            for item in self.walk(at, cursor):
                yield item
            return
        buffer: StreamBuffer[Item] = StreamBuffer(_READ_AHEAD)
        thread = OwnThread(f"asyncloop source of {at.stream!r}", grace_s=1.0)
        at.closers.append(thread.aclose)
        thread.post(lambda: self._read_ahead(buffer, at, cursor))
        try:
            while True:
                try:
                    item = await buffer.aget()
                except EndOfStream:
                    return
                yield item
        finally:
            buffer.abandon()

    def walk(self, at: Pass, cursor: Cursor) -> Generator[Item, None, None]:
        iterator: Iterator[Any] = iter(called(self.source, at))
        names = self.names
        try:
            if isinstance(iterator, Stateful):
                stateful = cast(Any, iterator)
                if cursor is not None:
                    stateful.load_state_dict(_own_cursor(cursor, at))
                for value in stateful:
                    yield named(value, names), _own_cursor(stateful.state_dict(), at)
            else:
                n = cast(int, cursor or 0)
                skip = _to_skip(n, self.resume, at)
                for value in iterator:
                    if skip:
                        skip -= 1
                        continue
                    n += 1
                    yield value if names is None else named(value, names), n
        finally:
            if inspect.isgenerator(iterator):
                cast("Generator[Any, None, None]", iterator).close()

    def _read_ahead(self, buffer: StreamBuffer[Item], at: Pass, cursor: Cursor) -> None:
        error = None
        walk = self.walk(at, cursor)
        try:
            while True:
                if not buffer.has_room():
                    buffer.wait_room_in_thread()
                try:
                    item = next(walk)
                except StopIteration:
                    break
                buffer.put(item)
        except Interrupted:
            pass
        except BaseException as raised:
            error = raised
        finally:
            walk.close()
            buffer.close(error)


@dataclass(frozen=True, slots=True)
class AsyncSource:
    """An async iterable or async generator function: opened, iterated and closed in one task of the event loop."""

    source: AsyncIterable[Any] | Callable[..., AsyncIterable[Any]]
    names: Naming
    resume: Resume
    needs_loop = True
    opaque = True

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        iterator = aiter(cast("AsyncIterable[Any]", called(self.source, at)))
        names = self.names
        try:
            if isinstance(iterator, Stateful):
                if cursor is not None:
                    iterator.load_state_dict(_own_cursor(cursor, at))
                async for value in iterator:
                    yield named(value, names), _own_cursor(iterator.state_dict(), at)
            else:
                n = cast(int, cursor or 0)
                skip = _to_skip(n, self.resume, at)
                async for value in iterator:
                    if skip:
                        skip -= 1
                        continue
                    n += 1
                    yield value if names is None else named(value, names), n
        finally:
            await _close(iterator)


@dataclass(frozen=True, slots=True)
class FactorySource:
    """A function that returns some iterable; which kind is known only when it was called."""

    factory: Callable[..., Any]
    names: Naming
    resume: Resume
    needs_loop = True
    opaque = True

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        if inspect.iscoroutinefunction(self.factory):
            made = called(self.factory, at)
        else:  # it may open files: not on the event loop
            async with OwnThread(f"asyncloop opening {at.stream!r}", grace_s=1.0) as thread:
                made = await thread.call(called, self.factory, at, abandon=True)
        if inspect.isawaitable(made):
            made = await made
        if callable(made) and not isinstance(made, Iterable | AsyncIterable):
            raise DataError(f"stream {at.stream!r}: a factory returned another function: {made!r}")
        node = source_node(cast(object, made), self.names, self.resume)
        async with aclosing(node.elements(at, cursor)) as elements:
            async for element in elements:
                yield element


def _to_skip(n: int, resume: Resume, at: Pass) -> int:
    if n and resume == "error":
        raise DataError(
            f"stream {at.stream!r} stands at batch {n} and its source cannot go back there (resume='error'); "
            "give the iterator state_dict/load_state_dict, or allow resume='replay'"
        )
    return n if resume == "replay" else 0


def _own_cursor(state: Any, at: Pass, path: str = "") -> Cursor:
    """A copy of an iterator's own state, which it may go on changing; DataError for what is no JSON value."""
    if isinstance(state, np.generic):
        state = cast("np.generic[Any]", state).item()
    if state is None or isinstance(state, bool | float | str):
        return state
    if isinstance(state, int) and not is_long(state):
        return state
    if isinstance(state, list | tuple) and path.count("/") < DEEPEST:
        return [_own_cursor(part, at, f"{path}/{i}") for i, part in enumerate(cast("Sequence[Any]", state))]
    if isinstance(state, Mapping) and path.count("/") < DEEPEST:
        items = cast("Mapping[Any, Any]", state).items()
        return {_string(key, at, path): _own_cursor(part, at, f"{path}/{key}") for key, part in items}
    raise _no_cursor(at, f"a {type(cast(object, state)).__name__}", path)


def _string(key: object, at: Pass, path: str) -> str:
    if not isinstance(key, str):
        raise _no_cursor(at, f"a mapping with a {type(key).__name__} as a key", path)
    return key


def _no_cursor(at: Pass, what: str, path: str) -> DataError:
    where = f" at {path[1:]!r:.80}" if path else ""
    return DataError(
        f"stream {at.stream!r}: the state_dict of its iterator holds {what}{where}, which no checkpoint can keep as a "
        "cursor; a cursor is a JSON value: mappings with string keys, lists, numbers, strings and None"
    )


async def _close(iterator: AsyncIterator[Any]) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
