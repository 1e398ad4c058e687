"""Control: what may be asked of a run from outside. Every verb is plain, thread-safe, returns at once, acts at the next step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from asyncloop.errors import ConfigError, UsageError
from asyncloop.threads import LoopHandle, LoopSleeper

__all__ = ["Claim", "Control", "PendingCheckpoint"]


@dataclass(frozen=True, slots=True)
class Claim:
    """Why a checkpoint is kept: the last `keep` of each `owner` stay (all if None); `pointer` is a file that names it."""

    owner: str = "request"
    keep: int | None = None
    pointer: str | None = None


class PendingCheckpoint:
    """A checkpoint that was asked for. Awaiting it gives its directory once it is complete on disk.

    Raises what its writing raised, or UsageError if the run ended before. Cancelling the wait does not cancel it.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._waiting: list[LoopSleeper] = []

    def resolve(self, path: Path | None, error: BaseException | None = None) -> None:
        self._path, self._error = path, error
        for sleeper in self._waiting:
            sleeper.wake()

    def __await__(self) -> Generator[Any, Any, Path]:
        return self._wait().__await__()

    async def _wait(self) -> Path:
        sleeper = LoopSleeper(LoopHandle())
        self._waiting.append(sleeper)
        try:
            while self._path is None and self._error is None:
                sleeper.asleep = True
                await sleeper.sleep()
        finally:
            self._waiting.remove(sleeper)
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path


@dataclass(slots=True)
class _Wishes:
    """What was asked for and not taken up yet."""

    evaluations: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    checkpoints: list[PendingCheckpoint] = field(default_factory=list[PendingCheckpoint])
    changes: dict[str, Any] = field(default_factory=dict[str, Any])


class Control:
    """The verbs of a run. The model thread polls `pending` between steps; the engine takes the wishes up."""

    def __init__(self, live: Mapping[str, type] | None = None) -> None:
        self.pending = False
        self.stop_reason: str | None = None
        self.aborted = False
        self.paused = False
        self._live = dict(live or {})
        self._lock = threading.Lock()
        self._wishes = _Wishes()
        self._wake: Callable[[], None] = _nobody
        self._over = False

    def pause(self) -> None:
        """Wait after the step under way until `resume`; the model stays, producers fill their buffers and wait."""
        self.paused = True
        self.attract()

    def resume(self) -> None:
        self.paused = False
        self.attract()

    def stop(self, reason: str = "stopped by request") -> None:
        """End after the step under way: hooks catch up, the state is saved. The first reason given stays."""
        with self._lock:
            if self.stop_reason is None:
                self.stop_reason = reason
        self.attract()

    def abort(self, reason: str = "aborted by request") -> None:
        """End after the step under way without saving and without waiting for the hooks' backlog."""
        with self._lock:
            self.aborted = True
            self.stop_reason = reason
        self.attract()

    def evaluate(self, *streams: str) -> None:
        """Evaluate these streams (none given: the extra streams) after the step under way."""
        with self._lock:
            self._wishes.evaluations.append(streams)
        self.attract()

    def set(self, name: str, value: Any) -> None:
        """Change a parameter that the model's `live` names; ConfigError at once for an unknown name or a wrong type."""
        kind = self._live.get(name)
        if kind is None:
            close = get_close_matches(name, self._live, 1)
            known = ", ".join(self._live) or "nothing"
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"the model has no live parameter {name!r} (it offers: {known}){hint}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"live parameter {name!r} is a {kind.__name__}, not {value!r}")
        with self._lock:
            self._wishes.changes[name] = value
        self.attract()

    def checkpoint(self, claim: Claim | None = None) -> PendingCheckpoint:
        """Ask for a checkpoint of the step under way; awaiting the result gives its path.

        A hook requests and goes on: awaiting inside a handler would wait for itself.
        """
        pending = PendingCheckpoint(claim or Claim())
        with self._lock:
            if not self._over:
                self._wishes.checkpoints.append(pending)
        if self._over:
            pending.resolve(None, UsageError("the run ended before this checkpoint was taken"))
        self.attract()
        return pending

    # --- the engine's side --------------------------------------------------------------------------------------

    def attach(self, live: Mapping[str, type], wake: Callable[[], None]) -> None:
        """The engine that listens: `wake` is called from any thread after every wish."""
        self._live = dict(live)
        self._wake = wake
        self._over = False

    def attract(self) -> None:
        """Make the model thread return to the engine after the step under way. Thread-safe."""
        self.pending = True
        self._wake()

    def begin_stretch(self, train: bool) -> None:
        """The thread is about to run: it returns at once only for what can be taken up before its next batch."""
        self.pending = False
        wishes = self._wishes
        wanted = train and (wishes.evaluations or wishes.checkpoints or wishes.changes)
        if self.stop_reason is not None or self.paused or wanted:
            self.pending = True

    @property
    def wants_checkpoint(self) -> bool:
        return bool(self._wishes.checkpoints)

    def take_evaluations(self) -> list[tuple[str, ...]]:
        with self._lock:
            taken, self._wishes.evaluations = self._wishes.evaluations, []
        return taken

    def take_checkpoints(self) -> list[PendingCheckpoint]:
        with self._lock:
            taken, self._wishes.checkpoints = self._wishes.checkpoints, []
        return taken

    def take_changes(self) -> dict[str, Any]:
        with self._lock:
            taken, self._wishes.changes = self._wishes.changes, {}
        return taken

    def end(self) -> None:
        """The run is over: who waits for a checkpoint is told, and nothing asked so far reaches a later run."""
        with self._lock:
            self._over = True
            self._wake = _nobody
            self.stop_reason, self.aborted, self.paused = None, False, False
            self._wishes.evaluations, self._wishes.changes = [], {}
        for pending in self.take_checkpoints():
            pending.resolve(None, UsageError("the run ended before this checkpoint was taken"))


def _nobody() -> None:
    """Before an engine listens there is nobody to wake."""
