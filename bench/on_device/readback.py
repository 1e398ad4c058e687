# pyright: basic, reportMissingImports=false
"""Readback: how long after a step's end a hook has its loss on the host, and what the step pays for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from asyncloop import AfterBatch, Hook
from bench.harness import Metric, Reading, Row, Scenario, WrongResult
from bench.job import Batch
from bench.on_device.asyncloop import AsyncloopTrainer
from bench.on_device.chores import Kept
from bench.on_device.clocks import Marks, after_each
from bench.on_device.kernels import kernels_lasting
from bench.on_device.trainer import Trainer
from bench.on_device.work import Work, batches_on, parts_of
from bench.scenarios.goals import goal_of_reading

__all__ = ["readback"]

STEPS = ((1e-3, 1000), (5e-3, 300), (20e-3, 100))
"""Seconds of a step, and how many."""
TINY_STEPS = ((1e-3, 8),)

BOUND_MS = 5.0
"""What is promised: within 5 ms or one step, whichever is longer."""


def readback(device: Any, tiny: bool) -> Scenario:
    """How long after the end of a step on the device its loss is a number in a hook's hands."""
    steps, side = (TINY_STEPS, 64) if tiny else (STEPS, 4096)
    ours: list[Row] = []
    by_hand: list[Row] = []
    for step_s, n in steps:
        work, step = Work(kernels_lasting(step_s, side, device), ["x"], hardly_anything), f"{step_s * 1e3:g} ms"
        ours.append(_row(f"asyncloop, step {step}", "asyncloop", n, device, _asyncloop(work, device)))
        by_hand.append(_row(f"float(loss) by hand, step {step}", "plain", n, device, _by_hand(work, device)))
    return Scenario(
        "readback",
        "from the end of a step on the device until a hook has its loss as a number",
        [*ours, *by_hand],
        [
            Metric(name, "ms", lambda one, row, key=key: one[row][key])
            for name, key in (("median", "median_ms"), ("p99", "p99_ms"), ("most", "most_ms"), ("a step", "step_ms"))
        ],
        [
            goal_of_reading(row.name, "p99", "p99_ms", "ms", max(BOUND_MS, step_s * 1e3))
            for row, (step_s, _) in zip(ours, steps, strict=True)
        ],
        remarks=[
            "By hand the number is there at once, and the device idles until the next step is launched: see how long steps take."
        ],
        main=[row.name for row in ours],
    )


def hardly_anything(index: int) -> Batch:
    return {"x": np.ones((4, 16), np.float32)}


class Telling(Trainer, Protocol):
    """A trainer that says when it had each loss on the host."""

    @property
    def told(self) -> Sequence[float]:
        """Of its last `train`, clock readings by step."""
        ...


def _row(name: str, family: str, n: int, device: Any, make: Callable[[], Telling]) -> Row:
    def measure() -> Reading:
        trainer = make()
        trainer.train(10)
        marks = Marks(device)
        with after_each(trainer.optimizer, marks.put):
            trainer.train(n)
        if len(trainer.told) != n:
            raise WrongResult(f"{len(trainer.told)} losses were told of, in {n} steps")
        ends = [marks.clock_s(number) for number in range(1, n + 1)]
        median, p99, most = np.percentile(np.subtract(trainer.told, ends), [50, 99, 100]) * 1e3
        step_ms = (ends[-1] - ends[n // 2]) / (n - 1 - n // 2) * 1e3
        return {"median_ms": float(median), "p99_ms": float(p99), "most_ms": float(most), "step_ms": step_ms}

    return Row(name, family, measure, reference=family == "plain", notes={"updates": n})


# --- asyncloop ----------------------------------------------------------------------------------------------------


class Told(Hook):
    """Notes when it had each loss."""

    variables = ("loss",)

    def __init__(self) -> None:
        self.at: list[float] = []

    async def after_batch(self, event: AfterBatch) -> None:
        float(event.outputs["loss"])
        self.at.append(time.perf_counter())


class AsyncloopTelling(AsyncloopTrainer):
    """asyncloop with one hook, which wants every loss."""

    def __init__(self, work: Work, device: Any) -> None:
        super().__init__(work, device, lambda: [self._hook])
        self._hook = Told()

    @property
    def told(self) -> Sequence[float]:
        return self._hook.at

    def train(self, n: int) -> Kept:
        self._hook = Told()
        return super().train(n)


def _asyncloop(work: Work, device: Any) -> Callable[[], Telling]:
    return lambda: AsyncloopTelling(work, device)


# --- by hand ------------------------------------------------------------------------------------------------------


class AskingLoop:
    """The bare loop that asks for its loss after every step."""

    def __init__(self, work: Work, device: Any) -> None:
        parts = parts_of(work, device)
        self.module, self.optimizer, self.told = parts.module, parts.optimizer, list[float]()
        self._x = batches_on(work, device, 1)[0]["x"]

    def train(self, n: int) -> Kept:
        self.told.clear()
        for _ in range(n):
            self.optimizer.zero_grad()
            loss = self.module(self._x)["loss"]
            loss.backward()
            self.optimizer.step()
            float(loss.detach())
            self.told.append(time.perf_counter())
        return Kept(0, 0)


def _by_hand(work: Work, device: Any) -> Callable[[], Telling]:
    return lambda: AskingLoop(work, device)
