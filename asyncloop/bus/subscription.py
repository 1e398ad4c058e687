"""Subscription: one hook on the bus, with its mailbox, its task, its thread if it has plain methods, and its policy."""

from __future__ import annotations

import inspect
import logging
import math
import sys
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio

from asyncloop.bus.declared import Declared
from asyncloop.errors import HookError, StalledError, StopTraining
from asyncloop.events import AfterBatch, Event
from asyncloop.states import copy_of
from asyncloop.stats import Timings, metric_sink
from asyncloop.threads import Handful, LoopHandle, LoopSleeper, Notice, OwnThread, stray_cancellation, was_cancelled

__all__ = ["MAILBOX_BYTES", "Marker", "Subscription"]

logger = logging.getLogger("asyncloop")

MAILBOX_BYTES = 64 * 2**20
_HANDFUL = 32
_TURN_S = 2e-3

OnFailure = Callable[[BaseException], None]
OnStop = Callable[[str], None]
OnLog = Callable[[str, Event, str, Any], None]
"""Hook's name, event at hand, name and value of what `asyncloop.log` was given."""


class Marker:
    """Travels through every mailbox behind the events of one step; each hook leaves its state as of that step."""

    def __init__(self, subscriptions: Sequence[Subscription], logged: Callable[[str], Any] | None) -> None:
        self.states: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        """What each hook had added to the epoch's metrics by then."""
        self._logged_by = logged
        self._names = [own.name for own in subscriptions]
        self._left = set(self._names)
        self._all = anyio.Event()
        if not subscriptions:
            self._all.set()

    def reached(self, name: str, state: Any) -> None:
        if state is not None:
            self.states[name] = state
        if self._logged_by is not None and (logged := self._logged_by(name)):
            self.logged[name] = logged
        self._left.discard(name)
        if not self._left:
            self._all.set()

    async def complete(self) -> dict[str, Any]:
        """Wait until every hook has handled everything before the marker; name → state, in the order of the hooks."""
        await self._all.wait()
        self.states, self.logged = self._in_order(self.states), self._in_order(self.logged)
        return self.states

    def _in_order(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Not in that of their arrival: the same run writes the same bytes."""
        return {name: parts[name] for name in self._names if name in parts}


class _InHand:
    """The event a hook is handling. A small object of its own, because storing it for every event in one with as many
    attributes as Subscription costs four times as much."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: Event | None = None


class Subscription:
    """One hook: owns its mailbox. Events enter on the loop, in order, and are handled one after the other.

    `async def` methods run in the hook's own task, plain ones in a thread of its own.
    """

    def __init__(
        self,
        hook: Any,
        name: str,
        loop: LoopHandle,
        *,
        fail: OnFailure,
        stop: OnStop,
        log: OnLog,
        freed: Callable[[], None],
    ) -> None:
        self.hook, self.name = hook, name
        self._fail, self._stop, self._log, self._freed = fail, stop, log, freed
        declared = Declared.by(hook, name)
        self.streams, self.variables, self.cadence = declared.streams, declared.variables, declared.cadence
        self.overflow, self.mailbox, self.concurrency = declared.overflow, declared.mailbox, declared.concurrency
        self.background, self.lockstep = declared.background, declared.lockstep
        self.on_error, self.deadline = declared.on_error, declared.deadline
        self.scalars_on_host = declared.scalars_on_host and declared.variables is None
        self.add: Callable[[AfterBatch], Mapping[str, Any]] | None = getattr(hook, "add", None)
        self._after_batches: Callable[..., Any] | None = getattr(hook, "after_batches", None)
        self._after_batch: Callable[..., Any] | None = getattr(hook, "after_batch", None)
        self.wants_batches = self._after_batch is not None or self._after_batches is not None
        self._is_async = inspect.iscoroutinefunction(self._after_batches or self._after_batch)
        self.capacity = self.mailbox
        self.next_due_s = -1.0
        """For a cadence in seconds: the clock reading from which a step is due. Owned by the model thread."""
        self.spent: dict[str, Timings] = {}
        """Seconds in `after_batch` by stream, one entry a handful of events."""
        self.set_up = False
        self.disabled = False
        self.n_dropped = 0
        self.n_errors = 0
        self.is_cut_off = False
        """Whether somebody cancelled its task while it handled an event: its state is that of no step."""
        self.added: tuple[tuple[str, int, int], Mapping[str, Any]] | None = None
        """What its `add` gave last, and for which batch."""
        self._box: deque[Event | Marker] = deque()
        self._handful = Handful(_HANDFUL)
        self._sleeper = LoopSleeper(loop)
        self._busy = False
        self._in_flight = 0
        self._idle = Notice()
        """Whoever waits for this hook looks again."""
        self._landed = Notice()
        """One of several handlers at once has returned."""
        self._scope: anyio.CancelScope | None = None
        self._calling: anyio.CancelScope | None = None
        """Around a barrier's handler, which runs in the engine's task."""
        self._stuck = False
        """Whether its thread is taken by a call that does not return."""
        self._in_hand = _InHand()
        self._watched: Event | None = None
        self._watched_since = 0.0
        self._end_by_s = math.inf
        self._stalled = False
        self._thread: OwnThread | None = None

    # --- what is due --------------------------------------------------------------------------------------------

    def method(self, name: str) -> Callable[..., Any] | None:
        """The hook's method for an event, None if it does not listen or is switched off."""
        return None if self.disabled else getattr(self.hook, name, None)

    def due(self, stream: str, train: bool, step: int, timed: frozenset[object]) -> bool:
        """Whether `after_batch` is due. Steps and seconds filter train steps only."""
        if self.streams is not None and stream not in self.streams:
            return False
        cadence = self.cadence
        if not train or cadence is None or cadence.unit == "epochs":
            return True
        return cadence.due(step) if cadence.unit == "steps" else self in timed

    def next_wanted(self, stream: str, train: bool, after: int) -> float:
        """The first step after `after` whose batch it is to have, as far as steps decide: -1 for each, inf for none."""
        if self.disabled:
            return math.inf
        if self.add is not None:
            return -1
        if not self.wants_batches or (self.streams is not None and stream not in self.streams):
            return math.inf
        cadence = self.cadence
        if not train or cadence is None or cadence.unit == "epochs":
            return -1
        due = cadence.next_due(after) if cadence.unit == "steps" else None
        return math.inf if due is None else due

    @property
    def takes_all(self) -> bool:
        """Whether every batch of every stream is due, which spares asking."""
        return self.streams is None and (self.cadence is None or self.cadence.unit == "epochs")

    # --- the mailbox --------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many events may enter without loss; only a blocking hook ever holds the model back."""
        if self.overflow != "block" or self.disabled:
            return MAILBOX_BYTES
        return self.capacity - len(self._box)

    def deliver(self, events: Sequence[Event | Marker], n_bytes: int | None = None) -> None:
        """Put events into the mailbox; what overflows is dropped by policy and counted.

        `n_bytes`: of one of them, if they are batches.
        """
        if self.disabled:
            for event in events:
                if isinstance(event, Marker):
                    event.reached(self.name, None)
            return
        if n_bytes is not None:
            self.capacity = min(self.mailbox, max(MAILBOX_BYTES // max(n_bytes, 1), 1))
        self._box.extend(events)
        if self.overflow != "block" and len(self._box) > self.capacity:
            self._drop()
        if self._sleeper.asleep:
            self._sleeper.wake()

    def _drop(self) -> None:
        """Drop the oldest batch events; anything else (markers, saved checkpoints) is always delivered."""
        spare = sum(isinstance(event, AfterBatch) for event in self._box) - self.capacity
        kept: list[Event | Marker] = []
        for event in self._box:
            if spare > 0 and isinstance(event, AfterBatch):
                spare -= 1
                self.n_dropped += 1
            else:
                kept.append(event)
        self._box.clear()
        self._box.extend(kept)

    async def drained(self) -> None:
        """Wait until everything delivered so far has been handled (a hook that hangs is cut off by its deadline)."""
        while self._box or self._busy or self._in_flight:
            await self._idle.wait()

    def drop_backlog(self) -> None:
        """Forget what is waiting and cancel what is being handled: the run is aborted."""
        for event in self._box:
            if isinstance(event, Marker):
                event.reached(self.name, None)
        self._box.clear()
        for scope in (self._scope, self._calling):
            if scope is not None:
                scope.cancel()

    # --- the hook's task ----------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """The hook's task: handle what comes until cancelled. Never raises for what the hook does. May be called again."""
        try:
            while True:
                with anyio.CancelScope() as self._scope:
                    if self.concurrency > 1:
                        async with anyio.create_task_group() as tasks:
                            await self._serve(tasks.start_soon)
                    else:
                        await self._serve(None)
                self._after_cancel()
        except anyio.get_cancelled_exc_class():
            self.is_cut_off = self.is_cut_off or self._in_hand.event is not None or self._in_flight > 0
            self._in_hand.event, self._in_flight = None, 0
            raise

    async def end(self) -> None:
        """After `serve`: nothing is handled any more, and the hook's thread is gone, unless it is stuck."""
        self._busy = False
        self.switch_off()
        self.drop_backlog()
        self._idle.tell()
        if self._thread is not None:
            if self._stuck:
                self._thread.grace_s = 0.0
            await self._thread.aclose()

    def _after_cancel(self) -> None:
        event, self._in_hand.event = self._in_hand.event, None
        self._in_flight = 0
        if self._stalled:
            self._stalled = False
            self.failed(self._stall(), event)

    async def _serve(self, start: Callable[..., object] | None) -> None:
        metric_sink.set(self._sink)
        box, clock = self._box, time.perf_counter
        turn_began = clock()
        while True:
            if not box:
                self._busy = False
                self._idle.tell()
                self._sleeper.asleep = True
                if not box:
                    await self._sleeper.sleep()
                turn_began = clock()
                continue
            self._busy = True
            began, first = clock(), box[0]
            await self._next(start)
            now = clock()
            if isinstance(first, AfterBatch):
                self._count(first.stream, now - began)
            if self.overflow == "block" and len(box) * 2 <= self.capacity:
                self._freed()
            if now - turn_began > _TURN_S:  # a hook that never waits must not keep the loop
                await anyio.lowlevel.checkpoint()
                turn_began = now

    def _count(self, stream: str, seconds: float) -> None:
        if stream not in self.spent:
            self.spent[stream] = Timings()
        self.spent[stream].add(seconds)

    async def _next(self, start: Callable[..., object] | None) -> None:
        event = self._box[0]
        if isinstance(event, AfterBatch) and not self.disabled:
            await self._batches(start)
            return
        if isinstance(event, Marker):
            while self._in_flight:
                await self._landed.wait()
            self._box.popleft()
            event.reached(self.name, None if self.disabled or self.is_cut_off else self._state())
            return
        self._box.popleft()
        method = self.method(event.method)
        if method is not None and not isinstance(event, AfterBatch):
            await self.call(method, event)

    async def _batches(self, start: Callable[..., object] | None) -> None:
        """Handle a handful of batch events from the front of the mailbox, in the way the hook's method asks for."""
        if self._after_batches is not None:
            events = self._pop_batches(self.capacity)
            await self._guarded(self._after_batches, self._is_async, events, events[-1])
        elif not self._is_async:
            events = self._pop_batches(self.capacity)
            await self._guarded(self._each, False, events, events[0])
        elif start is not None:
            while self._in_flight >= self.concurrency:
                await self._landed.wait()
            self._in_flight += 1
            start(self._one_of_many, self._box.popleft())
        else:
            await self._one_by_one(self._handful.size)

    def _pop_batches(self, most: int) -> list[AfterBatch]:
        box = self._box
        events: list[AfterBatch] = []
        while box and isinstance(event := box[0], AfterBatch) and len(events) < most:
            events.append(event)
            box.popleft()
        return events

    async def _one_by_one(self, most: int) -> None:
        """The common way, kept lean: an async `after_batch`, one event after the other."""
        handler, box, in_hand = self._after_batch, self._box, self._in_hand
        assert handler is not None
        n, began = 0, time.perf_counter()
        try:
            while n < most and box:
                event = box.popleft()
                if not isinstance(event, AfterBatch):
                    box.appendleft(event)
                    break
                n += 1
                in_hand.event = event
                await handler(event)
        except BaseException as error:
            await self._caught(error, self._in_hand.event)
        self._in_hand.event = None
        self._handful.took(n, time.perf_counter() - began)

    async def _one_of_many(self, event: AfterBatch) -> None:
        metric_sink.set(lambda name, value: self._log(self.name, event, name, value))
        scope = self._time_limit()
        try:
            assert self._after_batch is not None
            with scope:
                await self._after_batch(event)
        except BaseException as error:
            await self._caught(error, event)
        finally:
            if scope.cancelled_caught:
                self.failed(self._stall(), event)
            self._in_flight -= 1
            self._landed.tell()
            self._idle.tell()

    def _each(self, events: Sequence[AfterBatch]) -> None:
        """In the hook's thread: one round trip for all that had piled up."""
        assert self._after_batch is not None
        for event in events:
            self._in_hand.event = event
            self._after_batch(event)
            if self.disabled:
                return

    async def _guarded(self, handler: Callable[..., Any], is_async: bool, argument: Any, event: Event) -> None:
        """Call a handler; its exceptions go where the policy says. A stall is seen by the bus's watch."""
        self._in_hand.event = event
        try:
            if is_async:
                await handler(argument)
            else:
                await self._in_thread(handler, argument)
        except BaseException as error:
            await self._caught(error, self._in_hand.event)
        self._in_hand.event = None

    async def call(self, method: Callable[..., Any], event: Event) -> None:
        """Call one method for one event within the deadline, in the caller's task; policies apply."""
        is_async = inspect.iscoroutinefunction(method)
        if self._stuck and not is_async:
            return
        token = metric_sink.set(lambda name, value: self._log(self.name, event, name, value))
        scope = self._calling = self._time_limit()
        try:
            with scope:
                if is_async:
                    await method(event)
                else:
                    await self._in_thread(method, event)
        except BaseException as error:
            await self._caught(error, event)
        finally:
            metric_sink.reset(token)
            self._calling = None
        if scope.cancelled_caught and anyio.current_time() >= scope.deadline:
            self.failed(self._stall(), event)

    async def _in_thread(self, fn: Callable[..., Any], argument: Any) -> None:
        if self._thread is None:
            self._thread = OwnThread(f"asyncloop hook {self.name}", grace_s=1.0)
        result: Awaitable[Any] | None = await self._thread.call(fn, argument, abandon=True)
        if inspect.isawaitable(result):  # a plain function that returned a coroutine (a partial, a lambda)
            await result

    def _time_limit(self) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=math.inf if self.deadline is None else anyio.current_time() + self.deadline)

    def _stall(self) -> StalledError:
        left = sum(isinstance(event, AfterBatch) for event in self._box)
        behind = f", and {left} more batches wait for it at the end of the run" if self._end_by_s < math.inf else ""
        return StalledError(f"hook {self.name} took longer than its deadline of {self.deadline:g} s{behind}")

    # --- trouble ------------------------------------------------------------------------------------------------

    async def _caught(self, error: BaseException, event: Event | None) -> None:
        """What a handler raised: a stop, a failure, or a cancellation that is passed on if it was meant for us."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            if await was_cancelled():
                raise error
            self.failed(stray_cancellation(error, f"hook {self.name}"), event)
        elif isinstance(error, Exception | SystemExit):
            self.raised(error, event)
        else:
            raise error

    def raised(self, error: BaseException, event: Event | None) -> None:
        """What the hook raised by itself: a stop, or a failure."""
        if isinstance(error, StopTraining):
            self._stop(error.reason)
        else:
            self.failed(error, event)

    def failed(self, error: BaseException, event: Event | None) -> None:
        """Apply the hook's policy to what it raised."""
        self.n_errors += 1
        where = (
            f" in {event.method}, epoch {event.epoch}, step {event.step}" if event is not None and event.method else ""
        )
        error.add_note(f"hook {self.name}{where}")
        if isinstance(error, StalledError) and self._thread is not None:
            error.add_note("its thread is at\n" + _stack_of(self._thread.ident))
            self._stuck = True  # its thread is taken by the call that does not return
            self.switch_off()
        if self.on_error == "fail":
            self.switch_off()
            self._fail(error)
            return
        logger.warning("hook %s failed%s (on_error=%r)", self.name, where, self.on_error, exc_info=error)
        if self.on_error == "disable":
            self.switch_off()
            logger.warning("hook %s is switched off for the rest of the run", self.name)

    def switch_off(self) -> None:
        """Take no more events; whoever waits for room in this mailbox need not."""
        self.disabled = True
        self._freed()

    def watch(self, now_s: float, overslept_s: float) -> None:
        """Cut off a handler that is over its deadline. `overslept_s`: how much too late this look comes.

        A handler is timed by looking whether it is still the same event, so that a quick one pays nothing for it.
        """
        event = self._in_hand.event
        self._watched_since += overslept_s
        self._end_by_s += overslept_s
        is_waited_for = now_s > self._end_by_s and (event is not None or bool(self._box))
        if event is None or event is not self._watched:
            self._watched, self._watched_since = event, now_s
        elif self.deadline is not None and now_s - self._watched_since > self.deadline:
            is_waited_for = True
        if is_waited_for and self._scope is not None and not self.disabled:
            self._watched = None
            self._stalled = True
            self._scope.cancel()

    def hurry(self, now_s: float) -> None:
        """The run is to end: what waits here is handled within one deadline together."""
        if self.deadline is not None:
            self._end_by_s = min(self._end_by_s, now_s + self.deadline)

    def report(self) -> str | None:
        """One line about what went wrong without failing the run, None if nothing did."""
        parts: list[str] = []
        if self.n_dropped:
            parts.append(f"{self.n_dropped} events dropped (overflow={self.overflow!r}, mailbox {self.mailbox})")
        if self.n_errors and self.on_error != "fail":
            parts.append(f"{self.n_errors} errors")
        return f"hook {self.name}: {', '.join(parts)}" if parts else None

    def _sink(self, name: str, value: Any) -> None:
        if self._in_hand.event is not None:
            self._log(self.name, self._in_hand.event, name, value)

    def _state(self) -> Any:
        state = getattr(self.hook, "state_dict", None)
        if state is None:
            return None
        try:
            return copy_of(state(), f"hook {self.name}", HookError)
        except (Exception, SystemExit) as error:
            self.failed(error, None)
            return None


def _stack_of(thread_id: int | None) -> str:
    frame = sys._current_frames().get(thread_id or 0)  # pyright: ignore[reportPrivateUsage]
    return "".join(traceback.format_stack(frame)) if frame else "(ended)"
