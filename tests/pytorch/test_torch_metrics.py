"""Metrics over a pass: torchmetrics, gathered batch by batch, equal what is counted by hand, also across a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_parts import ADAM, LOSS, N_CLASSES, Data, Net, a_model, on_asyncio, train

import asyncloop
from asyncloop import AfterBatch, ConfigError, Engine
from asyncloop.torch import TorchModel
from asyncloop.torch.metrics import Metric

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

pytestmark = pytest.mark.anyio

MULTICLASS = {"class": "torchmetrics.classification:MulticlassAccuracy", "num_classes": N_CLASSES, "average": "micro"}


class Uneven(Data):
    """Batches of different sizes, so that a mean of means is not the mean."""

    def __init__(self) -> None:
        super().__init__(6)
        for n, batch in enumerate(self.batches):
            self.batches[n] = {name: value[: 16 - 2 * n] for name, value in batch.items()}


class Counted:
    """Anything with `update`, `compute` and `reset` is a metric."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, output: torch.Tensor, label: torch.Tensor) -> None:
        self.n += int((output.argmax(1) == label).sum())

    def compute(self) -> int:
        return self.n

    def reset(self) -> None:
        self.n = 0


def right_of(told: list[tuple[str, np.ndarray, np.ndarray]], stream: str) -> float:
    own = [(output, label) for name, output, label in told if name == stream]
    return sum(int((output.argmax(1) == label).sum()) for output, label in own) / sum(len(label) for _, label in own)


@on_asyncio
@pytest.mark.parametrize("microbatches", [1, 3])
async def test_the_accuracy_of_a_pass_is_that_of_its_outputs_counted_by_hand(microbatches: int) -> None:
    told: list[tuple[str, np.ndarray, np.ndarray]] = []
    engine = Engine(
        a_model(metrics={"accuracy": MULTICLASS}, microbatches=microbatches), Uneven(), epochs=1,
        extra_streams=["valid"], skip_zeroth_epoch=True, on_unused_sources="ignore",
    )  # fmt: skip
    engine.bus.subscribe(
        AfterBatch,
        lambda event: told.append((event.stream, event.outputs["output"], event.inputs["label"])),
        variables=["output", "label"],
    )
    metrics = (await engine.train()).metrics
    for stream in ("train", "valid"):
        assert metrics[stream]["accuracy"] == pytest.approx(right_of(told, stream), rel=1e-6)


@on_asyncio
async def test_each_pass_is_counted_from_zero() -> None:
    frozen = {"class": "torch.optim:SGD", "lr": 0.0}
    model = a_model(module=Net(dropout=0.0), metrics={"right": Counted()}, optimizer=frozen)
    result = await train(model, Data(4), epochs=3, extra_streams=["valid"])
    one = await train(
        a_model(module=Net(dropout=0.0), metrics={"right": Counted()}, optimizer=frozen), Data(4), epochs=1
    )
    assert result.metrics["train"]["right"] == one.metrics["train"]["right"]


