# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""Lightning: a Trainer in bf16-mixed with automatic optimisation, its own logger and checkpoints, over a DataLoader."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.on_device.chores import BestLoss, Chores, InLoopHook, Kept, MeanLoss, Tokens
from bench.on_device.work import LR, Work, loader_of, parts_of

__all__ = ["LightningTrainer"]


class LightningTrainer:
    """The log is a CSVLogger's, checkpoints are ModelCheckpoint's; without chores neither is there."""

    def __init__(self, work: Work, device: Any, chores: Chores | None = None) -> None:
        self.work, self.device, self.chores = work, device, chores
        parts = parts_of(work, device)
        self.module, self.optimizer = parts.module, parts.optimizer
        self.loader = loader_of(work, device)
        self.lightning_module = _lightning_module(parts.net, parts.optimizer, work, logs=chores is not None)

    def train(self, n: int) -> Kept:
        import lightning.pytorch as pl

        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                accelerator="cpu" if self.device.type == "cpu" else "gpu",
                devices=1,
                precision="bf16-mixed",
                max_epochs=1,
                enable_progress_bar=False,
                enable_model_summary=False,
                **self._chores(Path(folder)),
            )
            trainer.fit(self.lightning_module, train_dataloaders=self.loader(n))
            return _kept_in(Path(folder))

    def _chores(self, folder: Path) -> dict[str, Any]:
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger

        chores = self.chores
        if chores is None:
            return {"logger": False, "enable_checkpointing": False}
        saves = ModelCheckpoint(
            folder, "step-{step}", every_n_train_steps=chores.save_every, save_top_k=-1, save_on_train_epoch_end=False
        )
        hooks = [_callback(hook, self.work) for hook in (MeanLoss(), Tokens(), BestLoss(chores.log_every))]
        return {
            "logger": CSVLogger(str(folder), name="log", version="0"),
            "log_every_n_steps": chores.log_every,
            "callbacks": [saves, *hooks],
        }


def _lightning_module(net: Any, optimizer: Any, work: Work, logs: bool) -> Any:
    from lightning.pytorch import LightningModule

    class Trained(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(*(batch[name] for name in work.inputs))["loss"]
            if logs:
                self.log_dict({"loss": loss.detach(), "lr": LR})
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer

    return Trained()


def _callback(hook: InLoopHook, work: Work) -> Any:
    from lightning.pytorch import Callback

    class Hook(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            hook.after_step(batch_idx + 1, outputs["loss"], len(batch[work.inputs[0]]), LR)

    return Hook()


def _kept_in(folder: Path) -> Kept:
    logs = list(folder.glob("log/**/metrics.csv"))
    n_lines = len(logs[0].read_text().splitlines()) - 1 if logs else 0
    return Kept(n_lines, len(list(folder.glob("step-*"))))
