"""Out of memory: told with the step and the shapes, nothing kept, and the run ends or goes on as it was told to."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, Data, Net, a_model, on_asyncio, same_bits, train

from asyncloop import AfterBatch, Engine
from asyncloop.hooks import ComputeStats, WriteJSONL
from asyncloop.torch import EMA, Clip, Schedule

pytestmark = pytest.mark.anyio


class Short(Net):
    """Runs out of memory at some forward passes, after it has made an activation."""

    def __init__(self, *at: int, backward: bool = False) -> None:
        super().__init__(dropout=0.0)
        self.body[1] = nn.Identity()  # no normalisation, which a step that fails would leave a trace in
        self.at, self.backward, self.n = at, backward, 0
        self.activations: list[weakref.ref[Any]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        array = np.zeros((100, 100), dtype=np.float32)
        self.activations.append(weakref.ref(array))
        activation = torch.from_numpy(array)  # which keeps the array
        logits = self.head(self.body(x)) + activation.sum()
        if self.n in self.at:
            if not self.backward:
                raise torch.OutOfMemoryError("tried to allocate 20 GiB")
            logits.register_hook(self._fails)
        return logits

    @staticmethod
    def _fails(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")


MESSAGE = (
    r"out of memory in step 3 on stream 'train' \(x \(16, 12\), label \(16,\), id \(16,\)\): tried to allocate 20 GiB; "
    "a smaller batch, more microbatches, precision bf16 or checkpoint_activations take less"
)


@on_asyncio
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
async def test_it_is_told_with_step_and_shapes_and_keeps_no_activation(backward: bool) -> None:
    model = a_model(module=Short(3, backward=backward))
    with pytest.raises(torch.OutOfMemoryError, match=MESSAGE) as caught:
        await train(model, Data(5))
    assert any("batch 2, step 3" in note for note in caught.value.__notes__)
    net: Any = model.module
    assert [each() for each in net.activations] == [None] * 3, "although the exception is still here"
    assert all(each.grad is None for each in net.parameters())


def test_the_gradients_of_microbatches_that_went_well_are_freed() -> None:
    model = a_model(module=Short(2), microbatches=2)
    with pytest.raises(torch.OutOfMemoryError):
        model.run(Data(1).batches[0], train=True, stream="train")
    assert all(each.grad is None for each in model.module.parameters())


@on_asyncio
async def test_an_evaluation_that_runs_out_of_memory_is_told_and_fails_by_either_policy() -> None:
    for policy in ("error", "skip"):
        model = a_model(module=Short(1), on_oom=policy, ema=EMA(0.5))
        with pytest.raises(torch.OutOfMemoryError, match=r"out of memory in an evaluation on stream 'train'"):
            await train(
                model, Data(2), skip_zeroth_epoch=False, extra_streams=["valid"], train_stream="train", epochs=0
            )
        assert model.module.training


def after_skipping() -> Any:
    """The weights after a loop by hand that leaves out the third step, which its schedule counts all the same."""
    net = Short()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = Schedule("linear", until=5)
    for n, batch in enumerate(Data(5).batches):
        if n == 2:
            continue
        optimizer.param_groups[0]["lr"] = 1e-2 * schedule.factor_at(n)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(batch["x"])), torch.from_numpy(batch["label"])).backward()
        optimizer.step()
    return net.state_dict()


@on_asyncio
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
async def test_a_step_that_is_skipped_changes_no_weight_and_the_next_ones_are_as_if_it_had_not_been(
    backward: bool, caplog: pytest.LogCaptureFixture
) -> None:
    net = Short(3, backward=backward)
    model = a_model(module=net, on_oom="skip", schedule=Schedule("linear", until=5))
    rates: list[float] = []
    engine = Engine(model, Data(5), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: rates.append(event.outputs.get("lr", math.nan)))
    with caplog.at_level(logging.WARNING, "asyncloop"):
        result = await engine.train()
    assert same_bits(model.module.state_dict(), after_skipping())
    assert result.steps == 5
    assert result.metrics["train"]["out_of_memory"] == pytest.approx(1 / 5), "the share of the examples"
    assert rates[3] == pytest.approx(1e-2 * Schedule("linear", until=5).factor_at(3)), "the schedule keeps to the steps"
    assert "out of memory in step 3" in caplog.text
    assert "the step is skipped" in caplog.text
    gc.collect()
    assert [each() for each in net.activations] == [None] * 5


@on_asyncio
async def test_hooks_that_name_outputs_live_through_a_step_that_is_skipped(tmp_path: Path) -> None:
    hooks = [ComputeStats({"loss": ["mean", "nanfraction"]}), WriteJSONL()]
    told: list[float] = []
    model = a_model(module=Short(2), on_oom="skip")
    engine = Engine(
        model, Data(4), hooks, epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore", output_dir=tmp_path
    )
    engine.bus.subscribe(
        AfterBatch, lambda event: told.append(float(event.outputs["loss"])), variables=["loss", "lr", "output"]
    )
    data = (await engine.train()).metrics["train"]
    assert [math.isnan(rate) for rate in told] == [False, True, False, False]
    assert data["loss"]["nanfraction"] == 0.25
    assert math.isfinite(data["loss"]["mean"])


@on_asyncio
async def test_hooks_that_name_nothing_find_scalars_without_a_value_which_count_in_no_mean() -> None:
    told: list[tuple[bool, float]] = []
    model = a_model(module=Short(2), on_oom="skip", schedule=Schedule("linear", until=5))
    engine = Engine(model, Data(4), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")

    async def note(event: AfterBatch) -> None:
        told.append((math.isnan(event.outputs["loss"]), event.outputs["lr"]))

    engine.bus.subscribe(AfterBatch, note)
    data = (await engine.train()).metrics["train"]
    assert told == [(n == 1, pytest.approx(1e-2 * Schedule("linear", until=5).factor_at(n))) for n in range(4)]
    assert math.isfinite(data["loss"])


@on_asyncio
async def test_nothing_of_a_skipped_step_is_in_the_metrics() -> None:
    confusion = {"class": "torchmetrics.classification:MulticlassConfusionMatrix", "num_classes": 4}
    model = a_model(module=Short(4), on_oom="skip", microbatches=2, metrics=confusion)
    data = (await train(model, Data(5))).metrics["train"]
    assert np.sum(data["metric"]) == 4 * 16, (
        "the second half of the second step has failed, so its first counts for nothing"
    )


@on_asyncio
async def test_memory_that_runs_out_behind_the_update_ends_the_run_for_the_step_is_made() -> None:
    model = a_model(on_oom="skip", ema=EMA(0.5))
    average: Any = model.average
    follow = average.follow

    def greedy(n_updates: int) -> None:
        if n_updates == 2:
            raise torch.OutOfMemoryError("no room for a moment")
        follow(n_updates)

    average.follow = greedy
    with pytest.raises(torch.OutOfMemoryError, match="no room for a moment"):
        await train(model, Data(4))


@on_asyncio
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
    ids=["device", "host"],
)
async def test_a_batch_that_has_no_room_on_the_device_is_told_and_skipped(
    error: RuntimeError, ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = a_model(on_oom="skip", ahead=ahead)
    lane: Any = model._lane  # pyright: ignore[reportPrivateUsage]
    moved, n = lane._moved, 0

    def move(batch: Any) -> Any:
        nonlocal n
        n += 1
        if n == 2:
            raise error
        return moved(batch)

    lane._moved = move
    with caplog.at_level(logging.WARNING, "asyncloop"):
        result = await train(model, Data(4))
    assert result.metrics["train"]["out_of_memory"] == 0.25
    assert "out of memory in step 2 on stream 'train' (x (16, 12)" in caplog.text


@on_asyncio
async def test_a_step_that_runs_out_in_the_middle_of_its_update_is_skipped_too() -> None:
    class Greedy(torch.optim.AdamW):
        n = 0

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            self.n += 1
            if self.n == 2:
                raise torch.OutOfMemoryError("no room for a moment")
            return super().step(closure)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return Greedy(parameters, lr=1e-2)

    model = a_model(optimizer=optimizer, precision="fp16", clip=Clip(norm=1.0), on_oom="skip")
    result = await train(model, Data(4))
    assert result.steps == 4
    assert result.metrics["train"]["out_of_memory"] == 0.25
    assert model.updates is not None
    assert model.updates.n_updates == 4


@on_asyncio
async def test_where_steps_may_be_skipped_every_step_says_whether_it_was() -> None:
    model = a_model(on_oom="skip")
    assert "out_of_memory" in model.training_output_names
    assert (await train(model, Data(2))).metrics["train"]["out_of_memory"] == 0.0
    assert "out_of_memory" not in (await train(a_model(optimizer=ADAM), Data(2))).metrics["train"]
