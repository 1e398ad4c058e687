"""Feed: one opened pass of a stream on its way to the model thread.

    LoopFeed      a producer task on the event loop fills a StreamBuffer      (async sources, maps with workers)
    ThreadFeed    a producer thread fills a StreamBuffer                      (plain iterators, overlapped)
    WalkedFeed    the model thread walks the stream by itself                 (plain iterators, nothing to overlap)

A feed starts reading only once it knows its cursor, so nothing is ever prefetched before it is restored.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Literal, Protocol, TypeAlias

import anyio
from anyio.abc import TaskGroup

from asyncloop.batch import Cursor
from asyncloop.stream.buffer import BufferStatistics, EndOfStream, Interrupted, StreamBuffer
from asyncloop.stream.operators import Elements, Node
from asyncloop.stream.order import Pass
from asyncloop.threads import OwnThread, stray_cancellation, was_cancelled

__all__ = ["AUTO_CAPACITY", "Feed", "Item", "LoopFeed", "ThreadFeed", "WalkedFeed", "open_feed"]

logger = logging.getLogger(__name__)

Item: TypeAlias = tuple[Any, Cursor]

AUTO_CAPACITY = 256
AUTO_BYTES = 64 * 2**20
WALK_BELOW_S = 100e-6
"""A plain iterator whose next() takes less than this is walked by the model thread: overlap could not pay for itself."""
_LOOP_TURN_S = 2e-3
_WAITS = "a stream that was said not to need the event loop waits for it"


class Feed(Protocol):
    """One pass of one stream. `next` and `give_back` belong to the model thread, the rest to the loop."""

    pass_number: int

    def next(self) -> Item:
        """The next (batch, cursor). Raises EndOfStream, the producer's own error, or Interrupted."""
        ...

    def give_back(self, item: Item) -> None:
        """Put an item back to the front, after a look ahead."""
        ...

    def interrupt(self) -> None:
        """Make a `next` that waits return with Interrupted. Thread-safe. A walked feed cannot be interrupted."""
        ...

    def before_sleep(self, call: Callable[[], None]) -> None:
        """What the model thread does before it sleeps for want of a batch."""
        ...

    def statistics(self) -> BufferStatistics | None: ...

    @property
    def cost_s(self) -> float | None:
        """Seconds it took to make one item, as far as was measured (None: not yet)."""
        ...

    async def aclose(self) -> None:
        """End the pass: producers are cancelled, what they made is dropped. Shielded; returns when nothing is left."""
        ...


def walk(elements: Elements) -> Item:
    """One step of a stream that never suspends, outside any event loop. Raises EndOfStream after the last element."""
    try:
        elements.__anext__().send(None)
    except StopIteration as step:
        return step.value
    except StopAsyncIteration:
        raise EndOfStream from None
    raise RuntimeError(_WAITS)


def _close_walked(elements: Elements) -> None:
    try:
        elements.aclose().send(None)
    except StopIteration:
        pass


