"""The way of a finished batch to the hooks: soon, in order, and in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, batches

from asyncloop import AfterBatch, Engine, Hook, Stream

pytestmark = pytest.mark.anyio


class Seeing(Hook):
    """Notes every step it is told of, and says when it has seen `n`."""

    def __init__(self, n: int) -> None:
        self.n, self.steps = n, list[int]()
        self.seen, self.seen_in_thread = anyio.Event(), threading.Event()

    async def after_batch(self, event: AfterBatch) -> None:
        self.steps.append(event.step)
        if len(self.steps) == self.n:
            self.seen.set()
            self.seen_in_thread.set()


async def test_what_is_finished_reaches_hooks_while_the_model_waits_for_data() -> None:
    hook = Seeing(5)

    async def source() -> AsyncIterator[dict[str, Any]]:
        for batch in batches(5):
            yield batch
        with anyio.fail_after(5):
            await hook.seen.wait()

    await Engine(Counting(), Arrays(), [hook]).epoch(train=[source])
    assert hook.steps == [1, 2, 3, 4, 5]


async def test_what_is_finished_reaches_hooks_while_a_long_step_runs() -> None:
    hook = Seeing(3)
    model = Counting(lambda n, train: None if n < 3 or hook.seen_in_thread.wait(5) else pytest.fail("nobody was told"))
    await Engine(model, Arrays(4), [hook], epochs=1, skip_zeroth_epoch=True).train()
    assert hook.steps == [1, 2, 3, 4]


async def test_every_hook_sees_every_step_in_order_however_many_are_quick() -> None:
    hooks = [Seeing(3000), Seeing(3000)]
    stream = Stream.of([{"x": np.zeros(2)}] * 3000)
    await Engine(Counting(), Arrays(), hooks).epoch(train=[stream])
    assert all(hook.steps == list(range(1, 3001)) for hook in hooks)


async def test_large_batches_do_not_pile_up_before_a_stuck_hook() -> None:
    free = anyio.Event()

    class Stuck(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            await free.wait()

    model = Counting()
    large = {"x": np.zeros(20 * 2**20 // 8)}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_train_on, Engine(model, Arrays(), [Stuck()]), Stream.of([large] * 100))
        before = -1
        while len(model.trained_on) != before or before == 0:
            before = len(model.trained_on)
            await anyio.sleep(0.1)
        free.set()
        assert (
            before < 15
        )  # 64 MiB of them in the mailbox, as much on the way, one in the hook's and one in the model's hands
    assert len(model.trained_on) == 100


async def _train_on(engine: Engine, stream: Stream) -> None:
    await engine.epoch(train=[stream])


async def test_a_generator_may_wait_for_what_hooks_make_of_its_last_batch() -> None:
    """Everything it has made so far is handed over, however many it makes at once."""
    hook = Seeing(64)

    def source() -> Iterator[dict[str, Any]]:
        for i in range(64):
            yield {"x": np.full(2, i)}
        assert hook.seen_in_thread.wait(5)

    model = Counting()
    await Engine(model, Arrays(), [hook]).epoch(train=[source])
    assert model.trained_on == list(range(64))


async def test_a_mailbox_may_be_emptied_while_its_hook_is_at_work() -> None:
    class Shielded(Hook):
        steps: list[int] = []

        async def after_batch(self, event: AfterBatch) -> None:
            self.steps.append(event.step)
            if event.step == 20:
                event.control.abort()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)

    await Engine(Counting(), Arrays(), [Shielded()]).epoch(train=[Stream.of([{"x": np.zeros(2)}] * 500)])
    assert Shielded.steps[:20] == list(range(1, 21))


async def test_an_array_that_does_not_tell_its_size_is_no_reason_to_fail() -> None:
    class Sparse:
        shape = (2, 3)

        @property
        def nbytes(self) -> int:
            raise RuntimeError("no strides here")

    hook = Seeing(3)
    batch = {"x": np.zeros(2), "sparse": Sparse()}
    await Engine(Counting(), Arrays(), [hook], on_unused_sources="ignore").epoch(train=[Stream.of([batch] * 3)])
    assert hook.steps == [1, 2, 3]


async def test_what_goes_wrong_in_delivery_fails_the_run() -> None:
    class Odd(dict[str, Any]):
        def values(self) -> Any:
            raise ZeroDivisionError("while the bytes were counted")

    model = Counting()
    run = model.run
    model.run = lambda batch, **how: Odd(run(batch, **how))  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError, match="while the bytes were counted"):
        await Engine(model, Arrays(), [Seeing(1)]).epoch(train=[Stream.of([{"x": np.zeros(2)}] * 3)])


async def test_a_walked_stream_that_failed_begins_anew_when_it_is_asked_again() -> None:
    def fails() -> Iterator[dict[str, Any]]:
        yield from batches(2)
        raise KeyError("lost")

    class Data:
        def train_stream(self) -> Iterator[dict[str, Any]]:
            return fails()

    model = Counting()
    async with Engine(model, Data(), buffer=0) as engine:
        for _ in range(2):
            with pytest.raises(KeyError, match="lost"):
                await engine.epoch(train=["train"])
    assert model.trained_on == [0, 1, 0, 1]
