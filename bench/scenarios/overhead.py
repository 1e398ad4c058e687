"""Overhead: what a loop costs when the model does nothing, or little. Microseconds per batch above the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.harness import Goal, Metric, Plan, Reading, Round, Row, Scenario, check, reading_of, row, timed
from bench.job import Job, make_batches
from bench.scenarios.goals import buffer_goals, goals_of_main_rows
from bench.stages import Hashing, NoOp
from bench.systems import System, named
from bench.systems.asyncloop import ASYNCLOOPS, MAIN
from bench.systems.plain import PlainLoop

__all__ = ["buffer_8", "noop", "noop_hooks", "step_200us"]

PLAIN = "plain loop"

PEERS = (
    ("thread + queue", 20_000),
    ("thread pool", 10_000),
    ("naive asyncio", 2000),
    ("naive uvloop", 2000),
    ("ignite", 20_000),
    ("ignite + DataLoader(0)", 10_000),
    ("ignite + DataLoader(2)", 2000),
    ("Lightning + DataLoader(0)", 2000),
    ("Lightning + DataLoader(2)", 1000),
    ("accelerate + DataLoader(0)", 10_000),
    ("DataLoader(0)", 10_000),
    ("DataLoader(2)", 2000),
    ("DataLoader(16)", 2000),
    ("SPDL", 2000),
    ("SPDL, thread output queue", 2000),
    ("grain, no threads", 10_000),
    ("grain, threads", 5000),
    ("torchdata nodes", 5000),
)
"""Peers and how many batches they get: about a third of a second each. Figures are per batch."""

QUICK_PEERS = ("thread + queue", "thread pool", "naive asyncio", "naive uvloop", "grain, no threads", "SPDL")

N_BATCHES = 100_000


def above_plain(one: Round, name: str) -> float:
    return (one[name]["batch_s"] - one[PLAIN]["batch_s"]) * 1e6


ABOVE = Metric("above the plain loop", "µs/batch", above_plain)
TOTAL = Metric("in all", "µs/batch", lambda one, name: one[name]["batch_s"] * 1e6)
TIMES = Metric("plain loop", "×", lambda one, name: one[name]["batch_s"] / one[PLAIN]["batch_s"])


def noop(plan: Plan) -> Scenario:
    """Nothing but the loop."""
    goals = [
        *goals_of_main_rows(ABOVE, must=3, moonshot=0.5),
        *(_in_memory(name) for name in MAIN),
        *_ratios(),
        *buffer_goals(),
    ]
    return _noop(plan, "noop", "a model that does nothing, no hooks", n_hooks=0, goals=goals)


def noop_hooks(plan: Plan) -> Scenario:
    """The loop and the event bus."""
    goals = [*goals_of_main_rows(ABOVE, must=4, moonshot=1), *_ratios(), *buffer_goals()]
    return _noop(plan, "noop-hooks", "a model that does nothing, five hooks", n_hooks=5, goals=goals)


def _noop(plan: Plan, name: str, title: str, n_hooks: int, goals: Sequence[Goal]) -> Scenario:
    batches = make_batches(plan.n(N_BATCHES, 200))

    def job(n: int) -> Job:
        return Job(batches[: plan.n(n, 200)], NoOp, [None] * n_hooks)

    systems = [(system, N_BATCHES) for system in (PlainLoop(), *ASYNCLOOPS)]
    systems += [(system, n) for system, (_, n) in zip(named(n for n, _ in PEERS), PEERS, strict=True)]
    rows = [
        row(system, timed(system, job(n)), reference=system.name == PLAIN, batches=plan.n(n, 200))
        for system, n in systems
        if not plan.quick or system.family in ("plain", "asyncloop") or system.name in QUICK_PEERS
    ]
    remarks = ["The plain loop walks the same generator. Slow systems get fewer batches; all figures are per batch."]
    return Scenario(name, title, rows, [ABOVE, TOTAL, TIMES], goals, remarks=remarks)


def _in_memory(main: str) -> Goal:
    source = f"{main}, list"
    return Goal(f"{source}, {ABOVE.name}", lambda one: above_plain(one, source), ABOVE.unit, 3, 0.1)


def _ratios() -> list[Goal]:
    """How many times asyncloop's time per batch the others take (the whole time, not what is above the plain loop)."""
    against = [("Lightning + DataLoader(0)", 30, 100), ("SPDL", 30, 100), ("naive uvloop", 15, 60)]
    return [_ratio(name, must, moonshot) for name, must, moonshot in against]


