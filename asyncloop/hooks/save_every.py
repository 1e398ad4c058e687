"""SaveEvery and SaveLatest: checkpoints at a cadence."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from asyncloop.cadence import Cadence
from asyncloop.control import Claim
from asyncloop.errors import ConfigError
from asyncloop.events import AfterBatch, AfterEpoch, BeforeTraining, Event
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import refuse, whole

__all__ = ["SaveEvery", "SaveLatest"]


class SaveEvery(Hook):
    """Saves a checkpoint every so many epochs, steps or seconds, and at the last step.

    `keep`: only the newest so many of this hook's checkpoints stay, all without it. `zero`: also before the first step.
    It only requests; the engine takes the checkpoint at exactly that step, after the evaluations and barriers of the
    step, and writes it while training goes on. Runs on the event loop.
    """

    needs_output_dir = True

    saves = True
    """An evaluation, which never saves, refuses it."""

    def __init__(self, every: str = "1 epoch", keep: int | None = None, zero: bool = False) -> None:
        owner = type(self).__name__
        refuse(owner, whole("keep", keep, 1), *_cadence_problems(every))
        self.every = every
        self._claim = Claim(f"{owner} every {every}", keep)
        self._zero = zero
        self._at_epochs = Cadence.parse(every).unit == "epochs"
        self.lockstep = not self._at_epochs
        self.after_batch: Callable[[AfterBatch], Coroutine[Any, Any, None]] | None = (
            None if self._at_epochs else self._after_step
        )

    async def before_training(self, event: BeforeTraining) -> None:
        if self._zero and event.step == 0:
            self._request(event)

    async def after_epoch(self, event: AfterEpoch) -> None:
        if self._at_epochs and event.epoch > 0:
            self._request(event)

    async def _after_step(self, event: AfterBatch) -> None:
        if event.train:
            self._request(event)

    def _request(self, event: Event) -> None:
        event.control.checkpoint(self._claim)


class SaveLatest(SaveEvery):
    """Saves a checkpoint after each epoch and keeps the newest: SaveEvery with `keep` 1."""

    def __init__(self, every: str = "1 epoch") -> None:
        super().__init__(every, keep=1)


def _cadence_problems(every: object) -> list[str]:
    if not isinstance(every, str):
        return [f"every is a text such as '1 epoch', not {every!r:.60}"]
    try:
        Cadence.parse(every)
    except ConfigError as error:
        return [f"every: {error}"]
    return []
