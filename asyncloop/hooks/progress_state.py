"""ProgressState: where a run is, from the few events that a display looks at; and Snapshot, what is shown of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from asyncloop.events import AfterBatch, AfterEpoch, AfterEvaluation, BeforeEpoch, BeforeTraining
from asyncloop.hooks.values import scalars, summary, text

__all__ = ["ProgressState", "Snapshot", "epoch_line", "rounded_s"]

_MOST_VALUES = 6
_RATE_POINTS = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a run. `done` of `total` batches of this pass; what is not known is None."""

    epoch: int
    epochs: int | None
    step: int
    stream: str
    train: bool
    done: int
    total: int | None
    batches_per_s: float | None
    eta_s: float | None
    values: Mapping[str, float]

    @property
    def title(self) -> str:
        of = f"/{self.epochs}" if self.epochs is not None else ""
        return f"epoch {self.epoch}{of}  {self.stream}"

    @property
    def count(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else str(self.done)

    @property
    def details(self) -> str:
        """Speed, time left in this pass, newest values."""
        unit = "steps/s" if self.train else "batches/s"
        parts = [f"{self.batches_per_s:.3g} {unit}"] if self.batches_per_s is not None else []
        if self.eta_s is not None:
            parts.append(f"ETA {_clock(self.eta_s)}")
        return "  ".join([*parts, *(f"{name} {text(value)}" for name, value in self.values.items())])

    def line(self) -> str:
        return f"{self.title} {self.count}  {self.details}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class ProgressState:
    """Owned by the thread of one hook. Clock readings are seconds of time.perf_counter."""

    epochs: int | None = None
    steps: int | None = None
    """With how many the run ends, which may be in the middle of a pass."""
    totals: dict[str, int] = field(default_factory=dict[str, int])
    """Batches of a pass: the dataset's `num_batches`, then what the newest whole pass has shown."""
    _before: int = 0
    """The step before the first of this epoch."""
    _resumed: bool = False
    """Whether this epoch began in an earlier session."""
    _began_s: float = 0.0
    _newest: AfterBatch | None = None
    _done: int = 0
    _trained: set[str] = field(default_factory=set[str])
    """The streams this epoch has trained on."""
    _points: deque[tuple[float, int]] = field(default_factory=lambda: deque[tuple[float, int]](maxlen=_RATE_POINTS))

    def begin_training(self, event: BeforeTraining, now_s: float) -> None:
        self._began_s = now_s  # of an epoch that began in an earlier session only the rest is told
        self.epochs = getattr(event.run, "epochs", None)
        self.steps = getattr(event.run, "steps", None)
        known: object = getattr(event.run.dataset, "num_batches", None)
        if isinstance(known, Mapping):
            self.totals.update(cast("Mapping[str, int]", known))
        self._resumed = event.step > 0

    def begin_epoch(self, event: BeforeEpoch, now_s: float) -> None:
        self._before, self._began_s, self._newest = event.step, now_s, None
        self._trained.clear()

    def batches(self, events: Sequence[AfterBatch], now_s: float) -> None:
        for event in events:
            newest = self._newest
            if newest is None or (newest.stream, newest.train) != (event.stream, event.train):
                self._begin_stream(event, now_s)
            self._newest = event
            self._done = event.step - self._before if event.train else event.index + 1
        self._points.append((now_s, self._done))

    def _begin_stream(self, event: AfterBatch, now_s: float) -> None:
        self._learn()
        self._points.clear()
        if self._newest is None and event.train and not self._resumed:
            self._points.append((self._began_s, 0))
        if event.train:
            if self._resumed and not self._trained:
                self._before = event.step - event.index - 1
            self._trained.add(event.stream)

    def end_evaluation(self, event: AfterEvaluation) -> None:
        self._learn()

    def _learn(self) -> None:
        """An evaluation that another stream, or its end, follows was a whole pass."""
        if self._newest is not None and not self._newest.train:
            self.totals[self._newest.stream] = self._done

    def end_epoch(self, event: AfterEpoch, now_s: float) -> float:
        """Takes note of the length of the epoch's one training pass; the seconds that the epoch took."""
        if len(self._trained) == 1:
            self.totals[min(self._trained)] = event.step - self._before
        self._resumed = False
        return now_s - self._began_s

    def snapshot(self) -> Snapshot | None:
        """None while there is nothing to show."""
        event = self._newest
        if event is None:
            return None
        total = self.totals.get(event.stream)
        if total is not None and total < self._done:
            total = None
        if event.train and self.steps is not None:
            left = self.steps - self._before
            total = left if total is None else min(total, left)
        rate = self._rate()
        eta_s = (total - self._done) / rate if total is not None and rate else None
        values = dict(list(scalars(event.outputs).items())[:_MOST_VALUES])
        return Snapshot(
            event.epoch, self.epochs, event.step, event.stream, event.train, self._done, total, rate, eta_s, values
        )

    def _rate(self) -> float | None:
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last > first and last_s > first_s else None


def epoch_line(event: AfterEpoch, seconds: float) -> str:
    """What stays of an epoch: `epoch 3  train loss 0.12 accuracy 0.97 · valid loss 0.2  (12.3 s)`."""
    streams: list[str] = []
    for stream, values in event.data.items():
        shown = ((name, summary(value)) for name, value in values.items())
        streams.append(" ".join([stream, *(f"{name} {text(value)}" for name, value in shown if value is not None)]))
    return f"epoch {event.epoch}  {' · '.join(streams)}  ({rounded_s(seconds)} s)"


def rounded_s(seconds: float) -> str:
    """Two digits, or whole seconds: `0.034`, `7.2`, `1235`."""
    return f"{seconds:.2g}" if seconds < 99.5 else f"{seconds:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
