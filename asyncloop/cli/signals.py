"""Ctrl-C, SIGTERM and a lost terminal: the first asks the work under way to stop, the second ends the process at once.

A handler that an event loop owns vanishes with the loop, and a Python handler waits until the main thread is back in
the interpreter, which C code may delay for long. So the byte that the kernel's side of Python writes for every signal
goes through a pipe straight to a thread of ours, which asks or ends; the handler itself only looks whether uvloop,
which wants these bytes too while it runs, has kept one from us. Nothing is done inside the handler: it may have
interrupted whoever holds the lock that would be needed, and asyncio would sleep on.

Imports nothing heavy: it is the first thing that the process does.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

__all__ = ["SignalWatch", "Work", "say", "watch"]

_LAST_WORDS_S = 0.25
"""How long the process may still take to say what is lost; the promise is to be gone within half a second."""

_TOGETHER_S = 0.02
"""What comes this soon after the first is the same one again: a terminal signals a whole group of processes, and whoever
started this one (`timeout`, `uv run`, a process manager) passes on what it got. Only then the user is told, and may hurry."""


class Work:
    """Something that is better stopped than killed. Its functions are called on the watching thread.

    `stop` is given the signal's name and asks for the stop; it must be thread-safe and return at once. `notice` tells
    the user what is going to happen now. `last_words` is called with the signal's name before the process ends by force:
    it says what is lost and records the end. `grace_s`: how long the stop may take before the process ends all the
    same; None: until the second signal. (No dataclass: to import those takes as long as all that is imported before.)
    """

    __slots__ = ("grace_s", "last_words", "notice", "stop")

    def __init__(
        self,
        stop: Callable[[str], None],
        notice: str,
        last_words: Callable[[str], None] | None = None,
        grace_s: float | None = None,
    ) -> None:
        self.stop, self.notice, self.last_words, self.grace_s = stop, notice, last_words, grace_s


class SignalWatch:
    """Counts the signals of this process. One instance, `watch`; `install` and `listen` belong to the main thread."""

    def __init__(self) -> None:
        self.work: Work | None = None
        """What the first signal stops. Without any work it ends the process."""
        self.outcome: int | None = None
        """The exit code of work that is over: a late signal only hurries the process, it changes nothing."""
        self.goes_on = False
        """Whether the command goes on when a piece of work is over, so that its outcome is not the command's."""
        self._first: int | None = None
        self._reader = self._writer = -1

    def install(self) -> None:
        """Take the signals over for the rest of the process's life."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # under nohup it is ignored, and should be
            signal.signal(signal.SIGHUP, self._heard)
        self.listen()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(_ignore_all)  # the first that is registered is the last that is called
        threading.Thread(target=self._watch, name="asyncloop signals", daemon=True).start()

    def listen(self) -> None:
        """Take the bytes back from an event loop that has just started. uvloop gives back what it found."""
        if self._writer >= 0:
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) != self._writer:
            with suppress(BlockingIOError):
                os.write(self._writer, bytes([number]))

    def _forget(self) -> None:
        """In a forked child: Ctrl-C is the parent's business, and its bytes would count as the parent's signals."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, _ignored)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    @property
    def code(self) -> int | None:
        """The exit code for the first signal; None if there was none."""
        return None if self._first is None else 128 + self._first

    # --- on the watching thread ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            number = os.read(self._reader, 1)[0]
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._take(signal.SIGTERM if number == signal.SIGHUP else number)

    def _take(self, number: int) -> None:
        work, name = self.work, signal.Signals(number).name
        if self._first is not None or work is None:
            self._end(number, work)
        self._first = number
        work.stop(name)
        time.sleep(_TOGETHER_S)
        self._drain()
        if self.work is work:
            say(f"{name}: {work.notice}")
        if work.grace_s is not None:
            timer = threading.Timer(work.grace_s, lambda: self._end(number, None) if self.work is work else None)
            timer.daemon = True
            timer.start()

    def _drain(self) -> None:
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        if waiting.poll(0):
            os.read(self._reader, 4096)

    def _end(self, number: int, work: Work | None) -> NoReturn:
        if self._first is None:
            self._first = number
        if work is not None and work.last_words is not None:
            _within(_LAST_WORDS_S, work.last_words, signal.Signals(self._first).name)
        _kill_children()
        _show_cursor()
        os._exit(128 + self._first if self.outcome is None or self.goes_on else self.outcome)


def _within(seconds: float, words: Callable[[str], None], name: str) -> None:
    """Call `words(name)` but do not wait longer for it: a disk may hang, too."""

    def talk() -> None:
        with suppress(Exception):
            words(name)

    talking = threading.Thread(target=talk, name="asyncloop last words", daemon=True)
    with suppress(RuntimeError):  # the interpreter is ending and starts no threads
        talking.start()
        talking.join(seconds)


def say(line: str) -> None:
    """One line to stderr, unless that would wait for a terminal or a reader that is not there."""
    begin = "\r\x1b[K" if os.isatty(2) else ""
    _write(f"{begin}{line}\n")


def _show_cursor() -> None:
    if os.isatty(2):
        _write("\x1b[0m\x1b[?25h")


def _write(text: str) -> None:
    with suppress(OSError):
        can_take = select.poll()
        can_take.register(2, select.POLLOUT)
        if can_take.poll(0):
            os.write(2, text.encode())


def _kill_children() -> None:
    """Worker processes that multiprocessing would end at exit, which does not happen here."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        with suppress(Exception):
            for child in multiprocessing.active_children():
                child.kill()


def _ignore_all() -> None:
    """At the very end Python takes its handlers away, and a late signal would kill a process that ends well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _ignored(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which a program started from the child would inherit."""


watch = SignalWatch()
