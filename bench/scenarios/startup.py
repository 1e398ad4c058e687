"""Start-up: seconds to import, milliseconds to the first batch, memory. One fresh process a sample."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Goal, Metric, Plan, Reading, Round, Row, Scenario
from bench.probes import probed
from bench.scenarios.goals import goal_of_row
from bench.systems.asyncloop import MAIN
from bench.systems.registry import missing

__all__ = ["startup"]

NUMPY = "plain loop (numpy only)"

SYSTEMS = (
    # row, family, probe, what it needs
    (NUMPY, "plain", "plain", ()),
    ("asyncloop uvloop", "asyncloop", "asyncloop-uvloop", ("uvloop",)),
    ("asyncloop asyncio", "asyncloop", "asyncloop-asyncio", ()),
    ("naive asyncio", "naive", "naive", ()),
    ("SPDL", "spdl", "spdl", ("spdl.pipeline",)),
    ("grain", "grain", "grain", ("grain",)),
    ("DataLoader(0)", "dataloader", "dataloader-0", ("torch",)),
    ("DataLoader(2)", "dataloader", "dataloader-2", ("torch",)),
    ("torchdata nodes", "torchdata", "torchdata", ("torchdata.nodes",)),
    ("accelerate + DataLoader(0)", "accelerate", "accelerate", ("torch", "accelerate")),
    ("ignite", "ignite", "ignite", ("torch", "ignite")),
    ("Lightning + DataLoader(0)", "lightning", "lightning", ("torch", "lightning")),
)


def over_numpy(one: Round, name: str) -> float:
    return one[name]["peak_mib"] - one[NUMPY]["peak_mib"]


IMPORT = Metric("import, loop started", "s", lambda one, name: one[name]["import_s"])
FIRST = Metric("iterator to first batch", "ms", lambda one, name: one[name]["first_ms"])
MEMORY = Metric("peak memory over numpy's", "MiB", over_numpy)
CHILD = Metric("largest child", "MiB", lambda one, name: one[name]["child_mib"] or None)


def startup(plan: Plan) -> Scenario:
    """What it costs to begin."""
    rows = [
        Row(name, family, _sample(probe), reference=name == NUMPY, missing=missing(needs))
        for name, family, probe, needs in SYSTEMS
    ]
    goals: list[Goal] = []
    for name in MAIN:
        goals += [
            goal_of_row(IMPORT, name, 0.20, 0.10),
            goal_of_row(FIRST, name, 5, 1),
            goal_of_row(MEMORY, name, 20, 10),
        ]
    remarks = [
        "The import includes numpy's, and the import and start of the event loop where the program has one of its own."
    ]
    return Scenario("startup", "a fresh process", rows, [IMPORT, FIRST, MEMORY, CHILD], goals, remarks=remarks)


def _sample(probe: str) -> Callable[[], Reading]:
    return lambda: probed("startup", probe)
