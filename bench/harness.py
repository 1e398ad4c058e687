"""The harness: all rows of a scenario interleaved round by round, every outcome checked, medians and spread.

A row is measured once a round; references (the floor, the ideal) are rows that the others are held against, in the same
round. What fails its check is shown as invalid and never as a number.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bench.job import Job, Outcome
from bench.systems.asyncloop import MAIN
from bench.systems.registry import System, missing

__all__ = [
    "Goal",
    "Measured",
    "Metric",
    "Plan",
    "Reading",
    "Result",
    "Round",
    "Row",
    "Scenario",
    "Spread",
    "Verdict",
    "WrongResult",
    "check",
    "run_scenario",
    "timed",
]

Reading: TypeAlias = Mapping[str, float]
"""What one row read in one round: quantity → value, units in the names (`batch_s`)."""

Round: TypeAlias = Mapping[str, Reading]
"""Row name → what it read in this round."""


class WrongResult(Exception):
    """A system did not do all of the work, or did it wrong; its time says nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: `scale` 1 is the full run. `pace` 1 is every run that measures; only tests hurry."""

    quick: bool = False
    scale: float = 1.0
    pace: float = 1.0

    def n(self, full: int, least: int = 6) -> int:
        """A number of batches (or samples) of the full run, cut to this plan."""
        return max(round(full * self.scale), min(least, full))

    def seconds(self, full: float) -> float:
        """How long something waits or computes."""
        return full * self.pace


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what is measured, and how one round of it is."""

    name: str
    family: str
    measure: Callable[[], Reading]
    reference: bool = False
    missing: str | None = None
    """Why it cannot be measured here; it is then left out with this note."""
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For the JSON: number of batches and the like."""
    prepare: Callable[[], None] | None = None
    """What is done once, before the first round and outside of every clock."""
    finish: Callable[[], None] | None = None
    """What gives back after the last round what `prepare` and `measure` have taken."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column: a number for each row and round. `value` gives None for rows that have no such number."""

    name: str
    unit: str
    value: Callable[[Round, str], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be reached, and what would be remarkable. Judged by the median over the rounds.

    `value` is a number of one round; KeyError means that a row it is about was left out, and the goal with it.
    """

    name: str
    value: Callable[[Round], float]
    unit: str
    must: float | None
    moonshot: float | None = None
    better: Literal["less", "more"] = "less"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A question, the rows that answer it, the columns to show and the goals. The first metric sorts the table."""

    name: str
    title: str
    rows: Sequence[Row]
    metrics: Sequence[Metric]
    goals: Sequence[Goal] = ()
    better: Literal["less", "more"] = "less"
    remarks: Sequence[str] = ()
    main: Sequence[str] = MAIN
    """The rows that others are compared with."""
    n_rounds: int | None = None
    """How many rounds, if nobody says; for what is long and repeats itself inside."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of all rounds and their median."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Measured:
    """A row with what it came to: a spread per metric, or the reason why it is invalid."""

    row: Row
    spreads: Mapping[str, Spread]
    readings: Sequence[Reading]
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was reached; `spread` None: it could not be judged, because a row is missing or invalid."""

    goal: Goal
    spread: Spread | None

    @property
    def must(self) -> bool | None:
        return self._reached(self.goal.must)

    @property
    def moonshot(self) -> bool | None:
        return self._reached(self.goal.moonshot)

    def _reached(self, limit: float | None) -> bool | None:
        if self.spread is None or limit is None:
            return None
        return self.spread.median <= limit if self.goal.better == "less" else self.spread.median >= limit


@dataclass(frozen=True, slots=True)
class Result:
    """All that a scenario came to."""

    scenario: Scenario
    n_rounds: int
    measured: Sequence[Measured]
    verdicts: Sequence[Verdict]
    left_out: Mapping[str, str]
    seconds: float

    @property
    def invalid(self) -> list[Measured]:
        return [measured for measured in self.measured if measured.wrong is not None]

    @property
    def ahead(self) -> dict[str, list[str]]:
        """Default asyncloop → other systems whose first metric is better than its own, the best first, if there are any."""
        metric, sign = self.scenario.metrics[0].name, 1 if self.scenario.better == "less" else -1
        found = [one for one in self.measured if one.wrong is None and metric in one.spreads and not one.row.reference]
        keys = {one.row.name: sign * one.spreads[metric].median for one in found}
        others = sorted((one.row.name for one in found if one.row.family != "asyncloop"), key=lambda name: keys[name])
        ahead = {own: [name for name in others if keys[name] < keys[own]] for own in self.scenario.main if own in keys}
        return {own: names for own, names in ahead.items() if names}

    @property
    def missed(self) -> list[Verdict]:
        """Goals whose must was not reached."""
        return [verdict for verdict in self.verdicts if verdict.must is False]


def run_scenario(
    scenario: Scenario,
    n_rounds: int = 5,
    families: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
    budget_s: float = math.inf,
) -> Result:
    """Measure every row `n_rounds` times, in another order each round, references first. `families`: only these, if any.

    No round begins that would end later than `budget_s` after the first began, if it took as long as the one before.
    """
    wanted = [row for row in scenario.rows if row.reference or not families or row.family in families]
    left_out = {row.name: row.missing for row in wanted if row.missing is not None}
    rows = [row for row in wanted if row.missing is None]
    wrong: dict[str, str] = {}
    began = time.perf_counter()
    try:
        for row in rows:
            if row.prepare is not None:
                progress(f"{scenario.name}: {row.name} is prepared …")
                _guarded(row, row.prepare, wrong)
        rounds = _rounds(scenario.name, rows, n_rounds, wrong, progress, budget_s)
    finally:
        for row in rows:
            if row.finish is not None:
                row.finish()
    valid = [{name: reading for name, reading in one.items() if name not in wrong} for one in rounds]
    return Result(
        scenario,
        len(rounds),
        [_measured(row, scenario.metrics, valid, wrong.get(row.name)) for row in rows],
        [Verdict(goal, _judged(goal, valid)) for goal in scenario.goals],
        left_out,
        time.perf_counter() - began,
    )


def _rounds(
    name: str,
    rows: Sequence[Row],
    n_rounds: int,
    wrong: dict[str, str],
    progress: Callable[[str], None],
    budget_s: float,
) -> list[dict[str, Reading]]:
    rounds: list[dict[str, Reading]] = []
    first_began = time.perf_counter()
    for number in range(n_rounds):
        began, which = time.perf_counter(), f"{name}: round {number + 1} of {n_rounds}"
        rounds.append({})
        for row in _order(rows, number, n_rounds):
            if row.name not in wrong:
                progress(f"{which}, {row.name} …")
                _measure(row, rounds[-1], wrong)
        ended = time.perf_counter()
        progress(f"{which} took {ended - began:.1f} s\n")
        if 2 * ended - began - first_began > budget_s:
            break
    return rounds


def _order(rows: Sequence[Row], number: int, n_rounds: int) -> list[Row]:
    """References first, then the others, starting each round with another one: nobody always follows the same."""
    others = [row for row in rows if not row.reference]
    first = number * len(others) // n_rounds
    return [*(row for row in rows if row.reference), *others[first:], *others[:first]]


def _measure(row: Row, readings: dict[str, Reading], wrong: dict[str, str]) -> None:
    gc.collect()
    gc.freeze()  # what others have imported is no work for the collector while this row runs
    try:
        _guarded(row, lambda: readings.update({row.name: row.measure()}), wrong)
    finally:
        gc.unfreeze()


def _guarded(row: Row, do: Callable[[], None], wrong: dict[str, str]) -> None:
    """Do something for a row; if it raises, the row is wrong, and the others go on."""
    try:
        do()
    except WrongResult as error:
        wrong[row.name] = str(error)
    except Exception as error:
        wrong[row.name] = f"{type(error).__name__}: {error}"


def _measured(row: Row, metrics: Sequence[Metric], rounds: Sequence[Round], wrong: str | None) -> Measured:
    mine = [one for one in rounds if row.name in one]
    spreads: dict[str, Spread] = {}
    for metric in metrics:
        values = [_value(metric, one, row.name) for one in mine]
        numbers = tuple(value for value in values if value is not None)
        if numbers:
            spreads[metric.name] = Spread(numbers)
    return Measured(row, spreads, [one[row.name] for one in mine], wrong)


def _value(metric: Metric, one: Round, name: str) -> float | None:
    try:
        return metric.value(one, name)
    except KeyError:  # needs a reference that is invalid, or a quantity that this row does not have
        return None


def _judged(goal: Goal, rounds: Sequence[Round]) -> Spread | None:
    try:
        return Spread(tuple(goal.value(one) for one in rounds))
    except KeyError:
        return None


def check(job: Job, outcome: Outcome) -> None:
    """WrongResult unless every batch was run once, and every hook was given every batch once and in order, and is done."""
    if outcome.n_runs != job.n:
        raise WrongResult(f"the model ran {outcome.n_runs} times for {job.n} batches")
    if len(outcome.seen) < len(job.hooks):
        raise WrongResult(f"{len(outcome.seen)} of {len(job.hooks)} hooks said what they saw")
    for number, n_done in enumerate(outcome.n_done):
        if n_done != job.n:
            raise WrongResult(f"hook {number} was done with {n_done} of {job.n} batches when all was said to be over")
    expected = [int(batch["id"][0]) for batch in job.batches]
    for number, seen in enumerate(outcome.seen):
        ids = [int(source[0]) for source in seen]
        if ids != expected:
            raise WrongResult(f"hook {number} {_difference(ids, expected)}")


def _difference(ids: Sequence[int], expected: Sequence[int]) -> str:
    """In words how two sequences of batches differ."""
    if lost := sorted(set(expected) - set(ids)):
        return f"never saw batch {lost[0]}" + (f" and {len(lost) - 1} others" if len(lost) > 1 else "")
    if len(ids) != len(set(ids)):
        twice = next(batch for batch in ids if ids.count(batch) > 1)
        return f"saw batch {twice} more than once"
    at = next(at for at, (one, other) in enumerate(zip(ids, expected, strict=False)) if one != other)
    return f"saw batch {ids[at]} where {expected[at]} was due"


def timed(system: System, job: Job, steady_after: int = 200) -> Callable[[], Reading]:
    """A measurement: run `job`, check it, and read seconds per batch, over all and in steady state.

    Steady state begins when `steady_after` batches (or half of them, if there are fewer than twice that) are done.
    """

    def measure() -> Reading:
        outcome = system.run(job)
        check(job, outcome)
        return reading_of(job, outcome, steady_after)

    return measure


def reading_of(job: Job, outcome: Outcome, steady_after: int = 200) -> dict[str, float]:
    reading = {"batch_s": outcome.seconds / job.n, "steady_s": outcome.seconds / job.n}
    if outcome.busy_s:
        reading["busy_s"] = outcome.busy_s / job.n
    if len(outcome.marks) == job.n > 2:
        first = min(steady_after, job.n // 2) - 1
        reading["steady_s"] = (outcome.marks[-1] - outcome.marks[first]) / (job.n - 1 - first)
    return reading


def row(system: System, measure: Callable[[], Reading], *, reference: bool = False, **notes: Any) -> Row:
    """A row for a system, left out with a note if what it needs is not installed."""
    return Row(system.name, system.family, measure, reference, missing(system.needs), notes)
