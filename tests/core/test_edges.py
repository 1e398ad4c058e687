"""Moments that meet: planned steps at an epoch's end, stops while something opens, cancellations that nobody asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping, batches

import asyncloop
from asyncloop import AfterBatch, AfterEpoch, AfterTraining, BeforeBatch, ConfigError, Engine, Hook, Stream, UsageError
from asyncloop.checkpoint import Checkpoints
from asyncloop.hooks import SaveEvery

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("epoch_size", [2, 3, 4, 6])
async def test_a_planned_step_on_an_epochs_last_batch_ends_the_epoch(epoch_size: int, tmp_path: Path) -> None:
    hook, model = Keeping(), Counting()
    engine = Engine(
        model, Arrays(6), [SaveEvery("2 steps"), hook], epochs=4, epoch_size=epoch_size, extra_streams=["valid"],
        evaluate_every="2 steps", skip_zeroth_epoch=True, output_dir=tmp_path,
    )  # fmt: skip
    with anyio.fail_after(10):
        result = await engine.train()
    assert (result.epochs, result.steps) == (4, 4 * epoch_size)
    assert model.trained_on == [i % 6 for i in range(4 * epoch_size)]
    steps = [event.step for event in hook.of("after_evaluation")]
    assert steps == sorted({*range(2, 4 * epoch_size + 1, 2), *range(epoch_size, 4 * epoch_size + 1, epoch_size)})


async def test_a_stop_on_a_passes_last_batch_goes_on_with_the_next_pass() -> None:
    model = Counting()
    engine = Engine(model, Arrays(5), epochs=2, skip_zeroth_epoch=True)
    engine.bus.subscribe(AfterBatch, lambda event: event.control.stop() if event.step == 5 else None, lockstep=True)
    assert (await engine.train()).steps == 5
    result = await engine.train()
    assert model.trained_on == [0, 1, 2, 3, 4] * (result.steps // 5)
    assert not result.stopped


async def test_given_sources_have_no_position_that_another_could_inherit() -> None:
    model = Counting()
    engine = Engine(model, Arrays())
    stop = engine.bus.subscribe(
        AfterBatch, lambda event: event.control.stop() if event.step == 3 else None, lockstep=True
    )
    await engine.epoch(train=[list(batches(5))])
    engine.bus.unsubscribe(stop)
    model.trained_on.clear()
    await engine.epoch(train=[[{"x": np.full(2, 100.0 + i)} for i in range(3)]])
    assert model.trained_on == [100, 101, 102]


async def test_evaluations_inside_an_epoch_keep_their_own_logs_weighted_by_examples() -> None:
    class Logs(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            if not event.train:
                asyncloop.log("at", event.step)

    hook = Keeping()
    engine = Engine(
        Counting(), Arrays(6), [Logs(), hook], epochs=1, extra_streams=["valid"], evaluate_every="2 steps",
        skip_zeroth_epoch=True,
    )  # fmt: skip
    await engine.train()
    assert [event.data["valid"]["at"] for event in hook.of("after_evaluation")] == [2, 4, 6]
    uneven = [{"x": np.full(9, 1.0)}, {"x": np.full(1, 1.0)}]

    class LogsIndex(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            asyncloop.log("index", event.index)

    data = await Engine(Counting(), Arrays(), [LogsIndex()]).epoch(evaluate=[uneven])
    assert data["unnamed_eval_0"]["index"] == 0.1


async def test_epoch_calls_evaluate_inside_and_at_their_end_and_keep_steps_exact() -> None:
    hook = Keeping()
    engine = Engine(Counting(), Arrays(6), [hook], steps=10, extra_streams=["valid"], evaluate_every="2 steps")
    for _ in range(3):
        await engine.epoch(train=["train"])
    assert [event.step for event in hook.of("after_evaluation")] == [2, 4, 6, 8, 10]
    assert engine.progress.step == 10


async def test_evaluate_every_without_extra_streams_is_an_error() -> None:
    with pytest.raises(ConfigError, match="but extra_streams is empty"):
        Engine(Counting(), Arrays(), evaluate_every="5 steps")


async def test_a_producer_error_after_a_requested_checkpoint_keeps_its_note_and_the_checkpoint(tmp_path: Path) -> None:
    def bad() -> Any:
        yield from batches(5)
        raise ValueError("data")

    class Data(Arrays):
        train_stream = staticmethod(bad)  # type: ignore[assignment]

    with pytest.raises(ValueError, match="data") as caught:
        await Engine(
            Counting(), Data(), [SaveEvery("5 steps")], epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path
        ).train()
    assert "stream 'train', batch 5" in caught.value.__notes__
    assert Checkpoints(tmp_path / "checkpoints").read().step == 5


async def ended_at_once_by(verb: Any, engine: Engine) -> None:
    """Train, use a verb of its control a little later, and see that the run is over within five seconds."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.train)
            await anyio.sleep(0.1)
            verb()


