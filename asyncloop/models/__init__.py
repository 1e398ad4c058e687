"""Small models in plain numpy, to begin with and to measure against: `class = "asyncloop.models:MLP"`."""

from __future__ import annotations

from asyncloop.models.mlp import MLP
from asyncloop.models.softmax import SoftmaxRegression

__all__ = ["MLP", "SoftmaxRegression"]
