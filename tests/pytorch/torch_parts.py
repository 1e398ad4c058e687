"""Small nets, data and a loop written by hand, which TorchModel has to agree with bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asyncloop import Engine, Result
from asyncloop.torch import TorchModel

N_INPUTS, N_CLASSES = 12, 4

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
"""For what has nothing to do with the event loop, and need not be tested on each."""


class Net(nn.Module):
    """Dense layers with normalisation and dropout, so that modes and buffers matter."""

    def __init__(self, width: int = 16, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        generator = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(N_INPUTS, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(width, N_CLASSES)
        torch.random.set_rng_state(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Data:
    """Streams of batches: `x` float32 (B, 12), `label` int64 (B,), `id` int64 (B,)."""

    def __init__(self, n: int = 8, size: int = 16) -> None:
        rng = np.random.default_rng(1)
        self.batches = [
            {
                "x": rng.normal(size=(size, N_INPUTS)).astype(np.float32),
                "label": rng.integers(0, N_CLASSES, size),
                "id": np.arange(i * size, (i + 1) * size),
            }
            for i in range(n)
        ]

    def train_stream(self) -> Iterator[dict[str, Any]]:
        yield from self.batches

    def valid_stream(self) -> Iterator[dict[str, Any]]:
        yield from self.batches[:3]


LOSS = {"class": "torch.nn:CrossEntropyLoss", "inputs": ["output", "label"]}
ADAM = {"class": "torch.optim:AdamW", "lr": 1e-2}


def a_model(**changes: Any) -> TorchModel:
    """A TorchModel over a Net; its generator is seeded, as that of the loop by hand is."""
    settings: dict[str, Any] = {"module": Net(), "inputs": ["x"], "loss": LOSS, "optimizer": ADAM, "device": "cpu"}
    model = TorchModel(**{**settings, **changes})
    torch.manual_seed(7)
    return model


class Heads(nn.Module):
    """Returns logits and a reconstruction of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(N_INPUTS, 8)
        self.classes, self.back = nn.Linear(8, N_CLASSES), nn.Linear(8, N_INPUTS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.body(x))
        return self.classes(hidden), self.back(hidden)


SEVERAL = {
    "class_loss": {"class": "torch.nn:CrossEntropyLoss", "inputs": ["logits", "label"]},
    "back_loss": {"class": "torch.nn:MSELoss", "inputs": ["back", "x"], "weight": 0.25},
}


def heads(**settings: Any) -> TorchModel:
    settings = {"loss": SEVERAL, "optimizer": {"class": "torch.optim:SGD", "lr": 0.1}, **settings}
    return TorchModel(Heads(), ["x"], outputs=["logits", "back"], device="cpu", **settings)


async def train(model: TorchModel, data: Any = None, hooks: Iterable[Any] = (), **options: Any) -> Result:
    """Train a model: one epoch and no evaluation, unless `options` of the engine say something else."""
    settings: dict[str, Any] = {"epochs": 1, "skip_zeroth_epoch": True, "on_unused_sources": "ignore"}
    return await Engine(model, data or Data(), hooks, **{**settings, **options}).train()


def by_hand(
    n_epochs: int = 2,
    *,
    data: Data | None = None,
    microbatches: int = 1,
    clip: float | None = None,
    dtype: torch.dtype | None = None,
    factor: Any = None,
    decay: float | None = None,
    compiled: bool = False,
    groups: bool = False,
) -> tuple[nn.Module, list[float], dict[str, torch.Tensor] | None]:
    """The loop that anybody would write; the net, the losses of all steps, and the average if there is a decay."""
    net = Net()
    forward = torch.compile(net) if compiled else net
    parameters: Any = net.parameters()
    if groups:
        named = dict(net.named_parameters())
        parameters = [
            {"params": [each for name, each in named.items() if not name.endswith("bias")]},
            {"params": [each for name, each in named.items() if name.endswith("bias")], "weight_decay": 0},
        ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if factor else None
    average = copy.deepcopy(net) if decay is not None else None
    context: Any = torch.autocast("cpu", dtype) if dtype is not None else nullcontext()
    torch.manual_seed(7)
    losses: list[float] = []
    for _ in range(n_epochs):
        for batch in (data or Data()).batches:
            x, label = torch.from_numpy(batch["x"]), torch.from_numpy(batch["label"])
            optimizer.zero_grad()
            total = 0.0
            for part_x, part_label in zip(x.chunk(microbatches), label.chunk(microbatches), strict=True):
                with context:
                    loss = nn.functional.cross_entropy(forward(part_x), part_label)
                scaler.scale(loss / microbatches).backward()
                total += loss.item() / microbatches
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            if schedule is not None:
                schedule.step()
            if average is not None:
                with torch.no_grad():
                    own = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
                    mean = [*average.parameters(), *(b for b in average.buffers() if b.is_floating_point())]
                    for one, other in zip(mean, own, strict=True):
                        one.lerp_(other, 1 - decay)
            losses.append(total)
    return net, losses, dict(average.named_parameters()) if average is not None else None


def same_bits(there: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return there.keys() == other.keys() and all(torch.equal(there[name], other[name]) for name in there)
