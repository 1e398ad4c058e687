"""A small classification problem and a numerical gradient, for the tests of the models."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncloop.models import MLP


def blobs(n: int = 60, n_inputs: int = 4, n_classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Classes that lie apart: `image` float64 (n, n_inputs), `label` int64 (n,)."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_classes, n)
    centres = 4 * np.random.default_rng(99).normal(size=(n_classes, n_inputs))
    return {"image": centres[label] + rng.normal(size=(n, n_inputs)), "label": label}


def numerical_gradient(model: MLP, batch: dict[str, np.ndarray], epsilon: float = 1e-6) -> dict[str, np.ndarray]:
    """Central differences of the evaluation loss by every weight; float64 models only."""
    gradient: dict[str, np.ndarray] = {}
    for name, array in model.weights().items():
        gradient[name] = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            value = array[at]
            losses: list[Any] = []
            for moved in (value + epsilon, value - epsilon):
                array[at] = moved
                losses.append(model.run(batch, train=False, stream="train")["loss"])
            array[at] = value
            gradient[name][at] = (losses[0] - losses[1]) / (2 * epsilon)
    return gradient
