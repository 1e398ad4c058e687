"""EventBus: what the model thread has finished goes to every hook, without the model waiting for any of them.

    model thread ──► outbox (a deque; one wake-up for all that piled up) ──► pump task ──► a mailbox per hook ──► hook tasks

The thread wakes the pump at most every WAKE_EVERY events or WAKE_AFTER_S seconds, because a wake-up costs fifty times
what handing over an event costs and lets the loop compete with the model for the interpreter lock. A full outbox
holds the thread back, a full mailbox of a blocking hook holds the outbox back: memory is bounded end to end.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import anyio
from anyio.abc import TaskGroup

from asyncloop.bus.declared import Declared
from asyncloop.bus.finished import Finished, as_event
from asyncloop.bus.listener import Listener
from asyncloop.bus.subscription import MAILBOX_BYTES, Marker, OnFailure, OnLog, OnStop, Subscription
from asyncloop.bus.views import narrowed, nbytes_of, with_added
from asyncloop.errors import ConfigError
from asyncloop.events import AfterBatch, AfterEpoch, BeforeBatch, BeforeTraining, Event
from asyncloop.stats import Timings
from asyncloop.threads import LoopHandle, LoopSleeper, Notice, ThreadSleeper

__all__ = ["OUTBOX", "WAKE_AFTER_S", "WAKE_EVERY", "EventBus"]

logger = logging.getLogger("asyncloop")

WAKE_EVERY = 64
WAKE_AFTER_S = 2e-3
OUTBOX = 256
_HISTORY = 4096


class EventBus:
    """The hooks of an engine in config order, and everything that reaches them. Lives on the event loop.

    Only `post`, `handed_over`, `wake_soon`, `asks` and `timed` are called from the model thread.
    """

    def __init__(self, hooks: Iterable[Any] = ()) -> None:
        self._hooks: list[tuple[Any, str]] = []
        self._subscriptions: list[Subscription] = []
        self._listeners: WeakSet[Listener] = WeakSet()  # a reader that was dropped must not keep its events
        self._history: deque[Event] = deque(maxlen=_HISTORY)
        self._outbox: deque[Event | Finished | Marker] = deque()
        self.post: Callable[[Finished | AfterBatch], None] = self._outbox.append
        """Hand over one batch from the model thread. Never waits; after as many as `handed_over` said, call it."""
        self._ended = False
        self._open: _Opened | None = None
        for hook in hooks:
            self.add(hook)

    # --- subscribing --------------------------------------------------------------------------------------------

    def subscribe(self, kind: type[Event], fn: Any, **declared: Any) -> Any:
        """Call `fn(event)` for each event of one kind; `declared` are a hook's attributes (`every`, `mailbox`, …).

        `fn` may be async (runs on the loop) or plain (runs in a thread of its own). Returns what `unsubscribe` takes.
        """
        if not kind.method:
            raise ConfigError(f"{kind.__name__} is no event that can be subscribed to")
        hook = _FunctionHook(kind, fn, declared)
        self.add(hook)
        return hook

    def add(self, hook: Any) -> None:
        """One more hook, behind the others in order; from now on if the engine is running. ConfigError names mistakes."""
        name = self._name_of(hook)
        Declared.by(hook, name)
        self._hooks.append((hook, name))
        if self._open is not None:
            self._start(*self._hooks[-1], self._open)

    def unsubscribe(self, hook: Any) -> None:
        """Take a hook (or what `subscribe` returned) off the bus; what waits in its mailbox is dropped."""
        self._hooks = [entry for entry in self._hooks if entry[0] is not hook]
        for subscription in [own for own in self._subscriptions if own.hook is hook]:
            subscription.switch_off()
            self._subscriptions.remove(subscription)
            for entry in self._outbox:
                if isinstance(entry, Marker):
                    entry.reached(subscription.name, None)

    def events(self, *kinds: type[Event], bound: int = 1024) -> Listener:
        """An async iterator over events of these kinds (none given: all). See Listener."""
        if BeforeBatch in kinds:
            raise ConfigError("before_batch is a hook's alone: the model waits for it, so it cannot be iterated over")
        listener = Listener(kinds, self._history, self._ended, bound)
        self._listeners.add(listener)
        return listener

    def _name_of(self, hook: Any) -> str:
        """The class name, numbered when there are several; stable across runs, because saved states go by it."""
        base = getattr(hook, "name", None) if isinstance(hook, _FunctionHook) else type(hook).__name__
        taken = {name for _, name in self._hooks}
        name, n = str(base), 2
        while name in taken:
            name, n = f"{base}#{n}", n + 1
        return name

    @property
    def hooks(self) -> list[tuple[Any, str]]:
        """(hook, name) in config order."""
        return list(self._hooks)

    # --- running ------------------------------------------------------------------------------------------------

    def open(self, tasks: TaskGroup, *, fail: OnFailure, stop: OnStop, log: OnLog) -> None:
        """Start the hooks' tasks and the pump in the engine's task group. `close` ends them."""
        loop = LoopHandle()
        opened = self._open = _Opened(
            tasks, loop, LoopSleeper(loop), LoopSleeper(loop), ThreadSleeper(), fail, stop, log
        )
        self._ended = False
        self._outbox.clear()
        self._subscriptions = []
        for hook, name in self._hooks:
            self._start(hook, name, opened)
        tasks.start_soon(self._run, opened, self._pump, opened)
        tasks.start_soon(self._run, opened, self._watch)

    def _start(self, hook: Any, name: str, opened: _Opened) -> None:
        subscription = Subscription(
            hook, name, opened.loop, fail=opened.fail, stop=opened.stop, log=opened.log, freed=opened.room_freed
        )
        subscription.set_up = opened.begun
        self._subscriptions.append(subscription)
        opened.tasks.start_soon(self._run, opened, subscription.serve)

    async def _run(self, opened: _Opened, fn: Any, *args: Any) -> None:
        with anyio.CancelScope(shield=True) as scope:  # hooks finish their work when the caller is cancelled
            opened.scopes.append(scope)
            if opened.closed:
                return
            await fn(*args)

    def close(self) -> None:
        """End all hooks' tasks; whatever they had not handled is gone, so flush and settle first."""
        self._ended = True
        for listener in list(self._listeners):
            listener.end()
        self._listeners.clear()
        opened, self._open = self._open, None
        if opened is None:
            return
        opened.closed = True
        for scope in opened.scopes:
            scope.cancel()
        for line in filter(None, (own.report() for own in self._subscriptions)):
            logger.warning("%s", line)

    # --- from the model thread ----------------------------------------------------------------------------------

    @property
    def wants_batches(self) -> bool:
        """Whether anybody listens to batches at all; asked once a stretch."""
        return any(own.wants_batches or own.add for own in self._subscriptions) or any(
            listener.wants_batches for listener in list(self._listeners)
        )

    @property
    def wants_before_batch(self) -> bool:
        return any(own.method("before_batch") for own in self._subscriptions)

    @property
    def timed(self) -> list[Subscription]:
        """The hooks with a cadence in seconds; the model thread decides by its clock which steps are due for them."""
        return [own for own in self._subscriptions if own.cadence is not None and own.cadence.unit == "seconds"]

    def asks(self, stream: str, train: bool, step: int, timed: frozenset[object]) -> list[str]:
        """The variables that due hooks name, each once. Called from the model thread for models with lazy outputs."""
        names: dict[str, None] = {}
        for own in self._subscriptions:
            if own.variables and own.wants_batches and not own.disabled and own.due(stream, train, step, timed):
                names.update(dict.fromkeys(own.variables))
        return list(names)

    def handed_over(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> int:
        """In the model thread, after posting a batch with these inputs and outputs: wake the pump, and sleep while the outbox is full.

        Returns how many more may be posted before this is called again: as many as a handful and MAILBOX_BYTES hold.
        """
        opened = self._open
        if opened is None:
            return WAKE_EVERY
        n_bytes = nbytes_of(inputs, outputs)
        opened.most = most = min(OUTBOX, max(MAILBOX_BYTES // n_bytes, 2)) if n_bytes else OUTBOX
        self.wake()
        while len(self._outbox) >= most and not opened.closed and not opened.released:
            opened.thread.asleep = True
            self.wake()
            if len(self._outbox) >= most and not opened.closed and not opened.released:
                opened.thread.sleep(0.5)
            opened.thread.asleep = False
        return min(WAKE_EVERY, most // 2)

    def wake(self) -> None:
        """Wake the pump if it sleeps. Thread-safe."""
        opened = self._open
        if opened is not None:
            opened.hurry = True
            if opened.pump.asleep:
                opened.pump.wake()

    def wake_soon(self) -> None:
        """The model thread is about to sleep for want of a batch: what it has posted must not lie for long.

        With quick steps that happens after every handful. So unless the last delivery is WAKE_AFTER_S ago, the pump
        only notes it and waits out that time, lest every handful pays for waking all the hooks.
        """
        opened = self._open
        if opened is not None and self._outbox and opened.pump.asleep and not opened.patient:
            opened.pump.wake()

    def release_thread(self, released: bool) -> None:
        """While released, the thread never waits for room: the run is being stopped or has failed."""
        if self._open is not None:
            self._open.released = released
            if released:
                self._open.thread.wake()

    # --- delivery (on the loop) ---------------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """An event that is no barrier: reaches each hook behind the batches before it."""
        self._outbox.append(event)
        self.wake()

    def mark(self) -> Marker:
        """Send a marker behind everything finished so far; hooks leave their state as of now in it."""
        marker = Marker(self._subscriptions)
        self._outbox.append(marker)
        self.wake()
        return marker

    async def flush(self) -> None:
        """Wait until everything posted has reached the mailboxes."""
        opened = self._open
        while opened is not None and not opened.closed and (self._outbox or opened.pumping):
            self.wake()
            await opened.pumped.wait()

    async def settle(self, *, background: bool = False) -> None:
        """Wait until everything posted has been handled by every hook, those in the `background` only if asked."""
        await self.flush()
        for own in self._subscriptions:
            if background or not own.background:
                await own.drained()

    async def lockstep(self, stream: str, step: int, timed: frozenset[object]) -> None:
        """Wait until every lockstep hook that is due at this step has handled it."""
        await self.flush()
        for own in self._subscriptions:
            if own.lockstep and own.due(stream, True, step, timed):
                await own.drained()

    @property
    def lockstep_hooks(self) -> list[Subscription]:
        return [own for own in self._subscriptions if own.lockstep and own.wants_batches]

    async def barrier(self, event: Event, *, last: bool = False, only_set_up: bool = False) -> None:
        """Every batch before has been handled; then the hooks run one after the other in config order.

        `last`: nothing comes after, so cadences in epochs are due. A hook that fails by policy ends the barrier, except
        when `only_set_up` (the end of a run): then every hook that was set up gets its turn.
        """
        await self.settle(background=only_set_up)
        for own in list(self._subscriptions):
            if only_set_up and not own.set_up:
                continue
            method = getattr(own.hook, event.method, None) if only_set_up else own.method(event.method)
            if method is not None and (last or _epoch_due(own, event)):
                if own.background and not only_set_up:
                    own.deliver([_copied(event)])
                else:
                    failed_before = own.n_errors
                    await own.call(method, event)
                    if own.n_errors > failed_before and own.on_error == "fail" and not only_set_up:
                        break
            if isinstance(event, BeforeTraining):
                own.set_up = True
        if self._open is not None and isinstance(event, BeforeTraining):
            self._open.begun = True
        self._remember(event)

    async def before_batch(self, event: BeforeBatch) -> None:
        """Hooks in config order, while the model thread waits."""
        for own in list(self._subscriptions):
            method = own.method("before_batch")
            if method is not None and (own.streams is None or event.stream in own.streams):
                await own.call(method, event)

    async def announce(self, event: Event) -> None:
        """Call every hook at once for an event outside the order of batches (`on_exception`)."""
        for own in list(self._subscriptions):
            method = getattr(own.hook, event.method, None)
            if method is not None:
                await own.call(method, event)
        self._remember(event)

    def take_spent(self) -> dict[str, Timings]:
        """Seconds all hooks together spent on batches since the last call, by stream."""
        total: dict[str, Timings] = {}
        for own in self._subscriptions:
            for stream, timings in own.spent.items():
                total.setdefault(stream, Timings()).merge(timings)
            own.spent.clear()
        return total

    def drop_backlog(self) -> None:
        """Forget everything that was not handled yet: the run is aborted."""
        for entry in self._outbox:
            if isinstance(entry, Marker):
                for own in self._subscriptions:
                    entry.reached(own.name, None)
        self._outbox.clear()
        for own in self._subscriptions:
            own.drop_backlog()
        if self._open is not None:
            self._open.room_freed()

    def publish_last(self, event: AfterBatch) -> None:
        """The run ends with this step: hooks for which it was not due by their cadence get it now."""
        for own in self._waiting_for_last(event):
            self._deliver(own, [event], nbytes_of(event.inputs, event.outputs))

    def last_asks(self, event: AfterBatch) -> list[str]:
        """What `publish_last` will want evaluated, each name once."""
        return list(dict.fromkeys(name for own in self._waiting_for_last(event) for name in own.variables or ()))

    def _waiting_for_last(self, event: AfterBatch) -> list[Subscription]:
        return [
            own
            for own in self._subscriptions
            if own.wants_batches
            and not own.disabled
            and (own.streams is None or event.stream in own.streams)
            and not own.due(event.stream, event.train, event.step, event.timed)
        ]

    async def _pump(self, opened: _Opened) -> None:
        outbox = self._outbox
        delivered_s = 0.0
        while True:
            opened.pumping = bool(outbox)
            if not outbox:
                opened.pumped.tell()
                opened.hurry = False
                opened.pump.asleep = True
                if not outbox:
                    await opened.pump.sleep()
                await self._be_patient(opened, delivered_s + WAKE_AFTER_S - time.perf_counter())
                continue
            entry = outbox[0]
            if isinstance(entry, tuple | AfterBatch):
                room = min((own.room for own in self._subscriptions if own.wants_batches), default=OUTBOX)
                if room <= 0:
                    opened.room.asleep = True
                    await opened.room.sleep()
                    continue
                self._fan_out(self._take_batches(min(room, WAKE_EVERY)))
                delivered_s = time.perf_counter()
            else:
                outbox.popleft()
                for own in self._subscriptions:
                    own.deliver([entry])
                if isinstance(entry, Event):
                    self._remember(entry)
            if opened.thread.asleep and len(outbox) * 2 <= opened.most:
                opened.thread.wake()
            await anyio.lowlevel.checkpoint()

    def _take_batches(self, most: int) -> list[AfterBatch]:
        """Up to `most` batches from the front of the outbox, as events."""
        outbox = self._outbox
        events: list[AfterBatch] = []
        for _ in range(min(most, len(outbox))):
            entry = outbox[0]
            if isinstance(entry, tuple):
                events.append(as_event(entry))
            elif isinstance(entry, AfterBatch):
                events.append(entry)
            else:
                break
            outbox.popleft()
        return events

    async def _be_patient(self, opened: _Opened, left_s: float) -> None:
        """Let some more events come together, unless somebody is in a hurry."""
        if left_s <= 0:
            return
        opened.patient = opened.pump.asleep = True
        if not opened.hurry:
            with anyio.move_on_after(left_s):
                await opened.pump.sleep()
        opened.patient = opened.pump.asleep = False

    def _fan_out(self, events: list[AfterBatch]) -> None:
        n_bytes = nbytes_of(events[0].inputs, events[0].outputs)
        for own in self._subscriptions:
            if own.disabled:
                continue
            if own.add is not None:
                events = self._added(own, events)
            if own.wants_batches:
                if own.takes_all:
                    self._deliver(own, events, n_bytes)
                else:
                    due = [event for event in events if own.due(event.stream, event.train, event.step, event.timed)]
                    if due:
                        self._deliver(own, due, n_bytes)
        for listener in list(self._listeners):
            if listener.wants_batches:
                for event in events:
                    listener.offer(event)

    def _deliver(self, own: Subscription, events: Sequence[AfterBatch], n_bytes: int) -> None:
        if own.variables is not None:
            try:
                events = [narrowed(event, own.variables, own.name) for event in events]
            except Exception as error:
                own.failed(error, events[0])
                return
            n_bytes = nbytes_of(events[0].inputs, events[0].outputs)
        own.deliver(events, n_bytes)

    def _added(self, own: Subscription, events: list[AfterBatch]) -> list[AfterBatch]:
        assert own.add is not None
        try:
            return [
                with_added(event, own.add(event)) if own.streams is None or event.stream in own.streams else event
                for event in events
            ]
        except Exception as error:
            own.failed(error, events[0])
            return events

    def _remember(self, event: Event) -> None:
        self._history.append(event)
        for listener in list(self._listeners):
            listener.offer(event)

    async def _watch(self) -> None:
        """Names hooks that are over their deadline; sleeps in between as long as their deadlines allow."""
        while True:
            deadlines = [own.deadline for own in self._subscriptions if own.deadline is not None]
            await anyio.sleep(min(max(min(deadlines, default=1.0) / 4, 0.02), 1.0))
            now = time.perf_counter()
            for own in list(self._subscriptions):
                own.watch(now)


class _Opened:
    """What exists only while a bus is open."""

    def __init__(
        self,
        tasks: TaskGroup,
        loop: LoopHandle,
        pump: LoopSleeper,
        room: LoopSleeper,
        thread: ThreadSleeper,
        fail: OnFailure,
        stop: OnStop,
        log: OnLog,
    ) -> None:
        self.tasks, self.loop, self.pump, self.room, self.thread = tasks, loop, pump, room, thread
        self.fail, self.stop, self.log = fail, stop, log
        self.scopes: list[anyio.CancelScope] = []
        self.pumping = False
        self.most = OUTBOX
        """How many events may wait in the outbox; less than OUTBOX when they are large. Written by the model thread."""
        self.hurry = False
        """Whether somebody wants what is in the outbox delivered at once."""
        self.patient = False
        """Whether the pump sleeps although something is in the outbox; only who is in a hurry wakes it then."""
        self.pumped = Notice()
        self.closed = False
        self.released = False
        self.begun = False
        """before_training is over: a hook that comes now counts as set up."""

    def room_freed(self) -> None:
        if self.room.asleep:
            self.room.wake()


class _FunctionHook:
    """A function as a hook of one event."""

    def __init__(self, kind: type[Event], fn: Any, declared: Mapping[str, Any]) -> None:
        self.name = getattr(fn, "__qualname__", type(fn).__name__)
        for key, value in declared.items():
            setattr(self, key, value)
        setattr(self, kind.method, fn)


def _epoch_due(own: Subscription, event: Event) -> bool:
    """Cadences in epochs filter `after_epoch` only; the evaluation before training counts as epoch 0 of any interval."""
    cadence = own.cadence
    if not isinstance(event, AfterEpoch) or cadence is None or cadence.unit != "epochs":
        return True
    return cadence.due(event.epoch) or (event.epoch == 0 and cadence.start <= 0)


def _copied(event: Event) -> Event:
    """A barrier event for a background hook: its own copy of `data`, because the run goes on and may change it."""
    own = copy.copy(event)
    if hasattr(own, "data"):
        setattr(own, "data", {stream: dict(values) for stream, values in getattr(event, "data").items()})  # noqa: B009, B010
    return own
