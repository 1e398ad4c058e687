"""Runs: a config (or an Engine) wired up, with its directory, and a handle on it while it lives."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from asyncloop.blame import code_of
from asyncloop.bus import Listener
from asyncloop.checkpoint import Checkpoints
from asyncloop.config import Config, dumps, load_config
from asyncloop.control import Control
from asyncloop.engine import Engine, Result
from asyncloop.errors import ConfigError, StorageError
from asyncloop.events import Event
from asyncloop.preflight import CheckReport, Parts, build, check_variables, dry_run
from asyncloop.progress import Progress
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir, current_run, find_run, now
from asyncloop.threads import OwnThread

__all__ = ["Run", "check", "exit_code_of", "load_model", "open_run", "run", "start"]

logger = logging.getLogger("asyncloop")

Source = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]

_SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


class Run:
    """A live run. `await run` gives its Result, or raises what made it fail. Use it on the loop it was opened on."""

    def __init__(self, engine: Engine, rundir: RunDir | None) -> None:
        self.engine = engine
        self._rundir = rundir
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
        return self.engine.run_info.dir

    @property
    def control(self) -> Control:
        return self.engine.control

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
            "metrics": {stream: dict(values) for stream, values in self.engine.metrics.items()},
        }

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
        try:
            await self._record(state="running", times={"started": now()})
            self._result = await self.engine.train()
            self._state = self._state_of(self._result)
        except Exception as error:
            self.error = error
            self._state = "failed"
            logger.error("the run failed: %s: %s", type(error).__name__, error)
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
        if result.reason in _SIGNALS:
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
                metrics=self.engine.metrics,
                times={"ended": now()},
            )
        except StorageError as error:
            if self.error is None:
                self.error = error
            else:
                self.error.add_note(f"after that, also: {error}")

    async def _record(self, **changes: Any) -> None:
        rundir = self._rundir
        if rundir is not None:
            async with OwnThread("asyncloop run.json") as thread:
                await thread.call(lambda: rundir.update(**changes))


def exit_code_of(result: Result | None, error: BaseException | None) -> int:
    """The command line's exit code for an outcome."""
    if error is not None:
        return code_of(error)
    return _SIGNALS.get(result.reason, 0) if result is not None else 0


@asynccontextmanager
async def open_run(
    source: Source | None = None,
    *,
    set: Overrides = (),
    engine: Engine | None = None,
    output_dir: str | Path | None = None,
    progress: str | None = None,
    own_rng: bool = False,
) -> AsyncGenerator[Run]:
    """Start a run in the background and hand out its handle.

    `source` is a config file or a mapping of the same form, or give an `engine`. Raises ConfigError before anything is
    made on disk. A failing run does not cancel the body: its exception comes from `await run`, or at the end of the
    context if nobody asked. Leaving early (or cancellation) is a stop: the step is finished, the state saved.
    `progress` ("auto", "rich", "plain", "json", "none") chooses the display, whatever the config says.
    """
    if (source is None) == (engine is None):
        raise ConfigError("open_run needs either a config or engine=…, and not both")
    async with AsyncExitStack() as stack:
        rundir = None
        if engine is None:
            assert source is not None
            parts = await _parts(stack, source, set, output_dir)
            engine, rundir = _wire(parts, progress, own_rng), parts.rundir
            await check_variables(engine)
            await _make_directory(parts)
        else:
            if set or progress is not None or own_rng:
                raise ConfigError("set, progress and own_rng belong to a config; give them to the Engine you built")
            rundir = await _directory_of(engine, output_dir)
            if rundir is not None:
                for hook in _always_for(rundir, engine.bus.hooks):
                    engine.bus.add(hook)
                    stack.callback(engine.bus.unsubscribe, hook)
        if rundir is not None:
            stack.callback(rundir.close)
            rundir.open_log()
        live = Run(engine, rundir)
        body_error = await stack.enter_async_context(_background(live))
        try:
            yield live
        except BaseException as error:
            body_error.append(error)
    if body_error:
        if live.error is not None and live.error is not body_error[0]:
            body_error[0].add_note(f"the run failed too: {type(live.error).__name__}: {live.error}")
        raise body_error[0]
    if live.error is not None and not live.asked:
        raise live.error


@asynccontextmanager
async def _background(live: Run) -> AsyncGenerator[list[BaseException]]:
    """The run in a task of its own; leaving waits for its end, stopping it if it is not over."""
    body_error: list[BaseException] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live.drive)
        yield body_error
        if live.state not in ("completed", "stopped", "failed", "interrupted"):
            live.control.stop("its context was left")
        with anyio.CancelScope(shield=True):
            await live.ended()


async def _parts(stack: AsyncExitStack, source: Source, set: Overrides, output_dir: str | Path | None) -> Parts:
    """Load the config (and the user's modules) off the loop, choose the directory, build."""
    async with OwnThread("asyncloop config") as thread:
        config: Config = await thread.call(lambda: load_config(source, set=set))
        exact = None if output_dir is None else Path(output_dir)
        rundir = await thread.call(lambda: RunDir.plan(Path(config.run.root), config.run.name, exact))
    return await stack.enter_async_context(build(config, rundir))


