# pyright: basic, reportMissingImports=false
"""asyncloop: a TorchModel in an Engine with default settings, its data from the host, its chores as hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asyncloop import AfterBatch, Engine, Hook, Stream
from asyncloop.hooks import SaveEvery, WriteJSONL
from bench.loops import LOOPS, run_on
from bench.on_device.chores import Chores, Kept
from bench.on_device.work import LR, Work, seeded
from bench.systems.registry import Form, missing

__all__ = ["AsyncloopTrainer", "default_loop", "hooks_for", "torch_model"]


class AsyncloopTrainer:
    """What takes nothing to load comes from a plain iterator; what takes something from a function in `Stream.map`."""

    def __init__(self, work: Work, device: Any, hooks: Callable[[], Sequence[Any]] = tuple) -> None:
        self.work, self.hooks = work, hooks
        self.model = torch_model(work, device)
        self.module, self.optimizer = self.model.module, self.model.updates.optimizer

    def train(self, n: int) -> Kept:
        return run_on(default_loop(), self._train, n)

    async def _train(self, n: int) -> Kept:
        hooks = self.hooks()
        writes = any(getattr(hook, "needs_output_dir", False) for hook in hooks)
        with TemporaryDirectory() as folder:
            output_dir = Path(folder) / "run" if writes else None
            options: dict[str, Any] = {"epochs": 1, "skip_zeroth_epoch": True, "output_dir": output_dir}
            await Engine(self.model, Data(self.work, n), hooks, **options).train()
            return _kept_in(Path(folder) / "run", hooks)


def torch_model(work: Work, device: Any) -> Any:
    """The TorchModel whose loss the module makes itself."""
    from asyncloop.torch import TorchModel

    return TorchModel(
        seeded(work),
        work.inputs,
        outputs=work.outputs,
        loss="loss",
        optimizer={"class": "torch.optim:AdamW", "lr": LR},
        precision="bf16",
        compile=work.compiled,
        device=str(device),
    )


def default_loop() -> Form:
    """uvloop where it is installed."""
    return "asyncio" if missing(("uvloop",)) else LOOPS[0]


class Data:
    """The first `n` batches of a Work as asyncloop's dataset."""

    def __init__(self, work: Work, n: int) -> None:
        self.work, self.n = work, n

    def train_stream(self) -> Stream:
        work = self.work
        if work.n_loaders:
            return Stream.range(self.n).map(lambda index: work.load(int(index)), concurrency=work.n_loaders)
        return Stream.of(lambda: work.batches(self.n))


def hooks_for(chores: Chores) -> Callable[[], Sequence[Any]]:
    """The five hooks, anew for each run."""
    log_every = f"{chores.log_every} steps"

    def make() -> Sequence[Any]:
        log = WriteJSONL(variables=["loss", "lr"])
        log.every = log_every
        return log, SaveEvery(f"{chores.save_every} steps"), MeanLoss(), Tokens(), BestLoss(log_every)

    return make


class MeanLoss(Hook):
    """The mean of all losses, which arrive on the host by themselves."""

    variables = ("loss",)

    def __init__(self) -> None:
        self.total = 0.0

    async def after_batch(self, event: AfterBatch) -> None:
        self.total += float(event.outputs["loss"]) * event.n_examples


class Tokens(Hook):
    """The number of examples so far."""

    def __init__(self) -> None:
        self.n_examples = 0

    async def after_batch(self, event: AfterBatch) -> None:
        self.n_examples += event.n_examples


class BestLoss(Hook):
    """The least of every so many losses."""

    variables = ("loss",)

    def __init__(self, every: str) -> None:
        self.every, self.best = every, math.inf

    async def after_batch(self, event: AfterBatch) -> None:
        self.best = min(self.best, float(event.outputs["loss"]))


def _kept_in(run: Path, hooks: Iterable[Any]) -> Kept:
    """Lines and checkpoints; of those without the one that every run saves at its end."""
    every = next((int(str(hook.every).split()[0]) for hook in hooks if isinstance(hook, SaveEvery)), 0)
    log = run / "batches.jsonl"
    steps = [int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")]
    n_lines = len(log.read_text().splitlines()) if log.exists() else 0
    return Kept(n_lines, sum(step % every == 0 for step in steps))
