"""Job: what every system is asked to do, and Outcome: what came of it.

One description, from which each adapter in `bench/systems` builds the program a user of that system would write.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = [
    "Batch",
    "Batches",
    "HookWork",
    "Job",
    "Load",
    "MakeModel",
    "Model",
    "Outcome",
    "Saves",
    "Watcher",
    "make_batches",
    "train",
]

Batch: TypeAlias = Mapping[str, Any]
"""Source name → array. Every batch has a source `id`: its number in the job, once per example."""


class Load(Protocol):
    """What it takes before batch `index` is there, for a thread and for an event loop."""

    def blocking(self, index: int) -> None: ...
    async def waiting(self, index: int) -> None: ...


class HookWork(Protocol):
    """What a hook does for one batch, for a thread and for an event loop. With a method `told` it has something to say
    in the end, which must be the same whoever called it."""

    def blocking(self, batch: Batch, outputs: Mapping[str, Any]) -> None: ...
    async def waiting(self, batch: Batch, outputs: Mapping[str, Any]) -> None: ...


class Model(Protocol):
    """What runs a batch. Also a model as asyncloop wants it, so that nobody pays for a wrapper."""

    n_runs: int
    marks: list[float]
    """When each step ended (`perf_counter`), for models slow enough that noting it costs nothing; empty otherwise."""
    busy_s: float
    """CPU time of all steps, for models that hold the interpreter lock; 0 otherwise."""

    @property
    def input_names(self) -> Sequence[str]: ...
    @property
    def output_names(self) -> Sequence[str]: ...
    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...
    def digest(self) -> str:
        """A fingerprint of the weights, bit by bit; empty where there are none."""
        ...


class MakeModel(Protocol):
    """Makes a fresh model with the weights that every system starts from."""

    def __call__(self) -> Model: ...


@dataclass(frozen=True, slots=True)
class Saves:
    """A checkpoint after every `every` batches, whose write takes `seconds`."""

    every: int
    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class Outcome:
    """What a system reports: its time, and enough to see whether it did all of the work.

    No repr: an event loop's runner asks for the one of what `main` returned, and here that takes seconds.
    """

    seconds: float
    seen: Sequence[Sequence[Any]]
    """For each hook the `id` sources it was given, in the order in which it was given them."""
    n_done: Sequence[int]
    """For each hook how many batches it was done with when the system said that all was over."""
    n_runs: int
    weights: str = ""
    marks: Sequence[float] = ()
    busy_s: float = 0.0
    told: Sequence[object] = ()
    """What the hooks came to that come to something."""


class Watcher:
    """A hook that remembers which batches it saw; `id` is kept as it came, and read after the clock has stopped."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def after_batch(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.seen.append(batch["id"])


class WorkingWatcher(Watcher):
    """A watcher that has something to do for each batch, on the thread that calls it."""

    def __init__(self, work: HookWork) -> None:
        super().__init__()
        self.work, self.n_done = work, 0

    def after_batch(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.seen.append(batch["id"])
        self.work.blocking(batch, outputs)
        self.n_done += 1


class Saver(Watcher):
    """A callback that writes a checkpoint now and then, as they all do: the training loop waits for the write."""

    def __init__(self, saves: Saves) -> None:
        super().__init__()
        self.saves, self.n_batches = saves, 0

    def after_batch(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        self.seen.append(batch["id"])
        self.n_batches += 1
        if self.n_batches % self.saves.every == 0:
            time.sleep(self.saves.seconds)


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """Train on `batches` in order: load each (if that takes anything), run the model, call every hook.

    Systems that can load several batches at once may have `load_concurrency` in work; hooks that may handle several
    at once may handle `hook_concurrency`. The batches themselves exist before the clock starts.
    """

    batches: Sequence[Batch]
    make_model: MakeModel
    hooks: Sequence[HookWork | None] = ()
    load: Load | None = None
    load_concurrency: int = 1
    hook_concurrency: int = 1
    saves: Saves | None = None

    @property
    def n(self) -> int:
        return len(self.batches)

    def source(self) -> Iterator[Batch]:
        """One batch after the other, each loaded on the thread that asks for it."""
        if self.load is None:
            for batch in self.batches:  # noqa: UP028 - the generator that a user would write, not a delegation
                yield batch
            return
        for index in range(self.n):
            self.load.blocking(index)
            yield self.batches[index]

    def fetch(self, index: int) -> Batch:
        """Batch `index`, loaded on the thread that asks for it."""
        if self.load is not None:
            self.load.blocking(index)
        return self.batches[index]

    async def fetch_async(self, index: int) -> Batch:
        """Batch `index`, loaded while the event loop does other things."""
        if self.load is not None:
            await self.load.waiting(index)
        return self.batches[index]

    def fresh_hooks(self) -> list[HookWork | None]:
        """The work of hooks that have not heard of any batch yet."""
        return [copy.copy(work) for work in self.hooks]

    def watchers(self) -> list[Watcher]:
        """The hooks for systems that call them one after the other; the one that saves, if any, comes last."""
        hooks = [Watcher() if work is None else WorkingWatcher(work) for work in self.fresh_hooks()]
        return hooks if self.saves is None else [*hooks, Saver(self.saves)]

    def outcome(self, seconds: float, model: Model, hooks: Sequence[Any]) -> Outcome:
        work = [hook.work for hook in hooks if hasattr(hook, "work")]
        return Outcome(
            seconds,
            [hook.seen for hook in hooks],
            [getattr(hook, "n_done", len(hook.seen)) for hook in hooks],  # one without work is done when it has seen it
            model.n_runs,
            model.digest(),
            model.marks,
            model.busy_s,
            [each.told() for each in work if hasattr(each, "told")],
        )


def train(batches: Iterable[Batch], model: Model, hooks: Sequence[Watcher]) -> None:
    """The loop that everybody writes by hand: batch, step, hooks, and again."""
    run = model.run
    for batch in batches:
        outputs = run(batch)
        for hook in hooks:
            hook.after_batch(batch, outputs)


def make_batches(n: int, width: int = 32) -> list[Batch]:
    """`n` batches of one example, which share their data but for the `id`."""
    ids, x = np.arange(n), np.zeros((1, width))
    return [{"id": ids[i : i + 1], "x": x} for i in range(n)]


class Batches:
    """A dataset of `n` batches that are there already."""

    def __init__(self, n: int) -> None:
        self.batches = make_batches(n)

    def train_stream(self) -> Iterator[Batch]:
        yield from self.batches
