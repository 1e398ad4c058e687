"""ModelThread: the one thread on which the model lives, running planned stretches of batches back to back.

The engine gives it a stretch (this stream, until that step) and sleeps; between the stretch's ends the thread asks
nobody. After each batch it looks at one flag (`control.pending`), so that whatever is asked acts at the next step.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from anyio.abc import TaskGroup

from asyncloop.batch import Batch, Cursor, as_batch, n_examples_of
from asyncloop.bus import EventBus, Finished, Place, Subscription
from asyncloop.bus.bus import OUTBOX, WAKE_AFTER_S, WAKE_EVERY
from asyncloop.errors import DataError, ModelError, NonFiniteError
from asyncloop.events import BeforeBatch
from asyncloop.stats import Timings, WeightedMeans, metric_sink
from asyncloop.stream import EndOfStream, Feed, Interrupted
from asyncloop.threads import OwnThread, ThreadSleeper

__all__ = ["Halt", "ModelThread", "Policy", "Rules", "Stretch"]

logger = logging.getLogger("asyncloop")

Policy = Literal["ignore", "warn", "error"]
Halt = Literal["end", "step", "batches", "time", "asked"]

_NOBODY: frozenset[Subscription] = frozenset()
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the engine was told about batches and outputs."""

    input_names: Sequence[str]
    batch_size: int | None = None
    on_empty_batch: Policy = "error"
    on_unused_sources: Policy = "warn"
    on_nonfinite: Policy = "error"


@dataclass(slots=True)
class Stretch:
    """One planned piece of work and, while and after it runs, how far it came. Written by the model thread only."""

    feed: Feed
    place: Place
    index: int
    """Index in the pass of the next batch."""
    step: int
    """Updates done."""
    until_step: int | None = None
    batches: int | None = None
    """Return after this many accepted batches."""
    until_s: float | None = None
    """Return at the first step after this clock reading (time.perf_counter)."""
    cursor: Cursor = None
    """Position right after the last batch that was trained on."""
    n_accepted: int = 0
    n_dropped: int = 0
    """Batches of another size than `batch_size`."""
    means: WeightedMeans = field(default_factory=WeightedMeans)
    read: Timings = field(default_factory=Timings)
    ran: Timings = field(default_factory=Timings)


