"""Session: what exists only while an engine runs. The model thread, the hooks' tasks, the opened streams, and the save in flight.

Teardown is the reading order reversed: producers are cancelled, the thread finishes its step, hooks drain, tasks end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup

from asyncloop.batch import Cursor
from asyncloop.bus import EventBus, Marker
from asyncloop.checkpoint import Checkpoints, copy_state, refuse_nonfinite
from asyncloop.control import Claim, Control, PendingCheckpoint
from asyncloop.errors import CheckpointError
from asyncloop.events import CheckpointSaved, RunInfo
from asyncloop.model_thread import Halt, ModelThread, Rules, Stretch
from asyncloop.stream import BufferStatistics, Feed, Interrupted, Node, Pass, open_feed, open_node
from asyncloop.threads import LoopHandle, LoopSleeper, OwnThread
from asyncloop.watchdog import watch

__all__ = ["Capture", "OpenStream", "Position", "Session", "refuse"]

logger = logging.getLogger("asyncloop")


_NOT_WHOLE = Claim("after a failure", keep=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stream stands: the pass, the index of the next batch in it, and the stream's own cursor."""

    number: int = 1
    index: int = 0
    cursor: Cursor = None


@dataclass(slots=True)
class OpenStream:
    """A stream being read: one feed of one pass."""

    name: str
    train: bool
    feed: Feed
    position: Position
    is_datasets: bool
    """Whether the dataset has it, so that its position is kept; a source given for one call has none."""


@dataclass(frozen=True, slots=True)
class Capture:
    """The state at a step boundary, copied; what hooks had after it comes with the marker."""

    step: int
    model: Any
    epoch: Mapping[str, Any]
    record: Mapping[str, Any]
    marker: Marker