@pytest.mark.parametrize("when", ["stream", "warm-up"])
async def test_a_stop_does_not_wait_for_a_stream_that_is_still_opening(when: str) -> None:
    class Data(Arrays):
        if when == "stream":

            async def train_stream(self) -> Any:  # type: ignore[override]
                await anyio.sleep_forever()
        else:

            async def valid_stream(self) -> Any:  # type: ignore[override]
                await anyio.sleep_forever()

    engine = Engine(Counting(), Data(3), epochs=1, extra_streams=["valid"], skip_zeroth_epoch=True)
    await ended_at_once_by(engine.control.stop, engine)


async def test_abort_waits_for_no_barrier_and_no_backlog() -> None:
    class Slow(Hook):
        async def after_epoch(self, event: AfterEpoch) -> None:
            await anyio.sleep(30)

    engine = Engine(Counting(), Arrays(3), [Slow()], epochs=2, skip_zeroth_epoch=True)
    await ended_at_once_by(engine.control.abort, engine)


async def test_a_call_after_a_stopped_paused_or_cancelled_one_starts_afresh() -> None:
    engine = Engine(Counting(lambda n, train: time.sleep(0.001)), Arrays(30), epochs=2, skip_zeroth_epoch=True)
    with anyio.move_on_after(0.01):
        await engine.train()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        await anyio.sleep(0.01)
        engine.control.pause()
        await anyio.sleep(0.01)
        engine.control.stop()
    with anyio.fail_after(10):
        result = await engine.train()
    assert (result.steps, result.reason) == (60, "2 epochs done")
    with pytest.raises(UsageError, match="ended before"):
        await engine.control.checkpoint()


async def test_a_stop_inside_a_context_stays_for_its_later_calls() -> None:
    engine = Engine(Counting(), Arrays(5))
    async with engine:
        await engine.epoch(train=["train"])
        engine.control.stop("enough")
        await engine.epoch(train=["train"])
        await engine.epoch(train=["train"])
    assert engine.progress.step == 5


async def test_workers_of_a_repeated_stream_end_with_their_round() -> None:
    most = 0

    def count(i: int) -> dict[str, Any]:
        nonlocal most
        most = max(most, sum(t.name.startswith("asyncloop map") for t in threading.enumerate()))
        return {"x": np.ones(2)}

    await Engine(Counting(), Arrays()).epoch(train=[Stream.range(4).map(count, concurrency=2).repeat(20)])
    assert most <= 4


