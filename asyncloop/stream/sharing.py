"""Sharing: of each batch every process that trains the same model has its portion, and makes no more than that.

Where examples become batches (`Stream.batch`) each process keeps every n-th one; the maps before it are told which, and
leave the others out. Batches that come whole from a source are cut at the end of the stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from asyncloop.batch import Portion
from asyncloop.stream.order import Pass, Share

__all__ = ["ELSEWHERE", "is_elsewhere", "portion_of", "shared_call"]

ELSEWHERE = object()
"""Stands for an element that another process makes."""


def is_elsewhere(value: object, index: int, at: Pass) -> bool:
    """Whether what becomes of an element is another process's."""
    return value is ELSEWHERE or (at.wanted is not None and not at.wanted(index))


def shared_call(call: Callable[[Any, int], Any], at: Pass) -> Callable[[Any, int], Any]:
    """`call` for the elements that this process wants, and on what is inside a portion; alone it is `call` itself."""
    if at.share is None:
        return call

    def shared(value: Any, index: int) -> Any:
        if is_elsewhere(value, index, at):
            return ELSEWHERE
        if not isinstance(value, Portion):
            return call(value, index)
        result = call(value.value, index)
        return _in_portion(value, result) if inspect.isawaitable(result) else value.of(result)

    return shared


async def _in_portion(portion: Portion, result: Awaitable[Any]) -> Portion:
    return portion.of(await result)


def portion_of(value: Any, share: Share) -> Portion:
    """A process's portion of an array, or of a batch of arrays."""
    n = len(next(iter(cast("Mapping[str, Any]", value).values()), ())) if isinstance(value, Mapping) else len(value)
    n_own = len(range(share.rank, n, share.size))
    return Portion(_cut(value, slice(share.rank, None, share.size) if n_own else slice(0, 1)), n_own, n)


def _cut(value: Any, part: slice) -> Any:
    if isinstance(value, Mapping):
        return {name: _cut(each, part) for name, each in cast("Mapping[str, Any]", value).items()}
    return value[part]
