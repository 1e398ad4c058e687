"""The floor of overlap on an event loop: as many tasks as loads may be under way, a deque, and a thread for the model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass

from bench.job import Batch, Job, Outcome
from bench.loops import OnALoop, run_on

__all__ = ["TasksAndDeque"]


@dataclass(frozen=True, slots=True)
class TasksAndDeque(OnALoop):
    """What no pipeline can undercut: nothing keeps the order, nothing bounds what is loaded, no hooks, no way to stop.

    In the clock: all of it but the event loop's own start.
    """

    family: str = "plain"

    @property
    def name(self) -> str:
        return f"floor: tasks + deque, {self.loop}"

    def run(self, job: Job) -> Outcome:
        if job.hooks or job.saves is not None:
            raise ValueError("the floor has neither hooks nor checkpoints")
        return run_on(self.loop, _train, job)


async def _train(job: Job) -> Outcome:
    model = job.make_model()
    loaded: deque[Batch] = deque()
    n_loaded = threading.Semaphore(0)

    def consume() -> None:
        for _ in range(job.n):
            n_loaded.acquire()
            model.run(loaded.popleft())

    indices = iter(range(job.n))

    async def load() -> None:
        for index in indices:
            loaded.append(await job.fetch_async(index))
            n_loaded.release()

    began = time.perf_counter()
    consumer = asyncio.get_running_loop().run_in_executor(None, consume)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(job.load_concurrency):
            tasks.create_task(load())
    await consumer
    return job.outcome(time.perf_counter() - began, model, [])
