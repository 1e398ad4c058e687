"""Gauges: timings of a stage and weighted means of scalars, in constant memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["MetricSink", "Timings", "WeightedMeans", "log", "metric_sink"]

_NONE: deque[float] = deque(maxlen=0)


class Timings:
    """Durations in seconds: exact count, total, least and most, and the last 1024 of them (iterating gives those)."""

    __slots__ = ("count", "max", "min", "recent", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.min = math.inf
        self.max = 0.0
        self.recent: deque[float] = deque(maxlen=1024)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        if seconds < self.min:
            self.min = seconds
        if seconds > self.max:
            self.max = seconds
        self.recent.append(seconds)

    def extend(self, seconds: list[float]) -> None:
        """Add many at once: a loop that collects its durations and adds them by the hundred pays little for them."""
        if seconds:
            self.count += len(seconds)
            self.total += sum(seconds)
            self.min, self.max = min(self.min, *seconds), max(self.max, *seconds)
            self.recent.extend(seconds)

    def merge(self, other: Timings) -> None:
        self.count += other.count
        self.total += other.total
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self.recent.extend(other.recent)

    def in_brief(self) -> Timings:
        """The same without the durations themselves, which take some 30 KiB."""
        brief = Timings.__new__(Timings)
        brief.count, brief.total, brief.min, brief.max = self.count, self.total, self.min, self.max
        brief.recent = _NONE
        return brief

    @property
    def mean(self) -> float:
        """Mean duration; NaN when nothing was measured (never a 0 that could be taken for a measurement)."""
        return self.total / self.count if self.count else math.nan

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[float]:
        return iter(self.recent)

    def __repr__(self) -> str:
        return f"Timings(count={self.count}, total={self.total:.6f} s, mean={self.mean:.6f} s)"


class WeightedMeans:
    """Means of named scalars weighted by the number of examples. Owned by one thread at a time.

    Values are added as they come (a device scalar stays on its device); only `result` converts to float.
    """

    __slots__ = ("sums", "weights")

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.weights: dict[str, float] = {}

    def add(self, name: str, value: Any, weight: float) -> None:
        if name in self.sums:
            self.sums[name] += value * weight
            self.weights[name] += weight
        else:
            self.sums[name] = value * weight
            self.weights[name] = weight

    def merge(self, other: WeightedMeans) -> None:
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = self.weights.get(name, 0.0) + other.weights[name]

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The sums so far as floats (a device is waited for); a mean that goes on from them is the same bit by bit."""
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self.sums, self.weights = dict(state["sums"]), dict(state["weights"])

    def result(self) -> dict[str, float]:
        return {name: float(total) / self.weights[name] for name, total in self.sums.items() if self.weights[name]}


class MetricSink(Protocol):
    """Where `asyncloop.log` puts a value just now: the batch being run, or the event being handled."""

    def __call__(self, name: str, value: Any) -> None: ...


metric_sink: ContextVar[MetricSink | None] = ContextVar("metric_sink", default=None)


def log(name: str, value: Any) -> None:
    """Add a scalar to the epoch data of the stream at hand, averaged over the pass, weighted by examples.

    Call it from a model's `run` (model thread) or from a hook's handler (loop or the hook's thread); elsewhere it does
    nothing, so that code using it also runs outside a training.
    """
    sink = metric_sink.get()
    if sink is not None:
        sink(name, value)
