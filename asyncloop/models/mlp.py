"""MLP: a multilayer perceptron that classifies, in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from asyncloop.batch import Batch
from asyncloop.errors import ModelError
from asyncloop.models.activations import ACTIVATIONS
from asyncloop.models.arguments import Arguments
from asyncloop.models.loss import cross_entropy
from asyncloop.models.network import Network
from asyncloop.models.optimizers import make_optimizer
from asyncloop.models.parameters import Array
from asyncloop.models.sources import examples_of, labels_of

__all__ = ["MLP"]


class MLP:
    """Dense layers of `hidden` units and a softmax over `n_classes`, trained on the mean cross-entropy.

    * `inputs` and `labels` name the sources, both required: examples (B, …) of `n_inputs` numbers each in any
      shape, flattened here, not scaled; and class numbers (B,), integers from 0.
    * Outputs: `loss` (mean over the batch, nats), `accuracy` (0 to 1), `prediction` (B,) integers.
    * `dropout` is the chance of a hidden unit to be left out of a training step; `weight_decay` is decoupled
      from the gradient and spares biases; `momentum` is for that optimizer only (all in `optimizers.py`).
    * `average` above 0, such as 0.998, is the decay a step of an exponential average of the weights, which
      evaluations use: it takes the noise of the last steps away (after Polyak and Juditsky, Acceleration of
      Stochastic Approximation by Averaging, 1992).
    * `lr` may be changed while it runs. All randomness comes from `seed`, by generators of the model's own.

    Lives on the model thread. Back-propagation: Rumelhart, Hinton and Williams, Nature 323, 1986.
    """

    live: ClassVar[dict[str, type]] = {"lr": float}

    def __init__(
        self,
        *,
        n_inputs: int,
        n_classes: int,
        inputs: str = "image",
        labels: str = "label",
        hidden: Sequence[int] = (64,),
        activation: Literal["relu", "tanh", "gelu"] = "relu",
        optimizer: Literal["adam", "momentum", "sgd"] = "adam",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        average: float = 0.0,
        dtype: Literal["float32", "float64"] = "float32",
        seed: int = 0,
    ) -> None:
        """ConfigError, with one message for each mistake, if an argument is not what it has to be."""
        check = Arguments(type(self).__name__)
        check.whole("n_inputs", n_inputs, at_least=1)
        check.whole("n_classes", n_classes, at_least=2)
        check.sources(inputs=inputs, labels=labels)
        check.sizes("hidden", hidden)
        check.choice("activation", activation, tuple(ACTIVATIONS))
        check.choice("optimizer", optimizer, ("adam", "momentum", "sgd"))
        check.number("lr", lr)
        check.number("momentum", momentum, below=1)
        check.number("weight_decay", weight_decay)
        check.number("dropout", dropout, below=1)
        check.number("average", average, below=1)
        check.choice("dtype", dtype, ("float32", "float64"))
        check.whole("seed", seed, at_least=0)
        check.done()

        self.input_names: Sequence[str] = (inputs, labels)
        self.output_names: Sequence[str] = ("loss", "accuracy", "prediction")
        self._n_inputs, self._n_classes, self._dtype = n_inputs, n_classes, np.dtype(dtype)
        weight_seed, dropout_seed = np.random.SeedSequence(seed).spawn(2)
        self._rng = np.random.default_rng(dropout_seed)
        sizes = (n_inputs, *hidden, n_classes)
        self._network = Network(sizes, ACTIVATIONS[activation], dropout=dropout, dtype=dtype)
        self._network.initialise(np.random.default_rng(weight_seed))
        self._average = average
        self._evaluated = self._network
        if average:
            self._evaluated = Network(sizes, ACTIVATIONS[activation], dropout=dropout, dtype=dtype)
            self._evaluated.parameters.assign(self._network.parameters.by_name)
        self._optimizer_name = optimizer
        self._optimizer = make_optimizer(
            optimizer, self._network.parameters, momentum=momentum, weight_decay=weight_decay
        )
        self._configured_lr = self._lr = float(lr)

    @property
    def lr(self) -> float:
        """The learning rate of the next training step."""
        return self._lr

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """The outputs; `train=True` then makes one update, so they are of the weights before it.

        ModelError names the source that does not fit; nothing is changed then.
        """
        inputs, labels = self.input_names
        x_BI = examples_of(batch, inputs, n_inputs=self._n_inputs, dtype=self._dtype, stream=stream)
        y_B = labels_of(batch, labels, n_examples=len(x_BI), n_classes=self._n_classes, stream=stream)
        network = self._network if train else self._evaluated
        with np.errstate(all="ignore"):  # a loss that is not finite is reported by the engine, not by warnings
            logits_BC, traces = network.forward(x_BI, self._rng if train else None)
            prediction_B = logits_BC.argmax(axis=1)
            loss, gradient_BC = cross_entropy(logits_BC, y_B)
            if train:
                network.backward(gradient_BC, traces)
                self._optimizer.update(network.parameters, network.gradient, self._lr)
                self._follow()
        n_right = int(np.count_nonzero(prediction_B == y_B))
        return {"loss": loss, "accuracy": n_right / len(y_B), "prediction": prediction_B}

    def weights(self) -> Mapping[str, Array]:
        """The trained arrays, live: `dense0.weight` (n_inputs, hidden[0]), `dense0.bias` (hidden[0],), and so on."""
        return dict(self._network.parameters.by_name)

    def set_parameters(self, **changes: float) -> None:
        """Change `lr` from the next step on. ConfigError, and no change, for any other name or value."""
        check = Arguments(f"{type(self).__name__}.set_parameters")
        check.known(changes, tuple(self.live))
        lr = changes.get("lr", self._lr)
        check.number("lr", lr)
        check.done()
        self._lr = float(lr)

    def state_dict(self) -> Mapping[str, Any]:
        """All that the next step depends on; the arrays are the live ones, to be copied before that step."""
        return {
            "weights": self.weights(),
            "optimizer": {
                "name": self._optimizer_name,
                "n_updates": self._optimizer.n_updates,
                "lr": self._lr,
                "configured_lr": self._configured_lr,
            }
            | {name: dict(slot.by_name) for name, slot in self._optimizer.slots.items()},
            "rng": self._rng.bit_generator.state,
        } | ({"average": dict(self._evaluated.parameters.by_name)} if self._average else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; ModelError, and no change, if names, shapes or dtypes differ.

        A learning rate changed while that run was going comes along, unless this model was built with another
        `lr` than that one: then its own holds, so that a config changed for the continuation has its effect.
        """
        rng = np.random.default_rng()
        self._refuse(self._differences(state, rng))
        optimizer = state["optimizer"]
        self._network.parameters.assign(state["weights"])
        if self._average:
            self._evaluated.parameters.assign(state["average"])
        for name, slot in self._optimizer.slots.items():
            slot.assign(optimizer[name])
        self._optimizer.n_updates = optimizer["n_updates"]
        if optimizer["configured_lr"] == self._configured_lr:
            self._lr = float(optimizer["lr"])
        else:
            self._lr = self._configured_lr
        self._rng = rng

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Take over only what was learned, the average if there is one: a new run begins with it.

        Optimizer, learning rate and generators stay as built. ModelError, and no change, if names, shapes or dtypes
        differ.
        """
        parts = [part for part in ("weights", "average") if part in state]
        problems = [] if "weights" in parts else [f"it has {', '.join(sorted(state))}, expected weights"]
        for part in parts:
            problems += self._network.parameters.differences(state[part], part)
        self._refuse(problems)
        learned = state[parts[-1]]
        self._network.parameters.assign(learned)
        self._evaluated.parameters.assign(learned)

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            found = "; ".join(problems)
            raise ModelError(
                f"the state does not fit this {type(self).__name__}: {found}. Nothing was loaded; "
                "build the model with the arguments of the saved one, or start without this state"
            )

    def _follow(self) -> None:
        """Move the evaluated weights towards the trained ones, faster at first so that the start is forgotten."""
        if self._average:
            n = self._optimizer.n_updates
            followed, trained = self._evaluated.parameters.flat, self._network.parameters.flat
            followed += (1 - min(self._average, (1 + n) / (10 + n))) * (trained - followed)

    def _differences(self, state: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
        """What keeps `state` from being loaded, in words. `rng` takes over its generator state on the way."""
        parts = {"weights", "optimizer", "rng", *(["average"] if self._average else [])}
        if set(state) != parts:
            return [f"it has {', '.join(sorted(state))}, expected {', '.join(sorted(parts))}"]
        problems = self._network.parameters.differences(state["weights"], "weights")
        if self._average:
            problems += self._evaluated.parameters.differences(state["average"], "average")
        problems += self._optimizer_differences(state["optimizer"])
        try:
            rng.bit_generator.state = state["rng"]
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"'rng' is no state of numpy's PCG64 generator ({error!r})")
        return problems

    def _optimizer_differences(self, state: Mapping[str, Any]) -> list[str]:
        if state.get("name") != self._optimizer_name:
            return [f"it is of the optimizer {state.get('name')!r}, expected {self._optimizer_name!r}"]
        numbers = ("n_updates", "lr", "configured_lr")
        problems = [
            f"optimizer {key} is {state.get(key)!r}, expected a number"
            for key in numbers
            if not isinstance(state.get(key), int | float)
        ]
        for name, slot in self._optimizer.slots.items():
            problems += slot.differences(state.get(name), f"optimizer {name}")
        return problems
