"""The parts of a TorchModel as its arguments state them: device, module, its compiled form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncloop.errors import ConfigError
from asyncloop.nested import build, is_nested
from asyncloop.torch.arguments import of_kind
from asyncloop.torch.pretrained import Pretrained

__all__ = ["captures", "compiled", "device_named", "dtype_of", "module_of", "pretrained_of"]


def device_named(name: str) -> torch.device:
    """`auto`: a GPU if there is one. ConfigError for a name that PyTorch does not know or has not here."""
    if name not in ("auto", "cuda"):
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"device: {error}") from None
        told = "it holds no numbers" if device.type == "meta" else ""
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # PyTorch raises either for a device that is not there
            told = str(error).partition("\n")[0]
        if told:
            raise ConfigError(f"device: {name!r} cannot be used here: {told}; write device = 'auto' or 'cpu'")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ConfigError("device: PyTorch finds no CUDA device here; write device = 'auto' or 'cpu'")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def module_of(given: Any) -> nn.Module:
    """An object or a table, in training mode."""
    module = build(given) if is_nested(given) else given
    if not isinstance(module, nn.Module):
        raise ConfigError(f"module: a torch.nn.Module or a table that names one, not a {type(module).__name__}")
    if not module.training:
        module.train()
    return module


def pretrained_of(given: Any) -> Pretrained:
    return Pretrained(given) if isinstance(given, str | Path) else of_kind("weights", Pretrained, given)  # pyright: ignore[reportArgumentType]


def compiled(module: nn.Module, *, given: bool | Mapping[str, Any], cuda_graphs: bool) -> Callable[..., Any]:
    """By torch.compile with the arguments given, or the module itself if nobody asks for it."""
    if not given and not cuda_graphs:
        return module
    options: dict[str, Any] = {} if isinstance(given, bool) else dict(given)
    if cuda_graphs:
        options.setdefault("mode", "reduce-overhead")
    try:
        return torch.compile(module, **options)
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"compile: torch.compile refuses {options}: {error}") from error


def captures(given: bool | Mapping[str, Any]) -> bool:
    """Whether these arguments of torch.compile have CUDA graphs captured."""
    if isinstance(given, bool):
        return False
    return given.get("mode") in ("reduce-overhead", "max-autotune") or bool(
        (given.get("options") or {}).get("triton.cudagraphs")
    )


def dtype_of(module: nn.Module) -> torch.dtype:
    """Of its first parameter that has one with a fraction."""
    return next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
