"""StreamBuffer: the bounded queue between whoever makes items and whoever takes them.

Either end may be a task on the event loop or a thread. Waking the other end is what costs, so an end is woken only
when it sleeps, and then for a handful:

* The taker sleeps only on an empty buffer. A producer on the loop rouses it when half the buffer is full or when
  its burst is over (the loop runs something else); a producer thread rouses it at once, because there is no way
  to see its burst end.
* A producer sleeps only on a full buffer. One that is dear (waits for I/O) is woken when half the buffer is free;
  a cheap one only when the buffer has nearly drained, since with one interpreter lock its bursts and the model's
  steps would only queue for the lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncloop.errors import UsageError
from asyncloop.threads import CHEAP_S, LoopHandle, LoopSleeper, ThreadSleeper

__all__ = ["BufferStatistics", "EndOfStream", "Interrupted", "StreamBuffer"]

T = TypeVar("T")


class EndOfStream(Exception):
    """The producers have closed the buffer and everything in it was taken."""


class Interrupted(Exception):
    """`interrupt()` was called; nothing was taken."""


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """A buffer that is mostly full means the model is the slowest stage; mostly empty, the producers are."""

    depth: int
    """Items ready now."""
    capacity: int
    taken: int
    taker_waits: int
    """How often the taker found the buffer empty and slept."""
    producer_waits: int
    """How often the producer found it full and slept."""


class StreamBuffer(Generic[T]):
    """A bounded queue with two ends that can be closed; one producer and one taker, each a task or a thread.

    `capacity` items are ready at most. With capacity 0 an item may only be made while the taker waits for it. `narrow`: no
    more than half of it, rounded up, until `widen` is called; the other half belongs to a buffer that is being emptied.
    Create it on the event loop. Items put before `close` are taken before the end (or the error) is seen.
    """

    def __init__(self, capacity: int, narrow: bool = False) -> None:
        if capacity < 0:
            raise UsageError(f"a buffer's capacity is a number of items, 0 or more, not {capacity}")
        self.capacity = capacity
        self._narrow = narrow
        self._items: deque[T] = deque()
        self._loop = LoopHandle()
        self._taker: ThreadSleeper | LoopSleeper = ThreadSleeper()
        self._producer: ThreadSleeper | LoopSleeper = LoopSleeper(self._loop)
        self.before_sleep: Callable[[], None] | None = None
        """Called in the taker's thread before it sleeps: a chance to hand on what it has finished so far."""
        self._closed = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._interrupted = False
        self._rouse_planned = False
        self._wake_producer_at = capacity // 2
        self._refill_began = time.perf_counter()
        self._n_put = 0
        self._n_put_before_refill = 0
        self._taker_waits = 0
        self._producer_waits = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether the producers have ended; what they made may still be inside."""
        return self._closed

    def statistics(self) -> BufferStatistics:
        depth = len(self._items)
        return BufferStatistics(depth, self.capacity, self._n_put - depth, self._taker_waits, self._producer_waits)

    # --- the producer's end -------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many items may be made now. Ask before making them, so that never more than `capacity` wait here."""
        if self.capacity:
            capacity = self.capacity - self.capacity // 2 if self._narrow else self.capacity
            return max(capacity - len(self._items), 0)
        return int(self._taker.asleep and not self._items)

    def has_room(self) -> bool:
        """Whether an item may be made now."""
        return self.room() > 0

    async def wait_room(self) -> None:
        """Sleep until there is room (a producer on the loop). Cancellable. Raises Interrupted once the taker has left."""
        if not isinstance(self._producer, LoopSleeper):
            self._producer = LoopSleeper(self._loop)
        self._plan_refill()
        while not self._may_make():
            await self._producer.sleep()
        self._refill_began = time.perf_counter()

    def wait_room_in_thread(self) -> None:
        """The same for a producer that is a thread; blocks it."""
        if not isinstance(self._producer, ThreadSleeper):
            self._producer = ThreadSleeper()
        self._plan_refill()
        while not self._may_make():
            self._producer.sleep()
        self._refill_began = time.perf_counter()

    def _may_make(self) -> bool:
        """The producer's last look with its flag up: whether there is room, or it should sleep now."""
        self._producer.asleep = True
        if self._abandoned:
            raise Interrupted
        if self.has_room():
            self._producer.asleep = False
            return True
        self._rouse_taker()
        self._producer_waits += 1
        return False

    def put(self, item: T) -> None:
        """Hand over one item; never waits (there must be room). On the loop or in the producer's thread."""
        self._items.append(item)
        self._n_put += 1
        if self._taker.asleep:
            if len(self._items) * 2 > self.capacity or not self._loop.is_here:
                self._rouse_taker()
            elif not self._rouse_planned:
                self._rouse_planned = True
                self._loop.soon(self._end_of_burst)

    def widen(self) -> None:
        """From now on the whole capacity may be used. On the loop."""
        self._narrow = False
        if self._producer.asleep:
            self._producer.wake()

    async def half_emptied(self) -> bool:
        """After `close`: sleep until its turn has come and no more than half of the capacity is in use. Cancellable.

        False: the taker has left.
        """
        self._producer = LoopSleeper(self._loop)
        self._wake_producer_at = self.capacity // 2
        while not self._abandoned:
            self._producer.asleep = True
            if len(self._items) <= self._wake_producer_at and not self._narrow:
                self._producer.asleep = False
                break
            await self._producer.sleep()
        return not self._abandoned

    def close(self, error: BaseException | None = None) -> None:
        """No more items. With `error`, the taker gets it, with its own traceback, after the items before it."""
        self._error = error
        self._closed = True
        self._rouse_taker()

    def _plan_refill(self) -> None:
        """From what the last refill cost an item, decide how empty the buffer must be to wake the producer again."""
        refilled = self._n_put - self._n_put_before_refill
        if refilled:
            cost_s = (time.perf_counter() - self._refill_began) / refilled
            self._wake_producer_at = 0 if cost_s < CHEAP_S else self.capacity // 2
            self._n_put_before_refill = self._n_put

    def _end_of_burst(self) -> None:
        self._rouse_planned = False
        self._rouse_taker()

    def _rouse_taker(self) -> None:
        if self._taker.asleep:
            self._taker.wake()

    # --- the taker's end ----------------------------------------------------------------------------------------

    def get(self) -> T:
        """Take the next item; sleeps in this thread while there is none.

        Raises EndOfStream after the last one, the producer's error where it happened, Interrupted after `interrupt()`.
        """
        # Asked first: an error raised inside an `except IndexError` would be told with that one.
        item = self._items.popleft() if self._items else self._wait_in_thread()
        if self._producer.asleep and len(self._items) <= self._wake_producer_at:
            self._producer.wake()
        return item

    async def aget(self) -> T:
        """The same for a taker on the loop. Cancellation never loses an item: it is delivered before one is taken."""
        while not self._items:
            if not isinstance(self._taker, LoopSleeper):
                self._taker = LoopSleeper(self._loop)
            self._taker.asleep = True
            if self._must_look():
                break
            self._taker_waits += 1
            await self._taker.sleep()
        self._taker.asleep = False
        item = self._take_or_raise()
        if self._producer.asleep and len(self._items) <= self._wake_producer_at:
            self._producer.wake()
        return item

    def interrupt(self) -> None:
        """Make a sleeping (or the next) `get` raise Interrupted. Thread-safe."""
        self._interrupted = True
        self._rouse_taker()

    def abandon(self) -> None:
        """The taker leaves: whatever is inside is dropped, and producers are told when they next ask for room."""
        self._abandoned = True
        self._items.clear()
        if self._producer.asleep:
            self._producer.wake()

    def _must_look(self) -> bool:
        if self._items or self._closed or self._interrupted:
            return True
        if self._producer.asleep:
            self._producer.wake()
        return False

    def _wait_in_thread(self) -> T:
        taker = self._taker
        assert isinstance(taker, ThreadSleeper), "one taker, a thread or a task"
        while True:
            taker.asleep = True
            if self._must_look():
                taker.asleep = False
                return self._take_or_raise()
            self._taker_waits += 1
            if self.before_sleep is not None:
                self.before_sleep()
            taker.sleep()

    def _take_or_raise(self) -> T:
        if self._items:
            return self._items.popleft()
        if self._interrupted:
            self._interrupted = False
            raise Interrupted
        if self._error is not None:
            raise self._error
        raise EndOfStream
