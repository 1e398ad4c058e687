"""Feed: one opened pass of a stream on its way to the model thread.

    LoopFeed      a producer task on the event loop fills a StreamBuffer      (async sources, maps with workers)
    ThreadFeed    a producer thread fills a StreamBuffer                      (plain iterators, overlapped)
    WalkedFeed    the model thread walks the stream by itself                 (plain iterators, nothing to overlap)
    ProbedFeed    walked, until that turns out to take long; then a thread    (operators, not a user's iterator)
    StagedFeed    another feed, whose batches a thread prepares for the model ahead of their steps

A feed starts reading only once it knows its cursor, so nothing is ever prefetched before it is restored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, Literal, Protocol, Self, cast

import anyio
from anyio.abc import TaskGroup

from asyncloop.batch import Batch, Cursor, RunBatch, nbytes_of, run_batch
from asyncloop.stats import Timings
from asyncloop.stream.buffer import BufferStatistics, EndOfStream, Interrupted, StreamBuffer
from asyncloop.stream.operators import Item, Node, Over, Plain, Shuffled, walked
from asyncloop.stream.order import Pass
from asyncloop.threads import Handful, LoopHandle, OwnThread, cut_off, stray_cancellation, was_cancelled

__all__ = ["AUTO_CAPACITY", "Feed", "LoopFeed", "ProbedFeed", "StagedFeed", "ThreadFeed", "WalkedFeed", "open_feed"]

logger = logging.getLogger(__name__)

AUTO_CAPACITY = 256
AUTO_BYTES = 64 * 2**20
WALK_BELOW_S = 100e-6
"""A plain iterator whose next() takes less than this is walked by the model thread: overlap could not pay for itself."""
_LOOP_TURN_S = 2e-3
_HANDFUL = 16
_PROBED = 16


class Feed(Protocol):
    """One pass of one stream. `next` and `give_back` belong to the model thread, the rest to the loop."""

    pass_number: int

    next: Callable[[], Item]
    """The next (batch, cursor). Raises StopIteration or EndOfStream, the producer's own error, or Interrupted."""

    def give_back(self, item: Item) -> None:
        """Put an item back to the front, after a look ahead."""
        ...

    def interrupt(self) -> None:
        """Make a `next` that waits return with Interrupted. Thread-safe. A walked feed cannot be interrupted."""
        ...

    def before_sleep(self, call: Callable[[], None]) -> None:
        """What the model thread does before it sleeps for want of a batch."""
        ...

    def widen(self) -> None:
        """Its turn has come: it may use the whole buffer from now on. On the loop."""
        ...

    def statistics(self) -> BufferStatistics | None: ...

    def cost_s(self, read: Timings) -> float | None:
        """Seconds it takes to make one item (None: not known yet). `read`: what the model thread waited for each."""
        ...

    async def aclose(self) -> None:
        """End the pass: producers are cancelled, what they made is dropped. Shielded; returns when nothing is left."""
        ...


class _LookAhead:
    """`give_back` for a feed: `next` is the source's own method, replaced by a slower one after the first look ahead."""

    def __init__(self, take: Callable[[], Item]) -> None:
        self.next: Callable[[], Item] = take
        self._take = take
        self._back: list[Item] = []

    def give_back(self, item: Item) -> None:
        self._back.append(item)
        self.next = self._next

    def _next(self) -> Item:
        return self._back.pop() if self._back else self._take()


class WalkedFeed(_LookAhead):
    """The model thread walks the stream itself: the cheapest way to a batch, no overlap, no other thread awake."""

    def __init__(self, node: Node, at: Pass, cursor: Cursor, close_on: Callable[[Callable[[], None]], Any]) -> None:
        self.pass_number = at.number
        self._items = walked(node, at, cursor)
        self._close_on = close_on
        super().__init__(self._items.__next__)

    def interrupt(self) -> None:
        pass

    def before_sleep(self, call: Callable[[], None]) -> None:
        pass

    def widen(self) -> None:
        pass

    def statistics(self) -> BufferStatistics | None:
        return None

    def cost_s(self, read: Timings) -> float | None:
        return read.mean if read.count else None

    def close(self) -> None:
        """On the thread that walks it."""
        with suppress(ValueError):  # a call that does not return is left behind with its thread
            self._items.close()

    async def aclose(self) -> None:
        await self._close_on(self.close)


