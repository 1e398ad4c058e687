"""A network of two layers in PyTorch: put your own module and loss here."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class TwoLayers:
    """Any object with these names is a model; `run` is called for one batch after the other, on one thread.

    The run's seed is torch's seed already when this is constructed.
    """

    input_names = ("x", "label")
    output_names = ("loss", "accuracy", "prediction")

    def __init__(self, hidden: int = 32, lr: float = 0.01, device: str = "auto") -> None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(found if device == "auto" else device)
        self.module = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2)).to(self.device)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=lr)
        self.loss = nn.CrossEntropyLoss()

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> dict[str, Any]:
        x = torch.as_tensor(batch["x"], device=self.device)
        label = torch.as_tensor(batch["label"], device=self.device)
        self.module.train(train)
        with torch.set_grad_enabled(train):
            logits = self.module(x)
            loss = self.loss(logits, label)
        if train:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        prediction = logits.detach().argmax(dim=1)
        return {
            "loss": loss.detach(),
            "accuracy": (prediction == label).float().mean(),
            "prediction": prediction,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()

    def state_dict(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        moments = {str(key): dict(value) for key, value in optimizer["state"].items()}
        return {"module": dict(self.module.state_dict()), "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def tensors(table: Mapping[str, Any]) -> dict[str, torch.Tensor]:
            return {name: torch.as_tensor(value) for name, value in table.items()}

        self.module.load_state_dict(tensors(state["module"]))
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {int(key): tensors(value) for key, value in state["moments"].items()}
        self.optimizer.load_state_dict(optimizer)
