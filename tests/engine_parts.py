"""Small real parts for engine tests: a model that counts, a dataset of arrays, a hook that keeps what it sees."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from asyncloop import Hook

EVENTS = [
    "before_training",
    "before_epoch",
    "after_evaluation",
    "after_epoch",
    "after_epoch_profile",
    "after_training",
    "on_exception",
    "checkpoint_saved",
    "parameter_changed",
    "paused",
    "resumed",
]


class Counting:
    """A model that trains one number: the sum of all examples it was trained on."""

    input_names = ("x",)
    output_names = ("loss", "double")
    live = {"lr": float}

    def __init__(self, on_run: Callable[[int, bool], Mapping[str, Any] | None] | None = None) -> None:
        self.total = np.zeros(1)
        self.trained_on: list[int] = []
        self.threads: set[int] = set()
        self.lr = 1.0
        self._on_run = on_run
        self.n_runs = 0

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        self.threads.add(threading.get_ident())
        n, self.n_runs = self.n_runs, self.n_runs + 1
        extra = self._on_run(n, train) if self._on_run else None
        if train:
            self.total += batch["x"].sum() * self.lr
            self.trained_on.append(int(batch["x"][0]))
        return {"loss": float(batch["x"].mean()), "double": batch["x"] * 2, **(extra or {})}

    def state_dict(self) -> Mapping[str, Any]:
        self.threads.add(threading.get_ident())
        return {"total": self.total, "lr": self.lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.lr = np.array(state["total"]), float(state["lr"])

    def set_parameters(self, **changes: Any) -> None:
        self.threads.add(threading.get_ident())
        self.lr = changes["lr"]


def batches(n: int, size: int = 4) -> Iterator[dict[str, Any]]:
    for i in range(n):
        yield {"x": np.full(size, float(i))}


class Arrays:
    """Streams of `n` batches; counts how often each was entered."""

    def __init__(self, n: int = 13) -> None:
        self.n = n
        self.entered: Counter[str] = Counter()

    def _stream(self, name: str) -> Iterator[dict[str, Any]]:
        self.entered[name] += 1
        yield from batches(self.n)

    def train_stream(self) -> Iterator[dict[str, Any]]:
        yield from self._stream("train")

    def valid_stream(self) -> Iterator[dict[str, Any]]:
        yield from self._stream("valid")

    def test_stream(self) -> Iterator[dict[str, Any]]:
        yield from self._stream("test")

    def predict_stream(self) -> Iterator[dict[str, Any]]:
        yield from self._stream("predict")


class Keeping(Hook):
    """Keeps every event it gets, with the method's name."""

    def __init__(self, **declared: Any) -> None:
        self.seen: list[tuple[str, Any]] = []
        for name, value in declared.items():
            setattr(self, name, value)

    def of(self, name: str) -> list[Any]:
        return [event for method, event in self.seen if method == name]

    def count(self, name: str) -> int:
        return len(self.of(name))

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.of("after_batch") if event.train]


def _keep(name: str) -> Any:
    async def method(self: Keeping, event: Any) -> None:
        self.seen.append((name, event))

    return method


for _name in (*EVENTS, "after_batch"):
    setattr(Keeping, _name, _keep(_name))
