"""The plain loop: what everybody writes by hand, and the floor of everything else."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.job import Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["PlainLoop"]


@dataclass(frozen=True, slots=True)
class PlainLoop:
    """`for batch in source(): run; call the hooks`, all in one thread. In the clock: the loop, and nothing else."""

    name: str = "plain loop"
    family: str = "plain"
    form: Form = "threads"
    needs: tuple[str, ...] = ()

    def run(self, job: Job) -> Outcome:
        model, hooks = job.make_model(), job.watchers()
        began = time.perf_counter()
        train(job.source(), model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)
