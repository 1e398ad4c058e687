"""What becomes of batches on their way into the module: arrays, tensors, nested ones, numbers of any dtype, and the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, Data, Net, a_model, on_asyncio

from asyncloop import AfterBatch, Engine
from asyncloop.batch import RunBatch
from asyncloop.torch import TorchModel
from asyncloop.torch.lane import Lane

pytestmark = pytest.mark.anyio


def taken(batch: dict[str, Any], names: list[str] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return Lane(torch.device("cpu"), names, dtype, channels_last=False).take(batch)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.zeros(2, np.float64), torch.float32),
        (np.zeros(2, np.float32), torch.float32),
        (np.zeros(2, np.float16), torch.float16),
        (np.zeros(2, np.int64), torch.int64),
        (np.zeros(2, np.uint8), torch.uint8),
        (np.zeros(2, bool), torch.bool),
        (np.zeros(2, ">f4"), torch.float32),
        (torch.zeros(2, dtype=torch.float64), torch.float32),
        (torch.zeros(2, dtype=torch.bfloat16), torch.bfloat16),
        ([1, 2], torch.int64),
        ([0.5, 1.5], torch.float32),
    ],
    ids=str,
)
def test_numbers_become_tensors_of_their_dtype_but_float64_that_of_the_module(
    given: Any, expected: torch.dtype
) -> None:
    assert taken({"x": given})["x"].dtype == expected


def test_float64_stays_where_the_module_is_float64() -> None:
    net = nn.Linear(12, 4).double()
    model = TorchModel(net, ["x"], optimizer=ADAM, loss={"class": "torch.nn:CrossEntropyLoss"}, device="cpu")
    batch = {**Data(1).batches[0], "x": np.ones((16, 12))}
    assert model.run(batch, train=True, stream="train")["output"]().dtype == torch.float64


def test_an_array_is_shared_not_copied_unless_pytorch_cannot() -> None:
    array = np.arange(6.0, dtype=np.float32)
    assert np.shares_memory(taken({"x": array})["x"].numpy(), array)
    read_only = array.copy()
    read_only.flags.writeable = False
    for odd in (array[::-1], read_only, array.astype(">f4")):
        assert torch.equal(taken({"x": odd})["x"], torch.tensor(odd.astype(np.float32)))


def test_a_tensor_passes_through_as_it_is() -> None:
    tensor = torch.ones(3)
    assert taken({"x": tensor})["x"] is tensor


def test_nested_sources_stay_nested() -> None:
    batch = {"x": {"left": np.zeros(2), "words": np.array(["a", "b"])}, "y": torch.ones(2)}
    found = taken(batch)
    assert found["x"]["left"].dtype == torch.float32
    assert found["x"]["words"] is batch["x"]["words"]


def test_only_the_sources_that_somebody_looks_at_are_moved() -> None:
    assert set(taken({"x": np.zeros(2), "y": np.zeros(2)}, ["x", "z"])) == {"x"}


def test_what_was_staged_is_taken_once_and_not_kept() -> None:
    lane = Lane(torch.device("cpu"), None, torch.float32, channels_last=False)
    batch = {"x": np.zeros(2)}
    staged = RunBatch(batch, lane.stage(batch))
    first = lane.take(staged)["x"]
    assert lane.take(staged)["x"] is not first


@on_asyncio
async def test_texts_pass_by_the_module_and_reach_the_hooks() -> None:
    class Words(Data):
        def train_stream(self) -> Any:
            for batch in super().train_stream():
                yield {**batch, "word": np.array(["even", "odd"] * 8), "sentence": ["a b", "c"] * 8}

    seen: list[tuple[str, str]] = []
    engine = Engine(a_model(), Words(2), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(
        AfterBatch, lambda event: seen.append((str(event.inputs["word"][1]), event.inputs["sentence"][0]))
    )
    await engine.train()
    assert seen == [("odd", "a b")] * 2


@on_asyncio
@pytest.mark.parametrize("ahead", [0, 2])
async def test_batches_of_tensors_train_as_batches_of_arrays_do(ahead: int) -> None:
    class Tensors(Data):
        def train_stream(self) -> Any:
            for batch in super().train_stream():
                yield {name: torch.from_numpy(value) for name, value in batch.items()}

    class Doubles(Data):
        def train_stream(self) -> Any:
            for batch in super().train_stream():
                yield {**batch, "x": batch["x"].astype(np.float64)}

    losses: list[list[float]] = []
    for data in (Data(), Tensors(), Doubles()):
        model = a_model(module=Net(dropout=0.0), ahead=ahead)
        engine = Engine(model, data, epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
        told: list[float] = []
        engine.bus.subscribe(AfterBatch, lambda event, told=told: told.append(event.outputs["loss"]))
        await engine.train()
        losses.append(told)
    assert losses == [losses[0]] * 3
