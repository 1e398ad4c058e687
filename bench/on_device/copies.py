# pyright: basic, reportMissingImports=false
"""Copies: batches of 25 MB for kernels of 5 ms. Is the way to the device hidden behind the work there, and does nobody wait for it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncloop import AfterBatch, Hook
from bench.harness import Metric, Reading, Row, Scenario
from bench.job import Batch
from bench.on_device.clocks import Marks, Updates
from bench.on_device.entries import entries_for
from bench.on_device.kernels import kernels_lasting
from bench.on_device.rows import Course, row_of
from bench.on_device.work import Work
from bench.scenarios.goals import goal_of_reading, goal_of_row

__all__ = ["copies"]

COPIES = "copies alone"


@dataclass(frozen=True, slots=True)
class Size:
    n_bytes: int
    n_batches: int
    kernel_s: float
    side: int
    updates: Updates
    sync_updates: Updates


FULL = Size(25_000_000, 8, 5e-3, 4096, Updates(220, first=20, last=220), Updates(60, first=20, last=60))
TINY = Size(40_000, 2, 1e-3, 64, Updates(8, first=2, last=8), Updates(6, first=2, last=6))


def copies(device: Any, tiny: bool) -> Scenario:
    """Scenario 21: batches of 25 MB, kernels of 5 ms; share of the ideal, and synchronisations in a steady step."""
    size = TINY if tiny else FULL
    work = Work(kernels_lasting(size.kernel_s, size.side, device), ["x"], Arrays(size))
    course = Course(work, device, size.updates, n_warm=4, sync_updates=size.sync_updates)
    rows = [row_of(entry, course) for entry in entries_for(course, size.n_batches, lambda: [WatchLoss()])]
    syncs = Metric("synchronisations", "a step", lambda one, name: one[name]["syncs"])
    step = Metric("a step", "ms", lambda one, name: one[name]["update_s"] * 1e3)
    goals = [goal_of_row(IDEAL, "asyncloop", 97.0, 99.0, more=True)]
    if device.type == "cuda":
        goals.append(goal_of_reading("asyncloop", "synchronisations", "syncs", "a step", must=0.0))
    return Scenario(
        "copies",
        f"batches of {size.n_bytes / 1e6:g} MB, kernels of about {size.kernel_s * 1e3:g} ms",
        [*rows, _copies_alone(work, device, size)],
        [IDEAL, step, syncs],
        goals,
        better="more",
        remarks=[
            "The ideal is the slower of two: the bare loop over batches on the device, and copies from pinned memory that nobody "
            "computes on. Synchronisations are those that torch.cuda.set_sync_debug_mode sees."
        ],
        main=("asyncloop",),
    )


IDEAL = Metric(
    "ideal",
    "%",
    lambda one, name: 100 * max(one["bare loop"]["update_s"], one[COPIES]["update_s"]) / one[name]["update_s"],
)


class WatchLoss(Hook):
    """Has every loss brought to the host."""

    variables = ("loss",)

    def __init__(self) -> None:
        self.last = 0.0

    async def after_batch(self, event: AfterBatch) -> None:
        self.last = float(event.outputs["loss"])


class Arrays:
    """Batches by number, over and over the same few: `x` float32 (25, n)."""

    def __init__(self, size: Size) -> None:
        shape = (size.n_batches, 25, size.n_bytes // 100)
        self.x = np.random.default_rng(0).random(shape, dtype=np.float32)

    def __call__(self, index: int) -> Batch:
        return {"x": self.x[index % len(self.x)]}


def _copies_alone(work: Work, device: Any, size: Size) -> Row:
    def measure() -> Reading:
        import torch

        here = torch.as_tensor(work.load(0)["x"])
        here = here.pin_memory() if device.type == "cuda" else here
        marks, updates = Marks(device), size.updates
        for number in range(1, updates.n + 1):
            here.to(device, non_blocking=True, copy=True)
            if number in (updates.first, updates.last):
                marks.put(number)
        return {"update_s": marks.between_s(updates.first, updates.last) / (updates.last - updates.first)}

    return Row(COPIES, "plain", measure, reference=True, notes={"updates": size.updates.n})
