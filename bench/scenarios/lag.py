"""Lag of the event loop: how late a task that sleeps a millisecond wakes up while a 2 ms numpy step trains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np

from asyncloop import Engine
from bench.harness import Metric, Plan, Reading, Round, Row, Scenario, WrongResult
from bench.job import Batch, Batches
from bench.loops import LOOPS, needs_of, run_on
from bench.stages import NoOp, calibrated
from bench.systems.registry import Form, missing

__all__ = ["lag"]

STEP_S = 2e-3
TICK_S = 1e-3


class NumpyModel(NoOp):
    """A step of numpy: a few large products, which let go of the interpreter lock, or many small operations, which do not."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        self.work()
        return super().run(batch)


def lag(plan: Plan) -> Scenario:
    """What the rest of a program feels while a model trains in it."""
    n, step_s = plan.n(1000), plan.seconds(STEP_S)
    steps = {"large products": _large_products(step_s), "small operations": _small_operations(step_s)}
    rows: list[Row] = []
    for loop in LOOPS:
        note = missing(needs_of(loop))
        rows.append(Row(f"idle {loop}", "plain", _on(loop, None, n), reference=True, missing=note))
        for name, work in steps.items():
            rows.append(Row(f"asyncloop {loop}, {name}", "asyncloop", _on(loop, work, n), missing=note))

    def over_idle(one: Round, name: str) -> float | None:
        idle = f"idle {'uvloop' if 'uvloop' in name else 'asyncio'}"
        return None if name == idle else one[name]["p99_ms"] - one[idle]["p99_ms"]

    metrics = [
        Metric("p99", "ms", lambda one, name: one[name]["p99_ms"]),
        Metric("p99 above idle", "ms", over_idle),
        Metric("median", "ms", lambda one, name: one[name]["median_ms"]),
    ]
    return Scenario("lag", "how late a 1 ms sleep wakes up while a 2 ms numpy step trains", rows, metrics)


def _large_products(step_s: float) -> Callable[[], object]:
    matrix = np.random.default_rng(0).normal(size=(128, 128))

    def multiply(n: int) -> None:
        for _ in range(n):
            np.dot(matrix, matrix)

    n = calibrated(multiply, step_s, start=4)
    return lambda: multiply(n)


def _small_operations(step_s: float) -> Callable[[], object]:
    vector = np.linspace(0, 1, 64)

    def add(n: int) -> None:
        for _ in range(n):
            np.add(vector, vector)

    n = calibrated(add, step_s, start=64)
    return lambda: add(n)


def _on(loop: Form, work: Callable[[], object] | None, n: int) -> Callable[[], Reading]:
    def measure() -> Reading:
        return run_on(loop, _measured, work, n)

    return measure


async def _measured(work: Callable[[], object] | None, n: int) -> Reading:
    late: list[float] = []
    ticking = asyncio.create_task(_tick(late))
    if work is None:
        await asyncio.sleep(n * STEP_S)
    else:
        model = NumpyModel(work)
        await Engine(model, Batches(n), epochs=1, skip_zeroth_epoch=True).train()
        if model.n_runs != n:
            raise WrongResult(f"the model ran {model.n_runs} times for {n} batches")
    ticking.cancel()
    median, p99 = np.percentile(late, [50, 99]) * 1e3
    return {"median_ms": float(median), "p99_ms": float(p99)}


async def _tick(late: list[float]) -> None:
    for _ in count():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - began - TICK_S)
