"""Engine: the loop. It plans, the model thread runs, hooks follow.

async with the session (model thread, producers, hooks):
    before_training
    zeroth epoch: evaluate what there is
    until finished: train the train stream, evaluate the extra streams, after_epoch
    after_training, always
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import anyio

from asyncloop import rng
from asyncloop.arguments import Source, check_arguments, evaluation_cadence, listed, named_sources, positive_deadlines
from asyncloop.bus import EventBus
from asyncloop.checkpoint import Checkpoints, Saved, load_weights
from asyncloop.control import Claim, Control, PendingCheckpoint
from asyncloop.due import Due
from asyncloop.epoch import EpochRecord, Training, restored_last
from asyncloop.errors import ConfigError, DataError, UsageError, alone, joined
from asyncloop.events import (
    AfterBatch,
    AfterEpoch,
    AfterEpochProfile,
    AfterEvaluation,
    AfterTraining,
    BeforeEpoch,
    BeforeTraining,
    EpochData,
    Event,
    OnException,
    ParameterChanged,
    Paused,
    Resumed,
    RunInfo,
)
from asyncloop.fetching import is_on_device
from asyncloop.model_thread import Halt, ModelThread, Policy, Rules, Stretch
from asyncloop.peers import LOOK_S, Peers, runs_everywhere
from asyncloop.progress import Progress
from asyncloop.rundir import jsonable
from asyncloop.saving import Capture, Saver
from asyncloop.session import OpenStream, Session
from asyncloop.standing import Standing
from asyncloop.storage import storage_errors
from asyncloop.stream import Interrupted, Node, check_streams
from asyncloop.threads import off_loop, to_the_end
from asyncloop.world import World

__all__ = ["Engine", "Result"]

logger = logging.getLogger("asyncloop")

Kind = TypeVar("Kind", bound=Event)
_Outcome = Literal["go on", "stream over", "epoch over"]


@dataclass(frozen=True, slots=True)
class Result:
    """How a call of the engine ended. `metrics`: stream → variable → value of the last epoch that had the stream."""

    reason: str
    epochs: int
    steps: int
    metrics: EpochData
    dir: Path | None
    stopped: bool = False
    """Whether a stop ended it (a hook, control, a signal, cancellation) rather than its own limits."""


class _Stopped(Exception):
    """Leaves the loop after a stop was asked for. Never reaches the user."""


class Engine:
    """Trains and evaluates a model on a dataset's streams while hooks follow.

    Works inside any running event loop (asyncio, uvloop, trio). Installs no signal handler, configures no logging,
    touches no global random state (unless `own_rng`), and writes nothing without `output_dir`. Constructing it does
    nothing but check its arguments (ConfigError). Cancelling the caller's scope is a stop: the step under way is
    finished, hooks catch up within their deadlines, the state is saved, then the cancellation goes on.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        hooks: Iterable[Any] = (),
        *,
        epochs: int | None = None,
        steps: int | None = None,
        train_stream: str = "train",
        extra_streams: Sequence[str] = (),
        buffer: int | Literal["auto"] = "auto",
        epoch_size: int | None = None,
        batch_size: int | None = None,
        skip_zeroth_epoch: bool = False,
        evaluate_every: str | None = None,
        on_empty_batch: Policy = "error",
        on_empty_stream: Policy = "error",
        on_unused_sources: Policy = "warn",
        on_nonfinite: Policy = "error",
        seed: int = 0,
        own_rng: bool = False,
        output_dir: str | Path | None = None,
        deadlines: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.dataset = model, dataset
        self.train_stream, self.extra_streams = train_stream, listed("extra_streams", extra_streams)
        self.buffer: int | Literal["auto"] = buffer
        self.epoch_size, self.skip_zeroth_epoch = epoch_size, skip_zeroth_epoch
        self.seed, self.own_rng = seed, own_rng
        self.on_empty_stream: Policy = on_empty_stream
        self.rules = Rules(
            tuple(getattr(model, "input_names", ())),
            batch_size=batch_size,
            on_empty_batch=on_empty_batch,
            on_unused_sources=on_unused_sources,
            on_nonfinite=on_nonfinite,
        )
        check_arguments(
            {"epochs": (epochs, 0), "steps": (steps, 0), "epoch_size": (epoch_size, 1), "batch_size": (batch_size, 1)},
            buffer,
            {
                "on_empty_batch": on_empty_batch,
                "on_empty_stream": on_empty_stream,
                "on_unused_sources": on_unused_sources,
                "on_nonfinite": on_nonfinite,
            },
        )
        evaluation = evaluation_cadence(evaluate_every, self.extra_streams)
        self._deadlines = positive_deadlines(deadlines)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.progress = Progress(epochs, steps)
        self.control = Control(getattr(model, "live", None))
        self.bus = EventBus(hooks)
        self.bus.only_training = frozenset(getattr(model, "training_output_names", ()))
        world: World | None = getattr(model, "world", None)
        if world is not None:
            self.bus.is_present = lambda hook: world.rank == 0 or runs_everywhere(hook)
        self.run_info = RunInfo(uuid.uuid4().hex[:8], "run", self.output_dir, dataset, epochs, steps)
        self._standing = Standing(self.progress)
        self._due = Due(evaluation, self.extra_streams, self._standing, self.control, self.bus)
        self.thread: ModelThread | None = None
        """The thread the model was built on, if somebody built it on one; else each session has its own."""
        self.read_only = False
        """Nothing is saved, whoever asks: the weights are those of another run's checkpoint."""
        self.dataset_is_open = False
        """Whether somebody else has entered the dataset, and leaves it after the run."""
        self.seeded = False
        """Whether the global generators have the run's seed already, since before the model was built."""
        self.watched: Callable[[Node], Node] | None = None
        """What each stream is wrapped in when it is opened, for debugging."""
        self._session: Session | None = None
        self._entered: Any = None
        self._busy = False
        self._peers: Peers | None = None
        """The processes that train the same model, while it runs; None: there are no others."""
        self._n_batches = 0
        self._failure: BaseException | None = None
        self._epoch: EpochRecord | None = None
        self._ending: AfterTraining | None = None
        """The `after_training` under way: whoever hears of it later hears of a hook that failed in it, too."""
        self._last_delivered = -1
        self._ended_by: str | None = None
        self._restored: Saved | None = None
        self._has_states = False
        """Whether model and hooks have the restored checkpoint's states already."""
        self._last: AfterBatch | None = None
        """The step of the restored checkpoint, should it turn out to be the run's last."""
        self._unfinished: EpochRecord | None = None
        """The epoch that the restored checkpoint was taken in."""

    # --- the loop -----------------------------------------------------------------------------------------------

    async def train(self) -> Result:
        """The zeroth evaluation, then epochs until `epochs`, `steps` or a stop. Raises what model, data or hooks raise."""
        self.check_streams()
        async with self._running():
            if self._is_zeroth_due:
                await self._zeroth_epoch()
            while self._unfinished is not None or not self.progress.finished:
                epoch, self._unfinished = self._unfinished, None
                await self._train_epoch(epoch)
        return self._result()

    async def evaluate(self, *streams: str) -> Result:
        """One pass of each stream without training. No cursor of a training stream moves."""
        names = list(streams or self.extra_streams)
        check_streams(self.dataset, names)
        async with self._running():
            await self._evaluation_epoch(names, {}, [(name, False) for name in names])
        return self._result()

    async def epoch(self, train: Iterable[Source] = (), evaluate: Iterable[Source] = ()) -> EpochData:
        """One epoch over streams given by name or as iterables, async iterables or Streams, mixed; its epoch data.

        Counts as a training epoch if there is something to train on. Alone it fires neither before_ nor after_training;
        inside `async with engine` those come once around all calls.
        """
        sources = named_sources(train, "train") | named_sources(evaluate, "eval", taken=named_sources(train, "train"))
        train_names = [name for name, (_, is_train) in sources.items() if is_train]
        evaluate_names = [name for name, (_, is_train) in sources.items() if not is_train]
        given = {name: source for name, (source, _) in sources.items() if not isinstance(source, str)}
        check_streams(self.dataset, [name for name in sources if name not in given])
        data: EpochData = {}
        async with self._running(announce=False):
            epoch = await self._begin_epoch([*train_names, *evaluate_names], trains=bool(train_names))
            data = epoch.data
            for name in train_names:
                await self._train_on(name, given.get(name), epoch)
            evaluate_names = list(dict.fromkeys([*evaluate_names, *self._due.evaluations()]))
            if evaluate_names:
                await self._evaluate_streams(evaluate_names, epoch, given)
            await self._end_epoch(epoch, trained=bool(train_names))
        return data

    async def _zeroth_epoch(self) -> None:
        bounded = self.progress.epochs is not None or self.epoch_size is not None
        names = [*([self.train_stream] if bounded else []), *self.extra_streams]
        if names:
            trains_next = [] if self.progress.finished else [(self.train_stream, True)]
            plan = [*((name, False) for name in names), *trains_next]
            await self._evaluation_epoch(names, {self.train_stream: self.epoch_size}, plan, zeroth=True)

    async def _evaluation_epoch(
        self,
        names: list[str],
        limits: Mapping[str, int | None],
        plan: Sequence[tuple[str, bool]],
        *,
        zeroth: bool = False,
    ) -> None:
        epoch = await self._begin_epoch(names, plan, trains=False)
        epoch.is_zeroth = zeroth
        await self._evaluate_streams(names, epoch, {}, limits)
        await self._end_epoch(epoch, trained=False)

    async def _train_epoch(self, epoch: EpochRecord | None) -> None:
        """A whole epoch, or what is left of the one that a checkpoint was taken in."""
        if epoch is None:
            epoch = await self._begin_epoch([self.train_stream, *self.extra_streams], self._plan(), trains=True)
        self._epoch = epoch
        if epoch.phase == "train":
            await self._train_on(self.train_stream, None, epoch, self.epoch_size)
            epoch.end_training()
            self._saver.hold(epoch)
        names = list(dict.fromkeys([*self.extra_streams, *self._due.evaluations()]))
        if names:
            check_streams(self.dataset, names)
            await self._evaluate_streams(names, epoch, {})
        await self._end_epoch(epoch, trained=True)

    def _plan(self) -> list[tuple[str, bool]]:
        """The streams of an epoch that trains in their order, and the one after them."""
        train = (self.train_stream, True)
        if self.epoch_size is not None:  # the source may end inside the epoch; its next pass then goes on
            return [train, train]
        progress = self.progress
        maybe_last = progress.steps is not None or progress.epochs_done + 1 == progress.epochs
        return [train, *((name, False) for name in self.extra_streams), *([] if maybe_last else [train])]

    async def _begin_epoch(
        self, names: list[str], plan: Sequence[tuple[str, bool]] = (), *, trains: bool
    ) -> EpochRecord:
        """A new epoch, of which every hook has heard. What ends the run before they all have is repeated by a resume."""
        await self._look()
        if trains:
            self.progress.epoch = self.progress.epochs_done + 1
        epoch = self._epoch = EpochRecord(names, plan)
        self._saver.hold(epoch)
        await self.bus.barrier(self._event(BeforeEpoch, names))
        await self._look(leaves=False)
        epoch.has_begun = True
        self._saver.let_go()
        self._check_stop()
        return epoch

    async def _train_on(self, name: str, source: object | None, epoch: EpochRecord, size: int | None = None) -> None:
        """Train on one pass of a stream, or on exactly `size` batches of as many passes as that takes."""
        session = self._live_session
        stream = await self._take(name, True, source)
        stretch = self._stretch(stream, epoch)
        stretch.batches = size
        training = epoch.training = Training(stretch, 0, stretch.index)
        if epoch.resumed is None:
            await self._tell_model("begin_stream", name, train=True)
        else:  # a checkpoint was taken inside this epoch, before what was due at its step
            alone_or_first = self._peers is None or self._peers.is_first
            training.load_state_dict(epoch.resumed if alone_or_first else {**epoch.resumed, "sums": {}, "weights": {}})
            epoch.resumed = None
            if not training.is_over:
                await self._take_up_due(stream, stretch)
        while not (training.is_over or self.progress.steps_left == 0 or stretch.is_full):
            stretch.until_step = self._due.next_step()
            stretch.until_s = self._due.next_s()
            if self._peers is not None:
                stretch.until_step = self._peers.next_look(self.progress.step, stretch.until_step)
            halt = await self._advance(stream, stretch)
            if halt != "end":
                outcome = await self._between_steps(stream, stretch, halt)
                if outcome == "go on":
                    continue
                if outcome == "epoch over":
                    break
            accepted, training.accepted_before = stretch.n_accepted - training.accepted_before, stretch.n_accepted
            await session.end_pass(stream)
            carried_over_at_its_end = accepted == 0 and training.began_at > 0
            if not carried_over_at_its_end:
                self._check_empty(name, accepted)
                if size is None or accepted == 0:
                    training.is_over = True
                    break
            stream = await self._take(name, True, source)
            stretch.feed, stretch.index, stretch.cursor = stream.feed, stream.position.index, stream.position.cursor
            training.began_at = stretch.index
        await self._end_training_of(name, stretch, epoch)

    async def _end_training_of(self, name: str, stretch: Stretch, epoch: EpochRecord) -> None:
        if self._is_last_epoch:
            await self._deliver_last()
        await self._close_stretch(name, stretch, epoch)

    async def _evaluate_streams(
        self,
        names: list[str],
        epoch: EpochRecord,
        given: Mapping[str, object],
        limits: Mapping[str, int | None] | None = None,
    ) -> None:
        """Evaluate streams one after the other, then `after_evaluation`. A stop discards it, a resume repeats it."""
        await self.bus.settle()
        around, self._epoch = self._epoch, epoch
        whole = around or epoch
        whole.pending = list(names)
        if whole.phase == "train":
            self._saver.hold(whole)
        try:
            await self._evaluate_each(names, epoch, given, limits or {})
        finally:
            self._epoch = around
        await self._look(leaves=False)
        await self._tell_evaluated({name: epoch.data[name] for name in names})
        whole.pending = []
        if whole.phase == "train":
            self._saver.let_go()

    async def _evaluate_each(
        self, names: list[str], epoch: EpochRecord, given: Mapping[str, object], limits: Mapping[str, int | None]
    ) -> None:
        for name in names:
            stream = await self._take(name, False, given.get(name))
            stretch = self._stretch(stream, epoch)
            await self._tell_model("begin_stream", name, train=False)
            await self._evaluate_stream(stream, stretch, limits.get(name))
            await self._live_session.end_pass(stream)
            self._check_empty(name, stretch.n_accepted)
            await self._close_stretch(name, stretch, epoch)
        await self._gather_logged(epoch)
        self._due.evaluated()
        await self.bus.barrier(self._event(AfterEvaluation, epoch.data, names))
        epoch.take_logged()
        self._standing.remember(epoch.data)

    async def _evaluate_stream(self, stream: OpenStream, stretch: Stretch, limit: int | None) -> None:
        stretch.batches = limit
        while True:
            if self._peers is not None:
                stretch.batches = self._peers.next_look(stretch.n_accepted, limit)
            halt = await self._advance(stream, stretch)
            if halt == "end" or (halt == "batches" and stretch.n_accepted == limit):
                return
            await self._pause_if_asked(between_steps=False)

    async def _end_epoch(self, epoch: EpochRecord, trained: bool) -> None:
        await self._gather_logged(epoch)
        await self._look()
        if trained:
            self.progress.epochs_done, epoch.is_ending = self.progress.epoch, True
        last = trained and self.progress.finished
        began_s = time.perf_counter()
        await self.bus.barrier(self._event(AfterEpoch, epoch.data), last=last)
        epoch.take_logged()
        self._standing.remember(epoch.data)
        await self._look(leaves=False)
        await self.bus.barrier(
            self._event(
                AfterEpochProfile,
                epoch.profiled(self.bus.take_spent(), self._live_session.statistics, began_s),
                epoch.names,
            )
        )
        await self._look(leaves=False)
        epoch.phase, epoch.is_ending = "over", False
        self._saver.let_go()
        self._standing.zeroth_done = self._standing.zeroth_done or epoch.is_zeroth
        await self._take_up_wishes()

    # --- between steps ------------------------------------------------------------------------------------------

    async def _take(self, name: str, train: bool, source: object | None) -> OpenStream:
        try:
            return await self._live_session.take(name, train, source)
        except Interrupted:  # a stop came while the dataset was still opening it
            self._check_stop()
            raise

    async def _advance(self, stream: OpenStream, stretch: Stretch) -> Halt:
        """Run the next stretch; the counters follow whether it ends well or not."""
        self._check_stop()
        self.control.begin_stretch(stream.train)
        n_before = stretch.index
        try:
            halt = await self._live_session.run(stream, stretch)
        finally:
            self.progress.step = stretch.step
            self._n_batches += stretch.index - n_before
        await self._look()
        return halt

    async def _look(self, *, leaves: bool = True) -> None:
        """Agree with the other processes, if there are any. Then raise what has failed, and leave if a stop was asked for."""
        peers = self._peers
        if peers is not None:
            if peers.is_first:
                self._due.ask_by_clock()
            await peers.agree(self._live_session.thread, self._n_batches, self._failure, self._heard)
        self._check_failure()
        if leaves:
            self._check_stop()

    def _heard(self, told: list[Any]) -> None:
        """What another process tells of its own accord."""
        what, *args = told
        if what == "saved":
            self._saver.was_saved(*args)

    async def _between_steps(self, stream: OpenStream, stretch: Stretch, halt: Halt) -> _Outcome:
        """What is due at the step the thread has stopped at, and how the epoch goes on.

        Order: lockstep hooks, evaluation, changes of parameters, the checkpoint of this step, a pause. If the epoch is
        over with this step, evaluations and checkpoint are left to its end, so that each happens once a step.
        """
        last = self._live_session.thread.last
        if halt != "asked" and (
            last is not None or self._peers is not None
        ):  # a process without hooks keeps no last step
            timed = frozenset[object]() if last is None else last.timed
            is_due = await self.bus.lockstep(stream.name, self.progress.step, timed)
            if is_due and self._peers is not None:
                await self._look()
            self._check_stop()
        return await self._take_up_due(stream, stretch)

    async def _take_up_due(self, stream: OpenStream, stretch: Stretch) -> _Outcome:
        if stretch.is_full or self.progress.steps_left == 0:
            return "epoch over"
        asked = self._due.evaluations()
        if (asked or self.control.wants_checkpoint) and not self.epoch_size:
            over = None
            while over is None:
                over = await self._live_session.peek_end(stream, stretch)
                if not over:
                    self._check_stop()
            if over:
                self._due.put_off(asked)
                return "stream over"
        if asked:
            check_streams(self.dataset, asked)
            await self._evaluate_streams(asked, EpochRecord(asked), {})
            await self._look()
        await self._take_up_wishes()
        return "go on"

    async def _take_up_wishes(self) -> None:
        await self._apply_changes()
        await self._save_if_asked()
        await self._pause_if_asked()

    async def _apply_changes(self) -> None:
        changes = self.control.take_changes()
        if changes:
            await to_the_end(partial(self._change, changes))

    async def _change(self, changes: Mapping[str, Any]) -> None:
        await self._live_session.set_parameters(changes)
        self._standing.changed |= changes
        for name, value in changes.items():
            self.bus.publish(self._event(ParameterChanged, name, value))

    async def _save_if_asked(self) -> None:
        requests = self.control.take_checkpoints()
        if requests:
            await to_the_end(partial(self._saver.save, requests, self._epoch))

    async def _pause_if_asked(self, between_steps: bool = True) -> None:
        """Wait while paused; between training steps parameters may be changed and checkpoints taken meanwhile."""
        if not self.control.paused or self.control.stop_reason is not None:
            return
        self.bus.publish(self._event(Paused))
        while self.control.paused and self.control.stop_reason is None and self._failure is None:
            if between_steps:
                await self._apply_changes()
                await self._save_if_asked()
            if self._peers is None:
                await self._live_session.sleep()
            else:
                with anyio.move_on_after(LOOK_S):
                    await self._live_session.sleep()
                await self._look(leaves=False)
        self.bus.publish(self._event(Resumed))
        self._check_stop()

    # --- beginning and end --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self, announce: bool = True) -> AsyncGenerator[None]:
        """A session around a call, with before_ and after_training unless an outer `async with engine` has them."""
        if self._busy:
            raise UsageError("this engine is running already; one engine runs one call at a time")
        self._busy = True
        try:
            if self._session is not None:
                try:
                    yield
                except _Stopped:
                    pass
            else:
                async with self._opened(announce):
                    yield
        finally:
            self._busy = False

    @asynccontextmanager
    async def _opened(self, announce: bool) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        self._check_writers()
        if self.output_dir is not None and not self.read_only:
            await off_loop("output directory", _made, self.output_dir)
        self._failure = self._epoch = self._peers = self._ending = None
        world: World | None = getattr(self.model, "world", None)
        if world is not None and world.size > 1:
            self._peers = Peers(world, self.control)
            self._due.has_clock = False
        session = self._session = self._new_session()
        try:
            async with session:
                await self._take_back(session)
                try:
                    if announce:
                        with suppress(_Stopped):  # then the body's first look at the stop ends it
                            await self._begin()
                    yield
                except _Stopped:
                    pass
                except BaseException as error:
                    failure = error
                failure = await to_the_end(partial(self._finish, failure, announce))
        except Exception as error:  # the dataset's own end, or a bug; it never hides what failed before
            failure = joined(failure, alone(error))
        finally:
            self._session = None
            self._ended_by = self.control.stop_reason
            self.control.end()
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Engine:
        """One before_training and after_training around several calls of `epoch`, `evaluate` and `train`."""
        if self._session is not None:
            raise UsageError("this engine is running already")
        self._entered = self._opened(announce=True)
        await self._entered.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered, self._entered = self._entered, None
        await entered.__aexit__(kind, error, trace)

    def _new_session(self) -> Session:
        folder = None if self.output_dir is None or self.read_only else self.output_dir / "checkpoints"
        return Session(
            model=self.model,
            dataset=self.dataset,
            bus=self.bus,
            run=self.run_info,
            control=self.control,
            rules=replace(self.rules, left_to_hooks=_left_to_hooks(self.bus)),
            seed=self.seed,
            buffer=self.buffer,
            checkpoints=None if folder is None else Checkpoints(folder),
            thread=self.thread,
            standing=self._standing,
            about=self._about(),
            own_rng=self.own_rng,
            peers=self._peers,
            on_failure=self._hook_failed,
            on_log=self._log_from_hook,
            follows=self._follows,
            deadlines=self._deadlines,
            watched=self.watched,
            enters=not self.dataset_is_open,
        )

    async def _begin(self) -> None:
        self._due.start_clock()
        await self.bus.barrier(self._event(BeforeTraining))
        await self._look()
        await self._take_up_wishes()

    async def _finish(self, failure: BaseException | None, announce: bool) -> BaseException | None:
        """Last step, last save, on_exception, after_training. What fails here never hides what failed before."""
        cancelled = failure is not None and not isinstance(failure, Exception)
        if failure is None and self._failure is not None:
            failure = self._failure
        if cancelled:
            self.control.stop("cancelled")
        if failure is not None or self.control.stop_reason is not None:
            self.bus.hurry()
        knows = self._peers is None or failure is None or self._peers.has_failed
        if failure is not None:
            self.bus.release_thread(True)
            if self._peers is not None and not knows:  # the others wait for this process in vain
                self._peers.world.fail(f"{type(failure).__name__}: {failure}")
        is_savable = announce and knows and not self._live_session.thread.model_failed
        try:
            if self.control.aborted:
                self.bus.drop_backlog()
            else:
                # What hooks are given only because this is the last step is no part of what a resume goes on from.
                capture = None
                if is_savable and self._saver.is_due_at_the_end:
                    last = await self._last_step() if self._is_last_epoch and self._untold_last else None
                    capture = await self._saver.capture(self._epoch, failure=None if cancelled else failure, last=last)
                await self._deliver_last()
                await self.bus.settle()
                if is_savable:
                    await self._save_last(capture)
        except Exception as error:
            failure = joined(failure, error)
        try:
            await self._tell_model("close")
        except Exception as error:
            failure = joined(failure, error)
        if self._failure is not None and failure is not self._failure:
            failure = joined(failure, self._failure)
        has_failed = failure is not None and not cancelled
        if has_failed:
            await self.bus.announce(self._event(OnException, failure))
        if announce:
            seen = self._failure
            reason = f"{type(failure).__name__}: {failure}" if has_failed else self._why(self.control.stop_reason)
            self._ending = self._event(AfterTraining, not has_failed, reason)
            await self.bus.barrier(self._ending, only_set_up=True)
            if self._failure is not seen and self._failure is not None and failure is not self._failure:
                failure = joined(failure, self._failure)
        return failure

    async def _save_last(self, capture: Capture | None) -> None:
        if capture is None:
            await self._save_if_asked()
        else:
            last = PendingCheckpoint(Claim("end", keep=1))
            self._saver.commit(capture, [*self.control.take_checkpoints(), last])
        await self._saver.written()
        await self.bus.settle()

    async def _deliver_last(self) -> None:
        """The last step is always due: hooks whose cadence skipped it get it now."""
        if self._untold_last is None:
            return
        await self.bus.flush()
        last = await self._last_step()
        if last is not None:
            self._last_delivered = last.step
            self.bus.publish_last(last)

    @property
    def _untold_last(self) -> AfterBatch | None:
        """The newest train step, unless the hooks that get it only because it is the last have it already."""
        last = self._live_session.thread.last or self._last
        return None if last is None or last.step == self._last_delivered else last

    async def _last_step(self) -> AfterBatch | None:
        """The newest train step, with what hooks want that get it only if it is the last."""
        thread = self._live_session.thread
        return await thread.last_with(*self.bus.last_asks(thread.last)) if thread.last is not None else self._last

    # --- small things -------------------------------------------------------------------------------------------

    def _event(self, kind: type[Kind], *fields: Any) -> Kind:
        return kind(self.run_info, self.control, self.progress.epoch, self.progress.step, *fields)

    @property
    def _live_session(self) -> Session:
        assert self._session is not None, "only called while running"
        return self._session

    @property
    def _saver(self) -> Saver:
        return self._live_session.saver

    @property
    def metrics(self) -> EpochData:
        """Stream → variable → value of the last epoch that had the stream."""
        return self._standing.metrics

    @property
    def _is_zeroth_due(self) -> bool:
        progress = self.progress
        return not (self.skip_zeroth_epoch or self._standing.zeroth_done or progress.epochs_done or progress.step)

    @property
    def _is_last_epoch(self) -> bool:
        progress = self.progress
        return progress.steps_left == 0 or (progress.epochs is not None and progress.epoch >= progress.epochs)

    def _follows(self, name: str, train: bool) -> tuple[str, bool] | None:
        """Which stream comes after this one, so that its producers can fill while this one ends."""
        if self.control.stop_reason is not None or self._epoch is None:
            return None
        return self._epoch.next_stream.get((name, train))

    def _stretch(self, stream: OpenStream, epoch: EpochRecord) -> Stretch:
        at = stream.position
        stretch = Stretch(
            stream.feed, self.run_info, self.control, self.progress.epoch, stream.name, stream.train,
            at.index, self.progress.step, cursor=at.cursor,
        )  # fmt: skip
        epoch.add_stretch(stretch)
        return stretch

    async def _close_stretch(self, name: str, stretch: Stretch, epoch: EpochRecord) -> None:
        if stretch.n_dropped:
            logger.warning(
                "stream %r: %d batches of another size than batch_size=%s were dropped",
                name, stretch.n_dropped, self.rules.batch_size,
            )  # fmt: skip
        means, thread = stretch.means, self._live_session.thread
        if self._peers is not None:
            epoch.data[name] = (await thread.call(self._peers.added_up, means)).result()
        else:
            on_device = any(map(is_on_device, means.sums.values()))
            epoch.data[name] = await thread.call(means.result) if on_device else means.result()
        epoch.data[name] |= await self._tell_model("end_stream", name, train=stretch.train) or {}

    async def _tell_evaluated(self, data: EpochData) -> None:
        if self._peers is not None:  # what hooks have added there is in the first process only
            data = await self._peers.of_first(self._live_session.thread, jsonable(data))
        await self._tell_model("evaluated", data)

    async def _tell_model(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of the model's optional methods, if it has it, on its thread."""
        method = getattr(self.model, what, None)
        return None if method is None else await self._live_session.thread.call(partial(method, *args, **kwargs))

    async def _gather_logged(self, epoch: EpochRecord) -> None:
        """Every hook has handled the batches; what they logged joins the epoch data."""
        await self.bus.settle()
        epoch.take_logged()

    def _log_from_hook(self, hook: str, event: Event, name: str, value: Any) -> None:
        if self._epoch is not None:
            if isinstance(event, AfterBatch):
                stream, weight = event.stream, event.n_examples
            else:
                stream, weight = self._stream_of(event, self._epoch.names), 1
            self._epoch.log(hook, stream, name, value, weight)

    def _stream_of(self, event: Event, names: Sequence[str]) -> str:
        """Whose data gets what is logged in an event that is not of one batch: of the first evaluated stream, if that is
        what it tells of; else of the train stream, where there is one."""
        if isinstance(event, AfterEvaluation):
            return event.streams[0]
        return self.train_stream if self.train_stream in names else names[0]

    # --- checkpoints --------------------------------------------------------------------------------------------

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint: the next `train` begins with the step after it. Before the engine runs.

        Model, hooks, generators and streams take their states when it begins to run; the config has to be one that
        leads to the same steps.
        """
        if self._session is not None:
            raise UsageError("this engine is running already; restore it before")
        self._standing.load_state_dict(saved.step, saved.engine, saved.epoch.get("metrics", {}))
        self._restored, self._has_states = saved, False

    async def load_states(self, thread: ModelThread) -> None:
        """Give model and hooks the restored checkpoint's states now: if they do not fit, nothing is changed yet."""
        saved = self._restored
        if saved is not None and not self._has_states:
            await thread.call(load_weights, self.model, saved)
            self.bus.load_states(saved.hooks)
            self._has_states = True

    async def _take_back(self, session: Session) -> None:
        """Seed the global generators, or give everything its state of the checkpoint."""
        await self.load_states(session.thread)
        saved, self._restored = self._restored, None
        if self.own_rng and not self.seeded:
            rng.seed_globals(self.seed)
            self.seeded = True
        if self.own_rng and saved is None and self._peers is not None:
            rng.seed_globals(self.seed, self._peers.world.rank)
        if saved is None:
            return
        if self._standing.changed:
            await session.set_parameters(self._standing.changed)
        if self.own_rng and "rng" in saved.engine:
            self._restore_generators(saved.engine)
            if saved.engine.get("threads"):
                await session.thread.call(rng.set_threads, saved.engine["threads"])
        if saved.epoch.get("last"):
            self._last = restored_last(saved.epoch["last"], self._event(Event))
        under_way = self.progress.epoch > self.progress.epochs_done and saved.epoch.get("begun", True)
        if saved.epoch and saved.epoch["phase"] != "over" and under_way:
            self._unfinished = EpochRecord.restored(saved.epoch, saved.epoch["logged"], self._plan())
            if saved.epoch["pending"]:
                self._due.put_off(saved.epoch["pending"])
                self._standing.evaluated_step = -1

    def _restore_generators(self, record: Mapping[str, Any]) -> None:
        """As they were. A process more than there were then has new ones, other than those of the others."""
        rank = 0 if self._peers is None else self._peers.world.rank
        states = record.get("rngs", [record["rng"]])
        if rank < len(states):
            rng.restore(states[rank], self.model)
        else:
            rng.seed_globals(self.seed, rank, self.progress.step)

    @property
    def steering(self) -> dict[str, Any]:
        """The arguments that decide what a step is: with others, a resumed run would not go on as it began."""
        return {
            "seed": self.seed,
            "train_stream": self.train_stream,
            "epoch_size": self.epoch_size,
            "batch_size": self.rules.batch_size,
            "own_rng": self.own_rng,
        }

    def _about(self) -> dict[str, Any]:
        """What a checkpoint says about the run, besides where it stands."""
        return {
            **self.steering,
            "restore_fallback": getattr(self.model, "restore_fallback", None),
            "input_names": list(getattr(self.model, "input_names", ())),
            "output_names": list(getattr(self.model, "output_names", ())),
        }

    def _hook_failed(self, error: BaseException) -> None:
        """A hook or the checkpoint writer failed by policy: the first one ends the run, the others are noted on it."""
        if self._ending is not None:
            self._ending.success, self._ending.reason = False, f"{type(error).__name__}: {error}"
        if self._failure is None:
            self._failure = error
        else:
            joined(self._failure, error)
        self.control.attract()
        self.bus.release_thread(True)

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_stop(self) -> None:
        self._check_failure()
        if self.control.stop_reason is not None:
            raise _Stopped

    def _check_empty(self, name: str, n_accepted: int) -> None:
        if n_accepted == 0 and self.on_empty_stream != "ignore":
            what = f"stream {name!r} gave no batch to run in this pass"
            if self.on_empty_stream == "error":
                raise DataError(what + "; check the source, or set on_empty_stream = 'warn'")
            logger.warning("%s", what)

    def _check_writers(self) -> None:
        """Only when it begins to run: who opens a run with this engine may give it a directory until then."""
        writers = [name for hook, name in self.bus.hooks if getattr(hook, "needs_output_dir", False)]
        if self.output_dir is None and writers:
            raise ConfigError(
                *(f"hook {name} writes files, but the engine has no output_dir to write to" for name in writers)
            )

    def check_streams(self) -> None:
        """ConfigError for each stream that the engine will want and the dataset lacks."""
        check_streams(self.dataset, [self.train_stream, *self.extra_streams])

    def _why(self, stop: str | None) -> str:
        return stop or self.progress.why_finished or "done"

    def _result(self) -> Result:
        """How the call ended. Inside `async with engine` a stop stays until the context's end, and every call sees it."""
        stop = self.control.stop_reason if self._session is not None else self._ended_by
        progress = self.progress
        metrics = {name: dict(values) for name, values in self.metrics.items()}
        return Result(self._why(stop), progress.epochs_done, progress.step, metrics, self.output_dir, stop is not None)


def _made(path: Path) -> None:
    with storage_errors("make the output directory", path):
        path.mkdir(parents=True, exist_ok=True)


def _left_to_hooks(bus: EventBus) -> frozenset[str] | None:
    """Outputs that hooks like StopOnNaN watch in the engine's place (their `takes_over_nonfinite`; None: all)."""
    names: set[str] = set()
    for hook, _ in bus.hooks:
        taken = getattr(hook, "takes_over_nonfinite", ())
        if taken is None:
            return None
        names.update(taken)
    return frozenset(names)
