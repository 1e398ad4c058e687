"""Watchdog: names what does not answer. It only looks, every now and then, so the model thread pays nothing for it."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from asyncloop.deadlines import next_look
from asyncloop.errors import StalledError
from asyncloop.model_thread import Stretch
from asyncloop.stream import StreamBuffer

__all__ = ["DEADLINES", "watch"]

_GET = StreamBuffer[Any].get.__code__
_STREAM = str(Path(_GET.co_filename).parent)

logger = logging.getLogger("asyncloop")

DEADLINES: Mapping[str, str] = {
    "batch": "seconds the model may wait for one batch; then the run fails with StalledError",
    "step": "seconds one step may take; then it is reported with its stack",
}


async def watch(
    deadlines: Mapping[str, float],
    thread_id: int | None,
    stretch: Callable[[], Stretch | None],
    fail: Callable[[BaseException], None],
) -> None:
    """Look at the stretch under way until cancelled; each stall is told once.

    A stalled producer fails the run, unless the model thread itself is inside the stream, which it reads by itself: that,
    like a step, cannot be interrupted, so it is reported with its stack and goes on being waited for.
    """
    seen: tuple[Stretch | None, int, int] = (None, 0, 0)
    since, told = time.monotonic(), False
    while True:
        since += await next_look(deadlines.values())
        now, current = time.monotonic(), stretch()
        mark = (current, current.index if current else 0, current.n_accepted if current else 0)
        if mark != seen or current is None:
            seen, since, told = mark, now, False
            continue
        stack = _frames(sys._current_frames().get(thread_id or 0))  # pyright: ignore[reportPrivateUsage]
        waits = any(frame.f_code is _GET for frame in stack)
        reads = waits or any(frame.f_code.co_filename.startswith(_STREAM) for frame in stack)
        deadline = deadlines.get("batch" if reads else "step")
        if told or deadline is None or now - since < deadline:
            continue
        told = True
        where = f"stream {current.stream!r}, batch {current.index if reads else current.index - 1}"
        if waits:
            fail(
                StalledError(
                    f"{where} did not come within {deadline:g} s; its producers:\n{_producers(current.stream)}"
                )
            )
        else:
            what = "is being read" if reads else "has been running"
            shown = "".join(traceback.format_stack(stack[0])) if stack else "(the thread has gone)"
            logger.error("%s %s for more than %g s; the model thread is at\n%s", where, what, deadline, shown)


def _frames(frame: FrameType | None) -> list[FrameType]:
    """The frames of a stack, innermost first."""
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _producers(stream: str) -> str:
    """Where the threads that work for a stream are; its tasks wait on the event loop."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    stacks = [
        f"{thread.name}\n" + "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threading.enumerate()
        if thread.name.startswith("asyncloop") and repr(stream) in thread.name and thread.ident in frames
    ]
    return "\n".join(stacks) or "no thread works for it; its task waits on the event loop"
