from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from models_problem import blobs, numerical_gradient

from asyncloop.models import MLP, SoftmaxRegression
from asyncloop.models.activations import ACTIVATIONS
from asyncloop.models.loss import cross_entropy
from asyncloop.models.network import Network


def gradient_by_sgd(model: MLP, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What one step of plain descent with rate 1 took away from each weight."""
    before = {name: array.copy() for name, array in model.weights().items()}
    model.run(batch, train=True, stream="train")
    return {name: before[name] - array for name, array in model.weights().items()}


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", [(5,), (6, 5)])
def test_an_mlp_descends_along_the_numerical_gradient(
    activation: Literal["relu", "tanh", "gelu"], hidden: tuple[int, ...]
) -> None:
    model = MLP(n_inputs=4, n_classes=3, hidden=hidden, activation=activation, optimizer="sgd", lr=1.0, dtype="float64")
    expected = numerical_gradient(model, blobs(20))
    for name, found in gradient_by_sgd(model, blobs(20)).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-8, err_msg=name)


def test_softmax_regression_descends_along_the_numerical_gradient() -> None:
    model = SoftmaxRegression(n_inputs=4, n_classes=3, optimizer="sgd", lr=1.0, dtype="float64")
    expected = numerical_gradient(model, blobs(20))
    for name, found in gradient_by_sgd(model, blobs(20)).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_gradient_goes_through_the_units_that_dropout_kept() -> None:
    network = Network((4, 8, 3), ACTIVATIONS["tanh"], dropout=0.5, dtype="float64")
    network.initialise(np.random.default_rng(0))
    batch = blobs(10)
    logits, traces = network.forward(batch["image"], np.random.default_rng(5))
    network.backward(cross_entropy(logits, batch["label"])[1], traces)
    weight = network.parameters.by_name["dense0.weight"]
    for at in np.ndindex(weight.shape):
        losses: list[float] = []
        for sign in (1, -1):
            weight[at] += sign * 1e-6
            logits, _ = network.forward(batch["image"], np.random.default_rng(5))
            losses.append(cross_entropy(logits, batch["label"])[0])
            weight[at] -= sign * 1e-6
        found = network.gradient.by_name["dense0.weight"][at]
        assert found == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_dropout_keeps_the_mean_of_what_goes_on() -> None:
    network = Network((1, 4000, 2), ACTIVATIONS["relu"], dropout=0.25, dtype="float64")
    network.parameters.by_name["dense0.bias"][...] = 1
    _, traces = network.forward(np.zeros((50, 1)), np.random.default_rng(0))
    assert traces[1].x_BI.mean() == pytest.approx(1, abs=0.01)
    assert (traces[1].x_BI == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_cross_entropy_of_huge_logits_is_finite_and_right() -> None:
    loss, gradient = cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert loss == pytest.approx(5e3)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]])
