"""Crossing between the event loop and threads: a handle on the loop, two ways to sleep, and a thread somebody owns.

The rule of the house: a wake-up costs some fifty times what a hand-over costs, so each side is woken only
when it sleeps. A sleeper raises its flag, takes a last look, and only then sleeps; so no wake-up is ever lost, and
a spare one only makes it look again.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.lowlevel import current_token

from asyncloop.errors import UsageError

__all__ = [
    "CHEAP_S",
    "Handful",
    "LoopHandle",
    "LoopSleeper",
    "Notice",
    "OwnThread",
    "ThreadSleeper",
    "cut_off",
    "off_loop",
    "shrugged_off",
    "stray_cancellation",
    "to_the_end",
    "waited_out",
    "was_cancelled",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")

CHEAP_S = 50e-6
"""What takes less than this costs less than waking a thread for it."""


class LoopHandle:
    """The running event loop (asyncio, uvloop or trio), to be called from anywhere. Create it on the loop."""

    def __init__(self) -> None:
        native: Any = current_token().native_token
        self._thread_id = threading.get_ident()
        # trio's token has run_sync_soon for both; asyncio's loop tells the two apart
        self._from_thread: Callable[..., Any]
        self._here: Callable[..., Any]
        if hasattr(native, "call_soon_threadsafe"):
            context = contextvars.copy_context()  # ours, not that of whichever thread calls
            sniffio = sys.modules.get("sniffio")
            if sniffio is not None:  # anyio asks it which loop it is, and without a task around it would not know
                context.run(sniffio.current_async_library_cvar.set, "asyncio")
            self._from_thread = partial(native.call_soon_threadsafe, context=context)
            self._here = partial(native.call_soon, context=context)
        else:
            self._from_thread = self._here = native.run_sync_soon
        self.future: Callable[[], Any] = getattr(native, "create_future", _EventFuture)
        """Makes what one task awaits until `set_result(None)`: the loop's own future, a quarter of an anyio.Event's cost."""

    @property
    def is_here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self._thread_id

    def soon(self, fn: Callable[[], object]) -> None:
        """Run `fn` in the next round of the loop, without waiting. Thread-safe; a closed loop swallows it."""
        try:
            (self._here if self.is_here else self._from_thread)(fn)
        except RuntimeError:  # asyncio's "loop is closed", trio's RunFinishedError: nobody is left to be told
            logger.debug("a call for a closed event loop was dropped: %r", fn)


class _EventFuture:
    """What LoopHandle.future makes on trio."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, _: None) -> None:
        self._event.set()


class ThreadSleeper:
    """A thread's side of a hand-over: `sleep` dozes on a raw lock until somebody calls `wake`."""

    __slots__ = ("_lock", "asleep")

    def __init__(self) -> None:
        self.asleep = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout_s: float = -1) -> None:
        """Raise `asleep` and look once more before calling this."""
        self._lock.acquire(timeout=timeout_s)
        self.asleep = False

    def wake(self) -> None:
        self.asleep = False
        try:
            self._lock.release()
        except RuntimeError:  # two wakers at once: one was enough
            pass


