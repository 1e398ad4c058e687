"""Naive asyncio: what one writes first with an event loop, a thread hop for every batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from bench.job import Batch, HookWork, Job, Outcome
from bench.loops import OnALoop, run_on

__all__ = ["Naive"]


@dataclass(frozen=True, slots=True)
class Naive(OnALoop):
    """A task loads into an `asyncio.Queue`, `asyncio.to_thread` runs the model, hooks are awaited one after the other.

    In the clock: all of it but the event loop's own start.
    """

    family: str = "naive"

    @property
    def name(self) -> str:
        return f"naive {self.loop}"

    def run(self, job: Job) -> Outcome:
        return run_on(self.loop, _train, job)


class _AsyncHook:
    def __init__(self, work: HookWork | None) -> None:
        self.seen: list[object] = []
        self.work, self.n_done = work, 0

    async def after_batch(self, batch: Batch, outputs: object) -> None:
        self.seen.append(batch["id"])
        if self.work is not None:
            await self.work.waiting(batch, outputs)  # pyright: ignore[reportArgumentType]
        self.n_done += 1


async def _train(job: Job) -> Outcome:
    model, hooks = job.make_model(), [_AsyncHook(work) for work in job.fresh_hooks()]
    ready: asyncio.Queue[Batch | None] = asyncio.Queue(8)

    async def produce() -> None:
        async for batch in _loaded(job):
            await ready.put(batch)
        await ready.put(None)

    began = time.perf_counter()
    producer = asyncio.create_task(produce())
    n_batches = 0
    while (batch := await ready.get()) is not None:
        outputs = await asyncio.to_thread(model.run, batch)
        for hook in hooks:
            await hook.after_batch(batch, outputs)
        n_batches += 1
        if job.saves is not None and n_batches % job.saves.every == 0:
            await asyncio.to_thread(time.sleep, job.saves.seconds)
    await producer
    return job.outcome(time.perf_counter() - began, model, hooks)


async def _loaded(job: Job) -> AsyncIterator[Batch]:
    """The batches in order, with as many loads under way as the job allows."""
    if job.load is None:
        for batch in job.batches:
            yield batch
        return
    asked: deque[asyncio.Task[Batch]] = deque()
    for index in range(job.n):
        asked.append(asyncio.create_task(job.fetch_async(index)))
        if len(asked) >= job.load_concurrency:
            yield await asked.popleft()
    while asked:
        yield await asked.popleft()
