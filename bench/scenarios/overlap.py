"""Overlap: loads, steps and hooks that wait. The share of the ideal, which is the slowest stage measured alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bench.harness import Goal, Metric, Plan, Reading, Round, Row, Scenario, row, timed
from bench.job import Job, MakeModel, Saves, make_batches
from bench.loops import needs_of, run_on
from bench.scenarios.goals import buffer_goals, goals_of_main_rows
from bench.stages import NoOp, SleepHook, Sleeping, SleepLoad, Spinning, UnevenLoad
from bench.systems.asyncloop import MAIN
from bench.systems.pool import ThreadPool
from bench.systems.registry import Form, System, all_systems, missing

__all__ = ["checkpoint", "gil", "hooks", "hooks_wide", "io", "io_uneven", "triple"]

OURS = (
    *MAIN,
    *(f"asyncloop uvloop, buffer {buffer}" for buffer in (0, 8, 64)),
    *(f"asyncloop asyncio, buffer {buffer}" for buffer in (0, 64)),
)

PIPELINED = (
    "naive uvloop",
    "thread pool",
    "SPDL",
    "SPDL, thread output queue",
    "grain, threads",
    "torchdata nodes",
    "DataLoader(16)",
    "DataLoader(2)",
    "Lightning + DataLoader(16)",
)
"""Peers that load while the model runs."""

SERIAL = (
    "plain loop",
    "thread + queue",
    "ignite",
    "Lightning + DataLoader(0)",
    "accelerate + DataLoader(0)",
    "DataLoader(0)",
    "grain, no threads",
)
"""Peers that do one thing after the other, or load one batch at a time: few batches say all."""

FLOORS = ("floor: tasks + deque, uvloop", "floor: tasks + deque, asyncio")
"""What is left of the ideal when nothing is done but to load and to run; shown where that is little."""

SAME_THERE = ("SPDL, thread output queue", "torchdata nodes", "grain, no threads", "accelerate + DataLoader(0)")
"""Loaders that differ from those shown in how they load only."""

QUICK_PEERS = ("plain loop", "thread pool", "naive uvloop", "SPDL", "grain, threads")


N_ALONE = 60
"""Batches of a stage on its own, twice a round."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What a scenario of this family is made of."""

    job: Job
    n_ours: int
    n_peers: int
    n_serial: int
    last_write_s: float = 0.0
    """Seconds after the last step that no system can hide."""

    def of(self, n: int) -> Job:
        return replace(self.job, batches=self.job.batches[:n])


def io(plan: Plan) -> Scenario:
    """Loads that wait, sixteen at once."""
    stages = _stages(plan, _sleeping(plan, 2e-3), load=SleepLoad(plan.seconds(5e-3)))
    return _overlap(plan, "io", "load 5 ms (16 at once), model 2 ms", stages, must=96, moonshot=98.5)


def io_uneven(plan: Plan) -> Scenario:
    """Loads of which one in eight takes much longer; order is kept."""
    stages = _stages(plan, _sleeping(plan, 3e-3), load=UnevenLoad(plan.seconds(1e-3), plan.seconds(20e-3)))
    title = "load 1 ms, one in eight 20 ms (16 at once), model 3 ms"
    return _overlap(plan, "io-uneven", title, stages, must=98, moonshot=99.5)


def hooks(plan: Plan) -> Scenario:
    """A hook that takes as long as the step."""
    stages = _stages(plan, _sleeping(plan, 5e-3), hook=SleepHook(plan.seconds(5e-3)))
    return _overlap(plan, "hooks", "model 5 ms, hook 5 ms", stages, must=95, moonshot=99)


def hooks_wide(plan: Plan) -> Scenario:
    """A hook that takes longer than the step and may handle four batches at once."""
    stages = _stages(plan, _sleeping(plan, 2e-3), hook=SleepHook(plan.seconds(5e-3)), hook_concurrency=4)
    return _overlap(plan, "hooks-wide", "model 2 ms, hook 5 ms (4 at once)", stages, must=95, moonshot=99)


def triple(plan: Plan) -> Scenario:
    """Everything at once."""
    stages = _stages(
        plan,
        _sleeping(plan, 4e-3),
        load=SleepLoad(plan.seconds(5e-3)),
        hook=SleepHook(plan.seconds(4e-3)),
    )
    title = "load 5 ms (16 at once), model 4 ms, hook 4 ms"
    stages = replace(stages, n_peers=stages.n_ours, n_serial=plan.n(100))  # speed-ups are of the same work
    speedups = [_speedup(name, against, must, moonshot) for name in MAIN for against, must, moonshot in SPEEDUPS]
    return _overlap(plan, "triple", title, stages, must=95, moonshot=99, goals=speedups)


