"""Listener: events as an async iterator, for programs that watch a run rather than hook into it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from asyncloop.bus.history import History
from asyncloop.events import AfterBatch, Event
from asyncloop.threads import LoopHandle, LoopSleeper

__all__ = ["Gap", "Listener"]


@dataclass(slots=True, eq=False)
class Gap(Event):
    """Stands in an event iterator where `missed` older events were dropped because the reader was slow."""

    missed: int


class Listener:
    """`async for event in listener`: earlier events that are not per batch, then what comes; ends with the run.

    Earlier profiles come in brief: counts, sums and extremes, without the single durations.
    A slow reader never holds the run back: beyond `bound` waiting events the oldest are dropped, and a Gap says so.
    Cancelling the reader is fine at any point.
    """

    def __init__(self, kinds: tuple[type[Event], ...], history: History, ended: bool, bound: int) -> None:
        self._kinds = kinds or (Event,)
        self._bound = bound
        self._missed = history.n_dropped
        self._ended = ended
        self._sleeper: LoopSleeper | None = None
        self._waiting: deque[Event] = deque(event for event in history if isinstance(event, self._kinds))

    def offer(self, event: Event) -> None:
        """On the loop: one more event has happened."""
        if not isinstance(event, self._kinds):
            return
        if len(self._waiting) >= self._bound:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._wake()

    @property
    def wants_batches(self) -> bool:
        return any(issubclass(AfterBatch, kind) for kind in self._kinds)

    def end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._sleeper is not None and self._sleeper.asleep:
            self._sleeper.wake()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Event:
        if self._sleeper is None:
            self._sleeper = LoopSleeper(LoopHandle())
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._sleeper.asleep = True
            await self._sleeper.sleep()
        event = self._waiting[0]
        if self._missed:
            missed, self._missed = self._missed, 0
            return Gap(event.run, event.control, event.epoch, event.step, missed)
        return self._waiting.popleft()
