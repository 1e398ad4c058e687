"""A linear predictor that learns while readings arrive: put your own model here."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class LinearPredictor:
    """Least mean squares. Any object with these names is a model; `run` is called batch after batch, on one thread."""

    input_names = ("past", "next")
    output_names = ("loss", "prediction")
    live = {"lr": float}  # may be changed while it trains: `run.control.set("lr", 0.01)`

    def __init__(self, window: int = 16, lr: float = 0.05) -> None:
        self.lr = lr
        self.w, self.b = np.zeros(window), 0.0

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> dict[str, Any]:
        past, then = batch["past"], batch["next"]
        prediction = past @ self.w + self.b
        error = prediction - then
        if train:
            self.w = self.w - self.lr * past.T @ error / len(then)
            self.b = self.b - self.lr * float(error.mean())
        return {"loss": (error**2).mean(), "prediction": prediction}

    def set_parameters(self, **changes: float) -> None:
        self.lr = changes.get("lr", self.lr)

    def weights(self) -> dict[str, np.ndarray]:
        return {"w": self.w}

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w, "b": self.b, "lr": self.lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if np.shape(state["w"]) != self.w.shape:
            raise ValueError(
                f"weights {np.shape(state['w'])} were saved, this model has {self.w.shape}: another `window`?"
            )
        self.w, self.b, self.lr = state["w"], state["b"], state["lr"]