class ModelThread:
    """Owns the thread of a model: construction, `run`, `state_dict` and `load_state_dict` happen here only.

    Use it as an async context manager on the event loop. `last` is the newest train step, kept until the next batch
    starts, so that the last step of a run can still be asked for outputs.
    """

    def __init__(self) -> None:
        self._thread = OwnThread("asyncloop model")
        self.last: Finished | None = None
        self._lazy: Mapping[str, Callable[[], Any]] = _NOTHING
        self._tasks: TaskGroup | None = None
        self._warned: set[str] = set()

    async def __aenter__(self) -> ModelThread:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.last, self._lazy = None, _NOTHING
        await self._thread.aclose()

    async def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run a plain function on the model thread between stretches. Cancellation waits for it to return."""
        return await self._thread.call(fn, *args)

    async def run(self, stretch: Stretch, model: Any, rules: Rules, bus: EventBus, tasks: TaskGroup) -> Halt:
        """Run a stretch; returns why it ended: the stream's end, its planned step, its batches, or somebody asked.

        Raises what the model, the producers or the checks raise, with a note naming stream and index; `stretch` then
        says how far it came. Cancellation ends it after the step under way.
        """
        self._tasks = tasks

        def end_early() -> None:
            stretch.place.control.attract()
            stretch.feed.interrupt()
            bus.release_thread(True)

        return await self._thread.call(self._work, stretch, model, rules, bus, on_cancel=end_early)

    async def peek_end(self, feed: Feed) -> bool:
        """Whether the stream is over, by looking one batch ahead; False also if somebody interrupted the look."""

        def look() -> bool:
            try:
                feed.give_back(feed.next())
            except EndOfStream:
                return True
            except Interrupted:
                pass
            return False

        return await self._thread.call(look, on_cancel=feed.interrupt)

    async def last_with(self, names: Sequence[str]) -> Finished | None:
        """The newest train step with these outputs evaluated as well."""
        if self.last is not None and any(name in self._lazy for name in names):
            self.last.asked = {**self.last.asked, **await self.call(self._evaluate, names)}
        return self.last

    # --- on the thread ------------------------------------------------------------------------------------------

    def _work(self, stretch: Stretch, model: Any, rules: Rules, bus: EventBus) -> Halt:
        """The loop itself. Everything that is asked once a stretch is asked before it."""
        place, feed, means = stretch.place, stretch.feed, stretch.means
        stream, train, control = place.stream, place.train, place.control
        run = self._run_on_loop(model.run) if inspect.iscoroutinefunction(model.run) else model.run
        feed.before_sleep(bus.wake)
        clock, next_item, post = time.perf_counter, feed.next, bus.post
        wanted, before_batch = bus.wants_batches, bus.wants_before_batch
        timed_hooks = bus.timed if train else []
        batches, until_s, n_examples = stretch.batches, stretch.until_s, 0
        until_step = stretch.until_step if train else None
        guard = rules.on_nonfinite != "ignore" and train
        woken_s = previous_s = ended_s = clock()
        sources: frozenset[str] | None = None
        for own in timed_hooks:
            if own.next_due_s < 0 and own.cadence is not None:
                own.next_due_s = ended_s + own.cadence.interval
        metric_sink.set(lambda name, value: means.add(name, _host_scalar(value), n_examples))
        while True:
            if control.pending:
                return self._leave("asked", bus)
            try:
                value, cursor = next_item()
            except EndOfStream:
                return self._leave("end", bus)
            except Interrupted:
                return self._leave("asked", bus)
            except Exception as error:
                error.add_note(f"stream {stream!r}, batch {stretch.index}")
                bus.wake()
                raise
            began_s = clock()
            index = stretch.index
            stretch.index = index + 1
            batch = as_batch(value, stream, index)
            if batch.keys() != sources:
                self._check_sources(batch, rules, stream, index)
                sources = frozenset(batch)
            n_examples = n_examples_of(batch, stream, index)
            if n_examples == 0:
                _by_policy(rules.on_empty_batch, f"stream {stream!r}, batch {index} is empty", DataError)
                stretch.cursor = cursor
                continue
            if rules.batch_size is not None and n_examples != rules.batch_size:
                stretch.n_dropped += 1
                stretch.cursor = cursor
                continue
            self.last, self._lazy = (None, _NOTHING) if train else (self.last, self._lazy)
            feeds, asked_before = batch, None
            if before_batch:
                feeds, asked_before = self._before_batch(bus, place, stretch, batch, index)
            try:
                outputs = run(feeds, train=train, stream=stream)
            except Exception as error:
                step = f", step {stretch.step + 1}" if train else ""
                error.add_note(f"model.run on stream {stream!r}, batch {index}{step}")
                bus.wake()
                raise
            ended_s = clock()
            lazy = self._take_outputs(outputs, batch, means, n_examples, stretch)
            if train:
                stretch.step += 1
                if guard:
                    self._check_finite(outputs, rules.on_nonfinite, stretch, index)
            stretch.cursor = cursor
            stretch.n_accepted += 1
            stretch.read.add(began_s - previous_s)
            stretch.ran.add(ended_s - began_s)
            previous_s = ended_s
            if wanted:
                step = stretch.step
                timed = _timed_due(timed_hooks, ended_s) if timed_hooks else _NOBODY
                asked = _NOTHING
                if lazy is not None:
                    outputs = {name: value for name, value in outputs.items() if name not in lazy}
                    names = bus.asks(stream, train, step, timed)
                    asked = _evaluated(lazy, names)
                    if asked_before:
                        outputs.update(_evaluated(lazy, asked_before))
                finished = Finished(place, step, index, batch, outputs, asked, timed)
                if train:
                    self.last = finished
                    if lazy is not None:
                        self._lazy = lazy
                n_waiting = post(finished)
                if n_waiting >= WAKE_EVERY or ended_s - woken_s > WAKE_AFTER_S:
                    bus.wake()
                    woken_s = ended_s
                    if n_waiting >= OUTBOX:
                        bus.wait_room()
                if timed and any(own.lockstep for own in timed):
                    return self._leave("time", bus)
            if stretch.step == until_step:
                return self._leave("step", bus)
            if stretch.n_accepted == batches:
                return self._leave("batches", bus)
            if until_s is not None and ended_s >= until_s:
                return self._leave("time", bus)

    def _leave(self, halt: Halt, bus: EventBus) -> Halt:
        bus.wake()
        return halt

    def _run_on_loop(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """A model whose `run` is async: each step waits for the loop, which costs a round trip of some 60 µs."""

        def call(batch: Batch, *, train: bool, stream: str) -> Any:
            return self._on_loop(lambda: run(batch, train=train, stream=stream))

        return call

    def _on_loop(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine on the event loop and wait for it in this thread."""
        tasks, sleeper = self._tasks, ThreadSleeper()
        assert tasks is not None
        result: list[Any] = []
        failure: list[BaseException] = []

        async def answer() -> None:
            try:
                result.append(await make())
            except Exception as error:
                failure.append(error)
            finally:
                sleeper.wake()

        self._thread.loop.soon(lambda: tasks.start_soon(answer))
        sleeper.sleep()
        if failure:
            raise failure[0]
        if not result:
            raise RuntimeError("the event loop cancelled what the model thread was waiting for")
        return result[0]

    def _before_batch(
        self, bus: EventBus, place: Place, stretch: Stretch, batch: Batch, index: int
    ) -> tuple[dict[str, Any], list[str]]:
        feeds, asked = dict(batch), list[str]()
        event = BeforeBatch(
            place.run, place.control, place.epoch, stretch.step, place.stream, place.train, index, batch, feeds,
            lambda *names: asked.extend(names),
        )  # fmt: skip
        self._on_loop(lambda: bus.before_batch(event))
        return feeds, asked

    def _check_sources(self, batch: Batch, rules: Rules, stream: str, index: int) -> None:
        """Once a stretch and when the sources change: all inputs are there, and what to do with the rest."""
        missing = [name for name in rules.input_names if name not in batch]
        if missing:
            raise DataError(
                f"stream {stream!r}, batch {index} lacks the model's inputs {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, batch)) or 'no sources'}"
            )
        unused = [name for name in batch if name not in rules.input_names]
        if unused and stream not in self._warned:
            what = f"stream {stream!r} has sources the model does not use: {', '.join(map(repr, unused))}"
            if rules.on_unused_sources == "warn":
                self._warned.add(stream)
            _by_policy(rules.on_unused_sources, what, DataError)

    def _take_outputs(
        self, outputs: Any, batch: Batch, means: WeightedMeans, n_examples: int, stretch: Stretch
    ) -> dict[str, Callable[[], Any]] | None:
        """Check what the model returned and add its scalars to the means; the lazy outputs, None if there are none."""
        if not isinstance(outputs, Mapping):
            raise ModelError(
                f"model.run must return a mapping of output names to values, not {type(outputs).__name__!r} "
                f"(stream {stretch.place.stream!r}, batch {stretch.index - 1})"
            )
        lazy: dict[str, Callable[[], Any]] | None = None
        for name, value in cast("Mapping[str, Any]", outputs).items():
            if name in batch:
                raise ModelError(
                    f"the model's output {name!r} is named like a source of stream {stretch.place.stream!r} "
                    f"(batch {stretch.index - 1}); rename one of the two"
                )
            kind = type(value)
            if kind is float or kind is int:
                means.add(name, value, n_examples)
            else:
                sort = _sorts.get(kind) or _sort_of(kind)
                if sort == "scalar":
                    means.add(name, float(value), n_examples)
                elif sort == "array":
                    if value.ndim == 0:
                        means.add(name, _host_scalar(value), n_examples)
                elif sort == "lazy":
                    lazy = lazy or {}
                    lazy[name] = value
                elif sort == "mapping":
                    _add_nested(means, name, value, n_examples)
        return lazy

    def _check_finite(self, outputs: Mapping[str, Any], policy: Policy, stretch: Stretch, index: int) -> None:
        for name, value in outputs.items():
            if name == "loss" or name.endswith("_loss"):
                if type(value) is float:
                    finite = math.isfinite(value)
                elif callable(value):
                    continue
                else:
                    finite = bool(np.isfinite(value).all()) if not hasattr(value, "isfinite") else bool(value.isfinite().all())
                if not finite:
                    shown = value if np.ndim(value) == 0 else "an array with non-finite values"
                    what = f"output {name!r} is {shown} at step {stretch.step} (stream {stretch.place.stream!r}, batch {index})"
                    _by_policy(
                        policy,
                        what + "; look at the learning rate and at that batch, or set on_nonfinite = 'warn'",
                        NonFiniteError,
                    )

    def _evaluate(self, names: Sequence[str]) -> dict[str, Any]:
        return _evaluated(self._lazy, names)