async def test_a_hook_that_comes_and_one_that_goes_during_a_run_harm_no_checkpoint(tmp_path: Path) -> None:
    ended: list[str] = []
    engine = Engine(
        Counting(), Arrays(50), [SaveEvery("5 steps")], epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path
    )
    gone = engine.bus.subscribe(AfterBatch, lambda event: None)

    async def change(event: AfterBatch) -> None:
        if event.step == 10:
            engine.bus.unsubscribe(gone)
            engine.bus.subscribe(AfterTraining, lambda event: ended.append(event.reason))

    engine.bus.subscribe(AfterBatch, change)
    with anyio.fail_after(10):
        await engine.train()
    assert ended == ["1 epoch done"]
    assert Checkpoints(tmp_path / "checkpoints").read().step == 50


async def test_a_state_that_cannot_be_read_fails_the_run_and_tells_who_waits(tmp_path: Path) -> None:
    class Broken(Counting):
        def state_dict(self) -> Any:
            raise ValueError("no state")

    engine = Engine(Broken(), Arrays(5), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path)
    pending = engine.control.checkpoint()
    with pytest.raises(ValueError, match="no state"):
        await engine.train()
    with anyio.fail_after(2), pytest.raises((ValueError, UsageError)):
        await pending


async def test_the_datasets_own_end_never_hides_the_first_error() -> None:
    class Data(Arrays):
        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: object) -> None:
            raise RuntimeError("cleanup")

    def fail(n: int, train: bool) -> None:
        raise ValueError("model")

    with pytest.raises(ValueError, match="model") as caught:
        await Engine(Counting(fail), Data(), epochs=1).train()
    assert any("cleanup" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError, match="cleanup"):
        await Engine(Counting(), Data(), epochs=1).train()


async def test_events_end_although_training_never_began() -> None:
    async with asyncloop.open_run(engine=Engine(Counting(), Arrays(), extra_streams=["vald"])) as live:
        with anyio.fail_after(5):
            assert [event async for event in live.events(AfterEpoch)] == []
        with pytest.raises(ConfigError):
            await live
    with pytest.raises(ConfigError, match="before_batch is a hook's alone"):
        live.events(BeforeBatch)


async def test_options_that_an_engine_cannot_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="belong to a config"):
        async with asyncloop.open_run(engine=Engine(Counting(), Arrays(), epochs=1), progress="json"):
            pass
    with pytest.raises(ConfigError, match="concurrency is for"):
        Engine(Counting(), Arrays(), [Keeping(concurrency=2, after_batches=lambda events: None)])


async def test_a_loss_that_is_no_number_is_named() -> None:
    with pytest.raises(asyncloop.ModelError, match="a loss must be a number"):
        await Engine(Counting(lambda n, train: {"loss": None}), Arrays(3), epochs=1, skip_zeroth_epoch=True).train()


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize("who", ["map", "hook", "barrier", "model", "stream"])
def test_a_cancellation_that_nobody_asked_for_is_an_error_of_who_let_it_out(who: str, use_uvloop: bool) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(asyncio.sleep(5))
        task.cancel()
        await task

    async def fetch(i: int) -> dict[str, Any]:
        if who == "map" and i == 3:
            await cancelled()
        return {"x": np.full(2, float(i))}

    async def stream() -> Any:
        for i in range(6):
            if i == 3:
                await cancelled()
            yield {"x": np.full(2, float(i))}

    class Lets(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            if who == "hook" and event.step == 3:
                await cancelled()

        async def after_epoch(self, event: AfterEpoch) -> None:
            if who == "barrier":
                await cancelled()

    class Model(Counting):
        async def run(self, batch: Any, *, train: bool, stream: str) -> Any:  # type: ignore[override]
            if who == "model" and batch["x"][0] == 3:
                await cancelled()
            return Counting.run(self, batch, train=train, stream=stream)

    async def main() -> None:
        source = Stream.of(stream) if who == "stream" else Stream.range(6).map(fetch, concurrency=2)
        with pytest.raises(RuntimeError, match="although nobody cancelled"), anyio.fail_after(10):
            await Engine(Model(), Arrays(), [Lets()]).epoch(train=[source])

    anyio.run(main, backend_options={"use_uvloop": use_uvloop})
