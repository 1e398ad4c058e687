"""Goals that several scenarios share."""

from __future__ import annotations

from bench.harness import Goal, Metric, Round
from bench.systems.asyncloop import MAIN

__all__ = ["buffer_goals", "goal_of_reading", "goal_of_row", "goals_of_main_rows"]


def goals_of_main_rows(metric: Metric, must: float, moonshot: float | None, *, more: bool = False) -> list[Goal]:
    """The same goal for the default asyncloop on both event loops."""
    return [goal_of_row(metric, row, must, moonshot, more=more) for row in MAIN]


def goal_of_row(metric: Metric, row: str, must: float, moonshot: float | None, *, more: bool = False) -> Goal:
    """A goal for one column of one row."""

    def value(one: Round) -> float:
        one[row]
        found = metric.value(one, row)
        if found is None:
            raise KeyError(row)
        return found

    return Goal(f"{row}, {metric.name}", value, metric.unit, must, moonshot, "more" if more else "less")


def goal_of_reading(row: str, text: str, key: str, unit: str, must: float, moonshot: float | None = None) -> Goal:
    """At most `must` of one quantity that a row reads; `text` names it."""

    def value(one: Round) -> float:
        return one[row][key]

    return Goal(f"{row}, {text}", value, unit, must, moonshot)


def buffer_goals() -> list[Goal]:
    """`buffer="auto"` takes at most 3 % longer a batch than the better of 0 and 64, in steady state."""
    return [_auto(row) for row in MAIN]


def _auto(row: str) -> Goal:
    def value(one: Round) -> float:
        fixed = min(one[f"{row}, buffer {buffer}"]["steady_s"] for buffer in (0, 64))
        return (one[row]["steady_s"] / fixed - 1) * 100

    return Goal(f'{row}, buffer "auto" against the better of 0 and 64', value, "% longer", 3.0)
