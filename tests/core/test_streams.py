"""Streams: what each operator gives, in which order, and that any position can be gone back to."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncloop import ConfigError, DataError, Engine, Stream
from asyncloop.stream import feed
from asyncloop.stream.order import Pass, keyed_permutation

pytestmark = pytest.mark.anyio


async def opened(stream: Stream, number: int = 1, seed: int = 0, cursor: Any = None) -> list[tuple[Any, Any]]:
    """All (element, cursor) of one pass, as a producer task would read them."""
    pairs: list[tuple[Any, Any]] = []
    errors: list[Exception] = []
    at = Pass("train", number, seed)
    async with anyio.create_task_group() as tasks:
        at.tasks = tasks
        try:
            async with aclosing(stream.node.elements(at, cursor)) as elements:
                async for pair in elements:
                    pairs.append(pair)
        except Exception as error:
            errors.append(error)
        tasks.cancel_scope.cancel()
    for close in at.closers:
        await close()
    if errors:
        raise errors[0]
    return pairs


async def values(stream: Stream, number: int = 1, seed: int = 0, cursor: Any = None) -> list[Any]:
    return [value for value, _ in await opened(stream, number, seed, cursor)]


async def double(i: int) -> int:
    await anyio.sleep(random.random() * 0.002)
    return 2 * i


def slow_double(i: int) -> int:
    time.sleep(random.random() * 0.002)
    return 2 * i


def counting() -> Iterator[int]:
    yield from range(23)


async def counting_async() -> AsyncIterator[int]:
    for i in range(23):
        yield i


CHAINS: dict[str, Stream] = {
    "range": Stream.range(23),
    "shuffled range": Stream.range(23, shuffle=True),
    "sequence": Stream.of(list(range(23))),
    "generator function": Stream.of(counting),
    "async generator function": Stream.of(counting_async),
    "factory": Stream.of(lambda: counting()),
    "inline map": Stream.range(23, shuffle=True).map(slow_double, worker="inline"),
    "thread map": Stream.range(23, shuffle=True).map(slow_double, concurrency=5),
    "async map": Stream.range(23, shuffle=True).map(double, concurrency=5),
    "map of a generator": Stream.of(counting).map(double, concurrency=3),
    "batch": Stream.range(23).map(slow_double, worker="inline").batch(5),
    "batch of a range": Stream.range(23, shuffle=True).batch(5),
    "drop_last": Stream.range(23).batch(5, drop_last=True),
    "shuffle": Stream.of(counting).shuffle(7),
    "take": Stream.range(23, shuffle=True).take(11),
    "repeat": Stream.range(7, shuffle=True).repeat(3),
    "everything": Stream.of(counting).map(double).shuffle(6).batch(2).map(lambda x: x + 1).repeat(2).take(19),
}


@pytest.mark.parametrize("name", CHAINS)
async def test_going_back_to_any_cursor_gives_exactly_the_rest(name: str) -> None:
    pairs = await opened(CHAINS[name])
    assert pairs
    for k in range(0, len(pairs), 3):
        rest = await values(CHAINS[name], cursor=pairs[k][1])
        np.testing.assert_equal(rest, [value for value, _ in pairs[k + 1 :]])


@pytest.mark.parametrize("name", CHAINS)
async def test_order_is_a_pure_function_of_seed_and_pass(name: str) -> None:
    np.testing.assert_equal(await values(CHAINS[name]), await values(CHAINS[name]))


async def test_each_pass_seed_and_stream_shuffles_differently_and_loses_nothing() -> None:
    stream = Stream.range(50, shuffle=True)
    orders = [tuple(await values(stream, number, seed)) for number in (0, 1, 2) for seed in (0, 1)]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)
    fixed = Stream.range(50, shuffle=True, seed=7)
    assert await values(fixed, 1, 0) == await values(fixed, 1, 1)
    rounds = await values(Stream.range(20, shuffle=True).repeat(2))
    assert rounds[:20] != rounds[20:]
    assert sorted(rounds[:20]) == sorted(rounds[20:])


async def test_block_shuffle_stays_inside_its_blocks() -> None:
    order = await values(Stream.range(100).shuffle(10))
    assert order != list(range(100))
    assert all(sorted(order[i : i + 10]) == list(range(i, i + 10)) for i in range(0, 100, 10))


@given(st.integers(1, 5000), st.integers(0, 2**128 - 1))
@settings(max_examples=60, deadline=None)
def test_the_keyed_permutation_is_one_for_any_size_and_key(n: int, key: int) -> None:
    order = keyed_permutation(np.arange(n), n, key)
    assert sorted(order.tolist()) == list(range(n))


def test_the_keyed_permutation_is_fast_to_any_position_and_never_changes() -> None:
    n = 10**13
    assert keyed_permutation(np.array([0, 1, n - 1]), n, 42).tolist() == [9822411792065, 9132713093560, 5930485845670]
    assert keyed_permutation(np.arange(8), 8, 1).tolist() == keyed_permutation(np.arange(8), 8, 1).tolist()


def test_the_keyed_permutation_looks_random() -> None:
    n = 1000
    orders = np.array([keyed_permutation(np.arange(n), n, key) for key in range(40)])
    assert abs(np.corrcoef(np.arange(n), orders[0])[0, 1]) < 0.15
    assert abs(orders[:, 0].mean() - n / 2) < 4 * n / np.sqrt(12 * 40)


async def test_a_function_that_names_rng_gets_one_keyed_by_its_index() -> None:
    def noise(i: int, rng: np.random.Generator) -> float:
        return float(rng.random())

    async def async_noise(i: int, rng: np.random.Generator) -> float:
        await anyio.sleep(random.random() * 0.001)
        return float(rng.random())

    inline = await values(Stream.range(9).map(noise, worker="inline"))
    assert inline == await values(Stream.range(9).map(noise)) == await values(Stream.range(9).map(async_noise))
    assert len(set(inline)) == 9
    assert inline != await values(Stream.range(9).map(noise, worker="inline"), number=2)
    rest = await values(Stream.range(9).map(noise, worker="inline"), cursor=[4, 4])
    assert rest == inline[4:]


async def test_concurrency_is_what_was_asked_and_order_stays() -> None:
    at_once = most = 0

    async def fn(i: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.sleep(0.02 if i % 8 == 0 else 0.001)
        at_once -= 1
        return i

    assert await values(Stream.range(40).map(fn, concurrency=6)) == list(range(40))
    assert most == 6


async def test_plain_functions_run_in_threads_as_many_as_asked() -> None:
    threads: set[int] = set()

    def fn(i: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return i

    assert await values(Stream.range(30).map(fn, concurrency=3)) == list(range(30))
    assert 1 < len(threads) <= 3
    assert threading.get_ident() not in threads


async def test_batches_stack_nested_structures_and_name_what_does_not_fit() -> None:
    examples = [{"image": {"left": np.ones(2), "right": i}, "pair": (i, "a")} for i in range(3)]
    [batch] = await values(Stream.of(examples).batch(3))
    assert batch["image"]["left"].shape == (3, 2)
    assert batch["image"]["right"].tolist() == [0, 1, 2]
    assert batch["pair"][1].tolist() == ["a"] * 3
    with pytest.raises(DataError, match=r"cannot stack source 'x': .*different shapes \[\(1,\), \(2,\)\]"):
        await values(Stream.of([{"x": np.ones(1)}, {"x": np.ones(2)}]).batch(2))
    with pytest.raises(DataError, match=r"example 0 has the keys \['x'\], example 1 has \['y'\]"):
        await values(Stream.of([{"x": 1}, {"y": 1}]).batch(2))
    [joined] = await values(Stream.of(["a", "b"]).batch(2, collate="".join))
    assert joined == "ab"


async def test_tuples_become_batches_by_names() -> None:
    [batch] = await values(Stream.of([(1, 2)], names=("x", "y")))
    assert batch == {"x": 1, "y": 2}
    with pytest.raises(DataError, match="needs tuples of 2 parts, but the source gave 3 parts"):
        await values(Stream.of([(1, 2, 3)], names=("x", "y")))


async def test_an_iterators_own_state_is_its_cursor() -> None:
    class Stateful:
        def __init__(self) -> None:
            self.i = 0

        def __iter__(self) -> Stateful:
            return self

        def __next__(self) -> int:
            if self.i == 5:
                raise StopIteration
            self.i += 1
            return self.i

        def state_dict(self) -> dict[str, int]:
            return {"i": self.i}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.i = state["i"]

    stream = Stream.of(lambda: Stateful())
    assert (await opened(stream))[1] == (2, {"i": 2})
    assert await values(stream, cursor={"i": 3}) == [4, 5]


class Living:
    """An iterator whose state is the live one, changed in place; `extra` is in it, too. `plain` or async."""

    def __init__(self, **extra: Any) -> None:
        self.state: dict[str, Any] = {"i": 0, "seen": [], **extra}

    def _next(self, end: type[Exception]) -> int:
        if self.state["i"] == 5:
            raise end
        self.state["i"] += 1
        self.state["seen"].append(np.int64(self.state["i"]))
        return self.state["i"]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class PlainLiving(Living):
    def __iter__(self) -> PlainLiving:
        return self

    def __next__(self) -> int:
        return self._next(StopIteration)


class AsyncLiving(Living):
    def __aiter__(self) -> AsyncLiving:
        return self

    async def __anext__(self) -> int:
        return self._next(StopAsyncIteration)


@pytest.mark.parametrize("living", [PlainLiving, AsyncLiving])
async def test_a_cursor_is_out_of_reach_of_an_iterator_that_goes_on(living: type[Living]) -> None:
    cursors = [cursor for _, cursor in await opened(Stream.of(lambda: living()))]
    assert cursors == [{"i": i, "seen": list(range(1, i + 1))} for i in range(1, 6)]
    assert json.loads(json.dumps(cursors)) == cursors
    assert await values(Stream.of(lambda: living()), cursor=cursors[2]) == [4, 5]
    assert cursors[2] == {"i": 3, "seen": [1, 2, 3]}


@pytest.mark.parametrize("living", [PlainLiving, AsyncLiving])
@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({1, 2}, "a set at 'extra'"),
        ([{"x": np.ones(2)}], "a ndarray at 'extra/0/x'"),
        ({"at": {3: 1}}, "a mapping with a int as a key at 'extra/at'"),
        ([10**5000], "a int at 'extra/0'"),
    ],
)
async def test_a_cursor_that_no_checkpoint_can_keep_is_told_with_its_stream(
    living: type[Living], extra: Any, told: str
) -> None:
    with pytest.raises(DataError, match=f"stream 'train': the state_dict of its iterator holds {told}"):
        await values(Stream.of(lambda: living(extra=extra)))


async def test_resume_of_an_opaque_source_follows_its_policy() -> None:
    assert await values(Stream.of(counting), cursor=20) == [20, 21, 22]
    assert await values(Stream.of(counting, resume="continue"), cursor=20) == list(range(23))
    with pytest.raises(DataError, match="stands at batch 20 and its source cannot go back"):
        await values(Stream.of(counting, resume="error"), cursor=20)


async def test_an_async_generator_lives_and_dies_in_one_task_and_a_plain_one_on_one_thread() -> None:
    tasks: set[int] = set()
    threads: set[int] = set()
    closed: list[str] = []

    async def from_task() -> AsyncIterator[Any]:
        try:
            for i in range(20):
                tasks.add(anyio.get_current_task().id)
                await anyio.sleep(0)
                yield {"x": np.ones(2) * i}
        finally:
            tasks.add(anyio.get_current_task().id)
            closed.append("async")

    def from_thread() -> Iterator[Any]:
        try:
            for i in range(20):
                threads.add(threading.get_ident())
                yield {"x": np.ones(2) * i}
        finally:
            threads.add(threading.get_ident())
            closed.append("plain")

    for buffer in (0, 4, "auto"):
        tasks.clear(), threads.clear(), closed.clear()
        engine = Engine(Counting(), Arrays(), buffer=buffer)  # type: ignore[arg-type]
        await engine.epoch(train=[Stream.of(from_task), Stream.of(from_thread)])
        assert (len(tasks), len(threads), closed) == (1, 1, ["async", "plain"])


@pytest.mark.parametrize("buffer", [0, 1, 5])
async def test_never_more_batches_are_alive_than_the_buffer_and_one_in_the_model(buffer: int) -> None:
    made, run, most = 0, 0, 0

    class Data(Arrays):
        async def train_stream(self) -> Any:  # type: ignore[override]
            nonlocal made, most
            for i in range(40):
                made += 1
                most = max(most, made - run)
                yield {"x": np.full(2, float(i))}

    def slow(n: int, train: bool) -> None:
        nonlocal run
        time.sleep(0.001)
        run += 1

    await Engine(Counting(slow), Data(), epochs=1, skip_zeroth_epoch=True, buffer=buffer).train()
    assert most <= max(buffer, 1) + 1


async def test_the_pass_reaches_a_dataset_method_that_names_epoch() -> None:
    passes: list[int] = []

    class Data(Arrays):
        def train_stream(self, epoch: int) -> Any:  # type: ignore[override]
            passes.append(epoch)
            return Stream.range(4).batch(2).map(lambda i: {"x": i}, worker="inline")

    await Engine(Counting(), Data(), epochs=3).train()
    assert passes == [0, 1, 2, 3]


def test_wrong_descriptions_are_refused_at_once() -> None:
    for make, pattern in (
        (lambda: Stream.range(-1), "range.n. is a whole number of at least 0, not -1"),
        (lambda: Stream.range(3).batch(0), "batch.n. is a whole number of at least 1, not 0"),
        (lambda: Stream.of(3), "a stream needs an iterable"),
        (lambda: Stream.range(3).map(3), "map needs a function, not 'int'"),  # type: ignore[arg-type]
        (lambda: Stream.range(3).map(double, worker="thread"), "an async function runs on the event loop"),
        (lambda: Stream.range(3).map(abs, worker="rocket"), "worker is 'thread' or 'inline', not 'rocket'"),  # type: ignore[arg-type]
        (lambda: Stream.of([1], resume="maybe"), "resume is 'replay', 'continue' or 'error'"),  # type: ignore[arg-type]
        (lambda: Stream.of([1], names="xy"), "names is a sequence of source names, not the string"),
    ):
        with pytest.raises((ConfigError, DataError), match=pattern):
            make()


@pytest.mark.parametrize("dear", [True, False])
async def test_a_dear_chain_moves_to_a_thread_after_its_first_items_and_loses_none(
    dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dear:  # however slow the machine is
        monkeypatch.setattr(feed, "WALK_BELOW_S", 10.0)
    threads: list[str] = []

    def load(i: int) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        if dear:
            time.sleep(0.0005)
        return {"x": np.full(2, i)}

    model = Counting()
    await Engine(model, Arrays()).epoch(train=[Stream.range(60).map(load, worker="inline")])
    assert model.trained_on == list(range(60))
    by_the_model = threads.count("asyncloop model")
    assert 1 <= by_the_model < 16 if dear else by_the_model == 60
    assert len(threads) == 60


async def test_a_stop_right_after_a_chain_moved_to_a_thread_ends_it() -> None:
    def load(i: int) -> dict[str, Any]:
        time.sleep(0.0005)
        return {"x": np.full(2, i)}

    model = Counting(lambda n, train: engine.control.stop("enough") if n == 3 else None)
    engine = Engine(model, Arrays())
    await engine.epoch(train=[Stream.range(10_000).map(load, worker="inline")])


async def test_the_workers_of_a_repeated_map_end_with_their_round() -> None:
    at_work: list[int] = []

    async def load(i: int) -> int:
        at_work.append(sum("_work" in (task.name or "") for task in anyio.get_running_tasks()))
        await anyio.sleep(0)
        return i

    stream = Stream.range(6).map(load, concurrency=3).repeat(5)
    assert [value for value, _ in await opened(stream)] == [*range(6)] * 5
    assert max(at_work) <= 3 + 3  # a round's own, and those of the round before that are about to end
