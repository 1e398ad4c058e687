"""Batches prepared for the model ahead of their steps: in order, once each, no further ahead than told, whatever the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Counting, batches
from torch_parts import on_asyncio

import asyncloop
from asyncloop import AfterBatch, DataError, Engine, Hook, Stream

pytestmark = pytest.mark.anyio

N = 12


class Preparing(Counting):
    """Counts what is prepared: by which threads, and how much of it waits for its step."""

    ahead = 3

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.staged: list[int] = []
        self.staged_on: set[str] = set()
        self.most_waiting, self.fails_at = 0, fails_at

    def stage(self, batch: Mapping[str, Any]) -> int:
        number = int(batch["x"][0])
        if number == self.fails_at:
            raise ZeroDivisionError("cannot be prepared")
        self.staged.append(number)
        self.staged_on.add(threading.current_thread().name)
        self.most_waiting = max(self.most_waiting, len(self.staged) - len(self.trained_on))
        return number

    def run(self, batch: Any, *, train: bool, stream: str) -> Mapping[str, Any]:
        assert batch.take() == batch["x"][0], "what was made of this batch"
        assert batch.take() is None, "once"
        return super().run(batch, train=train, stream=stream)


class Streams:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def train_stream(self) -> Any:
        return self.make()

    def valid_stream(self) -> Any:
        return Stream.of(list(batches(2)))


async def fetched(batch: dict[str, Any]) -> dict[str, Any]:
    await anyio.sleep(0)
    return batch


async def generated() -> AsyncIterator[dict[str, Any]]:
    for batch in batches(N):
        yield batch


SOURCES: dict[str, Callable[[], Any]] = {
    "a list": lambda: list(batches(N)),
    "a generator": lambda: batches(N),
    "operators": lambda: Stream.range(N).map(lambda n: {"x": np.full(4, float(n))}, worker="inline"),
    "an async map": lambda: Stream.of(list(batches(N))).map(fetched, concurrency=3),
    "an async generator": generated,
}
every_source = pytest.mark.parametrize("source", SOURCES)


def engine(model: Counting, make: Callable[[], Any], *hooks: Any, **options: Any) -> Engine:
    return Engine(model, Streams(make), hooks, **{"epochs": 1, "skip_zeroth_epoch": True, **options})


@pytest.mark.parametrize("buffer", ["auto", 0, 2])
@every_source
async def test_each_batch_is_prepared_once_in_order_and_not_too_far_ahead(source: str, buffer: Any) -> None:
    model = Preparing()
    await engine(model, SOURCES[source], buffer=buffer).train()
    assert model.trained_on == model.staged == list(range(N))
    assert model.most_waiting <= model.ahead + 1, "as many as told, and one in the hand of the thread or of the model"
    assert model.staged_on == {"asyncloop producer of 'train'"}


@every_source
async def test_the_next_pass_is_prepared_while_this_one_ends(source: str) -> None:
    model = Preparing()
    result = await engine(model, SOURCES[source], epochs=3).train()
    assert result.steps == 3 * N
    assert model.trained_on == list(range(N)) * 3
    assert sorted(model.staged) == sorted(model.trained_on)
    assert model.most_waiting <= 2 * (model.ahead + 1)


@on_asyncio
@every_source
async def test_evaluations_are_prepared_too_and_lose_no_batch_of_the_training(source: str) -> None:
    model = Preparing()
    options = {"extra_streams": ["valid"], "evaluate_every": "5 steps", "epochs": 2}
    await engine(model, SOURCES[source], **options).train()
    assert model.trained_on == list(range(N)) * 2
    assert model.staged_on == {"asyncloop producer of 'train'", "asyncloop producer of 'valid'"}


@on_asyncio
async def test_an_epoch_that_ends_inside_a_pass_goes_on_with_the_next_batch() -> None:
    model = Preparing()
    await engine(model, SOURCES["a list"], epochs=4, epoch_size=5).train()
    assert model.trained_on == [n % N for n in range(20)]


class Stops(Hook):
    lockstep = True

    def __init__(self, at: int) -> None:
        self.at = at

    async def after_batch(self, event: AfterBatch) -> None:
        if event.train and event.step == self.at:
            event.control.stop("told to")


@every_source
async def test_a_run_goes_on_behind_the_last_step_not_behind_what_was_prepared(source: str, tmp_path: Path) -> None:
    first, second = Preparing(), Preparing()
    async with asyncloop.open_run(engine=engine(first, SOURCES[source], Stops(5)), output_dir=tmp_path / "run") as live:
        await live
    assert first.trained_on == list(range(5))
    async with asyncloop.open_run(engine=engine(second, SOURCES[source]), resume=tmp_path / "run") as live:
        await live
    assert second.trained_on == second.staged == list(range(5, N))


@every_source
async def test_what_fails_while_a_batch_is_prepared_comes_out_at_its_place(source: str) -> None:
    model = Preparing(fails_at=6)
    with pytest.raises(ZeroDivisionError, match="cannot be prepared") as caught:
        await engine(model, SOURCES[source]).train()
    assert caught.value.__notes__ == ["stream 'train', batch 6"]
    assert model.trained_on == list(range(6))


def breaks() -> Iterator[dict[str, Any]]:
    yield from batches(4)
    raise OSError("the disk of the data is gone")


async def breaks_async() -> AsyncIterator[dict[str, Any]]:
    for batch in batches(4):
        yield batch
    raise OSError("the disk of the data is gone")


async def fails_at_four(batch: dict[str, Any]) -> dict[str, Any]:
    if batch["x"][0] == 4:
        raise OSError("the disk of the data is gone")
    return batch


FAILING: dict[str, Callable[[], Any]] = {
    "a generator": breaks,
    "an async generator": breaks_async,
    "an async map": lambda: Stream.of(list(batches(N))).map(fails_at_four, concurrency=3),
}


@pytest.mark.parametrize("source", FAILING)
async def test_what_fails_in_the_stream_comes_out_at_its_place_with_its_own_traceback(source: str) -> None:
    model = Preparing()
    with pytest.raises(OSError, match="the disk of the data") as caught:
        await engine(model, FAILING[source]).train()
    assert "stream 'train', batch 4" in caught.value.__notes__
    assert caught.traceback[-1].name in ("breaks", "breaks_async", "fails_at_four")
    assert model.trained_on == list(range(4))


@on_asyncio
async def test_what_is_no_batch_is_told_as_if_nothing_were_prepared() -> None:
    with pytest.raises(DataError, match=r"stream 'train', batch 1: a batch is a mapping .*, not 'int'"):
        await engine(Preparing(), lambda: [{"x": np.zeros(2)}, 3]).train()


# --- stops --------------------------------------------------------------------------------------------------------


class Waiting:
    """Streams that give three batches and then nothing, until they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.waits = threading.Event()

    def generator(self) -> Iterator[dict[str, Any]]:
        yield from batches(3)
        self.waits.set()
        self.let_go.wait(20)

    async def async_generator(self) -> AsyncIterator[dict[str, Any]]:
        for batch in batches(3):
            yield batch
        self.waits.set()
        await anyio.sleep_forever()

    def async_map(self) -> Stream:
        async def slow(batch: dict[str, Any]) -> dict[str, Any]:
            if batch["x"][0] == 3:
                self.waits.set()
                await anyio.sleep_forever()
            return batch

        return Stream.of(list(batches(N))).map(slow, concurrency=2)