class WalkedFeed:
    """The model thread walks the stream itself: the cheapest way to a batch, no overlap, no other thread awake."""

    def __init__(self, node: Node, at: Pass, cursor: Cursor, close_on: Callable[[Callable[[], None]], Any]) -> None:
        self.pass_number = at.number
        self._elements = node.elements(at, cursor)
        self._step = self._elements.__anext__
        self._close_on = close_on
        self._back: list[Item] = []
        self._n = 0
        self._spent_s = 0.0

    def next(self) -> Item:
        if self._back:
            return self._back.pop()
        self._n = n = self._n + 1
        if n & 15 == 1:  # every 16th is timed, so that `buffer="auto"` learns what reading costs
            began = time.perf_counter()
            item = walk(self._elements)
            self._spent_s += time.perf_counter() - began
            return item
        try:  # `walk` written out: its call would cost as much as the step
            self._step().send(None)
        except StopIteration as step:
            return step.value
        except StopAsyncIteration:
            raise EndOfStream from None
        raise RuntimeError(_WAITS)

    def give_back(self, item: Item) -> None:
        self._back.append(item)

    def interrupt(self) -> None:
        pass

    def before_sleep(self, call: Callable[[], None]) -> None:
        pass

    def statistics(self) -> BufferStatistics | None:
        return None

    @property
    def cost_s(self) -> float | None:
        return self._spent_s / ((self._n + 15) // 16) if self._n else None

    async def aclose(self) -> None:
        await self._close_on(lambda: _close_walked(self._elements))


class _BufferedFeed:
    """What both buffered feeds share: the buffer, the look ahead, the task that runs the pass and its end."""

    def __init__(
        self, node: Node, at: Pass, cursor: Cursor, capacity: int | None, on_exhausted: Callable[[], None]
    ) -> None:
        self.pass_number = at.number
        self._node, self._at, self._cursor = node, at, cursor
        self._on_exhausted = on_exhausted
        self._buffer: StreamBuffer[Item] = StreamBuffer(AUTO_CAPACITY if capacity is None else capacity)
        self._fit_bytes = capacity is None
        self._largest = 1
        self._back: deque[Item] = deque()
        self._made = 0
        self._making_s = 0.0
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    def next(self) -> Item:
        return self._back.pop() if self._back else self._buffer.get()

    def give_back(self, item: Item) -> None:
        self._back.append(item)

    def interrupt(self) -> None:
        self._buffer.interrupt()

    def before_sleep(self, call: Callable[[], None]) -> None:
        self._buffer.before_sleep = call

    def statistics(self) -> BufferStatistics | None:
        return self._buffer.statistics()

    @property
    def cost_s(self) -> float | None:
        return self._making_s / self._made if self._made else None

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                error = await self._produce()
                self._buffer.close(error)
                if error is None:
                    self._on_exhausted()
        finally:
            self._buffer.close(error)
            with anyio.CancelScope(shield=True):
                for close in reversed(self._at.closers):
                    await close()
            self._ended.set()

    async def _produce(self) -> BaseException | None:
        raise NotImplementedError

    def _put(self, item: Item, making_s: float) -> None:
        self._made += 1
        self._making_s += making_s
        if self._fit_bytes and (self._made < 8 or self._made & 15 == 0):
            self._fit(item[0])
        self._buffer.put(item)

    def _fit(self, batch: Any) -> None:
        """Keep what waits in the buffer under AUTO_BYTES, judged by the largest batch seen."""
        values = batch.values() if hasattr(batch, "values") else ()
        n_bytes = sum(getattr(value, "nbytes", 0) for value in values)
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
        buffer, clock = self._buffer, time.perf_counter
        async with aclosing(self._node.elements(self._at, self._cursor)) as elements:
            turn_began = began = clock()
            while True:
                if not buffer.has_room():
                    await buffer.wait_room()
                    turn_began = began = clock()
                try:
                    item = await elements.__anext__()
                except StopAsyncIteration:
                    return
                now = clock()
                self._put(item, now - began)
                began = now
                if now - turn_began > _LOOP_TURN_S:  # an async generator that never waits must not keep the loop
                    await anyio.lowlevel.checkpoint()
                    turn_began = began = clock()


class ThreadFeed(_BufferedFeed):
    """A thread of the pass's own walks the stream; a user's iterator stays on it."""

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
        elements = self._node.elements(self._at, self._cursor)
        try:
            while True:
                if not buffer.has_room():
                    buffer.wait_room_in_thread()
                began = clock()
                item = walk(elements)
                self._put(item, clock() - began)
        except (EndOfStream, Interrupted):
            return None
        except BaseException as error:
            return error
        finally:
            _close_walked(elements)


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
    """Choose and start the feed for one pass. Call it on the event loop.

    `buffer="auto"`: what needs the loop gets a deep buffer bounded in bytes. A plain stream is walked by the model
    thread when it is known (from an earlier pass, `known_cost_s`) to be cheap, or holds no iterator of the user's;
    else a thread overlaps it. The choice is for a pass, because a user's iterator stays on one thread for a pass.
    """
    capacity = None if buffer == "auto" else buffer
    if not node.needs_loop:
        cheap = known_cost_s < WALK_BELOW_S if known_cost_s is not None else not node.opaque
        if capacity == 0 or (capacity is None and cheap):
            return WalkedFeed(node, at, cursor, close_on_model_thread)
    kind = LoopFeed if node.needs_loop else ThreadFeed
    feed = kind(node, at, cursor, capacity, on_exhausted)
    feed.start(tasks)
    return feed