async def _directory_of(engine: Engine, output_dir: str | Path | None) -> RunDir | None:
    """The run directory of an engine that somebody built: exactly its `output_dir`, if it has one."""
    path = output_dir or engine.output_dir
    if path is None:
        return None
    async with OwnThread("asyncloop run directory") as thread:
        rundir = await thread.call(RunDir.plan, Path(), "run", Path(path))
        await thread.call(rundir.create, {}, engine.seed, ())
    engine.output_dir = rundir.path
    engine.run_info = replace(engine.run_info, id=rundir.id, name=rundir.name, dir=rundir.path)
    return rundir


def _wire(parts: Parts, progress: str | None, own_rng: bool) -> Engine:
    """The one place where everything meets."""
    hooks = [*parts.hooks, *_always(parts, progress)]
    if progress is not None:
        hooks = [_with_mode(hook, progress) for hook in hooks]
    settings: dict[str, Any] = parts.config.engine.kwargs()
    settings["own_rng"] = settings.get("own_rng", False) or own_rng
    engine = Engine(
        parts.model, parts.dataset, hooks, **settings, seed=parts.config.run.seed, output_dir=parts.rundir.path
    )
    engine.thread = parts.thread
    engine.run_info = replace(engine.run_info, id=parts.rundir.id, name=parts.rundir.name)
    engine.check_streams()
    return engine


def _always(parts: Parts, progress: str | None) -> Iterable[Any]:
    """The hooks that no config has to name: the trace, the run's own files, and a display if one was asked for."""
    from asyncloop.hooks import ShowProgress

    if progress not in (None, "none") and not any(isinstance(hook, ShowProgress) for hook in parts.hooks):
        yield ShowProgress()
    yield from _always_for(parts.rundir, [(hook, "") for hook in parts.hooks])


def _always_for(rundir: RunDir, hooks: Iterable[tuple[Any, str]]) -> Iterable[Any]:
    from asyncloop.hooks import TrainingTrace

    if not any(isinstance(hook, TrainingTrace) for hook, _ in hooks):
        yield TrainingTrace()
    yield Recorder(rundir)


def _with_mode(hook: Any, mode: str) -> Any:
    from asyncloop.hooks import ShowProgress

    return ShowProgress(mode=mode) if isinstance(hook, ShowProgress) else hook  # pyright: ignore[reportArgumentType]


async def _make_directory(parts: Parts) -> None:
    config, rundir = parts.config, parts.rundir
    files = {"config.toml": config.text, "resolved.toml": dumps(config.resolved)}
    folder = config.path.parent if config.path is not None else None
    async with OwnThread("asyncloop run directory") as thread:
        try:
            await thread.call(rundir.create, files, config.run.seed, config.run.tags)
            if folder is not None:
                await thread.call(rundir.snapshot_code, [folder])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await thread.call(rundir.remove)
            rundir.close()
            raise


async def check(source: Source, *, set: Overrides = ()) -> CheckReport:
    """Everything but training: load, build, one batch of each stream through the model. Makes nothing on disk."""
    async with AsyncExitStack() as stack:
        parts = await _parts(stack, source, set, None)
        engine = _wire(parts, None, own_rng=False)
        report = await dry_run(parts, engine)
        await check_variables(engine)
        return report


_hosts: set[asyncio.Task[None]] = set()


async def start(source: Source | None = None, **options: Any) -> Run:
    """Start a run in the background of a running asyncio loop (a notebook, a server) and return its handle at once.

    Takes what `open_run` takes. ConfigError and failures to build are raised here. `await run` gives the result;
    when nobody does, a failure is logged.
    """
    ready: asyncio.Future[Run] = asyncio.get_running_loop().create_future()

    async def host() -> None:
        try:
            async with open_run(source, **options) as live:
                live.asked = True
                if ready.cancelled():  # nobody waits for the handle any more
                    return
                ready.set_result(live)
                await live.ended()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            elif not ready.cancelled():
                raise

    task = asyncio.create_task(host(), name="asyncloop run")
    _hosts.add(task)  # the loop itself holds tasks only weakly
    task.add_done_callback(_hosts.discard)
    return await ready


def run(source: Source | None = None, **options: Any) -> Result:
    """Run to the end on an event loop of its own (uvloop if installed). Takes what `open_run` takes.

    Owns the process's random state: seeds Python's, numpy's and torch's generators from the run's seed.
    """

    async def main() -> Result:
        async with open_run(source, own_rng=True, **options) as live:
            return await live

    return anyio.run(main, backend_options={"use_uvloop": uvloop_is_there()})


def load_model(run: str | Path, checkpoint: str = "latest") -> Any:
    """The model of a saved run with the weights of a checkpoint, ready for inference, built in the calling thread.

    `run` is a run directory, an id or a unique prefix of one under `runs`, or `latest`; `checkpoint` is `latest`,
    `best` or a step. Raises NothingToResumeError if there is no such run, CheckpointError if the checkpoint is damaged.
    """
    path = find_run(run)
    saved = Checkpoints(path / "checkpoints").read(checkpoint)
    code = path / "code"
    if code.is_dir() and str(code) not in sys.path:
        sys.path.append(str(code))  # behind everything else: the user's own modules win while they are there
    config = load_config(path / "resolved.toml")
    model: Any = config.model.build(dataset=config.dataset.build(output_dir=path), output_dir=path)
    model.load_state_dict(saved.model)
    return model


def uvloop_is_there() -> bool:
    if "uvloop" in sys.modules:
        return True
    try:
        import uvloop  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True