def gil(plan: Plan) -> Scenario:
    """A model in pure Python, which holds the interpreter lock, and loads that wait."""
    stages = _stages(plan, Spinning.lasting(plan.seconds(2e-3)), load=SleepLoad(plan.seconds(5e-3)))
    title = "load 5 ms (16 at once), model 2 ms of pure Python"
    remark = (
        "A processor's speed drifts by more than a good loop costs: the ideal is the CPU time of the model's own steps "
        "in the very run, which waiting for the interpreter lock does not add to. What a system costs the step's own time, "
        "by taking caches or a shared core, is in the second column only: the share of the model alone in the same round."
    )
    return _overlap(plan, "gil", title, stages, must=97, moonshot=99, remarks=[remark])


def checkpoint(plan: Plan) -> Scenario:
    """A checkpoint every fifty batches, whose write takes as long as forty steps."""
    every = plan.n(50, 3)
    saves = Saves(every, plan.seconds(every * 4e-3))
    stages = _stages(plan, _sleeping(plan, 5e-3), saves=saves)
    remark = (
        "The ideal is the model alone and the last write, which nothing can hide. asyncloop writes checkpoints of its "
        "own, on a disk that takes 200 ms to sync; the others sleep as long in a callback."
    )
    title = "model 5 ms, a write of 200 ms every 50 batches"
    return _overlap(plan, "checkpoint", title, stages, must=97, moonshot=99.5, remarks=[remark])


SPEEDUPS = (("the best peer", 1.9, 1.98), ("plain loop", 3.0, 3.2))


def _speedup(name: str, against: str, must: float, moonshot: float) -> Goal:
    def value(one: Round) -> float:
        peers = PEER_NAMES if against == "the best peer" else (against,)
        others = [one[peer]["batch_s"] for peer in peers if peer in one]
        if not others:
            raise KeyError(against)
        return min(others) / one[name]["batch_s"]

    return Goal(f"{name}, speed-up over {against}", value, "×", must, moonshot, "more")


PEER_NAMES = (*PIPELINED, *SERIAL)


def _sleeping(plan: Plan, seconds: float) -> MakeModel:
    return lambda: Sleeping(plan.seconds(seconds))


def _stages(
    plan: Plan,
    make_model: MakeModel,
    load: SleepLoad | UnevenLoad | None = None,
    hook: SleepHook | None = None,
    hook_concurrency: int = 1,
    saves: Saves | None = None,
) -> Stages:
    n = 200 if plan.quick else plan.n(300)
    if saves is not None:
        n = 6 * saves.every
    waits_for_hooks = hook is not None  # then a hundred batches say it; what overlaps gets as many as we do
    n_peers, n_serial = (n, n) if saves is not None else (plan.n(100, 60) if waits_for_hooks else n, plan.n(50))
    hook_work = () if hook is None else (hook,)
    job = Job(make_batches(n), make_model, hook_work, load, 1 if load is None else 16, hook_concurrency, saves)
    return Stages(job, n, n_peers, n_serial, last_write_s=0.0 if saves is None else saves.seconds)


def _overlap(
    plan: Plan,
    name: str,
    title: str,
    stages: Stages,
    must: float,
    moonshot: float,
    goals: Sequence[Goal] = (),
    remarks: Sequence[str] = (),
) -> Scenario:
    systems = all_systems()
    floors = FLOORS if name == "gil" else ()
    forms: dict[str, Form] = {name: systems[name].form for name in (*OURS, *floors, *PEER_NAMES)}

    def share(one: Round, name: str) -> float | None:
        if name not in forms:
            return None
        ideal_s = _slowest(one, forms[name], name) + stages.last_write_s / one[name]["n"]
        return 100 * ideal_s / one[name]["batch_s"]

    def share_of_the_model(one: Round, name: str) -> float | None:
        if name not in forms:
            return None
        return 100 * _model_alone_s(one) / one[name]["batch_s"]

    def steady(one: Round, name: str) -> float | None:
        return one[name]["steady_s"] * 1e3 if name in OURS else None

    metric = Metric("of the ideal", "%", share)
    rows = [_ideal(form, stages) for form in ("threads", "asyncio", "uvloop")]
    rows += [_row(systems[one], stages.of(stages.n_ours), reference=True) for one in floors]
    for names, n in ((OURS, stages.n_ours), (PIPELINED, stages.n_peers), (SERIAL, stages.n_serial)):
        rows += [_row(systems[one], stages.of(n)) for one in _chosen(names, plan, name)]
    judged = [*goals_of_main_rows(metric, must, moonshot, more=True), *goals]
    return Scenario(
        name,
        title,
        rows,
        [
            metric,
            *([Metric("of the model alone", "%", share_of_the_model)] if floors else []),
            Metric("a batch", "ms", lambda one, name: one[name]["batch_s"] * 1e3),
            Metric("in steady state", "ms", steady),
        ],
        judged if name == "checkpoint" else [*judged, *buffer_goals()],
        better="more",
        remarks=[
            "The ideal is the slowest stage alone in the same round, in the form (threads, asyncio, uvloop) in which a "
            "system waits. Filling and draining the pipeline is in the figures, not in steady state.",
            *remarks,
        ],
    )


