"""EMA: an exponential moving average of the weights, which evaluations and exports use in place of the newest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from asyncloop.errors import ConfigError
from asyncloop.torch.arguments import Table
from asyncloop.torch.states import of_one_kind

__all__ = ["EMA", "Average"]


@dataclass(frozen=True, slots=True)
class EMA(Table):
    """After each update the average moves towards the weights by the share 1 − decay (Polyak and Juditsky, 1992, had the
    idea of averaging iterates). `warmup`: by at least 9 / (10 + n) at update n, so that the start is soon forgotten."""

    decay: float
    warmup: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema: decay is at least 0 and less than 1, not {self.decay}")


class Average:
    """The averaged weights of a module, beside the module's own. The model thread's alone.

    Values are swapped, not tensors, so that whoever holds on to the module's parameters (an optimizer, a compiled
    function) never notices. Saved buffers that hold numbers with a fraction (running means) are averaged, too.
    """

    def __init__(self, module: nn.Module, ema: EMA) -> None:
        by_name = _averaged(module)
        first = {id(tensor): name for name, tensor in reversed(by_name.items())}
        self._names = {name: first[id(tensor)] for name, tensor in by_name.items()}
        """Every name, also the further ones of weights that are tied → the name that its values are kept under."""
        self._own = {name: by_name[name].detach() for name in dict.fromkeys(self._names.values())}
        self._aside = {name: tensor.clone() for name, tensor in self._own.items()}
        self._alike = of_one_kind(self._own)
        """Names of tensors that one kernel can go through."""
        self._warmup = ema.warmup
        self.decay = ema.decay
        self._is_inside = False

    @torch.no_grad()
    def follow(self, n_updates: int) -> None:
        """Move towards the weights after the `n_updates`-th update."""
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates)) if self._warmup else self.decay
        move = get_ema_multi_avg_fn(decay)
        for names in self._alike:
            move([self._aside[name] for name in names], [self._own[name] for name in names], None)

    @torch.no_grad()
    def put_inside(self, inside: bool) -> None:
        """Have the average in the module, or the module's own weights again."""
        if inside == self._is_inside:
            return
        for name, own in self._own.items():
            kept = own.clone()
            own.copy_(self._aside[name])
            self._aside[name].copy_(kept)
        self._is_inside = inside

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The average by name, live. Weights that are tied stand under each of their names."""
        kept = self._own if self._is_inside else self._aside
        return {name: kept[first] for name, first in self._names.items()}


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    saved, buffers = module.state_dict().keys(), module.named_buffers(remove_duplicate=False)
    fractions = {name: buffer for name, buffer in buffers if name in saved and buffer.is_floating_point()}
    return {**dict(module.named_parameters(remove_duplicate=False)), **fractions}
