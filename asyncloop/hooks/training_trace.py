"""TrainingTrace: when the run began and ended, how far it came, and how it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncloop.events import AfterEpoch, AfterTraining, BeforeTraining, Event
from asyncloop.hook import Hook
from asyncloop.hooks.output_file import OutputFile
from asyncloop.rundir import now

__all__ = ["TrainingTrace"]


class TrainingTrace(Hook):
    """Keeps `trace.json`: `train_begin`, `train_end` (ISO 8601, UTC), `epochs_done`, `exit_status`.

    Written at the start, after each epoch and at the end; readers see the old or the new file. `exit_status` is null
    while running, 0 after success, a declared stop or an interrupt, 1 after a failure. A resumed run keeps the first
    `train_begin` that it finds in the file. Writes in its own thread. StorageError if the file system refuses.
    """

    needs_output_dir = True
    background = True

    def __init__(self, output_dir: str | Path | None = None) -> None:
        self.needs_output_dir = output_dir is None
        self._file = OutputFile("TrainingTrace", "trace.json", output_dir)
        self._begin: str | None = None
        self._epochs_done: int | None = None
        """None until it is known: what a resume does not say stands in the file."""

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_done": self._epochs_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epochs_done = state["epochs_done"]

    def before_training(self, event: BeforeTraining) -> None:
        before = json.loads(self._file.read(event) or "{}")
        self._begin = before.get("train_begin") or now()
        if self._epochs_done is None:
            self._epochs_done = before.get("epochs_done", 0)
        self._write(event)

    def after_epoch(self, event: AfterEpoch) -> None:
        self._epochs_done = max(self._epochs_done or 0, event.epoch)
        self._write(event)

    def after_training(self, event: AfterTraining) -> None:
        self._write(event, end=now(), exit_status=0 if event.success else 1)

    def _write(self, event: Event, end: str | None = None, exit_status: int | None = None) -> None:
        trace = {
            "train_begin": self._begin,
            "train_end": end,
            "epochs_done": self._epochs_done,
            "exit_status": exit_status,
        }
        self._file.replace(event, json.dumps(trace, indent=1) + "\n")
