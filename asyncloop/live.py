"""Run: a handle on a run while it lives, and the task in the background that drives it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from asyncloop.blame import code_of
from asyncloop.bus import Listener
from asyncloop.control import Control
from asyncloop.engine import Engine, Result
from asyncloop.errors import StorageError
from asyncloop.events import EpochData, Event
from asyncloop.progress import Progress
from asyncloop.rundir import RunDir, current_run, now
from asyncloop.threads import off_loop

__all__ = ["INTERRUPTED", "OUT_OF_TIME", "Run", "background", "exit_code_of"]

logger = logging.getLogger("asyncloop")

OUT_OF_TIME = "max-time"

INTERRUPTED: Mapping[str, int] = {"SIGINT": 130, "SIGTERM": 143, OUT_OF_TIME: 75}
"""Reasons of stops that come from outside, so that the run is to be resumed, and their exit codes."""


class Run:
    """A live run. `await run` gives its Result, or raises what made it fail. Use it on the loop it was opened on."""

    def __init__(
        self, engine: Engine, rundir: RunDir | None, work: Callable[[Run], Awaitable[Result]] | None = None
    ) -> None:
        self.engine = engine
        """The engine at work; evaluations with several configs have one after the other."""
        self.rundir = rundir
        self._work = work or _train
        self.remove_at_end = False
        """Whether what the run has written is removed when its context ends."""
        self._state = "starting"
        self._result: Result | None = None
        self.error: BaseException | None = None
        """What made it fail; `await run` raises it."""
        self._ended = anyio.Event()
        self.asked = False
        """Whether somebody has taken the outcome; a failure that nobody asked for is raised at the context's end."""

    @property
    def id(self) -> str:
        return self.engine.run_info.id

    @property
    def dir(self) -> Path | None:
        return self.engine.run_info.dir if self.rundir is None else self.rundir.path

    @property
    def control(self) -> Control:
        return self.engine.control

    @property
    def metrics(self) -> EpochData:
        """Stream → variable → value of the last pass of each stream."""
        return self.engine.metrics if self._result is None else self._result.metrics

    @property
    def progress(self) -> Progress:
        return self.engine.progress

    @property
    def state(self) -> str:
        """starting, running, paused, stopping, completed, stopped, failed or interrupted."""
        if self._state == "running":
            if self.control.stop_reason is not None:
                return "stopping"
            if self.control.paused:
                return "paused"
        return self._state

    def snapshot(self) -> dict[str, Any]:
        """Where the run stands, as plain values."""
        return {
            "id": self.id,
            "dir": None if self.dir is None else str(self.dir),
            "state": self.state,
            "reason": self._result.reason if self._result else None,
            "epoch": self.progress.epoch,
            "epochs": self.progress.epochs_done,
            "steps": self.progress.step,
            "metrics": {stream: dict(values) for stream, values in self.metrics.items()},
        }

    def __repr__(self) -> str:
        progress = self.progress
        epoch = f"{progress.epoch}" if progress.epochs is None else f"{progress.epoch}/{progress.epochs}"
        where = "" if self.dir is None else f", {self.dir}"
        return f"<Run {self.id}: {self.state}, epoch {epoch}, step {progress.step}{where}>"

    def _repr_html_(self) -> str:
        """What a notebook shows of the handle: its place, its state, how far it is and the newest metrics."""
        from asyncloop.hooks.progress_html import run_html

        return run_html(self.snapshot(), self.progress)

    def events(self, *kinds: type[Event]) -> Listener:
        """`async for event in run.events(AfterEpoch)`: earlier events that are not per batch, then what comes."""
        return self.engine.bus.events(*kinds)

    def __await__(self) -> Generator[Any, Any, Result]:
        return self._outcome().__await__()

    async def _outcome(self) -> Result:
        await self._ended.wait()
        self.asked = True
        if self.error is not None:
            raise self.error
        assert self._result is not None
        return self._result

    async def ended(self) -> None:
        """Wait for the end without taking the outcome."""
        await self._ended.wait()

    async def drive(self) -> None:
        """Train to the end; what fails is kept for whoever asks. Never raises but for cancellation."""
        token = current_run.set(self.id)
        self._state = "running"
        if self.dir is not None:
            logger.info("run %s in %s", self.id, self.dir)
        try:
            counters = {"epochs": self.progress.epochs_done, "steps": self.progress.step}
            await self._record(state="running", times={"started": now()}, **counters)
            self._result = await self._work(self)
            self._state = self._state_of(self._result)
        except Exception as error:
            self.error = error
            self._state = "failed"
            logger.error("the run failed: %s: %s", type(error).__name__, error, extra={"log_only": True})
        except BaseException:
            self._state = "stopped"
            self._result = Result(
                "cancelled", self.progress.epochs_done, self.progress.step, self.engine.metrics, self.dir, stopped=True
            )
            raise
        finally:
            self.engine.bus.close()  # also where training never began: who follows the events must see their end
            try:
                with anyio.CancelScope(shield=True):
                    await self._record_end()
            finally:
                self._ended.set()
                current_run.reset(token)

    def _state_of(self, result: Result) -> str:
        if result.stopped and result.reason in INTERRUPTED:
            return "interrupted"
        return "stopped" if result.stopped else "completed"

    async def _record_end(self) -> None:
        reason = self._result.reason if self._result else f"{type(self.error).__name__}: {self.error}"
        try:
            await self._record(
                state=self._state,
                reason=reason,
                exit_code=exit_code_of(self._result, self.error),
                epochs=self.progress.epochs_done,
                steps=self.progress.step,
                metrics=self.metrics,
                times={"ended": now()},
            )
        except StorageError as error:
            self._state = "failed"
            if self.error is None:
                self.error = error
            else:
                self.error.add_note(f"after that, also: {error}")

    async def _record(self, **changes: Any) -> None:
        rundir = self.rundir
        if rundir is not None:
            await off_loop("run.json", partial(rundir.update, **changes))


