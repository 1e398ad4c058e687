"""Peers: what several processes that train one model have to agree on, and when.

Each runs the same engine with the same plan over its part of each batch, so they stop at the same steps by themselves.
What is asked of one of them (a stop, a checkpoint, an evaluation) is noted there, told to all at the next step that all
look at, and acts at that step in each. They look at least every LOOK_STEPS steps or LOOK_S seconds, whichever is sooner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from asyncloop.control import Control
from asyncloop.errors import PeerError
from asyncloop.model_thread import ModelThread
from asyncloop.stats import WeightedMeans
from asyncloop.world import World

__all__ = ["LOOK_S", "LOOK_STEPS", "Peers", "runs_everywhere"]

LOOK_STEPS = 16
LOOK_S = 0.1


class Peers:
    """The engine's side of a world. Owned by the engine coroutine; every method is called by all processes alike."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self._control = control
        self._looked_s, self._batches_since, self._every = time.perf_counter(), 0, 1
        self.has_failed = False
        """Whether some process has failed in a way that all know of, so that they can still act together."""
        self._told: list[list[Any]] = []
        control.share()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that runs the hooks and writes the files."""
        return self.world.rank == 0

    def next_look(self, n: int, planned: int | None) -> int:
        """At which count (of steps or batches, `n` are done) to look: the planned one, or sooner."""
        return n + self._every if planned is None else min(n + self._every, planned)

    def tell(self, what: str, *args: Any) -> None:
        """Note something for the others that is no wish of a user's; `agree` gives it to `heard`. Any thread."""
        self._told.append([what, *args])

    async def agree(
        self, thread: ModelThread, n_batches: int, failure: BaseException | None, heard: Callable[[list[Any]], None]
    ) -> None:
        """Take up what was asked of any process since the last time. `n_batches`: how many have run here by now.

        Raises PeerError if another process has failed by now; `failure` is this one's own, which its caller raises.
        """
        told, self._told = self._told, []
        said = {
            "asked": self._control.take_noted(),
            "told": told,
            "every": self._pace(n_batches),
            "failed": None if failure is None else f"{type(failure).__name__}: {failure}",
        }
        everybody: list[Mapping[str, Any]] = await thread.call(self.world.gather, said)
        self._every = min(each["every"] for each in everybody)
        for rank, each in enumerate(everybody):
            self._control.agree_on(each["asked"], own=rank == self.world.rank)
            for what in each["told"]:
                heard(what)
        failed = {rank: each["failed"] for rank, each in enumerate(everybody) if each["failed"] is not None}
        self.has_failed = bool(failed)
        if failed and failure is None:
            raise PeerError("; ".join(f"process {rank} failed: {what}" for rank, what in failed.items()))

    def _pace(self, n_batches: int) -> int:
        """After how many batches this process would look again."""
        now_s = time.perf_counter()
        took_s, n = now_s - self._looked_s, n_batches - self._batches_since
        self._looked_s, self._batches_since = now_s, n_batches
        if n <= 0 or took_s <= 0:
            return self._every
        return max(min(int(LOOK_S * n / took_s), LOOK_STEPS), 1)

    def added_up(self, means: WeightedMeans) -> WeightedMeans:
        """The sums and weights of all processes together. Blocks; belongs to the model's thread."""
        together = WeightedMeans()
        for state in self.world.gather(means.state_dict()):
            own = WeightedMeans()
            own.load_state_dict(state)
            together.merge(own)
        return together

    async def of_first(self, thread: ModelThread, value: Any) -> Any:
        """What the first process has for all."""
        return (await thread.call(self.world.gather, value))[0]


def runs_everywhere(hook: Any) -> bool:
    """Whether a hook runs in each process, not in the first one only: it says so, or makes feeds for its process's batches."""
    return bool(getattr(hook, "all_processes", False)) or hasattr(hook, "before_batch")
