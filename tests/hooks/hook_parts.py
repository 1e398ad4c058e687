"""Events made by hand, for what an engine cannot be brought to do, and a dataset whose streams differ in length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from asyncloop.control import Control
from asyncloop.events import (
    AfterBatch,
    AfterEpoch,
    AfterEvaluation,
    AfterTraining,
    BeforeEpoch,
    BeforeTraining,
    RunInfo,
)


class Uneven:
    """Batches of 4, 4, 2 examples to train on; of 3 and 1 to evaluate."""

    num_batches: Mapping[str, int]

    def train_stream(self) -> Iterator[dict[str, Any]]:
        for i, size in enumerate((4, 4, 2)):
            yield {"x": np.full(size, float(i))}

    def valid_stream(self) -> Iterator[dict[str, Any]]:
        for i, size in enumerate((3, 1)):
            yield {"x": np.full(size, float(10 + i))}


class Events:
    """Makes the events of one imaginary run."""

    def __init__(self, directory: Path | None = None, dataset: Any = None) -> None:
        self.run = RunInfo("id", "run", directory, Uneven() if dataset is None else dataset)
        self.control = Control()

    def before_training(self, step: int = 0) -> BeforeTraining:
        return BeforeTraining(self.run, self.control, 0, step)

    def before_epoch(self, epoch: int, step: int = 0) -> BeforeEpoch:
        return BeforeEpoch(self.run, self.control, epoch, step, ["train"])

    def batch(
        self,
        outputs: Mapping[str, Any],
        *,
        inputs: Mapping[str, Any] | None = None,
        stream: str = "train",
        train: bool = True,
        step: int = 1,
        index: int = 0,
        epoch: int = 1,
    ) -> AfterBatch:
        return AfterBatch(self.run, self.control, epoch, step, stream, train, index, inputs or {}, outputs)

    def after_evaluation(self, data: Any, streams: Sequence[str], epoch: int = 1, step: int = 1) -> AfterEvaluation:
        return AfterEvaluation(self.run, self.control, epoch, step, data, streams)

    def after_epoch(self, data: Any, epoch: int = 1, step: int = 1) -> AfterEpoch:
        return AfterEpoch(self.run, self.control, epoch, step, data)

    def after_training(self, success: bool = True) -> AfterTraining:
        return AfterTraining(self.run, self.control, 1, 1, success, "done")


def read_names(directory: Path) -> list[str]:
    """The checkpoints of a run directory."""
    return sorted(path.name for path in (directory / "checkpoints").glob("step-*"))


def pretend(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)
