"""What the probes of long runs share: a model that does nothing, data that cost nothing, and a tally of the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["N_VALID", "Data", "NoOp", "Tally"]

N_VALID = 100
"""Batches of the stream that is evaluated."""


class NoOp:
    """A model that does nothing."""

    input_names = ("id", "x")
    output_names = ("loss",)

    def run(self, batch: Any, *, train: bool = True, stream: str = "train") -> Mapping[str, float]:
        return {"loss": 0.5}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Data:
    """Batches made one by one, each a view of arrays that are there from the start."""

    def __init__(self, n: int) -> None:
        self.ids, self.x = np.arange(max(n, N_VALID)), np.zeros((1, 32))
        self.n = {"train": n, "valid": N_VALID}

    def train_stream(self) -> Iterator[Mapping[str, Any]]:
        return self.batches("train")

    def valid_stream(self) -> Iterator[Mapping[str, Any]]:
        return self.batches("valid")

    def batches(self, stream: str) -> Iterator[Mapping[str, Any]]:
        for index in range(self.n[stream]):
            yield {"id": self.ids[index : index + 1], "x": self.x}


class Tally:
    """Counts the batches of a stream of `n`, pass after pass; SystemExit if one is not the one that is due."""

    def __init__(self, n: int) -> None:
        self.n, self.n_seen = n, 0

    def see(self, batch: Mapping[str, Any]) -> None:
        index, due = int(batch["id"][0]), self.n_seen % self.n
        if index != due:
            raise SystemExit(f"saw batch {index} where {due} was due")
        self.n_seen += 1

    def check(self, n_passes: int) -> None:
        """SystemExit unless exactly so many passes are over."""
        if self.n_seen != n_passes * self.n:
            raise SystemExit(f"saw {self.n_seen} of {n_passes * self.n} batches")
