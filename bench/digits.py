# pyright: basic, reportMissingImports=false
"""Digits: small torch models on handwritten digits, as everybody's hand loop and every trainer runs them.

The data are those of `examples/digits`. Importing this imports no torch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.job import Batch, Job

__all__ = [
    "BATCH_SIZE",
    "Accuracy",
    "DigitsModel",
    "MeanLoss",
    "Network",
    "Throughput",
    "digest_of",
    "digits_batches",
    "digits_job",
]

DATA = Path(__file__).parent.parent / "examples" / "digits" / "digits.npz"
BATCH_SIZE = 32

Network = Literal["mlp", "cnn"]


def digits_job(n: int, network: Network) -> Job:
    """Train `network` on `n` batches, with the metric hooks that everybody has."""
    return Job(digits_batches(n, network), lambda: DigitsModel(network), [MeanLoss(), Accuracy(), Throughput()])


def digits_batches(n: int, network: Network) -> list[Batch]:
    """`n` batches of 32 digits as tensors, over and over the same ones; `id` is new for each."""
    import torch

    with np.load(DATA) as stored:
        images, labels = stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order].reshape(-1, *((64,) if network == "mlp" else (1, 8, 8)))
    image, label = torch.from_numpy(images), torch.from_numpy(labels[order])
    n_whole = len(labels) // BATCH_SIZE
    starts = [(i % n_whole) * BATCH_SIZE for i in range(n)]
    ids = np.repeat(np.arange(n), BATCH_SIZE)
    return [
        {
            "id": ids[i * BATCH_SIZE : (i + 1) * BATCH_SIZE],
            "image": image[start : start + BATCH_SIZE],
            "label": label[start : start + BATCH_SIZE],
        }
        for i, start in enumerate(starts)
    ]


class DigitsModel:
    """A network and its SGD. The same seed each time: all systems start from the same weights."""

    input_names = ("id", "image", "label")
    output_names = ("loss", "correct")

    def __init__(self, network: Network) -> None:
        import torch

        torch.set_num_threads(1)
        self.network = _mlp() if network == "mlp" else _cnn()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05)
        self.cross_entropy = torch.nn.functional.cross_entropy
        self.n_runs = 0
        self.marks: list[float] = []
        self.busy_s = 0.0

    def loss(self, network: Any, batch: Batch) -> tuple[Any, Any]:
        """Mean loss with its graph, and the number of right answers."""
        logits = network(batch["image"])
        correct = (logits.detach().argmax(1) == batch["label"]).sum()
        return self.cross_entropy(logits, batch["label"]), correct

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        self.n_runs += 1
        self.optimizer.zero_grad()
        loss, correct = self.loss(self.network, batch)
        loss.backward()
        self.optimizer.step()
        self.marks.append(time.perf_counter())
        return {"loss": loss.detach(), "correct": correct}

    def state_dict(self) -> Mapping[str, Any]:
        return self.network.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.network.load_state_dict(state)

    def digest(self) -> str:
        return digest_of(self.network)


def digest_of(network: Any) -> str:
    """A fingerprint of a network's weights and buffers, bit by bit."""
    parts = [value.detach().numpy().tobytes() for value in network.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _mlp() -> Any:
    from torch import manual_seed, nn

    manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _cnn() -> Any:
    from torch import manual_seed, nn

    manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class MeanLoss:
    """The mean of the loss over the examples."""

    def __init__(self) -> None:
        self.total, self.n_examples = 0.0, 0

    def told(self) -> object:
        return self.total / self.n_examples

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        n = len(batch["label"])
        self.total += float(outputs["loss"]) * n
        self.n_examples += n

    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.blocking(batch, outputs)


class Accuracy:
    """The share of right answers."""

    def __init__(self) -> None:
        self.correct = self.n_examples = 0

    def told(self) -> object:
        return self.correct, self.n_examples

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.correct += int(outputs["correct"])
        self.n_examples += len(batch["label"])

    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.blocking(batch, outputs)


class Throughput:
    """Examples per second since the first batch."""

    def __init__(self) -> None:
        self.n_examples, self.began, self.per_s = 0, time.perf_counter(), 0.0

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.n_examples += len(batch["label"])
        self.per_s = self.n_examples / (time.perf_counter() - self.began)

    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.blocking(batch, outputs)