def _evaluated(lazy: Mapping[str, Callable[[], Any]], names: Sequence[str]) -> dict[str, Any]:
    """Each lazy output that is named (itself or a leaf of it), evaluated once."""
    wanted = {name if name in lazy else name.partition("/")[0] for name in names}
    return {name: lazy[name]() for name in lazy if name in wanted}


_sorts: dict[type, str] = {}


def _sort_of(kind: type) -> str:
    """How outputs of a type are treated; asked once a type."""
    if issubclass(kind, bool | np.bool_ | int | float | np.number):
        sort = "scalar"
    elif issubclass(kind, Mapping):
        sort = "mapping"
    elif hasattr(kind, "ndim"):
        sort = "array"
    elif callable(getattr(kind, "__call__", None)) and not isinstance(kind, str):  # noqa: B004
        sort = "lazy"
    else:
        sort = "other"
    _sorts[kind] = sort
    return sort


def _add_nested(means: WeightedMeans, path: str, values: Mapping[str, Any], n_examples: int) -> None:
    for name, value in values.items():
        sort = _sorts.get(type(value)) or _sort_of(type(value))
        if sort == "mapping":
            _add_nested(means, f"{path}/{name}", value, n_examples)
        elif sort == "scalar" or (sort == "array" and value.ndim == 0):
            means.add(f"{path}/{name}", _host_scalar(value), n_examples)


def _host_scalar(value: Any) -> Any:
    """A scalar that can be summed: a float, or a device scalar cut off from its graph, left where it is."""
    return value.detach() if hasattr(value, "detach") else float(value)


def _timed_due(hooks: Sequence[Subscription], now_s: float) -> frozenset[Subscription]:
    due = [own for own in hooks if now_s >= own.next_due_s]
    for own in due:
        assert own.cadence is not None
        own.next_due_s = now_s + own.cadence.interval
    return frozenset(due) if due else _NOBODY


def _by_policy(policy: Policy, what: str, error: type[Exception]) -> None:
    if policy == "error":
        raise error(what)
    if policy == "warn":
        logger.warning("%s", what)
