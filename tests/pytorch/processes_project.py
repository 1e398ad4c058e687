"""A project that several processes train: put into a folder, run by any number of them, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from asyncloop.checkpoint import Checkpoints

PARTS = '''
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asyncloop import Hook, Stream


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class Data:
    """61 examples; each is loaded for itself and augmented with numbers of its own. A last batch of one example."""

    def __init__(self, batch_size=12, worker="inline", whole=False, n_valid=20):
        rng = np.random.default_rng(3)
        self.x = rng.normal(size=(61, 8)).astype(np.float32)
        self.label = (self.x.sum(axis=1) > 0).astype(np.int64)
        self.batch_size, self.worker, self.whole, self.n_valid = batch_size, worker, whole, n_valid

    def train_stream(self):
        if self.whole:
            return self.batches
        examples = Stream.range(61, shuffle=True)
        if self.worker == "async":
            return examples.map(self.fetched, concurrency=5).batch(self.batch_size)
        return examples.map(self.loaded, worker=self.worker).batch(self.batch_size)

    def valid_stream(self):
        return Stream.range(self.n_valid).batch(8).map(self.taken, worker="inline")

    def batches(self):
        for begin in range(0, 61, self.batch_size):
            yield self.taken(np.arange(begin, min(begin + self.batch_size, 61)))

    async def fetched(self, index, rng):
        return self.loaded(index, rng)

    def loaded(self, index, rng):
        if "COUNT_LOADS" in os.environ:
            with open(f"loads{os.environ.get('RANK', '0')}.txt", "a") as file:
                file.write(f"{index}\\n")
        noise = rng.normal(0, 0.1, 8).astype(np.float32)
        return {"x": self.x[index] + noise, "label": self.label[index], "id": np.int64(index)}

    def taken(self, indices):
        return {"x": self.x[indices], "label": self.label[indices], "id": indices}


class Ids(Hook):
    """Which examples this process was given, step by step."""

    all_processes = True

    async def after_batch(self, event):
        if event.train and event.n_examples:  # none of a last batch that is too short for all: an example stands in
            with open(f"ids{os.environ.get('RANK', '0')}.txt", "a") as file:
                file.write(f"{event.step} {event.inputs['id'].tolist()}\\n")


class Stops(Hook):
    """Stops at a step, in a process, as the environment says."""

    all_processes = True

    async def after_batch(self, event):
        at, _, rank = os.environ.get("STOP_AT", "").partition("@")
        if event.train and str(event.step) == at and os.environ.get("RANK", "0") == (rank or "0"):
            event.control.stop("told to")


class StopsExactly(Stops):
    all_processes = False
    lockstep = True


class Pauses(Hook):
    """Pauses at a step, in the last process, and goes on a little later."""

    all_processes = True

    async def after_batch(self, event):
        if event.train and str(event.step) == os.environ.get("PAUSE_AT") and os.environ.get("RANK") == "1":
            event.control.pause()
            threading.Timer(0.3, event.control.resume).start()


class Fails(Hook):
    """Fails at a step, in the first process, which is the only one that runs it."""

    lockstep = True

    async def after_batch(self, event):
        if event.train and str(event.step) == os.environ.get("FAIL_AT"):
            raise LookupError("the hook gives up")


class Marks(Hook):
    """Leaves a file at a step, and is slow about it, so that somebody can be killed there."""

    async def after_batch(self, event):
        if event.train and str(event.step) == os.environ.get("MARK_AT"):
            Path("marked").touch()
            time.sleep(0.3)


class Norms(Net):
    """Tells the running mean that an evaluation uses; one example alone is normalised as in an evaluation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        if not self.training:
            with open(f"means{os.environ.get('RANK', '0')}.txt", "a") as file:
                file.write(f"{self.norm.running_mean.sum().item()!r}\\n")
        own = self.norm
        many = self.training and len(x) > 1
        x = nn.functional.batch_norm(x, own.running_mean, own.running_var, own.weight, own.bias, training=many)
        return super().forward(x)


class Scaled(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, label):
        return nn.functional.cross_entropy(output, label) * self.scale.exp() - self.scale


class Examples:
    """A metric of one's own, which adds itself up over the processes."""

    def __init__(self):
        self.n = 0

    def update(self, output, label):
        self.n += len(label)

    def compute(self):
        total = torch.tensor(float(self.n))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total

    def reset(self):
        self.n = 0


class Breaks(Net):
    def forward(self, x):
        if self.training and os.environ.get("RANK") == "1" and len(list(Path(".").glob("ids1.txt"))):
            if len(Path("ids1.txt").read_text().splitlines()) >= 3:
                raise ArithmeticError("broken on purpose")
        return super().forward(x)
'''

CONFIG = """
[run]
name = "many"
seed = 5
[dataset]
class = "many_parts:Data"
[model]
class = "asyncloop.torch:TorchModel"
module = { class = "many_parts:Net" }
inputs = ["x"]
loss = { class = "torch.nn:CrossEntropyLoss" }
optimizer = { class = "torch.optim:AdamW", lr = 1e-2 }
schedule = { kind = "cosine", warmup = 3, until = 30 }
metrics = { accuracy = { class = "torchmetrics.classification:MulticlassAccuracy", num_classes = 3, average = "micro" } }
clip = { norm = 0.5 }
ema = { decay = 0.9 }
[engine]
epochs = 3
extra_streams = ["valid"]
evaluate_every = "4 steps"
on_unused_sources = "ignore"
[[hooks]]
class = "many_parts:Ids"
[[hooks]]
class = "many_parts:Stops"
[[hooks]]
class = "many_parts:StopsExactly"
[[hooks]]
class = "many_parts:Pauses"
[[hooks]]
class = "many_parts:Fails"
[[hooks]]
class = "many_parts:Marks"
[[hooks]]
class = "ComputeStats"
variables = ["loss"]
[[hooks]]
class = "SaveBest"
[[hooks]]
class = "SaveEvery"
every = "4 steps"
"""


def make_project(folder: Path) -> None:
    (folder / "many_parts.py").write_text(PARTS)
    (folder / "cfg.toml").write_text(CONFIG)


def ids_by_step(folder: Path) -> dict[int, list[int]]:
    """Step → the examples of all processes, sorted; and removes what was noted."""
    found: dict[int, list[int]] = {}
    for file in sorted(folder.glob("ids*.txt")):
        for line in file.read_text().splitlines():
            step, _, ids = line.partition(" ")
            found.setdefault(int(step), []).extend(json.loads(ids))
        file.unlink()
    return {step: sorted(ids) for step, ids in sorted(found.items())}


def weights_of(run: Path, checkpoint: str = "latest") -> dict[str, np.ndarray[Any, Any]]:
    saved = Checkpoints(run / "checkpoints").read(checkpoint)
    return {name: np.asarray(each) for name, each in saved.model["module"].items()}


def furthest(some: dict[str, np.ndarray[Any, Any]], others: dict[str, np.ndarray[Any, Any]]) -> float:
    """The largest difference of any two weights."""
    assert some.keys() == others.keys()
    return max(float(np.abs(some[name] - others[name]).max()) for name in some)


def metrics_of(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "run.json").read_text())["metrics"]
