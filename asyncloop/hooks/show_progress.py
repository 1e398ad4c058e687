"""ShowProgress: how far the run is, for whoever watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import get_args

from asyncloop.events import (
    AfterBatch,
    AfterEpoch,
    AfterEvaluation,
    AfterTraining,
    BeforeEpoch,
    BeforeTraining,
    Paused,
    Resumed,
    RunInfo,
)
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import one_of, refuse
from asyncloop.hooks.progress_screens import Mode, Screen, open_screen
from asyncloop.hooks.progress_state import ProgressState, epoch_line

__all__ = ["ShowProgress"]

logger = logging.getLogger("asyncloop")


class ShowProgress(Hook):
    """Shows epoch, stream, batches done, speed, time left and the newest values on stderr, and a line for each epoch.

    `mode`: "rich" (a live line on a terminal), "plain" (whole lines, a few a minute), "json" (one object a line),
    "none", or "auto": a live line on a terminal, one display in a notebook, else plain lines. Totals come from the
    dataset's `num_batches` or from the first pass.

    It looks at a train step five times a second and writes in its own thread, in the background; a slow terminal costs
    it updates, not the run its time. A stderr that is closed silences it; it never fails a run.
    """

    every = "0.2 s"
    scalars_on_host = True
    overflow = "drop_oldest"
    background = True
    on_error = "disable"
    deadline = 10.0

    def __init__(self, mode: Mode = "auto") -> None:
        refuse("ShowProgress", one_of("mode", mode, get_args(Mode)))
        self._mode: Mode = mode
        self._state = ProgressState()
        self._screen: Screen | None = None
        self._drawn_s = 0.0

    def open(self, run: RunInfo) -> None:
        """Open the display, if it is not open yet. In a notebook it belongs to the cell that runs now, so whoever starts
        a run in the background does it; for others the run does. On any thread, before the run has begun."""
        if self._screen is not None:
            return
        try:
            self._screen = open_screen(self._mode, run)
        except (OSError, ValueError) as error:
            logger.debug("no progress is shown: %s", error)

    def end(self, state: str, epoch: int, step: int) -> None:
        """Close the display, if it is still open, with how the run ended. On any thread, after the run."""
        self._tell(state, epoch, step)
        self._close()

    def before_training(self, event: BeforeTraining) -> None:
        self._drawn_s = time.perf_counter()
        self._state.begin_training(event, self._drawn_s)
        self.open(event.run)

    def before_epoch(self, event: BeforeEpoch) -> None:
        self._state.begin_epoch(event, time.perf_counter())

    def after_batches(self, events: Sequence[AfterBatch]) -> None:
        screen, now_s = self._screen, time.perf_counter()
        if screen is None:
            return
        self._state.batches(events, now_s)
        if now_s - self._drawn_s < screen.interval_s:
            return
        snapshot = self._state.snapshot()
        if snapshot is not None:
            self._drawn_s = now_s
            try:
                screen.draw(snapshot)
            except (OSError, ValueError) as error:
                self._go_silent(error)

    def after_evaluation(self, event: AfterEvaluation) -> None:
        self._state.end_evaluation(event)

    def after_epoch(self, event: AfterEpoch) -> None:
        seconds = self._state.end_epoch(event, time.perf_counter())
        if self._screen is None:
            return
        entry = {"epoch": event.epoch, "step": event.step, "epoch_s": seconds, "data": event.data}
        try:
            self._screen.end_epoch(epoch_line(event, seconds), entry)
        except (OSError, ValueError) as error:
            self._go_silent(error)

    def paused(self, event: Paused) -> None:
        self._tell("paused", event.epoch, event.step)

    def resumed(self, event: Resumed) -> None:
        self._tell("running", event.epoch, event.step)

    def after_training(self, event: AfterTraining) -> None:
        has_stopped = event.control.stop_reason is not None
        state = "failed" if not event.success else "stopped" if has_stopped else "completed"
        self.end(f"{state}: {event.reason}", event.epoch, event.step)

    def _tell(self, state: str, epoch: int, step: int) -> None:
        if self._screen is not None:
            try:
                self._screen.tell(state, epoch, step)
            except (OSError, ValueError) as error:
                self._go_silent(error)

    def _go_silent(self, error: Exception) -> None:
        logger.debug("progress is not shown any more: %s", error)
        self._close()

    def _close(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            try:
                screen.close()
            except (OSError, ValueError) as error:
                logger.debug("the display did not close: %s", error)
