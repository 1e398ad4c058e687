# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""SPDL's Pipeline as the loader of a plain loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from bench.job import Batch, Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["Spdl"]


@dataclass(frozen=True, slots=True)
class Spdl:
    """`add_source(…).pipe(async load, concurrency).add_sink(64)`, in order of input.

    Where loading takes nothing, the source is an async generator, which costs it a third of what a plain one does.

    In the clock: from the pipeline's start to the last hook. Not in the clock: its stop, which waits for a poll.
    `thread_output_queue` takes batches from a `queue.Queue` instead of
    asking the pipeline's event loop for each.
    """

    thread_output_queue: bool
    family: str = "spdl"
    form: Form = "asyncio"
    needs: tuple[str, ...] = ("spdl.pipeline",)

    @property
    def name(self) -> str:
        return "SPDL, thread output queue" if self.thread_output_queue else "SPDL"

    def run(self, job: Job) -> Outcome:
        from spdl.pipeline import PipelineBuilder

        model, hooks = job.make_model(), job.watchers()
        builder: Any = PipelineBuilder()
        if job.load is None:
            builder = builder.add_source(_produced(job))
        else:
            builder = builder.add_source(range(job.n))
            builder = builder.pipe(job.fetch_async, concurrency=job.load_concurrency, output_order="input")
        pipeline = builder.add_sink(64).build(num_threads=1, use_thread_output_queue=self.thread_output_queue)
        began = time.perf_counter()
        with pipeline.auto_stop():
            train(pipeline, model, hooks)
            seconds = time.perf_counter() - began
        return job.outcome(seconds, model, hooks)


async def _produced(job: Job) -> AsyncIterator[Batch]:
    for batch in job.batches:
        yield batch
