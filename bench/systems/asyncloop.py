"""asyncloop, through its public API, with default settings and all default checks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from asyncloop import AfterBatch, Engine, Hook, Stream
from asyncloop.hooks import SaveEvery
from bench.job import Batch, HookWork, Job, Outcome, Saves
from bench.loops import LOOPS, OnALoop, run_on

__all__ = ["ASYNCLOOPS", "MAIN", "Asyncloop"]

Buffer: TypeAlias = int | Literal["auto"]
Source: TypeAlias = Literal["generator", "async generator", "list"]


@dataclass(frozen=True, slots=True)
class Asyncloop(OnALoop):
    """`Engine(model, dataset, hooks, epochs=1).train()`. In the clock: the whole call, its thread's start included.

    What takes nothing to load comes from a plain generator (or what `source` says); what takes something is an async
    function in `Stream.map`. Hooks are async.
    """

    buffer: Buffer = "auto"
    source: Source = "generator"
    family: str = "asyncloop"

    @property
    def name(self) -> str:
        buffer = "" if self.buffer == "auto" else f", buffer {self.buffer}"
        source = "" if self.source == "generator" else f", {self.source}"
        return f"asyncloop {self.loop}{source}{buffer}"

    def run(self, job: Job) -> Outcome:
        return run_on(self.loop, self._train, job)

    async def _train(self, job: Job) -> Outcome:
        model = job.make_model()
        watchers = [_watcher(work, job.hook_concurrency) for work in job.fresh_hooks()]
        with _checkpoints(job.saves, job.n) as (savers, output_dir):
            engine = Engine(
                model,
                _Data(job, self.source),
                [*watchers, *savers],
                epochs=1,
                skip_zeroth_epoch=True,
                buffer=self.buffer,
                output_dir=output_dir,
            )
            began = time.perf_counter()
            await engine.train()
            seconds = time.perf_counter() - began
        return job.outcome(seconds, model, watchers)


MAIN = ("asyncloop uvloop", "asyncloop asyncio")
"""The rows that goals are about: default buffer, a plain generator or an async load."""

ASYNCLOOPS = [
    *(Asyncloop(loop, buffer) for loop in LOOPS for buffer in ("auto", 0, 8, 64)),
    *(Asyncloop(loop, source=source) for loop in LOOPS for source in ("async generator", "list")),
]


class _Data:
    def __init__(self, job: Job, source: Source) -> None:
        self.job, self.source = job, source

    def train_stream(self) -> Stream:
        if self.job.load is not None:
            return Stream.range(self.job.n).map(self.job.fetch_async, concurrency=self.job.load_concurrency)
        if self.source == "list":
            return Stream.of(self.job.batches)
        return Stream.of(self.job.source if self.source == "generator" else self.produce)

    async def produce(self) -> AsyncIterator[Batch]:
        for batch in self.job.batches:
            yield batch


class _Watcher(Hook):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append(event.inputs["id"])


class _WorkingWatcher(Hook):
    def __init__(self, work: HookWork, concurrency: int) -> None:
        self.seen: list[Any] = []
        self.work, self.concurrency, self.n_done = work, concurrency, 0

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append(event.inputs["id"])
        await self.work.waiting(event.inputs, event.outputs)
        self.n_done += 1


def _watcher(work: HookWork | None, concurrency: int) -> _Watcher | _WorkingWatcher:
    return _Watcher() if work is None else _WorkingWatcher(work, concurrency)


@contextmanager
def _checkpoints(saves: Saves | None, n: int) -> Generator[tuple[list[SaveEvery], Path | None]]:
    """The engine's own checkpoints, on a disk that needs `saves.seconds` for each; afterwards all must be there."""
    if saves is None:
        yield [], None
        return
    with tempfile.TemporaryDirectory() as folder, _slow_disk(saves.seconds):
        yield [SaveEvery(f"{saves.every} steps")], Path(folder) / "run"
        expected = [*range(saves.every, n, saves.every), n]
        written = sorted(path.name for path in Path(folder).glob("run/checkpoints/step-*"))
        if written != [f"step-{step:08d}" for step in expected]:
            raise AssertionError(f"checkpoints at {written}, expected at steps {expected}")


@contextmanager
def _slow_disk(seconds: float) -> Generator[None]:
    """A disk on which each checkpoint takes `seconds` to sync, in whatever thread does it, whatever the real one takes.

    One checkpoint syncs several files within milliseconds: the first call waits, those right after it do not.
    """
    fsync, ended = os.fsync, -1.0

    def slow(fd: Any) -> None:
        nonlocal ended
        if time.monotonic() - ended > seconds / 5:
            time.sleep(seconds)
        ended = time.monotonic()

    os.fsync = slow
    try:
        yield
    finally:
        os.fsync = fsync
