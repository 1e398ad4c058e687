# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""PyTorch's DataLoader around the loop everybody writes by hand; its pieces serve the trainers that are fed by one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.job import Batch, Job, Outcome, train
from bench.systems.registry import Form

__all__ = ["DataLoaders", "Indices", "loader_of"]


@dataclass(frozen=True, slots=True)
class DataLoaders:
    """A map-style dataset, no collation, persistent workers.

    In the clock: one pass, from asking for its iterator. Not in the clock: the start of the workers, which a first pass
    over as many batches as there are workers takes care of.
    """

    n_workers: int
    family: str = "dataloader"
    form: Form = "threads"
    needs: tuple[str, ...] = ("torch",)

    @property
    def name(self) -> str:
        return f"DataLoader({self.n_workers})"

    def run(self, job: Job) -> Outcome:
        model, hooks, loader = job.make_model(), job.watchers(), loader_of(job, self.n_workers)
        began = time.perf_counter()
        train(loader, model, hooks)
        return job.outcome(time.perf_counter() - began, model, hooks)


class _Dataset:
    """What a worker needs of a job, and no more: where workers are not forked, it is pickled for each."""

    def __init__(self, job: Job) -> None:
        self.batches, self.load = job.batches, job.load

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        if self.load is not None:
            self.load.blocking(index)
        return self.batches[index]


class Indices:
    """0 … n - 1 in order; `n` may change between two passes."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))

    def __len__(self) -> int:
        return self.n


def loader_of(job: Job, n_workers: int) -> Any:
    """A DataLoader over the job's batches whose workers, if any, have been started."""
    from torch.utils.data import DataLoader

    indices = Indices(job.n)
    dataset: Any = _Dataset(job)
    collate: Any = _as_it_is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores: they wait rather than compute
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=indices,
            num_workers=n_workers,
            persistent_workers=n_workers > 0,
            collate_fn=collate,
        )
        if n_workers > 0:
            indices.n = min(n_workers, job.n)
            for _ in loader:
                pass
            indices.n = job.n
    return loader


def _as_it_is(batch: Batch) -> Batch:
    return batch
