"""Activations: elementwise functions between two layers, with their slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from asyncloop.models.parameters import Array

__all__ = ["ACTIVATIONS", "Activation"]


@dataclass(frozen=True, slots=True)
class Activation:
    """`value(a)` is h; `slope(a, h)` is dh/da, from whichever is cheaper. Both leave their arguments."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    gain: float
    """Variance of the initial weights, times the fan-in, that keeps the signal's size from layer to layer."""


def _relu(a: Array) -> Array:
    return np.maximum(a, 0)


def _relu_slope(a: Array, h: Array) -> Array:
    return h > 0


def _tanh(a: Array) -> Array:
    return np.tanh(a)


def _tanh_slope(a: Array, h: Array) -> Array:
    slope = h * h
    return np.subtract(1, slope, out=slope)


_GELU_SCALE: Final = float(np.sqrt(2 / np.pi))
_GELU_CUBIC: Final = 0.044715


def _gelu_tanh(a: Array) -> Array:
    u = a * a
    u *= _GELU_SCALE * _GELU_CUBIC
    u += _GELU_SCALE
    u *= a
    return np.tanh(u, out=u)


def _gelu(a: Array) -> Array:
    h = _gelu_tanh(a)
    h += 1
    h *= a
    h *= 0.5
    return h


def _gelu_slope(a: Array, h: Array) -> Array:
    t = _gelu_tanh(a)
    inner = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * (a * a))
    return 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * inner


ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "relu": Activation(_relu, _relu_slope, gain=2.0),
    "tanh": Activation(_tanh, _tanh_slope, gain=1.0),
    "gelu": Activation(_gelu, _gelu_slope, gain=2.0),
}
"""`gelu` is the tanh approximation of Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415.
Gains: 2 for relu (He et al., arXiv:1502.01852) and close enough for gelu; 1 for tanh (LeCun et al., Efficient
BackProp, 1998)."""
