"""Screens: the ways in which progress can be shown. Each is used by one thread at a time: it opens, draws, closes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import asdict
from typing import Any, Literal, Protocol

from asyncloop.events import RunInfo
from asyncloop.hooks.progress_html import Moment, live_html
from asyncloop.hooks.progress_state import Snapshot
from asyncloop.rundir import jsonable

__all__ = ["Mode", "Screen", "in_notebook", "open_screen"]

Mode = Literal["auto", "rich", "plain", "json", "none"]

_EPOCHS_SHOWN = 10
_UPDATES_PER_S = 4


class Screen(Protocol):
    """`draw` is called at most every `interval_s`. What the terminal raises comes out; `close` always restores it."""

    interval_s: float

    def draw(self, snapshot: Snapshot) -> None: ...

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None: ...

    def tell(self, state: str, epoch: int, step: int) -> None:
        """The run is `running` again, `paused`, or has ended: `completed: …`, `stopped: …`, `failed: …`."""

    def close(self) -> None: ...


def open_screen(mode: Mode, run: RunInfo) -> Screen | None:
    """The screen for a mode; `auto` looks at where the program runs. None: show nothing. OSError if stderr is closed.

    `run` gives its name to a display that stays behind beside those of others.
    """
    if mode == "none" or sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return None
    if mode == "json":
        return _Json()
    if mode == "auto":
        notebook = _notebook(run)
        if notebook is not None:
            return notebook
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    if mode == "rich" or (mode == "auto" and is_terminal):
        return _Rich()
    return _Plain()


class _Plain(Screen):
    """Whole lines for logs and pipes: no carriage return, no escape sequence, one now and then and one an epoch."""

    interval_s = 5.0

    def draw(self, snapshot: Snapshot) -> None:
        _write(snapshot.line())

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        _write(line)

    def close(self) -> None:
        pass


class _Json(Screen):
    """One JSON object a line, for programs."""

    interval_s = 1.0

    def draw(self, snapshot: Snapshot) -> None:
        _write(json.dumps(jsonable({"kind": "progress", **asdict(snapshot)})))

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        _write(json.dumps(jsonable({"kind": "epoch", **entry})))

    def close(self) -> None:
        pass


class _Rich(Screen):
    """One live line at the bottom of a terminal, finished epochs above it. rich knows NO_COLOR and narrow windows."""

    interval_s = 0.2

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        class Quiet(Console):
            def on_broken_pipe(self) -> None:
                """rich would end the program here and turn its stdout off."""
                raise BrokenPipeError

        self._console = Quiet(stderr=True)
        # what is printed meanwhile goes above the live line; a stdout that is piped somewhere is left alone
        on_terminal = sys.stdout is not None and sys.stdout.isatty()  # pyright: ignore[reportUnnecessaryComparison]
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=on_terminal)
        self._live.start()

    def draw(self, snapshot: Snapshot) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        cells: list[Text | ProgressBar] = [Text(snapshot.title), Text(snapshot.count)]
        if self._console.width >= 80:
            total = snapshot.total
            cells.insert(1, ProgressBar(total=total, completed=snapshot.done, width=20, pulse=total is None))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(*cells, Text(snapshot.details, no_wrap=True, overflow="ellipsis"))
        self._live.update(row, refresh=True)

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        self._console.print(line, markup=False, highlight=True, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()


class _Notebook(Screen):
    """One display of a notebook cell, updated in place: where the run is and the newest epochs, as HTML and as text.

    It belongs to the cell that runs when it is made, and may then be handed to any thread: updates find it by its id.
    """

    interval_s = 0.15

    def __init__(self, display: Callable[..., Any], run: RunInfo) -> None:
        self._run, self._state = run, "starting"
        self._opened_s = self._updated_s = time.perf_counter()
        self._updates_saved = float(_UPDATES_PER_S)
        self._lines: deque[str] = deque(maxlen=_EPOCHS_SHOWN)
        self._ended: deque[Mapping[str, Any]] = deque(maxlen=_EPOCHS_SHOWN)
        self._now: Snapshot | None = None
        self._epoch = self._step = 0
        self._handle = display(self._bundle(""), raw=True, display_id=True)

    def draw(self, snapshot: Snapshot) -> None:
        self._state, self._now = "running", snapshot
        self._epoch, self._step = snapshot.epoch, snapshot.step
        self._update(snapshot.line())

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        self._lines.append(line)
        self._ended.append(entry)
        self._state, self._epoch, self._step = "running", entry["epoch"], entry["step"]
        self._update("")

    def tell(self, state: str, epoch: int, step: int) -> None:
        self._state, self._epoch, self._step = state, epoch, step
        has_completed = state.startswith("completed")  # then the epochs say it all
        self._update("" if has_completed or state == "running" else state, must=True)

    def close(self) -> None:
        """It stays in the notebook as it is."""

    def _update(self, last: str, *, must: bool = False) -> None:
        """Four a second, saved up for a second: after a slow step there is one for the step and one for its epoch's end.

        What is left out is in the next one: batches follow an epoch, and changes of state must be shown.
        """
        now_s = time.perf_counter()
        saved = min(self._updates_saved + (now_s - self._updated_s) * _UPDATES_PER_S, _UPDATES_PER_S)
        shows = must or saved >= 1
        self._updated_s, self._updates_saved = now_s, max(saved - shows, 0)
        if shows:
            # in a context without the starting cell: the message then is the running cell's, and programs that execute
            # notebooks, which listen to nobody else, store the newest state; live front ends go by the display's id
            Context().run(self._handle.update, self._bundle(last), raw=True)

    def _bundle(self, last: str) -> dict[str, str]:
        text = "\n".join([*self._lines, *([last] if last else [])])
        return {"text/plain": text, "text/html": live_html(self._moment())}

    def _moment(self) -> Moment:
        now, state = self._now, self._state
        has_ended = state.startswith(("completed", "stopped", "failed"))
        is_of_before = state == "paused" and now is not None and now.epoch != self._epoch
        return Moment(
            f"{self._run.name} {self._run.id}",
            state,
            time.perf_counter() - self._opened_s,
            self._epoch,
            self._run.epochs,
            self._step,
            None if has_ended or is_of_before else now,
            None if now is None else self._left_s(now),
            self._ended,
        )

    def _left_s(self, now: Snapshot) -> float | None:
        """Epochs to come are taken to last as long as the newest one."""
        newest = self._ended[-1] if self._ended else None
        if now.eta_s is None or now.epochs is None or newest is None or newest["epoch"] == 0:
            return now.eta_s
        return now.eta_s + (now.epochs - now.epoch) * newest["epoch_s"]


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel. IPython is there already then; it is never imported for this."""
    ipython: Any = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _notebook(run: RunInfo) -> Screen | None:
    """A display in the running cell, if this runs in a notebook."""
    if not in_notebook():
        return None
    try:
        from IPython.display import display  # pyright: ignore

        return _Notebook(display, run)  # pyright: ignore[reportUnknownArgumentType]
    except Exception:  # an odd kernel: plain lines do as well
        return None


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
