"""Latency of an event: from the end of a step to the call of an async hook."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import anyio
import numpy as np

from asyncloop import AfterBatch, Engine, Hook
from bench.harness import Goal, Metric, Plan, Reading, Round, Row, Scenario, WrongResult
from bench.job import Batch, make_batches
from bench.stages import Hashing
from bench.systems.registry import Form, missing

__all__ = ["latency"]

STEPS = ((0.2, 2000), (2.0, 400), (20.0, 50))
"""Milliseconds of a step, and how many."""

BOUND_MS = 5.0
"""What is promised: within 5 ms or one step, whichever is longer."""


class StampedModel:
    """Computes without the interpreter lock, and says when it was done."""

    input_names = ("id", "x")
    output_names = ("loss", "done")

    def __init__(self, computing: Hashing) -> None:
        self.computing = computing

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        self.computing.run(batch)
        return {"loss": 0.5, "done": time.perf_counter()}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Latencies(Hook):
    """Seconds from the end of the step until here, for each batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.seen: list[int] = []

    async def after_batch(self, event: AfterBatch) -> None:
        self.seconds.append(time.perf_counter() - event.outputs["done"])
        self.seen.append(event.index)


class Batches:
    """A dataset of batches that are there already."""

    def __init__(self, n: int) -> None:
        self.batches = make_batches(n)

    def train_stream(self) -> Any:
        yield from self.batches


def latency(plan: Plan) -> Scenario:
    """How far behind the model an async hook is."""
    loops: tuple[Form, ...] = ("uvloop", "asyncio")
    rows = [_row(loop, step_ms, plan.seconds(step_ms / 1e3), plan.n(n)) for loop in loops for step_ms, n in STEPS]
    goals = [_goal(row.name, step_ms) for row, (step_ms, _) in zip(rows, STEPS * 2, strict=True)]
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
        return anyio.run(_measured, make_model(), n, backend_options={"use_uvloop": loop == "uvloop"})

    needs = ("uvloop",) if loop == "uvloop" else ()
    notes = {"batches": n}
    return Row(f"asyncloop {loop}, step {step_ms:g} ms", "asyncloop", measure, missing=missing(needs), notes=notes)


async def _measured(computing: Hashing, n: int) -> Reading:
    hook = Latencies()
    await Engine(StampedModel(computing), Batches(n), [hook], epochs=1, skip_zeroth_epoch=True).train()
    if hook.seen != list(range(n)):
        raise WrongResult("the hook did not see every batch once and in order")
    median, p99, most = np.percentile(hook.seconds, [50, 99, 100]) * 1e3
    return {"median_ms": float(median), "p99_ms": float(p99), "most_ms": float(most)}


def _goal(row: str, step_ms: float) -> Goal:
    def value(one: Round) -> float:
        return one[row]["p99_ms"]

    return Goal(f"{row}, p99", value, "ms", max(BOUND_MS, step_ms))
