"""Back-pressure: the most batches that are alive while a slow model trains."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, TypeAlias

import anyio
import numpy as np

from asyncloop import Engine, Stream
from bench.harness import Goal, Metric, Plan, Reading, Row, Scenario, WrongResult
from bench.scenarios.goals import goal_of_reading
from bench.stages import Sleeping
from bench.systems.registry import missing

__all__ = ["backpressure"]

CAPACITIES = (1, 8, 64)
WORKERS = 4

Kind: TypeAlias = Literal["generator", "async generator", "map"]


class Alive:
    """Counts the batches that exist, over all threads."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def born(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def gone(self) -> None:
        with self._lock:
            self.now -= 1


class CountedBatch(dict[str, Any]):
    """A batch that is counted from its making until nobody holds it."""

    def __init__(self, index: int, alive: Alive) -> None:
        super().__init__(id=np.array([index]), x=np.zeros((1, 32)))
        self.alive = alive
        alive.born()

    def __del__(self) -> None:
        self.alive.gone()


class Source:
    """`n` counted batches as one kind of stream."""

    def __init__(self, n: int, kind: Kind, alive: Alive) -> None:
        self.n, self.kind, self.alive = n, kind, alive

    def train_stream(self) -> Stream:
        if self.kind == "map":
            return Stream.range(self.n).map(self.fetch, concurrency=WORKERS)
        return Stream.of(self.plain if self.kind == "generator" else self.asynchronous)

    def plain(self) -> Iterator[CountedBatch]:
        for index in range(self.n):
            yield CountedBatch(index, self.alive)

    async def asynchronous(self) -> AsyncIterator[CountedBatch]:
        for index in range(self.n):
            yield CountedBatch(index, self.alive)

    async def fetch(self, index: int) -> CountedBatch:
        return CountedBatch(index, self.alive)


def backpressure(plan: Plan) -> Scenario:
    """Whether a buffer of c batches holds c batches."""
    kinds: tuple[Kind, ...] = ("generator", "async generator", "map")
    rows: list[Row] = []
    goals: list[Goal] = []
    for kind in kinds:
        for capacity in CAPACITIES:
            hands = WORKERS if kind == "map" else 1
            producers = f", {WORKERS} workers" if kind == "map" else ""
            name = f"asyncloop, {kind}{producers}, buffer {capacity}"
            measure = _measure(plan.seconds(2e-3), kind, capacity, hands)
            rows.append(Row(name, "asyncloop", measure))
            goals.append(goal_of_reading(name, "above buffer and producers", "above", "batches", 1, 0))
    metrics = [
        Metric("most alive", "batches", lambda one, name: one[name]["most"]),
        Metric("buffer", "batches", lambda one, name: one[name]["capacity"]),
        Metric("above buffer and producers", "batches", lambda one, name: one[name]["above"]),
    ]
    remarks = ["Above buffer and producers' hands (one batch a producer): one is in the model."]
    title = "batches alive at once, model 2 ms, source in no time, no hooks"
    return Scenario("backpressure", title, rows, metrics, goals, remarks=remarks)


def _measure(step_s: float, kind: Kind, capacity: int, hands: int) -> Callable[[], Reading]:
    n = 4 * capacity + 40

    def measure() -> Reading:
        alive, model = Alive(), Sleeping(step_s)

        async def main() -> None:
            source = Source(n, kind, alive)
            await Engine(model, source, epochs=1, skip_zeroth_epoch=True, buffer=capacity).train()

        anyio.run(main, backend_options={"use_uvloop": missing(("uvloop",)) is None})
        if model.n_runs != n:
            raise WrongResult(f"the model ran {model.n_runs} times for {n} batches")
        return {"most": alive.most, "capacity": capacity, "above": alive.most - capacity - hands}

    return measure
