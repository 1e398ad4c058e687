"""Cancellation: how long `train()` takes to return when its caller is cancelled with a full buffer and a busy model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Literal, TypeAlias

import anyio
import numpy as np

from asyncloop import Engine, Stream
from bench.harness import Goal, Metric, Plan, Reading, Row, Scenario, WrongResult
from bench.job import Batch
from bench.loops import LOOPS, needs_of, run_on
from bench.scenarios.goals import goal_of_reading
from bench.stages import Sleeping
from bench.systems.registry import Form, missing

__all__ = ["cancellation"]

STEP_S = 20e-3
N_SAMPLES = 5

Kind: TypeAlias = Literal["generator", "async generator", "map"]


class Endless:
    """Batches without end, as one kind of stream."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.batch: Batch = {"id": np.zeros(1, int), "x": np.zeros((1, 32))}

    def train_stream(self) -> Stream:
        if self.kind == "map":
            return Stream.range(1 << 40).map(self.fetch, concurrency=16)
        return Stream.of(self.plain if self.kind == "generator" else self.asynchronous)

    def plain(self) -> Iterator[Batch]:
        for _ in count():
            yield self.batch

    async def asynchronous(self) -> AsyncIterator[Batch]:
        for _ in count():
            yield self.batch

    async def fetch(self, index: int) -> Batch:
        await anyio.sleep(1e-3)
        return self.batch


def cancellation(plan: Plan) -> Scenario:
    """Whether a program that trains can be stopped at once."""
    kinds: tuple[Kind, ...] = ("generator", "async generator", "map")
    rows: list[Row] = []
    goals: list[Goal] = []
    for loop in LOOPS:
        for kind in kinds:
            name = f"asyncloop {loop}, {kind}"
            note = missing(needs_of(loop))
            rows.append(Row(name, "asyncloop", _measure(loop, kind, plan), missing=note))
            goals += [
                goal_of_reading(name, "until train() has returned", "returned_ms", "ms", STEP_S * 1e3 + 10),
                goal_of_reading(name, "after the running step", "beyond_ms", "ms", 10, 1),
            ]
    metrics = [
        Metric("until train() has returned", "ms", lambda one, name: one[name]["returned_ms"]),
        Metric("after the running step", "ms", lambda one, name: one[name]["beyond_ms"]),
    ]
    title = "a cancelled caller, buffer 64 full, model 20 ms"
    remarks = [f"The slowest of {plan.n(N_SAMPLES, 1)} cancellations a round, each at another moment of the step."]
    return Scenario("cancellation", title, rows, metrics, goals, remarks=remarks)


def _measure(loop: Form, kind: Kind, plan: Plan) -> Callable[[], Reading]:
    n_samples, step_s = plan.n(N_SAMPLES, 1), plan.seconds(STEP_S)

    def measure() -> Reading:
        phases = [sample / n_samples for sample in range(n_samples)]
        samples = [run_on(loop, _cancelled, kind, step_s, phase) for phase in phases]
        return {key: max(sample[key] for sample in samples) for key in samples[0]}

    return measure


async def _cancelled(kind: Kind, step_s: float, phase: float) -> Reading:
    """Cancel after five steps and `phase` of one more; milliseconds until the call was over."""
    model = Sleeping(step_s)
    engine = Engine(model, Endless(kind), epochs=1, skip_zeroth_epoch=True, buffer=64)
    cancelled_at = returned_at = 0.0
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            nonlocal cancelled_at
            while model.n_runs < 5:  # noqa: ASYNC110 - the model's thread has nothing to tell a loop with
                await anyio.sleep(1e-3)
            await anyio.sleep(phase * step_s)
            cancelled_at = time.perf_counter()
            scope.cancel()

        group.start_soon(cancel)
        with scope:
            await engine.train()
        returned_at = time.perf_counter()
    if not scope.cancelled_caught:
        raise WrongResult("train() returned, although its caller was cancelled")
    beyond_s = returned_at - max(cancelled_at, model.marks[-1])
    return {"returned_ms": (returned_at - cancelled_at) * 1e3, "beyond_ms": beyond_s * 1e3}
