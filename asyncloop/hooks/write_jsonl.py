"""WriteJSONL: one JSON line for each batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncloop.bus import named_values
from asyncloop.errors import HookError
from asyncloop.events import AfterBatch, BeforeTraining
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import names, refuse
from asyncloop.hooks.output_file import OutputFile, file_name
from asyncloop.hooks.values import scalars
from asyncloop.rundir import jsonable

__all__ = ["WriteJSONL"]

_OWN = ("step", "epoch", "stream", "index")


class WriteJSONL(Hook):
    """Appends `{"step", "epoch", "stream", "index", <variable>: value, …}` for each due batch of any stream.

    `variables` are written as they are, arrays as lists; without it all scalar outputs, `head/loss` for nested ones.
    NaN and infinities become null, since JSON has no word for them. On resume the file is cut to the checkpoint. All
    that has piled up is one write, in the hook's own thread. StorageError if the file system refuses.
    """

    needs_output_dir = True
    background = True
    scalars_on_host = True

    def __init__(
        self,
        output_file: str = "batches.jsonl",
        variables: Sequence[str] | None = None,
        output_dir: str | Path | None = None,
    ) -> None:
        refuse("WriteJSONL", file_name("output_file", output_file), names("variables", variables), _reserved(variables))
        self.variables = variables
        self.needs_output_dir = output_dir is None
        self._file = OutputFile("WriteJSONL", output_file, output_dir)
        self._size: int | None = None
        self._cut_to: int | None = None

    def before_training(self, event: BeforeTraining) -> None:
        if self._cut_to is not None:
            self._file.cut(event, self._cut_to)
            self._cut_to = None
        self._size = self._file.size(event)

    def after_batches(self, events: Sequence[AfterBatch]) -> None:
        lines = [json.dumps(self._line(event), allow_nan=False) + "\n" for event in events]
        self._size = self._file.append(events[-1], "".join(lines))

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self._size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._cut_to = state["bytes"]

    def _line(self, event: AfterBatch) -> dict[str, Any]:
        if self.variables is None:
            values: Mapping[str, Any] = scalars(event.outputs)
        else:
            values = dict(named_values(event, self.variables))
        if any(name in _OWN for name in values):
            raise HookError(f"WriteJSONL: {', '.join(_OWN)} are keys of every line; give outputs other names")
        line = {"step": event.step, "epoch": event.epoch, "stream": event.stream, "index": event.index}
        return line | {name: jsonable(value) for name, value in values.items()}


def _reserved(variables: Sequence[str] | None) -> str | None:
    taken = [name for name in variables or () if name in _OWN]
    return f"variables: {', '.join(taken)} is written anyway; leave it out" if taken else None
