"""python soak.py LOOP N_EPOCHS N: what a run of many epochs of N batches leaves behind, and whether it slows down.

LOOP is uvloop, asyncio, or plain for the loop that everybody writes by hand. Three hooks follow; each epoch ends with
an evaluation, every tenth also with a checkpoint.

    old run    |--the first quarter--|------------------------------- … ---|--the last quarter--|
    twin       |--------once---------|                                     |-------again--------|

Beside its first and its last quarter a twin runs, in turn with it, epoch by epoch: the same program in a process of its
own, which begins a new run each time. What slows the machine down slows both, and what makes one process slower than
another is the same at the end as it was at the beginning.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
from holdings import Holdings
from noop import N_VALID, Data, NoOp, Tally

from asyncloop import AfterBatch, AfterEvaluation, Engine, Hook
from asyncloop.control import PendingCheckpoint

SAVE_EVERY = 10

Pause: TypeAlias = Callable[[int, float], None]
"""Called while the run is at rest, with the number of epochs done and the seconds that the last one took."""


class Laps:
    """The clock of the epochs, which stands still in the pauses between them."""

    def __init__(self, pause: Pause, reads_at: Sequence[int] = ()) -> None:
        self.pause, self.reads_at = pause, reads_at
        self.n_done = -1
        self.began = time.perf_counter()

    @property
    def reads_next(self) -> bool:
        """Whether what the process holds is read in the next pause."""
        return self.n_done + 1 in self.reads_at

    def end_one(self) -> None:
        """An epoch is over, the zeroth first; the next begins when this returns."""
        took_s = time.perf_counter() - self.began
        self.n_done += 1
        self.pause(self.n_done, took_s)
        self.began = time.perf_counter()


class Twin:
    """A process that does young runs of `n_epochs`, one epoch each time it is told to; a run's first is the zeroth."""

    def __init__(self, loop: str, n_epochs: int, n: int) -> None:
        command = [sys.executable, "-W", "ignore", __file__, loop, str(n_epochs), str(n), "twin"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def epoch_s(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the twin ended with {self.process.wait()}")
        return float(line)

    def end(self) -> None:
        self.process.communicate()
        if self.process.returncode != 0:
            raise SystemExit(f"the twin ended with {self.process.returncode}")


class Record:
    """What the old run's pauses are for: its epochs' times, the twin's, and what it held. Never grows."""

    def __init__(self, loop: str, n_epochs: int, n: int) -> None:
        self.n, self.n_epochs, self.n_warm, self.n_compared = n, n_epochs, n_epochs // 20, n_epochs // 5
        n_young = self.n_warm + self.n_compared
        self.first, self.last = range(n_young + 1), range(n_epochs - n_young, n_epochs + 1)
        self.twin = Twin(loop, n_young, n)
        self.epochs_s, self.twins_s = array("d", [0.0] * (n_epochs + 1)), array("d", [0.0] * (n_epochs + 1))
        self.reads_at = (self.n_warm, n_epochs // 2, n_epochs)
        self.held: dict[int, Holdings] = {}

    def pause(self, n_done: int, took_s: float) -> None:
        self.epochs_s[n_done] = took_s
        if n_done in self.first or n_done in self.last:
            self.twins_s[n_done] = self.twin.epoch_s()
        if n_done in self.reads_at:
            self.held[n_done] = Holdings.now()

    def reading(self) -> dict[str, float]:
        warm, half, end = (self.held[at] for at in self.reads_at)
        end.check(warm, f"from epoch {self.n_warm} to {self.n_epochs}")
        return {
            "growth_mib": end.resident_mib - warm.resident_mib,
            "second_half_mib": end.resident_mib - half.resident_mib,
            "resident_mib": end.resident_mib,
            "batch_us": statistics.median(self.epochs_s[1:]) / (self.n + N_VALID) * 1e6,
            "drift_percent": self.drift_percent(self.undisturbed),
            "median_percent": self.drift_percent(self.beside_twin),
            "clock_percent": self.drift_percent(self.by_the_clock),
            "threads": end.threads,
            "descriptors": end.descriptors,
            "tasks": end.tasks,
        }

    def undisturbed(self, epochs: range) -> float:
        """How many times as long an epoch takes as the twin's, by what the quickest tenth of each take at most.

        Other programs only ever add time. With both cores taken thrice over, the medians of 200 epochs are off by
        2 to 11 %, the tenths by 0.2 to 1.6 %.
        """
        return quickest_tenth(self.compared(self.epochs_s, epochs)) / quickest_tenth(
            self.compared(self.twins_s, epochs)
        )

    def beside_twin(self, epochs: range) -> float:
        """The same by the median of an epoch against the twin's right after it: sees what befalls only some epochs."""
        pairs = zip(self.compared(self.epochs_s, epochs), self.compared(self.twins_s, epochs), strict=True)
        return statistics.median(epoch_s / twin_s for epoch_s, twin_s in pairs)

    def by_the_clock(self, epochs: range) -> float:
        return statistics.median(self.compared(self.epochs_s, epochs))

    def compared(self, times_s: Sequence[float], epochs: range) -> Sequence[float]:
        """The times of these epochs once the twin is warm."""
        return times_s[epochs[-self.n_compared] : epochs[-1] + 1]

    def drift_percent(self, measure: Callable[[range], float]) -> float:
        return (measure(self.last) / measure(self.first) - 1) * 100


def quickest_tenth(times_s: Sequence[float]) -> float:
    return sorted(times_s)[len(times_s) // 10]


class Tallying(Hook):
    """What the three hooks share: a tally for each stream."""

    def __init__(self, data: Data) -> None:
        self.tallies = {stream: Tally(n) for stream, n in data.n.items()}

    def see(self, stream: str, batch: Mapping[str, Any]) -> None:
        self.tallies[stream].see(batch)


class Following(Tallying):
    """Sees the batches one by one, on the event loop."""

    async def after_batch(self, event: AfterBatch) -> None:
        self.see(event.stream, event.inputs)


class Gathering(Tallying):
    """Sees the batches by the handful, on the event loop."""

    async def after_batches(self, events: Sequence[AfterBatch]) -> None:
        for event in events:
            self.see(event.stream, event.inputs)


class Threaded(Tallying):
    """Sees the batches one by one, in a thread of its own."""

    def after_batch(self, event: AfterBatch) -> None:
        self.see(event.stream, event.inputs)


class Lapping(Hook):
    """Ends the laps, and asks for checkpoints."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps
        self.saving: PendingCheckpoint | None = None

    async def after_evaluation(self, event: AfterEvaluation) -> None:
        if self.laps.reads_next and self.saving is not None:
            await self.saving  # an earlier epoch's; its task and its files would be counted
        self.laps.end_one()  # keeps the event loop, so that nothing of this run goes on in the pause
        if self.laps.n_done % SAVE_EVERY == 0:
            self.saving = event.control.checkpoint()


async def by_asyncloop(n_epochs: int, data: Data, hooks: Sequence[Tallying], laps: Laps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            NoOp(),
            data,
            [*hooks, Lapping(laps)],
            epochs=n_epochs,
            extra_streams=["valid"],
            output_dir=f"{folder}/run",
        )
        await engine.train()


async def by_hand(n_epochs: int, data: Data, hooks: Sequence[Tallying], laps: Laps) -> None:
    model = NoOp()
    for _ in range(n_epochs + 1):
        for stream in data.n:
            for batch in data.batches(stream):
                model.run(batch, train=stream == "train", stream=stream)
                for hook in hooks:
                    hook.see(stream, batch)
        laps.end_one()


async def run(loop: str, n_epochs: int, n: int, laps: Laps) -> None:
    """The zeroth evaluation and all epochs; SystemExit unless every hook saw every batch once and in order."""
    data = Data(n)
    hooks = [Following(data), Gathering(data), Threaded(data)]
    await (by_hand if loop == "plain" else by_asyncloop)(n_epochs, data, hooks, laps)
    for hook in hooks:
        for tally in hook.tallies.values():
            tally.check(n_epochs + 1)


async def soak(loop: str, n_epochs: int, n: int) -> None:
    record = Record(loop, n_epochs, n)
    before = Holdings.now()
    await run(loop, n_epochs, n, Laps(record.pause, record.reads_at))
    Holdings.now().check(before, "from before the run to after it")
    record.twin.end()
    print(json.dumps(record.reading()))


async def twin(loop: str, n_epochs: int, n: int) -> None:
    def pause(n_done: int, took_s: float) -> None:
        print(took_s, flush=True)
        if n_done < n_epochs:
            sys.stdin.readline()

    for _ in range(2):
        sys.stdin.readline()
        await run(loop, n_epochs, n, Laps(pause))


def main() -> None:
    loop, n_epochs, n, *is_twin = sys.argv[1:]
    anyio.run(twin if is_twin else soak, loop, int(n_epochs), int(n), backend_options={"use_uvloop": loop == "uvloop"})


if __name__ == "__main__":
    main()
