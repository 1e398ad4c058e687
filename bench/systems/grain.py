# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""grain's MapDataset as the loader of a plain loop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from bench.job import Batch, Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["Grain"]


@dataclass(frozen=True, slots=True)
class Grain:
    """A random-access source read by grain's threads, or by the training thread itself.

    In the clock: from asking for the iterator to the last hook, its threads' start included.
    """

    threads: bool
    family: str = "grain"
    form: Form = "threads"
    needs: tuple[str, ...] = ("grain",)

    @property
    def name(self) -> str:
        return "grain, threads" if self.threads else "grain, no threads"

    def run(self, job: Job) -> Outcome:
        logging.getLogger("absl").setLevel(logging.ERROR)
        import grain

        n_threads = job.load_concurrency if self.threads else 0
        ahead = max(2 * n_threads, 16) if self.threads else 0
        options = grain.ReadOptions(num_threads=n_threads, prefetch_buffer_size=ahead)
        source: Any = _Source(job)
        model, hooks = job.make_model(), job.watchers()
        dataset = grain.MapDataset.source(source).to_iter_dataset(options)
        began = time.perf_counter()
        train(dataset, model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)


class _Source:
    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return self.job.n

    def __getitem__(self, index: int) -> Batch:
        return self.job.fetch(index)
