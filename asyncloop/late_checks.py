"""LateChecks: whether losses on a device are finite, without waiting for the device.

For each loss one small piece of work is left on the device; the answers come back by the handful, copied beside the
steps. A loss that is not finite is then told of a handful of steps late, but always before the stretch is over, and
so before any checkpoint that holds its step.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from asyncloop.fetching import Fetch

__all__ = ["LateChecks"]

_HANDFUL = 16
_OFTEN_S = 0.1


class _Asked(NamedTuple):
    """Which loss a flag is of."""

    name: str
    step: int
    batch: int


class LateChecks:
    """The model thread's alone. `tell` is called for each loss that was not finite, oldest first, and may raise."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell = tell
        self._asked: list[_Asked] = []
        self._flags: list[Any] = []
        self._coming: deque[tuple[list[_Asked], Fetch]] = deque()
        self._began_s = time.perf_counter()

    def add(self, name: str, value: Any, step: int, index: int) -> None:
        """Ask for one loss, a scalar or an array on a device."""
        finite = value.detach().isfinite()
        self._flags.append(finite.all() if finite.ndim else finite)
        self._asked.append(_Asked(name, step, index))

    def look(self) -> None:
        """After a step: send for a handful of answers, and tell of those that have arrived."""
        now_s = time.perf_counter()
        if self._flags and (len(self._flags) >= _HANDFUL or now_s - self._began_s > _OFTEN_S):
            self._send()
            self._began_s = now_s
        while self._coming and self._coming[0][1].is_ready:
            self._take(*self._coming.popleft())

    def finish(self) -> None:
        """Wait for all answers: the stretch is over."""
        if self._flags:
            self._send()
        while self._coming:
            self._take(*self._coming.popleft())

    def _send(self) -> None:
        torch = sys.modules.get("torch")
        flags = [torch.stack(self._flags)] if torch is not None and torch.is_tensor(self._flags[0]) else self._flags
        self._coming.append((self._asked, Fetch({str(n): flag for n, flag in enumerate(flags)})))
        self._asked, self._flags = [], []

    def _take(self, asked: list[_Asked], fetch: Fetch) -> None:
        answers = np.concatenate([np.atleast_1d(part) for part in fetch.take().values()])
        for which, finite in zip(asked, answers, strict=True):
            if not finite:
                self._tell(*which)
