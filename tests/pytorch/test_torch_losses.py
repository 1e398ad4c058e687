"""Losses: one or several, weighted, by class, by function, by the name of an output, with weights of their own."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch_parts import ADAM, LOSS, N_CLASSES, Data, Heads, Net, a_model, heads, on_asyncio, train

from asyncloop import AfterBatch, ConfigError, Engine, ModelError
from asyncloop.torch import Loss

pytestmark = pytest.mark.anyio


@on_asyncio
async def test_several_losses_are_outputs_and_their_weighted_sum_is_trained() -> None:
    model, told = heads(), list[dict[str, float]]()
    engine = Engine(model, Data(3), epochs=1, skip_zeroth_epoch=True, on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: told.append(dict(event.outputs)))
    await engine.train()

    net = Heads()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for outputs, batch in zip(told, Data(3).batches, strict=True):
        x, label = torch.from_numpy(batch["x"]), torch.from_numpy(batch["label"])
        logits, back = net(x)
        parts = nn.functional.cross_entropy(logits, label), nn.functional.mse_loss(back, x)
        loss = parts[0] + parts[1] * 0.25
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected = {"class_loss": parts[0].item(), "back_loss": parts[1].item(), "loss": loss.item(), "lr": 0.1}
        assert outputs == expected
    assert torch.equal(model.module.body.weight, net.body.weight)


@on_asyncio
async def test_the_epochs_data_holds_the_mean_of_each_loss() -> None:
    result = await train(heads(), Data(4), extra_streams=["valid"])
    for stream in ("train", "valid"):
        data = result.metrics[stream]
        assert data["loss"] == pytest.approx(data["class_loss"] + 0.25 * data["back_loss"], rel=1e-6)


def test_a_loss_may_be_a_function_an_object_or_a_module() -> None:
    batch = Data(1).batches[0]

    def cross_entropy(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, label)

    given = [LOSS, cross_entropy, nn.CrossEntropyLoss(), Loss(cross_entropy, ("output", "label"))]
    losses = [a_model(loss=each).run(batch, train=False, stream="valid")["loss"] for each in given]
    assert losses == [losses[0]] * len(given)


def test_a_loss_may_be_an_output_of_the_module_by_its_name() -> None:
    class Own(Net):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            logits = super().forward(x)
            return {"logits": logits, "nll": nn.functional.cross_entropy(logits, label)}

    model = a_model(module=Own(), inputs=["x", "label"], outputs=["logits", "nll"], loss="nll")
    before = model.module.head.weight.detach().clone()
    outputs = model.run(Data(1).batches[0], train=True, stream="train")
    assert outputs["loss"] == outputs["nll"]
    assert not torch.equal(model.module.head.weight, before)


def test_a_loss_that_the_module_returns_under_that_name_needs_no_argument() -> None:
    class Own(Net):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {"loss": nn.functional.cross_entropy(super().forward(x), label)}

    model = a_model(module=Own(), inputs=["x", "label"], outputs=[], loss=None)
    assert model.run(Data(1).batches[0], train=True, stream="train")["loss"] > 0
    assert list(model.output_names) == ["loss", "lr"]


def test_a_step_without_a_loss_says_what_there_is() -> None:
    with pytest.raises(
        ModelError, match=r"needs the output 'loss', a scalar tensor; there are output\. Give the model"
    ):
        a_model(loss=None).run(Data(1).batches[0], train=True, stream="train")


def test_what_a_loss_wants_and_nobody_gives_is_named_with_the_nearest() -> None:
    class Named(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x)}

    model = a_model(module=Named(), outputs=["logit"], loss={**LOSS, "inputs": ["logit", "label"]})
    with pytest.raises(ModelError, match=r"loss 'loss' wants 'logit', but there are only .*; did you mean 'logits'\?"):
        model.run(Data(1).batches[0], train=True, stream="train")


def test_an_evaluation_without_labels_has_outputs_and_no_loss() -> None:
    outputs = a_model().run({"x": Data(1).batches[0]["x"]}, train=False, stream="predict")
    assert set(outputs) == {"output"}


class Centres(nn.Module):
    """A loss with weights: the distance to a centre for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(N_CLASSES, N_CLASSES))
        self.dropout = nn.Dropout(0.5)

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return ((self.dropout(output) - self.centres[label]) ** 2).mean()


def test_the_weights_of_a_loss_are_trained_and_saved() -> None:
    model = a_model(loss={"centre": Loss(Centres())}, optimizer={**ADAM, "groups": [{"match": "losses.*", "lr": 0.5}]})
    model.run(Data(1).batches[0], train=True, stream="train")
    state = model.state_dict()
    assert float(state["losses"]["centre.centres"].abs().max()) == pytest.approx(0.5, rel=1e-3)
    other = a_model(loss={"centre": Loss(Centres())}, optimizer={**ADAM, "groups": [{"match": "losses.*", "lr": 0.5}]})
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()["losses"]["centre.centres"], state["losses"]["centre.centres"])


def test_a_loss_is_in_eval_mode_in_an_evaluation_and_in_training_mode_again_after_it() -> None:
    model, batch = a_model(loss=Centres()), Data(1).batches[0]
    losses = {model.run(batch, train=False, stream="valid")["loss"] for _ in range(3)}
    assert len(losses) == 1, "no dropout"
    model.end_stream("valid", train=False)
    assert model.losses is not None
    assert all(part.training for part in model.losses.modules())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({**LOSS, "inputs": "output"}, r"loss\.inputs: Input should be a valid array"),
        ({**LOSS, "weight": "2"}, r"loss\.weight: Input should be a valid number"),
        ({"a": LOSS, "b": {**LOSS, "weight": "2"}}, r"loss\.b\.weight: "),
        (
            {**LOSS, "reduction": "mean", "label_smoothin": 0.1},
            r"loss: CrossEntropyLoss refuses its arguments: .*smoothing",
        ),
        ({"forward": LOSS, "b": LOSS}, r"'forward' cannot be the name of a loss"),
        ({}, r"loss: an empty table"),
        (3, r"loss: 'loss' is a int, not a function"),
    ],
)
def test_a_loss_that_is_none_is_refused_by_name(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_model(loss=loss)


def test_an_input_that_is_nearly_an_output_is_told_before_any_data_is_there(caplog: pytest.LogCaptureFixture) -> None:
    loss = {"class": "torch.nn:CrossEntropyLoss", "inputs": ["outptu", "label"]}
    with caplog.at_level(logging.WARNING, "asyncloop"):
        a_model(loss=loss)
    assert "wants 'outptu', which is no output, so it has to be a source; did you mean 'output'?" in caplog.text
    assert "'label'" not in caplog.text
