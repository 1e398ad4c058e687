"""A thread pool with a window: loads of many batches at once, in order, in fifteen lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bench.job import Batch, Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["ThreadPool"]


@dataclass(frozen=True, slots=True)
class ThreadPool:
    """As many threads as the job may load at once, twice as many loads asked for. In the clock: the pool's threads too."""

    name: str = "thread pool"
    family: str = "pool"
    form: Form = "threads"
    needs: tuple[str, ...] = ()

    def run(self, job: Job) -> Outcome:
        model, hooks = job.make_model(), job.watchers()
        began = time.perf_counter()
        with ThreadPoolExecutor(job.load_concurrency) as pool:
            train(_window(job, pool), model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)


def _window(job: Job, pool: ThreadPoolExecutor) -> Iterator[Batch]:
    asked: deque[Future[Batch]] = deque()
    for index in range(job.n):
        asked.append(pool.submit(job.fetch, index))
        if len(asked) >= max(2 * job.load_concurrency, 8):
            yield asked.popleft().result()
    while asked:
        yield asked.popleft().result()
