"""A thread with a queue: the first thing one tries against slow loading."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.job import Batch, Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["ThreadQueue"]

_END = object()


@dataclass(frozen=True, slots=True)
class ThreadQueue:
    """One thread walks the source into a `queue.Queue(64)`. In the clock: the start and the end of that thread too."""

    name: str = "thread + queue"
    family: str = "queue"
    form: Form = "threads"
    needs: tuple[str, ...] = ()

    def run(self, job: Job) -> Outcome:
        model, hooks = job.make_model(), job.watchers()
        began = time.perf_counter()
        train(_prefetched(job), model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)


def _prefetched(job: Job) -> Iterator[Batch]:
    ready: queue.Queue[Any] = queue.Queue(64)

    def produce() -> None:
        for batch in job.source():
            ready.put(batch)
        ready.put(_END)

    producer = threading.Thread(target=produce, name="bench-producer")
    producer.start()
    while (batch := ready.get()) is not _END:
        yield batch
    producer.join()
