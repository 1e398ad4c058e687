"""World: the processes that train one model together. Started by a launcher with the same command, each with its part of the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from asyncloop.errors import ConfigError

__all__ = ["Launch", "World", "launched"]


class World(Protocol):
    """A model that is trained by several processes has one as its `world`. `rank` counts from 0; the first one writes.

    Both channels are used by one thread at a time and by all processes in the same order.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value (of JSON), in the order of ranks. Blocks until all have called it. Thread: the model's.

        Raises PeerError, with its reason if it could tell, when a process has gone.
        """
        ...

    def gather_beside(self, value: Any) -> list[Any]:
        """The same on a channel of its own, for the thread that writes checkpoints."""
        ...

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, so that they end, too. Any thread; does not wait."""
        ...


@dataclass(frozen=True, slots=True)
class Launch:
    """Who this process is among `size`; `local_rank` counts those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


_LAUNCHERS: Mapping[str, tuple[str, str, str]] = {
    "MASTER_ADDR": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "SLURM_STEP_ID": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
"""A variable that torchrun or srun sets → those that say who is who."""


def launched() -> Launch:
    """What the launcher says; alone if there is none."""
    for launcher, names in _LAUNCHERS.items():
        values = [os.environ.get(name, "") for name in names]
        if launcher not in os.environ:
            continue
        if all(value.isdecimal() for value in values):
            return Launch(*map(int, values))
        if values[1].isdecimal() and int(values[1]) > 1:
            lacking = ", ".join(name for name, value in zip(names, values, strict=True) if not value.isdecimal())
            raise ConfigError(
                f"{names[1]} is {values[1]}, so {values[1]} processes are to train together, but {lacking} does not say which "
                "one this is; torchrun and srun set it, and so must any other launcher"
            )
    return Launch()
