from __future__ import annotations

import copy
import re
from typing import Any, Literal

import numpy as np
import pytest
from models_problem import blobs

import asyncloop.models
from asyncloop.errors import ConfigError, ModelError
from asyncloop.model import Model
from asyncloop.models import MLP, SoftmaxRegression


def small(**changes: Any) -> MLP:
    return MLP(**({"n_inputs": 4, "n_classes": 3, "hidden": (8,), "lr": 0.01} | changes))


def train(model: MLP, n_steps: int, first: int = 0) -> list[float]:
    return [model.run(blobs(seed=seed), train=True, stream="train")["loss"] for seed in range(first, first + n_steps)]


def frozen(model: MLP) -> Any:
    return copy.deepcopy(dict(model.state_dict()))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


@pytest.mark.parametrize("make", [small, lambda: SoftmaxRegression(n_inputs=4, n_classes=3)])
def test_it_is_a_model_with_three_outputs(make: Any) -> None:
    model = make()
    assert isinstance(model, Model)
    assert tuple(model.input_names) == ("image", "label")
    outputs = model.run(blobs(), train=False, stream="valid")
    assert tuple(outputs) == tuple(model.output_names) == ("loss", "accuracy", "prediction")
    assert type(outputs["loss"]) is type(outputs["accuracy"]) is float
    assert outputs["prediction"].shape == (60,)
    assert outputs["prediction"].dtype.kind == "i"
    assert outputs["accuracy"] == (outputs["prediction"] == blobs()["label"]).mean()


def test_the_package_exports_its_models() -> None:
    assert {"MLP", "SoftmaxRegression"} <= set(asyncloop.models.__all__)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_it_learns_classes_that_lie_apart(optimizer: Literal["adam", "momentum", "sgd"]) -> None:
    model = small(optimizer=optimizer, lr=0.02)
    train(model, 200)
    assert model.run(blobs(seed=1000), train=False, stream="valid")["accuracy"] > 0.97


def test_softmax_regression_learns_classes_that_lie_apart() -> None:
    model = SoftmaxRegression(n_inputs=4, n_classes=3)
    train(model, 200)
    assert model.run(blobs(seed=1000), train=False, stream="valid")["accuracy"] > 0.97


def test_an_mlp_learns_what_no_linear_model_can() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    batch = {"image": x, "label": (x[:, 0] * x[:, 1] > 0).astype(int)}
    mlp = MLP(n_inputs=2, n_classes=2, hidden=(32,), lr=0.02)
    linear = SoftmaxRegression(n_inputs=2, n_classes=2)
    for _ in range(300):
        found, linear_found = (model.run(batch, train=True, stream="train") for model in (mlp, linear))
    assert found["accuracy"] > 0.95
    assert linear_found["accuracy"] < 0.75


def test_evaluation_changes_nothing() -> None:
    model = small(dropout=0.3, average=0.9)
    train(model, 3)
    before = frozen(model)
    outputs = [model.run(blobs(seed=9), train=False, stream="valid") for _ in range(2)]
    assert same(before, frozen(model))
    assert outputs[0]["loss"] == outputs[1]["loss"]


def test_the_outputs_of_a_training_step_are_of_the_weights_before_it() -> None:
    model = small()
    evaluated = model.run(blobs(), train=False, stream="train")["loss"]
    assert model.run(blobs(), train=True, stream="train")["loss"] == evaluated
    assert model.run(blobs(), train=False, stream="train")["loss"] < evaluated


def test_outputs_and_batches_are_left_alone_by_later_steps() -> None:
    model, batch = small(dropout=0.2, dtype="float64"), blobs()
    prediction = model.run(batch, train=True, stream="train")["prediction"]
    kept = prediction.copy()
    train(model, 20, first=5)
    np.testing.assert_array_equal(prediction, kept)
    assert same(batch, blobs())


def test_the_same_seed_gives_the_same_training_whatever_the_global_generator_does() -> None:
    a, b, other = small(dropout=0.2, seed=3), small(dropout=0.2, seed=3), small(dropout=0.2, seed=4)
    losses = train(a, 5)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    assert train(b, 5) == losses
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert train(other, 5) != losses


