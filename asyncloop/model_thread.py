"""ModelThread: the one thread on which the model lives, running planned stretches of batches back to back.

The engine gives it a stretch (this stream, until that step) and sleeps; between the stretch's ends the thread asks
nobody. After each batch it looks at one flag (`control.pending`), so that whatever is asked acts at the next step.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import anyio
import numpy as np
from anyio.abc import TaskGroup

from asyncloop.batch import Batch, Cursor, RunBatch, as_batch, n_examples_of, run_batch
from asyncloop.bus import EventBus, Subscription, device_scalars, leaf
from asyncloop.bus.finished import Finished, Passing, as_event
from asyncloop.bus.pump import DELIVER_EVERY_S
from asyncloop.control import Control
from asyncloop.errors import DataError, ModelError, NonFiniteError, joined
from asyncloop.events import AfterBatch, BeforeBatch, RunInfo
from asyncloop.fetching import Fetch, is_on_device
from asyncloop.late_checks import LateChecks
from asyncloop.model import Skipped
from asyncloop.stats import Timings, WeightedMeans, metric_sink
from asyncloop.stream import EndOfStream, Feed, Interrupted
from asyncloop.threads import OwnThread, ThreadSleeper, stray_cancellation, was_cancelled

__all__ = ["Halt", "ModelThread", "Policy", "Rules", "Stretch"]

logger = logging.getLogger("asyncloop")

Policy = Literal["ignore", "warn", "error"]
Halt = Literal["end", "step", "batches", "time", "asked"]

_NOBODY: frozenset[object] = frozenset()
_TIMINGS = 256
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the engine was told about batches and outputs."""

    input_names: Sequence[str]
    batch_size: int | None = None
    on_empty_batch: Policy = "error"
    on_unused_sources: Policy = "warn"
    on_nonfinite: Policy = "error"
    left_to_hooks: frozenset[str] | None = frozenset()
    """Outputs that a hook watches instead of `on_nonfinite`; None: all of them."""


@dataclass(slots=True)
class Stretch:
    """One planned piece of work and, while and after it runs, how far it came. Written by the model thread only."""

    feed: Feed
    run: RunInfo
    control: Control
    epoch: int
    stream: str
    train: bool
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

    @property
    def is_full(self) -> bool:
        return self.batches is not None and self.n_accepted >= self.batches