@on_asyncio
async def test_an_evaluation_of_the_train_stream_inside_an_epoch_leaves_its_metrics_alone() -> None:
    whole = await train(a_model(metrics={"accuracy": MULTICLASS}), Data(6))
    model = a_model(metrics={"accuracy": MULTICLASS})
    engine = Engine(model, Data(6), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")

    class Asks(asyncloop.Hook):
        lockstep = True

        async def after_batch(self, event: AfterBatch) -> None:
            if event.train and event.step == 3:
                event.control.evaluate("train")

    engine.bus.add(Asks())
    assert (await engine.train()).metrics["train"]["accuracy"] == whole.metrics["train"]["accuracy"]


@on_asyncio
async def test_an_epoch_that_is_resumed_in_its_middle_has_the_metrics_of_a_whole_one(tmp_path: Path) -> None:
    def metrics() -> dict[str, Any]:
        return {
            "accuracy": MULTICLASS,
            "area": {"class": "torchmetrics.classification:MulticlassAUROC", "num_classes": N_CLASSES},
            "both": torchmetrics.MetricCollection(
                {
                    "precision": torchmetrics.classification.MulticlassPrecision(N_CLASSES),
                    "recall": torchmetrics.classification.MulticlassRecall(N_CLASSES),
                }
            ),
        }

    def engine(stop_at: int | None) -> Engine:
        made = Engine(
            a_model(module=Net(dropout=0.0), metrics=metrics()), Uneven(), epochs=1, skip_zeroth_epoch=True,
            on_unused_sources="ignore", output_dir=None,
        )  # fmt: skip

        class Stops(asyncloop.Hook):
            lockstep = True

            async def after_batch(self, event: AfterBatch) -> None:
                if event.step == stop_at:
                    event.control.stop("told to")

        made.bus.add(Stops())
        return made

    whole = await engine(None).train()
    async with asyncloop.open_run(engine=engine(2), output_dir=tmp_path / "run") as live:
        assert (await live).steps == 2
    async with asyncloop.open_run(engine=engine(None), resume=tmp_path / "run") as live:
        resumed = await live
    assert resumed.metrics["train"] == whole.metrics["train"]
    assert set(resumed.metrics["train"]["both"]) == {"precision", "recall"}


@pytest.mark.parametrize(
    "metric", [MULTICLASS, torchmetrics.MetricCollection([torchmetrics.MeanMetric()])], ids=["one", "some"]
)
def test_what_a_checkpoint_holds_can_be_computed_without_another_batch(metric: Any) -> None:
    if not isinstance(metric, dict):
        metric = Metric(metric, inputs=["id"])
    model = a_model(metrics={"found": metric})
    model.run(Data(1).batches[0], train=True, stream="train")
    other = a_model(metrics={"found": metric})
    other.load_state_dict(model.state_dict())
    assert other.end_stream("train", train=True) == model.end_stream("train", train=True)


@on_asyncio
async def test_what_an_evaluation_has_gathered_is_in_no_checkpoint() -> None:
    model = a_model(
        metrics={"area": {"class": "torchmetrics.classification:MulticlassAUROC", "num_classes": N_CLASSES}}
    )
    await train(model, Data(4), extra_streams=["valid"])
    assert model.state_dict()["metrics"]["train"]["area"]["own"] == {"preds": [], "target": []}
    assert set(model.state_dict()["metrics"]) == {"train"}


@on_asyncio
async def test_a_metric_without_a_state_begins_anew_when_a_run_goes_on() -> None:
    model = a_model(metrics={"right": Counted()})
    await train(model, Data(2))
    a_model(metrics={"right": Counted()}).load_state_dict(model.state_dict())


def test_a_curve_is_lists_of_numbers() -> None:
    model = a_model(metrics={"class": "torchmetrics.classification:MulticlassROC", "num_classes": 4, "thresholds": 3})
    model.begin_stream("valid", train=False)
    model.run(Data(1).batches[0], train=False, stream="valid")
    curves = model.end_stream("valid", train=False)["metric"]
    assert [np.shape(part) for part in curves] == [(4, 3), (4, 3), (3,)]
    assert not any(isinstance(part, torch.Tensor) for part in curves)


def test_a_metric_may_take_sources_by_name() -> None:
    model = a_model(metrics={"mean": {"class": "torchmetrics:MeanMetric", "inputs": ["id"]}})
    assert "id" in model.input_names
    model.begin_stream("valid", train=False)
    for batch in Data(2).batches:
        model.run(batch, train=False, stream="valid")
    assert model.end_stream("valid", train=False) == {"mean": 15.5}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {**MULTICLASS, "num_clases": 3},
            r"metrics: MulticlassAccuracy refuses .*'num_clases'; did you mean 'num_classes'",
        ),
        ({"accuracy": {**MULTICLASS, "inputs": "output"}}, r"metrics\.accuracy\.inputs: "),
        ({"accuracy": torch.nn.Linear(2, 2)}, r"metrics: 'accuracy' is a Linear without update, compute, reset"),
    ],
)
def test_a_metric_that_is_none_is_refused_by_name(metrics: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchModel(Net(), ["x"], loss=LOSS, optimizer=ADAM, metrics=metrics, device="cpu")
