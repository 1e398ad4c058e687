"""Screens: the ways in which progress can be shown on stderr. Each belongs to one thread: it opens, draws, closes."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal, Protocol

from asyncloop.hooks.progress_state import Snapshot
from asyncloop.rundir import jsonable

__all__ = ["Mode", "Screen", "open_screen"]

Mode = Literal["auto", "rich", "plain", "json", "none"]


class Screen(Protocol):
    """`draw` is called at most every `interval_s`. What the terminal raises comes out; `close` always restores it."""

    interval_s: float

    def draw(self, snapshot: Snapshot) -> None: ...

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_screen(mode: Mode) -> Screen | None:
    """The screen for a mode; `auto` looks at where the program runs. None: show nothing. OSError if stderr is closed."""
    if mode == "none" or sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return None
    if mode == "json":
        return _Json()
    if mode == "auto":
        notebook = _notebook()
        if notebook is not None:
            return notebook
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    if mode == "rich" or (mode == "auto" and is_terminal):
        return _Rich()
    return _Plain()


class _Plain:
    """Whole lines for logs and pipes: no carriage return, no escape sequence, one now and then and one an epoch."""

    interval_s = 5.0

    def draw(self, snapshot: Snapshot) -> None:
        _write(snapshot.line())

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        _write(line)

    def close(self) -> None:
        pass


class _Json:
    """One JSON object a line, for programs."""

    interval_s = 1.0

    def draw(self, snapshot: Snapshot) -> None:
        _write(json.dumps(jsonable({"kind": "progress", **asdict(snapshot)})))

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        _write(json.dumps(jsonable({"kind": "epoch", **entry})))

    def close(self) -> None:
        pass


class _Rich:
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


class _Notebook:
    """One display of a notebook cell, updated in place: the newest epochs and the line of the pass under way."""

    interval_s = 0.25

    def __init__(self, display: Callable[..., Any]) -> None:
        self._epochs: deque[str] = deque(maxlen=20)
        self._handle = display(self._bundle(""), raw=True, display_id=True)

    def draw(self, snapshot: Snapshot) -> None:
        self._update(snapshot.line())

    def end_epoch(self, line: str, entry: Mapping[str, Any]) -> None:
        self._epochs.append(line)
        self._update("")

    def close(self) -> None:
        self._update("")

    def _update(self, last: str) -> None:
        self._handle.update(self._bundle(last), raw=True)

    def _bundle(self, last: str) -> dict[str, str]:
        return {"text/plain": "\n".join([*self._epochs, *([last] if last else [])])}


def _notebook() -> Screen | None:
    """A notebook's display, if this runs in one. IPython is there already then; it is never imported for this."""
    ipython: Any = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    try:
        from IPython.display import display  # pyright: ignore

        return _Notebook(display)  # pyright: ignore[reportUnknownArgumentType]
    except Exception:  # an odd kernel: plain lines do as well
        return None


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
