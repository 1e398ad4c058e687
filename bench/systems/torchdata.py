# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""torchdata's nodes as the loader of a plain loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from bench.job import Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["Torchdata"]


@dataclass(frozen=True, slots=True)
class Torchdata:
    """A ParallelMapper of threads over the indices, or a Prefetcher where loading takes nothing.

    In the clock: from asking for the iterator to the last hook, its threads' start included.
    """

    name: str = "torchdata nodes"
    family: str = "torchdata"
    form: Form = "threads"
    needs: tuple[str, ...] = ("torchdata.nodes",)

    def run(self, job: Job) -> Outcome:
        import torchdata.nodes as nodes

        node: Any
        if job.load is None:
            node = nodes.Prefetcher(nodes.IterableWrapper(job.batches), prefetch_factor=64)
        else:
            indices = nodes.IterableWrapper(range(job.n))
            node = nodes.ParallelMapper(indices, job.fetch, num_workers=job.load_concurrency, method="thread")
        model, hooks = job.make_model(), job.watchers()
        loader = nodes.Loader(node)
        began = time.perf_counter()
        train(loader, model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)
