# pyright: basic, reportMissingImports=false
"""The loop that everybody writes by hand: the floor, and with everybody's chores what one really runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.on_device.chores import Chores, Kept, in_loop, kept_in
from bench.on_device.work import LR, Work, batches_on, cycled, loader_of, parts_of

__all__ = ["BareLoop", "copied_in_the_loop", "there_already"]

Feed = Callable[[int], Iterable[Mapping[str, Any]]]
"""How many → so many batches on the device."""


class BareLoop:
    """Forward, backward, update; `torch.save` where there are chores."""

    def __init__(self, work: Work, device: Any, feed: Feed, chores: Chores | None = None) -> None:
        self.work, self.device, self.feed, self.chores = work, device, feed, chores
        parts = parts_of(work, device)
        self.module, self.net, self.optimizer = parts.module, parts.net, parts.optimizer

    def train(self, n: int) -> Kept:
        with TemporaryDirectory() as folder:
            self._train(n, Path(folder))
            return kept_in(Path(folder))

    def _train(self, n: int, folder: Path) -> None:
        import torch

        net, optimizer, names = self.net, self.optimizer, self.work.inputs
        hooks = in_loop(self.chores, folder, self._save)
        for step, batch in enumerate(self.feed(n), 1):
            inputs = [batch[name] for name in names]
            optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = net(*inputs)["loss"]
            loss.backward()
            optimizer.step()
            for hook in hooks:
                hook.after_step(step, loss.detach(), len(inputs[0]), LR)

    def _save(self, path: Path) -> None:
        import torch

        torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, path)


def there_already(work: Work, device: Any, n_kept: int) -> Feed:
    """The first `n_kept` batches lie on the device, and are taken over and over."""
    batches = batches_on(work, device, n_kept)
    return lambda n: cycled(batches, n)


def copied_in_the_loop(work: Work, device: Any) -> Feed:
    """A DataLoader, and `.to(device, non_blocking=True)` in the loop."""
    loader = loader_of(work, device)

    def feed(n: int) -> Iterator[dict[str, Any]]:
        for batch in loader(n):
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    return feed
