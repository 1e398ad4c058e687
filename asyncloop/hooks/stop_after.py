"""StopAfter: the end by epochs, steps or minutes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Coroutine
from numbers import Real
from typing import Any

from asyncloop.control import Control
from asyncloop.errors import StopTraining
from asyncloop.events import AfterBatch, AfterEpoch, AfterTraining, BeforeEpoch, BeforeTraining
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import refuse, whole

__all__ = ["StopAfter"]


class StopAfter(Hook):
    """Stops after so many epochs, steps (of the run's whole life) or minutes (of this session), whichever is first.

    `epochs` ends after that epoch is complete, `steps` at exactly that step, `minutes` at the first batch of any stream
    after the time is up. A clock of its own watches the minutes, so a run that waits for data is stopped as well and no
    batch pays for it. A resumed run that is past its limits stops before its first step. Runs on the event loop.
    """

    def __init__(self, epochs: int | None = None, steps: int | None = None, minutes: float | None = None) -> None:
        refuse(
            "StopAfter",
            whole("epochs", epochs, 0),
            whole("steps", steps, 1),
            _minutes("minutes", minutes),
            "give at least one of epochs, steps, minutes" if epochs is steps is minutes is None else None,
        )
        self._epochs, self._steps, self._minutes = epochs, steps, minutes
        self._timer: threading.Timer | None = None
        self.after_batch: Callable[[AfterBatch], Coroutine[Any, Any, None]] | None = None
        if steps is not None:
            self.every, self.lockstep = f"{steps} steps", True
            self.after_batch = self._after_step

    async def before_training(self, event: BeforeTraining) -> None:
        if self._steps is not None and event.step >= self._steps:
            raise StopTraining(f"StopAfter: {event.step} of {self._steps} steps done")
        if self._minutes is not None:
            self._timer = threading.Timer(self._minutes * 60, _time_is_up, [event.control, self._minutes])
            self._timer.name, self._timer.daemon = "asyncloop StopAfter", True
            self._timer.start()

    async def before_epoch(self, event: BeforeEpoch) -> None:
        if self._epochs is not None and event.epoch > self._epochs:
            raise StopTraining(f"StopAfter: {self._epochs} epochs done")

    async def _after_step(self, event: AfterBatch) -> None:
        if self._steps is not None and event.train and event.step >= self._steps:
            raise StopTraining(f"StopAfter: {self._steps} steps done")

    async def after_epoch(self, event: AfterEpoch) -> None:
        if self._epochs is not None and event.epoch >= self._epochs:
            raise StopTraining(f"StopAfter: {self._epochs} epochs done")

    async def after_training(self, event: AfterTraining) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _time_is_up(control: Control, minutes: float) -> None:
    """On the timer's thread; the verbs of Control may be called from any."""
    control.stop(f"StopAfter: {minutes:g} minutes are over")


def _minutes(key: str, value: object) -> str | None:
    if value is None or (not isinstance(value, bool) and isinstance(value, Real) and 0 < float(value) < math.inf):
        return None
    return f"{key} is a positive number, not {value!r:.60}"
