"""Map with several elements in work at once: tasks for async functions, threads for plain ones, in order.

A feeder task walks what comes before and hands each element to a worker; results wait in a window and leave it in
order. The window bounds what is in work and done together to `concurrency`, so one slow element among quick ones
costs nothing as long as the window holds more.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import anyio

from asyncloop.batch import Cursor
from asyncloop.errors import StalledError
from asyncloop.stream.operators import Elements, Over, calling
from asyncloop.stream.order import Pass
from asyncloop.stream.sharing import ELSEWHERE, is_elsewhere
from asyncloop.threads import LoopHandle, LoopSleeper, OwnThread, cut_off, stray_cancellation, was_cancelled

__all__ = ["MapConcurrent"]


@dataclass(frozen=True, slots=True)
class MapConcurrent(Over):
    """`fn` of each element, `concurrency` at a time, results in order. Cursor: [elements given, cursor before].

    An async `fn` runs in tasks on the event loop, a plain one in threads. `deadline` seconds for one call;
    a call that raises is tried `retries` times more.
    """

    fn: Callable[..., Any]
    concurrency: int
    deadline: float | None
    retries: int

    @property
    def needs_loop(self) -> bool:
        return True

    async def elements(self, at: Pass, cursor: Cursor) -> Elements:
        window = _Window(self, at)
        assert at.tasks is not None, "a stream with workers is walked on the event loop"
        at.tasks.start_soon(window.feed, cursor)
        try:
            while (slot := await window.next()) is not None:
                yield slot.result, [slot.index + 1, slot.cursor]
        finally:
            window.close()


class _Slot:
    """One element on its way through a worker."""

    __slots__ = ("cursor", "done", "error", "index", "result", "started", "thread", "value")

    def __init__(self, index: int, value: Any, cursor: Cursor) -> None:
        self.index, self.value, self.cursor = index, value, cursor
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.started: float | None = None
        self.thread: int | None = None


class _Window:
    """The elements in work and done of one opened map, oldest first. Owned by the loop; workers only fill slots."""

    def __init__(self, stage: MapConcurrent, at: Pass) -> None:
        self._stage, self._at = stage, at
        self._call = calling(stage.fn, at)
        self._slots: deque[_Slot] = deque()
        self._loop = loop = LoopHandle()
        self._taker, self._feeder = LoopSleeper(loop), LoopSleeper(loop)
        self._waiting: deque[_Slot] = deque()
        self._idle: list[LoopSleeper] = []
        self._n_tasks = 0
        self._fed_all = False
        self._closed = False
        self._feed_error: BaseException | None = None
        self._is_async = inspect.iscoroutinefunction(stage.fn) or inspect.iscoroutinefunction(
            getattr(stage.fn, "__call__", None)  # noqa: B004
        )
        self._pool: _ThreadPool | None = None

    async def feed(self, cursor: Cursor) -> None:
        n, before = cast("list[Any]", cursor or [0, None])
        try:
            async with aclosing(self._stage.upstream.elements(self._at, before)) as upstream:
                async for value, position in upstream:
                    if self._closed:
                        break
                    slot = _Slot(n, value, position)
                    n += 1
                    self._slots.append(slot)
                    if is_elsewhere(value, n - 1, self._at):
                        slot.result, slot.done = ELSEWHERE, True
                        self._tell_taker()
                    else:
                        self._start(slot)
                    while len(self._slots) >= self._stage.concurrency and not self._closed:
                        self._feeder.asleep = True
                        await self._feeder.sleep()
        except anyio.get_cancelled_exc_class():
            self._feed_error = cut_off(f"a producer of stream {self._at.stream!r}")
            raise
        except (Exception, SystemExit) as error:
            self._feed_error = error
        finally:
            self._fed_all = True
            self._taker.wake()

    def close(self) -> None:
        """Nobody takes results any more: the feeder ends."""
        self._closed = True
        self._feeder.wake()
        for worker in self._idle:
            worker.wake()

    async def next(self) -> _Slot | None:
        """The oldest slot once it is done, None after the last. Raises what its call (or the feeder) raised."""
        while True:
            head = self._slots[0] if self._slots else None
            if head is not None and head.done:
                self._slots.popleft()
                if self._feeder.asleep:
                    self._feeder.wake()
                if head.error is not None:
                    raise head.error
                return head
            if head is None and self._fed_all:
                if self._feed_error is not None:
                    raise self._feed_error
                return None
            self._taker.asleep = True
            if head is not None and head.done:
                continue
            await self._sleep_until_deadline(head)

    async def _sleep_until_deadline(self, head: _Slot | None) -> None:
        deadline = self._stage.deadline
        if deadline is None or self._is_async or head is None:
            await self._taker.sleep()
            return
        left_s = deadline - (time.monotonic() - head.started if head.started else 0)
        with anyio.move_on_after(max(left_s, 0)):
            await self._taker.sleep()
        if not head.done and head.started and time.monotonic() - head.started >= deadline:
            frame = sys._current_frames().get(head.thread or 0)  # pyright: ignore[reportPrivateUsage]
            stack = "".join(traceback.format_stack(frame)) if frame else "(the worker has gone)"
            raise StalledError(
                f"{self._where(head)} took longer than its deadline of {deadline:g} s; it is at\n{stack}"
            )

    def _start(self, slot: _Slot) -> None:
        if self._is_async:
            self._start_async(slot)
            return
        if self._pool is None:
            self._pool = _ThreadPool(self._stage.concurrency, f"asyncloop map of {self._at.stream!r}", self._run)
            self._at.closers.append(self._pool.aclose)
        self._pool.submit(slot)

    def _start_async(self, slot: _Slot) -> None:
        """For an idle task, or for a new one: as many as elements may be in work, since making one costs ten calls."""
        self._waiting.append(slot)
        if self._idle:
            self._idle.pop().wake()
        elif self._n_tasks < self._stage.concurrency:
            assert self._at.tasks is not None
            self._n_tasks += 1
            self._at.tasks.start_soon(self._work)

    async def _work(self) -> None:
        sleeper = LoopSleeper(self._loop)
        while not self._closed:
            if self._waiting:
                await self._run_async(self._waiting.popleft())
                continue
            self._idle.append(sleeper)
            await sleeper.sleep()

    async def _run_async(self, slot: _Slot) -> None:
        deadline = self._stage.deadline
        for attempt in range(self._stage.retries + 1):
            try:
                if deadline is None:
                    slot.result = await self._call(slot.value, slot.index)
                    slot.error = None
                    break
                with anyio.move_on_after(deadline) as scope:
                    slot.result = await self._call(slot.value, slot.index)
                if not scope.cancelled_caught:
                    slot.error = None
                    break
                slot.error = StalledError(f"{self._where(slot)} took longer than its deadline of {deadline:g} s")
            except anyio.get_cancelled_exc_class() as error:
                if await was_cancelled():
                    slot.error = cut_off(self._where(slot))
                    self._finish(slot)
                    raise
                slot.error = stray_cancellation(error, self._where(slot))
            except (Exception, SystemExit) as error:
                slot.error = error
            if attempt == self._stage.retries:
                slot.error.add_note(self._where(slot))
        self._finish(slot)

    def _run(self, slot: _Slot) -> None:
        slot.thread = threading.get_ident()
        for attempt in range(self._stage.retries + 1):
            slot.started = time.monotonic()
            try:
                slot.result = self._call(slot.value, slot.index)
                slot.error = None
                break
            except BaseException as error:
                slot.error = error
                if attempt == self._stage.retries:
                    error.add_note(self._where(slot))
        self._finish(slot)

    def _finish(self, slot: _Slot) -> None:
        slot.value = None
        slot.done = True
        self._tell_taker()

    def _tell_taker(self) -> None:
        """Something is done; whoever waits for the oldest slot looks if it is that."""
        if self._taker.asleep and self._slots and self._slots[0].done:
            self._taker.wake()

    def _where(self, slot: _Slot) -> str:
        name = getattr(self._stage.fn, "__qualname__", repr(self._stage.fn))
        return f"stream {self._at.stream!r}, map({name}), element {slot.index}"


class _ThreadPool:
    """As many threads as slots may be in work, started as they are needed."""

    def __init__(self, n: int, name: str, run: Callable[[_Slot], None]) -> None:
        self._n, self._name, self._run = n, name, run
        self._queue: SimpleQueue[_Slot | None] = SimpleQueue()
        self._threads: list[OwnThread] = []
        self._idle = 0

    def submit(self, slot: _Slot) -> None:
        self._queue.put(slot)
        if self._queue.qsize() > self._idle and len(self._threads) < self._n:
            thread = OwnThread(f"{self._name} {len(self._threads)}")
            thread.post(self._serve)
            self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            self._idle += 1
            slot = self._queue.get()
            self._idle -= 1
            if slot is None:
                return
            self._run(slot)
            del slot

    async def aclose(self) -> None:
        """Calls that have not begun are dropped; those under way are waited for, within the threads' grace."""
        while not self._queue.empty():
            self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        async with anyio.create_task_group() as tasks:
            for thread in self._threads:
                tasks.start_soon(thread.aclose)
