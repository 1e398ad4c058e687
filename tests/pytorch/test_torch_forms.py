"""Forms that a module is put into: compiled, with activations that are computed again, with channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_parts import ADAM, LOSS, N_CLASSES, Data, Net, a_model, same_bits

from asyncloop import ConfigError
from asyncloop.torch import TorchModel

BATCH = Data(1).batches[0]


# --- compiled -----------------------------------------------------------------------------------------------------


def compiled_with(**options: Any) -> tuple[TorchModel, list[dict[str, Any]]]:
    """A model and what its backend was asked to compile."""
    graphs: list[dict[str, Any]] = []

    def backend(graph: Any, inputs: Any, **kwargs: Any) -> Callable[..., Any]:
        graphs.append({"graph": graph, **kwargs})
        return graph.forward

    return a_model(compile={"backend": backend, **options}), graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_options_of_compile_are_handed_on_and_the_compiled_module_is_what_runs() -> None:
    torch.compiler.reset()
    model, graphs = compiled_with(options={"max_autotune": False}, fullgraph=True)
    plain = a_model()
    torch.manual_seed(7)
    compiled = model.run(BATCH, train=True, stream="train")
    assert len(graphs) == 1
    assert graphs[0]["options"] == {"max_autotune": False}
    torch.manual_seed(7)
    assert compiled["loss"] == plain.run(BATCH, train=True, stream="train")["loss"]
    model.run(BATCH, train=True, stream="train")
    assert len(graphs) == 1, "compiled once"
    assert set(model.state_dict()["module"]) == set(Net().state_dict()), "no prefix of the wrapper"


def test_without_compile_nothing_is() -> None:
    model = a_model()
    assert model.net is model.module


# --- activations --------------------------------------------------------------------------------------------------


class Counted(nn.Linear):
    """Counts how often it computes."""

    n = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return super().forward(input)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(Counted(12, 12), nn.Dropout(0.2), nn.Sequential(nn.Tanh())) for _ in range(3)
        )
        self.head = nn.Linear(12, N_CLASSES)

    @property
    def n_forward(self) -> int:
        return sum(block[0].n for block in self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def gradients(**settings: Any) -> tuple[dict[str, torch.Tensor], int]:
    """What an update is made with, and how often the blocks ran."""
    found: dict[str, torch.Tensor] = {}
    net = Blocks()

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            found.update((name, each.grad.clone()) for name, each in net.named_parameters() if each.grad is not None)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return Watched(parameters, lr=0.1)

    model = TorchModel(net, ["x"], loss=LOSS, optimizer=optimizer, device="cpu", **settings)
    torch.manual_seed(7)
    model.run(BATCH, train=True, stream="train")
    return found, net.n_forward


@pytest.mark.parametrize("patterns", [["blocks"], ["blocks.*"], ["blocks.0", "blocks.1", "blocks.2"]])
def test_activations_that_are_computed_again_give_the_same_gradients(patterns: list[str]) -> None:
    expected, n_once = gradients()
    found, n_twice = gradients(checkpoint_activations=patterns)
    assert (n_once, n_twice) == (3, 6), "again, once"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_running_statistics_take_each_batch_in_once_although_it_is_normalised_twice() -> None:
    states: list[dict[str, torch.Tensor]] = []
    for patterns in ([], ["body"]):
        model = a_model(checkpoint_activations=patterns)
        for batch in Data(3).batches:
            model.run(batch, train=True, stream="train")
        states.append(model.state_dict()["module"])
    assert int(states[0]["body.1.num_batches_tracked"]) == 3
    assert same_bits(states[1], states[0])
    assert model.module.body[1].momentum == 0.1


def test_an_evaluation_computes_no_activation_again() -> None:
    net = Blocks()
    model = TorchModel(net, ["x"], loss=LOSS, checkpoint_activations=["blocks"], device="cpu")
    model.run(BATCH, train=False, stream="valid")
    assert net.n_forward == 3


def test_a_pattern_of_no_submodule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_activations: the pattern 'block\.\*' matches no name; did you"):
        TorchModel(Blocks(), ["x"], checkpoint_activations=["block.*"], device="cpu")


# --- channels last ------------------------------------------------------------------------------------------------


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, N_CLASSES)
        self.seen: list[bool] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image.is_contiguous(memory_format=torch.channels_last))
        return self.head(torch.relu(self.conv(image)).mean(dim=(2, 3)))


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_filters_have_their_channels_last_if_wanted(channels_last: bool) -> None:
    net, rng = Image(), np.random.default_rng(0)
    batch = {"image": rng.normal(size=(4, 3, 9, 9)).astype(np.float32), "label": np.arange(4)}
    model = TorchModel(net, ["image"], loss=LOSS, optimizer=ADAM, device="cpu", channels_last=channels_last)
    losses = [model.run(batch, train=True, stream="train")["loss"] for _ in range(2)]
    assert net.seen == [channels_last] * 2
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    if channels_last:
        other = TorchModel(Image(), ["image"], loss=LOSS, optimizer=ADAM, device="cpu")
        assert losses == pytest.approx([other.run(batch, train=True, stream="train")["loss"] for _ in range(2)])
        fresh = TorchModel(Image(), ["image"], loss=LOSS, optimizer=ADAM, device="cpu", channels_last=True)
        fresh.load_state_dict(model.state_dict())
        assert fresh.module.conv.weight.is_contiguous(memory_format=torch.channels_last)


# --- the device ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"device: Expected one of"),
        ("cuda", r"device: PyTorch finds no CUDA device here; write device = 'auto'"),
    ],
)
def test_a_device_that_is_none_or_is_not_there_is_refused(device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=message):
        a_model(device=device)
