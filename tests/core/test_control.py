"""Steering a run from outside, and ending it at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping, batches

from asyncloop import AfterBatch, ConfigError, Engine, Hook, Stream, UsageError

pytestmark = pytest.mark.anyio


class Endless(Arrays):
    def train_stream(self) -> Iterator[dict[str, Any]]:
        while True:
            yield {"x": np.ones(2)}


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.parametrize("buffer", [0, 4, "auto"])
async def test_stop_ends_a_run_at_a_step_with_its_reason(buffer: Any) -> None:
    hook = Keeping()
    engine = Engine(Counting(), Endless(), [hook], buffer=buffer)
    async with anyio.create_task_group() as tasks:
        results: list[Any] = []

        async def train() -> None:
            results.append(await engine.train())

        tasks.start_soon(train)
        await until(lambda: engine.progress.step > 0 or hook.steps)
        engine.control.stop("seen enough")
    assert results[0].reason == "seen enough"
    assert results[0].stopped
    assert hook.steps == list(range(1, results[0].steps + 1))
    assert hook.count("after_epoch") == 0
    assert hook.of("after_training")[0].success is True


async def test_pause_holds_the_model_and_resume_goes_on() -> None:
    hook, model = Keeping(), Counting(lambda n, train: time.sleep(0.001))
    engine = Engine(model, Endless(), [hook])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        await until(lambda: len(hook.steps) > 3)
        engine.control.pause()
        await until(lambda: hook.count("paused") == 1)
        n = model.n_runs
        await anyio.sleep(0.05)
        assert model.n_runs == n
        engine.control.resume()
        await until(lambda: model.n_runs > n + 3)
        assert hook.count("resumed") == 1
        engine.control.stop()


async def test_a_paused_run_can_be_stopped() -> None:
    engine = Engine(Counting(), Endless())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        engine.control.pause()
        await anyio.sleep(0.01)
        engine.control.stop()


async def test_verbs_work_from_other_threads_at_once() -> None:
    engine = Engine(Counting(), Endless())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        await until(lambda: engine.progress.epoch == 1)
        thread = threading.Thread(target=engine.control.stop, args=("from a thread",))
        thread.start()
        thread.join()


async def test_set_changes_a_live_parameter_at_a_step_and_is_an_event() -> None:
    hook = Keeping()

    class Sets(Hook):
        lockstep, every = True, "3 steps"

        async def after_batch(self, event: AfterBatch) -> None:
            if event.step == 3:
                event.control.set("lr", 0)

    model = Counting()
    engine = Engine(model, Arrays(6), [Sets(), hook], epochs=1, skip_zeroth_epoch=True)
    await engine.train()
    assert model.total[0] == (0 + 1 + 2) * 4
    assert [(event.name, event.value, event.step) for event in hook.of("parameter_changed")] == [("lr", 0.0, 3)]
    with pytest.raises(ConfigError, match=r"no live parameter 'l' \(it offers: lr\)"):
        Engine(model, Arrays()).control.set("l", 1)
    with pytest.raises(ConfigError, match="'lr' is a float, not 'fast'"):
        Engine(model, Arrays()).control.set("lr", "fast")


async def test_a_requested_checkpoint_is_of_its_step_and_awaitable(tmp_path: Path) -> None:
    hook = Keeping()
    engine = Engine(Counting(lambda n, train: time.sleep(0.002)), Endless(), [hook], output_dir=tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        await until(lambda: len(hook.steps) > 2)
        path = await engine.control.checkpoint()
        assert (path / "manifest.json").is_file()
        await until(lambda: hook.count("checkpoint_saved") == 1)
        assert hook.of("checkpoint_saved")[0].path == path
        assert path.name == f"step-{hook.of('checkpoint_saved')[0].step:08d}"
        engine.control.stop()


async def test_a_checkpoint_that_never_comes_is_told() -> None:
    engine = Engine(Counting(), Arrays(2), epochs=1)
    await engine.train()
    pending = engine.control.checkpoint()
    engine.control.end()
    with pytest.raises(UsageError, match="ended before this checkpoint"):
        await pending


async def test_abort_ends_without_saving_or_waiting_for_hooks(tmp_path: Path) -> None:
    class Hangs(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            await anyio.sleep_forever()

    engine = Engine(Counting(), Endless(), [Hangs()], output_dir=tmp_path)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.train)
            await until(lambda: engine.progress.epoch == 1)
            engine.control.abort()
    assert not (tmp_path / "checkpoints").exists()


SOURCES: dict[str, Any] = {
    "endless": lambda: Stream.of(lambda: Endless().train_stream()),
    "blocked async": lambda: Stream.of(_blocked_async),
    "async map": lambda: Stream.range(10**9).map(_slow_map),
    "thread map": lambda: Stream.range(10**9).map(lambda i: time.sleep(0.001) or {"x": np.ones(2)}),
}


async def _blocked_async() -> AsyncIterator[dict[str, Any]]:
    for batch in batches(3):
        yield batch
    await anyio.sleep_forever()


async def _slow_map(i: int) -> dict[str, Any]:
    await anyio.sleep(0.001)
    return {"x": np.ones(2)}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("buffer", [0, 3, "auto"])
async def test_cancelling_the_callers_scope_is_a_stop_and_leaves_nothing(
    source: str, buffer: Any, tmp_path: Path
) -> None:
    class Data(Arrays):
        def train_stream(self) -> Any:  # type: ignore[override]
            return SOURCES[source]()

    hook, model = Keeping(), Counting()
    engine = Engine(model, Data(), [hook], buffer=buffer, output_dir=tmp_path)
    with anyio.fail_after(20), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.train)
            await until(lambda: len(hook.steps) >= 3)
            scope.cancel()
    assert hook.count("after_training") == 1
    assert hook.of("after_training")[0].reason == "cancelled"
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == f"step-{engine.progress.step:08d}"
    assert hook.steps == list(range(1, engine.progress.step + 1))


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016])
async def test_cancellation_at_any_moment_of_a_busy_run_ends_it_promptly(after_s: float) -> None:
    hook = Keeping(every="3 steps", lockstep=True)
    engine = Engine(Counting(), Arrays(50), [hook, Keeping()], extra_streams=["valid", "test"], buffer=2)
    with anyio.fail_after(10), anyio.move_on_after(after_s):
        await engine.train()
    assert hook.count("after_training") <= 1


async def test_a_stop_discards_the_evaluation_under_way() -> None:
    class Stops(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            if not event.train:
                event.control.stop("while evaluating")

    hook = Keeping()
    model = Counting(lambda n, train: time.sleep(0.002))
    result = await Engine(
        model, Arrays(50), [Stops(), hook], epochs=1, extra_streams=["valid"], skip_zeroth_epoch=True
    ).train()
    assert (result.reason, result.steps, result.epochs) == ("while evaluating", 50, 0)
    assert hook.count("after_evaluation") == hook.count("after_epoch") == 0


async def test_several_engines_share_a_loop() -> None:
    models = [Counting() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for model in models:
            tasks.start_soon(Engine(model, Arrays(20), epochs=2).train)
    assert all(model.n_runs == 60 for model in models)


async def test_the_loop_stays_free_while_a_model_trains() -> None:
    lateness: list[float] = []
    engine = Engine(Counting(lambda n, train: time.sleep(0.002)), Endless(), steps=100)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.train)
        while engine.progress.epochs_done == 0:
            began = time.perf_counter()
            await anyio.sleep(0.005)
            lateness.append(time.perf_counter() - began - 0.005)
    assert sorted(lateness)[len(lateness) // 2] < 0.05
