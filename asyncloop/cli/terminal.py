"""Standard output and standard error that nobody can take away: results go to the one, all else to the other.

A closed pipe (`| head`) or a lost terminal must not end a training: what can no longer be written is dropped.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from typing import Any, TextIO

__all__ = ["cells", "complain", "keep_descriptors", "keep_streams", "print_json", "print_table", "strong"]

_NOBODY_READS = (errno.EPIPE, errno.EIO)
_NARROW = 8
"""Columns of a terminal in which a text can still be read, a few letters a line."""


class _Lasting(io.FileIO):
    """A descriptor to write to that turns into the null device when its reader is gone."""

    def __init__(self, descriptor: int, forgiven: Sequence[int]) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._forgiven = forgiven

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            _to_null_device(self.fileno())
            if self._forgiven and error.errno not in self._forgiven:
                from asyncloop.errors import StorageError

                raise StorageError(f"cannot write to standard output: {error.strerror}") from error
            return memoryview(data).nbytes


def keep_descriptors() -> None:
    """Let no pipe or file become descriptor 0, 1 or 2 where the caller has closed them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _to_null_device(descriptor)


def keep_streams() -> None:
    """Put streams in the place of `sys.stdout` and `sys.stderr` that outlive their readers.

    A full disk under stdout is still an error, for results would be lost; under stderr nothing is.
    """
    sys.stdout = _lasting(sys.stdout, 1, _NOBODY_READS)
    sys.stderr = _lasting(sys.stderr, 2, ())


def _lasting(stream: TextIO | None, descriptor: int, forgiven: Sequence[int]) -> TextIO:
    raw = _Lasting(descriptor, forgiven)
    lines = descriptor == 2 or raw.isatty()
    encoding = stream.encoding if stream is not None else "utf-8"
    errors = "backslashreplace"  # a name that the terminal cannot show is no reason to fail
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=lines)


def _to_null_device(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def complain(text: str) -> None:
    """To standard error, after whatever was on its way to standard output; without secrets."""
    from asyncloop.redact import redacted

    sys.stdout.flush()
    print(redacted(text), file=sys.stderr, flush=True)


def strong(text: str) -> str:
    """In red on a terminal that shows colours: the word that a complaint begins with."""
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[1;31m{text}\x1b[0m"


def print_json(value: Any) -> None:
    """One JSON object to standard output; what is not finite is null, arrays are lists."""
    from asyncloop.rundir import jsonable

    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))


def print_table(
    rows: Iterable[Sequence[str]],
    headers: Sequence[str] = (),
    *,
    whole: Collection[str] = (),
    file: TextIO | None = None,
) -> None:
    """A table to standard output, or to `file`; through a pipe each row is one line.

    In a terminal it is as wide as that, and long texts go on below, but for those of the columns `whole`. Where that
    leaves too little for the others, each row is a list.
    """
    to: TextIO = sys.stdout if file is None else file
    lines = [tuple(map(_on_one_line, row)) for row in rows]
    if to.isatty():
        _print_wrapped(lines, headers, whole, to)
    else:
        _print_padded([headers, *lines] if headers else lines, to)


def _print_wrapped(rows: Sequence[Sequence[str]], headers: Sequence[str], whole: Collection[str], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file)
    if headers and _least_width([headers, *rows], [header in whole for header in headers]) > console.width:
        _print_lists(rows, headers, file)
        return
    table = Table(
        *headers, box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(headers), header_style="bold"
    )
    for row in rows:
        table.add_row(*map(Text, row))
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.header in whole
    console.print(table)


def _least_width(rows: Sequence[Sequence[str]], whole: Sequence[bool]) -> int:
    """Columns of the terminal with which a table can still be read."""
    widths = _widths(rows)
    wrapped = (width if is_whole else min(width, _NARROW) for width, is_whole in zip(widths, whole, strict=True))
    return sum(wrapped) + 2 * (len(widths) - 1)


def _print_lists(rows: Sequence[Sequence[str]], headers: Sequence[str], file: TextIO) -> None:
    width = max(map(cells, headers))
    for row in rows:
        for header, text in zip(headers, row, strict=True):
            print(f"{header}{' ' * (width - cells(header) + 2)}{text}", file=file)
        print(file=file)


def _print_padded(rows: Sequence[Sequence[str]], file: TextIO) -> None:
    widths = _widths(rows)
    for row in rows:
        line = (text + " " * (width - cells(text) + 2) for text, width in zip(row, widths, strict=False))
        print("".join(line).rstrip(), file=file)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cells, column)) for column in zip_longest(*rows, fillvalue="")]


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() or _is_mark(char) else " " for char in text)


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(0 if _is_mark(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _is_mark(char: str) -> bool:
    """Whether it belongs to the character before it and takes no column of its own."""
    return unicodedata.category(char) in ("Mn", "Me", "Cf")
