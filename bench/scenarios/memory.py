"""Memory: what a run of a million batches keeps."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Metric, Plan, Reading, Row, Scenario
from bench.loops import needs_of
from bench.probes import probed
from bench.scenarios.goals import goal_of_reading
from bench.systems.asyncloop import MAIN
from bench.systems.registry import missing

__all__ = ["memory"]


def memory(plan: Plan) -> Scenario:
    """Whether a long run grows."""
    n = plan.n(1_000_000, 2000)
    rows = [
        Row("plain loop", "plain", _sample("plain", n), reference=True),
        Row("asyncloop uvloop", "asyncloop", _sample("uvloop", n), missing=missing(needs_of("uvloop"))),
        Row("asyncloop asyncio", "asyncloop", _sample("asyncio", n)),
    ]
    metrics = [
        Metric("growth", "MiB", lambda one, name: one[name]["growth_mib"]),
        Metric("of it in the second half", "MiB", lambda one, name: one[name]["second_half_mib"]),
        Metric("in all", "MiB", lambda one, name: one[name]["peak_mib"]),
        Metric("slower in the second half", "%", lambda one, name: one[name]["drift_percent"]),
    ]
    goals = [goal_of_reading(name, *goal) for name in MAIN for goal in GOALS]
    title = f"resident memory from batch {n // 10:,} to {n:,}, no-op model, two hooks"
    return Scenario("memory", title, rows, metrics, goals)


GOALS = (
    ("growth", "growth_mib", "MiB", 5.0, 0.25),
    ("slower in the second half", "drift_percent", "%", 5.0, 1.0),
)


def _sample(loop: str, n: int) -> Callable[[], Reading]:
    return lambda: probed("memory", loop, str(n // 10), str(n))
