# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""accelerate: the loop by hand, with module, optimizer and DataLoader prepared by an Accelerator in bf16."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.on_device.chores import Chores, Kept, in_loop, kept_in
from bench.on_device.work import LR, Work, loader_of, parts_of

__all__ = ["AccelerateTrainer"]


class AccelerateTrainer:
    """Checkpoints are `save_state`."""

    def __init__(self, work: Work, device: Any, chores: Chores | None = None) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        self.work, self.chores = work, chores
        self.accelerator = Accelerator(
            mixed_precision="bf16",
            cpu=device.type == "cpu",
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
        parts = parts_of(work, device)
        self.module, self.optimizer = parts.module, parts.optimizer
        self.net, self.prepared_optimizer = self.accelerator.prepare(parts.net, parts.optimizer)
        self.loader = loader_of(work, device)
        self.prepared_loader = self.accelerator.prepare_data_loader(self.loader(0))

    def train(self, n: int) -> Kept:
        with TemporaryDirectory() as folder:
            self._train(n, Path(folder))
            return kept_in(Path(folder))

    def _train(self, n: int, folder: Path) -> None:
        net, optimizer, accelerator, names = self.net, self.prepared_optimizer, self.accelerator, self.work.inputs
        hooks = in_loop(self.chores, folder, lambda path: accelerator.save_state(str(path)))
        self.loader(n)
        for step, batch in enumerate(self.prepared_loader, 1):
            inputs = [batch[name] for name in names]
            optimizer.zero_grad()
            loss = net(*inputs)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            for hook in hooks:
                hook.after_step(step, loss.detach(), len(inputs[0]), LR)
