"""Finished: a batch that was run, on its way from the model thread to the hooks.

The thread posts plain tuples and the loop makes the events of them. A tuple costs the thread a fifth of an event, and what
is made on one core and read on another costs either of them once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncloop.batch import Batch
from asyncloop.control import Control
from asyncloop.events import AfterBatch, RunInfo

__all__ = ["Finished", "Passing", "as_event", "has_arrived"]


@dataclass(frozen=True, slots=True)
class Passing:
    """What the batches of one stretch have in common."""

    run: RunInfo
    control: Control
    epoch: int
    stream: str
    train: bool


Finished: TypeAlias = "tuple[Passing, int, int, Batch, Mapping[str, Any], int]"
"""What they have in common, step, index, inputs, outputs, number of examples."""


def as_event(finished: Finished) -> AfterBatch:
    at, step, index, inputs, outputs, n_examples = finished
    return AfterBatch(at.run, at.control, at.epoch, step, at.stream, at.train, index, inputs, outputs, n_examples)


def has_arrived(event: AfterBatch) -> bool:
    """Whether everything hooks want of an event is on the host; it is in `asked` then. Never waits."""
    fetch = event.fetch
    if fetch is None:
        return True
    if not fetch.is_ready:
        return False
    event.asked, event.fetch = {**(event.asked or {}), **fetch.take()}, None
    return True
