"""Delivery of events: a model that says when each step was done, and a hook that says how long after it was told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from asyncloop import AfterBatch, Hook
from bench.job import Batch
from bench.stages import NoOp

__all__ = ["Deliveries", "Stamped"]


class Stamped(NoOp):
    """A model that marks the end of its steps, with the last mark among its outputs."""

    output_names = ("loss", "done")

    def __init__(self, model: NoOp) -> None:
        super().__init__()
        self.model, self.marks = model, model.marks

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        self.model.run(batch)
        return {"loss": 0.5, "done": self.marks[-1]}


class Deliveries(Hook):
    """Seconds from the end of the step until here, for each batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.seen: list[int] = []

    async def after_batch(self, event: AfterBatch) -> None:
        self.seconds.append(time.perf_counter() - event.outputs["done"])
        self.seen.append(event.index)