def exit_code_of(result: Result | None, error: BaseException | None) -> int:
    """The command line's exit code for an outcome."""
    if error is not None:
        return code_of(error)
    return INTERRUPTED.get(result.reason, 0) if result is not None and result.stopped else 0


async def _train(live: Run) -> Result:
    return await live.engine.train()


@asynccontextmanager
async def background(live: Run, limit_s: float | None) -> AsyncGenerator[Run]:
    """The run in a task of its own; leaving waits for its end, stopping it if it is not over.

    Stops it after `limit_s` seconds. Owns the run directory's log and lock. A failure of the run that nobody asked for
    is raised at the end; what the body raises wins.
    """
    with _kept(live):
        body_error: list[BaseException] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live.drive)
            if limit_s is not None:
                tasks.start_soon(_limit, live, limit_s)
            try:
                yield live
            except BaseException as error:
                body_error.append(error)
            if live.state not in ("completed", "stopped", "failed", "interrupted"):
                live.control.stop("its context was left")
            with anyio.CancelScope(shield=True):
                await live.ended()
    if body_error:
        if live.error is not None and live.error is not body_error[0]:
            body_error[0].add_note(f"the run failed too: {type(live.error).__name__}: {live.error}")
        raise body_error[0]
    if live.error is not None and not live.asked:
        raise live.error


async def _limit(live: Run, limit_s: float) -> None:
    with anyio.move_on_after(limit_s):
        await live.ended()
        return
    live.control.stop(OUT_OF_TIME)


@contextmanager
def _kept(live: Run) -> Generator[None]:
    rundir = live.rundir
    if rundir is None:
        yield
        return
    rundir.open_log()
    try:
        yield
    finally:
        if live.remove_at_end:
            rundir.remove()
        rundir.close()
