"""Moments: aggregates of a stream of numbers, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGGREGATES", "Moments"]

Floats = NDArray[np.float64]


class Moments:
    """Count, mean, squared deviations, sum and extremes of all numbers that are not NaN, and how many are.

    Blocks are merged as in Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American
    Statistician 37 (3), 1983: stable where the sum of squares minus the square of the sum is not. With `keep_values`
    every number is kept as well, because a median cannot be had from less.
    """

    def __init__(self, keep_values: bool = False) -> None:
        self.n = 0
        """Numbers seen, NaN included."""
        self.n_nan = 0
        self.weight = 0.0
        self.mean = 0.0
        self.squares = 0.0
        self.total = 0.0
        self.least = math.inf
        self.most = -math.inf
        self.scalar = True
        """Whether only values without axes were added."""
        self._values: list[Floats] | None = [] if keep_values else None

    def add(self, block: Floats, weights: Floats | None = None) -> None:
        """Merge a flat block; `weights` (one a number, else all 1) count in the mean and the variance only."""
        self.n += block.size
        if self._values is not None:
            self._values.append(block)
        is_nan = np.isnan(block)
        n_nan = int(is_nan.sum())
        if n_nan:
            self.n_nan += n_nan
            block = block[~is_nan]
            weights = weights[~is_nan] if weights is not None else None
        if block.size == 0:
            return
        self.least = min(self.least, float(block.min()))
        self.most = max(self.most, float(block.max()))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities: their variance is NaN, as numpy's is
            total = float(block.sum())
            self.total += total
            weight = float(block.size) if weights is None else float(weights.sum())
            mean = total / block.size if weights is None else float(block @ weights) / weight
            deviations = block - mean
            squares = float(deviations @ (deviations if weights is None else deviations * weights))
        both = self.weight + weight
        delta = mean - self.mean
        self.mean += delta * weight / both
        self.squares += squares + delta * delta * self.weight * weight / both
        self.weight = both

    def add_scalar(self, value: float, weight: float) -> None:
        """Merge one number; for a few a batch this costs a tenth of what a block does."""
        self.n += 1
        if self._values is not None:
            self._values.append(np.array([value]))
        if math.isnan(value):
            self.n_nan += 1
            return
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.total += value
        both = self.weight + weight
        if both:
            delta = value - self.mean
            self.mean += delta * weight / both
            self.squares += delta * delta * self.weight * weight / both
        self.weight = both

    @property
    def nan_mean(self) -> float:
        if not self.weight:
            return math.nan
        return self.mean if math.isfinite(self.mean) else self.total

    @property
    def nan_variance(self) -> float:
        return self.squares / self.weight if self.weight else math.nan

    def median(self) -> float:
        values = self.values()
        with np.errstate(invalid="ignore"):  # halfway between -inf and inf
            return float(np.median(values)) if values.size else math.nan

    def values(self) -> Floats:
        return np.concatenate(self._values) if self._values else np.empty(0)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name) for name in _SAVED}
        if self._values is not None:
            state["values"] = self.values()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _SAVED:
            setattr(self, name, state[name])
        if self._values is not None:
            self._values = [np.asarray(state.get("values", ()), dtype=np.float64)]


_SAVED = ("n", "n_nan", "weight", "mean", "squares", "total", "least", "most", "scalar")


def _strict(aggregate: Callable[[Moments], float]) -> Callable[[Moments], float]:
    """NaN as soon as one number is NaN, and when there was none."""
    return lambda moments: math.nan if moments.n_nan or not moments.n else aggregate(moments)


def _lenient(aggregate: Callable[[Moments], float]) -> Callable[[Moments], float]:
    """Over the numbers that are not NaN; NaN when there are none."""
    return lambda moments: aggregate(moments) if moments.weight else math.nan


AGGREGATES: Mapping[str, Callable[[Moments], float]] = {
    "mean": _strict(lambda moments: moments.nan_mean),
    "std": _strict(lambda moments: math.sqrt(moments.nan_variance)),
    "var": _strict(lambda moments: moments.nan_variance),
    "min": _strict(lambda moments: moments.least),
    "max": _strict(lambda moments: moments.most),
    "sum": _strict(lambda moments: moments.total),
    "median": _strict(lambda moments: moments.median()),
    "count": lambda moments: moments.n,
    "nanmean": _lenient(lambda moments: moments.nan_mean),
    "nanstd": _lenient(lambda moments: math.sqrt(moments.nan_variance)),
    "nanvar": _lenient(lambda moments: moments.nan_variance),
    "nanmin": _lenient(lambda moments: moments.least),
    "nanmax": _lenient(lambda moments: moments.most),
    "nanfraction": lambda moments: moments.n_nan / moments.n if moments.n else math.nan,
    "nancount": lambda moments: moments.n_nan,
}
"""Named as numpy names them; variances divide by n. `nancount` counts the NaNs, `nanfraction` is their share."""
