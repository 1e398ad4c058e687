"""python memory.py LOOP N_WARM N: resident memory between batch N_WARM and batch N of a run with two hooks.

LOOP is uvloop, asyncio, or plain for the loop that everybody writes by hand.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import anyio
from holdings import resident_mib
from noop import Data, NoOp, Tally

from asyncloop import AfterBatch, Engine, Hook


class Meter:
    """Reads memory and clock at three batches."""

    def __init__(self, n_warm: int, n: int) -> None:
        self.n_warm, self.n, self.tally = n_warm, n, Tally(n)
        self.at: dict[int, tuple[float, float]] = {}

    def see(self, batch: Mapping[str, Any]) -> None:
        self.tally.see(batch)
        if self.tally.n_seen in (self.n_warm, self.n // 2, self.n):
            self.at[self.tally.n_seen] = (resident_mib(), time.perf_counter())

    def reading(self) -> dict[str, float]:
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


class Metering(Hook):
    """The hook that looks at the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    async def after_batch(self, event: AfterBatch) -> None:
        self.meter.see(event.inputs)


class Counting(Hook):
    """The other hook."""

    def __init__(self, n: int) -> None:
        self.tally = Tally(n)

    async def after_batch(self, event: AfterBatch) -> None:
        self.tally.see(event.inputs)


def main() -> None:
    loop, n_warm, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    meter, counting, data, model = Meter(n_warm, n), Counting(n), Data(n), NoOp()
    if loop == "plain":
        for batch in data.train_stream():
            model.run(batch)
            meter.see(batch)
            counting.tally.see(batch)
    else:

        async def train() -> None:
            hooks = [Metering(meter), counting]
            await Engine(model, data, hooks, epochs=1, skip_zeroth_epoch=True).train()

        anyio.run(train, backend_options={"use_uvloop": loop == "uvloop"})
    for tally in (meter.tally, counting.tally):
        tally.check(n_passes=1)
    print(json.dumps(meter.reading()))


if __name__ == "__main__":
    main()
