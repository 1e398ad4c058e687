"""`debug`: a few batches, and whoever changes a batch or an output is found."""

from __future__ import annotations

import sys
import textwrap
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import asyncloop
from asyncloop import DataError, HookError, ModelError
from asyncloop.debugging import BatchGuard

pytestmark = pytest.mark.anyio

PARTS = """
import numpy as np
from asyncloop import Hook

class Data:
    def __init__(self, reuse: bool = False):
        self.reuse = reuse
    def train_stream(self):
        memory = np.zeros(4)
        for i in range(1000):
            memory = memory if self.reuse else np.zeros(4)
            memory[:] = i
            yield {"x": memory, "name": ["a"] * 4}
    valid_stream = train_stream

class Model:
    input_names, output_names = ("x", "name"), ("y", "loss")
    def __init__(self, spoils: bool = False, asynchronous: bool = False):
        self.spoils = spoils
        if asynchronous:
            self.run = self.run_async
    def run(self, batch, *, train, stream):
        if self.spoils:
            batch["x"] /= 2
        return {"y": batch["x"] * 2, "loss": 1.0}
    async def run_async(self, batch, *, train, stream):
        return Model.run(self, batch, train=train, stream=stream)
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

class Slotted:
    __slots__ = ("spoils",)
    input_names, output_names = ("x", "name"), ("y", "loss")
    def __init__(self, spoils: bool = False):
        self.spoils = spoils
    run = Model.run
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass

class Spoils(Hook):
    def __init__(self, what: str):
        self.what = what
    async def after_batch(self, event):
        values = event.outputs if self.what in event.outputs else event.inputs
        values[self.what][:] = -1
"""

CONFIG = {
    "dataset": {"class": "debugged_parts:Data"},
    "model": {"class": "debugged_parts:Model"},
    "engine": {"epochs": 9, "extra_streams": ["valid"]},
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "debugged_parts.py").write_text(textwrap.dedent(PARTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "debugged_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


async def debugged(**changes: object) -> asyncloop.Result:
    async with asyncloop.open_run(CONFIG, set=changes, debug=True) as live:
        return await live


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_run_that_changes_nothing_trains_two_epochs_of_five_batches(asynchronous: bool) -> None:
    result = await debugged(**{"model.asynchronous": asynchronous})
    assert (result.epochs, result.steps) == (2, 10)


async def test_an_epoch_size_larger_than_the_few_batches_is_cut_too() -> None:
    result = await debugged(**{"engine.epoch_size": 100})
    assert (result.epochs, result.steps) == (2, 10)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_model_that_changes_its_batch_is_found(asynchronous: bool) -> None:
    with pytest.raises(ModelError, match=r"batch 1: the model changed its source 'x' in place"):
        await debugged(**{"model.spoils": True, "model.asynchronous": asynchronous})


@pytest.mark.parametrize(("what", "kind"), [("x", "source"), ("y", "output")])
async def test_a_hook_that_changes_what_it_gets_is_found(what: str, kind: str) -> None:
    hook = {"class": "debugged_parts:Spoils", "what": what}
    with pytest.raises(HookError, match=rf"{kind} '{what}' was changed after its step, by a hook \(Spoils\)"):
        await debugged(hooks=[hook])


async def test_a_producer_that_uses_its_memory_again_is_found() -> None:
    with pytest.raises((DataError, HookError), match=r"batch \d: source 'x' was changed"):
        await debugged(**{"dataset.reuse": True, "engine.buffer": 8})


async def test_a_debugged_run_is_tagged() -> None:
    async with asyncloop.open_run(CONFIG, debug=True) as live:
        await live
    assert live.dir is not None
    assert '"debug"' in (live.dir / "run.json").read_text()


class WithSlots:
    """A model whose `run` cannot be set."""

    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 1.0

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> dict[str, float]:
        batch["x"][:] = self.lr
        return {"loss": 1.0}


def test_a_model_with_slots_is_watched_too() -> None:
    guarded = BatchGuard([]).guard(WithSlots())
    with pytest.raises(ModelError, match="the model changed its source 'x' in place"):
        guarded.run({"x": np.zeros(3)}, train=True, stream="train")
    guarded.lr = 2.0
    assert guarded.lr == 2.0
    assert not hasattr(guarded, "weights")


class HalfPrecision:
    """What torch's tensors of bfloat16 do: numpy has no such type."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self) -> HalfPrecision:
        return self

    cpu = detach

    def numpy(self) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")

    def float(self) -> SimpleNamespace:
        return SimpleNamespace(numpy=lambda: self.values.astype(np.float32))


@dataclass
class Sample:
    pixels: np.ndarray


class Table:
    """Something that shows only its ends, as a table of pandas does."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values.copy()

    def __repr__(self) -> str:
        return "0 …"


@pytest.mark.parametrize(
    "held",
    [
        lambda array: array,
        HalfPrecision,
        Table,
        Sample,
        lambda array: {"deep": [(array,)]},
        lambda array: np.array([None, array, "word"], dtype=object),
        lambda array: [Sample(array)],
    ],
)
def test_a_change_anywhere_in_a_large_array_is_seen(held: Callable[[np.ndarray], Any]) -> None:
    array = np.zeros(100_000)
    value = held(array)
    guarded = BatchGuard([]).guard(SimpleNamespace(run=lambda batch, *, train, stream: spoil(array)))
    with pytest.raises(ModelError, match="changed its source 'x'"):
        guarded.run({"x": value}, train=True, stream="train")


def spoil(array: np.ndarray) -> dict[str, float]:
    array[50_000] = 1e-3
    return {"loss": 1.0}


def test_what_is_no_array_but_offers_bytes_is_hashed() -> None:
    guarded = BatchGuard([]).guard(SimpleNamespace(run=lambda batch, *, train, stream: {"loss": 1.0}))
    batch = {"view": memoryview(b"abc"), "array": array("d", [1.0]), "text": "\ud800", "kind": np.ndarray}
    assert guarded.run(batch, train=True, stream="train") == {"loss": 1.0}


async def test_a_run_with_a_model_with_slots_is_watched() -> None:
    changes = {"model.class": "debugged_parts:Slotted"}
    assert (await debugged(**changes)).steps == 10
    with pytest.raises(ModelError, match=r"batch 1: the model changed its source 'x' in place"):
        await debugged(**changes, **{"model.spoils": True})