@pytest.mark.parametrize("buffer", ["auto", 0])
@pytest.mark.parametrize("kind", ["generator", "async_generator", "async_map"])
async def test_a_stop_while_the_next_batch_is_waited_for_ends_the_run_at_once(
    kind: str, buffer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source, three_ran = Waiting(), threading.Event()
    running = engine(Preparing(), getattr(source, kind), buffer=buffer)
    running.bus.subscribe(AfterBatch, lambda event: three_ran.set() if event.step == 3 else None)

    def stop_when_it_waits() -> None:
        assert source.waits.wait(10)
        assert three_ran.wait(10)
        running.control.stop("told to")

    thread = threading.Thread(target=stop_when_it_waits)
    thread.start()
    began = time.monotonic()
    try:
        with anyio.fail_after(10):
            result = await running.train()
    finally:
        source.let_go.set()
        thread.join()
    assert (result.reason, result.steps) == ("told to", 3)
    assert time.monotonic() - began < 5
    left_behind = [line for line in caplog.messages if "left behind" in line]
    assert not left_behind or kind == "generator", "only a call into the user's own code that does not return is"


@on_asyncio
async def test_a_run_that_was_cancelled_leaves_no_thread() -> None:
    source = Waiting()
    with anyio.move_on_after(0.3) as scope:
        await engine(Preparing(), source.async_map).train()
    assert scope.cancelled_caught
    assert not [each.name for each in threading.enumerate() if "producer" in each.name]


@on_asyncio
async def test_a_pause_while_the_next_batch_is_waited_for_loses_none() -> None:
    source, model = Waiting(), Preparing()
    running = engine(model, source.generator)

    def pause_and_go_on() -> None:
        assert source.waits.wait(10)
        for _ in range(5):
            running.control.pause()
            running.control.resume()
        source.let_go.set()

    thread = threading.Thread(target=pause_and_go_on)
    thread.start()
    await running.train()
    thread.join()
    assert model.trained_on == [0, 1, 2]


@on_asyncio
async def test_the_profile_tells_the_depth_of_the_stream_and_the_waits_for_it() -> None:
    seen: list[Any] = []
    running = engine(Preparing(), SOURCES["an async map"])
    running.bus.subscribe(asyncloop.AfterEpochProfile, lambda event: seen.append(event.profile))
    await running.train()
    assert {"depth_train", "model_waits_train", "producer_waits_train"} <= seen[0].keys()
