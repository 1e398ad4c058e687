"""The clock of a run: which epoch, which step, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """Counters of a run, owned by the engine. `epoch` is the one under way (0: before training), `step` the updates done."""

    epochs: int | None = None
    steps: int | None = None
    epoch: int = 0
    epochs_done: int = 0
    step: int = 0

    @property
    def finished(self) -> bool:
        return self.why_finished is not None

    @property
    def why_finished(self) -> str | None:
        """The reason in words when the limit is reached; `epochs` and `steps` are exact, whichever comes first."""
        if self.steps is not None and self.step >= self.steps:
            return f"{self.step} step{'' if self.step == 1 else 's'} done"
        if self.epochs is not None and self.epochs_done >= self.epochs:
            return f"{self.epochs_done} epoch{'' if self.epochs_done == 1 else 's'} done"
        return None

    @property
    def steps_left(self) -> int | None:
        return None if self.steps is None else max(self.steps - self.step, 0)
