"""How often something is due: `"1 epoch"`, `"50 steps"`, `"30 s"`, `"1 step doubling to 1000"`.

A cadence in steps or epochs is a pure function of the counter, so it can be planned ahead and needs no
state to resume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from asyncloop.errors import ConfigError

__all__ = ["Cadence", "seconds_of"]

Unit = Literal["epochs", "steps", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "epochs": ("epochs", 1),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "s": ("seconds", 1),
    "second": ("seconds", 1),
    "seconds": ("seconds", 1),
    "min": ("seconds", 60),
    "minute": ("seconds", 60),
    "minutes": ("seconds", 60),
    "h": ("seconds", 3600),
    "hour": ("seconds", 3600),
    "hours": ("seconds", 3600),
}
_FORM = re.compile(r"\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]+)(?:\s+doubling\s+to\s+(?P<cap>\d+))?\s*")
_CLOCK = re.compile(r"(?:(?:\d+:)?[0-5]?\d:)?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Cadence:
    """Due every `interval` of `unit`, between `start` and `stop` (both included, in the same unit).

    With `cap`, the interval doubles each time it was due until it has reached `cap`: 1, 2, 4, 8, …, cap, 2 cap, ….
    """

    interval: float
    unit: Unit
    cap: int | None = None
    start: float = 0
    stop: float | None = None

    @classmethod
    def parse(cls, text: str, *, start: float = 0, stop: float | None = None) -> Cadence:
        """Read `"50 steps"` and the like. Raises ConfigError that says what was found and what is allowed."""
        allowed = '"1 epoch", "50 steps", "30 s" or "1 step doubling to 1000"'
        match = _FORM.fullmatch(text)
        if match is None or match["unit"] not in _UNITS:
            raise ConfigError(f"a cadence must look like {allowed}, not {text!r}")
        unit, factor = _UNITS[match["unit"]]
        interval = float(match["amount"]) * factor
        if interval <= 0:
            raise ConfigError(f"a cadence must be positive, not {text!r}")
        if unit != "seconds" and interval != int(interval):
            raise ConfigError(f"a cadence in {unit} must be a whole number, not {text!r}")
        cap = int(match["cap"]) if match["cap"] else None
        if cap is not None and (unit == "seconds" or cap < interval):
            raise ConfigError(f"{text!r}: doubling works on steps and epochs, up to a larger number")
        return cls(interval, unit, cap, start, stop)

    def due(self, n: float) -> bool:
        """Whether counter value `n` (steps or epochs done) is due. Not for seconds: a clock decides there."""
        if n <= 0 or n < self.start or (self.stop is not None and n > self.stop):
            return False
        if self.cap is None or n >= self.cap:
            return n % (self.cap or self.interval) == 0
        times, rest = divmod(n, self.interval)
        return rest == 0 and int(times).bit_count() == 1

    def next_due(self, after: int) -> int | None:
        """The smallest counter value above `after` that is due, or None if there is none any more."""
        after = max(after, int(self.start) - 1, 0)
        if self.cap is not None and after + 1 < self.cap:
            due = int(self.interval)
            while due <= after:
                due *= 2
            due = min(due, self.cap)
        else:
            interval = int(self.cap or self.interval)
            due = (after // interval + 1) * interval
        return None if self.stop is not None and due > self.stop else due


def seconds_of(text: str | float) -> float:
    """A span of time: `"90 s"`, `"30 min"`, `"2 h"`, `"1:30:00"`, or a number of seconds. Raises ConfigError."""
    if isinstance(text, str):
        spelt = _FORM.fullmatch(text)
        clock = _CLOCK.fullmatch(text.strip())
        if spelt is not None and spelt["cap"] is None and _UNITS.get(spelt["unit"], ("", 0))[0] == "seconds":
            seconds = float(spelt["amount"]) * _UNITS[spelt["unit"]][1]
        elif clock is not None:
            seconds = sum(float(part) * 60**n for n, part in enumerate(reversed(clock[0].split(":"))))
        else:
            raise ConfigError(f'a span of time must look like "90 s", "30 min", "2 h" or "1:30:00", not {text!r}')
    else:
        seconds = float(text)
    if not seconds > 0:
        raise ConfigError(f"a span of time must be positive, not {text!r}")
    return seconds
