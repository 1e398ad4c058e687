# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""ignite's Engine: a process function and handlers of its events."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from bench.job import Job, Outcome, Watcher
from bench.systems.dataloader import loader_of
from bench.systems.registry import Form

__all__ = ["Ignite"]


@dataclass(frozen=True, slots=True)
class Ignite:
    """Over the plain generator, or over a DataLoader with `n_workers`. Hooks are ITERATION_COMPLETED handlers.

    In the clock: `Engine.run`. Not in the clock: the start of the DataLoader's workers.
    """

    n_workers: int | None
    family: str = "ignite"
    form: Form = "threads"
    needs: tuple[str, ...] = ("torch", "ignite")

    @property
    def name(self) -> str:
        return "ignite" if self.n_workers is None else f"ignite + DataLoader({self.n_workers})"

    def run(self, job: Job) -> Outcome:
        from ignite.engine import Engine, Events

        logging.getLogger("ignite").setLevel(logging.ERROR)
        model, hooks = job.make_model(), job.watchers()
        run = model.run
        engine = Engine(lambda engine, batch: run(batch))
        for hook in hooks:
            engine.add_event_handler(Events.ITERATION_COMPLETED, _call, hook)
        data: Any = job.source() if self.n_workers is None else loader_of(job, self.n_workers)
        began = time.perf_counter()
        engine.run(data, max_epochs=1, epoch_length=job.n)
        return job.outcome(time.perf_counter() - began, model, hooks)


def _call(engine: Any, hook: Watcher) -> None:
    hook.after_batch(engine.state.batch, engine.state.output)
