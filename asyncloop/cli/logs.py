"""Logging of the command line: short lines on standard error. The run's own log.txt is the run's business."""

from __future__ import annotations

import io
import logging
import sys
from typing import TextIO, cast

from asyncloop.processes import is_first
from asyncloop.redact import RedactingFormatter

__all__ = ["configure_logging"]


class _CurrentStderr(io.TextIOBase):
    """Whatever `sys.stderr` is at the moment: a live display puts a stream of its own there, that prints above it."""

    def write(self, text: str, /) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logging() -> None:
    """Root and asyncloop loggers from INFO on: with colours on a terminal, as plain lines otherwise."""
    handler = _handler(cast(TextIO, _CurrentStderr()), sys.stderr.isatty())
    handler.addFilter(lambda record: not hasattr(record, "log_only"))  # for log.txt: the command's own words say it
    if not is_first():  # of several processes one tells how it goes, and each what goes wrong
        handler.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)


def _handler(stream: TextIO, on_terminal: bool) -> logging.Handler:
    if not on_terminal:
        handler: logging.Handler = logging.StreamHandler(stream)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        return handler
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(file=stream, force_terminal=True)
    handler = RichHandler(console=console, show_path=False, markup=False, log_time_format="%H:%M:%S")
    handler.setFormatter(RedactingFormatter("%(message)s"))
    return handler
