"""Memory: what a run of a million batches keeps."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Goal, Metric, Plan, Reading, Round, Row, Scenario
from bench.probes import probed
from bench.systems.registry import missing

__all__ = ["memory"]


def memory(plan: Plan) -> Scenario:
    """Whether a long run grows."""
    n = plan.n(1_000_000, 2000)
    rows = [
        Row("plain loop", "plain", _sample("plain", n), reference=True),
        Row("asyncloop uvloop", "asyncloop", _sample("uvloop", n), missing=missing(("uvloop",))),
        Row("asyncloop asyncio", "asyncloop", _sample("asyncio", n)),
    ]
    metrics = [
        Metric("growth", "MiB", lambda one, name: one[name]["growth_mib"]),
        Metric("of it in the second half", "MiB", lambda one, name: one[name]["second_half_mib"]),
        Metric("in all", "MiB", lambda one, name: one[name]["peak_mib"]),
        Metric("slower in the second half", "%", lambda one, name: one[name]["drift_percent"]),
    ]
    goals = [_goal(name, key) for name in ("asyncloop uvloop", "asyncloop asyncio") for key in GOALS]
    title = f"resident memory from batch {n // 10:,} to {n:,}, no-op model, two hooks"
    return Scenario("memory", title, rows, metrics, goals)


GOALS = {"growth_mib": ("growth", "MiB", 5.0, 0.25), "drift_percent": ("slower in the second half", "%", 5.0, 1.0)}


def _sample(loop: str, n: int) -> Callable[[], Reading]:
    return lambda: probed("memory", loop, str(n // 10), str(n))


def _goal(row: str, key: str) -> Goal:
    text, unit, must, moonshot = GOALS[key]

    def value(one: Round) -> float:
        return one[row][key]

    return Goal(f"{row}, {text}", value, unit, must, moonshot)
