"""Weights from a file: safetensors, or a plain `state_dict` that PyTorch wrote. Prefixes are stripped, what does not fit is named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asyncloop.errors import ConfigError
from asyncloop.storage import storage_errors
from asyncloop.torch.arguments import Table, matches

__all__ = ["Pretrained", "load_pretrained"]

logger = logging.getLogger("asyncloop")

_UNREADABLE = (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, KeyError)
"""What the two readers raise for something else: a whole pickled module, a text, half a file."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "state_dict.")


@dataclass(frozen=True, slots=True)
class Pretrained(Table):
    """`file` holds names and tensors. `strip`: prefixes to take off; those that wrappers put before every name go by
    themselves. `allow`: patterns of names that may be missing, left over or of another shape (a new head, say)."""

    file: str
    strip: Sequence[str] = ()
    allow: Sequence[str] = ()


def load_pretrained(module: nn.Module, given: Pretrained) -> None:
    """Put the weights of a file into a module. ConfigError names everything that does not fit; nothing is changed then."""
    there = module.state_dict()
    found = _stripped(_read(Path(given.file)), given.strip, there)
    wrong = {
        **{name: f"{name!r} is missing" for name in there if name not in found},
        **{name: f"{name!r} is not in the module" for name in found if name not in there},
        **{
            name: f"{name!r} has shape {tuple(found[name].shape)}, not {tuple(each.shape)}"
            for name, each in there.items()
            if name in found and found[name].shape != each.shape
        },
    }
    refused = [text for name, text in wrong.items() if not any(matches(each, name) for each in given.allow)]
    if refused:
        more = f"; and {len(refused) - 8} more" if len(refused) > 8 else ""
        hint = "`allow` lets names differ"
        if there and not found.keys() & there.keys():
            hint = f"not one name is the module's, such as {next(iter(there))!r}; `strip` takes prefixes off the file's"
        raise ConfigError(f"weights: {given.file} does not fit: {'; '.join(refused[:8])}{more}; {hint}")
    taken = {name: found[name] for name in there if name in found and name not in wrong}
    module.load_state_dict(taken, strict=False)
    if wrong:
        logger.warning("%s: %d of %d weights taken; %s", given.file, len(taken), len(there), "; ".join(wrong.values()))


def _read(path: Path) -> dict[str, Tensor]:
    with storage_errors("read the weights", path):
        if not path.is_file():
            raise ConfigError(f"weights: there is no file {path.absolute()}")
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            # PyTorch's reader of tensors only, which builds no other objects
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            told = str(error).strip().partition("\n")[0]
            raise ConfigError(f"weights: {path} holds no names with tensors that can be read: {told}") from error
    for key in ("state_dict", "model"):  # what many trainers put around it
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    table = cast("Mapping[Any, Any]", found) if isinstance(found, Mapping) else {}
    tensors = {str(name): each for name, each in table.items() if isinstance(each, Tensor)}
    if not tensors:
        raise ConfigError(f"weights: {path} holds no names with tensors")
    return tensors


def _stripped(found: dict[str, Tensor], strip: Sequence[str], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not any("._orig_mod." in name for name in there):  # of submodules that were compiled
        found = {name.replace("._orig_mod.", "."): each for name, each in found.items()}
    for prefix in strip:
        found = {name.removeprefix(prefix): each for name, each in found.items()}
    while not found.keys() & there.keys():
        prefix = next((each for each in _WRAPPERS if all(name.startswith(each) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): each for name, each in found.items()}
    return found
