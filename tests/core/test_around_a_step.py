"""Around a step: what a run leaves behind when something fails, stops or is cancelled between two of its instants.

A checkpoint is either that of a whole step, with all that belongs to it, or there is none; going on from it ends as a run
that nothing had happened to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping

import asyncloop
from asyncloop import (
    AfterEvaluation,
    DataError,
    Engine,
    Hook,
    ModelError,
    NonFiniteError,
    StalledError,
    StopTraining,
    Stream,
)
from asyncloop.checkpoint import Checkpoints, Saved
from asyncloop.hooks import SaveEvery, StopOnNaN
from asyncloop.threads import LoopHandle

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


def engine(model: Any, data: Any, hooks: Any = (), **options: Any) -> Engine:
    return Engine(model, data, hooks, **{"epochs": 2, "skip_zeroth_epoch": True, **options})


def newest(path: Path) -> Saved | None:
    return Checkpoints(path / "checkpoints").read_newest()


async def resumed(model: Any, data: Any, hooks: Any = (), *, path: Path, **options: Any) -> asyncloop.Result:
    saved = newest(path)
    assert saved is not None
    again = engine(model, data, hooks, output_dir=path, **options)
    again.restore(saved)
    return await again.train()


class Slow(Counting):
    """Its steps take a while."""

    def __init__(self, step_s: float = 0.02) -> None:
        super().__init__()
        self.step_s = step_s

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        time.sleep(self.step_s)
        return super().run(batch, train=train, stream=stream)


class Remembering(Keeping):
    """Its state is the steps it has handled."""

    def __init__(self, **declared: Any) -> None:
        super().__init__(**declared)
        self.handled: list[int] = []

    async def after_batch(self, event: Any) -> None:
        self.handled.append(event.step)

    def state_dict(self) -> dict[str, Any]:
        return {"handled": self.handled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.handled = list(state["handled"])


# --- the beginning and the end of an epoch ---------------------------------------------------------------------------


class StopsAfterEpoch(Keeping):
    async def after_epoch(self, event: Any) -> None:
        self.seen.append(("after_epoch", event))
        if event.epoch == 1 and not hasattr(self, "again"):
            raise StopTraining("enough")


async def test_a_run_that_was_stopped_between_two_epochs_tells_of_the_next_ones_beginning(tmp_path: Path) -> None:
    await engine(Counting(), Arrays(3), [StopsAfterEpoch()], output_dir=tmp_path, epochs=3).train()
    keeping = StopsAfterEpoch(again=True)
    await resumed(Counting(), Arrays(3), [keeping], path=tmp_path, epochs=3)
    assert [event.epoch for event in keeping.of("before_epoch")] == [2, 3]


async def test_a_hook_that_fails_when_an_epoch_begins_keeps_it_from_nobody(tmp_path: Path) -> None:
    class Fails(Keeping):
        async def before_epoch(self, event: Any) -> None:
            if event.epoch == 2:
                raise ValueError("not today")

    behind = Remembering()
    with pytest.raises(ValueError, match="not today"):
        await engine(Counting(), Arrays(3), [Fails(), behind], output_dir=tmp_path).train()
    assert [event.epoch for event in behind.of("before_epoch")] == [1]
    behind = Remembering()
    result = await resumed(Counting(), Arrays(3), [behind], path=tmp_path)
    assert [event.epoch for event in behind.of("before_epoch")] == [2]
    assert (result.steps, behind.handled) == (6, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_what_ends_a_run_right_behind_the_last_batch_of_a_pass_costs_no_pass_too_many(
    tmp_path: Path, how: str
) -> None:
    class Ends(Counting):
        def end_stream(self, stream: str, *, train: bool) -> Mapping[str, Any]:
            if how == "fails":
                raise ValueError("no metric")
            time.sleep(0.2)
            return {}

    model = Ends()
    if how == "fails":
        with pytest.raises(ValueError, match="no metric"):
            await engine(model, Arrays(3), output_dir=tmp_path).train()
    else:
        with anyio.move_on_after(0.1):
            await engine(model, Arrays(3), output_dir=tmp_path).train()
    saved = newest(tmp_path)
    assert saved is not None
    assert saved.step == 3
    result = await resumed(Counting(), Arrays(3), path=tmp_path)
    assert (result.steps, result.epochs) == (6, 2)


@pytest.mark.parametrize("handled_in_s", [0.0, 0.05])
async def test_a_stop_at_the_last_batch_of_an_epoch_ends_it_there_however_long_the_hook_takes(
    handled_in_s: float,
) -> None:
    class Stops(Keeping):
        async def after_batch(self, event: Any) -> None:
            await anyio.sleep(handled_in_s)
            if event.step == 3:
                raise StopTraining("enough")

    stops = Stops()
    result = await engine(Counting(), Arrays(3), [stops]).train()
    assert (result.reason, result.epochs, stops.count("after_epoch")) == ("enough", 0, 0)


async def test_a_stop_in_an_evaluation_ends_the_epoch_without_its_end() -> None:
    class Stops(Keeping):
        async def after_evaluation(self, event: Any) -> None:
            raise StopTraining("good enough")

    stops = Stops()
    result = await engine(Counting(), Arrays(3), [stops], extra_streams=["valid"]).train()
    assert (result.reason, result.epochs, stops.count("after_epoch")) == ("good enough", 0, 0)
    assert "valid" in result.metrics


async def test_who_asks_for_an_evaluation_in_an_evaluation_gets_it_after_the_next_step() -> None:
    class Asks(Keeping):
        async def after_evaluation(self, event: Any) -> None:
            self.seen.append(("after_evaluation", event))
            event.control.evaluate("valid")

    asks = Asks()
    result = await engine(Counting(), Arrays(3), [asks], evaluate_every="2 steps", extra_streams=["valid"]).train()
    steps = [event.step for event in asks.of("after_evaluation")]
    assert result.steps == 6
    assert steps == sorted(set(steps))
    assert 2 in steps


# --- what the model's side raises ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs",
    [
        {"loss": 10**400},
        {"head": {"name": np.array("text")}},
        {"loss": object()},
        {"x": 1.0},
        {"later": lambda: 1 / 0},
    ],
)
async def test_a_step_that_was_made_and_does_not_count_is_in_no_checkpoint(tmp_path: Path, outputs: Any) -> None:
    model = Counting(lambda n, train: outputs if n == 2 else None)
    wants = Remembering(variables=["later"] if "later" in outputs else ["loss"])
    with pytest.raises((OverflowError, ValueError, ModelError, ZeroDivisionError, asyncloop.HookError)):
        await engine(model, Arrays(5), [wants, SaveEvery("1 step")], output_dir=tmp_path).train()
    saved = newest(tmp_path)
    if saved is not None:
        assert saved.model["total"][0] == sum(4 * n for n in range(saved.step))
        assert saved.step <= 2


async def test_a_model_that_calls_sys_exit_is_told_and_its_step_does_not_count(tmp_path: Path) -> None:
    def leave(n: int, train: bool) -> None:
        if n == 2:
            sys.exit(3)

    with pytest.raises(RuntimeError, match="SystemExit") as caught:
        await engine(Counting(leave), Arrays(5), output_dir=tmp_path).train()
    assert "model.run on stream 'train', batch 2, step 3" in caught.value.__notes__
    assert newest(tmp_path) is None


async def test_after_a_batch_that_was_refused_the_next_steps_have_the_indices_they_would_have_had(
    tmp_path: Path,
) -> None:
    class Ragged(Arrays):
        bad = True

        def train_stream(self) -> Iterator[dict[str, Any]]:
            for n, batch in enumerate(super().train_stream()):
                yield {**batch, "y": np.ones(3)} if n == 2 and self.bad else {**batch, "y": np.ones(4)}

    data = Ragged(5)
    with pytest.raises(DataError, match="unequal"):
        await engine(Counting(), data, output_dir=tmp_path, on_unused_sources="ignore").train()
    data.bad = False
    keeping = Keeping()
    await resumed(Counting(), data, [keeping], path=tmp_path, on_unused_sources="ignore")
    train = [(event.step, event.index) for event in keeping.of("after_batch")]
    assert train[:3] == [(3, 2), (4, 3), (5, 4)]


@pytest.mark.parametrize("where", ["map", "below a map", "source"])
async def test_a_producer_that_calls_sys_exit_ends_the_run_and_not_the_program(where: str) -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for n in range(5):
            if n == 3 and where != "map":
                sys.exit(0)
            yield {"x": np.full(2, float(n))}

    async def work(batch: dict[str, Any]) -> dict[str, Any]:
        if where == "map" and batch["x"][0] == 3:
            sys.exit(0)
        return batch

    class Data:
        def train_stream(self) -> Stream:
            return Stream.of(source) if where == "source" else Stream.of(source).map(work)

    model = Counting()
    with pytest.raises(RuntimeError, match="SystemExit") as caught:
        await engine(model, Data(), epochs=1).train()
    assert any("stream 'train'" in note for note in caught.value.__notes__)
    assert model.trained_on == [0, 1, 2]


async def test_what_an_async_model_logs_is_in_the_epochs_data() -> None:
    class Logs(Counting):
        async def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
            await anyio.sleep(0)
            asyncloop.log("extra", 3.0)
            return {"loss": 1.0}

    result = await engine(Logs(), Arrays(3)).train()
    assert result.metrics["train"]["extra"] == 3.0


async def test_a_nested_output_that_is_made_on_demand_is_made_for_who_names_its_path() -> None:
    made: list[int] = []

    def outputs(n: int, train: bool) -> Mapping[str, Any]:
        return {"head": {"logits": lambda: made.append(n) or np.full(2, n), "size": 2.0}}

    wants, others = Keeping(variables=["head/logits"], every="2 steps"), Keeping()
    await engine(Counting(outputs), Arrays(5), [wants, others], epochs=1).train()
    assert made == [1, 3, 4]
    assert [event.outputs["head/logits"][0] for event in wants.of("after_batch")] == [1, 3, 4]
    assert all(event.outputs["head"] == {"size": 2.0} for event in others.of("after_batch"))


async def test_a_run_whose_weights_are_not_finite_any_more_is_stopped_by_the_hook_that_watches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Diverges(Counting):
        def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            if self.n_runs == 2:
                self.total[:] = np.nan
            super().run(batch, train=train, stream=stream)
            return {"loss": float(self.total[0])}

    result = await engine(Diverges(), Arrays(5), [StopOnNaN(), SaveEvery("2 steps")], output_dir=tmp_path).train()
    assert "loss" in result.reason
    saved = newest(tmp_path)
    assert saved is not None
    assert saved.step == 2
    assert "no checkpoint of step 3" in caplog.text
    with pytest.raises(NonFiniteError):
        await engine(Diverges(), Arrays(5)).train()


# --- cancellation ----------------------------------------------------------------------------------------------------


@on_asyncio
@pytest.mark.parametrize("n_cancels", [1, 2, 3])
async def test_however_often_its_task_is_cancelled_step_and_weights_belong_together(
    tmp_path: Path, n_cancels: int
) -> None:
    model, running = Slow(0.05), engine(Slow(0.05), Arrays(20), epochs=1, output_dir=tmp_path)
    running.model = model
    task = asyncio.create_task(running.train())
    while model.n_runs < 3:
        await asyncio.sleep(0.005)
    for _ in range(n_cancels):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    saved = newest(tmp_path)
    assert saved is not None
    assert saved.model["total"][0] == sum(4 * n for n in range(saved.step))
    again = Counting()
    await resumed(again, Arrays(20), path=tmp_path, epochs=1)
    assert again.total[0] == sum(4 * n for n in range(20))


@on_asyncio
async def test_a_loop_that_cancels_all_its_tasks_costs_no_hook_its_state(tmp_path: Path) -> None:
    hook = Remembering()
    before = asyncio.all_tasks()
    live = await asyncloop.start(engine=engine(Slow(), Arrays(60), [hook], epochs=1), output_dir=tmp_path / "run")
    while len(hook.handled) < 5:
        await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    assert (await live).steps < 60
    saved = newest(tmp_path / "run")
    assert saved is not None
    assert saved.hooks["Remembering"]["handled"] == list(range(1, saved.step + 1))


@on_asyncio
async def test_a_hook_whose_task_is_cancelled_in_the_middle_of_an_event_has_no_state_of_a_step(tmp_path: Path) -> None:
    class Busy(Remembering):
        is_inside = False

        async def after_batch(self, event: Any) -> None:
            self.is_inside = True
            await asyncio.sleep(0.05)
            self.is_inside = False
            self.handled.append(event.step)

    hook = Busy()
    async with asyncloop.open_run(engine=engine(Slow(), Arrays(30), [hook], epochs=1), output_dir=tmp_path) as live:
        while not (hook.is_inside and hook.handled):
            await asyncio.sleep(0.01)
        for task in asyncio.all_tasks():
            if task.get_name().endswith("EventBus._serve"):
                task.cancel()
        live.control.stop()
        await live
    saved = newest(tmp_path)
    assert saved is not None
    assert "Busy" not in saved.hooks
    assert "the state of hook Busy" in saved.engine["lacks"]


async def test_cancelled_while_its_state_is_copied_a_run_is_saved_and_who_waits_for_it_is_told(tmp_path: Path) -> None:
    copying, loop = anyio.Event(), LoopHandle()

    class Large(Slow):
        def state_dict(self) -> Mapping[str, Any]:
            loop.soon(copying.set)
            time.sleep(0.1)
            return super().state_dict()

    running = engine(Large(), Arrays(10), output_dir=tmp_path)
    found: list[Path] = []

    async def wait() -> None:
        found.append(await running.control.checkpoint())

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                await copying.wait()
                scope.cancel()

            tasks.start_soon(wait)
            tasks.start_soon(cancel)
            await running.train()
    saved = newest(tmp_path)
    assert saved is not None
    assert [saved.path] == found
    assert saved.model["total"][0] == sum(4 * n for n in range(saved.step))


# --- hooks ------------------------------------------------------------------------------------------------------------


async def test_what_a_hook_adds_is_there_at_the_last_step_too_and_is_asked_for_once_a_batch() -> None:
    asked: list[int] = []

    class Adds(Hook):
        def add(self, event: Any) -> Mapping[str, Any]:
            asked.append(event.step)
            return {"extra": event.step * 10}

    wants = Keeping(every="50 steps", variables=["extra"])
    await engine(Counting(), Arrays(4), [Adds(), wants], epochs=1).train()
    assert [event.outputs for event in wants.of("after_batch")] == [{"extra": 40}]
    assert asked == [1, 2, 3, 4]


async def test_hooks_in_the_background_hear_of_the_end_of_a_run_that_never_began(tmp_path: Path) -> None:
    class Fails(Hook):
        async def before_training(self, event: Any) -> None:
            raise ValueError("not today")

    others = [Keeping(), Keeping(background=True)]
    with pytest.raises(ValueError, match="not today"):
        async with asyncloop.open_run(
            engine=engine(Counting(), Arrays(2), [Fails(), *others]), output_dir=tmp_path
        ) as live:
            await live
    assert [hook.count("after_training") for hook in others] == [0, 1]
    assert '"exit_status": 1' in (tmp_path / "trace.json").read_text()
    assert '"success": false' in (tmp_path / "events.jsonl").read_text()


async def test_a_hook_that_fails_at_the_very_end_is_told_to_those_behind_it(tmp_path: Path) -> None:
    class Fails(Hook):
        async def after_training(self, event: Any) -> None:
            raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        async with asyncloop.open_run(engine=engine(Counting(), Arrays(2), [Fails()]), output_dir=tmp_path) as live:
            await live
    assert '"exit_status": 1' in (tmp_path / "trace.json").read_text()
    assert '"success": false, "reason": "ValueError: too late"' in (tmp_path / "events.jsonl").read_text()


async def test_a_stop_waits_one_deadline_for_all_that_waits_for_a_hook() -> None:
    class Laggard(Keeping):
        deadline = 0.4

        async def after_batch(self, event: Any) -> None:
            await anyio.sleep(0.1)

    running = engine(Counting(), Arrays(10_000), [Laggard()])
    async with anyio.create_task_group() as tasks:

        async def stop() -> None:
            await anyio.sleep(0.2)
            running.control.stop()

        tasks.start_soon(stop)
        began = anyio.current_time()
        with pytest.raises(StalledError, match=r"hook Laggard took longer .* more batches wait for it"):
            await running.train()
        assert anyio.current_time() - began < 5.0  # at its pace all of them would take half a minute


async def test_what_is_logged_in_an_evaluation_is_in_its_streams_data() -> None:
    class Logs(Hook):
        async def after_evaluation(self, event: AfterEvaluation) -> None:
            asyncloop.log("f1", 0.5)

    running = engine(Counting(), Arrays(2), [Logs()], extra_streams=["valid"])
    assert (await running.evaluate("valid")).metrics["valid"]["f1"] == 0.5
    result = await running.train()
    assert result.metrics["valid"]["f1"] == 0.5
    assert "f1" not in result.metrics["train"]


# --- producers --------------------------------------------------------------------------------------------------------


class Example(np.ndarray):
    """An array that can be referred to weakly."""


@pytest.mark.parametrize("n", [7, 15, 23])
@pytest.mark.parametrize("buffer", [1, 4, 16])
@pytest.mark.parametrize("plain", [False, True])
async def test_no_more_batches_are_alive_where_one_stream_ends_and_the_next_begins(
    buffer: int, n: int, plain: bool
) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def batch() -> dict[str, Any]:
        array = np.ones(2).view(Example)
        alive.append(weakref.ref(array))
        return {"x": array}

    class Short:
        def train_stream(self) -> Any:
            return self._plain() if plain else self._async()

        valid_stream = test_stream = train_stream

        def _plain(self) -> Iterator[dict[str, Any]]:
            for _ in range(n):
                yield batch()

        async def _async(self) -> AsyncIterator[dict[str, Any]]:
            for _ in range(n):
                yield batch()

    def count(_: int, train: bool) -> None:
        nonlocal most
        time.sleep(0.001)
        most = max(most, sum(each() is not None for each in alive))

    await engine(Counting(count), Short(), extra_streams=["valid", "test"], buffer=buffer).train()
    assert most <= buffer + 2


async def test_each_training_pass_over_a_stream_given_for_one_call_has_a_number_of_its_own() -> None:
    model, stream = Counting(), Stream.range(64).shuffle(64).map(lambda i: {"x": np.full(1, float(i))})
    running = engine(model, Arrays())
    for _ in range(2):
        await running.epoch(train=[stream])
    first, second = model.trained_on[:64], model.trained_on[64:]
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("looks_ahead", [False, True])
async def test_a_producer_that_hangs_is_named_wherever_the_engine_waits_for_it(
    tmp_path: Path, looks_ahead: bool
) -> None:
    class Hangs:
        async def train_stream(self) -> AsyncIterator[dict[str, Any]]:
            for _ in range(2):
                yield {"x": np.ones(2)}
            await anyio.sleep(60)

    hooks = [SaveEvery("2 steps")] if looks_ahead else []
    with pytest.raises(StalledError, match="stream 'train', batch 2 did not come within 0.2 s"):
        await engine(Counting(), Hangs(), hooks, output_dir=tmp_path, deadlines={"batch": 0.2}).train()


SUSPENDED = """
import asyncio, sys
import numpy as np
from asyncloop import Engine, Hook

class Data:
    async def train_stream(self):
        for n in range(6):
            await asyncio.sleep(0.1)
            yield {"x": np.ones(2)}

class Takes(Hook):
    deadline = 0.6
    async def after_batch(self, event):
        await asyncio.sleep(0.1)

class Model:
    input_names, output_names = ("x",), ("loss",)
    def run(self, batch, *, train, stream):
        print("step", flush=True)
        return {"loss": 0.0}
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

result = asyncio.run(Engine(Model(), Data(), [Takes()], epochs=1, skip_zeroth_epoch=True, deadlines={"batch": 0.6}).train())
print("done", result.steps)
"""


def test_a_process_that_was_suspended_raises_no_alarm() -> None:
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest.endswith("done 6\n")
