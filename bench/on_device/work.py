# pyright: basic, reportMissingImports=false
"""Work: what every trainer is given to do on a device. Its pieces serve the trainers that are made of them by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bench.job import Batch
from bench.systems.dataloader import Indices

__all__ = ["LR", "Parts", "Work", "batches_on", "loader_of", "loss_of", "parts_of"]

LR = 3e-4


@dataclass(frozen=True, slots=True)
class Work:
    """Train a module in bf16 with AdamW. `module(*inputs)` gives a mapping that has `loss`; all begin with the same weights."""

    make_module: Callable[[], Any]
    inputs: Sequence[str]
    load: Callable[[int], Batch]
    """Batch by number as arrays on the host. Called by any thread, and in worker processes."""
    n_loaders: int = 0
    """How many may be loaded at once. 0: they are there, and nobody needs a thread or a process for them."""
    outputs: Sequence[str] = ()
    """What the module gives beside `loss`."""
    compiled: bool = False

    def batches(self, n: int) -> Iterator[Batch]:
        return map(self.load, range(n))


@dataclass(frozen=True, slots=True)
class Parts:
    """A module on its device, what to call for its forward pass, and its optimizer."""

    module: Any
    net: Callable[..., Mapping[str, Any]]
    optimizer: Any


def parts_of(work: Work, device: Any) -> Parts:
    import torch

    module = seeded(work).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, fused=True if device.type == "cuda" else None)
    return Parts(module, torch.compile(module) if work.compiled else module, optimizer)


def seeded(work: Work) -> Any:
    """The module with the weights that everybody begins with, on the host."""
    import torch

    torch.manual_seed(0)
    return work.make_module()


def loader_of(work: Work, device: Any) -> Callable[[int], Any]:
    """How PyTorch's own loops are fed: `n` → a DataLoader over that many batches, pinned where that helps.

    It is one loader throughout, so that its worker processes, if it has any, start once.
    """
    from torch.utils.data import DataLoader

    indices = Indices(0)
    dataset: Any = _Dataset(work.load, indices)
    loader: Any = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=work.n_loaders,
        persistent_workers=work.n_loaders > 0,
        pin_memory=device.type == "cuda",
    )

    def of(n: int) -> Any:
        indices.n = n
        return loader

    return of


class _Dataset:
    """Batches by number, as a map-style dataset."""

    def __init__(self, load: Callable[[int], Batch], indices: Indices) -> None:
        self._load, self._indices = load, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Batch:
        return self._load(index)


def batches_on(work: Work, device: Any, n: int) -> list[dict[str, Any]]:
    """The first `n` batches, on the device."""
    import torch

    return [{name: torch.as_tensor(value).to(device) for name, value in batch.items()} for batch in work.batches(n)]


def loss_of(module: Any, work: Work, device: Any, n_examples: int = 4) -> float:
    """The loss of a few examples of the first batch with the weights as they are; tells who has trained and who has not."""
    import torch

    first = {name: value[:n_examples] for name, value in batches_on(work, device, 1)[0].items()}
    was_training = module.training
    module.to(device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        loss = module(*(first[name] for name in work.inputs))["loss"]
    module.train(was_training)
    return float(loss)


def cycled(batches: Sequence[Any], n: int) -> Iterator[Any]:
    """`n` batches, over and over the same ones."""
    return islice((batch for _ in iter(int, 1) for batch in batches), n)
