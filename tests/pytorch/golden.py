"""A small training that draws nothing at random, and the losses of its first steps as they have always been.

`python tests/pytorch/golden.py` writes them anew: after a change that is meant to change them, and for no other reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from torch import nn

from asyncloop import AfterBatch, Engine, Stream
from asyncloop.torch import TorchModel

FILE = Path(__file__).with_name("golden_losses.json")
N_STEPS = 20


class Net(nn.Module):
    """A convolution, a normalisation and two dense layers over images (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6)
        self.hidden, self.head = nn.Linear(216, 16), nn.Linear(16, 5)
        for n, parameter in enumerate(self.parameters()):
            waves = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + n)) * 0.3
            parameter.data = waves.reshape(parameter.shape).float()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.gelu(self.norm(self.conv(image)))
        return self.head(torch.tanh(self.hidden(features.flatten(1))))


class Waves:
    """Images of waves; the label is how long they are."""

    def train_stream(self) -> Stream:
        return Stream.of([self.batch(n) for n in range(5)])

    def batch(self, n: int) -> dict[str, Any]:
        label = (np.arange(12) * 7 + n) % 5
        across = np.arange(8)[None, None, None, :] + np.arange(8)[None, None, :, None] * 0.5
        phase = (np.arange(12) * 0.37 + n)[:, None, None, None]
        return {"image": np.sin(across * (0.4 + 0.3 * label[:, None, None, None]) + phase), "label": label}


def a_model() -> TorchModel:
    return TorchModel(
        Net(),
        ["image"],
        loss={"class": "torch.nn:CrossEntropyLoss", "label_smoothing": 0.1},
        optimizer={"class": "torch.optim:AdamW", "lr": 2e-2, "groups": [{"match": "*.bias", "weight_decay": 0.0}]},
        schedule={"kind": "cosine", "warmup": 4, "until": 24},
        clip={"norm": 1.0},
        microbatches=2,
        device="cpu",
    )


async def losses() -> list[float]:
    found: list[float] = []
    engine = Engine(a_model(), Waves(), steps=N_STEPS)
    engine.bus.subscribe(AfterBatch, lambda event: found.append(event.outputs["loss"]))
    await engine.train()
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps({"losses": anyio.run(losses)}, indent=1) + "\n")
