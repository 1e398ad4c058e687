"""Saver: the checkpoints of a running engine. A copy on the model thread at a step boundary, then a write in the background.

    state after step k ──► copied (model thread) ──► a marker through every mailbox ──► written (a thread of its own)

One write is in flight at most. What is repeated if it is interrupted (an evaluation) is held back: a checkpoint taken
meanwhile says what hooks and generators were before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from asyncloop import rng
from asyncloop.bus import EventBus, Marker
from asyncloop.checkpoint import Checkpoints, Parts
from asyncloop.control import Claim, PendingCheckpoint
from asyncloop.epoch import EpochRecord, last_state, savable
from asyncloop.errors import CheckpointError, ModelError, NonFiniteError
from asyncloop.events import AfterBatch
from asyncloop.model_thread import ModelThread
from asyncloop.peers import Peers
from asyncloop.redact import redacted
from asyncloop.rundir import LOG_MARK
from asyncloop.standing import Standing
from asyncloop.states import copy_of, copy_state, refuse_nonfinite
from asyncloop.threads import OwnThread
from asyncloop.world import World

__all__ = ["Capture", "Saver"]

logger = logging.getLogger("asyncloop")

_NOT_WHOLE = Claim("after a failure", keep=1)


@dataclass(frozen=True, slots=True)
class Capture:
    """The state at a step boundary, copied; what hooks had after it comes with the marker."""

    step: int
    model: Any
    epoch: Mapping[str, Any]
    record: Mapping[str, Any]
    marker: Marker


@dataclass(frozen=True, slots=True)
class _Held:
    """Hooks' and generators' states from before what is repeated if a stop interrupts it."""

    marker: Marker
    rng_states: dict[str, Any] | None
    untold: tuple[int, int] | None
    """Epoch and step of a checkpoint in flight: what is told of it comes behind the marker, and is not repeated."""


class Saver:
    """Owned by a session; lives on the event loop. `checkpoints` None: there is nowhere to save, and no `writer`."""

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        writer: OwnThread | None,
        *,
        model: Any,
        thread: ModelThread,
        bus: EventBus,
        tasks: TaskGroup,
        standing: Standing,
        about: Mapping[str, Any],
        own_rng: bool,
        peers: Peers | None,
        checks_weights: bool,
        hooks_stop_on_nonfinite: bool,
        tell: Callable[[int, int, Path], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._checkpoints, self._writer, self._tasks = checkpoints, writer, tasks
        self._model, self._thread, self._bus = model, thread, bus
        self._standing, self._about, self._own_rng, self._peers = standing, about, own_rng, peers
        self._waiting: dict[int, list[PendingCheckpoint]] = {}
        """Requests of this process for what another one writes."""
        self._checks_weights, self._tell, self._on_failure = checks_weights, tell, on_failure
        self._hooks_stop_on_nonfinite = hooks_stop_on_nonfinite
        self._held: _Held | None = None
        self._saving: anyio.Event | None = None
        self._in_flight: tuple[int, int] | None = None
        """Epoch and step of the checkpoint that is being written."""
        self._unsaved: list[str] = []
        """Checkpoints that could not be written, in words."""
        self._saved_step = standing.progress.step
        """The newest step of which a checkpoint was taken, or at which the session began."""

    @property
    def is_due_at_the_end(self) -> bool:
        """Whether steps have been made since the last checkpoint, and there is somewhere to save one."""
        return self._checkpoints is not None and self._saved_step < self._standing.progress.step

    def hold(self, epoch: EpochRecord) -> None:
        """From here on a stop saves what hooks and generators are now: what comes is repeated by a resume."""
        if self._checkpoints is not None:
            rng_states = rng.capture(self._model) if self._own_rng else None
            self._held = _Held(self._bus.mark(epoch.logged_by), rng_states, self._in_flight)

    def let_go(self) -> None:
        """What was held back is done, so it is not repeated any more."""
        self._held = None

    async def save(self, requests: list[PendingCheckpoint], epoch: EpochRecord | None) -> None:
        """One checkpoint for all these requests. Returns once the state is copied.

        Raises what the model's `state_dict` raises, and CheckpointError if there is nowhere to save; whoever asked
        gets that, too.
        """
        try:
            capture = await self.capture(epoch)
        except BaseException as error:
            _refuse(requests, error)
            raise
        self.commit(capture, requests)

    async def capture(
        self, epoch: EpochRecord | None, *, failure: BaseException | None = None, last: AfterBatch | None = None
    ) -> Capture:
        """The state as it is now, or as it was before what a resume repeats. `last` is what the run may have ended with."""
        if self._checkpoints is None:
            raise CheckpointError("a checkpoint was asked for, but this engine has no output_dir, or only evaluates")
        held = self._held
        step = self._standing.progress.step
        record = self._record(epoch is not None and epoch.is_ending, failure)

        def taken() -> tuple[Any, Any]:
            """In every process, for some of it may be put together from all; kept only where it is written."""
            state, means = self._model.state_dict(), None
            if self._peers is not None and epoch is not None and epoch.training is not None:
                means = self._peers.added_up(epoch.training.stretch.means)
            if self._is_written_elsewhere:
                return copy_of(state, "the model", ModelError) if self._is_sharded else {}, {}
            if self._own_rng:
                record["threads"] = rng.n_threads()
            own = {} if epoch is None else epoch.state_dict(means)
            kept = {"metrics": savable(self._standing.metrics), "last": {} if last is None else last_state(last)}
            return copy_of(state, "the model", ModelError), copy_state({**own, **kept})

        if self._own_rng:
            record |= await self._generators((held and held.rng_states) or rng.capture(self._model))
        await self.written()  # what was saved before is told before the marker
        if held is not None and held.untold is not None and not self._unsaved:
            record["untold"] = held.untold
        logger.info(LOG_MARK, step, extra={"log_only": True})
        marker = held.marker if held else self._bus.mark(None if epoch is None else epoch.logged_by)
        model, kept = await self._thread.call(taken)
        self._saved_step = step
        return Capture(step, model, kept, record, marker)

    @property
    def _is_written_elsewhere(self) -> bool:
        return self._peers is not None and not self._peers.is_first

    async def _generators(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The states of the global generators, of all processes."""
        if self._peers is None:
            return {"rng": own}
        states = await self._thread.call(self._peers.world.gather, own)
        return {"rng": states[0], "rngs": states}

    def commit(self, capture: Capture, requests: list[PendingCheckpoint]) -> None:
        """Write what was captured in the background; one checkpoint serves all `requests`."""
        if self._is_written_elsewhere:
            self._waiting[capture.step] = requests
            if not self._is_sharded:
                return
        self._saving = anyio.Event()
        self._in_flight = capture.record["epoch"], capture.step
        write = self._write_shards if self._is_written_elsewhere else self._write
        self._tasks.start_soon(write, capture, requests, self._saving)

    async def written(self) -> None:
        """Wait until the checkpoint in flight is complete (or has failed)."""
        if self._saving is not None:
            await self._saving.wait()

    def was_saved(self, step: int, path: str) -> None:
        """Another process has written the checkpoint of a step."""
        for request in self._waiting.pop(step, ()):
            request.resolve(Path(path))

    def _record(self, is_ending: bool, failure: BaseException | None) -> dict[str, Any]:
        """What the engine itself needs to go on from a checkpoint."""
        record = {**self._standing.state_dict(epoch_is_ending=is_ending), **self._about}
        if failure is not None:
            record["after_failure"] = redacted(f"{type(failure).__name__}: {failure}")
        return record

    async def _write(self, capture: Capture, requests: Sequence[PendingCheckpoint], saving: anyio.Event) -> None:
        assert self._checkpoints is not None
        assert self._writer is not None
        step, marker, writes = capture.step, capture.marker, False
        with anyio.CancelScope(shield=True):
            try:
                hooks = await marker.complete()
                parts = {"model": capture.model, "hooks": hooks, "epoch": {**capture.epoch, "logged": marker.logged}}
                lacks = self._lost_before(capture, hooks)
                # A checkpoint that lacks something takes nobody's place among those that do not.
                claims = [_NOT_WHOLE] if lacks else [request.claim for request in requests]
                record = {**capture.record, "lacks": lacks} if lacks else capture.record
                writes = True
                path = await self._writer.call(self._written, step, parts, record, claims)
            except Exception as error:
                if not writes and self._together is not None:  # the others have begun, and wait for this process
                    await self._writer.call(self._together.gather_beside, {"failed": str(error)})
                _refuse(requests, error)
                self._not_written(step, error)
            else:
                for request in requests:
                    request.resolve(path)
                if self._peers is not None:
                    self._peers.tell("saved", step, str(path))
                self._tell(capture.record["epoch"], step, path)
            finally:
                self._in_flight = None
                saving.set()

    def _written(self, step: int, parts: Parts, record: Mapping[str, Any], claims: Sequence[Claim]) -> Path:
        """In the writer's thread: the checkpoint's directory. Weights that are not finite go into none."""
        assert self._checkpoints is not None
        if self._checks_weights:
            with _told_to(self._together):
                refuse_nonfinite(step, parts["model"])
        return self._checkpoints.write(step, parts, record, claims, self._together)

    async def _write_shards(self, capture: Capture, requests: Sequence[PendingCheckpoint], saving: anyio.Event) -> None:
        """This process's part of a checkpoint that the first process writes."""
        assert self._checkpoints is not None
        assert self._writer is not None
        assert self._peers is not None
        checkpoints, world = self._checkpoints, self._peers.world

        def write() -> None:
            if self._checks_weights:
                with _told_to(world):
                    refuse_nonfinite(capture.step, capture.model)
            checkpoints.write_shards(capture.step, capture.model, world)

        with anyio.CancelScope(shield=True):
            try:
                await self._writer.call(write)
            except Exception as error:
                self._not_written(capture.step, error)
            finally:
                self._in_flight = None
                saving.set()

    def _not_written(self, step: int, error: Exception) -> None:
        """A checkpoint failed. Weights that are not finite are no failure where a hook stops the run because of them."""
        if self._hooks_stop_on_nonfinite and isinstance(error, NonFiniteError):
            logger.warning("no checkpoint of step %d: %s", step, error)
            return
        self._unsaved.append(f"the checkpoint of step {step}")
        self._on_failure(error)

    @property
    def _is_sharded(self) -> bool:
        return bool(getattr(self._model, "is_sharded", False))

    @property
    def _together(self) -> World | None:
        """The processes that each write their part of a checkpoint; None if one writes all of it."""
        return self._peers.world if self._peers is not None and self._is_sharded else None

    def _lost_before(self, capture: Capture, hooks: Mapping[str, Any]) -> list[str]:
        """What a failure has cost that a resume from this checkpoint would not bring back, in words."""
        lost = [f"the state of hook {name}" for name in self._bus.failed_with_state if name not in hooks]
        record = capture.record
        failed = "after_failure" in record or capture.step == 0
        is_over = capture.epoch.get("phase", "over") == "over"
        if failed and not is_over and record["epoch"] == record["epochs_done"]:  # counted, but not told to all hooks
            lost.append(f"the end of epoch {record['epoch']}")
        return lost + self._unsaved


@contextmanager
def _told_to(world: World | None) -> Generator[None]:
    """What goes wrong in here before a checkpoint that all write is told to the others, who wait for this one's part."""
    try:
        yield
    except Exception as error:
        if world is not None:
            world.gather_beside({"failed": str(error)})
        raise


def _refuse(requests: Iterable[PendingCheckpoint], error: BaseException) -> None:
    """Tell those who wait for a checkpoint why there is none."""
    told = error if isinstance(error, Exception) else CheckpointError("the run was cancelled before it was taken")
    for request in requests:
        request.resolve(None, told)
