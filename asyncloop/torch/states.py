"""States: tensors as checkpoints keep them and back, with everything that does not fit named before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from asyncloop.errors import ModelError
from asyncloop.shards import ShardedArray

__all__ = [
    "copied_into",
    "differences",
    "fill",
    "is_shared",
    "of_one_kind",
    "refuse_different",
    "storages_of",
    "tensor_of",
    "tensors_of",
    "whole_tensors",
]


def tensor_of(value: Any) -> Tensor:
    """What a checkpoint gives (an array, or a tensor of a dtype that numpy lacks) as a tensor of its own."""
    if isinstance(value, ShardedArray):
        value = value[...]
    return value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)


def tensors_of(state: Any) -> Any:
    """The same for all arrays in nested mappings and lists; numbers, strings and None stay."""
    if isinstance(state, Mapping):
        return {key: tensors_of(value) for key, value in cast("Mapping[Any, Any]", state).items()}
    if isinstance(state, list | tuple):
        return [tensors_of(value) for value in cast("list[Any]", state)]
    return tensor_of(state) if hasattr(state, "shape") else state


def differences(there: Mapping[str, Tensor], given: Mapping[str, Any], what: str) -> Iterator[str]:
    """In words, why arrays do not fit the tensors that are there: names and shapes."""
    missing, unexpected = [n for n in there if n not in given], [n for n in given if n not in there]
    if missing:
        yield f"{what} lacks {_some(missing)}"
    if unexpected:
        yield f"{what} has {_some(unexpected)}, which this model does not"
    for name, tensor in there.items():
        if name in given and not _is_extra(name) and tuple(given[name].shape) != tuple(tensor.shape):
            yield f"{what} {name!r} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"


def refuse_different(problems: list[str], who: str) -> None:
    """ModelError that names all problems, if there are any."""
    if problems:
        raise ModelError(
            f"the state does not fit this {who}: {'; '.join(problems)}. Nothing was loaded; "
            "build the model with the arguments of the saved one, or start without this state"
        )


@torch.no_grad()
def copied_into(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Copy arrays that fit into a module's parameters and buffers."""
    for name, there in module.state_dict().items():
        if _is_extra(name):
            module.get_submodule(name.rpartition(".")[0]).set_extra_state(tensors_of(given[name]))
        else:
            fill(there, given[name])


@torch.no_grad()
def fill(tensor: Tensor, given: Any) -> None:
    """Put the values of a saved array into a tensor that is there; of one that processes share, this one's part."""
    if not is_shared(tensor):
        tensor.copy_(tensor_of(given))
        return
    shared: Any = tensor
    local: Tensor = shared.to_local()
    for chunk in shared.__create_chunk_list__():
        if local.numel():
            where = tuple(slice(at, at + n) for at, n in zip(chunk.offsets, chunk.sizes, strict=True))
            local.copy_(tensor_of(given[where]))


def storages_of(*modules: nn.Module) -> frozenset[int]:
    """Where the memory of modules' parameters and buffers begins; of those that processes share out, none."""
    tensors = [each for module in modules for each in whole_tensors(module) if each.layout is torch.strided]
    return frozenset(each.untyped_storage().data_ptr() for each in tensors) - {0}


def is_shared(tensor: Tensor) -> bool:
    """Whether this process has only its part of a tensor (FSDP)."""
    return hasattr(tensor, "__create_chunk_list__")  # what PyTorch's own checkpoints go by


def whole_tensors(module: nn.Module) -> list[Tensor]:
    """A module's parameters and buffers, without those that processes share out and those that have no shape yet."""
    tensors = (*module.parameters(), *module.buffers())
    return [each for each in tensors if not is_shared(each) and not is_lazy(each)]


def _is_extra(name: str) -> bool:
    """Whether this is what a module's `get_extra_state` gave, of any kind, and no tensor."""
    return name.rpartition(".")[2] == "_extra_state"


def of_one_kind(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors that are whole and of those that are shared out, apart: PyTorch takes no mixture."""
    kinds: dict[bool, list[str]] = {}
    for name, tensor in tensors.items():
        kinds.setdefault(is_shared(tensor), []).append(name)
    return list(kinds.values())


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:6]))
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
