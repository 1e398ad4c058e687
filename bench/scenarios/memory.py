"""Memory: what a run of a million batches keeps, and what is left of ten million in a thousand epochs."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Goal, Metric, Plan, Reading, Row, Scenario
from bench.loops import needs_of
from bench.probes import probed
from bench.scenarios.goals import goal_of_reading
from bench.systems.asyncloop import MAIN
from bench.systems.registry import missing

__all__ = ["memory", "soak"]

GROWTH = Metric("growth", "MiB", lambda one, name: one[name]["growth_mib"])
SECOND_HALF = Metric("of it in the second half", "MiB", lambda one, name: one[name]["second_half_mib"])


def memory(plan: Plan) -> Scenario:
    """Whether a long run grows."""
    n = plan.n(1_000_000, 2000)
    metrics = [
        GROWTH,
        SECOND_HALF,
        Metric("in all", "MiB", lambda one, name: one[name]["peak_mib"]),
        Metric("slower in the second half", "%", lambda one, name: one[name]["drift_percent"]),
    ]
    title = f"resident memory from batch {n // 10:,} to {n:,}, no-op model, two hooks"
    goals = _goals(0.25, "slower in the second half")
    return Scenario("memory", title, _rows("memory", n // 10, n), metrics, goals)


def soak(plan: Plan) -> Scenario:
    """Whether many epochs leave something behind, or slow down."""
    n_epochs, n = plan.n(1000, 20), plan.n(10_000, 50)
    metrics = [
        GROWTH,
        SECOND_HALF,
        Metric("in all", "MiB", lambda one, name: one[name]["resident_mib"]),
        Metric("a batch", "µs", lambda one, name: one[name]["batch_us"]),
        Metric("slower", "%", lambda one, name: one[name]["drift_percent"]),
        Metric("by the medians", "%", lambda one, name: one[name]["median_percent"]),
        Metric("by the clock", "%", lambda one, name: one[name]["clock_percent"]),
    ]
    title = f"{n_epochs:,} epochs of {n:,} batches, no-op model, three hooks, evaluations, checkpoints"
    goals = _goals(0.0, "slower in the last fifth")
    remarks = [
        f"Growth from epoch {n_epochs // 20} on, after a collection; "
        "threads (±1), descriptors (±2) and tasks are as many at the end.",
        "Slower: the last fifth against the first, each beside a young run in turn with it, by the quickest tenth.",
    ]
    rows = _rows("soak", n_epochs, n)
    return Scenario("soak", title, rows, metrics, goals, remarks=remarks, n_rounds=1)


def _goals(least_growth_mib: float, slower: str) -> list[Goal]:
    goals = (("growth", "growth_mib", "MiB", 5.0, least_growth_mib), (slower, "drift_percent", "%", 5.0, 1.0))
    return [goal_of_reading(name, *goal) for name in MAIN for goal in goals]


def _rows(probe: str, *arguments: int) -> list[Row]:
    return [
        Row("plain loop", "plain", _sample(probe, "plain", arguments), reference=True),
        Row("asyncloop uvloop", "asyncloop", _sample(probe, "uvloop", arguments), missing=missing(needs_of("uvloop"))),
        Row("asyncloop asyncio", "asyncloop", _sample(probe, "asyncio", arguments)),
    ]


def _sample(probe: str, loop: str, arguments: tuple[int, ...]) -> Callable[[], Reading]:
    return lambda: probed(probe, loop, *map(str, arguments))
