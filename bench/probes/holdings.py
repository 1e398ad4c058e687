"""What the process holds: resident memory, threads, descriptors, tasks."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import threading
from dataclasses import dataclass
from typing import Self

__all__ = ["Holdings", "resident_mib"]

MOST_MORE = {"threads": 1, "descriptors": 2, "tasks": 0}
"""By how much each count may differ between two moments of the same kind."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts at one moment; `resident_mib` after a collection."""

    resident_mib: float
    threads: int
    descriptors: int
    tasks: int

    @classmethod
    def now(cls) -> Self:
        """Called in a running asyncio or uvloop loop."""
        gc.collect()
        return cls(resident_mib(), n_threads(), len(os.listdir("/dev/fd")), len(asyncio.all_tasks()))

    def check(self, before: Holdings, what: str) -> None:
        """SystemExit if a count is not what it was `before`; `what`: between which moments."""
        for name, most in MOST_MORE.items():
            was, found = getattr(before, name), getattr(self, name)
            if abs(found - was) > most:
                raise SystemExit(f"{what} the number of {name} went from {was} to {found}")


def resident_mib() -> float:
    """Resident memory now; where the system does not tell, its peak so far."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def n_threads() -> int:
    """All threads of the process; where the system does not tell, those that Python knows."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()
