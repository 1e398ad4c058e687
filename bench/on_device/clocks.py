# pyright: basic, reportMissingImports=false
"""Clocks: how long updates take on a device, and how often the program waits for it, without a wait of their own.

All begin and end right behind an update of an optimizer (`register_step_post_hook`), on the thread that makes it, whatever
system that thread belongs to.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.harness import WrongResult
from bench.on_device.chores import Kept
from bench.on_device.trainer import Trainer

__all__ = ["Marks", "Updates", "after_each", "syncs_per_update", "timed_run"]


@dataclass(frozen=True, slots=True)
class Updates:
    """`n` updates; the clock runs from the end of update `first` to the end of update `last`."""

    n: int
    first: int
    last: int


@contextmanager
def after_each(optimizer: Any, fn: Callable[[int], None]) -> Generator[None]:
    """Call `fn` with the number of each update, right behind it."""
    n_updates = 0

    def count(*_: Any) -> None:
        nonlocal n_updates
        n_updates += 1
        fn(n_updates)

    handle = optimizer.register_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


class Marks:
    """Points in a device's work. A CUDA device says itself when it got there; elsewhere work is over when it is launched.

    Made while the device has nothing to do, for that is when its clock and the host's are compared.
    """

    def __init__(self, device: Any) -> None:
        self._is_cuda = device.type == "cuda"
        self._at: dict[int, Any] = {0: self._mark()}
        if self._is_cuda:
            self._at[0].synchronize()
        self._began_s = time.perf_counter()

    def put(self, number: int) -> None:
        """Mark what was launched last, on the calling thread's stream."""
        self._at[number] = self._mark()

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def clock_s(self, number: int) -> float:
        """What the host's clock (time.perf_counter) showed when the device got there; waits until it has."""
        if not self._is_cuda:
            return self._at[number]
        self._at[number].synchronize()
        return self._began_s + self._at[0].elapsed_time(self._at[number]) / 1e3

    def between_s(self, first: int, last: int) -> float:
        """Seconds; waits until the device has got there."""
        return self.clock_s(last) - self.clock_s(first)


def timed_run(trainer: Trainer, updates: Updates, device: Any) -> tuple[float, Kept]:
    """Train; seconds per update, and what the chores left behind. WrongResult if there were more or fewer updates."""
    marks, made = Marks(device), 0

    def mark(number: int) -> None:
        nonlocal made
        made = number
        if number in (updates.first, updates.last):
            marks.put(number)

    with after_each(trainer.optimizer, mark):
        kept = trainer.train(updates.n)
    if made != updates.n:
        raise WrongResult(f"{made} updates were made for {updates.n} batches")
    return marks.between_s(updates.first, updates.last) / (updates.last - updates.first), kept


def syncs_per_update(trainer: Trainer, updates: Updates) -> float:
    """How often the program synchronises with a CUDA device, as PyTorch's sync debug mode sees it."""
    import torch

    def switch(number: int) -> None:
        if number == updates.first:
            torch.cuda.set_sync_debug_mode("warn")
        elif number == updates.last:
            torch.cuda.set_sync_debug_mode("default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with after_each(trainer.optimizer, switch):
                trainer.train(updates.n)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    n_syncs = sum("called a synchronizing" in str(warning.message) for warning in caught)
    return n_syncs / (updates.last - updates.first)
