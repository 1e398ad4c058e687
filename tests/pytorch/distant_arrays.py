"""A device that is not there: arrays whose values nobody may read on the way, and fetches that arrive when a test says so."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

__all__ = ["Coming", "Distant", "DistantModel", "reads"]

reads: Counter[str] = Counter()
"""Thread → how often it has read a value of a Distant, which on a device means to wait for it."""


class _Host:
    """What `cpu()` gives."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def numpy(self) -> np.ndarray:
        return self._array


class Distant:
    """An array on a device. Arithmetic stays there; reading is noted with the thread that does it."""

    is_cpu = False

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def detach(self) -> Distant:
        return self

    def isfinite(self) -> Distant:
        return Distant(np.isfinite(self.value))

    def isnan(self) -> Distant:
        return Distant(np.isnan(self.value))

    def isinf(self) -> Distant:
        return Distant(np.isinf(self.value))

    def all(self) -> Distant:
        return Distant(self.value.all())

    def any(self) -> Distant:
        return Distant(self.value.any())

    def __add__(self, other: Any) -> Distant:
        return Distant(self.value + _of(other))

    def __mul__(self, other: Any) -> Distant:
        return Distant(self.value * _of(other))

    __radd__, __rmul__ = __add__, __mul__

    def cpu(self) -> _Host:
        return _Host(self._read())

    def item(self) -> Any:
        return self._read().item()

    def __float__(self) -> float:
        return float(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._read()

    def _read(self) -> np.ndarray:
        reads[threading.current_thread().name] += 1
        return self.value


def _of(value: Any) -> Any:
    return value.value if isinstance(value, Distant) else value


class Coming:
    """In the place of asyncloop.fetching.Fetch. `arrives(n, asked)` says whether the n-th has arrived when it is asked
    for the `asked`-th time; to take it before is a mistake, unless a thread waits for it."""

    arrives: ClassVar[Callable[[int, int], bool]]
    made: ClassVar[list[Coming]]

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.number, self.asked = len(Coming.made), 0
        self._values = dict(values)
        Coming.made.append(self)

    @property
    def is_of_event(self) -> bool:
        """Whether it is for hooks, rather than to see whether losses are finite."""
        return any(not name.isdigit() for name in self._values)

    @property
    def is_ready(self) -> bool:
        self.asked += 1
        return Coming.arrives(self.number, self.asked)

    def wait(self) -> None:
        assert threading.current_thread().name == "asyncloop model", "only the model thread may wait for a device"

    def take(self) -> dict[str, Any]:
        if not Coming.arrives(self.number, self.asked):
            self.wait()
        return {name: _brought(value) for name, value in self._values.items()}


def _brought(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _brought(part) for name, part in value.items()}
    return _of(value)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Coming]:
    """Fetches are Comings, which arrive at once unless the test says otherwise."""
    reads.clear()
    Coming.made, Coming.arrives = [], lambda number, asked: True
    monkeypatch.setattr("asyncloop.model_thread.Fetch", Coming)
    monkeypatch.setattr("asyncloop.late_checks.Fetch", Coming)
    return Coming


class DistantModel:
    """Its outputs are on a device: the loss, a nested scalar, an array, and one more array on demand.

    `losses` are those of the train steps; after the last of them it is 1.
    """

    input_names, output_names = ("x",), ("loss", "head", "logits", "rare")

    def __init__(self, *losses: float, on_step: Callable[[int], None] | None = None) -> None:
        self.losses, self.n, self.on_step = losses, 0, on_step

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        value = batch["x"][0]
        loss = 1.0
        if train:
            loss = self.losses[self.n] if self.n < len(self.losses) else 1.0
            self.n += 1
            if self.on_step is not None:
                self.on_step(self.n)
        logits = np.full((len(batch["x"]), 2), value)
        return {
            "loss": Distant(loss),
            "head": {"norm": Distant(float(value))},
            "logits": Distant(logits),
            "rare": lambda: Distant(logits * 10),
        }

    def state_dict(self) -> Mapping[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]
