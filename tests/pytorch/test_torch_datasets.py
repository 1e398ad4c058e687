"""PyTorch's Datasets and DataLoaders as streams: their order, their batches, and no worker left when a pass is over."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch_parts import N_CLASSES, N_INPUTS, Net, a_model, on_asyncio, same_bits

import asyncloop
from asyncloop import AfterBatch, DataError, Engine, Hook, Stream

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:This process .*is multi-threaded")]

X = torch.from_numpy(np.random.default_rng(0).normal(size=(64, N_INPUTS)).astype(np.float32))
LABEL = torch.arange(64) % N_CLASSES


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A map-style dataset: a length, and an example for each index."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.threads.add(threading.current_thread().name)
        return X[index], LABEL[index]


class Generated(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(X, LABEL, strict=True))


class Streams:
    def __init__(self, train: Any) -> None:
        self.train = train

    def train_stream(self) -> Any:
        return self.train

    def valid_stream(self) -> Any:
        return self.train


async def batches_of(stream: Any, epochs: int = 1) -> list[np.ndarray]:
    """The labels of each batch that was trained on."""
    seen: list[np.ndarray] = []
    engine = Engine(a_model(module=Net(dropout=0.0)), Streams(stream), epochs=epochs, skip_zeroth_epoch=True)
    engine.bus.subscribe(AfterBatch, lambda event: seen.append(np.array(event.inputs["x"][:, 0])), variables=["x"])
    await engine.train()
    return seen


@on_asyncio
@pytest.mark.parametrize("n_workers", [0, 2])
async def test_a_loader_is_a_stream_and_its_workers_are_gone_afterwards(n_workers: int) -> None:
    loader = DataLoader(Examples(), batch_size=16, num_workers=n_workers)
    seen = await batches_of(Stream.of(loader, names=("x", "label")), epochs=2)
    assert np.array_equal(np.concatenate(seen), np.tile(X[:, 0].numpy(), 2))
    assert not multiprocessing.active_children()


@on_asyncio
async def test_workers_are_gone_also_when_a_run_is_stopped_or_fails_in_the_middle() -> None:
    class Fails(Hook):
        def __init__(self, how: str) -> None:
            self.how = how

        async def after_batch(self, event: AfterBatch) -> None:
            if self.how == "raise":
                raise ZeroDivisionError
            event.control.stop("told to")

    for how in ("stop", "raise"):
        loader = DataLoader(Examples(), batch_size=2, num_workers=2)
        engine = Engine(
            a_model(), Streams(Stream.of(loader, names=("x", "label"))), [Fails(how)], epochs=9, skip_zeroth_epoch=True
        )
        if how == "stop":
            await engine.train()
        else:
            with pytest.raises(ZeroDivisionError):
                await engine.train()
        assert not multiprocessing.active_children()


@on_asyncio
async def test_an_iterable_dataset_in_a_loader_is_read_in_order() -> None:
    seen = await batches_of(Stream.of(DataLoader(Generated(), batch_size=16), names=("x", "label")))
    assert np.array_equal(np.concatenate(seen), X[:, 0].numpy())


@on_asyncio
@pytest.mark.parametrize("dataset", [Examples(), TensorDataset(X, LABEL)], ids=lambda each: type(each).__name__)
async def test_a_dataset_by_index_is_shuffled_and_batched_like_any_stream(dataset: Any) -> None:
    stream = Stream.of(dataset, names=("x", "label")).shuffle(64).batch(16)
    seen = await batches_of(stream, epochs=2)
    assert [len(each) for each in seen] == [16] * 8
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.sort(X[:, 0].numpy()))
    assert not np.array_equal(first, second), "each pass in its own order"
    assert np.array_equal(np.concatenate(await batches_of(stream, epochs=1)), first), "which depends on seed and pass"


async def test_a_dataset_of_whole_batches_goes_on_in_its_middle_without_reading_what_was_before(tmp_path: Path) -> None:
    class Batches:
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            self.read.append(index)
            return {"x": X[8 * index : 8 * index + 8], "label": LABEL[8 * index : 8 * index + 8]}

    class Stops(Hook):
        lockstep = True

        async def after_batch(self, event: AfterBatch) -> None:
            if event.step == 3:
                event.control.stop("told to")

    def engine(model: Any, items: Batches, *hooks: Hook) -> Engine:
        return Engine(model, Streams(Stream.of(items)), hooks, epochs=1, skip_zeroth_epoch=True)

    whole, first, second = (a_model(module=Net(dropout=0.0)) for _ in range(3))
    await engine(whole, Batches()).train()
    async with asyncloop.open_run(engine=engine(first, Batches(), Stops()), output_dir=tmp_path / "run") as live:
        await live
    rest = Batches()
    async with asyncloop.open_run(engine=engine(second, rest), resume=tmp_path / "run") as live:
        await live
    assert rest.read == [3, 4, 5, 6, 7]
    assert same_bits(second.module.state_dict(), whole.module.state_dict())


@on_asyncio
async def test_examples_that_take_long_to_make_are_made_beside_the_model() -> None:
    threads: set[str] = set()
    at_once = threading.Event()

    class Slow:
        """Each item takes longer than the first look of the model at it may."""

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> dict[str, Any]:
            threads.add(threading.current_thread().name)
            at_once.wait(0.002)
            return {"x": X[:8], "label": LABEL[:8]}

    engine = Engine(a_model(), Streams(Stream.of(Slow())), epochs=1, skip_zeroth_epoch=True)
    await engine.train()
    assert "asyncloop producer of 'train'" in threads


def test_what_has_no_items_by_index_is_told_what_would_do() -> None:
    with pytest.raises(DataError, match=r"an object with len\(\) and an item for each index"):
        Stream.of({"x": 1})


@on_asyncio
async def test_a_class_with_items_by_index_is_still_a_factory() -> None:
    class Made(list[Any]):
        def __init__(self) -> None:
            super().__init__([{"x": X[:8], "label": LABEL[:8]}] * 3)

    assert len(await batches_of(Stream.of(Made))) == 3
