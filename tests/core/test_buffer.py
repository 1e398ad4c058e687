"""The stream buffer: nothing lost, doubled or reordered, whoever is at its ends and whatever their pace."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress

import anyio
import pytest

from asyncloop import StreamBuffer, UsageError
from asyncloop.stream import EndOfStream, Interrupted
from asyncloop.threads import OwnThread

pytestmark = pytest.mark.anyio


def take_all(buffer: StreamBuffer[int], pause_s: float) -> list[int]:
    taken: list[int] = []
    while True:
        try:
            taken.append(buffer.get())
        except EndOfStream:
            return taken
        if pause_s and random.random() < 0.2:
            time.sleep(pause_s)


async def put_all(buffer: StreamBuffer[int], n: int, pause_s: float) -> None:
    for i in range(n):
        if not buffer.has_room():
            await buffer.wait_room()
        assert len(buffer) <= max(buffer.capacity - 1, 0)
        if pause_s and random.random() < 0.2:
            await anyio.sleep(pause_s)
        buffer.put(i)
    buffer.close()


def put_all_in_thread(buffer: StreamBuffer[int], n: int, pause_s: float) -> None:
    for i in range(n):
        if not buffer.has_room():
            buffer.wait_room_in_thread()
        if pause_s and random.random() < 0.2:
            time.sleep(pause_s)
        buffer.put(i)
    buffer.close()


@pytest.mark.parametrize("capacity", [0, 1, 2, 8, 64])
@pytest.mark.parametrize("paces", [(0, 0), (0.001, 0), (0, 0.001), (0.001, 0.001)])
async def test_a_task_hands_every_item_to_a_thread_in_order(capacity: int, paces: tuple[float, float]) -> None:
    buffer: StreamBuffer[int] = StreamBuffer(capacity)
    n = 300 if any(paces) else 3000
    async with OwnThread("taker") as thread, anyio.create_task_group() as tasks:
        tasks.start_soon(put_all, buffer, n, paces[0])
        assert await thread.call(take_all, buffer, paces[1]) == list(range(n))


@pytest.mark.parametrize("capacity", [0, 1, 2, 8, 64])
@pytest.mark.parametrize("paces", [(0, 0), (0.001, 0), (0, 0.001)])
async def test_a_thread_hands_every_item_to_a_thread_in_order(capacity: int, paces: tuple[float, float]) -> None:
    buffer: StreamBuffer[int] = StreamBuffer(capacity)
    n = 300 if any(paces) else 3000
    async with OwnThread("taker") as taker, OwnThread("producer") as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(producer.call, put_all_in_thread, buffer, n, paces[0])
        assert await taker.call(take_all, buffer, paces[1]) == list(range(n))


@pytest.mark.parametrize("capacity", [1, 8])
async def test_a_thread_hands_every_item_to_a_task_in_order(capacity: int) -> None:
    buffer: StreamBuffer[int] = StreamBuffer(capacity)
    taken: list[int] = []
    async with OwnThread("producer") as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(producer.call, put_all_in_thread, buffer, 1000, 0)
        with pytest.raises(EndOfStream):
            while True:
                taken.append(await buffer.aget())
    assert taken == list(range(1000))


async def test_cancelling_a_taker_at_any_moment_loses_no_item() -> None:
    buffer: StreamBuffer[int] = StreamBuffer(4)
    taken: list[int] = []

    async def take_some() -> None:
        while True:
            item = await buffer.aget()
            taken.append(item)

    async with OwnThread("producer") as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(producer.call, put_all_in_thread, buffer, 200, 0.0005)
        while len(taken) < 200:
            with anyio.move_on_after(random.random() * 0.003), suppress(EndOfStream):
                await take_some()
    assert taken == list(range(200))


async def test_an_error_arrives_after_the_items_before_it_as_itself() -> None:
    buffer: StreamBuffer[int] = StreamBuffer(4)
    error = ValueError("broken")
    buffer.put(1)
    buffer.put(2)
    buffer.close(error)
    assert (buffer.get(), buffer.get()) == (1, 2)
    with pytest.raises(ValueError, match="broken") as caught:
        buffer.get()
    assert caught.value is error


async def test_a_sleeping_taker_can_be_interrupted_and_goes_on_afterwards() -> None:
    buffer: StreamBuffer[int] = StreamBuffer(4)
    async with OwnThread("taker") as thread:
        timer = threading.Timer(0.02, buffer.interrupt)
        timer.start()
        with pytest.raises(Interrupted):
            await thread.call(buffer.get)
        timer.join()
        buffer.put(7)
        assert await thread.call(buffer.get) == 7


async def test_producers_are_told_when_the_taker_has_left() -> None:
    buffer: StreamBuffer[int] = StreamBuffer(1)
    buffer.put(1)
    async with anyio.create_task_group() as tasks:

        async def produce() -> None:
            with pytest.raises(Interrupted):
                await buffer.wait_room()

        tasks.start_soon(produce)
        await anyio.sleep(0.01)
        buffer.abandon()


async def test_statistics_say_who_waits_for_whom() -> None:
    buffer: StreamBuffer[int] = StreamBuffer(2)
    async with OwnThread("taker") as thread, anyio.create_task_group() as tasks:
        tasks.start_soon(put_all, buffer, 50, 0)
        await thread.call(take_all, buffer, 0.001)
    statistics = buffer.statistics()
    assert statistics.taken == 50
    assert statistics.producer_waits > 0
    assert statistics.depth == 0


async def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(UsageError, match="0 or more, not -1"):
        StreamBuffer(-1)
