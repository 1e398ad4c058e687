"""What a TorchModel refuses when it is built or set, in words that say what would do; and what it hands to hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_parts import ADAM, LOSS, N_CLASSES, N_INPUTS, Data, Net, a_model, heads, on_asyncio, same_bits, train

import asyncloop
from asyncloop import AfterBatch, ConfigError, Hook, ModelError
from asyncloop.evaluation import open_evaluation
from asyncloop.runs import check
from asyncloop.torch import TorchModel

pytestmark = pytest.mark.anyio

ACCURACY = {"class": "torchmetrics.classification:MulticlassAccuracy", "num_classes": N_CLASSES}
CROSS_ENTROPY = {"class": "torch.nn:CrossEntropyLoss", "inputs": ["logits", "label"]}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"metrics": {"loss": ACCURACY}}, "metrics: 'loss' is the name of an output"),
        ({"metrics": {"output": ACCURACY}}, "metrics: 'output' is the name of an output"),
        ({"loss": {"lr": LOSS, "other": LOSS}}, "loss: 'lr' is the name of another output"),
        ({"loss": {"loss": LOSS, "other": LOSS}}, "loss: 'loss' is the name of another output"),
        ({"loss": {"output": LOSS, "other": LOSS}}, "loss: 'output' is the name of another output"),
        ({"loss": {**LOSS, "reduction": "none"}}, "reduction = 'none'; a loss is one number"),
        ({"loss": {**LOSS, "reduction": "sum"}, "microbatches": 2}, "use reduction = 'mean' with microbatches"),
        ({"optimizer": {"class": "torch.optim:LBFGS"}}, "LBFGS computes the loss several times a step"),
        ({"clip": {"norm": 1.0, "norm_type": -3}}, "norm_type is positive"),
        ({"ahead": -1}, "ahead is a number of batches, at least 0, not -1"),
        ({"profile": {"start": -1}, "output_dir": "."}, "`start` is at least 0"),
        ({"profile": {"steps": 0}, "output_dir": "."}, "`steps` at least 1"),
        ({"compile": {"bakend": "eager"}}, "torch.compile refuses .*'bakend'"),
        ({"device": "meta"}, "'meta' cannot be used here: it holds no numbers"),
        ({"device": "cuda:77"}, "'cuda:77' cannot be used here"),
        ({"schedule": {"kind": "polynomial", "until": 9, "power": -1.0}}, "`power` is at least 0"),
        ({"schedule": {"kind": "linear", "until": 9, "floor": -1.0}}, "`floor` is at least 0"),
        ({"schedule": {"kind": "constant", "every": 5}}, "`every` and `at` are for a step schedule"),
        ({"schedule": {"kind": "plateau", "patience": -1}}, "`patience` is at least 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        a_model(**settings)


def test_a_sum_is_a_loss_where_the_batch_is_whole() -> None:
    model = a_model(loss={**LOSS, "reduction": "sum"})
    outputs = model.run(Data(1).batches[0], train=True, stream="train")
    assert outputs["loss"] > 16


def test_a_loss_of_many_numbers_is_told_with_its_shape() -> None:
    model = a_model(loss="output")
    with pytest.raises(ModelError, match=r"'loss' has shape \(16, 4\), not one number"):
        model.run(Data(1).batches[0], train=True, stream="train")


def test_without_labels_losses_and_metrics_are_left_out() -> None:
    model, batch = a_model(metrics={"right": ACCURACY}), Data(1).batches[0]
    model.begin_stream("predict", train=False)
    outputs = model.run({"x": batch["x"]}, train=False, stream="predict")
    assert set(outputs) == {"output"}
    assert model.end_stream("predict", train=False) == {}
    model.begin_stream("valid", train=False)
    model.run(batch, train=False, stream="valid")
    assert set(model.end_stream("valid", train=False)) == {"right"}


@on_asyncio
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('optimizer = { class = "torch.optim:AdamW" }', "", "the model has no optimizer, so it can only be evaluated"),
        ('loss = { class = "torch.nn:CrossEntropyLoss" }', "", "the model has no loss, and `outputs` has only output"),
        ('loss = { class = "torch.nn:CrossEntropyLoss" }', 'loss = "cost"', "names the output 'cost' as its loss"),
    ],
)
async def test_a_model_that_cannot_be_trained_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cfg.toml").write_text(CONFIG.replace('weights = "first.pt"\n', "").replace(before, after))
    with pytest.raises(ConfigError, match=told):
        await check("cfg.toml")
    with pytest.raises(ConfigError, match=told):
        async with asyncloop.open_run("cfg.toml", output_dir="run"):
            pass
    assert not Path("run").exists()


@on_asyncio
@pytest.mark.parametrize(
    ("name", "value"), [("lr", float("nan")), ("lr", -1.0), ("clip_norm", 0.0), ("ema_decay", 1.5)]
)
async def test_a_value_that_a_parameter_cannot_have_is_refused_where_it_is_set(name: str, value: float) -> None:
    refused: list[str] = []

    class Sets(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            try:
                event.control.set(name, value)
            except ConfigError as error:
                refused.append(str(error))

    result = await train(a_model(clip={"norm": 1.0}, ema={"decay": 0.9}), hooks=[Sets()])
    assert result.steps == 8, "and the run goes on"
    assert len(refused) == 8
    assert name.removeprefix("ema_") in refused[0]


class Counting(nn.Module):
    """Gives its own buffer, which the next step changes, a view of a weight, and tensors in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N_INPUTS, N_CLASSES)
        self.count = nn.Buffer(torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.count += 1
        logits = self.layer(x)
        return {"logits": logits, "count": self.count, "weight": self.layer.weight[0], "pair": (logits, logits * 2)}


@on_asyncio
async def test_hooks_get_what_a_step_gave_and_not_what_a_later_one_makes_of_it() -> None:
    seen: list[tuple[int, float]] = []
    weights: list[np.ndarray[Any, Any]] = []

    class Sees(Hook):
        variables = ["count", "weight", "pair"]

        async def after_batches(self, events: list[AfterBatch]) -> None:
            for event in events:
                seen.append((event.step, float(event.outputs["count"][0])))
                weights.append(event.outputs["weight"])
                assert [type(each) for each in event.outputs["pair"]] == [np.ndarray, np.ndarray]

    names = ["logits", "count", "weight", "pair"]
    model = TorchModel(Counting(), ["x"], outputs=names, loss=CROSS_ENTROPY, optimizer=ADAM, device="cpu")
    await train(model, hooks=[Sees()])
    assert seen == [(step, float(step)) for step in range(1, 9)]
    assert len({each.tobytes() for each in weights}) == 8


class Rich(NamedTuple):
    logits: Tensor
    more: list[tuple[Tensor, Tensor]]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N_INPUTS, N_CLASSES)

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.layer(x)
        return {"logits": logits, "rich": Rich(logits, [(logits, logits + 1)]), "words": ["a", 3]}


