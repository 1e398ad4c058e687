"""A blocked subscriber: one hook waits for a second; what do the model and the other hook notice?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import anyio
import numpy as np

from asyncloop import AfterBatch, Engine, Hook
from bench.delivery import Deliveries, Stamped
from bench.harness import Goal, Metric, Plan, Reading, Row, Scenario, WrongResult
from bench.job import Batches
from bench.loops import LOOPS, needs_of, run_on
from bench.scenarios.goals import goal_of_reading
from bench.stages import Sleeping
from bench.systems.registry import Form, missing

__all__ = ["blocked"]

N_STEPS = 60
BLOCKED_AT = 5

Blocker: TypeAlias = Literal["async", "plain"]


class AsyncBlocker(Hook):
    """Awaits something for `seconds`, once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, list[int]()

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append(event.index)
        if event.index == BLOCKED_AT:
            await anyio.sleep(self.seconds)


class PlainBlocker(Hook):
    """Blocks the thread that calls it for `seconds`, once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, list[int]()

    def after_batch(self, event: AfterBatch) -> None:
        self.seen.append(event.index)
        if event.index == BLOCKED_AT:
            time.sleep(self.seconds)


def blocked(plan: Plan) -> Scenario:
    """Whether a stuck hook is its own problem only. Its mailbox is large enough for all that comes meanwhile."""
    seconds = plan.seconds(1.0)
    blockers: tuple[Blocker, ...] = ("async", "plain")
    rows: list[Row] = []
    goals: list[Goal] = []
    for loop in LOOPS:
        for blocker in blockers:
            name = f"asyncloop {loop}, {blocker} hook blocked"
            note = missing(needs_of(loop))
            rows.append(Row(name, "asyncloop", _measure(loop, blocker, seconds), missing=note))
            goals.append(goal_of_reading(name, "delay of the other hook", "delay_ms", "ms", 10, 2))
            goals.append(goal_of_reading(name, "steps lost", "lost", "steps", 0, 0))
    metrics = [
        Metric("delay of the other hook", "ms", lambda one, name: one[name]["delay_ms"]),
        Metric("steps lost", "steps", lambda one, name: one[name]["lost"]),
        Metric("longest step", "ms", lambda one, name: one[name]["longest_ms"]),
    ]
    title = f"one of two hooks blocked for {seconds:g} s, {N_STEPS} steps of {seconds * 20:g} ms"
    remarks = [
        "The delay: the slowest delivery while the other hook is blocked, less the slowest in an undisturbed run. "
        "Steps lost: whole steps by which the run with the blocked hook took longer."
    ]
    return Scenario("blocked", title, rows, metrics, goals, remarks=remarks)


def _measure(loop: Form, blocker: Blocker, seconds: float) -> Callable[[], Reading]:
    def measure() -> Reading:
        undisturbed, undisturbed_steps = run_on(loop, _run, blocker, 0.0, seconds / 50)
        disturbed, steps = run_on(loop, _run, blocker, seconds, seconds / 50)
        lost = int((sum(steps) - sum(undisturbed_steps)) / float(np.median(undisturbed_steps)))
        return {
            "delay_ms": (max(disturbed) - max(undisturbed)) * 1e3,
            "lost": max(lost, 0),
            "longest_ms": max(steps) * 1e3,
        }

    return measure


async def _run(blocker: Blocker, blocked_s: float, step_s: float) -> tuple[list[float], list[float]]:
    """Delivery of each event to the other hook, and the time between steps, both from the blocked step on."""
    model, follows = Stamped(Sleeping(step_s)), Deliveries()
    stuck = AsyncBlocker(blocked_s) if blocker == "async" else PlainBlocker(blocked_s)
    await Engine(model, Batches(N_STEPS), [stuck, follows], epochs=1, skip_zeroth_epoch=True).train()
    if not stuck.seen == follows.seen == list(range(N_STEPS)):
        raise WrongResult("a hook did not see every batch once and in order")
    return follows.seconds[BLOCKED_AT:-1], [float(gap) for gap in np.diff(model.marks[BLOCKED_AT:])]
