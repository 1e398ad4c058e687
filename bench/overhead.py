"""What the loop itself costs: a model that does nothing, microseconds per batch above a plain `for` loop.

    python bench/overhead.py [--batches 100000] [--rounds 5] [--json bench/results/overhead.json]

All systems run interleaved, round by round; the figure is the median over rounds of the difference to the plain loop of
the same round. Each round checks that every hook saw every batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from asyncloop import AfterBatch, Engine, Hook, Stream, __version__

BATCH = {"x": np.zeros(32), "y": np.zeros(32)}


class NoOp:
    """A model that does nothing."""

    input_names = ("x", "y")
    output_names = ("loss",)
    outputs = {"loss": 0.5}  # noqa: RUF012

    def run(self, batch: Any, *, train: bool, stream: str) -> dict[str, float]:
        return self.outputs

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Counts(Hook):
    def __init__(self) -> None:
        self.n = 0

    async def after_batch(self, event: AfterBatch) -> None:
        self.n += 1


class Data:
    def __init__(self, n: int, kind: str) -> None:
        self._n, self._kind = n, kind

    def plain(self) -> Iterator[Any]:
        for _ in range(self._n):
            yield BATCH

    async def asynchronous(self) -> AsyncIterator[Any]:
        for _ in range(self._n):
            yield BATCH

    def train_stream(self) -> Stream:
        sources: dict[str, Callable[[], Stream]] = {
            "list": lambda: Stream.of([BATCH] * self._n),
            "generator": lambda: Stream.of(self.plain),
            "async generator": lambda: Stream.of(self.asynchronous),
        }
        return sources[self._kind]()


def plain_loop(n: int, n_hooks: int) -> float:
    """Seconds of the loop that everybody would write by hand."""

    class PlainHook:
        def __init__(self) -> None:
            self.n = 0

        def after_batch(self, outputs: Any) -> None:
            self.n += 1

    model, hooks = NoOp(), [PlainHook() for _ in range(n_hooks)]
    began = time.perf_counter()
    for _ in range(n):
        outputs = model.run(BATCH, train=True, stream="train")
        for hook in hooks:
            hook.after_batch(outputs)
    return time.perf_counter() - began


def asyncloop_once(n: int, n_hooks: int, kind: str, buffer: Any, uvloop: bool) -> float:
    """Seconds of one epoch, through the public API with all default checks."""

    async def main() -> float:
        hooks = [Counts() for _ in range(n_hooks)]
        engine = Engine(NoOp(), Data(n, kind), hooks, epochs=1, skip_zeroth_epoch=True, buffer=buffer)
        began = time.perf_counter()
        await engine.train()
        took = time.perf_counter() - began
        assert all(hook.n == n for hook in hooks), "every hook sees every batch"
        return took

    return anyio.run(main, backend_options={"use_uvloop": uvloop})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [
        (n_hooks, kind, buffer, uvloop)
        for n_hooks in (0, 5)
        for kind in ("list", "generator", "async generator")
        for buffer in ("auto", 8, 64)
        for uvloop in (False, True)
    ]
    above: dict[tuple[Any, ...], list[float]] = {case: [] for case in cases}
    floor: dict[int, list[float]] = {0: [], 5: []}
    for _ in range(options.rounds):
        base = {n_hooks: plain_loop(options.batches, n_hooks) for n_hooks in floor}
        for n_hooks, seconds in base.items():
            floor[n_hooks].append(seconds / options.batches * 1e6)
        for case in cases:
            took = asyncloop_once(options.batches, *case)
            above[case].append((took - base[case[0]]) / options.batches * 1e6)
    rows: list[dict[str, Any]] = []
    print(f"{'hooks':>5}  {'source':16}{'buffer':>7}  {'loop':8}{'µs above the plain loop':>24}  (least … most)")
    for case, values in above.items():
        n_hooks, kind, buffer, uvloop = case
        loop = "uvloop" if uvloop else "asyncio"
        median = statistics.median(values)
        print(f"{n_hooks:5}  {kind:16}{buffer!s:>7}  {loop:8}{median:24.2f}  ({min(values):.2f} … {max(values):.2f})")
        rows.append({"hooks": n_hooks, "source": kind, "buffer": buffer, "loop": loop, "us_above_plain": values})
    if options.json:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "asyncloop": __version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "batches": options.batches,
            "plain_us": floor,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
