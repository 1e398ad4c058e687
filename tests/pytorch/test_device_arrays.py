"""Outputs that stay on a device: hooks get what they name as host arrays, in order and once, and nobody waits for it."""

from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from distant_arrays import Coming, Distant, DistantModel, device, reads  # noqa: F401
from engine_parts import Arrays
from torch_parts import on_asyncio

from asyncloop import AfterBatch, AfterEpoch, Engine, Hook, NonFiniteError, Stream
from asyncloop.hooks import ComputeStats, SaveEvery, ShowProgress, StopOnNaN, WriteJSONL

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("device")]

LOOP = threading.main_thread().name
MODEL = "asyncloop model"
NAN = math.nan


class Named(Hook):
    """Keeps what it gets of the variables that it names."""

    def __init__(self, *variables: str, **declared: Any) -> None:
        self.variables = variables or None
        self.seen: list[tuple[int, dict[str, Any]]] = []
        for name, value in declared.items():
            setattr(self, name, value)

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append((event.step, dict(event.outputs)))


def engine(model: DistantModel, *hooks: Any, n: int = 40, **options: Any) -> Engine:
    return Engine(model, Arrays(n), hooks, **{"epochs": 1, "skip_zeroth_epoch": True, **options})


async def test_named_variables_arrive_as_host_arrays_in_order_and_once() -> None:
    Coming.arrives = lambda number, asked: asked > number % 3
    one, other, plain = Named("loss", "logits"), Named("head/norm", "rare", every="7 steps"), Named()
    await engine(DistantModel(), one, other, plain).train()
    assert [step for step, _ in one.seen] == list(range(1, 41))
    assert [step for step, _ in other.seen] == [7, 14, 21, 28, 35, 40]
    for step, outputs in one.seen:
        assert {name: type(value) for name, value in outputs.items()} == {"loss": np.ndarray, "logits": np.ndarray}
        assert np.array_equal(outputs["logits"], np.full((4, 2), step - 1))
    for step, outputs in other.seen:
        assert outputs["head/norm"] == step - 1
        assert np.array_equal(outputs["rare"], np.full((4, 2), 10 * (step - 1)))
    assert all(isinstance(outputs["logits"], Distant) for _, outputs in plain.seen), "without names they stay there"


async def test_neither_the_loop_nor_a_step_waits_for_the_device() -> None:
    hooks = [Named("loss", "logits", "rare"), ComputeStats({"logits": ["mean"]})]
    read_in_steps: list[int] = []
    model = DistantModel(on_step=lambda n: read_in_steps.append(reads[MODEL]))
    await engine(model, *hooks).train()
    assert read_in_steps == [0] * 40
    assert reads == {MODEL: 2}, "the means of loss and head/norm, once the pass is over"


async def test_values_that_have_not_arrived_hold_back_what_comes_after_them_and_nothing_else() -> None:
    arrived = threading.Event()
    Coming.arrives = lambda number, asked: number < 2 or arrived.is_set()
    hook = Named("loss")
    two_are_here, all_ran = anyio.Event(), threading.Event()

    class Telling(Named):
        async def after_batch(self, event: AfterBatch) -> None:
            await super().after_batch(event)
            if event.step == 2:
                two_are_here.set()

    telling, model = Telling(), DistantModel(on_step=lambda n: all_ran.set() if n == 40 else None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine(model, hook, telling).train)
        try:
            with anyio.fail_after(5):
                await two_are_here.wait()
                await anyio.to_thread.run_sync(all_ran.wait, abandon_on_cancel=True)
            third, *rest = (each for each in Coming.made[2:] if each.is_of_event)
            asked_before, began = third.asked, anyio.current_time()
            await anyio.sleep(0.2)
            took_s = anyio.current_time() - began
            assert [step for step, _ in hook.seen] == [step for step, _ in telling.seen] == [1, 2]
            assert third.asked - asked_before <= took_s / 4e-3 + 2, "it is looked for every 4 ms, not all the time"
            assert [each.asked for each in rest] == [0] * 37, "nobody asks for what cannot be handed on yet"
        finally:
            arrived.set()
    assert [step for step, _ in hook.seen] == [step for step, _ in telling.seen] == list(range(1, 41))


@on_asyncio
async def test_barriers_come_after_the_batches_before_them_however_late_these_arrive() -> None:
    order: list[str] = []

    class Ordered(Named):
        async def after_batch(self, event: AfterBatch) -> None:
            order.append(f"batch {event.step}")

        async def after_epoch(self, event: AfterEpoch) -> None:
            order.append("epoch")

    Coming.arrives = lambda number, asked: asked > 2
    await engine(DistantModel(), Ordered("loss"), n=3, epochs=2).train()
    assert order == ["batch 1", "batch 2", "batch 3", "epoch", "batch 4", "batch 5", "batch 6", "epoch"]


