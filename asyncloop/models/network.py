"""Network: dense layers with an activation between them, forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from asyncloop.models.activations import Activation
from asyncloop.models.parameters import Array, Parameters

__all__ = ["Network", "Trace"]


class Trace(NamedTuple):
    """What the way back through one layer needs: its input and, but for the last layer, what became of it."""

    x_BI: Array
    a_BO: Array | None = None
    h_BO: Array | None = None
    kept_BO: Array | None = None


class Network:
    """`sizes[0]` inputs, dense layers of `sizes[1:]` units, activation and dropout after all but the last.

    `parameters`, all zero until `initialise`, are `dense0.weight` (I, O), `dense0.bias` (O,), `dense1.weight`, …;
    `gradient` has the same layout. Owned by the model thread.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation, *, dropout: float, dtype: str) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            shapes |= {f"dense{i}.weight": (n_in, n_out), f"dense{i}.bias": (n_out,)}
        self.parameters = Parameters(shapes, dtype)
        self.gradient = self.parameters.zeros_like()
        self._layers = _layers(self.parameters)
        self._gradients = _layers(self.gradient)
        self._activation = activation
        self._dropout = dropout

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the weights, normal with variance gain / fan-in; biases stay zero."""
        last = len(self._layers) - 1
        for i, (weight_IO, _) in enumerate(self._layers):
            gain = self._activation.gain if i < last else 1.0
            weight_IO[...] = rng.normal(scale=(gain / len(weight_IO)) ** 0.5, size=weight_IO.shape)

    def forward(self, x_BI: Array, dropout_rng: np.random.Generator | None) -> tuple[Array, list[Trace]]:
        """Logits (B, O) and the traces that `backward` takes. Units drop out only with a `dropout_rng`.

        Inverted dropout: Srivastava et al., Dropout, JMLR 15, 2014, section 10.
        """
        traces: list[Trace] = []
        *hidden, (weight_IO, bias_O) = self._layers
        for weight, bias in hidden:
            a_BO = x_BI @ weight
            a_BO += bias
            h_BO = self._activation.value(a_BO)
            kept_BO = self._draw(h_BO, dropout_rng) if dropout_rng is not None and self._dropout else None
            traces.append(Trace(x_BI, a_BO, h_BO, kept_BO))
            x_BI = h_BO if kept_BO is None else h_BO * kept_BO
        traces.append(Trace(x_BI))
        logits_BC = x_BI @ weight_IO
        logits_BC += bias_O
        return logits_BC, traces

    def backward(self, d_BO: Array, traces: Sequence[Trace]) -> None:
        """Fill `gradient` from the loss's gradient by the logits (B, O) and the forward pass's traces."""
        for i in reversed(range(len(traces))):
            gradient_IO, gradient_O = self._gradients[i]
            np.matmul(traces[i].x_BI.T, d_BO, out=gradient_IO)
            np.add.reduce(d_BO, axis=0, out=gradient_O)
            if i > 0:
                d_BO = self._through(d_BO @ self._layers[i][0].T, traces[i - 1])

    def _through(self, d_BO: Array, trace: Trace) -> Array:
        assert trace.a_BO is not None
        assert trace.h_BO is not None
        if trace.kept_BO is not None:
            d_BO *= trace.kept_BO
        d_BO *= self._activation.slope(trace.a_BO, trace.h_BO)
        return d_BO

    def _draw(self, h_BO: Array, rng: np.random.Generator) -> Array:
        kept_BO = np.greater_equal(rng.random(h_BO.shape, dtype=np.float32), self._dropout).astype(h_BO.dtype)
        kept_BO *= 1 / (1 - self._dropout)
        return kept_BO


def _layers(parameters: Parameters) -> list[tuple[Array, Array]]:
    arrays = parameters.by_name
    return [(arrays[f"dense{i}.weight"], arrays[f"dense{i}.bias"]) for i in range(len(arrays) // 2)]
