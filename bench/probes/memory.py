"""python memory.py LOOP N_WARM N: resident memory between batch N_WARM and batch N of a run with two hooks.

LOOP is uvloop, asyncio, or plain for the loop that everybody writes by hand.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import numpy as np

from asyncloop import AfterBatch, Engine, Hook


class Meter:
    """Reads memory and clock at two batches, and sees to it that they come once and in order."""

    def __init__(self, n_warm: int, n: int) -> None:
        self.n_warm, self.n, self.next = n_warm, n, 0
        self.at: dict[int, tuple[float, float]] = {}

    def see(self, index: int) -> None:
        if index != self.next:
            raise SystemExit(f"saw batch {index} where {self.next} was due")
        self.next += 1
        if self.next in (1, self.n_warm, self.n // 2, self.n):
            self.at[self.next] = (resident_mib(), time.perf_counter())

    def reading(self) -> dict[str, float]:
        if self.next != self.n:
            raise SystemExit(f"saw {self.next} of {self.n} batches")
        (warm_mib, warm_s), (half_mib, half_s), (mib, s) = (self.at[k] for k in (self.n_warm, self.n // 2, self.n))
        first_us = (half_s - warm_s) / (self.n // 2 - self.n_warm) * 1e6
        second_us = (s - half_s) / (self.n - self.n // 2) * 1e6
        return {
            "growth_mib": mib - warm_mib,
            "second_half_mib": mib - half_mib,
            "peak_mib": mib,
            "first_us": first_us,
            "drift_percent": (second_us / first_us - 1) * 100,
        }


def resident_mib() -> float:
    """Resident memory now; where the system does not tell, its peak so far."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Metering(Hook):
    """The hook that looks at the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    async def after_batch(self, event: AfterBatch) -> None:
        self.meter.see(int(event.inputs["id"][0]))


class Counting(Hook):
    """The other hook."""

    def __init__(self) -> None:
        self.n = 0

    async def after_batch(self, event: AfterBatch) -> None:
        self.n += 1


class NoOp:
    """A model that does nothing."""

    input_names = ("id", "x")
    output_names = ("loss",)

    def run(self, batch: Any, *, train: bool = True, stream: str = "train") -> Mapping[str, float]:
        return {"loss": 0.5}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Data:
    """Batches made one by one, each a view of arrays that are there from the start."""

    def __init__(self, n: int) -> None:
        self.ids, self.x = np.arange(n), np.zeros((1, 32))

    def train_stream(self) -> Iterator[Mapping[str, Any]]:
        for index in range(len(self.ids)):
            yield {"id": self.ids[index : index + 1], "x": self.x}


def main() -> None:
    loop, n_warm, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    meter, counting, data, model = Meter(n_warm, n), Counting(), Data(n), NoOp()
    if loop == "plain":
        for batch in data.train_stream():
            model.run(batch)
            meter.see(int(batch["id"][0]))
            counting.n += 1
    else:

        async def train() -> None:
            hooks = [Metering(meter), counting]
            await Engine(model, data, hooks, epochs=1, skip_zeroth_epoch=True).train()

        anyio.run(train, backend_options={"use_uvloop": loop == "uvloop"})
    if counting.n != n:
        raise SystemExit(f"the other hook saw {counting.n} of {n} batches")
    print(json.dumps(meter.reading()))


if __name__ == "__main__":
    main()