def test_examples_of_any_shape_and_real_dtype_are_flattened() -> None:
    batch = blobs()
    square = {"image": batch["image"].reshape(60, 2, 2), "label": batch["label"].astype(np.uint8)}
    a, b = (small().run(each, train=False, stream="valid")["loss"] for each in (batch, square))
    assert a == b
    small().run({"image": np.ones((2, 4), np.uint8), "label": [0, 2]}, train=True, stream="train")


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_a_restored_model_goes_on_bit_for_bit(optimizer: Literal["adam", "momentum", "sgd"]) -> None:
    arguments: Any = {"optimizer": optimizer, "dropout": 0.3, "average": 0.9, "weight_decay": 0.01}
    model = small(**arguments)
    train(model, 7)
    state = frozen(model)
    losses = train(model, 7, first=7)
    restored = small(**arguments, seed=77)
    restored.load_state_dict(state)
    assert train(restored, 7, first=7) == losses
    assert same(frozen(restored), frozen(model))


def test_a_loaded_state_is_copied_in() -> None:
    model, state = small(average=0.9), frozen(small(seed=5, average=0.9))
    kept = copy.deepcopy(state)
    model.load_state_dict(state)
    train(model, 2)
    assert same(state, kept)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("weights"), "expected optimizer, rng, weights"),
        (lambda s: s["weights"].pop("dense1.bias"), "weights has no 'dense1.bias' (expected float32 of shape (3,))"),
        (lambda s: s["weights"].update(more=np.zeros(2)), "weights has 'more'"),
        (
            lambda s: s["weights"].update({"dense0.weight": np.zeros((4, 9), np.float32)}),
            "weights['dense0.weight'] is float32 of shape (4, 9), expected float32 of shape (4, 8)",
        ),
        (lambda s: s["weights"].update({"dense1.bias": np.zeros(3)}), "is float64 of shape (3,), expected float32"),
        (lambda s: s["optimizer"].update(name="sgd"), "of the optimizer 'sgd', expected 'adam'"),
        (lambda s: s["optimizer"].update(n_updates=None), "n_updates is None, expected a number"),
        (lambda s: s["optimizer"].pop("mean"), "optimizer mean is a NoneType"),
        (lambda s: s["optimizer"]["square"].pop("dense0.bias"), "optimizer square has no 'dense0.bias'"),
        (lambda s: s.update(rng={"bit_generator": "MT19937"}), "'rng' is no state of numpy's PCG64"),
        (lambda s: s.update(rng=None), "'rng' is no state of numpy's PCG64"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(spoil: Any, message: str) -> None:
    model, state = small(), frozen(small(seed=5))
    train(model, 2)
    before = frozen(model)
    spoil(state)
    with pytest.raises(ModelError, match=re.escape(message)):
        model.load_state_dict(state)
    assert same(before, frozen(model))


def test_weights_alone_are_taken_over_by_a_model_that_is_trained_in_another_way() -> None:
    saved = small(average=0.9, dropout=0.3)
    train(saved, 5)
    model = small(optimizer="sgd", lr=0.5, dropout=0.3, seed=7)
    as_built = frozen(model)
    state = frozen(saved)
    model.load_weights(state)
    assert same(frozen(model), {**as_built, "weights": state["average"]})
    averaged = small(average=0.5)
    averaged.load_weights(frozen(model))
    assert same(averaged.state_dict()["average"], state["average"])
    assert same(dict(averaged.weights()), state["average"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("weights"), "it has average, optimizer, rng, expected weights"),
        (lambda s: s["weights"].pop("dense1.bias"), "weights has no 'dense1.bias' (expected float32 of shape (3,))"),
        (lambda s: s["average"].update({"dense1.bias": np.zeros(3)}), "is float64 of shape (3,), expected float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(spoil: Any, message: str) -> None:
    model, state = small(), frozen(small(seed=5, average=0.9))
    before = frozen(model)
    spoil(state)
    with pytest.raises(ModelError, match=re.escape(message)):
        model.load_weights(state)
    assert same(before, frozen(model))


def test_a_changed_learning_rate_holds_from_the_next_step_on_and_is_part_of_the_state() -> None:
    model = small(optimizer="sgd")
    model.set_parameters(lr=0.0)
    before = copy.deepcopy(dict(model.weights()))
    train(model, 1)
    assert same(before, dict(model.weights()))
    restored = small(optimizer="sgd")
    restored.load_state_dict(frozen(model))
    assert restored.lr == 0.0


def test_a_model_built_with_another_learning_rate_keeps_it_when_it_is_restored() -> None:
    model, other = small(lr=0.01), small(lr=0.5)
    model.set_parameters(lr=0.02)
    other.load_state_dict(frozen(model))
    assert other.lr == 0.5


@pytest.mark.parametrize("changes", [{"lr": -1}, {"lr": float("nan")}, {"lr": "0.1"}, {"lr": 0.1, "momentum": 0.5}])
def test_set_parameters_refuses_other_names_and_values_without_a_change(changes: Any) -> None:
    model = small()
    with pytest.raises(ConfigError, match=r"MLP\.set_parameters: "):
        model.set_parameters(**changes)
    assert model.lr == 0.01
    assert model.live == {"lr": float}


def test_evaluations_use_the_averaged_weights() -> None:
    plain, averaged = small(), small(average=0.9)
    start = {name: array.astype(np.float64) for name, array in averaged.weights().items()}
    expected = start
    for step in range(1, 4):
        assert train(plain, 1, first=step) == train(averaged, 1, first=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * array for name, array in plain.weights().items()}
    for name, found in averaged.state_dict()["average"].items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-7)
    a, b = (model.run(blobs(), train=False, stream="valid")["loss"] for model in (plain, averaged))
    assert a != b


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": np.ones((2, 4))}, "source 'label': found only 'image'"),
        ({"image": np.ones((2, 5)), "label": [0, 1]}, "source 'image': found shape (2, 5), which is 5 numbers"),
        ({"image": np.ones((2, 4), complex), "label": [0, 1]}, "found values of dtype complex128; expected real"),
        ({"image": [["a"] * 4], "label": [0]}, "expected real numbers"),
        ({"image": [[1, 2], [3]], "label": [0, 1]}, "source 'image': found no array"),
        ({"image": np.ones((0, 4)), "label": []}, "source 'image': found nothing in it (shape (0, 4))"),
        ({"image": 1.0, "label": [0]}, "source 'image': found nothing in it (shape ())"),
        ({"image": np.ones((2, 4)), "label": [0.0, 1.0]}, "source 'label': found values of dtype float64"),
        ({"image": np.ones((2, 4)), "label": np.eye(3)[:2]}, "give class numbers, not one-hot rows"),
        ({"image": np.ones((2, 4)), "label": [0, 1, 2]}, "found shape (3,); expected shape (2,)"),
        ({"image": np.ones((2, 4)), "label": [0, 3]}, "found labels from 0 to 3; expected 0 to 2; set n_classes = 4"),
        ({"image": np.ones((2, 4)), "label": [-1, 1]}, "number the classes from 0"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_source_and_changes_nothing(batch: Any, message: str) -> None:
    model = small(dropout=0.2)
    before = frozen(model)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        model.run(batch, train=True, stream="train")
    assert "stream 'train'" in str(caught.value)
    assert same(before, frozen(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_inputs": 0}, "n_inputs = 0, expected a whole number of at least 1"),
        ({"n_inputs": True}, "n_inputs = True"),
        ({"n_classes": 1}, "n_classes = 1, expected a whole number of at least 2"),
        ({"labels": "image"}, "inputs and labels name the same source"),
        ({"inputs": ""}, "the name of a source"),
        ({"hidden": (8, 0)}, "hidden = (8, 0), expected a list of whole numbers"),
        ({"hidden": 8}, "hidden = 8, expected a list of whole numbers"),
        ({"activation": "rleu"}, "did you mean 'relu'?"),
        ({"optimizer": "lamb"}, "one of 'adam', 'momentum', 'sgd'"),
        ({"lr": float("inf")}, "lr = inf, expected a finite number"),
        ({"momentum": 1.0}, "momentum = 1.0, expected a finite number of at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"dropout": 1}, "dropout = 1"),
        ({"average": 1}, "average = 1"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        small(**changes)


def test_all_wrong_arguments_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        SoftmaxRegression(n_inputs=0, n_classes=1, lr=-1)
    assert len(caught.value.problems) == 3
    assert all(problem.startswith("SoftmaxRegression: ") for problem in caught.value.problems)


def test_a_diverging_run_returns_a_loss_that_is_not_finite_and_warns_nobody() -> None:
    model = small(optimizer="sgd", lr=1e30)
    assert not np.isfinite(train(model, 10)).all()