class _BufferedFeed(_LookAhead):
    """What both buffered feeds share: the buffer, the task that runs the pass and its end, the size of a handful.

    Items are made by the handful. `on_exhausted` is called when the last one is made and half of the buffer is free
    again: a feed that then begins has just that half until it is widened, so that both together never hold more than
    one may.
    """

    def __init__(self, at: Pass, capacity: int | None, on_exhausted: Callable[[], None]) -> None:
        self.pass_number = at.number
        self._at = at
        self._on_exhausted = on_exhausted
        self._buffer: StreamBuffer[Item] = StreamBuffer(AUTO_CAPACITY if capacity is None else capacity, narrow=True)
        self._fit_bytes = capacity is None
        self._largest = 1
        self._handful = Handful(_HANDFUL)
        self._under_way = 0
        self._began_s = 0.0
        self._made = 0
        self._making_s = 0.0
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        super().__init__(self._buffer.get)

    def interrupt(self) -> None:
        self._buffer.interrupt()

    def before_sleep(self, call: Callable[[], None]) -> None:
        self._buffer.before_sleep = call

    def widen(self) -> None:
        self._buffer.widen()

    def statistics(self) -> BufferStatistics | None:
        return self._buffer.statistics()

    def cost_s(self, read: Timings) -> float | None:
        return self._making_s / self._made if self._made else None

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                try:
                    error = await self._produce()
                except anyio.get_cancelled_exc_class():
                    error = cut_off(f"the producer of stream {self._at.stream!r}")
                    raise
                finally:
                    self._buffer.close(error)
                    with anyio.CancelScope(shield=True):
                        for close in reversed(self._at.closers):
                            await close()
                if error is None and await self._buffer.half_emptied():
                    self._on_exhausted()
        finally:
            self._ended.set()

    async def _produce(self) -> BaseException | None:
        raise NotImplementedError

    def _begin_handful(self, now_s: float) -> int:
        """How many items may be made before anybody looks again; at least one (there was room a moment ago)."""
        self._began_s = now_s
        self._under_way = n = max(min(self._buffer.room(), self._handful.size), 1)
        return n

    def _end_handful(self, batch: Any) -> float:
        """The handful that was begun is made; `batch` is its last. Returns the clock."""
        now_s, n = time.perf_counter(), self._under_way
        spent_s = now_s - self._began_s
        self._made += n
        self._making_s += spent_s
        self._handful.took(n, spent_s)
        if self._fit_bytes:
            self._fit(batch)
        return now_s

    def _fit(self, batch: Any) -> None:
        """Keep what waits in the buffer under AUTO_BYTES, judged by the largest batch that ended a handful."""
        n_bytes = nbytes_of(cast("Mapping[str, Any]", batch)) if isinstance(batch, Mapping) else 0
        if n_bytes > self._largest:
            self._largest = n_bytes
            self._buffer.capacity = min(AUTO_CAPACITY, max(AUTO_BYTES // n_bytes, 2))

    async def aclose(self) -> None:
        self._scope.cancel()
        self._buffer.abandon()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()


class LoopFeed(_BufferedFeed):
    """A producer task on the event loop; its stream may have workers of its own in the task group of the pass."""

    def __init__(
        self, node: Node, at: Pass, cursor: Cursor, capacity: int | None, on_exhausted: Callable[[], None]
    ) -> None:
        super().__init__(at, capacity, on_exhausted)
        self._node, self._cursor = node, cursor
        self._turn_began_s = 0.0

    async def _produce(self) -> BaseException | None:
        error: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            self._at.tasks = tasks
            try:
                await self._fill()
            except Interrupted:
                pass
            except anyio.get_cancelled_exc_class() as raised:
                if await was_cancelled():
                    raise
                error = stray_cancellation(raised, f"stream {self._at.stream!r}")
            except (Exception, SystemExit) as raised:
                error = raised
            tasks.cancel_scope.cancel()
        return error

    async def _fill(self) -> None:
        put = self._buffer.put
        if not self._buffer.has_room():
            await self._buffer.wait_room()
        self._turn_began_s = time.perf_counter()
        left = self._begin_handful(self._turn_began_s)
        async with aclosing(self._node.elements(self._at, self._cursor)) as elements:
            async for item in elements:
                put(item)
                left -= 1
                if not left:
                    left = await self._next_handful(item[0])

    async def _next_handful(self, batch: Any) -> int:
        now_s = self._end_handful(batch)
        if not self._buffer.has_room():
            await self._buffer.wait_room()
            self._turn_began_s = now_s = time.perf_counter()
        elif now_s - self._turn_began_s > _LOOP_TURN_S:  # an async generator that never waits must not keep the loop
            await anyio.lowlevel.checkpoint()
            self._turn_began_s = now_s = time.perf_counter()
        return self._begin_handful(now_s)


class _ThreadedFeed(_BufferedFeed):
    """A thread of the pass's own makes the items, from the first call of `_open` on."""

    def _open(self) -> Generator[Item, None, None]:
        raise NotImplementedError

    async def _produce(self) -> BaseException | None:
        thread = OwnThread(f"asyncloop producer of {self._at.stream!r}", grace_s=1.0)
        try:
            return await thread.call(self._walk, abandon=True)
        except BaseException:
            self._buffer.abandon()  # a walk that waits for room must not keep its thread
            raise
        finally:
            await thread.aclose()

    def _walk(self) -> BaseException | None:
        buffer, clock = self._buffer, time.perf_counter
        items = self._open()
        try:
            while True:
                if not buffer.has_room():
                    buffer.wait_room_in_thread()
                item: Item | None = None
                for item in islice(items, self._begin_handful(clock())):
                    buffer.put(item)  # at once: the next one may be long in coming
                if item is None:
                    return None
                self._end_handful(item[0])
        except Interrupted:
            return None
        except BaseException as error:
            return error
        finally:
            items.close()


class ThreadFeed(_ThreadedFeed):
    """A thread of the pass's own walks the stream; a user's iterator stays on it."""

    def __init__(
        self, node: Node, at: Pass, cursor: Cursor, capacity: int | None, on_exhausted: Callable[[], None]
    ) -> None:
        super().__init__(at, capacity, on_exhausted)
        self._node, self._cursor = node, cursor

    def from_cursor(self, cursor: Cursor) -> Self:
        """Begin there instead. Before it is started."""
        self._cursor = cursor
        return self

    def _open(self) -> Generator[Item, None, None]:
        return walked(self._node, self._at, self._cursor)


class ProbedFeed(_LookAhead):
    """The model thread walks the first items by itself; as soon as they turn out dear, a thread goes on behind them.

    Only for streams without an iterator of the user's, since that would have to stay on its thread.
    """

    def __init__(self, walked_feed: WalkedFeed, threaded: ThreadFeed, tasks: TaskGroup) -> None:
        self.pass_number = walked_feed.pass_number
        self._walked, self._threaded, self._tasks = walked_feed, threaded, tasks
        self._feed: WalkedFeed | ThreadFeed = walked_feed
        self._loop = LoopHandle()
        self._n = 0
        self._spent_s = 0.0
        super().__init__(self._probe)

    def _probe(self) -> Item:
        if self._n >= _PROBED:
            return self._feed.next()
        began_s = time.perf_counter()
        item = self._walked.next()
        self._spent_s += time.perf_counter() - began_s
        self._n += 1
        if self._spent_s > _PROBED * WALK_BELOW_S:
            self._n = _PROBED
            self._walked.close()
            self._feed = threaded = self._threaded.from_cursor(item[1])
            self._loop.soon(lambda: threaded.start(self._tasks))
        return item

    def interrupt(self) -> None:
        self._threaded.interrupt()

    def before_sleep(self, call: Callable[[], None]) -> None:
        self._threaded.before_sleep(call)

    def widen(self) -> None:
        self._threaded.widen()

    def statistics(self) -> BufferStatistics | None:
        return self._feed.statistics()

    def cost_s(self, read: Timings) -> float | None:
        return self._feed.cost_s(read)

    def close(self) -> None:
        """On the thread that walks it."""
        self._walked.close()

    async def aclose(self) -> None:
        await self._feed.aclose()


class StagedFeed(_ThreadedFeed):
    """The batches of another feed, prepared for the model by a thread of the pass's own, `ahead` of its steps at most.

    `stage(batch)` is what the model makes of a batch beforehand (a copy on its device, say); it travels with the batch.
    """

    def __init__(self, inner: Feed, at: Pass, stage: Callable[[Batch], Any], ahead: int, tasks: TaskGroup) -> None:
        super().__init__(at.inside(0), ahead, lambda: None)
        self._inner, self._stage = inner, stage
        self.start(tasks)

    def _open(self) -> Generator[Item, None, None]:
        take, stage = self._inner.next, self._stage
        try:
            while True:
                try:
                    value, cursor = take()
                except (StopIteration, EndOfStream):
                    return
                yield _staged(run_batch(value), stage), cursor
        finally:
            if isinstance(self._inner, WalkedFeed | ProbedFeed):
                self._inner.close()

    def widen(self) -> None:
        super().widen()
        self._inner.widen()

    def statistics(self) -> BufferStatistics | None:
        return self._inner.statistics() or super().statistics()

    def cost_s(self, read: Timings) -> float | None:
        return self._inner.cost_s(read)

    async def aclose(self) -> None:
        self._inner.interrupt()
        await super().aclose()
        await self._inner.aclose()


def _staged(value: Any, stage: Callable[[Batch], Any]) -> Any:
    if not isinstance(value, Mapping):  # what is no batch is told of where it would be run
        return value
    batch = cast(Batch, value)
    n_own, n_all = (batch.n_own, batch.n_all) if isinstance(batch, RunBatch) else (None, None)
    return RunBatch(batch, stage(batch), n_own, n_all)


def open_feed(
    node: Node,
    at: Pass,
    cursor: Cursor,
    *,
    buffer: int | Literal["auto"],
    known_cost_s: float | None,
    tasks: TaskGroup,
    close_on_model_thread: Callable[[Callable[[], None]], Any],
    on_exhausted: Callable[[], None],
) -> Feed:
    """Choose and start the feed for one pass. Call it on the event loop; it has half a buffer until it is widened.

    `buffer="auto"`: what needs the loop gets a deep buffer bounded in bytes. A plain stream is walked by the model
    thread when it is known (from an earlier pass, `known_cost_s`) to be cheap; else a thread overlaps it. What is not
    known yet is probed, but for a user's iterator: that stays on one thread for a pass, so its first one gets a thread.
    """
    capacity = None if buffer == "auto" else buffer
    if node.needs_loop:
        feed = LoopFeed(node, at, cursor, capacity, on_exhausted)
        feed.start(tasks)
        return feed
    if capacity == 0 or (capacity is None and _is_cheap(node, known_cost_s)):
        return WalkedFeed(node, at, cursor, close_on_model_thread)
    threaded = ThreadFeed(node, at, cursor, capacity, on_exhausted)
    if capacity is None and known_cost_s is None and not node.opaque and _goes_back_cheaply(node):
        return ProbedFeed(WalkedFeed(node, at, cursor, close_on_model_thread), threaded, tasks)
    threaded.start(tasks)
    return threaded


def _goes_back_cheaply(node: Node) -> bool:
    """Whether going on from a cursor costs nothing; a shuffle would read its block once more."""
    while isinstance(node, Over):
        if isinstance(node, Shuffled):
            return False
        node = node.upstream
    return True


def _is_cheap(node: Node, known_cost_s: float | None) -> bool:
    """Whether an element is known to cost next to nothing: it did in an earlier pass, or it is in memory already."""
    if known_cost_s is not None:
        return known_cost_s < WALK_BELOW_S
    return isinstance(node, Plain) and not node.opaque
