"""Parallel: a module trained by many processes. Whole in each of them (DDP), or each with a share of every weight (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from asyncloop.batch import Batch, RunBatch
from asyncloop.torch.arguments import Table, matching, of_kind
from asyncloop.torch.numerics import NOTHING
from asyncloop.torch.states import whole_tensors
from asyncloop.torch.world import TorchWorld

__all__ = ["Parallel", "Spread", "full", "stated"]


@dataclass(frozen=True, slots=True)
class Parallel(Table):
    """ddp: the module is whole in each process, gradients are averaged. fsdp: each weight is shared out and put together
    where it is needed, unit by unit (`units`: patterns of submodules; without them the members of each ModuleList).

    `reshard`: of a unit only the share stays after the forward pass. `unused`: for modules of which a step may leave out
    parameters (ddp; with stages it is on).
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    units: Sequence[str] = ()
    reshard: bool = True
    unused: bool = False


class Spread:
    """A module over the processes of a world; alone (`world` None) it is the module as it is. The model thread's."""

    def __init__(self, module: nn.Module, given: Parallel, world: TorchWorld | None, device: torch.device) -> None:
        self.module, self.world, self._device = module, world, device
        self._size = 1 if world is None else world.size
        self._ddp: DistributedDataParallel | None = None
        self.is_sharded = world is not None and given.kind == "fsdp"
        """Whether this process has only its shares of the weights."""
        self._given = given
        if self.is_sharded:
            _shard(module, given, self._size, device)

    def wrapped(self, compiled: Callable[[nn.Module], Callable[..., Any]], *, unused: bool) -> Callable[..., Any]:
        """What a training step calls. After the optimizer was made, and with the module in its place."""
        trains = any(each.requires_grad for each in self.module.parameters())
        if self.world is None or self.is_sharded or not trains:
            return compiled(self.module)
        ids = [self._device.index] if self._device.type == "cuda" else None
        self._ddp = DistributedDataParallel(
            self.module, device_ids=ids, find_unused_parameters=unused or self._given.unused
        )
        return compiled(self._ddp)

    def gathering(self, last: bool) -> AbstractContextManager[Any]:
        """Around the passes of one microbatch: gradients are put together over the processes after the `last` one only."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        return self._ddp.no_sync() if self._ddp is not None and not last else NOTHING

    def weight_of(self, batch: Batch) -> float:
        """By what to multiply a mean over this process's examples, so that the processes' average is the mean over all."""
        if not isinstance(batch, RunBatch) or batch.n_all is None or batch.n_own is None:
            return 1.0
        return batch.n_own * self._size / batch.n_all

    def average_gradients(self, others: nn.Module) -> None:
        """Of parameters that are not the module's (a loss's own), over the processes."""
        if self.world is None:
            return
        for each in others.parameters():
            if each.requires_grad:
                grad = torch.zeros_like(each) if each.grad is None else each.grad
                dist.all_reduce(grad)
                each.grad = grad.div_(self._size)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give the first process's buffers (running means) to all: each has seen other examples since the last step."""
        for each in self.module.buffers() if self.world is not None else ():
            _of_first(each)

    @staticmethod
    @torch.no_grad()
    def begin_alike(*modules: nn.Module) -> None:
        """Give the first process's weights and buffers to all, before anything is made of them. Whole ones only."""
        for module in modules:
            for each in whole_tensors(module):
                _of_first(each)

    def evaluating(self) -> AbstractContextManager[Any]:
        """Around an evaluation. What is put together from shares cannot be in inference mode."""
        return torch.no_grad() if self.is_sharded else torch.inference_mode()


def _of_first(tensor: Tensor) -> None:
    if tensor.numel():
        whole = tensor.contiguous()  # of channels-last ones a copy
        dist.broadcast(whole.reshape(-1).view(torch.uint8), 0)  # as bytes: not every type can be sent
        if whole is not tensor:
            tensor.copy_(whole)


def _shard(module: nn.Module, given: Parallel, size: int, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (size,))
    for name in _units(module, given.units):
        fully_shard(module.get_submodule(name), mesh=mesh, reshard_after_forward=given.reshard)
    fully_shard(module, mesh=mesh, reshard_after_forward=given.reshard)


def _units(module: nn.Module, patterns: Sequence[str]) -> Iterator[str]:
    """The submodules that are put together as one, inner ones first."""
    by_name: Mapping[str, nn.Module] = {name: each for name, each in module.named_modules() if name}
    if patterns:
        yield from reversed(matching(patterns, by_name, "parallel.units"))
        return
    for name, each in reversed(list(by_name.items())):
        if isinstance(each, nn.ModuleList):
            yield from (f"{name}.{n}" for n in range(len(each)))


def full(value: Tensor) -> Tensor:
    """A tensor that is whole here."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # pyright: ignore[reportAttributeAccessIssue]


def stated(given: str | Parallel | Mapping[str, Any]) -> Parallel:
    """`parallel` as a config says it: text or a table."""
    if given == "auto":
        return Parallel()
    return of_kind("parallel", Parallel, {"kind": given} if isinstance(given, str) else given)
