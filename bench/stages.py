"""Stages: what takes the time in a scenario. Loads, steps and hooks that sleep, hash or spin for a known while.

A stage that sleeps stands for one that waits for a disk, a network or a device; one that hashes is native code without
the interpreter lock; one that spins is Python code that holds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.job import Batch

__all__ = ["Hashing", "NoOp", "SleepHook", "SleepLoad", "Sleeping", "Spinning", "UnevenLoad", "calibrated"]

OUTPUTS: Mapping[str, float] = {"loss": 0.5}


class SleepLoad:
    """A load that waits `seconds` for each batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def blocking(self, index: int) -> None:
        time.sleep(self.seconds)

    async def waiting(self, index: int) -> None:
        await asyncio.sleep(self.seconds)


class UnevenLoad:
    """A load that waits `slow` seconds for the last batch of every eight, `fast` seconds for the others."""

    def __init__(self, fast: float, slow: float) -> None:
        self.fast, self.slow = fast, slow

    def blocking(self, index: int) -> None:
        time.sleep(self._seconds(index))

    async def waiting(self, index: int) -> None:
        await asyncio.sleep(self._seconds(index))

    def _seconds(self, index: int) -> float:
        return self.slow if index % 8 == 7 else self.fast


class SleepHook:
    """A hook that waits `seconds` for each batch: a tracker, a plot, an upload."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        time.sleep(self.seconds)

    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        await asyncio.sleep(self.seconds)


class NoOp:
    """A model that does nothing but count its runs."""

    input_names = ("id", "x")
    output_names = ("loss",)

    def __init__(self) -> None:
        self.n_runs = 0
        self.marks: list[float] = []
        self.busy_s = 0.0

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        self.n_runs += 1
        return OUTPUTS

    def state_dict(self) -> Mapping[str, Any]:
        return {"n_runs": self.n_runs}

    def load_state_dict(self, state: Any) -> None:
        self.n_runs = state["n_runs"]

    def digest(self) -> str:
        return ""


class Sleeping(NoOp):
    """A model that waits `seconds` without the interpreter lock, as for a device."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        time.sleep(self.seconds)
        self.n_runs += 1
        self.marks.append(time.perf_counter())
        return OUTPUTS


class Hashing(NoOp):
    """A model that computes without the interpreter lock: the SHA-256 of `content`."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        hashlib.sha256(self.content)
        self.n_runs += 1
        self.marks.append(time.perf_counter())
        return OUTPUTS

    @staticmethod
    def lasting(seconds: float) -> Callable[[], Hashing]:
        """Makes models whose step takes about `seconds` on this machine."""
        content = bytes(calibrated(lambda size: hashlib.sha256(bytes(size)), seconds, start=1 << 16))
        return lambda: Hashing(content)


class Spinning(NoOp):
    """A model in pure Python: it holds the interpreter lock for `turns` turns of a loop."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        began_s = time.thread_time()
        spin(self.turns)
        self.busy_s += time.thread_time() - began_s
        self.n_runs += 1
        self.marks.append(time.perf_counter())
        return OUTPUTS

    @staticmethod
    def lasting(seconds: float) -> Callable[[], Spinning]:
        """Makes models whose step takes about `seconds` on this machine."""
        turns = calibrated(spin, seconds, start=1 << 12)
        return lambda: Spinning(turns)


def spin(turns: int) -> int:
    total = 0
    for turn in range(turns):
        total += turn & 7
    return total


def calibrated(work: Callable[[int], object], seconds: float, start: int) -> int:
    """The size for which `work` takes `seconds`; `work` is linear in its size."""
    size = start
    while (took := _median(work, size)) < seconds / 2:
        size *= 2
    size = max(int(size * seconds / took), 1)
    return max(int(size * seconds / _median(work, size)), 1)  # once more, warm and close to the size that is wanted


def _median(work: Callable[[int], object], size: int) -> float:
    times: list[float] = []
    for _ in range(9):
        began = time.perf_counter()
        work(size)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
