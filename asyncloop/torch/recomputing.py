"""Recomputing: activations that are not kept but computed again in the backward pass (Chen et al., Training Deep Nets with
Sublinear Memory Cost, 2016)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from asyncloop.torch.arguments import matching

__all__ = ["recompute_activations"]


def recompute_activations(module: nn.Module, patterns: Sequence[str]) -> None:
    """Have the submodules that the patterns name do so; of those inside each other the outermost, for once is enough."""
    parts = {name: part for name, part in module.named_modules() if name}
    outer: list[str] = []
    for name in matching(patterns, parts, "checkpoint_activations") if patterns else ():
        part = parts[name]
        is_inside = any(name.startswith(f"{each}.") for each in outer)
        if not is_inside and type(part).forward is not nn.Module.forward:  # a ModuleList has none of its own
            outer.append(name)
            norms = [each for each in part.modules() if hasattr(each, "num_batches_tracked")]
            part.forward = partial(_recomputed, part.forward, norms)


def _recomputed(forward: Callable[..., Any], norms: list[Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if norms and not torch.compiler.is_compiling():
        kwargs["context_fn"] = partial(_contexts, norms)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _contexts(norms: list[Any]) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around the pass, and around the one that computes it again."""
    return nullcontext(), _untracked(norms)


@contextmanager
def _untracked(norms: list[Any]) -> Generator[None]:
    """Running statistics have taken the batch in already: this time they move by nothing, and count nothing."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, n_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
