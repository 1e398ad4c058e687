"""Optimizers: how a gradient changes the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np

from asyncloop.models.parameters import Parameters

__all__ = ["SGD", "Adam", "Momentum", "Optimizer", "make_optimizer"]


class Optimizer(Protocol):
    """Changes parameters in place, on the model thread.

    Weight decay is decoupled from the gradient for each of them and spares biases: before the update matrices
    shrink by the share lr · weight_decay (Loshchilov and Hutter, Decoupled Weight Decay Regularization).
    """

    n_updates: int
    slots: Mapping[str, Parameters]
    """What it remembers from update to update, by name; part of a checkpoint together with `n_updates`."""

    def update(self, parameters: Parameters, gradient: Parameters, lr: float) -> None:
        """One update with learning rate `lr`; `gradient` (of the same layout) is left as it is."""
        ...


class SGD:
    """Gradient descent: θ ← θ − lr g (Robbins and Monro, A Stochastic Approximation Method, 1951)."""

    def __init__(self, parameters: Parameters, *, weight_decay: float = 0.0) -> None:
        self.n_updates = 0
        self.slots: Mapping[str, Parameters] = {}
        self._weight_decay = weight_decay
        self._scratch = np.empty_like(parameters.flat)

    def update(self, parameters: Parameters, gradient: Parameters, lr: float) -> None:
        self.n_updates += 1
        _decay(parameters, lr * self._weight_decay)
        parameters.flat -= np.multiply(gradient.flat, lr, out=self._scratch)


class Momentum:
    """SGD with momentum: v ← momentum v + g, θ ← θ − lr v.

    Polyak, Some methods of speeding up the convergence of iteration methods, 1964. As lr is outside of v, a
    changed one holds at once.
    """

    def __init__(self, parameters: Parameters, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        self.n_updates = 0
        self._velocity = parameters.zeros_like()
        self.slots: Mapping[str, Parameters] = {"velocity": self._velocity}
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._scratch = np.empty_like(parameters.flat)

    def update(self, parameters: Parameters, gradient: Parameters, lr: float) -> None:
        self.n_updates += 1
        _decay(parameters, lr * self._weight_decay)
        velocity = self._velocity.flat
        velocity *= self._momentum
        velocity += gradient.flat
        parameters.flat -= np.multiply(velocity, lr, out=self._scratch)


class Adam:
    """Adam: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − lr m̂ / (√v̂ + ε).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) make up for the start at zero; t counts updates from 1.
    Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1; with decay AdamW.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.n_updates = 0
        self._mean, self._square = parameters.zeros_like(), parameters.zeros_like()
        self.slots: Mapping[str, Parameters] = {"mean": self._mean, "square": self._square}
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self._weight_decay = weight_decay
        self._scratch = np.empty_like(parameters.flat)

    def update(self, parameters: Parameters, gradient: Parameters, lr: float) -> None:
        self.n_updates += 1
        _decay(parameters, lr * self._weight_decay)
        mean, square, g, scratch = self._mean.flat, self._square.flat, gradient.flat, self._scratch
        mean *= self._beta1
        mean += np.multiply(g, 1 - self._beta1, out=scratch)
        square *= self._beta2
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self._beta2
        square += scratch
        # The bias corrections are numbers: folded into √v and lr they save two passes over the vectors.
        np.sqrt(square, out=scratch)
        scratch *= (1 - self._beta2**self.n_updates) ** -0.5
        scratch += self._epsilon
        np.divide(mean, scratch, out=scratch)
        scratch *= lr / (1 - self._beta1**self.n_updates)
        parameters.flat -= scratch


def make_optimizer(
    name: Literal["adam", "momentum", "sgd"], parameters: Parameters, *, momentum: float, weight_decay: float
) -> Optimizer:
    """The optimizer called `name` for `parameters`; `momentum` is for "momentum" only."""
    if name == "adam":
        return Adam(parameters, weight_decay=weight_decay)
    if name == "momentum":
        return Momentum(parameters, momentum=momentum, weight_decay=weight_decay)
    return SGD(parameters, weight_decay=weight_decay)


def _decay(parameters: Parameters, share: float) -> None:
    if share:
        parameters.matrices *= 1 - share
