"""Schedules: the learning rate as its base value times a factor, a pure function of the updates done. So a resume is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from asyncloop.errors import ConfigError
from asyncloop.torch.arguments import Span, Table

__all__ = ["Plateau", "Schedule"]

Kind = Literal["constant", "linear", "cosine", "polynomial", "step", "plateau"]


@dataclass(frozen=True, slots=True)
class Schedule(Table):
    """`factor(n)` after `n` updates: up from 1/warmup to 1 in `warmup` steps, then down as `kind` says.

    * constant: stays at 1.
    * linear, cosine, polynomial (with `power`): down to `floor` at step `until`, and stays there. Cosine: Loshchilov and
      Hutter, SGDR, 2017, without restarts.
    * step: times `factor` every `every` steps, or at each of the steps `at`.
    * plateau: times `factor` whenever `variable` of the evaluated `stream` has not got better, by more than `threshold`,
      in more than `patience` evaluations one after the other.
    """

    kind: Kind = "constant"
    warmup: Span = 0
    until: Span | None = None
    floor: float = 0.0
    power: float = 1.0
    factor: float = 0.1
    every: Span | None = None
    at: Sequence[Span] = ()
    variable: str = "loss"
    stream: str = "valid"
    mode: Literal["min", "max"] = "min"
    patience: int = 10
    threshold: float = 0.0

    def __post_init__(self) -> None:
        problems: list[str] = []
        falls = self.kind in ("linear", "cosine", "polynomial")
        if falls and (self.until is None or self.until <= self.warmup):
            found = "and it is not there" if self.until is None else f"and it is {self.until}"
            problems.append(
                f"a {self.kind} schedule needs `until`, more steps than its warmup of {self.warmup}, {found}"
            )
        if not falls and self.until is not None:
            problems.append(f"a {self.kind} schedule has no end, so `until` means nothing to it")
        if self.kind == "step" and (self.every is None) == (not self.at):
            problems.append("a step schedule needs either `every` or `at`")
        if self.every is not None and self.every < 1:
            problems.append(f"`every` is at least one step, not {self.every}")
        if self.kind != "step" and (self.every is not None or self.at):
            problems.append(f"`every` and `at` are for a step schedule, not for a {self.kind} one")
        for name in ("warmup", "floor", "power", "factor", "patience", "threshold"):
            if not getattr(self, name) >= 0:
                problems.append(f"`{name}` is at least 0, not {getattr(self, name)}")
        if problems:
            raise ConfigError(*(f"schedule: {problem}" for problem in problems))

    def factor_at(self, n: int) -> float:
        """The factor of the update after `n` others. Of a plateau only the warmup; see Plateau."""
        if n < self.warmup:
            return (n + 1) / self.warmup
        if self.kind == "step":
            return self.factor ** self._times(n)
        if self.until is None:
            return 1.0
        share = min((n - self.warmup) / (self.until - self.warmup), 1.0)
        return self.floor + (1 - self.floor) * self._fallen(share)

    def _fallen(self, share: float) -> float:
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        return (1 - share) ** (self.power if self.kind == "polynomial" else 1.0)

    def _times(self, n: int) -> int:
        return sum(n >= at for at in self.at) if self.every is None else (n - self.warmup) // self.every


class Plateau:
    """How often a plateau schedule has lowered the rate, from the evaluations so far. Belongs to the model thread."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._best: float | None = None
        self._waited = self._times = 0

    @property
    def factor(self) -> float:
        return self._schedule.factor**self._times

    def evaluated(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """An evaluation is complete, with these data by stream. ConfigError if the stream's lack the variable."""
        schedule = self._schedule
        if schedule.stream not in data:
            return
        own = data[schedule.stream]
        value = own.get(schedule.variable)
        if value is None:
            there = ", ".join(own) or "nothing"
            raise ConfigError(
                f"schedule: stream {schedule.stream!r} has no variable {schedule.variable!r} (it has {there})"
            )
        value = float(
            value.get("mean", math.nan) if isinstance(value, Mapping) else value
        )  # of ComputeStats' aggregates
        if self._is_better(value):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited > schedule.patience:
            self._times, self._waited = self._times + 1, 0

    def _is_better(self, value: float) -> bool:
        """Than all before; NaN never is."""
        if self._best is None or math.isnan(value):
            return not math.isnan(value)
        gain = self._best - value if self._schedule.mode == "min" else value - self._best
        return gain > self._schedule.threshold

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "times": self._times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._waited, self._times = state["best"], state["waited"], state["times"]
