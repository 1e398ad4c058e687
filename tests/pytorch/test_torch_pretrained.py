"""Weights from files: state_dicts and safetensors, with the prefixes of wrappers, and everything that does not fit by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch_parts import Net, a_model, same_bits

from asyncloop import ConfigError
from asyncloop.torch.pretrained import Pretrained, load_pretrained

Tensors = dict[str, torch.Tensor]


def as_state_dict(weights: Tensors, path: Path) -> None:
    torch.save(weights, path)


def as_checkpoint_of_a_trainer(weights: Tensors, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}}, path)


def as_safetensors(weights: Tensors, path: Path) -> None:
    save_file(weights, path)


KINDS: dict[str, tuple[str, Callable[[Tensors, Path], None]]] = {
    "state_dict": ("w.pt", as_state_dict),
    "a trainer's": ("w.ckpt", as_checkpoint_of_a_trainer),
    "safetensors": ("w.safetensors", as_safetensors),
}


def weights(prefix: str = "") -> Tensors:
    return {f"{prefix}{name}": value for name, value in Net(seed=5).state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_found_whatever_wrapper_they_were_saved_in(kind: str, prefix: str, tmp_path: Path) -> None:
    name, save = KINDS[kind]
    save(weights(prefix), tmp_path / name)
    model = a_model(weights=str(tmp_path / name))
    assert same_bits(model.module.state_dict(), weights())


def test_submodules_that_were_compiled_are_found(tmp_path: Path) -> None:
    inside = {name.replace("body.", "body._orig_mod."): value for name, value in weights().items()}
    save_file(inside, tmp_path / "w.safetensors")
    assert same_bits(a_model(weights=str(tmp_path / "w.safetensors")).module.state_dict(), weights())


def test_names_of_which_none_fits_are_told_how_to_strip_a_prefix(tmp_path: Path) -> None:
    save_file(weights("encoder.net."), tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match="not one name is the module's, such as 'body.0.weight'; `strip` takes prefixes"
    ):
        a_model(weights=str(tmp_path / "w.safetensors"))


def test_a_module_without_weights_says_what_the_file_has_too_much(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="'body.0.weight' is not in the module"):
        a_model(module=torch.nn.Identity(), optimizer=None, weights=str(tmp_path / "w.safetensors"))


def test_a_prefix_of_ones_own_is_stripped_when_it_is_named(tmp_path: Path) -> None:
    saved = {**weights("encoder.net."), "temperature": torch.ones(1)}
    save_file(saved, tmp_path / "w.safetensors")
    given = {"file": str(tmp_path / "w.safetensors"), "strip": ["encoder.net."], "allow": ["temperature"]}
    assert same_bits(a_model(weights=given).module.state_dict(), weights())


def test_everything_that_does_not_fit_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    saved = weights()
    saved["head.weight"] = torch.zeros(7, 16)
    del saved["body.0.bias"]
    saved["tail.weight"] = torch.zeros(2)
    torch.save(saved, tmp_path / "w.pt")
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_pretrained(net, Pretrained(str(tmp_path / "w.pt")))
    message = str(caught.value)
    assert "'body.0.bias' is missing" in message
    assert "'tail.weight' is not in the module" in message
    assert "'head.weight' has shape (7, 16), not (4, 16)" in message
    assert same_bits(net.state_dict(), before)


@pytest.mark.parametrize("allow", [["head.*", "tail.*"], ["head", "tail"]])
def test_what_is_allowed_to_differ_keeps_its_own_values_and_is_told(
    allow: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = weights()
    saved["head.weight"] = torch.zeros(7, 16)
    saved["tail.weight"] = torch.zeros(2)
    torch.save(saved, tmp_path / "w.pt")
    net, own = Net(), Net().state_dict()
    with caplog.at_level(logging.WARNING, "asyncloop"):
        load_pretrained(net, Pretrained(str(tmp_path / "w.pt"), allow=allow))
    assert torch.equal(net.state_dict()["head.weight"], own["head.weight"])
    assert torch.equal(net.state_dict()["head.bias"], saved["head.bias"])
    assert "of 9 weights taken" in caplog.text
    assert "'tail.weight' is not in the module" in caplog.text


def write_text(path: Path) -> None:
    path.write_text("hello")


def write_module(path: Path) -> None:
    torch.save(Net(), path)


def write_numbers(path: Path) -> None:
    torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("w.pt", write_text), ("w.safetensors", write_text), ("w.pt", write_module), ("w.pt", write_numbers)],
    ids=["text", "text as safetensors", "a whole module", "a list"],
)
def test_a_file_that_is_none_of_both_is_refused_by_name(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"weights: .*{name} holds no names with tensors"):
        a_model(weights=str(tmp_path / name))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights: there is no file .*nowhere\.pt"):
        a_model(weights=str(tmp_path / "nowhere.pt"))


def test_the_average_begins_with_the_weights_of_the_file(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    model = a_model(weights=str(tmp_path / "w.pt"), ema={"decay": 0.5})
    assert torch.equal(model.weights()["head.weight"], weights()["head.weight"])
