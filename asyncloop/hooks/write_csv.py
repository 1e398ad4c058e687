"""WriteCSV: one row for each epoch."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from asyncloop.errors import HookError
from asyncloop.events import AfterEpoch, BeforeTraining, Event
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import names, nearest, one_of, refuse
from asyncloop.hooks.output_file import OutputFile, file_name
from asyncloop.hooks.values import chosen, summary

__all__ = ["WriteCSV"]

logger = logging.getLogger("asyncloop")

Policy = Literal["error", "warn", "default"]
Row = Sequence[object]


class WriteCSV(Hook):
    """Appends a row after every epoch, epoch 0 included: `epoch`, then `<stream>_<variable>` for scalars in its data.

    * Of a dict of aggregates the `mean` is written, else its first. Streams are in alphabetical order, variables in
      order of appearance; what is neither a number nor a text has no column.
    * A column (or one of `variables`) without a value in an epoch: `on_missing_variable` raises HookError, warns, or
      silently writes `default_value`. A variable that appears later widens the file: earlier rows get `default_value`.
    * A file that is there already is continued under its own header; on resume it is cut to the checkpoint.

    Writes in its own thread while the run goes on. StorageError if the file system refuses.
    """

    needs_output_dir = True
    background = True

    def __init__(
        self,
        output_file: str = "training.csv",
        delimiter: str = ",",
        default_value: str | int | float = "",
        on_missing_variable: Policy = "error",
        variables: Sequence[str] | None = None,
        output_dir: str | Path | None = None,
    ) -> None:
        refuse(
            "WriteCSV",
            file_name("output_file", output_file),
            _delimiter(delimiter),
            one_of("on_missing_variable", on_missing_variable, get_args(Policy)),
            names("variables", variables),
        )
        self.variables = variables
        self.needs_output_dir = output_dir is None
        self._file = OutputFile("WriteCSV", output_file, output_dir)
        self._delimiter, self._default, self._on_missing = delimiter, default_value, on_missing_variable
        self._header: list[str] | None = None
        self._n_rows = 0
        self._cut_to: int | None = None

    def before_training(self, event: BeforeTraining) -> None:
        self._begin(event)

    def after_epoch(self, event: AfterEpoch) -> None:
        cells = self._cells(event)
        if self._header is None:
            self._begin(event)
        header = self._header or []
        self._check_missing(event, cells, header)
        if not cells and not header:
            return
        new = [column for column in cells if column not in header]
        if new:
            header = self._widen(event, new)
        cells["epoch"] = event.epoch
        row = [cells.get(column, self._default) for column in header]
        self._file.append(event, self._text([row]))
        self._n_rows += 1

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._n_rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._cut_to = state["rows"]

    def _cells(self, event: AfterEpoch) -> dict[str, object]:
        """Column → value, in the order in which new columns are added."""
        cells: dict[str, object] = {}
        for stream, values in sorted(chosen(event.data, self.streams, self.variables).items()):
            for name, value in values.items():
                cell = value if isinstance(value, str) else summary(value)
                column = f"{stream}_{name}"
                if cell is None:
                    continue
                if column in cells or column == "epoch":
                    raise HookError(f"WriteCSV: two variables share the column {column!r}; rename one of them")
                cells[column] = cell
        return cells

    def _check_missing(self, event: AfterEpoch, cells: Mapping[str, object], header: Sequence[str]) -> None:
        there = list(dict.fromkeys(name for values in event.data.values() for name in values))
        missing = [f"the variable {name!r}{nearest(name, there)}" for name in self.variables or () if name not in there]
        missing += [f"the column {column!r}" for column in header if column != "epoch" and column not in cells]
        if missing and self._on_missing != "default":
            what = (
                f"WriteCSV: epoch {event.epoch} has no value for {', '.join(missing)} "
                f"(its columns are {', '.join(cells) or 'none'}); set on_missing_variable = 'default' to allow that"
            )
            if self._on_missing == "error":
                raise HookError(what)
            logger.warning("%s", what)

    def _begin(self, event: Event) -> None:
        """Take over what stands in the file, cut to the checkpoint if the run is resumed."""
        text = self._file.read(event)
        lines = self._lines(text)
        kept = lines if self._cut_to is None else lines[: self._cut_to + 1]
        self._cut_to = None
        if len(kept) < len(lines) or (text and not text.endswith("\n")):
            self._file.replace(event, self._text(kept))
        self._header = kept[0] if kept else None
        self._n_rows = max(len(kept) - 1, 0)

    def _widen(self, event: AfterEpoch, new: Sequence[str]) -> list[str]:
        """Add columns; the rows so far get the default there."""
        lines = self._lines(self._file.read(event)) if self._header else []
        header = [*(lines[0] if lines else ["epoch"]), *new]
        rows = [[*row, *[self._default] * (len(header) - len(row))] for row in lines[1:]]
        self._file.replace(event, self._text([header, *rows]))
        self._header = header
        return header

    def _lines(self, text: str) -> list[list[str]]:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter))

    def _text(self, rows: Iterable[Row]) -> str:
        file = io.StringIO()
        csv.writer(file, delimiter=self._delimiter, lineterminator="\n").writerows(rows)
        return file.getvalue()


def _delimiter(value: object) -> str | None:
    if isinstance(value, str) and len(value) == 1 and value not in '"\r\n':
        return None
    return f"delimiter is one character such as ',' or ';', not {value!r:.60}"