def _ratio(name: str, must: float, moonshot: float) -> Goal:
    def value(one: Round) -> float:
        return one[name]["batch_s"] / one[MAIN[0]]["batch_s"]

    return Goal(f"{name} : {MAIN[0]}", value, "×", must, moonshot, "more")


def buffer_8(plan: Plan) -> Scenario:
    """A small buffer: as many wake-ups as a hand-over can need."""
    n = plan.n(40_000, 200)
    job = Job(make_batches(n), NoOp)
    names = [PLAIN, *(f"{main}, buffer 8" for main in MAIN)]
    rows = [row(system, timed(system, job), reference=system.name == PLAIN, batches=n) for system in named(names)]
    goals = [_buffer_8(name) for name in names[1:]]
    return Scenario("buffer-8", "a model that does nothing, a buffer of eight batches", rows, [TOTAL, ABOVE], goals)


def _buffer_8(name: str) -> Goal:
    return Goal(f"{name}, in all", lambda one: one[name]["batch_s"] * 1e6, "µs/batch", 10, 3)


STEP_PEERS = (
    "thread + queue",
    "thread pool",
    "naive asyncio",
    "naive uvloop",
    "ignite",
    "ignite + DataLoader(0)",
    "Lightning + DataLoader(0)",
    "accelerate + DataLoader(0)",
    "DataLoader(0)",
    "DataLoader(2)",
    "SPDL",
    "SPDL, thread output queue",
    "grain, no threads",
    "grain, threads",
    "torchdata nodes",
)


def step_200us(plan: Plan) -> Scenario:
    """A short step that lets go of the interpreter lock: what the loop adds to it, contention included."""
    n = plan.n(1500)
    make_model = Hashing.lasting(plan.seconds(200e-6))
    job = Job(make_batches(n), make_model, [None] * 5)
    alone = Job(job.batches[: n // 2], make_model)
    systems = [*named([PLAIN]), *(s for s in ASYNCLOOPS if s.source == "generator"), *named(STEP_PEERS)]
    rows = [Row("the model alone", "plain", _between(PlainLoop(), alone, alone), reference=True, notes={"batches": n})]
    rows += [row(system, _between(system, job, alone), batches=n) for system in systems]
    above = Metric(
        "above the model's own time", "µs/batch", lambda one, name: (one[name]["batch_s"] - one[name]["alone_s"]) * 1e6
    )
    total = Metric("in all", "µs/batch", lambda one, name: one[name]["batch_s"] * 1e6)
    goals = [*goals_of_main_rows(above, must=10, moonshot=3), *buffer_goals()]
    remarks = ["The model runs alone right before and right after each system; their mean is taken off."]
    title = "a step of 200 µs without the interpreter lock, five hooks"
    return Scenario("step-200us", title, rows, [above, total], goals, remarks=remarks)


def _between(system: System, job: Job, alone: Job) -> Callable[[], Reading]:
    """Measures a system between two runs of the model alone: 200 µs drift by more than a loop may cost."""

    def measure() -> Reading:
        before = _model_alone(alone)
        outcome = system.run(job)
        after = _model_alone(alone)
        check(job, outcome)
        return {**reading_of(job, outcome), "alone_s": (before + after) / 2}

    return measure


def _model_alone(job: Job) -> float:
    return PlainLoop().run(job).seconds / job.n
