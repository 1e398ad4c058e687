# pyright: basic, reportMissingImports=false
"""GPT-124M in bf16, compiled, with what goes on beside the steps of a real run; the bare loop has its data on the device."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Metric, Scenario
from bench.job import Batch
from bench.on_device.chores import Chores
from bench.on_device.clocks import Updates
from bench.on_device.entries import entries_for
from bench.on_device.rows import Course, row_of
from bench.on_device.work import Work
from bench.scenarios.goals import goal_of_row

__all__ = ["TINY", "Text", "example", "gpt"]

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "gpt" / "gpt.py"


@dataclass(frozen=True, slots=True)
class Size:
    module: Mapping[str, int]
    batch_size: int
    n_batches: int
    updates: Updates
    chores: Chores
    compiled: bool


FULL = Size(
    {"n_layers": 12, "n_heads": 12, "width": 768, "context": 1024, "vocabulary": 50_304},
    batch_size=16,
    n_batches=32,
    updates=Updates(230, first=20, last=220),
    chores=Chores(log_every=10, save_every=200),
    compiled=True,
)
TINY = Size(
    {"n_layers": 1, "n_heads": 2, "width": 16, "context": 16},
    batch_size=2,
    n_batches=3,
    updates=Updates(12, first=2, last=11),
    chores=Chores(log_every=3, save_every=8),
    compiled=False,
)


def gpt(device: Any, tiny: bool) -> Scenario:
    """A GPT of 124 M parameters with five hooks, a line of the log every 10 steps and a checkpoint every 200."""
    size = TINY if tiny else FULL
    context = size.module["context"]
    load = Text(size.batch_size, context, size.n_batches)
    work = Work(lambda: example().GPT(**size.module), ["tokens", "next"], load, 0, ("bits_per_byte",), size.compiled)
    course = Course(work, device, size.updates, n_warm=4, chores=size.chores)
    entries = entries_for(course, n_there=size.n_batches)
    n_tokens = size.batch_size * context
    share = Metric(
        "of the bare loop", "%", lambda one, name: 100 * one["bare loop"]["update_s"] / one[name]["update_s"]
    )
    speed = Metric("tokens", "1/s", lambda one, name: n_tokens / one[name]["update_s"])
    step = Metric("a step", "ms", lambda one, name: one[name]["update_s"] * 1e3)
    return Scenario(
        "gpt",
        f"a GPT in bf16, {size.batch_size} × {context} tokens a step: five hooks, a line of the log every "
        f"{size.chores.log_every} steps, a checkpoint every {size.chores.save_every}",
        [row_of(entry, course) for entry in entries],
        [share, speed, step],
        [goal_of_row(share, "asyncloop", 99.0, None, more=True)],
        better="more",
        remarks=[
            "The bare loop has no hooks, no log and no checkpoints, and its data are on the device; all others do the same chores."
        ],
        main=("asyncloop",),
    )


@cache
def example() -> Any:
    """The module of `examples/gpt`."""
    spec = importlib.util.spec_from_file_location("bench_example_gpt", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Text:
    """The standard library's sources, byte by byte: `tokens` and `next`, int64 (B, T), over and over `n_batches`."""

    def __init__(self, batch_size: int, context: int, n_batches: int) -> None:
        n_bytes = n_batches * batch_size * context + 1
        text = np.frombuffer(_sources(n_bytes), dtype=np.uint8).astype(np.int64)
        shape = (n_batches, batch_size, context)
        self.tokens, self.next = text[:-1].reshape(shape), text[1:].reshape(shape)

    def __call__(self, index: int) -> Batch:
        at = index % len(self.tokens)
        return {"tokens": self.tokens[at], "next": self.next[at]}


def _sources(n_bytes: int) -> bytes:
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += path.read_bytes()
        if len(found) >= n_bytes:
            return bytes(found[:n_bytes])
    raise ValueError(f"the standard library's sources have only {len(found)} bytes")
