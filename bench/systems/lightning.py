# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""Lightning's Trainer with everything switched off that can be, fed by a DataLoader; hooks are callbacks."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from typing import Any

from bench.job import Job, Model, Outcome, Watcher
from bench.systems.dataloader import loader_of
from bench.systems.registry import Form

__all__ = ["Lightning"]


@dataclass(frozen=True, slots=True)
class Lightning:
    """No logger, checkpoints, progress bar or summary. Automatic optimisation where there are weights, else manual.

    In the clock: the epoch, from `on_train_epoch_start` to `on_train_epoch_end`. Not in the clock: setting up the
    Trainer, the start of the workers, and the few loads they begin before the epoch, all to its advantage.
    """

    n_workers: int
    family: str = "lightning"
    form: Form = "threads"
    needs: tuple[str, ...] = ("torch", "lightning")

    @property
    def name(self) -> str:
        return f"Lightning + DataLoader({self.n_workers})"

    def run(self, job: Job) -> Outcome:
        import lightning.pytorch as pl

        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
        model, hooks, loader = job.make_model(), job.watchers(), loader_of(job, self.n_workers)
        clock = _clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[*(_callback(hook) for hook in hooks), clock],
            )
            trainer.fit(_module(model), train_dataloaders=loader)
        return job.outcome(clock.ended - clock.began, model, hooks)


def _callback(hook: Watcher) -> Any:
    from lightning.pytorch import Callback

    class Hook(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            hook.after_batch(batch, outputs)

    return Hook()


def _clock() -> Any:
    from lightning.pytorch import Callback

    class Clock(Callback):
        began = ended = 0.0

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.ended = time.perf_counter()

    return Clock()


def _module(model: Model | Any) -> Any:
    """A LightningModule around a torch model of `bench/digits.py`, or around a model without weights."""
    from lightning.pytorch import LightningModule

    class Weightless(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            model.run(batch)  # its outputs are not tensors, which is all that Lightning could do with them

        def configure_optimizers(self) -> None:
            return None

    class Weighted(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            model.n_runs += 1
            loss, correct = model.loss(self.network, batch)
            return {"loss": loss, "correct": correct}

        def configure_optimizers(self) -> Any:
            return model.optimizer

    return Weighted() if hasattr(model, "network") else Weightless()
