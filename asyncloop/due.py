"""Due: what is to happen at which step, known before the model thread starts, so that in between it asks nobody."""

from __future__ import annotations

import time
from collections.abc import Sequence

from asyncloop.bus import EventBus
from asyncloop.cadence import Cadence
from asyncloop.control import Control
from asyncloop.standing import Standing

__all__ = ["Due"]


class Due:
    """Plans an engine's stops and gathers the evaluations that are due. Owned by the engine coroutine."""

    def __init__(
        self,
        evaluate_every: Cadence | None,
        extra_streams: Sequence[str],
        standing: Standing,
        control: Control,
        bus: EventBus,
    ) -> None:
        self._every, self._extra_streams = evaluate_every, extra_streams
        self._standing, self._control, self._bus = standing, control, bus
        self._evaluated_s = 0.0
        self.has_clock = True
        """Whether a clock decides here; of several processes only the first one's, which asks the others."""
        self._put_off: dict[str, None] = {}

    def next_step(self) -> int | None:
        """The next step at which something is due; until then the model thread asks nobody."""
        step = self._standing.progress.step
        due = [self._standing.progress.steps, step + 1 if self._put_off else None]
        if self._every is not None and self._every.unit == "steps":
            due.append(self._every.next_due(step))
        for own in self._bus.lockstep_hooks:
            cadence = own.cadence
            if cadence is None or cadence.unit == "epochs":
                due.append(step + 1)
            elif cadence.unit == "steps":
                due.append(cadence.next_due(step))
        return min((n for n in due if n is not None and n > step), default=None)

    def next_s(self) -> float | None:
        """The clock reading (time.perf_counter) after which the extra streams are to be evaluated."""
        return self._due_s() if self.has_clock else None

    def evaluations(self) -> list[str]:
        """The streams to evaluate at this step, each once: put off, asked for, or due by their cadence.

        At a step that has had its evaluation what is asked for is put off until the next.
        """
        names, self._put_off = self._put_off, {}
        for wish in self._control.take_evaluations():
            names.update(dict.fromkeys(wish or self._extra_streams))
        step = self._standing.progress.step
        if self._standing.evaluated_step == step:
            self._put_off = names
            return []
        by_step = self._every is not None and self._every.unit == "steps" and self._every.due(step)
        due_s = self.next_s()
        by_time = due_s is not None and time.perf_counter() >= due_s
        if by_step or by_time:
            names.update(dict.fromkeys(self._extra_streams))
        return list(names)

    def ask_by_clock(self) -> None:
        """Have all processes evaluate, if it is time."""
        due_s = self._due_s()
        if due_s is not None and time.perf_counter() >= due_s:
            self.start_clock()
            self._control.evaluate()

    def _due_s(self) -> float | None:
        every = self._every
        return self._evaluated_s + every.interval if every is not None and every.unit == "seconds" else None

    def put_off(self, names: Sequence[str]) -> None:
        """Evaluate these later: the epoch turned out to be over, or a checkpoint was taken before they were done."""
        self._put_off.update(dict.fromkeys(names))

    def evaluated(self) -> None:
        """The extra streams have been evaluated at this step."""
        self._standing.evaluated_step = self._standing.progress.step
        self.start_clock()

    def start_clock(self) -> None:
        self._evaluated_s = time.perf_counter()
