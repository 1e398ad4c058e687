# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""ignite: an Engine around a process function, handlers of its events for the chores, over a DataLoader."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.on_device.chores import BestLoss, Chores, InLoopHook, Kept, LogLines, MeanLoss, Tokens, kept_in
from bench.on_device.work import LR, Work, loader_of, parts_of

__all__ = ["IgniteTrainer"]


class IgniteTrainer:
    """Checkpoints are `Checkpoint` with a DiskSaver."""

    def __init__(self, work: Work, device: Any, chores: Chores | None = None) -> None:
        self.work, self.device, self.chores = work, device, chores
        parts = parts_of(work, device)
        self.module, self.net, self.optimizer = parts.module, parts.net, parts.optimizer
        self.loader = loader_of(work, device)

    def train(self, n: int) -> Kept:
        with TemporaryDirectory() as folder:
            self._train(n, Path(folder))
            return kept_in(Path(folder))

    def _train(self, n: int, folder: Path) -> None:
        import torch
        from ignite.engine import Engine
        from ignite.utils import convert_tensor

        logging.getLogger("ignite").setLevel(logging.ERROR)
        net, optimizer, device, names = self.net, self.optimizer, self.device, self.work.inputs

        def process(engine: Any, batch: Any) -> Any:
            batch = convert_tensor(batch, device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = net(*(batch[name] for name in names))["loss"]
            loss.backward()
            optimizer.step()
            return loss.detach()

        engine = Engine(process)
        if self.chores is not None:
            self._add_chores(engine, self.chores, folder)
        engine.run(self.loader(n), max_epochs=1, epoch_length=n)

    def _add_chores(self, engine: Any, chores: Chores, folder: Path) -> None:
        from ignite.engine import Events
        from ignite.handlers import Checkpoint, DiskSaver

        every = Events.ITERATION_COMPLETED
        logs: list[InLoopHook] = [LogLines(chores.log_every, folder / "log.jsonl"), BestLoss(chores.log_every)]
        for hook in logs:
            engine.add_event_handler(every(every=chores.log_every), self._call, hook)
        for hook in (MeanLoss(), Tokens()):
            engine.add_event_handler(every, self._call, hook)
        saved = {"module": self.module, "optimizer": self.optimizer}
        saver = DiskSaver(str(folder), require_empty=False)
        pattern = "step-{global_step}.{ext}"
        save = Checkpoint(saved, saver, n_saved=None, filename_pattern=pattern, global_step_transform=_step)
        engine.add_event_handler(every(every=chores.save_every), save)

    def _call(self, engine: Any, hook: InLoopHook) -> None:
        state = engine.state
        hook.after_step(state.iteration, state.output, len(state.batch[self.work.inputs[0]]), LR)


def _step(engine: Any, event: Any) -> int:
    return engine.state.iteration
