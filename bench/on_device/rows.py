"""Rows: a trainer as a row of a scenario. Made, compiled and warm before the first round, gone after the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.harness import Reading, Row, WrongResult
from bench.on_device.card import give_back
from bench.on_device.chores import Chores, Kept
from bench.on_device.clocks import Updates, syncs_per_update, timed_run
from bench.on_device.trainer import Trainer
from bench.on_device.work import Work, loss_of
from bench.systems.registry import missing

__all__ = ["Course", "Entry", "row_of"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part: a name, a family, what it needs, how its trainer is made."""

    name: str
    family: str
    needs: Sequence[str]
    make: Callable[[], Trainer]
    leads: bool = False
    """The reference: it trains first in each round, without chores, and the others must get where it got."""


@dataclass(slots=True)
class Course:
    """What all rows of a scenario have in common: the work, how much of it is measured, and what the bare loop came to."""

    work: Work
    device: Any
    updates: Updates
    n_warm: int
    chores: Chores | None = None
    sync_updates: Updates | None = None
    """Count synchronisations in a run of this length; None: do not."""
    losses: list[float] = field(default_factory=list[float])
    """Of the bare loop after each round."""


def row_of(entry: Entry, course: Course) -> Row:
    runner = _Runner(entry, course)
    notes = {"updates": course.updates.n}
    left_out = missing(entry.needs)
    return Row(entry.name, entry.family, runner.measure, entry.leads, left_out, notes, runner.prepare, runner.finish)


class _Runner:
    """Holds one trainer from `prepare` to `finish`."""

    def __init__(self, entry: Entry, course: Course) -> None:
        self._entry, self._course = entry, course
        self._trainer: Trainer | None = None
        self._n_rounds = 0

    def prepare(self) -> None:
        self._trainer = self._entry.make()
        self._trainer.train(self._course.n_warm)

    def finish(self) -> None:
        self._trainer = None
        give_back(self._course.device)

    def measure(self) -> Reading:
        trainer, course = self._trainer, self._course
        assert trainer is not None
        update_s, kept = timed_run(trainer, course.updates, course.device)
        reading = {"update_s": update_s}
        if course.sync_updates is not None and course.device.type == "cuda":
            reading["syncs"] = syncs_per_update(trainer, course.sync_updates)
        self._check_chores(kept)
        self._check_loss(loss_of(trainer.module, course.work, course.device))
        return reading

    def _check_chores(self, kept: Kept) -> None:
        chores = self._course.chores
        if chores is not None and not self._entry.leads and kept != chores.expected(self._course.updates.n):
            raise WrongResult(f"left behind {kept}, expected {chores.expected(self._course.updates.n)}")

    def _check_loss(self, loss: float) -> None:
        """The weights are about as good as the bare loop's after the same round."""
        losses = self._course.losses
        if self._entry.leads:
            losses.append(loss)
        if self._n_rounds >= len(losses):
            raise WrongResult("there is no bare loop to compare the loss with")
        expected = losses[self._n_rounds]
        if not abs(loss - expected) <= 0.1 * abs(expected):  # nor NaN
            raise WrongResult(f"a loss of {loss:.4g} at the end of a round, where the bare loop has {expected:.4g}")
        self._n_rounds += 1