class ModelThread:
    """Owns the thread of a model: construction, `run`, `state_dict` and `load_state_dict` happen here only.

    Use it as an async context manager on the event loop.
    """

    def __init__(self) -> None:
        self._thread = OwnThread("asyncloop model")
        self._last: Finished | AfterBatch | None = None
        self._lazy: Mapping[str, Callable[[], Any]] = _NOTHING
        self._tasks: TaskGroup | None = None
        self._warned: set[str] = set()
        self._late: LateChecks | None = None
        """Losses of the stretch under way that are on a device, if there are any."""
        self.model_failed = False
        """Whether the model (or a check of what it gave) raised, so that its state is not worth saving."""

    @property
    def ident(self) -> int | None:
        """The thread's identifier, as `threading.get_ident` gives it there."""
        return self._thread.ident

    async def __aenter__(self) -> ModelThread:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._last, self._lazy = None, _NOTHING
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
            stretch.control.attract()
            stretch.feed.interrupt()
            bus.release_thread(True)

        return await self._thread.call(self._work, stretch, model, rules, bus, on_cancel=end_early)

    async def peek_end(self, feed: Feed, stream: str, index: int) -> bool | None:
        """Whether the stream is over, by looking one batch ahead; None if somebody interrupted the look."""

        def look() -> bool | None:
            try:
                feed.give_back(feed.next())
            except (StopIteration, EndOfStream):
                return True
            except Interrupted:
                return None
            except Exception as error:
                error.add_note(f"stream {stream!r}, batch {index}")
                raise
            return False

        return await self._thread.call(look, on_cancel=feed.interrupt)

    @property
    def last(self) -> AfterBatch | None:
        """The newest train step, kept until the next batch starts, so that it can still be asked for outputs."""
        last = self._last
        if isinstance(last, tuple):
            last = self._last = as_event(last)
        return last

    async def last_with(self, names: Sequence[str], scalars: bool) -> AfterBatch | None:
        """The newest train step with these outputs, and its `scalars`, evaluated and on the host as well."""
        last = self.last
        if last is None:
            return None

        def ask() -> dict[str, Any]:
            evaluated = _evaluated(self._lazy, names)
            return evaluated | Fetch({**evaluated, **_on_device(last, names, scalars)}).take()

        if scalars or any(name in self._lazy or name not in (last.asked or ()) for name in names):
            last.asked = {**(last.asked or {}), **await self.call(ask)}
        return last

    # --- on the thread ------------------------------------------------------------------------------------------

    def _work(self, stretch: Stretch, model: Any, rules: Rules, bus: EventBus) -> Halt:
        """A stretch, and what is left to look at when it is over."""
        failure: BaseException | None = None
        halt: Halt = "end"
        try:
            halt = self._run_batches(stretch, model, rules, bus)
        except Exception as error:
            failure = error
        try:  # also when something else has failed: what was trained until then is saved only if it was finite
            if self._late is not None and not self.model_failed:
                self._late.finish()
        except NonFiniteError as error:
            failure = error if failure is None else joined(error, failure)
        finally:
            self._late = None
        if failure is not None:
            self.model_failed = self.model_failed or isinstance(failure, ModelError | NonFiniteError)
            try:
                raise failure
            finally:
                del failure  # or it would hold on to this frame, and so to itself and all its batches
        return halt

    def _run_batches(self, stretch: Stretch, model: Any, rules: Rules, bus: EventBus) -> Halt:
        """The loop itself. Whatever can be asked once a stretch is asked before it; common kinds of batches and outputs
        (dicts, floats) are handled here in the open, anything rarer in a method: a call costs as much as the check.
        """
        feed, means, stream, train = stretch.feed, stretch.means, stretch.stream, stretch.train
        control = stretch.control
        passing = Passing(stretch.run, control, stretch.epoch, stream, train)
        run = self._run_on_loop(model.run) if inspect.iscoroutinefunction(model.run) else model.run
        pump = bus.pump
        feed.before_sleep(pump.wake_soon)
        clock, next_item, sums, weights = time.perf_counter, feed.next, means.sums, means.weights
        audience, wanted, wanted_at = bus.audience, False, math.inf
        audience.changed, before_batch, asking = True, False, False
        timed_hooks: Sequence[Subscription] = ()
        batches, until_s, until_step = stretch.batches, stretch.until_s, stretch.until_step if train else None
        watched = _losses(rules) if train else None
        sources: Any = None
        known: set[str] = set()  # scalar outputs that are no source's name and have a sum
        read: list[float] = []
        ran: list[float] = []
        n_examples, index, settled, step = 0, -1, -1, stretch.step
        outputs: Any = None
        counted: Any = None
        finished: Finished | AfterBatch | None = None
        value: Any = None
        on_device: bool | None = None  # whether anything that hooks may ask for is; known after the first batch
        post, unasked = pump.post, 1
        woken_s = previous_s = ended_s = clock()
        metric_sink.set(lambda name, value: means.add(name, _host_scalar(value), n_examples))
        try:
            while True:
                if control.pending:
                    return "asked"
                if audience.changed:
                    audience.changed = False
                    wanted, wanted_at = bus.wants_batches, bus.next_wanted(stream, train, step)
                    before_batch, timed_hooks = bus.wants_before_batch, bus.timed if train else ()
                    asking = before_batch or bus.wants_variables
                    _start_clocks(timed_hooks, clock())
                    pump.wake_soon()
                try:
                    given, cursor = next_item()
                except (StopIteration, EndOfStream):
                    return "end"
                except Interrupted:
                    return "asked"
                except BaseException as error:
                    error.add_note(f"stream {stream!r}, batch {stretch.index}")
                    raise
                began_s = clock()
                index = stretch.index
                stretch.index = index + 1
                # The last step's, or they would live through this one.
                outputs = counted = value = number = finished = None
                batch: Batch = given if given.__class__ is dict else as_batch(run_batch(given), stream, index)
                if batch.keys() != sources:
                    self._check_sources(batch, rules, stream, index)
                    sources = frozenset(batch)
                    known.clear()
                n_examples = n_all = n_examples_of(batch, stream, index)
                if isinstance(batch, RunBatch) and batch.n_all is not None:
                    n_examples, n_all = batch.n_own or 0, batch.n_all
                if not n_all or (rules.batch_size is not None and n_all != rules.batch_size):
                    self._skip(stretch, rules, n_all, index)
                    stretch.cursor, settled = cursor, index
                    continue
                feeds, asked_before = batch, None
                if train:
                    self._last, self._lazy = None, _NOTHING
                if before_batch:
                    feeds, asked_before = self._before_batch(bus, stretch, batch, index)
                lazy = None
                try:
                    outputs = run(feeds, train=train, stream=stream)
                except BaseException as error:
                    at_step = f", step {step + 1}" if train else ""
                    error.add_note(f"model.run on stream {stream!r}, batch {index}{at_step}")
                    self.model_failed = True
                    raise
                ended_s = clock()
                counted = outputs
                if outputs.__class__ is not dict:
                    _check_outputs(outputs, stream, index)
                    counted = outputs.counted if isinstance(outputs, Skipped) else outputs
                for name, value in counted.items():
                    number = value if value.__class__ is float else _as_number(value)
                    if number.__class__ is float and name in known:
                        sums[name] += number * n_examples
                        weights[name] += n_examples
                        finite = not number - number  # NaN for what is not finite: a quarter of a call's cost
                    else:
                        if name in batch:
                            raise _named_like_source(name, stream, index)
                        lazy = _take_output(name, number, means, n_examples, lazy)
                        if name in sums:
                            known.add(name)
                        if watched is None or not watched[name]:
                            finite = True
                        elif is_on_device(value):
                            self._look_later(rules, stream).add(name, value, step + 1, index)
                            finite = True
                        else:
                            finite = _is_finite(value)
                    if not finite and watched is not None and watched[name]:
                        _nonfinite(rules.on_nonfinite, name, value, step + 1, stream, index)
                if train:
                    step += 1
                    stretch.step = step
                stretch.cursor, settled = cursor, index
                stretch.n_accepted += 1
                ran_s = ended_s - began_s
                ran.append(ran_s)
                read.append(began_s - previous_s)
                previous_s = ended_s
                if wanted:
                    shown = outputs
                    if on_device is None:
                        on_device = _any_on_device(outputs) or _any_on_device(batch)
                    if lazy is not None and not asking:
                        shown = _without(outputs, lazy)
                        if train:
                            self._lazy = lazy
                        lazy = None
                    finished, timed = (passing, step, index, batch, shown, n_examples), _NOBODY
                    if timed_hooks or lazy is not None or on_device:
                        finished = as_event(finished)
                        finished.timed = timed = _timed_due(timed_hooks, ended_s)
                        self._prepare(finished, lazy, asked_before, bus, fetches=bool(on_device))
                    if train:
                        self._last = finished
                    if step >= wanted_at or timed:
                        post(finished)
                        unasked -= 1
                        # Each batch comes with a look at the clock; one among many must not wait for the next.
                        if not unasked or wanted_at >= 0 or ended_s + ran_s - woken_s > DELIVER_EVERY_S:
                            unasked = pump.handed_over(batch, outputs, soon=ran_s < DELIVER_EVERY_S)
                            woken_s = previous_s = clock()
                        if wanted_at >= 0:
                            wanted_at = bus.next_wanted(stream, train, step)
                    if timed_hooks and _is_lockstep_due(timed_hooks, finished) and not control.is_shared:
                        return "time"  # several processes have several clocks: they stop at counted steps only
                if self._late is not None:
                    self._late.look()
                if len(ran) >= _TIMINGS:
                    _fold(stretch, read, ran)
                if batches is not None and stretch.n_accepted >= batches:
                    return "batches"
                if step == until_step:
                    return "step"
                if until_s is not None and ended_s >= until_s:
                    return "time"
        except BaseException:
            if settled != index:
                stretch.index = index
                self.model_failed = self.model_failed or outputs is not None  # it has made a step that does not count
            raise
        finally:
            pump.wake()
            _fold(stretch, read, ran)

    def _run_on_loop(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """A model whose `run` is async: each step waits for the loop, which costs a round trip of some 60 µs."""

        def call(batch: Batch, *, train: bool, stream: str) -> Any:
            return self._on_loop(lambda: run(batch, train=train, stream=stream))

        return call

    def _on_loop(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine on the event loop and wait for it in this thread."""
        tasks, sleeper, sink = self._tasks, ThreadSleeper(), metric_sink.get()
        assert tasks is not None
        result: list[Any] = []
        failure: list[BaseException] = []

        async def answer() -> None:
            metric_sink.set(sink)
            try:
                with anyio.CancelScope(shield=True):  # a step under way is finished, also when the caller is cancelled
                    result.append(await make())
            except anyio.get_cancelled_exc_class() as error:
                if await was_cancelled():
                    raise
                failure.append(stray_cancellation(error, "model.run"))
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
        self, bus: EventBus, stretch: Stretch, batch: Batch, index: int
    ) -> tuple[dict[str, Any], list[str]]:
        feeds = batch.with_sources(batch) if isinstance(batch, RunBatch) else dict(batch)
        asked: list[str] = []
        event = BeforeBatch(
            stretch.run, stretch.control, stretch.epoch, stretch.step, stretch.stream, stretch.train, index, batch, feeds,
            lambda *names: asked.extend(names),
        )  # fmt: skip
        self._on_loop(lambda: bus.before_batch(event))
        return feeds, asked

    def _prepare(
        self,
        event: AfterBatch,
        lazy: Mapping[str, Callable[[], Any]] | None,
        asked_before: list[str] | None,
        bus: EventBus,
        *,
        fetches: bool,
    ) -> None:
        """What an event must have before it is posted. If that fails, nobody hears of the step: no state for a resume."""
        try:
            if lazy is not None:
                self._resolve(event, lazy, asked_before, bus)
            if fetches or event.asked:
                _begin_to_fetch(event, bus)
        except BaseException:
            self.model_failed = True
            raise

    def _resolve(
        self, event: AfterBatch, lazy: Mapping[str, Callable[[], Any]], asked_before: list[str] | None, bus: EventBus
    ) -> None:
        """Take the lazy outputs out of the event and evaluate, once each, those that somebody due asks for."""
        outputs = _without(event.outputs, lazy)
        names = bus.asks(event.stream, event.train, event.step, event.timed)
        event.asked = asked = _evaluated(lazy, [*names, *(asked_before or ())])
        outputs.update((name, asked[name]) for name in asked_before or () if name in asked)
        event.outputs = outputs
        if event.train:
            self._lazy = _without(lazy, asked)

    def _skip(self, stretch: Stretch, rules: Rules, n_examples: int, index: int) -> None:
        """A batch that is not run: empty, or of another size than wanted."""
        if n_examples == 0:
            _by_policy(rules.on_empty_batch, f"stream {stretch.stream!r}, batch {index} is empty", DataError)
        else:
            stretch.n_dropped += 1

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

    def _look_later(self, rules: Rules, stream: str) -> LateChecks:
        if self._late is None:
            policy = rules.on_nonfinite
            self._late = LateChecks(
                lambda name, step, index: _nonfinite(policy, name, "not finite", step, stream, index)
            )
        return self._late


def _check_outputs(outputs: Any, stream: str, index: int) -> None:
    if not isinstance(outputs, Mapping):
        raise ModelError(
            f"model.run must return a mapping of output names to values, not {type(outputs).__name__!r} "
            f"(stream {stream!r}, batch {index})"
        )


def _named_like_source(name: str, stream: str, index: int) -> ModelError:
    return ModelError(
        f"the model's output {name!r} is named like a source of stream {stream!r} (batch {index}); rename one of the two"
    )


def _take_output(
    name: str, value: Any, means: WeightedMeans, n_examples: int, lazy: dict[str, Callable[[], Any]] | None
) -> dict[str, Callable[[], Any]] | None:
    """Add a scalar output to the means, or a callable to the lazy ones; the lazy outputs so far."""
    sort = _sort(value)
    if sort == "lazy":
        lazy = lazy or {}
        lazy[name] = value
    elif value.__class__ is float:
        means.add(name, value, n_examples)
    elif sort == "array" and value.ndim == 0 and hasattr(value, "detach"):
        means.add(name, value.detach(), n_examples)  # stays on its device
    elif sort == "mapping":
        lazy = _add_nested(means, name, value, n_examples, lazy)
    return lazy


def _as_number(value: Any) -> Any:
    """A scalar of whatever library as a float if it is on the host; anything else as it is."""
    sort = _sort(value)
    if sort == "scalar" or (sort == "array" and not value.ndim and getattr(value, "is_cpu", True)):
        try:
            return float(value.detach() if getattr(value, "requires_grad", False) else value)
        except (TypeError, ValueError):  # an array of one object, or of one string
            pass
    return value


class _LossNames(dict[str, bool]):
    """Output name → whether it must be finite; worked out once a name."""

    def __init__(self, left_to_hooks: frozenset[str]) -> None:
        super().__init__()
        self._left_to_hooks = left_to_hooks

    def __missing__(self, name: str) -> bool:
        is_loss = name == "loss" or name.endswith("_loss")
        self[name] = watched = is_loss and name not in self._left_to_hooks
        return watched


def _losses(rules: Rules) -> _LossNames | None:
    nobody_looks = rules.on_nonfinite == "ignore" or rules.left_to_hooks is None
    return None if nobody_looks else _LossNames(rules.left_to_hooks or frozenset())


def _is_finite(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if callable(value) or isinstance(value, str | Mapping):
        return True
    if hasattr(value, "isfinite"):
        return bool(value.isfinite().all())
    try:
        return bool(np.isfinite(value).all())
    except TypeError:
        raise ModelError(f"a loss must be a number or an array of numbers, not {value!r:.60}") from None


def _nonfinite(policy: Policy, name: str, value: Any, step: int, stream: str, index: int) -> None:
    shown = value if isinstance(value, str) or np.ndim(value) == 0 else "an array with values that are not finite"
    what = f"output {name!r} is {shown} at step {step} (stream {stream!r}, batch {index})"
    _by_policy(
        policy, what + "; look at the learning rate and at that batch, or set on_nonfinite = 'warn'", NonFiniteError
    )


def _fold(stretch: Stretch, read: list[float], ran: list[float]) -> None:
    stretch.read.extend(read)
    stretch.ran.extend(ran)
    read.clear()
    ran.clear()


def _start_clocks(hooks: Sequence[Subscription], now_s: float) -> None:
    for own in hooks:
        if own.next_due_s < 0 and own.cadence is not None:
            own.next_due_s = now_s + own.cadence.interval


def _without(values: Mapping[str, Any], names: Container[str], above: str = "") -> dict[str, Any]:
    """The values but those under these names or paths."""
    return {
        name: _without(cast("Mapping[str, Any]", value), names, f"{above}{name}/")
        if isinstance(value, Mapping)
        else value
        for name, value in values.items()
        if above + name not in names
    }


def _evaluated(lazy: Mapping[str, Callable[[], Any]], names: Sequence[str]) -> dict[str, Any]:
    """Each lazy output that is named (itself, by its path, or a leaf of it), evaluated once."""
    wanted = {name if name in lazy else name.partition("/")[0] for name in names}
    return {name: lazy[name]() for name in lazy if name in wanted}


_sorts: dict[type[Any], str] = {}


def _sort(value: Any) -> str:
    kind: Any = value.__class__
    return _sorts.get(kind) or _sort_of(kind, value)


def _sort_of(kind: type[Any], value: Any) -> str:
    """How outputs of a type are treated; asked once a type."""
    if issubclass(kind, bool | np.bool_ | int | float | np.number):
        sort = "scalar"
    elif issubclass(kind, Mapping):
        sort = "mapping"
    elif hasattr(kind, "ndim"):
        sort = "array"
    elif callable(value):
        sort = "lazy"
    else:
        sort = "other"
    _sorts[kind] = sort
    return sort


def _add_nested(
    means: WeightedMeans,
    path: str,
    values: Mapping[str, Any],
    n_examples: int,
    lazy: dict[str, Callable[[], Any]] | None,
) -> dict[str, Callable[[], Any]] | None:
    """The same for what is inside a nested output; names are paths there."""
    for name, value in values.items():
        sort, at = _sort(value), f"{path}/{name}"
        if sort == "mapping":
            lazy = _add_nested(means, at, value, n_examples, lazy)
        elif sort == "lazy":
            lazy = lazy or {}
            lazy[at] = value
        elif sort == "scalar" or (sort == "array" and value.ndim == 0):
            means.add(at, _host_scalar(value), n_examples)
    return lazy


def _host_scalar(value: Any) -> Any:
    """A scalar that can be summed: a float, or a device scalar cut off from its graph, left where it is."""
    return value.detach() if hasattr(value, "detach") else float(value)


def _any_on_device(values: Mapping[str, Any]) -> bool:
    return any(
        _any_on_device(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else is_on_device(value)
        for value in values.values()
    )


def _begin_to_fetch(event: AfterBatch, bus: EventBus) -> None:
    """Have what due hooks want of a device brought over; the event waits for it on its way to them."""
    at = (event.stream, event.train, event.step, event.timed)
    wanted = _on_device(event, bus.asks(*at), bus.wants_scalars(*at))
    if wanted:
        event.fetch = Fetch(wanted)


def _on_device(event: AfterBatch, names: Sequence[str], scalars: bool) -> dict[str, Any]:
    """The named variables of a batch that are on a device, and all scalars if they are wanted."""
    found = device_scalars(event.outputs) if scalars else {}
    for name in names:
        for values in (event.asked or {}, event.outputs, event.inputs):
            with suppress(KeyError):
                value = leaf(values, name)
                if _any_on_device({name: value}):
                    found[name] = value
                break
    return found


def _timed_due(hooks: Sequence[Subscription], now_s: float) -> frozenset[object]:
    due = [own for own in hooks if now_s >= own.next_due_s]
    for own in due:
        assert own.cadence is not None
        own.next_due_s = now_s + own.cadence.interval
    return frozenset(due) if due else _NOBODY


def _is_lockstep_due(hooks: Sequence[Subscription], finished: Finished | AfterBatch) -> bool:
    return isinstance(finished, AfterBatch) and any(own.lockstep for own in hooks if own in finished.timed)


def _by_policy(policy: Policy, what: str, error: type[Exception]) -> None:
    if policy == "error":
        raise error(what)
    if policy == "warn":
        logger.warning("%s", what)
