"""Entries: everybody who trains a Work on a device. Importing this imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.on_device.rows import Course, Entry
from bench.on_device.trainer import Trainer

__all__ = ["entries_for"]


def entries_for(course: Course, n_there: int, hooks: Callable[[], Sequence[Any]] = tuple) -> list[Entry]:
    """The bare loop over `n_there` batches that lie on the device, and all who get theirs from the host.

    `hooks` are asyncloop's where there are no chores.
    """
    work, device, chores = course.work, course.device, course.chores

    def bare() -> Trainer:
        from bench.on_device.bare import BareLoop, there_already

        return BareLoop(work, device, there_already(work, device, n_there))

    def by_hand() -> Trainer:
        from bench.on_device.bare import BareLoop, copied_in_the_loop

        return BareLoop(work, device, copied_in_the_loop(work, device), chores)

    def asyncloop() -> Trainer:
        from bench.on_device.asyncloop import AsyncloopTrainer, hooks_for

        return AsyncloopTrainer(work, device, hooks if chores is None else hooks_for(chores))

    def ignite() -> Trainer:
        from bench.on_device.ignite import IgniteTrainer

        return IgniteTrainer(work, device, chores)

    def lightning() -> Trainer:
        from bench.on_device.lightning import LightningTrainer

        return LightningTrainer(work, device, chores)

    def accelerate() -> Trainer:
        from bench.on_device.accelerate import AccelerateTrainer

        return AccelerateTrainer(work, device, chores)

    return [
        Entry("bare loop", "plain", ("torch",), bare, leads=True),
        Entry("asyncloop", "asyncloop", ("torch",), asyncloop),
        Entry("by hand + DataLoader", "dataloader", ("torch",), by_hand),
        Entry("ignite + DataLoader", "ignite", ("torch", "ignite"), ignite),
        Entry("Lightning + DataLoader", "lightning", ("torch", "lightning"), lightning),
        Entry("accelerate + DataLoader", "accelerate", ("torch", "accelerate"), accelerate),
    ]
