"""Session: what exists only while an engine runs. The model thread, the hooks' tasks, the opened streams, the saver.

Teardown is the reading order reversed: producers are cancelled, the thread finishes its step, hooks drain, tasks end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup

from asyncloop.bus import EventBus
from asyncloop.checkpoint import Checkpoints
from asyncloop.control import Control
from asyncloop.events import CheckpointSaved, RunInfo
from asyncloop.model_thread import Halt, ModelThread, Rules, Stretch
from asyncloop.peers import Peers
from asyncloop.saving import Saver
from asyncloop.standing import Position, Standing
from asyncloop.stream import (
    BufferStatistics,
    Feed,
    Interrupted,
    Node,
    Pass,
    Share,
    StagedFeed,
    open_feed,
    open_node,
    shared_out,
)
from asyncloop.threads import LoopHandle, LoopSleeper, OwnThread, to_the_end
from asyncloop.watchdog import watch

__all__ = ["OpenStream", "Session"]


@dataclass(slots=True)
class OpenStream:
    """A stream being read: one feed of one pass."""

    name: str
    train: bool
    feed: Feed
    position: Position
    is_datasets: bool
    """Whether the dataset has it, so that its position is kept; a source given for one call has none."""


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
        standing: Standing,
        about: Mapping[str, Any],
        own_rng: bool,
        peers: Peers | None,
        on_failure: Callable[[BaseException], None],
        on_log: Callable[..., None],
        follows: Callable[[str, bool], tuple[str, bool] | None],
        deadlines: Mapping[str, float],
        watched: Callable[[Node], Node] | None,
        enters: bool,
    ) -> None:
        self.bus, self.control, self._run_info = bus, control, run
        self._model, self._dataset, self._rules, self._seed = model, dataset, rules, seed
        self._buffer: int | Literal["auto"] = buffer
        self._checkpoints, self._given_thread, self._standing = checkpoints, thread, standing
        self._about, self._own_rng, self._peers = about, own_rng, peers
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
        self._saver: Saver | None = None
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
        writer = None
        if self._checkpoints is not None:
            writer = await self._stack.enter_async_context(OwnThread("asyncloop checkpoints", grace_s=60.0))
        if self._enters and hasattr(self._dataset, "__aenter__"):
            await self._stack.enter_async_context(self._dataset)
        self.tasks: TaskGroup = await self._stack.enter_async_context(anyio.create_task_group())
        live: Mapping[str, type] = getattr(self._model, "live", None) or {}
        self.control.attach(live, self._attracted, getattr(self._model, "check_parameter", None))
        if self._deadlines:
            self._watching = anyio.CancelScope()
            self.tasks.start_soon(self._watch)
        self.bus.open(self.tasks, fail=self._on_failure, stop=self.control.stop, log=self._on_log)
        self._saver = Saver(
            self._checkpoints,
            writer,
            model=self._model,
            thread=self.thread,
            bus=self.bus,
            tasks=self.tasks,
            standing=self._standing,
            about=self._about,
            own_rng=self._own_rng,
            peers=self._peers,
            checks_weights=self._rules.on_nonfinite == "error",
            hooks_stop_on_nonfinite=self._rules.left_to_hooks is None or bool(self._rules.left_to_hooks),
            tell=self._saved,
            on_failure=self._on_failure,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        try:
            await to_the_end(self._wind_up)
        finally:
            self.bus.close()
            await self._stack.__aexit__(None, None, None)

    async def _wind_up(self) -> None:
        await self._close_feeds()
        if self._saver is not None:
            await self._saver.written()

    @property
    def saver(self) -> Saver:
        assert self._saver is not None, "only while the session is open"
        return self._saver

    def _saved(self, epoch: int, step: int, path: Path) -> None:
        self.bus.publish(CheckpointSaved(self._run_info, self.control, epoch, step, path))

    async def _watch(self) -> None:
        assert self._watching is not None
        with self._watching:
            await watch(self._deadlines, self.thread.ident, lambda: self._stretch, self._on_failure)

    def _attracted(self) -> None:
        """Somebody used a control verb, on whatever thread: a thread or an engine that waits must look."""
        feed = self._running
        if feed is not None and self._peers is None:  # several processes stop only where all of them do
            feed.interrupt()
        self._sleeper.wake()
        if self.control.stop_reason is not None:
            self.bus.release_thread(True)
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
        warm.stream.feed.widen()
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
        if position is None and train:
            position = self._standing.positions.get(name) if source is None else self._standing.next_given(name)
        position = position or Position(number=1 if train else 0)
        at = Pass(name, position.number, self._seed)
        if self._peers is not None:
            at.share = Share(self._peers.world.rank, self._peers.world.size)
        try:
            with warm.scope:
                node = await open_node(self._dataset, name, source, at)
                if self._watched is not None:
                    node = self._watched(node)
                if at.share is not None:
                    node = shared_out(node)
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
                ahead = getattr(self._model, "ahead", 0)
                if ahead:
                    feed = StagedFeed(feed, at, self._model.stage, ahead, self.tasks)
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
            self._standing.positions[stream.name] = Position(number=stream.position.number + 1)

    def statistics(self, name: str) -> BufferStatistics | None:
        """The gauges of a stream's buffer, of the pass under way or of the last one."""
        stream = self._open.get(name)
        return (stream.feed.statistics() if stream else None) or self._statistics.get(name)

    def _exhausted(self, name: str, train: bool, number: int) -> None:
        """The producers of a pass have made its last batch, and half of them ran: those of the next one may begin."""
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
                self._standing.positions[stream.name] = stream.position

    async def peek_end(self, stream: OpenStream, stretch: Stretch) -> bool | None:
        """Whether the stream is over after the batches that ran; waits for a batch to look at. None: somebody wants
        something meanwhile."""
        self._running, self._stretch = stream.feed, stretch
        try:
            return await self.thread.peek_end(stream.feed, stream.name, stream.position.index)
        finally:
            self._running = self._stretch = None

    async def set_parameters(self, changes: Mapping[str, Any]) -> None:
        await self.thread.call(lambda: self._model.set_parameters(**changes))