class _Opening:
    """A stream being opened, ahead of time or because it is wanted now."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.scope = anyio.CancelScope()
        self.stream: OpenStream | None = None
        self.error: Exception | None = None


class Session:
    """Owns every task, thread and feed of a running engine. An async context manager; lives on the event loop."""

    def __init__(
        self,
        *,
        model: Any,
        dataset: Any,
        bus: EventBus,
        run: RunInfo,
        control: Control,
        rules: Rules,
        seed: int,
        buffer: int | Literal["auto"],
        checkpoints: Checkpoints | None,
        thread: ModelThread | None,
        positions: dict[str, Position],
        on_failure: Callable[[BaseException], None],
        on_log: Callable[..., None],
        follows: Callable[[str, bool], tuple[str, bool] | None],
        deadlines: Mapping[str, float],
        watched: Callable[[Node], Node] | None,
        begins_at: int,
        enters: bool,
    ) -> None:
        self.bus, self.control, self._run_info = bus, control, run
        self._model, self._dataset, self._rules, self._seed = model, dataset, rules, seed
        self._buffer: int | Literal["auto"] = buffer
        self._checkpoints, self._given_thread, self._positions = checkpoints, thread, positions
        self._on_failure, self._on_log, self._follows = on_failure, on_log, follows
        self._deadlines, self._watched, self._enters = deadlines, watched, enters
        self._stretch: Stretch | None = None
        self._stack = AsyncExitStack()
        self._open: dict[str, OpenStream] = {}
        self._warm: dict[tuple[str, bool], _Opening] = {}
        self._awaited: _Opening | None = None
        self._feeds: dict[int, Feed] = {}
        self._costs: dict[str, float] = {}
        self._statistics: dict[str, BufferStatistics] = {}
        self._running: Feed | None = None
        self._saving: anyio.Event | None = None
        self._unsaved: list[str] = []
        """Checkpoints that could not be written, in words."""
        self.saved_step = begins_at
        """The newest step of which a checkpoint was taken, or at which the session began."""
        self._closing = False
        self._watching: anyio.CancelScope | None = None

    async def __aenter__(self) -> Session:
        try:
            await self._enter()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _enter(self) -> None:
        self._loop = LoopHandle()
        self._sleeper = LoopSleeper(self._loop)
        self.thread = self._given_thread or await self._stack.enter_async_context(ModelThread())
        if self._checkpoints is not None:
            self._writer = await self._stack.enter_async_context(OwnThread("asyncloop checkpoints", grace_s=60.0))
        if self._enters and hasattr(self._dataset, "__aenter__"):
            await self._stack.enter_async_context(self._dataset)
        self.tasks: TaskGroup = await self._stack.enter_async_context(anyio.create_task_group())
        live: Mapping[str, type] = getattr(self._model, "live", None) or {}
        self.control.attach(live, self._attracted)
        if self._deadlines:
            self._watching = anyio.CancelScope()
            self.tasks.start_soon(self._watch)
        self.bus.open(self.tasks, fail=self._on_failure, stop=self.control.stop, log=self._on_log)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        with anyio.CancelScope(shield=True):
            await self._close_feeds()
            await self.written()
            self.bus.close()
        await self._stack.__aexit__(None, None, None)

    async def _watch(self) -> None:
        assert self._watching is not None
        with self._watching:
            await watch(self._deadlines, self.thread.ident, lambda: self._stretch, self._on_failure)

    def _attracted(self) -> None:
        """Somebody used a control verb, on whatever thread: a thread or an engine that waits must look."""
        feed = self._running
        if feed is not None:
            feed.interrupt()
        self._sleeper.wake()
        if self.control.stop_reason is not None:
            self._loop.soon(self._hurry)

    def _hurry(self) -> None:
        """A stop: nobody waits for a stream that is still being opened; an abort waits for no hook either."""
        if self._awaited is not None:
            self._awaited.scope.cancel()
        if self.control.aborted:
            self.bus.drop_backlog()

    async def sleep(self) -> None:
        """Wait for the next control verb."""
        self._sleeper.asleep = True
        await self._sleeper.sleep()

    # --- streams ------------------------------------------------------------------------------------------------

    async def take(self, name: str, train: bool, source: object | None) -> OpenStream:
        """The stream, opened: carried over from the last epoch, warmed up already, or opened now.

        Raises Interrupted if a stop comes while the dataset is still opening it.
        """
        if source is None and train and name in self._open:
            return self._open[name]
        warm = self._warm.pop((name, train), None) if source is None else None
        if warm is None:
            warm = self._begin_opening(name, train, source, None)
        self._awaited = warm
        try:
            await warm.ready.wait()
        finally:
            self._awaited = None
        if warm.error is not None:
            raise warm.error
        if warm.stream is None:
            raise Interrupted
        if train and source is None:
            self._open[name] = warm.stream
        return warm.stream

    def _begin_opening(self, name: str, train: bool, source: object | None, position: Position | None) -> _Opening:
        warm = _Opening()
        self.tasks.start_soon(self._open_stream, warm, name, train, source, position)
        return warm

    async def _open_stream(
        self, warm: _Opening, name: str, train: bool, source: object | None, position: Position | None
    ) -> None:
        if position is None and train and source is None:
            position = self._positions.get(name)
        position = position or Position(number=1 if train else 0)
        at = Pass(name, position.number, self._seed)
        try:
            with warm.scope:
                node = await open_node(self._dataset, name, source, at)
                if self._watched is not None:
                    node = self._watched(node)
                feed = open_feed(
                    node,
                    at,
                    position.cursor,
                    buffer=self._buffer,
                    known_cost_s=self._costs.get(name),
                    tasks=self.tasks,
                    close_on_model_thread=self.thread.call,
                    on_exhausted=lambda: self._exhausted(name, train, position.number),
                )
                self._feeds[id(feed)] = feed
                warm.stream = OpenStream(name, train, feed, position, source is None)
        except Exception as error:
            warm.error = error
        finally:
            warm.ready.set()

    async def end_pass(self, stream: OpenStream) -> None:
        """The stream is over: its feed is closed, and the next training pass starts from the beginning."""
        statistics = stream.feed.statistics()
        if statistics is not None:
            self._statistics[stream.name] = statistics
        await stream.feed.aclose()
        del self._feeds[id(stream.feed)]
        if stream.train and stream.is_datasets:
            self._open.pop(stream.name, None)
            self._positions[stream.name] = Position(number=stream.position.number + 1)

    def statistics(self, name: str) -> BufferStatistics | None:
        """The gauges of a stream's buffer, of the pass under way or of the last one."""
        stream = self._open.get(name)
        return (stream.feed.statistics() if stream else None) or self._statistics.get(name)

    def _exhausted(self, name: str, train: bool, number: int) -> None:
        """The producers of a pass have made its last batch: those of the next one may begin."""
        following = None if self._closing else self._follows(name, train)
        if following is None or following in self._warm:
            return
        position = None
        if following == (name, True):  # the same training stream again, which need not be registered as open yet
            position = Position(number=number + 1)
        elif following[1] and following[0] in self._open:
            position = Position(number=self._open[following[0]].position.number + 1)
        self._warm[following] = self._begin_opening(*following, None, position)

    async def _close_feeds(self) -> None:
        for warm in self._warm.values():
            warm.scope.cancel()
            await warm.ready.wait()
        self._open.clear()
        self._warm.clear()
        while self._feeds:
            await self._feeds.popitem()[1].aclose()

    # --- running ------------------------------------------------------------------------------------------------

    async def run(self, stream: OpenStream, stretch: Stretch) -> Halt:
        """Let the model thread run a stretch; afterwards the stream's position is that of the last batch that ran."""
        self.bus.release_thread(False)
        self._running, self._stretch = stream.feed, stretch
        try:
            return await self.thread.run(stretch, self._model, self._rules, self.bus, self.tasks)
        finally:
            self._running = self._stretch = None
            stream.position = Position(stream.position.number, stretch.index, stretch.cursor)
            cost_s = stream.feed.cost_s(stretch.read)
            if cost_s is not None:
                self._costs[stream.name] = cost_s
            if stream.train and stream.is_datasets:
                self._positions[stream.name] = stream.position

    async def peek_end(self, stream: OpenStream) -> bool:
        """Whether the stream is over after the batches that ran; waits for a batch to look at, unless a stop comes."""
        self._running = stream.feed
        try:
            over = None
            while over is None and self.control.stop_reason is None:
                over = await self.thread.peek_end(stream.feed, stream.name, stream.position.index)
            return bool(over)
        finally:
            self._running = None

    async def set_parameters(self, changes: Mapping[str, Any]) -> None:
        await self.thread.call(lambda: self._model.set_parameters(**changes))

    # --- checkpoints --------------------------------------------------------------------------------------------

    @property
    def saves(self) -> bool:
        """Whether there is somewhere to save a checkpoint."""
        return self._checkpoints is not None

    async def capture(
        self, step: int, record: Mapping[str, Any], place: Callable[[], Mapping[str, Any]], marker: Marker
    ) -> Capture:
        """Copy the model's state and the `place` in the epoch on the model thread; hooks' states come with the marker.

        Raises what the model's `state_dict` raises, and CheckpointError if there is nowhere to save.
        """
        if self._checkpoints is None:
            raise CheckpointError("a checkpoint was asked for, but this engine has no output_dir, or only evaluates")
        model, epoch = await self.thread.call(lambda: (copy_state(self._model.state_dict()), copy_state(place())))
        self.saved_step = step
        return Capture(step, model, epoch, record, marker)

    def commit(self, capture: Capture, requests: list[PendingCheckpoint]) -> None:
        """Write what was captured in the background; one checkpoint serves all `requests`."""
        self._saving = anyio.Event()
        self.tasks.start_soon(self._write, capture, requests)

    async def written(self) -> None:
        """Wait until the checkpoint in flight is complete (or has failed)."""
        if self._saving is not None:
            await self._saving.wait()

    async def _write(self, capture: Capture, requests: list[PendingCheckpoint]) -> None:
        assert self._checkpoints is not None
        assert self._saving is not None
        checkpoints, saving, step, marker = self._checkpoints, self._saving, capture.step, capture.marker
        with anyio.CancelScope(shield=True):
            try:
                hooks = copy_state(await marker.complete())
                parts = {"model": capture.model, "hooks": hooks, "epoch": {**capture.epoch, "logged": marker.logged}}
                lacks = self._lost_before(capture, hooks)
                # A checkpoint that lacks something takes nobody's place among those that do not.
                claims = [_NOT_WHOLE] if lacks else [request.claim for request in requests]
                record = {**capture.record, "lacks": lacks} if lacks else capture.record
                if self._rules.on_nonfinite == "error":
                    await self._writer.call(refuse_nonfinite, step, capture.model)
                path = await self._writer.call(checkpoints.write, step, parts, record, claims)
            except Exception as error:
                self._unsaved.append(f"the checkpoint of step {step}")
                refuse(requests, error)
                self._on_failure(error)
            else:
                for request in requests:
                    request.resolve(path)
                self._saved(step, capture.record, path)
            finally:
                saving.set()

    def _lost_before(self, capture: Capture, hooks: Mapping[str, Any]) -> list[str]:
        """What a failure has cost that a resume from this checkpoint would not bring back, in words."""
        lost = [f"the state of hook {name}" for name in self.bus.failed_with_state if name not in hooks]
        record = capture.record
        failed = "after_failure" in record or capture.step == 0
        is_over = capture.epoch.get("phase", "over") == "over"
        if failed and not is_over and record["epoch"] == record["epochs_done"]:  # counted, but not told to all hooks
            lost.append(f"the end of epoch {record['epoch']}")
        return lost + self._unsaved

    def _saved(self, step: int, record: Mapping[str, Any], path: Path) -> None:
        self.bus.publish(CheckpointSaved(self._run_info, self.control, record["epoch"], step, path))


def refuse(requests: Iterable[PendingCheckpoint], error: Exception) -> None:
    """Tell those who wait for a checkpoint why there is none."""
    for request in requests:
        request.resolve(None, error)
