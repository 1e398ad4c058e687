"""A small training in which everything that has a state has one: put into a folder, run, stopped and resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from asyncloop.checkpoint import Checkpoints

PARTS = '''
import os
import random
import time

import anyio
import numpy as np

import asyncloop
from asyncloop import Hook, Stream


class Data:
    """61 examples with an id each; shuffled, augmented with a generator of their own, by tasks, threads or inline."""

    def __init__(self, worker: str = "async", batch_size: int = 8, n: int = 61, pause_s: float = 0.0):
        rng = np.random.default_rng(3)
        self.x = rng.normal(size=(n, 4)).astype(np.float32)
        self.label = (self.x.sum(axis=1) > 0).astype(np.int64)
        self.worker, self.batch_size, self.n, self.pause_s = worker, batch_size, n, pause_s

    def train_stream(self):
        if self.worker == "generator":
            return self.generated
        examples = Stream.range(self.n, shuffle=True)
        if self.worker == "async":
            return examples.batch(self.batch_size).map(self.fetched, concurrency=3)
        return examples.batch(self.batch_size).map(self.augmented, worker=self.worker)

    def valid_stream(self):
        return Stream.range(20).batch(8).map(self.plain, worker="inline")

    def generated(self):
        for begin in range(0, self.n, self.batch_size):
            yield self.plain(np.arange(begin, min(begin + self.batch_size, self.n)))

    async def fetched(self, indices, rng):
        await anyio.sleep(self.pause_s)
        return self.augmented(indices, rng)

    def augmented(self, indices, rng):
        batch = self.plain(indices)
        return batch | {"x": batch["x"] + rng.normal(0, 0.1, batch["x"].shape).astype(np.float32)}

    def plain(self, indices):
        return {"x": self.x[indices], "label": self.label[indices], "id": np.asarray(indices)}


class Stateful(Hook):
    """Counts what it sees, logs, and keeps something over an epoch that begins in before_epoch."""

    def __init__(self):
        self.seen, self.epochs, self.total = [], 0, 0.0

    async def before_epoch(self, event):
        self.total = 0.0

    async def after_batch(self, event):
        if event.train:
            self.seen.append(event.step)
            self.total += float(event.outputs["loss"])
            asyncloop.log("doubled", 2 * event.outputs["loss"])

    async def after_epoch(self, event):
        self.epochs += 1
        event.data["train"]["total"] = self.total

    def state_dict(self):
        return {"seen": list(self.seen), "epochs": self.epochs, "total": self.total}

    def load_state_dict(self, state):
        self.seen, self.epochs, self.total = list(state["seen"]), state["epochs"], state["total"]


class Slow(Hook):
    """Far behind the training, in a thread of its own."""

    background = True

    def __init__(self):
        self.n = 0

    def after_batch(self, event):
        time.sleep(0.001)
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


class Stops(Hook):
    """Stops as the environment says: at steps, or at the first batch of an evaluation after a step."""

    lockstep = True

    async def after_batch(self, event):
        at = os.environ.get("STOP_AT", "").split(",")
        if event.train and str(event.step) in at:
            event.control.stop("told to")


class StopsInEvaluation(Hook):
    async def after_batch(self, event):
        if not event.train and os.environ.get("STOP_IN_EVALUATION_AT") == str(event.step):
            event.control.stop("told to")


class Global:
    """A model whose steps use the process's generators."""

    input_names, output_names = ("x", "label"), ("loss",)

    def __init__(self, factor: float = 1.0):
        self.w = np.zeros(4) + random.random()
        self.factor = factor

    def run(self, batch, *, train, stream):
        error = batch["x"] @ self.w - batch["label"]
        noise = np.random.normal(size=4) + random.random()
        if train:
            self.w = self.w - 0.01 * (batch["x"].T @ error / len(error) + 0.1 * self.factor * noise)
        return {"loss": float((error**2).mean())}

    def state_dict(self):
        return {"w": self.w}

    def load_state_dict(self, state):
        self.w = np.array(state["w"])
