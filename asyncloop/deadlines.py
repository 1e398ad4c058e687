"""Deadlines: how often whoever watches them looks, and how much too late a look may come."""

from __future__ import annotations

import time
from collections.abc import Iterable

import anyio

__all__ = ["next_look"]


async def next_look(deadlines_s: Iterable[float]) -> float:
    """Sleep a quarter of the shortest deadline, 20 ms at least and a second at most; seconds by which that was too long.

    Then the loop or the whole process stood still (SIGSTOP, a laptop that was closed), and nobody who is watched could
    do anything: that time counts for no deadline.
    """
    period_s = min(max(min(deadlines_s, default=1.0) / 4, 0.02), 1.0)
    began_s = time.monotonic()
    await anyio.sleep(period_s)
    return time.monotonic() - began_s - period_s