@on_asyncio
async def test_what_holds_tensors_keeps_its_form(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Sees(Hook):
        variables = ["rich", "words"]

        async def after_batch(self, event: AfterBatch) -> None:
            seen.append(event.outputs)

    names = ["logits", "rich", "words"]
    model = TorchModel(Named(), ["x"], outputs=names, loss=CROSS_ENTROPY, optimizer=ADAM, device="cpu")
    await train(model, hooks=[Sees()])
    rich, words = seen[0]["rich"], seen[0]["words"]
    assert (type(rich), type(rich.more), type(rich.more[0])) == (Rich, list, tuple)
    assert [type(each) for each in (rich.logits, *rich.more[0])] == [np.ndarray] * 3
    assert words == ["a", 3]


class Remembering(Net):
    """Keeps something that is no tensor in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += self.training
        return super().forward(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"n_calls": self.n_calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.n_calls = state["n_calls"]


@on_asyncio
async def test_a_modules_extra_state_is_saved_and_back() -> None:
    model, again = a_model(module=Remembering()), a_model(module=Remembering())
    await train(model)
    again.load_state_dict(model.state_dict())
    assert again.module.n_calls == model.module.n_calls == 8
    assert same_bits(dict(again.module.named_parameters()), dict(model.module.named_parameters()))


class Caching(Net):
    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = x.new_ones(N_INPUTS)
        return super().forward(x * self.mask)


def test_a_tensor_that_an_evaluation_left_in_the_module_is_told_in_words() -> None:
    model, batch = a_model(module=Caching()), Data(1).batches[0]
    batch["x"] = torch.from_numpy(batch["x"]).requires_grad_()
    model.run(batch, train=False, stream="valid")
    with pytest.raises(RuntimeError, match="Inference tensors") as told:
        model.run(batch, train=True, stream="train")
    assert any("make it where the module is made" in note for note in told.value.__notes__)


CONFIG = """
[dataset]
class = "torch_parts:Data"
[model]
class = "asyncloop.torch:TorchModel"
module = { class = "torch_parts:Net" }
inputs = ["x"]
loss = { class = "torch.nn:CrossEntropyLoss" }
optimizer = { class = "torch.optim:AdamW" }
weights = "first.pt"
device = "cpu"
[engine]
epochs = 1
extra_streams = ["valid"]
on_unused_sources = "ignore"
"""


@on_asyncio
async def test_a_run_needs_the_file_of_its_first_weights_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Net().state_dict(), "first.pt")
    Path("cfg.toml").write_text(CONFIG)
    async with asyncloop.open_run("cfg.toml", output_dir="run") as live:
        await live
    Path("first.pt").unlink()
    loaded = asyncloop.load_model("run")
    assert torch.isfinite(loaded.weights()["head.weight"]).all()
    assert not loaded.module.training, "ready for inference, also by a call of the module itself"
    async with open_evaluation("run", ["valid"]) as live:
        await live
    async with asyncloop.open_run(resume="run", set={"engine.epochs": 2}) as live:
        assert (await live).steps == 16
    assert 'weights = "first.pt"' in Path("run/resolved.toml").read_text()


class OwnWeights(TorchModel):
    """Takes an argument of the same name for something else."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__(Net(), ["x"], loss=LOSS, optimizer=ADAM, device="cpu")
        self.of_classes = list(weights)


@on_asyncio
async def test_a_models_own_argument_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = CONFIG.split("[model]")[0] + '[model]\nclass = "test_torch_refusals:OwnWeights"\nweights = [1.0, 2.0]\n'
    Path("cfg.toml").write_text(text + "[engine]" + CONFIG.split("[engine]")[1])
    async with asyncloop.open_run("cfg.toml", output_dir="run") as live:
        await live
    assert asyncloop.load_model("run").of_classes == [1.0, 2.0]


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(N_CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(x), "few": torch.eye(3).to_sparse()}


def test_outputs_that_are_sparse_and_modules_that_are_lazy_pass() -> None:
    optimizer = {"class": "torch.optim:SGD", "lr": 0.1}
    module = Sparse()
    module(torch.zeros(1, N_INPUTS))
    model = TorchModel(module, ["x"], outputs=["logits", "few"], loss=CROSS_ENTROPY, optimizer=optimizer, device="cpu")
    outputs = model.run(Data(1).batches[0], train=True, stream="train")
    assert outputs["few"]().is_sparse
    TorchModel(Sparse(), ["x"], outputs=["logits", "few"], device="cpu")


def test_a_state_of_an_optimizer_keeps_its_type() -> None:
    """Adam counts in float32, whatever its parameters are, and a parameter may be one number."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * x.float().mean() - 1.0) ** 2

    def one() -> TorchModel:
        return TorchModel(One(), ["x"], loss="output", optimizer=ADAM, device="cpu")

    model, again = one(), one()
    model.run(Data(1).batches[0], train=True, stream="train")
    again.load_state_dict(model.state_dict())
    assert again.updates is not None
    (kept,) = again.updates.optimizer.state.values()
    assert kept["step"].dtype == torch.float32


def test_a_head_may_still_give_what_a_metric_looks_at() -> None:
    assert heads(metrics={"right": {**ACCURACY, "inputs": ["logits", "label"]}}).metrics is not None
