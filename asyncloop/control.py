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
        self._live, self._check = dict(live or {}), _anything
        self._lock = threading.Lock()
        self._wishes = _Wishes()
        self._wake: Callable[[], None] = _nobody
        self._over = False
        self._pending: dict[int, PendingCheckpoint] = {}
        """Checkpoints that were asked for here and are not taken up yet."""
        self._noted: list[list[Any]] | None = None
        """Wishes that wait for other processes; None: there are no others."""

    def pause(self) -> None:
        """Wait after the step under way until `resume`; the model stays, producers fill their buffers and wait."""
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    def stop(self, reason: str = "stopped by request") -> None:
        """End after the step under way: hooks catch up, the state is saved. The first reason given stays."""
        self._ask("stop", reason)

    def abort(self, reason: str = "aborted by request") -> None:
        """End after the step under way without saving and without waiting for the hooks' backlog."""
        self._ask("abort", reason)

    def evaluate(self, *streams: str) -> None:
        """Evaluate these streams (none given: the extra streams) after the step under way."""
        self._ask("evaluate", *streams)

    def set(self, name: str, value: Any) -> None:
        """Change a parameter that the model's `live` names; ConfigError at once for an unknown name or a wrong type, and
        for a value that the model's `check_parameter(name, value)`, if it has one, refuses."""
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
        self._check(name, value)
        self._ask("set", name, value)

    def checkpoint(self, claim: Claim | None = None) -> PendingCheckpoint:
        """Ask for a checkpoint of the step under way; awaiting the result gives its path.

        A hook requests and goes on: awaiting inside a handler would wait for itself.
        """
        pending = PendingCheckpoint(claim or Claim())
        with self._lock:
            is_over = self._over
            if not is_over:
                self._pending[id(pending)] = pending
        if is_over:
            pending.resolve(None, UsageError("the run ended before this checkpoint was taken"))
        else:
            own = pending.claim
            self._ask("checkpoint", own.owner, own.keep, own.pointer, id(pending))
        return pending

    def _ask(self, verb: str, *args: Any) -> None:
        """Take a wish up, or note it for all processes to agree on; then have the engine look. Thread-safe."""
        with self._lock:
            if self._noted is None:
                self._take_up(verb, *args)
            else:
                self._noted.append([verb, *args])
        self.attract()

    def _take_up(self, verb: str, *args: Any) -> None:
        """Under the lock."""
        if verb in ("pause", "resume"):
            self.paused = verb == "pause"
        elif verb == "stop":
            self.stop_reason = args[0] if self.stop_reason is None else self.stop_reason
        elif verb == "abort":
            self.aborted, self.stop_reason = True, args[0]
        elif verb == "evaluate":
            self._wishes.evaluations.append(args)
        elif verb == "set":
            self._wishes.changes[args[0]] = args[1]
        elif verb == "checkpoint":
            owner, keep, pointer, key = args
            own = self._pending.pop(key, None)  # None: of another process
            self._wishes.checkpoints.append(own or PendingCheckpoint(Claim(owner, keep, pointer)))

    # --- the engine's side --------------------------------------------------------------------------------------

    def attach(
        self, live: Mapping[str, type], wake: Callable[[], None], check: Callable[[str, Any], None] | None = None
    ) -> None:
        """The engine that listens: `wake` is called from any thread after every wish, `check` before a parameter is set."""
        self._live, self._check = dict(live), check or _anything
        self._wake = wake
        self._over = False

    def share(self) -> None:
        """From now on wishes are only noted, until all processes that train together have agreed on them."""
        self._noted = self._noted or []

    @property
    def is_shared(self) -> bool:
        return self._noted is not None

    def take_noted(self) -> list[list[Any]]:
        """What was asked of this process since the last time, as JSON."""
        with self._lock:
            noted, self._noted = self._noted or [], []
        return noted

    def agree_on(self, wishes: list[list[Any]], own: bool) -> None:
        """Take up what a process was asked; keys of pending checkpoints mean something to the `own` only."""
        with self._lock:
            for verb, *args in wishes:
                if verb == "checkpoint" and not own:
                    args[-1] = None
                self._take_up(verb, *args)

    def attract(self) -> None:
        """Make the model thread return to the engine after the step under way. Thread-safe.

        Of several processes none returns by itself: they look at the steps that they have agreed on.
        """
        self.pending = self._noted is None
        self._wake()

    def begin_stretch(self, train: bool) -> None:
        """The thread is about to run: it returns at once only for what can be taken up before its next batch."""
        self.pending = False
        wishes = self._wishes
        if self._noted is not None:
            return
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
            self._noted = None if self._noted is None else []
            waiting, self._pending = list(self._pending.values()), {}
        for pending in [*self.take_checkpoints(), *waiting]:
            pending.resolve(None, UsageError("the run ended before this checkpoint was taken"))


def _anything(name: str, value: Any) -> None:
    """What a parameter may be, where the model does not say."""


def _nobody() -> None:
    """Before an engine listens there is nobody to wake."""
