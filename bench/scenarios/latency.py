"""Latency of an event: from the end of a step to the call of an async hook."""

from __future__ import annotations

import numpy as np

from asyncloop import Engine
from bench.delivery import Deliveries, Stamped
from bench.harness import Metric, Plan, Reading, Row, Scenario, WrongResult
from bench.job import Batches
from bench.loops import LOOPS, needs_of, run_on
from bench.scenarios.goals import goal_of_reading
from bench.stages import Hashing
from bench.systems.registry import Form, missing

__all__ = ["latency"]

STEPS = ((0.2, 2000), (2.0, 400), (20.0, 50))
"""Milliseconds of a step, and how many."""

BOUND_MS = 5.0
"""What is promised: within 5 ms or one step, whichever is longer."""


def latency(plan: Plan) -> Scenario:
    """How far behind the model an async hook is."""
    rows = [_row(loop, step_ms, plan.seconds(step_ms / 1e3), plan.n(n)) for loop in LOOPS for step_ms, n in STEPS]
    steps = [step_ms for step_ms, _ in STEPS] * len(LOOPS)
    goals = [
        goal_of_reading(row.name, "p99", "p99_ms", "ms", max(BOUND_MS, step_ms))
        for row, step_ms in zip(rows, steps, strict=True)
    ]
    metrics = [
        Metric("median", "ms", lambda one, name: one[name]["median_ms"]),
        Metric("p99", "ms", lambda one, name: one[name]["p99_ms"]),
        Metric("most", "ms", lambda one, name: one[name]["most_ms"]),
    ]
    title = "from the end of a step to the call of an async hook, steps without the interpreter lock"
    return Scenario("latency", title, rows, metrics, goals)


def _row(loop: Form, step_ms: float, step_s: float, n: int) -> Row:
    make_model = Hashing.lasting(step_s)

    def measure() -> Reading:
        return run_on(loop, _measured, make_model(), n)

    notes = {"batches": n}
    return Row(
        f"asyncloop {loop}, step {step_ms:g} ms", "asyncloop", measure, missing=missing(needs_of(loop)), notes=notes
    )


async def _measured(computing: Hashing, n: int) -> Reading:
    hook = Deliveries()
    await Engine(Stamped(computing), Batches(n), [hook], epochs=1, skip_zeroth_epoch=True).train()
    if hook.seen != list(range(n)):
        raise WrongResult("the hook did not see every batch once and in order")
    median, p99, most = np.percentile(hook.seconds, [50, 99, 100]) * 1e3
    return {"median_ms": float(median), "p99_ms": float(p99), "most_ms": float(most)}
