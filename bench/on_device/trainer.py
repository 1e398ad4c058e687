"""Trainer: what trains a Work on a device. One a file beside this one, each in the idiom of its system."""

from __future__ import annotations

from typing import Any, Protocol

from bench.on_device.chores import Kept

__all__ = ["Trainer"]


class Trainer(Protocol):
    """Holds its module on the device from the first call of `train` to the last; each call goes on with its weights."""

    @property
    def module(self) -> Any:
        """The module as it is, not compiled."""
        ...

    @property
    def optimizer(self) -> Any:
        """The one optimizer, whose every `step` is an update."""
        ...

    def train(self, n: int) -> Kept:
        """`n` updates on the first `n` batches, and the chores there are; what those left behind."""
        ...
