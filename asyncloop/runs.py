"""Runs: a config (or an Engine) becomes a live run, in the background of a program or on a loop of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from asyncloop.cadence import seconds_of
from asyncloop.checkpoint import Saved
from asyncloop.config import Config, load_config
from asyncloop.engine import Engine, Result
from asyncloop.errors import ConfigError
from asyncloop.evaluation import init_weights
from asyncloop.live import Run, background
from asyncloop.model_thread import ModelThread
from asyncloop.preflight import CheckReport, check_names, dry_run, refuse_untrainable
from asyncloop.processes import as_one, joined, of_first, restarted, shared_directory
from asyncloop.resuming import Resumption, engine_changes, prepare, reopened, take_over
from asyncloop.rundir import RunDir
from asyncloop.threads import off_loop
from asyncloop.wiring import always_for, check_room, make_directory, parts_of, planned, wire
from asyncloop.world import World

__all__ = ["check", "open_run", "run", "start"]

Source = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]


@asynccontextmanager
async def open_run(
    source: Source | None = None,
    *,
    set: Overrides = (),
    engine: Engine | None = None,
    resume: str | Path | None = None,
    checkpoint: str | None = None,
    force: bool = False,
    strict: bool = False,
    init_from: str | Path | None = None,
    output_dir: str | Path | None = None,
    progress: str | None = None,
    max_time: float | str | None = None,
    own_rng: bool = False,
    debug: bool = False,
) -> AsyncGenerator[Run]:
    """Start a run in the background, or go on with one, and hand out its handle.

    `source` is a config file or a mapping of the same form, or give an `engine`. Raises ConfigError before anything is
    made on disk. A failing run does not cancel the body: its exception comes from `await run`, or at the end of the
    context if nobody asked. Leaving early (or cancellation) is a stop: the step is finished, the state saved.

    `resume` is a run that goes on in its own directory with the step after its newest whole checkpoint (or after
    `checkpoint`), with its own config unless `source` gives another. ConfigError names what would lead to other steps;
    `force` lets it, and records it. `strict` refuses a damaged checkpoint instead of taking the one before.
    `init_from` is a run, or RUN:CHECKPOINT, whose weights are the first ones (counters begin at zero).

    `progress` ("auto", "rich", "plain", "json", "none") chooses the display, whatever the config says.
    `max_time` (seconds, "30 min", "2 h") ends the run as interrupted, with everything saved.
    `debug`: a few batches of each stream, all hashed to see whether anybody changes one.
    """
    if engine is not None and (source is not None or set or progress is not None or own_rng or debug or init_from):
        raise ConfigError(
            "set, progress, own_rng, debug and init_from belong to a config; give them to the Engine you built"
        )
    if engine is None and source is None and resume is None:
        raise ConfigError("open_run needs a config, engine=… or resume=…")
    if resume is not None and (init_from is not None or output_dir is not None or debug):
        raise ConfigError(
            "a resumed run goes on in its own directory with its own weights: no init_from, output_dir, debug"
        )
    limit_s = None if max_time is None else seconds_of(max_time)
    options = {"progress": progress, "own_rng": own_rng}
    world: World | None = await off_loop("joining", joined)
    async with AsyncExitStack() as stack:
        with as_one(world):
            if engine is None and resume is None:
                again = partial(_restarted, world, source, set, output_dir)
                resume = await off_loop("opening", again)
            if engine is not None:
                _refuse_lonely(engine, world)
                if resume is not None:
                    reopen = partial(reopened, resume, checkpoint, strict, world)
                    rundir = await _reopened_for(stack, engine, reopen, force)
                else:
                    rundir = await _made_for(stack, engine, output_dir, world)
                await _all_there(world)
            elif resume is not None:
                own = partial(prepare, resume, source, set=set, checkpoint=checkpoint, force=force, strict=strict)
                engine, rundir = await _resumed(stack, partial(own, world=world), options, world)
            else:
                assert source is not None
                load = partial(load_config, source, set=set)
                engine, rundir = await _begun(stack, load, output_dir, init_from, {**options, "debug": debug}, world)
        async with background(Run(engine, rundir), limit_s) as live:
            yield live


async def _begun(
    stack: AsyncExitStack,
    load: Callable[[], Config],
    output_dir: str | Path | None,
    init_from: str | Path | None,
    options: dict[str, Any],
    world: World | None,
) -> tuple[Engine, RunDir]:
    """A new run, with its directory made."""
    config, rundir = await off_loop("opening", planned, load, output_dir, world)
    parts = await parts_of(stack, config, rundir, own_rng=options["own_rng"])
    engine = wire(parts, **options)
    _refuse_lonely(engine, world)
    started_from = None if init_from is None else await init_weights(parts.model, parts.thread, init_from)
    await check_names(parts, engine)
    await check_room(parts)
    marks = {"tags": [*config.run.tags, "debug"]} if options["debug"] else {}
    await make_directory(parts, {"init_from": started_from, **marks})
    await _all_there(world)
    return engine, rundir


def _restarted(world: World | None, source: Source | None, set: Overrides, output_dir: str | Path | None) -> str | None:
    """The run that these processes go on with, because their launcher has started them again."""
    if world is None or source is None:
        return None
    exact = None if output_dir is None else Path(output_dir)
    return of_first(world, lambda: restarted(Path(load_config(source, set=set).run.root), exact))


def _refuse_lonely(engine: Engine, world: World | None) -> None:
    """ConfigError if several processes were started for a model that one trains."""
    if world is not None and getattr(engine.model, "world", None) is None:
        raise ConfigError(
            f"{type(engine.model).__name__} is trained by one process, and {world.size} were started; "
            "asyncloop.torch:TorchModel can be trained by several"
        )


async def _all_there(world: World | None) -> None:
    """Wait until the first process has made the directory."""
    if world is not None:
        await off_loop("opening", world.gather, None)


async def _resumed(
    stack: AsyncExitStack, prepare: Callable[[], Resumption], options: dict[str, Any], world: World | None
) -> tuple[Engine, RunDir]:
    """A run that goes on, with its directory as it was at the checkpoint. Nothing is changed if something is wrong."""
    resumption = await off_loop("opening", prepare)
    stack.callback(resumption.rundir.close)
    restored = resumption.saved is not None
    parts = await parts_of(stack, resumption.config, resumption.rundir, own_rng=options["own_rng"], restored=restored)
    engine = wire(parts, **options)
    _refuse_lonely(engine, world)
    if resumption.saved is not None:
        engine.restore(resumption.saved)
        await engine.load_states(parts.thread)
    elif resumption.began_with is not None:
        await init_weights(parts.model, parts.thread, resumption.began_with)
    await check_names(parts, engine)
    await check_room(parts)
    await off_loop("opening", resumption.take_over)
    await _all_there(world)
    return engine, resumption.rundir


async def _made_for(
    stack: AsyncExitStack, engine: Engine, output_dir: str | Path | None, world: World | None
) -> RunDir | None:
    """A new directory for an engine that somebody built: exactly its `output_dir`, if it has one."""
    path = output_dir or engine.output_dir
    if path is None:
        return None
    rundir = await off_loop("opening", shared_directory, world, partial(RunDir.plan, Path(), "run", Path(path)))
    stack.callback(rundir.close)
    await off_loop("opening", rundir.create, {}, {"seed": engine.seed, "tags": []})
    _belong_together(stack, engine, rundir)
    return rundir


async def _reopened_for(
    stack: AsyncExitStack, engine: Engine, reopen: Callable[[], tuple[RunDir, Saved | None]], force: bool
) -> RunDir:
    """The directory of a run that an engine goes on with. Nothing is changed if something is wrong."""
    rundir, saved = await off_loop("opening", reopen)
    stack.callback(rundir.close)
    changes = {} if saved is None else engine_changes(saved, engine, force=force)
    before = engine.output_dir, engine.run_info
    _belong_together(stack, engine, rundir)
    try:
        if saved is not None:
            engine.restore(saved)
            if engine.thread is None:
                engine.thread = await stack.enter_async_context(ModelThread())
                stack.callback(setattr, engine, "thread", None)
            await engine.load_states(engine.thread)
        await off_loop("opening", take_over, rundir, saved, None, changes)
    except BaseException:
        engine.output_dir, engine.run_info = before
        raise
    return rundir


def _belong_together(stack: AsyncExitStack, engine: Engine, rundir: RunDir) -> None:
    """Let an engine that somebody built write into a run directory, with the hooks that every run has."""
    engine.output_dir = rundir.path
    engine.run_info = replace(engine.run_info, id=rundir.id, name=rundir.name, dir=rundir.path)
    for hook in always_for(rundir, [hook for hook, _ in engine.bus.hooks]):
        engine.bus.add(hook)
        stack.callback(engine.bus.unsubscribe, hook)


async def check(source: Source, *, set: Overrides = ()) -> CheckReport:
    """Everything but training: load, build, one batch of each stream through the model. Makes nothing on disk."""
    async with AsyncExitStack() as stack:
        config, rundir = await off_loop("opening", planned, partial(load_config, source, set=set), None)
        parts = await parts_of(stack, config, rundir)
        engine = wire(parts)
        refuse_untrainable(parts, engine)
        report = await dry_run(parts, engine)
        await check_names(parts, engine, report.batches)
        return report


_hosts: set[asyncio.Task[None]] = set()


async def start(source: Source | None = None, **options: Any) -> Run:
    """Start a run in the background of a running asyncio loop (a notebook, a server) and return its handle at once.

    Takes what `open_run` takes. ConfigError and failures to build are raised here. `await run` gives the result;
    when nobody does, a failure is logged. Cancelling (or interrupting) a wait for the run does not stop the run.
    In a notebook the cell shows a live display, unless `progress` or the run's own ShowProgress says otherwise.
    """
    ready: asyncio.Future[Run] = asyncio.get_running_loop().create_future()

    async def host() -> None:
        try:
            async with open_run(source, **options) as live:
                live.asked = True
                if ready.cancelled():  # nobody waits for the handle any more
                    return
                with _shown_in_cell(live, wanted=options.get("progress") is None):
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


@contextmanager
def _shown_in_cell(live: Run, *, wanted: bool) -> Generator[None]:
    """In a notebook, open the run's display now, as part of the running cell; add one if it is `wanted` and there is none.

    Opened later, in its own thread, it could land in whichever cell runs by then.
    """
    from asyncloop.hooks.progress_screens import in_notebook
    from asyncloop.hooks.show_progress import ShowProgress

    if not in_notebook():
        yield
        return
    bus = live.engine.bus
    shown = [hook for hook, _ in bus.hooks if isinstance(hook, ShowProgress)]
    added = [ShowProgress()] if wanted and not shown else []
    for hook in added:
        bus.add(hook)
    for hook in (*shown, *added):
        hook.open(live.engine.run_info)
    try:
        yield
    finally:
        for hook in (*shown, *added):  # one that failed before it began has told its hooks nothing
            hook.end(f"{live.state}: {live.error or 'ended before it began'}", live.progress.epoch, live.progress.step)
        for hook in added:
            bus.unsubscribe(hook)


def run(source: Source | None = None, **options: Any) -> Result:
    """Run to the end on an event loop of its own (uvloop if installed). Takes what `open_run` takes.

    Owns the process's random state: seeds Python's, numpy's and torch's generators from the run's seed. With an
    `engine` that is for the engine to say.
    """
    own: dict[str, Any] = {"own_rng": options.get("engine") is None, **options}

    async def main() -> Result:
        async with open_run(source, **own) as live:
            return await live

    return anyio.run(main, backend_options={"use_uvloop": uvloop_is_there()})


def uvloop_is_there() -> bool:
    if "uvloop" in sys.modules:
        return True
    try:
        import uvloop  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True
