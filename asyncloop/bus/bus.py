"""EventBus: what the model thread has finished goes to every hook, without the model waiting for any of them.

    model thread ──► pump (one wake-up for all that piled up) ──► a mailbox per hook ──► hook tasks

A full outbox of the pump holds the thread back, a full mailbox of a blocking hook holds the outbox back: memory is
bounded end to end.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import anyio
from anyio.abc import TaskGroup

from asyncloop.batch import nbytes_of
from asyncloop.bus.declared import Declared, warn_of_slips
from asyncloop.bus.history import History
from asyncloop.bus.listener import Listener
from asyncloop.bus.pump import OUTBOX, Pump
from asyncloop.bus.subscription import Marker, OnFailure, OnLog, OnStop, Subscription
from asyncloop.bus.views import narrowed, with_added, with_scalars
from asyncloop.deadlines import next_look
from asyncloop.errors import ConfigError
from asyncloop.events import AfterBatch, AfterEpoch, BeforeBatch, BeforeTraining, Event
from asyncloop.stats import Timings
from asyncloop.threads import LoopHandle, shrugged_off

__all__ = ["EventBus"]

logger = logging.getLogger("asyncloop")


class EventBus:
    """The hooks of an engine in config order, and everything that reaches them. Lives on the event loop.

    Only `asks`, `next_wanted`, `timed` and some of `pump`'s methods are called from the model thread.
    """

    def __init__(self, hooks: Iterable[Any] = ()) -> None:
        self._hooks: list[tuple[Any, str]] = []
        self._subscriptions: list[Subscription] = []
        self._listeners: WeakSet[Listener] = WeakSet()  # a reader that was dropped must not keep its events
        self._history = History()
        self._ended = False
        self._open: _Opened | None = None
        self.is_present: Callable[[Any], bool] = lambda hook: True
        """Whether a hook runs in this process; others are only planned with, as all processes have the same plan."""
        self._absent: list[Subscription] = []
        self.audience = Audience()
        self._is_read = False
        """Whether somebody iterates over batches. The model thread may not look at the set, which shrinks at any time."""
        self.only_training: Collection[str] = ()
        """Outputs that evaluations lack; a hook that names them gets the others there."""
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
        warn_of_slips(hook, name)
        self._hooks.append((hook, name))
        if self._open is not None:
            self._start(*self._hooks[-1], self._open)
            self.audience.changed = True

    def load_states(self, states: Mapping[str, Any]) -> None:
        """Give each hook its state of a checkpoint, before anything is delivered; those without one begin anew."""
        for hook, name in self._hooks:
            if name in states and self.is_present(hook):
                try:
                    hook.load_state_dict(states[name])
                except Exception as error:
                    error.add_note(f"hook {name}: loading its state")
                    raise

    def unsubscribe(self, hook: Any) -> None:
        """Take a hook (or what `subscribe` returned) off the bus; what waits in its mailbox is dropped."""
        self._hooks = [entry for entry in self._hooks if entry[0] is not hook]
        for subscription in [own for own in self._subscriptions if own.hook is hook]:
            subscription.switch_off()
            self._subscriptions.remove(subscription)
            self.audience.changed = True
            for marker in self._markers_on_their_way():
                marker.reached(subscription.name, None)

    def events(self, *kinds: type[Event], bound: int = 1024) -> Listener:
        """An async iterator over events of these kinds (none given: all). See Listener."""
        if BeforeBatch in kinds:
            raise ConfigError("before_batch is a hook's alone: the model waits for it, so it cannot be iterated over")
        listener = Listener(kinds, self._history, self._ended, bound)
        self._listeners.add(listener)
        if listener.wants_batches:
            self._is_read = self.audience.changed = True
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
            tasks, loop, Pump(loop, self._room, self._fan_out, self._pass_on, fail), fail, stop, log
        )
        self._ended = False
        self._subscriptions, self._absent = [], []
        for hook, name in self._hooks:
            self._start(hook, name, opened)
        tasks.start_soon(self._run, opened, opened.pump.tick)
        tasks.start_soon(self._run, opened, self._watch)

    def _start(self, hook: Any, name: str, opened: _Opened) -> None:
        subscription = Subscription(
            hook, name, opened.loop, fail=opened.fail, stop=opened.stop, log=opened.log, freed=opened.pump.room_freed
        )
        subscription.set_up = opened.begun
        if not self.is_present(hook):
            self._absent.append(subscription)
            return
        self._subscriptions.append(subscription)
        opened.tasks.start_soon(self._serve, opened, subscription)

    async def _serve(self, opened: _Opened, own: Subscription) -> None:
        try:
            await self._run(opened, own.serve)
        finally:
            await own.end()

    async def _run(self, opened: _Opened, fn: Callable[[], Awaitable[None]]) -> None:
        """Until the bus is closed: hooks finish their work when the caller, or every task of the loop, is cancelled."""
        with anyio.CancelScope(shield=True) as scope:
            opened.scopes.append(scope)
            while not opened.closed:
                try:
                    await fn()
                except anyio.get_cancelled_exc_class():
                    if not await shrugged_off():
                        raise

    def close(self) -> None:
        """End all hooks' tasks; whatever they had not handled is gone, so flush and settle first."""
        self._ended = True
        for listener in list(self._listeners):
            listener.end()
        self._listeners.clear()
        self._is_read = False
        opened, self._open = self._open, None
        if opened is None:
            return
        opened.closed = True
        opened.pump.close()
        for scope in opened.scopes:
            scope.cancel()
        for line in filter(None, (own.report() for own in self._subscriptions)):
            logger.warning("%s", line)

    # --- for the model thread -----------------------------------------------------------------------------------

    @property
    def pump(self) -> Pump:
        """Where the model thread posts what it has finished."""
        assert self._open is not None, "only while the bus is open"
        return self._open.pump

    @property
    def wants_batches(self) -> bool:
        """Whether anybody listens to batches at all."""
        return self._is_read or any(own.wants_batches or own.add for own in self._subscriptions)

    def next_wanted(self, stream: str, train: bool, after: int) -> float:
        """The first step after `after` whose batch somebody is to have: -1 for each batch, inf for none.

        Hooks with a cadence in seconds are not asked: their clocks are. Called from the model thread.
        """
        if self._is_read:
            return -1
        return min((own.next_wanted(stream, train, after) for own in self._subscriptions), default=math.inf)

    @property
    def wants_before_batch(self) -> bool:
        return any(own.method("before_batch") for own in self._subscriptions)

    @property
    def wants_variables(self) -> bool:
        """Whether any hook names variables, and so may ask for outputs that are made on demand."""
        return any(own.variables for own in self._subscriptions)

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

    def wants_scalars(self, stream: str, train: bool, step: int, timed: frozenset[object]) -> bool:
        """Whether a due hook wants scalars on the host that are on a device. Called from the model thread."""
        return any(
            own.scalars_on_host and not own.disabled and own.due(stream, train, step, timed)
            for own in self._subscriptions
        )

    def release_thread(self, released: bool) -> None:
        """While released, the thread never waits for room: the run is being stopped or has failed."""
        if self._open is not None:
            self._open.pump.release_thread(released)

    # --- delivery (on the loop) ---------------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """An event that is no barrier: reaches each hook behind the batches before it."""
        if self._open is not None:
            self._open.pump.put(event)

    def mark(self, logged: Callable[[str], Any] | None) -> Marker:
        """Send a marker behind everything finished so far; hooks leave their state as of now in it, and what they have
        `logged` (asked by name, on whatever thread the hook is)."""
        marker = Marker(self._subscriptions, logged)
        self.pump.put(marker)
        return marker

    async def flush(self) -> None:
        """Wait until everything posted has reached the mailboxes."""
        if self._open is not None:
            await self._open.pump.flush()

    async def settle(self, *, background: bool = False) -> None:
        """Wait until everything posted has been handled by every hook, those in the `background` only if asked."""
        await self.flush()
        for own in self._subscriptions:
            if background or not own.background:
                await own.drained()

    async def lockstep(self, stream: str, step: int, timed: frozenset[object]) -> bool:
        """Wait until every lockstep hook that is due at this step has handled it; whether any is, in some process."""
        due = [own for own in self.lockstep_hooks if own.due(stream, True, step, timed)]
        if due:
            await self.flush()
        for own in due:
            await own.drained()
        return bool(due)

    @property
    def failed_with_state(self) -> list[str]:
        """Names of the hooks that have failed by policy, or were cut off, and whose state would be part of a checkpoint."""
        return [
            own.name
            for own in self._subscriptions
            if (own.is_cut_off or (own.n_errors and own.on_error == "fail")) and hasattr(own.hook, "state_dict")
        ]

    @property
    def lockstep_hooks(self) -> list[Subscription]:
        return [own for own in (*self._subscriptions, *self._absent) if own.lockstep and own.wants_batches]

    async def barrier(self, event: Event, *, last: bool = False, only_set_up: bool = False) -> None:
        """Every batch before has been handled; then the hooks run one after the other in config order.

        `last`: nothing comes after, so cadences in epochs are due. A hook that fails by policy ends the barrier, except
        when `only_set_up` (the end of a run): then every hook that was set up gets its turn. Those in the background
        are set up in any case: they record how the run ended.
        """
        await self.settle(background=only_set_up)
        begins, failed = isinstance(event, BeforeTraining), False
        for own in list(self._subscriptions):
            if (only_set_up and not own.set_up) or (failed and not (begins and own.background)):
                continue
            method = getattr(own.hook, event.method, None) if only_set_up else own.method(event.method)
            if method is not None and (last or _epoch_due(own, event)):
                if own.background and not only_set_up:
                    own.deliver([_copied(event)])
                else:
                    failed_before = own.n_errors
                    await own.call(method, event)
                    failed = own.n_errors > failed_before and own.on_error == "fail" and not only_set_up
            if begins:
                own.set_up = True
        if self._open is not None and begins:
            self._open.begun = True
        self._remember(event)

    def hurry(self) -> None:
        """The run is to end: from now on each hook has its deadline for all that still waits for it together."""
        for own in self._subscriptions:
            own.hurry(time.perf_counter())

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
        for marker in self._markers_on_their_way():
            for own in self._subscriptions:
                marker.reached(own.name, None)
        for own in self._subscriptions:
            own.drop_backlog()
        if self._open is not None:
            self._open.pump.drop()

    def _markers_on_their_way(self) -> list[Marker]:
        outbox = list(self._open.pump.outbox) if self._open is not None else []
        return [entry for entry in outbox if isinstance(entry, Marker)]

    def publish_last(self, event: AfterBatch) -> None:
        """The run ends with this step: hooks for which it was not due by their cadence get it now."""
        waiting = self._waiting_for_last(event)
        for own in self._subscriptions:
            if own.add is not None and not own.disabled:
                [event] = self._added(own, [event])
            if own in waiting:
                self._deliver(own, [event], nbytes_of(event.inputs, event.outputs))

    def last_asks(self, event: AfterBatch) -> tuple[list[str], bool]:
        """What `publish_last` will want evaluated, each name once; and whether it will want all scalars on the host."""
        waiting = self._waiting_for_last(event)
        names = dict.fromkeys(name for own in waiting for name in own.variables or ())
        return list(names), any(own.scalars_on_host for own in waiting)

    def _waiting_for_last(self, event: AfterBatch) -> list[Subscription]:
        return [
            own
            for own in self._subscriptions
            if own.wants_batches
            and not own.disabled
            and (own.streams is None or event.stream in own.streams)
            and not own.due(event.stream, event.train, event.step, event.timed)
        ]

    def _room(self) -> int:
        return min((own.room for own in self._subscriptions if own.wants_batches), default=OUTBOX)

    def _pass_on(self, entry: Event | Marker) -> None:
        for own in self._subscriptions:
            own.deliver([entry])
        if isinstance(entry, Event):
            self._remember(entry)

    def _fan_out(self, events: list[AfterBatch]) -> None:
        n_bytes = nbytes_of(events[0].inputs, events[0].outputs)
        for own in self._subscriptions:
            if own.disabled:
                continue
            if own.add is not None:
                events = self._added(own, events)
                n_bytes = nbytes_of(events[0].inputs, events[0].outputs)
            if own.wants_batches:
                if own.takes_all:
                    self._deliver(own, events, n_bytes)
                else:
                    due = [event for event in events if own.due(event.stream, event.train, event.step, event.timed)]
                    if due:
                        self._deliver(own, due, n_bytes)
        readers = [listener for listener in list(self._listeners) if listener.wants_batches]
        for listener in readers:
            for event in events:
                listener.offer(event)
        if self._is_read and not readers:
            self._is_read, self.audience.changed = False, True

    def _deliver(self, own: Subscription, events: Sequence[AfterBatch], n_bytes: int) -> None:
        if own.variables is not None:
            try:
                events = [narrowed(event, own.variables, own.name, self.only_training) for event in events]
            except Exception as error:
                own.failed(error, events[0])
                return
            n_bytes = nbytes_of(events[0].inputs, events[0].outputs)
        elif own.scalars_on_host:
            events = [with_scalars(event) if event.asked else event for event in events]
        own.deliver(events, n_bytes)

    def _added(self, own: Subscription, events: list[AfterBatch]) -> list[AfterBatch]:
        """The events with what a hook's `add` gives for each, which is asked once an event, also of the run's last."""
        assert own.add is not None
        found: list[AfterBatch] = []
        for event in events:
            if own.streams is None or event.stream in own.streams:
                at = (event.stream, event.step, event.index)
                if own.added is None or own.added[0] != at:
                    try:
                        own.added = at, own.add(event)
                    except Exception as error:
                        own.raised(error, event)
                        return [*found, *events[len(found) :]]
                event = with_added(event, own.added[1])
            found.append(event)
        return found

    def _remember(self, event: Event) -> None:
        self._history.append(event)
        for listener in list(self._listeners):
            listener.offer(event)

    async def _watch(self) -> None:
        """Names hooks that are over their deadline; sleeps in between as long as their deadlines allow."""
        while True:
            overslept_s = await next_look(own.deadline for own in self._subscriptions if own.deadline is not None)
            now_s = time.perf_counter()
            for own in list(self._subscriptions):
                own.watch(now_s, overslept_s)


class Audience:
    """Whether somebody has come or gone since the model thread, which puts it down again, last looked."""

    __slots__ = ("changed",)

    def __init__(self) -> None:
        self.changed = False


class _Opened:
    """What exists only while a bus is open."""

    def __init__(
        self,
        tasks: TaskGroup,
        loop: LoopHandle,
        pump: Pump,
        fail: OnFailure,
        stop: OnStop,
        log: OnLog,
    ) -> None:
        self.tasks, self.loop, self.pump = tasks, loop, pump
        self.fail, self.stop, self.log = fail, stop, log
        self.scopes: list[anyio.CancelScope] = []
        self.closed = False
        self.begun = False
        """before_training is over: a hook that comes now counts as set up."""


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
