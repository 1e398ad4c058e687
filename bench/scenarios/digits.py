"""Digits: real small training steps with three metric hooks. Times the bare loop, same weights at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from bench.digits import BATCH_SIZE, Network, digits_job
from bench.harness import Goal, Metric, Plan, Reading, Row, Scenario, WrongResult, check, reading_of, row
from bench.job import Job, Outcome
from bench.scenarios.goals import buffer_goals, goals_of_main_rows
from bench.systems import System, named
from bench.systems.asyncloop import ASYNCLOOPS, MAIN
from bench.systems.plain import PlainLoop
from bench.systems.registry import missing

__all__ = ["TIMES_BARE", "beside_the_bare_loop", "cnn", "digits_scenario", "mlp", "without_hooks"]

PEERS = (
    "thread + queue",
    "naive asyncio",
    "naive uvloop",
    "ignite",
    "ignite + DataLoader(0)",
    "Lightning + DataLoader(0)",
    "accelerate + DataLoader(0)",
    "DataLoader(0)",
    "DataLoader(2)",
    "SPDL",
    "grain, no threads",
    "grain, threads",
    "torchdata nodes",
)

WITH_CNN = (
    "thread + queue",
    "naive uvloop",
    "ignite",
    "Lightning + DataLoader(0)",
    "accelerate + DataLoader(0)",
    "DataLoader(0)",
    "DataLoader(2)",
    "SPDL",
    "grain, no threads",
)
"""The longer step says less about each of them, and takes longer to say it."""

TIMES_BARE = Metric("bare loop", "×", lambda one, name: one[name]["batch_s"] / one[name]["bare_s"])
_TIMES = (
    Metric("a batch", "µs", lambda one, name: one[name]["batch_s"] * 1e6),
    Metric("examples", "1/s", lambda one, name: BATCH_SIZE / one[name]["batch_s"]),
)

QUICK_PEERS = ("thread + queue", "naive uvloop", "ignite", "DataLoader(0)", "SPDL", "grain, no threads")


def mlp(plan: Plan) -> Scenario:
    """An MLP whose step takes one or two hundred microseconds, most of them spent letting go of the lock and taking it."""
    return _digits(plan, "digits-mlp", "mlp", n=1500, must=1.20, moonshot=1.05)


def cnn(plan: Plan) -> Scenario:
    """A CNN whose step takes a millisecond or two, most of them in native code."""
    return _digits(plan, "digits-cnn", "cnn", n=300, must=1.03, moonshot=0.99)


def _digits(plan: Plan, name: str, network: Network, n: int, must: float, moonshot: float) -> Scenario:
    names = PEERS if network == "mlp" else WITH_CNN
    peers = [system for system in named(names) if not plan.quick or system.name in QUICK_PEERS]
    ours = [system for system in ASYNCLOOPS if system.source == "generator"]
    goals = [*goals_of_main_rows(TIMES_BARE, must, moonshot), *buffer_goals()]
    return digits_scenario(name, network, plan.n(n), [*ours, *peers], goals)


def digits_scenario(
    name: str,
    network: Network,
    n: int,
    systems: Sequence[System],
    goals: Sequence[Goal],
    main: Sequence[str] = MAIN,
    hookless: Sequence[System] = (),
) -> Scenario:
    """`n` batches of digits through each of `systems`, beside the bare loop; `hookless` also without hooks, in both."""
    return Scenario(
        name,
        f"{network.upper()} on handwritten digits, batches of 32, three metric hooks, one torch thread",
        _rows(n, network, systems, hookless),
        [TIMES_BARE, *_TIMES],
        goals,
        remarks=["The bare loop runs right before and right after each system; weights must equal its bit by bit."],
        main=main,
    )


def without_hooks(system: System) -> str:
    """The name of the row of a system that is measured without hooks too."""
    return f"{system.name}, no hooks"


def _rows(n: int, network: Network, systems: Sequence[System], hookless: Sequence[System]) -> list[Row]:
    if note := missing(("torch",)):
        names = [("bare loop", "plain"), *((system.name, system.family) for system in systems)]
        names += [(without_hooks(system), system.family) for system in hookless]
        return [Row(name, family, dict[str, float], name == "bare loop", note) for name, family in names]
    job = digits_job(n, network)
    expected = cache(lambda: PlainLoop().run(job))
    bare_loop = beside_the_bare_loop(PlainLoop(), job, expected)
    bare = Row("bare loop", "plain", bare_loop, reference=True, notes={"batches": n})
    with_hooks = [row(system, beside_the_bare_loop(system, job, expected), batches=n) for system in systems]
    quiet = replace(job, hooks=())
    without = [
        replace(row(system, beside_the_bare_loop(system, quiet, expected), batches=n), name=without_hooks(system))
        for system in hookless
    ]
    return [bare, *with_hooks, *without]


def beside_the_bare_loop(system: System, job: Job, bare_loops: Callable[[], Outcome]) -> Callable[[], Reading]:
    """Measures a system between two short runs of the bare loop, which drifts by more than a good loop costs.

    `bare_loops`: what came of the bare loop. Weights must be the same bit by bit, and so must the hooks' means.
    """
    bare, half = PlainLoop(), replace(job, batches=job.batches[: job.n // 2])

    def measure() -> Reading:
        expected, before = bare_loops(), bare.run(half).seconds
        outcome = system.run(job)
        after = bare.run(half).seconds
        check(job, outcome)
        if outcome.weights != expected.weights:
            raise WrongResult("the final weights are not those of the bare loop")
        if job.hooks and outcome.told != expected.told:
            raise WrongResult(f"the hooks came to {outcome.told}, those of the bare loop to {expected.told}")
        return {**reading_of(job, outcome), "bare_s": (before + after) / 2 / half.n}

    return measure