'''

CONFIG = """
[run]
name = "exact"
seed = 5

[dataset]
class = "exact_parts:Data"

[model]
class = "asyncloop.models:MLP"
inputs = "x"
n_inputs = 4
n_classes = 2
hidden = [6]
dropout = 0.3
optimizer = "adam"
average = 0.9

[engine]
epochs = 3
extra_streams = ["valid"]
own_rng = true

[[hooks]]
class = "ComputeStats"
variables = { loss = ["mean", "std"], accuracy = ["mean"] }
[[hooks]]
class = "exact_parts:Stateful"
[[hooks]]
class = "exact_parts:Slow"
[[hooks]]
class = "WriteJSONL"
variables = ["loss", "id"]
[[hooks]]
class = "WriteJSONL"
output_file = "sparse.jsonl"
every = "5 steps"
[[hooks]]
class = "WriteCSV"
[[hooks]]
class = "SaveBest"
[[hooks]]
class = "SaveEvery"
every = "4 steps"
keep = 2
[[hooks]]
class = "exact_parts:Stops"
[[hooks]]
class = "exact_parts:StopsInEvaluation"
"""

VARIANTS: dict[str, dict[str, Any]] = {
    "tasks": {},
    "threads": {"dataset.worker": "thread", "engine.buffer": 2},
    "inline, no buffer": {"dataset.worker": "inline", "engine.buffer": 0},
    "a plain generator": {"dataset.worker": "generator"},
    "steps": {"engine.epochs": None, "engine.steps": 20},
    "an epoch size that carries over": {"engine.epoch_size": 5, "engine.epochs": 4},
    "an epoch size longer than the data": {"engine.epoch_size": 11, "engine.epochs": 2},
    "evaluations inside epochs": {"engine.evaluate_every": "3 steps"},
    "the process's generators": {"model": {"class": "exact_parts:Global"}, "hooks.0.variables": ["loss"]},
}


def make_project(folder: Path) -> None:
    (folder / "exact_parts.py").write_text(PARTS)
    (folder / "cfg.toml").write_text(CONFIG)


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on where it was stopped: weights, optimizer, metrics, every id."""
    saved = Checkpoints(run / "checkpoints").read()
    record = json.loads((run / "run.json").read_text())
    files = {name: (run / name).read_text() for name in ("batches.jsonl", "sparse.jsonl", "training.csv")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    hooks = {name: state for name, state in saved.hooks.items() if name != "Recorder"}
    return {
        "step": saved.step,
        "model": digest(saved.model),
        "hooks": digest(hooks),
        "positions": saved.engine["positions"],
        "rng": digest({name: state for name, state in saved.engine["rng"].items() if name != "torch"}),
        "counters": {name: saved.engine[name] for name in ("epoch", "epochs_done", "evaluated_step")},
        "record": {name: record[name] for name in ("state", "exit_code", "epochs", "steps", "metrics")},
        "metrics": [{key: value for key, value in line.items() if key != "time"} for line in lines],
        "events": [(each["event"], each["epoch"], each["step"]) for each in events if each["event"] in _COUNTED],
        "saved": {each["step"] for each in events if each["event"] == "checkpoint_saved" and each["step"] % 4 == 0},
        "best": (run / "checkpoints" / "best").read_text(),
        **files,
    }


_COUNTED = ("before_epoch", "after_evaluation", "after_epoch", "after_epoch_profile")


def digest(state: Any) -> str:
    """A fingerprint of nested states, down to the last bit."""
    found = hashlib.sha256()

    def feed(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                feed(value[key], f"{path}/{key}")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                feed(each, f"{path}/{index}")
        else:
            found.update(f"{path}={value.dtype} {value.shape}".encode() if isinstance(value, np.ndarray) else b"")
            found.update(value.tobytes() if isinstance(value, np.ndarray) else repr((path, value)).encode())

    feed(state, "")
    return found.hexdigest()