@on_asyncio
async def test_shipped_hooks_work_on_outputs_that_are_on_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [float(n) for n in range(1, 9)]
    named = WriteJSONL("named.jsonl")
    named.variables = ["loss", "logits"]
    hooks = [
        ComputeStats({"loss": ["mean", "max"], "logits": ["max"]}),
        WriteJSONL(),
        named,
        ShowProgress("json"),
        StopOnNaN(),
        StopOnNaN(["head/norm"]),
    ]
    result = await engine(DistantModel(*losses), *hooks, n=8, output_dir=tmp_path).train()
    data = result.metrics["train"]
    assert data["loss"] == {"mean": pytest.approx(4.5), "max": 8.0}
    assert data["logits"] == {"max": 7.0}
    assert data["head/norm"] == pytest.approx(3.5)
    lines = [json.loads(line) for line in (tmp_path / "batches.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == losses
    assert [line["head/norm"] for line in lines] == [float(n) for n in range(8)]
    lines = [json.loads(line) for line in (tmp_path / "named.jsonl").read_text().splitlines()]
    assert lines[3]["logits"] == [[3.0, 3.0]] * 4
    assert '"loss"' in capsys.readouterr().err
    assert reads[LOOP] == 0
    assert {name for name, n in reads.items() if n} <= {MODEL}, "no hook has to wait"


@on_asyncio
@pytest.mark.parametrize("variables", [None, ["loss"]])
async def test_stop_on_nan_ends_at_exactly_that_step(variables: list[str] | None) -> None:
    model = DistantModel(1.0, 1.0, NAN, 1.0)
    Coming.arrives = lambda number, asked: asked > 1
    result = await engine(model, StopOnNaN(variables)).train()
    assert (result.steps, model.n) == (3, 3)
    assert "variable 'loss' of stream train is NaN at step 3" in result.reason


@on_asyncio
async def test_a_model_whose_only_outputs_come_on_demand_makes_nobody_wait() -> None:
    class Lazy(DistantModel):
        def run(self, batch: Any, *, train: bool, stream: str) -> Any:
            return {"rare": super().run(batch, train=train, stream=stream)["rare"]}

    hook = Named("rare")
    await engine(Lazy(), hook).train()
    assert len(hook.seen) == 40
    assert reads[LOOP] == 0


# --- losses that are not finite -----------------------------------------------------------------------------------

HANDFUL = 16


@on_asyncio
@pytest.mark.parametrize("loss", [NAN, math.inf])
async def test_a_loss_that_is_not_finite_is_told_with_its_step_a_handful_of_steps_late_at_most(loss: float) -> None:
    model = DistantModel(*[1.0] * 20, loss)
    with pytest.raises(NonFiniteError, match=r"output 'loss' is not finite at step 21 \(stream 'train', batch 20\)"):
        await engine(model, n=1000).train()
    assert 21 <= model.n <= 21 + HANDFUL


@on_asyncio
async def test_a_warning_names_each_step_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = DistantModel(1.0, NAN, 1.0, math.inf)
    with caplog.at_level(logging.WARNING, "asyncloop"):
        result = await engine(model, n=50, on_nonfinite="warn").train()
    assert result.steps == 50
    told = [line.partition("; look")[0] for line in caplog.messages if "not finite" in line]
    assert told == [f"output 'loss' is not finite at step {n} (stream 'train', batch {n - 1})" for n in (2, 4)]


@on_asyncio
async def test_it_may_be_ignored_or_left_to_a_hook_and_then_nobody_asks_the_device() -> None:
    for options in ({"on_nonfinite": "ignore"}, {}):
        hooks = [StopOnNaN(["loss"], stop_on_inf=False)] if not options else []
        await engine(DistantModel(math.inf), *hooks, n=3, **options).train()
    assert all(each.is_of_event for each in Coming.made)


@on_asyncio
@pytest.mark.parametrize("late", [0, 1000])
async def test_no_checkpoint_holds_a_step_whose_loss_is_not_finite(tmp_path: Path, late: int) -> None:
    Coming.arrives = lambda number, asked: asked > late
    model = DistantModel(*[1.0] * 5, NAN)
    with pytest.raises(NonFiniteError, match="at step 6 "):
        await engine(model, SaveEvery(every="4 steps"), n=100, output_dir=tmp_path).train()
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == ["step-00000004"]


@on_asyncio
async def test_no_checkpoint_holds_such_a_step_either_when_something_else_fails_first(tmp_path: Path) -> None:
    def breaks() -> Any:
        for n in range(8):
            yield {"x": np.full(4, float(n))}
        raise OSError("the disk of the data is gone")

    model = DistantModel(1.0, NAN)
    with pytest.raises((NonFiniteError, OSError)):
        await Engine(model, Streams(Stream.of(breaks)), epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path).train()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


class Streams:
    def __init__(self, train: Any) -> None:
        self.train = train

    def train_stream(self) -> Any:
        return self.train
