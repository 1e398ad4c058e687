"""Standing: where a run stands between two steps. An engine keeps it from call to call, a checkpoint from process to process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncloop.batch import Cursor
from asyncloop.events import EpochData
from asyncloop.progress import Progress

__all__ = ["Position", "Standing"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stream stands: the pass, the index of the next batch in it, and the stream's own cursor."""

    number: int = 1
    index: int = 0
    cursor: Cursor = None


@dataclass(slots=True)
class Standing:
    """Owned by the engine coroutine; the session moves the positions of the dataset's streams."""

    progress: Progress
    positions: dict[str, Position] = field(default_factory=dict[str, Position])
    metrics: EpochData = field(default_factory=dict[str, dict[str, Any]])
    """Of the last epoch that had the stream."""
    zeroth_done: bool = False
    evaluated_step: int = -1
    """The step at which the extra streams were evaluated last."""
    changed: dict[str, Any] = field(default_factory=dict[str, Any])
    """Parameters that were set while it ran."""
    given: dict[str, int] = field(default_factory=dict[str, int])
    """Training passes over sources that were given for one call, by name."""

    def next_given(self, name: str) -> Position:
        """The next pass over a source given for one call; there is nothing to go on from in it."""
        self.given[name] = self.given.get(name, 0) + 1
        return Position(number=self.given[name])

    def state_dict(self, *, epoch_is_ending: bool) -> dict[str, Any]:
        """For the record of a checkpoint; metrics go with the epoch. An epoch that is ending counts as under way."""
        return {
            "epoch": self.progress.epoch,
            "epochs_done": self.progress.epochs_done - epoch_is_ending,
            "positions": {
                name: {"pass": at.number, "index": at.index, "cursor": at.cursor} for name, at in self.positions.items()
            },
            "zeroth_done": self.zeroth_done,
            "evaluated_step": self.evaluated_step,
            "changed": dict(self.changed),
        }

    def load_state_dict(self, step: int, record: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> None:
        progress = self.progress
        progress.step, progress.epoch, progress.epochs_done = step, record["epoch"], record["epochs_done"]
        self.positions = {
            name: Position(at["pass"], at["index"], at["cursor"]) for name, at in record["positions"].items()
        }
        self.metrics = {name: dict(values) for name, values in metrics.items()}
        self.zeroth_done, self.evaluated_step = record["zeroth_done"], record["evaluated_step"]
        self.changed = dict(record["changed"])

    def remember(self, data: EpochData) -> None:
        """Take over an epoch's data as the metrics of its streams."""
        self.metrics.update({name: dict(values) for name, values in data.items()})
