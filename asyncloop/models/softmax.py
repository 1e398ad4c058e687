"""SoftmaxRegression: multinomial logistic regression, the linear classifier to beat."""

from __future__ import annotations

from typing import Literal

from asyncloop.models.mlp import MLP

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression(MLP):
    """An `MLP` without hidden layers: linear, with the same sources, outputs, state and errors."""

    def __init__(
        self,
        *,
        n_inputs: int,
        n_classes: int,
        inputs: str = "image",
        labels: str = "label",
        optimizer: Literal["adam", "momentum", "sgd"] = "adam",
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        average: float = 0.0,
        dtype: Literal["float32", "float64"] = "float32",
        seed: int = 0,
    ) -> None:
        """ConfigError, with one message for each mistake, if an argument is not what it has to be."""
        super().__init__(
            n_inputs=n_inputs,
            n_classes=n_classes,
            inputs=inputs,
            labels=labels,
            hidden=(),
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            average=average,
            dtype=dtype,
            seed=seed,
        )
