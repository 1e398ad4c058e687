"""EpochRecord: what one epoch gathers, its data and its profile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from asyncloop.events import EpochData
from asyncloop.model_thread import Stretch
from asyncloop.stats import Timings, WeightedMeans
from asyncloop.stream import BufferStatistics

__all__ = ["EpochRecord"]


class EpochRecord:
    """Owned by the engine coroutine; only `log` may be called from a hook's thread."""

    def __init__(self, names: list[str], plan: Sequence[tuple[str, bool]] = ()) -> None:
        self.names = names
        self.next_stream = dict(pairwise(plan))
        """(stream, train) → what is planned after it, the next epoch's first stream included."""
        self.data: EpochData = {}
        self._timings: dict[str, Timings] = {}
        self._logged: dict[str, WeightedMeans] = {}
        self._lock = threading.Lock()
        self._began_s = time.perf_counter()

    def add_stretch(self, stretch: Stretch) -> None:
        """The timings of a stream that begins to run."""
        self._timings[f"read_batch_{stretch.stream}"] = stretch.read
        self._timings[f"eval_batch_{stretch.stream}"] = stretch.ran

    def log(self, stream: str, name: str, value: Any, n_examples: int) -> None:
        """A value that a hook logged; averaged over the pass, weighted by examples. Thread-safe."""
        with self._lock:
            self._logged.setdefault(stream, WeightedMeans()).add(name, float(value), n_examples)

    def take_logged(self) -> None:
        """What was logged so far joins the data of its stream."""
        with self._lock:
            for stream, means in self._logged.items():
                if stream in self.data:
                    self.data[stream].update(means.result())

    def profiled(
        self,
        spent: Mapping[str, Timings],
        statistics: Callable[[str], BufferStatistics | None],
        hooks_began_s: float,
    ) -> dict[str, Timings | float]:
        """Where the epoch's time went. `overlap` is the stages' sum over the wall clock: above 1, they ran at once."""
        now_s = time.perf_counter()
        hooks = Timings()
        hooks.add(now_s - hooks_began_s)
        profile: dict[str, Timings | float] = {**self._timings, "after_epoch_hooks": hooks}
        stages_s = sum(timings.total for key, timings in self._timings.items() if key.startswith("eval_batch_"))
        for name in self.names:
            profile[f"after_batch_hooks_{name}"] = spent.get(name, Timings())
            stages_s += spent[name].total if name in spent else 0.0
            gauges = statistics(name)
            if gauges is not None:
                profile[f"depth_{name}"] = gauges.depth
                profile[f"model_waits_{name}"] = gauges.taker_waits
                profile[f"producer_waits_{name}"] = gauges.producer_waits
        profile["overlap"] = stages_s / max(now_s - self._began_s, 1e-9)
        return profile
