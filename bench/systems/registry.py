"""What an adapter is, and all of them by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal, Protocol, TypeAlias

from bench.job import Job, Outcome

__all__ = ["Form", "System", "all_systems", "family_names", "missing", "named", "quieten"]

Form: TypeAlias = Literal["threads", "asyncio", "uvloop"]
"""How a system waits in loads and hooks. Sleeps overshoot differently, so each system is held against its own ideal."""


class System(Protocol):
    """One way to train. `run` builds everything anew; its docstring says what the clock holds."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str:
        """What `--systems` selects by."""
        ...

    @property
    def form(self) -> Form: ...
    @property
    def needs(self) -> tuple[str, ...]:
        """The modules it imports, when it runs."""
        ...

    def run(self, job: Job) -> Outcome: ...


def all_systems() -> dict[str, System]:
    """Every adapter by name. Importing this imports no peer."""
    from bench.systems.accelerate import Accelerate
    from bench.systems.asyncloop import ASYNCLOOPS
    from bench.systems.dataloader import DataLoaders
    from bench.systems.floor import TasksAndDeque
    from bench.systems.grain import Grain
    from bench.systems.ignite import Ignite
    from bench.systems.lightning import Lightning
    from bench.systems.naive import Naive
    from bench.systems.plain import PlainLoop
    from bench.systems.pool import ThreadPool
    from bench.systems.queue import ThreadQueue
    from bench.systems.spdl import Spdl
    from bench.systems.torch_model import TORCH_MODELS
    from bench.systems.torchdata import Torchdata

    systems: list[System] = [
        PlainLoop(),
        TasksAndDeque("asyncio"),
        TasksAndDeque("uvloop"),
        *ASYNCLOOPS,
        *TORCH_MODELS,
        ThreadQueue(),
        ThreadPool(),
        Naive("asyncio"),
        Naive("uvloop"),
        Ignite(None),
        *(Ignite(n_workers) for n_workers in (0, 2, 16)),
        *(Lightning(n_workers) for n_workers in (0, 2, 16)),
        Accelerate(),
        *(DataLoaders(n_workers) for n_workers in (0, 2, 16)),
        Spdl(thread_output_queue=False),
        Spdl(thread_output_queue=True),
        Grain(threads=False),
        Grain(threads=True),
        Torchdata(),
    ]
    return {system.name: system for system in systems}


def named(names: Iterable[str]) -> list[System]:
    """The systems of these names; KeyError for one that does not exist."""
    systems = all_systems()
    return [systems[name] for name in names]


def family_names() -> list[str]:
    return list(dict.fromkeys(system.family for system in all_systems().values()))


def missing(needs: Iterable[str]) -> str | None:
    """Why a system cannot run here, or None."""
    absent = [module for module in needs if not _installed(module)]
    return f"not installed: {', '.join(absent)}" if absent else None


def _installed(module: str) -> bool:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # the parent package of a dotted name
        return False
    return (
        found is not None and found.origin is not None
    )  # any folder of that name is found as a package without origin


def quieten() -> None:
    """Have the peers keep their warnings to themselves."""
    peers = "torch|torchdata|lightning|ignite|accelerate|grain|spdl|multiprocessing"
    warnings.filterwarnings("ignore", module=rf"({peers})\b")
