"""The Python standard library's own sources as windows of bytes."""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asyncloop import Batch, Stream

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


class Text:
    """Files one after the other, each followed by a zero byte. Only names and sizes are in memory; threads may read it.

    Raises FileNotFoundError if there are none, ValueError if one has become smaller since.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        if not files:
            raise FileNotFoundError("there are no files to make a text of")
        self._files = files
        self._ends = np.cumsum([path.stat().st_size + 1 for path in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of the whole."""
        parts: list[bytes] = []
        for n in range(int(np.searchsorted(self._ends, begin, side="right")), len(self._files)):
            first, last = int(self._ends[n - 1]) if n else 0, int(self._ends[n]) - 1
            if first >= end:
                break
            size = min(end, last) - max(begin, first)
            with self._files[n].open("rb") as file:
                file.seek(max(begin - first, 0))
                parts.append(file.read(size))
            if len(parts[-1]) != size:
                raise ValueError(f"{self._files[n]} has become smaller since the run began")
            if end > last:
                parts.append(b"\0")
        return b"".join(parts)


class PythonText:
    """Windows of `context` bytes of all files `pattern` below `folder`, by default the running Python's standard library.

    Batches: `tokens` int64 (B, T), and `next`, the same one byte later. One file in twenty, by a hash of its path, is held
    out for `valid`, which are `valid_windows` windows spread evenly over them. Tokens are bytes, because then file sizes
    alone say where each window is: there is no vocabulary to make and to keep, any position is reached without
    reading what is before it, and the loss is comparable whatever the model: bits per byte.
    """

    def __init__(
        self,
        *,
        batch_size: int = 16,
        context: int = 256,
        valid_windows: int = 256,
        folder: str | None = None,
        pattern: str = "*.py",
    ) -> None:
        root = Path(folder or sysconfig.get_path("stdlib"))
        names = sorted(path.relative_to(root) for path in root.rglob(pattern))
        train: list[Path] = []
        valid: list[Path] = []
        for name in names:
            if not _LEFT_OUT.intersection(name.parts):
                (train if zlib.crc32(name.as_posix().encode()) % 20 else valid).append(root / name)
        self._texts = {"train": Text(train), "valid": Text(valid)}
        self._batch_size, self._context, self._valid_windows = batch_size, context, valid_windows

    @property
    def num_batches(self) -> dict[str, int]:
        """Stream name to batches in a pass, for the progress bars."""
        return {"train": self._n_windows("train") // self._batch_size, "valid": -(-self._n_valid // self._batch_size)}

    def train_stream(self) -> Stream:
        """Threads read batches ahead of the model; the order is a permutation of window numbers, another one each pass."""
        return (
            Stream.range(self._n_windows("train"), shuffle=True)
            .batch(self._batch_size, drop_last=True)
            .map(lambda windows: self._read("train", windows), concurrency=4)
        )

    def valid_stream(self) -> Stream:
        apart = self._n_windows("valid") // self._n_valid
        return (
            Stream.range(self._n_valid)
            .batch(self._batch_size)
            .map(lambda windows: self._read("valid", windows * apart), concurrency=4)
        )

    @property
    def _n_valid(self) -> int:
        return min(self._valid_windows, self._n_windows("valid"))

    def _n_windows(self, name: str) -> int:
        return (len(self._texts[name]) - 1) // self._context

    def _read(self, name: str, windows_B: NDArray[np.int64]) -> Batch:
        size = self._context
        begins = (windows_B * size).tolist()
        found = b"".join(self._texts[name].read(begin, begin + size + 1) for begin in begins)
        bytes_BT = np.frombuffer(found, dtype=np.uint8).reshape(-1, size + 1).astype(np.int64)
        return {"tokens": bytes_BT[:, :-1], "next": bytes_BT[:, 1:]}
