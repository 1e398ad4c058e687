from __future__ import annotations

import numpy as np

from asyncloop.models.optimizers import SGD, Adam, Momentum
from asyncloop.models.parameters import Parameters

GRADIENTS = [np.array([0.5, -1.0, 2.0, 0.1]), np.array([-0.25, 3.0, 0.0, 0.4]), np.array([1.0, 1.0, -1.0, -2.0])]


def one_matrix_and_a_bias() -> Parameters:
    parameters = Parameters({"bias": (2,), "weight": (1, 2)}, np.float64)
    parameters.flat[...] = [1.0, -2.0, 3.0, 0.5]
    return parameters


def after(optimizer: SGD | Momentum | Adam, parameters: Parameters, lr: float) -> np.ndarray:
    gradient = parameters.zeros_like()
    for values in GRADIENTS:
        gradient.flat[...] = values
        optimizer.update(parameters, gradient, lr)
    return parameters.flat


def decayed(theta: np.ndarray, share: float) -> np.ndarray:
    return np.where([True, True, False, False], theta * (1 - share), theta)


def test_sgd_steps_like_its_formula_and_decay_spares_the_bias() -> None:
    parameters = one_matrix_and_a_bias()
    theta = parameters.flat.copy()
    found = after(SGD(parameters, weight_decay=0.1), parameters, lr=0.5)
    for g in GRADIENTS:
        theta = decayed(theta, 0.05) - 0.5 * g
    np.testing.assert_allclose(found, theta, rtol=1e-12)


def test_momentum_steps_like_its_formula() -> None:
    parameters = one_matrix_and_a_bias()
    theta, v = parameters.flat.copy(), np.zeros(4)
    found = after(Momentum(parameters, momentum=0.8, weight_decay=0.1), parameters, lr=0.5)
    for g in GRADIENTS:
        v = 0.8 * v + g
        theta = decayed(theta, 0.05) - 0.5 * v
    np.testing.assert_allclose(found, theta, rtol=1e-12)


def test_adam_steps_like_algorithm_1_of_its_paper() -> None:
    parameters = one_matrix_and_a_bias()
    theta, m, v = parameters.flat.copy(), np.zeros(4), np.zeros(4)
    found = after(Adam(parameters, weight_decay=0.1), parameters, lr=0.5)
    for t, g in enumerate(GRADIENTS, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = decayed(theta, 0.05) - 0.5 * m_hat / (np.sqrt(v_hat) + 1e-8)
    np.testing.assert_allclose(found, theta, rtol=1e-12)


def test_an_update_leaves_the_gradient_as_it_is() -> None:
    for make in (SGD, Momentum, Adam):
        parameters = one_matrix_and_a_bias()
        gradient = parameters.zeros_like()
        gradient.flat[...] = GRADIENTS[0]
        make(parameters).update(parameters, gradient, 0.1)
        np.testing.assert_array_equal(gradient.flat, GRADIENTS[0])