def _chosen(names: Iterable[str], plan: Plan, scenario: str) -> list[str]:
    """The rows that have something to say: where nothing is loaded, one loader is like another."""
    chosen = [name for name in names if not plan.quick or name in OURS or name in QUICK_PEERS]
    if scenario in ("hooks", "hooks-wide", "checkpoint"):
        chosen = [name for name in chosen if "(2)" not in name and "(16)" not in name and name not in SAME_THERE]
    if scenario == "checkpoint":
        return [name for name in chosen if "buffer" not in name and "thread" not in name]
    if scenario == "triple":
        return [name for name in chosen if "(2)" not in name and "output queue" not in name]
    return chosen


def _row(system: System, job: Job, *, reference: bool = False) -> Row:
    measure = timed(system, job)
    return row(system, lambda: {**measure(), "n": job.n}, reference=reference, batches=job.n)


def _ideal(form: Form, stages: Stages) -> Row:
    """The slowest stage alone, as a system of this form would wait in it."""
    job = stages.of(N_ALONE)

    def measure() -> Reading:
        first, second = _alone(form, job), _alone(form, job)
        alone = {stage: min(seconds, second[stage]) for stage, seconds in first.items()}
        return {"batch_s": max(alone.values()), **alone}

    return Row(
        f"ideal, {form}", "plain", measure, reference=True, missing=missing(needs_of(form)), notes={"batches": job.n}
    )


def _slowest(one: Round, form: Form, name: str) -> float:
    """Seconds a batch of the slowest stage. An ideal takes the least of what it is measured: noise must flatter nobody."""
    alone = dict(one[f"ideal, {form}"])
    alone["model_s"] = one[name].get("busy_s", _model_alone_s(one))
    return max(alone[stage] for stage in ("model_s", "load_s", "hook_s") if stage in alone)


def _model_alone_s(one: Round) -> float:
    """Seconds a batch of the model alone, the least of what was measured of it."""
    return min(reading["model_s"] for reading in one.values() if "model_s" in reading)


def _alone(form: Form, job: Job) -> dict[str, float]:
    """Seconds a batch of each stage that the job has."""
    alone = {"model_s": _model_alone(job)}
    if job.load is not None:
        alone["load_s"] = _loads_in_threads(job) if form == "threads" else _on_a_loop(form, _loads, job)
    if job.hooks:
        alone["hook_s"] = _hook_in_thread(job) if form == "threads" else _on_a_loop(form, _hook, job)
    return alone


def _model_alone(job: Job) -> float:
    model = job.make_model()
    began = time.perf_counter()
    for batch in job.batches:
        model.run(batch)
    return (time.perf_counter() - began) / job.n


def _loads_in_threads(job: Job) -> float:
    nothing = Job(job.batches, NoOp, load=job.load, load_concurrency=job.load_concurrency)
    return ThreadPool().run(nothing).seconds / job.n


def _hook_in_thread(job: Job) -> float:
    """One after the other: a thread handles one batch at a time."""
    n = max(job.n // 4, 10)
    began = time.perf_counter()
    for batch in job.batches[:n]:
        for hook in job.hooks:
            if hook is not None:
                hook.blocking(batch, {})
    return (time.perf_counter() - began) / min(n, job.n) / job.hook_concurrency


def _on_a_loop(form: Form, stage: Callable[[Job], object], job: Job) -> float:
    async def main() -> float:
        began = time.perf_counter()
        await stage(job)  # pyright: ignore[reportGeneralTypeIssues]
        return (time.perf_counter() - began) / job.n

    return run_on(form, main)


async def _loads(job: Job) -> None:
    indices = iter(range(job.n))

    async def worker() -> None:
        for index in indices:
            await job.fetch_async(index)

    await asyncio.gather(*(worker() for _ in range(job.load_concurrency)))


async def _hook(job: Job) -> None:
    batches = iter(job.batches)

    async def worker() -> None:
        for batch in batches:
            for hook in job.hooks:
                if hook is not None:
                    await hook.waiting(batch, {})

    await asyncio.gather(*(worker() for _ in range(job.hook_concurrency)))