class LoopSleeper:
    """A task's side of a hand-over: `sleep` waits on the loop until somebody calls `wake` from any thread."""

    __slots__ = ("_future", "_loop", "_woken", "asleep")

    def __init__(self, loop: LoopHandle) -> None:
        self.asleep = False
        self._loop = loop
        self._future: Any = None
        self._woken = False

    async def sleep(self) -> None:
        """Raise `asleep` and look once more before calling this. Cancellable; nothing is lost by it."""
        try:
            if not self._woken:
                self._future = self._loop.future()
                await self._future
        finally:
            self.asleep = self._woken = False
            self._future = None

    def wake(self) -> None:
        self.asleep = False
        if self._loop.is_here:
            self._wake()
        else:
            self._loop.soon(self._wake)

    def _wake(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Handful:
    """How many quick pieces of work to do between two looks at the clock, since a look costs as much as a quick piece.

    Grows while a piece takes less than CHEAP_S and falls back to one when it takes longer. The owner's alone.
    """

    __slots__ = ("_most", "size")

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most

    def took(self, n: int, seconds: float) -> None:
        """`n` pieces took so long."""
        self.size = min(self.size * 2, self._most) if seconds < n * CHEAP_S else 1


class Notice:
    """Tasks of one event loop that wait for a change: `tell` makes them look, and costs nothing when nobody waits."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def tell(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None


async def was_cancelled() -> bool:
    """Whether a cancellation just caught is meant for the running task, by a scope around it or by `Task.cancel()`.

    On asyncio, code that awaits a task which somebody else cancelled raises the same exception: nobody asked us to end.
    """
    if await _was_scopes():
        return True
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def shrugged_off() -> bool:
    """After a cancellation was caught: take back asyncio's `Task.cancel()`, if it was that. False: a scope's, or trio's.

    For tasks whose end is decided by their owner, however many tasks of the loop somebody cancels.
    """
    if await _was_scopes():
        return False
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
    return task is not None


async def _was_scopes() -> bool:
    """Whether a cancellation just caught is that of a scope around the running task; on trio there is no other."""
    try:
        await anyio.lowlevel.checkpoint_if_cancelled()
        asyncio.current_task()
    except (anyio.get_cancelled_exc_class(), RuntimeError):
        return True
    return False


async def waited_out(event: anyio.Event) -> None:
    """Wait for an event whatever cancels the caller meanwhile; that cancellation is raised when it has come.

    A shield alone holds off scopes, but not asyncio's `Task.cancel()`, of which there may be several.
    """
    cancelled: BaseException | None = None
    while not event.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await event.wait()
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def to_the_end(fn: Callable[[], Awaitable[T]]) -> T:
    """What `fn()` gives, run to its end in a task of its own; who cancels the caller meanwhile is heard when it is over."""
    ended, result, failure = anyio.Event(), list[T](), list[BaseException]()
    cancelled: BaseException | None = None

    async def run() -> None:
        try:
            result.append(await fn())
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                await waited_out(ended)
            except anyio.get_cancelled_exc_class() as error:
                cancelled = error
    if failure:
        raise failure[0]
    if cancelled is not None:
        raise cancelled
    return result[0]


def stray_cancellation(error: BaseException, where: str) -> RuntimeError:
    """What to raise instead, so that it is not taken for an end that somebody wanted."""
    stray = RuntimeError(f"{where} let a {type(error).__name__} out although nobody cancelled the run")
    stray.__cause__ = error
    return stray.with_traceback(error.__traceback__)


def cut_off(where: str) -> RuntimeError:
    """What is told of work that ended because its task was cancelled; nobody hears it if the owner ended it."""
    return RuntimeError(f"{where} was cancelled from outside the run")


class _Job:
    """One call on its way through an OwnThread."""

    __slots__ = ("_args", "_context", "_error", "_fn", "_loop", "_result", "done")

    def __init__(self, loop: LoopHandle, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._loop, self._fn, self._args = loop, fn, args
        self._context = contextvars.copy_context()
        self._result: Any = None
        self._error: BaseException | None = None
        self.done = anyio.Event()

    def run(self) -> None:
        try:
            self._result = self._context.run(self._fn, *self._args)
        except Exception as error:
            self._error = error
        except BaseException as error:  # sys.exit() in a thread ends nothing; it must not end the event loop instead
            what = f"{type(error).__name__} was raised in thread {threading.current_thread().name!r}"
            self._error = RuntimeError(what).with_traceback(error.__traceback__)
            self._error.__cause__ = error
            for note in getattr(error, "__notes__", ()):
                self._error.add_note(note)
        self._loop.soon(self.done.set)

    def result(self) -> Any:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # an exception keeps its frames, frames keep their batches: let go of them
        return self._result


class OwnThread:
    """One long-lived daemon thread with one owner, who calls functions on it one after the other.

    A daemon, so that a call that never returns cannot keep the process from ending; closing waits for the running
    call at most `grace_s` seconds, then names the thread in the log and leaves it behind.
    """

    def __init__(self, name: str, grace_s: float = 5.0) -> None:
        self.name = name
        self.grace_s = grace_s
        self.loop = LoopHandle()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended = anyio.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    async def call(
        self, fn: Callable[..., T], *args: Any, abandon: bool = False, on_cancel: Callable[[], None] | None = None
    ) -> T:
        """Run `fn(*args)` on the thread and wait for it; its exception is raised here, with its own traceback.

        A thread cannot be cancelled: cancellation calls `on_cancel` (to make the call return early), waits for the
        return, and is then delivered. With `abandon` it is delivered at once and the result is dropped.
        """
        if self._is_closing:
            raise UsageError(f"thread {self.name!r} has ended: nothing can be called on it any more")
        job = _Job(self.loop, fn, args)
        self._jobs.put(job)
        try:
            await job.done.wait()
        except anyio.get_cancelled_exc_class():
            if not abandon:
                if on_cancel is not None:
                    on_cancel()
                await waited_out(job.done)
            raise
        return job.result()

    def post(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the thread without waiting for it. It must not raise."""
        self._jobs.put(_Job(self.loop, fn, ()))

    async def aclose(self) -> None:
        """Let the running call finish (at most `grace_s`) and end the thread. Shielded from cancellation."""
        self._is_closing = True
        self._jobs.put(None)
        with anyio.move_on_after(self.grace_s, shield=True):
            await self._ended.wait()
            self._thread.join()
            return
        logger.warning("thread %r is still busy after %g s and is left behind", self.name, self.grace_s)

    async def __aenter__(self) -> OwnThread:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # while the thread waits for the next one, it must not keep the last one's result alive
        self.loop.soon(self._ended.set)


async def off_loop(what: str, fn: Callable[..., Any], *args: Any) -> Any:
    """One call of a plain function in a thread of its own, named by `what`. Cancellation waits for it to return."""
    async with OwnThread(f"asyncloop {what}") as thread:
        return await thread.call(fn, *args)
