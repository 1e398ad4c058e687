"""On a GPU: no steady step waits for it, what is computed agrees with a loop by hand, and its memory is given back."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, LOSS, N_CLASSES, N_INPUTS, Data, Net, on_asyncio, same_bits, train

import asyncloop
from asyncloop import AfterBatch, Engine, Hook, NonFiniteError
from asyncloop.batch import RunBatch
from asyncloop.hooks import ComputeStats, WriteJSONL
from asyncloop.torch import EMA, Clip, Schedule, TorchModel
from asyncloop.torch.lane import Lane

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

N_STEPS = 40


class Steady(TorchModel):
    """From the fifth step to the last but five, whatever waits for the device is an error that names the operation."""

    def run(self, batch: Any, *, train: bool, stream: str) -> Mapping[str, Any]:
        assert self.updates is not None
        if train and self.updates.n_updates == 4:
            torch.cuda.set_sync_debug_mode("error")
        if not train or self.updates.n_updates == N_STEPS - 5:
            torch.cuda.set_sync_debug_mode("default")
        return super().run(batch, train=train, stream=stream)


class Names(Hook):
    """Names an array and a scalar of every step."""

    variables = ("output", "loss", "label")

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []

    async def after_batch(self, event: AfterBatch) -> None:
        self.seen.append((event.step, {**event.outputs, **event.inputs}))


def on_gpu(kind: type[TorchModel] = TorchModel, **changes: Any) -> Any:
    settings: dict[str, Any] = {"module": Net(dropout=0.0), "inputs": ["x"], "loss": LOSS, "optimizer": ADAM}
    model = kind(**{**settings, "device": "cuda", **changes})
    torch.manual_seed(7)
    return model


ACCURACY = {
    "class": "torchmetrics.classification:MulticlassAccuracy",
    "num_classes": N_CLASSES,
    "average": "micro",  # for others torchmetrics counts with torch.bincount, which waits for the device
    "validate_args": False,
}

STEADY: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "fp16, clipped": {"precision": "fp16", "clip": Clip(norm=1.0)},
    "average and schedule": {"ema": EMA(0.9), "schedule": Schedule("cosine", warmup=3, until=N_STEPS)},
    "microbatches": {"microbatches": 2},
    "metrics": {"metrics": {"accuracy": ACCURACY}},
}


@on_asyncio
@pytest.mark.parametrize("case", STEADY)
async def test_a_steady_step_waits_for_nothing_although_hooks_name_variables(case: str, tmp_path: Path) -> None:
    if case == "metrics":
        pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    names = Names()
    hooks = [names, WriteJSONL(), ComputeStats({"loss": ["mean"]})]
    try:
        await train(on_gpu(Steady, **STEADY[case]), Data(N_STEPS), hooks, output_dir=tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step for step, _ in names.seen] == list(range(1, N_STEPS + 1))
    for _, values in names.seen:
        assert all(isinstance(value, np.ndarray) for value in values.values())
        assert values["output"].shape == (16, N_CLASSES)


@on_asyncio
@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [("fp32", None, 1e-4), ("bf16", torch.bfloat16, 2e-2)])
async def test_the_losses_are_those_of_a_loop_by_hand(precision: Any, dtype: Any, tolerance: float) -> None:
    losses: list[float] = []
    engine = Engine(on_gpu(precision=precision), Data(), epochs=2, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: losses.append(float(event.outputs["loss"])), variables=["loss"])
    await engine.train()

    net, expected = Net(dropout=0.0).cuda(), list[float]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        for batch in Data().batches:
            x, label = torch.from_numpy(batch["x"]).cuda(), torch.from_numpy(batch["label"]).cuda()
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(net(x), label)
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=tolerance)


# --- batches ------------------------------------------------------------------------------------------------------


def a_lane(*, channels_last: bool = False) -> Lane:
    return Lane(torch.device("cuda", torch.cuda.current_device()), None, torch.float32, channels_last=channels_last)


def test_a_batch_is_pinned_and_copied_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    pin_memory = torch.Tensor.pin_memory

    def noted(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        pinned.append(pin_memory(tensor, *args))
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", noted)
    lane, batch = a_lane(), {"x": np.random.default_rng(0).normal(size=(64, 1000)), "word": np.array(["a"] * 64)}
    staged = lane.stage(batch)
    assert [each.is_pinned() for each in pinned] == [True]
    assert staged.event is not None
    sources = lane.take(RunBatch(batch, staged))
    assert sources["x"].is_cuda
    assert sources["x"].dtype == torch.float32, "numpy makes float64 of everything"
    assert sources["word"] is batch["word"]
    lane.used()
    assert np.array_equal(sources["x"].cpu().numpy(), batch["x"].astype(np.float32))


def test_what_is_on_the_device_already_passes_through() -> None:
    tensor = torch.ones(3, device="cuda")
    lane = a_lane()
    assert lane.take({"x": tensor})["x"] is tensor
    images = torch.ones(2, 3, 4, 4, device="cuda", dtype=torch.float64)
    wanted = a_lane(channels_last=True).take({"x": images})["x"]
    assert wanted.dtype == torch.float32
    assert wanted.is_contiguous(memory_format=torch.channels_last)


def test_the_memory_of_batches_whose_steps_are_over_is_given_back() -> None:
    lane, batch = a_lane(), {"x": np.zeros((1024, 1024), np.float32)}
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        lane.take(batch)
        lane.used()
    torch.cuda.synchronize()
    lane.take(batch)
    lane.used()
    torch.cuda.synchronize()
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 20 * 2**22, "50 batches have 4 MiB each"


@on_asyncio
@pytest.mark.parametrize("ahead", [0, 2, 5])
async def test_batches_reach_the_module_in_order_and_whole_however_far_ahead_they_are_copied(ahead: int) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> Any:
            torch.cuda._sleep(2_000_000)  # the copies of later batches overtake this step
            return {"loss": self.weight * 0, "total": x.sum()}

    class Large:
        def train_stream(self) -> Any:
            for n in range(30):
                yield {"x": np.full((256, 1024), float(n), np.float32)}

    totals: list[float] = []
    model = TorchModel(Summing(), ["x"], outputs=[], optimizer=ADAM, device="cuda", ahead=ahead)
    engine = Engine(model, Large(), epochs=1, skip_zeroth_epoch=True)
    engine.bus.subscribe(AfterBatch, lambda event: totals.append(float(event.outputs["total"])), variables=["total"])
    await engine.train()
    assert totals == [n * 256 * 1024 for n in range(30)]


# --- forms --------------------------------------------------------------------------------------------------------


@on_asyncio
async def test_images_have_their_channels_last_and_train() -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, N_CLASSES)
            self.seen: set[bool] = set()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add(x.is_contiguous(memory_format=torch.channels_last))
            return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))

    class Images(Data):
        def __init__(self) -> None:
            super().__init__(4)
            for batch in self.batches:
                batch["x"] = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)

    model = on_gpu(module=Image(), channels_last=True, precision="bf16")
    result = await train(model, Images())
    assert model.module.seen == {True}
    assert math.isfinite(result.metrics["train"]["loss"])


@on_asyncio
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{"compile": True}, {"cuda_graphs": True}], ids=["compiled", "captured"])
async def test_a_compiled_module_and_one_captured_as_graphs_train_as_it_does_by_itself(
    settings: dict[str, Any],
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    torch.compiler.reset()
    found: dict[str, tuple[list[float], list[np.ndarray]]] = {}
    for name, options in (("plain", {}), ("form", settings)):
        losses, outputs = list[float](), list[np.ndarray]()
        engine = Engine(
            on_gpu(**options), Data(), epochs=2, extra_streams=["valid"], skip_zeroth_epoch=True,
            on_unused_sources="ignore",
        )  # fmt: skip

        async def keep(event: AfterBatch, losses: Any = losses, outputs: Any = outputs) -> None:
            losses.append(float(event.outputs["loss"]))
            outputs.append(event.outputs["output"])

        engine.bus.subscribe(AfterBatch, keep, variables=["loss", "output"])
        await engine.train()
        found[name] = losses, outputs
    assert found["form"][0] == pytest.approx(found["plain"][0], rel=1e-3)
    for one, other in zip(found["form"][1], found["plain"][1], strict=True):
        assert np.allclose(one, other, rtol=1e-2, atol=1e-3), "each step's own, not what a later one wrote there"


# --- memory -------------------------------------------------------------------------------------------------------


class Greedy(Net):
    """Wants more memory than there is, at one step."""

    def __init__(self, at: int) -> None:
        super().__init__(dropout=0.0)
        self.at, self.n = at, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        activation = x.new_zeros(64 * 2**20).requires_grad_()  # 256 MiB that the step's graph holds
        logits = super().forward(x) + (activation * 2).sum()
        if self.n == self.at:
            torch.empty(2**45, device=x.device)
        return logits


@on_asyncio
async def test_out_of_memory_names_step_shapes_and_peak_and_gives_everything_back() -> None:
    model = on_gpu(module=Greedy(3))
    gc.collect()
    before = torch.cuda.memory_allocated()
    with pytest.raises(
        torch.OutOfMemoryError,
        match=r"out of memory in step 3 on stream 'train' \(x \(16, 12\), .*, at most \d\.\d\d GiB in use\)",
    ):
        await train(model, Data(5))
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 2**20, "although the exception and the model are still here"


@on_asyncio
async def test_a_step_that_runs_out_of_memory_is_skipped_and_the_next_ones_run() -> None:
    model = on_gpu(module=Greedy(3), on_oom="skip")
    result = await train(model, Data(6))
    assert result.steps == 6
    assert result.metrics["train"]["out_of_memory"] == pytest.approx(1 / 6)
    assert math.isfinite(result.metrics["train"]["loss"])


# --- exactness ----------------------------------------------------------------------------------------------------


@on_asyncio
async def test_a_loss_that_is_not_finite_is_told_with_its_step(tmp_path: Path) -> None:
    class Breaks(Net):
        n = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return super().forward(x) * (math.nan if self.n == 10 else 1.0)

    with pytest.raises(NonFiniteError, match=r"output 'loss' is not finite at step 10 \(stream 'train', batch 9\)"):
        await train(on_gpu(module=Breaks(dropout=0.0)), Data(N_STEPS), output_dir=tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@on_asyncio
async def test_a_resumed_run_in_deterministic_mode_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stops(Hook):
        lockstep = True

        async def after_batch(self, event: AfterBatch) -> None:
            if event.step == 5:
                event.control.stop("told to")

    def engine(model: TorchModel, *hooks: Hook) -> Engine:
        return Engine(
            model, Data(), hooks, epochs=2, skip_zeroth_epoch=True, on_unused_sources="ignore", own_rng=True
        )  # fmt: skip

    def model() -> TorchModel:
        return on_gpu(module=Net(dropout=0.2), deterministic=True, ema=EMA(0.9), clip=Clip(norm=1.0))

    whole, first, second = model(), model(), model()
    await engine(whole).train()
    async with asyncloop.open_run(engine=engine(first, Stops()), output_dir=tmp_path / "run") as live:
        assert (await live).steps == 5
    async with asyncloop.open_run(engine=engine(second), resume=tmp_path / "run") as live:
        assert (await live).steps == 16
    for part in ("module", "average"):
        assert same_bits(second.state_dict()[part], whole.state_dict()[part])


def test_an_operation_that_cannot_be_repeated_is_named_in_deterministic_mode() -> None:
    class Scattered(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits.put(torch.tensor([0, 0], device=x.device), logits.flatten()[:2])

    model = on_gpu(module=Scattered(dropout=0.0), deterministic=True)
    with pytest.raises(RuntimeError, match="put_? does not have a deterministic implementation"):
        model.run(Data(1).batches[0], train=True, stream="train")


def test_the_device_is_found_and_one_kernel_does_the_update() -> None:
    model = on_gpu(device="auto")
    assert model.device == torch.device("cuda", torch.cuda.current_device())
    assert model.updates.optimizer.defaults["fused"] is True
    assert model.module.head.weight.shape == (N_CLASSES, 16)
    assert model.module.body[0].weight.shape == (16, N_INPUTS)
