"""Runs: a config (or an Engine) becomes a live run, in the background of a program or on a loop of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from asyncloop.cadence import seconds_of
from asyncloop.config import load_config
from asyncloop.engine import Engine, Result
from asyncloop.errors import ConfigError
from asyncloop.evaluation import load_weights
from asyncloop.live import Run, background
from asyncloop.preflight import CheckReport, check_names, dry_run
from asyncloop.rundir import RunDir
from asyncloop.threads import OwnThread
from asyncloop.wiring import always_for, make_directory, parts_of, wire

__all__ = ["check", "open_run", "run", "start"]

Source = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]


@asynccontextmanager
async def open_run(
    source: Source | None = None,
    *,
    set: Overrides = (),
    engine: Engine | None = None,
    init_from: str | Path | None = None,
    output_dir: str | Path | None = None,
    progress: str | None = None,
    max_time: float | str | None = None,
    own_rng: bool = False,
    debug: bool = False,
) -> AsyncGenerator[Run]:
    """Start a run in the background and hand out its handle.

    `source` is a config file or a mapping of the same form, or give an `engine`. Raises ConfigError before anything is
    made on disk. A failing run does not cancel the body: its exception comes from `await run`, or at the end of the
    context if nobody asked. Leaving early (or cancellation) is a stop: the step is finished, the state saved.

    `init_from` is a run, or RUN:CHECKPOINT, whose weights are the first ones (counters begin at zero).
    `progress` ("auto", "rich", "plain", "json", "none") chooses the display, whatever the config says.
    `max_time` (seconds, "30 min", "2 h") ends the run as interrupted, with everything saved.
    `debug`: a few batches of each stream, all hashed to see whether anybody changes one.
    """
    if (source is None) == (engine is None):
        raise ConfigError("open_run needs either a config or engine=…, and not both")
    limit_s = None if max_time is None else seconds_of(max_time)
    async with AsyncExitStack() as stack:
        rundir = None
        if source is not None:
            load = partial(load_config, source, set=set)
            parts = await parts_of(stack, load, output_dir, own_rng=own_rng)
            engine, rundir = wire(parts, progress=progress, own_rng=own_rng, debug=debug), parts.rundir
            started_from = None if init_from is None else await load_weights(parts.model, parts.thread, init_from)
            await check_names(parts.config, engine)
            marks = {"tags": [*parts.config.run.tags, "debug"]} if debug else {}
            await make_directory(parts, {"init_from": started_from, **marks})
        else:
            assert engine is not None
            if set or progress is not None or own_rng or debug or init_from is not None:
                raise ConfigError(
                    "set, progress, own_rng, debug and init_from belong to a config; give them to the Engine you built"
                )
            rundir = await _directory_of(engine, output_dir)
            if rundir is not None:
                for hook in always_for(rundir, [hook for hook, _ in engine.bus.hooks]):
                    engine.bus.add(hook)
                    stack.callback(engine.bus.unsubscribe, hook)
        async with background(Run(engine, rundir), limit_s) as live:
            yield live


async def _directory_of(engine: Engine, output_dir: str | Path | None) -> RunDir | None:
    """The run directory of an engine that somebody built: exactly its `output_dir`, if it has one."""
    path = output_dir or engine.output_dir
    if path is None:
        return None
    async with OwnThread("asyncloop run directory") as thread:
        rundir = await thread.call(RunDir.plan, Path(), "run", Path(path))
        await thread.call(rundir.create, {}, {"seed": engine.seed, "tags": []})
    engine.output_dir = rundir.path
    engine.run_info = replace(engine.run_info, id=rundir.id, name=rundir.name, dir=rundir.path)
    return rundir


async def check(source: Source, *, set: Overrides = ()) -> CheckReport:
    """Everything but training: load, build, one batch of each stream through the model. Makes nothing on disk."""
    async with AsyncExitStack() as stack:
        parts = await parts_of(stack, partial(load_config, source, set=set), None)
        engine = wire(parts)
        report = await dry_run(parts, engine)
        await check_names(parts.config, engine)
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

    Owns the process's random state: seeds Python's, numpy's and torch's generators from the run's seed.
    """

    async def main() -> Result:
        async with open_run(source, own_rng=True, **options) as live:
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
