"""A batch in parts, one after the other in one step; what the parts gave, as of the whole batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from asyncloop.fetching import holds_more, like

__all__ = ["Part", "detached", "number_of", "pieces", "whole"]

Part = tuple[float, Mapping[str, Any]]
"""Its share of the examples, and its sources or its outputs."""


def pieces(sources: Mapping[str, Any], n: int, count: int, *, idle: bool) -> Iterator[Part]:
    """`n` examples in `count` parts as even as can be; none is empty, so a short batch has fewer of them.

    `idle`: then parts with a share of 0 follow, for processes that wait for each other in each of them.
    """
    size, rest = divmod(n, count)
    begin = 0
    for number in range(min(count, n)):
        end = begin + size + (number < rest)
        yield (end - begin) / n, {name: _cut(value, begin, end) for name, value in sources.items()}
        begin = end
    for _ in range(n, count if idle else 0):
        yield 0.0, {name: _cut(value, 0, 1) for name, value in sources.items()}


def whole(parts: Sequence[Part]) -> dict[str, Any]:
    """Outputs as hooks get them: scalars weighted over the parts, anything larger as a function that joins it on demand."""
    found: dict[str, Any] = {}
    for name, value in parts[0][1].items():
        if value.__class__ is not float and not _is_scalar(value):
            found[name] = partial(_joined, [(share, outputs[name]) for share, outputs in parts])
        elif len(parts) == 1:
            found[name] = value
        else:
            found[name] = sum(outputs[name] * share for share, outputs in parts)
    return found


def detached(value: Any, clones: bool, kept: Collection[int] = ()) -> Any:
    """Off the graph. A copy of what a later step writes into: the memory of a captured CUDA graph (`clones`), and of
    weights and buffers (`kept`: where their storage begins)."""
    if isinstance(value, Tensor):
        if clones or (value.layout is torch.strided and value.untyped_storage().data_ptr() in kept):
            return value.detach().clone()
        return value.detach()
    if isinstance(value, Mapping):
        return {name: detached(part, clones, kept) for name, part in cast("Mapping[str, Any]", value).items()}
    if holds_more(value):
        return like(value, [detached(part, clones, kept) for part in value])
    return value


def number_of(value: Any) -> Any:
    """A scalar on the host as a number; on a device it stays there, for to read it would be to wait.

    There it has 24 bits at least, for means are summed there: of 8 a sum would soon stand still.
    """
    if not isinstance(value, Tensor) or value.ndim:
        return value
    if value.is_cpu:
        return value.item()
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _is_scalar(value: Any) -> bool:
    return not value.ndim if isinstance(value, Tensor) else isinstance(value, bool | int | float)


def _joined(parts: Sequence[tuple[float, Any]]) -> Any:
    values: list[Any] = [value() if callable(value) else value for _, value in parts]
    first = values[0]
    if len(values) == 1:
        return first
    shares = [share for share, _ in parts]
    if isinstance(first, Mapping):
        names = cast("Mapping[str, Any]", first)
        return {name: _joined(list(zip(shares, [each[name] for each in values], strict=True))) for name in names}
    if _is_scalar(first):
        return sum(value * share for value, share in zip(values, shares, strict=True))
    if isinstance(first, Tensor):
        return torch.cat(values)
    return [part for each in values for part in each] if isinstance(first, list | tuple) else first


def _cut(value: Any, begin: int, end: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _cut(part, begin, end) for name, part in cast("Mapping[str, Any]", value).items()}
    return value[begin:end]
