# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""accelerate: the loop everybody writes by hand, with model, optimizer and DataLoader prepared by an Accelerator."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.job import Batch, Job, Model, Outcome, Watcher, train
from bench.systems.dataloader import loader_of
from bench.systems.registry import Form

__all__ = ["Accelerate"]


@dataclass(frozen=True, slots=True)
class Accelerate:
    """Over DataLoader(0). In the clock: one pass over the prepared loader. Not in the clock: `prepare`."""

    name: str = "accelerate + DataLoader(0)"
    family: str = "accelerate"
    form: Form = "threads"
    needs: tuple[str, ...] = ("torch", "accelerate")

    def run(self, job: Job) -> Outcome:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        model, hooks = job.make_model(), job.watchers()
        loader = accelerator.prepare_data_loader(loader_of(job, 0))
        if not hasattr(model, "network"):
            began = time.perf_counter()
            train(loader, model, hooks)
            return job.outcome(time.perf_counter() - began, model, hooks)
        network, optimizer = accelerator.prepare(model.network, model.optimizer)  # type: ignore[attr-defined]
        began = time.perf_counter()
        _train(loader, model, network, optimizer, accelerator, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)


def _train(
    loader: Iterable[Batch], model: Model | Any, network: Any, optimizer: Any, accelerator: Any, hooks: list[Watcher]
) -> None:
    for batch in loader:
        model.n_runs += 1
        optimizer.zero_grad()
        loss, correct = model.loss(network, batch)
        accelerator.backward(loss)
        optimizer.step()
        outputs: Mapping[str, Any] = {"loss": loss.detach(), "correct": correct}
        for hook in hooks:
            hook.after_batch(batch, outputs)
