"""A network of two layers in numpy: put your own model here."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class TwoLayers:
    """Any object with these names is a model; `run` is called for one batch after the other, on one thread."""

    input_names = ("x", "label")
    output_names = ("loss", "accuracy", "prediction")

    def __init__(self, hidden: int = 32, lr: float = 0.1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lr = lr
        self.weights_ = {
            "w1": rng.normal(0, 1.0, (2, hidden)),
            "b1": np.zeros(hidden),
            "w2": rng.normal(0, hidden**-0.5, (hidden, 2)),
            "b2": np.zeros(2),
        }

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> dict[str, Any]:
        x, label, w = batch["x"], batch["label"], self.weights_
        hidden = np.tanh(x @ w["w1"] + w["b1"])
        logits = hidden @ w["w2"] + w["b2"]
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = exp / exp.sum(axis=1, keepdims=True)
        each = np.arange(len(label))
        if train:
            wrong = probability.copy()
            wrong[each, label] -= 1
            wrong /= len(label)
            back = wrong @ w["w2"].T * (1 - hidden**2)
            gradient = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ wrong, "b2": wrong.sum(0)}
            for name, value in gradient.items():
                w[name] = w[name] - self.lr * value
        prediction = probability.argmax(axis=1)
        return {
            "loss": -np.log(probability[each, label]).mean(),
            "accuracy": (prediction == label).mean(),
            "prediction": prediction,
        }

    def weights(self) -> dict[str, np.ndarray]:
        return self.weights_

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights_}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        found = {name: np.shape(value) for name, value in state["weights"].items()}
        expected = {name: value.shape for name, value in self.weights_.items()}
        if found != expected:
            raise ValueError(f"the saved weights are {found}, this model's {expected}: is `hidden` another one?")
        self.weights_ = dict(state["weights"])
