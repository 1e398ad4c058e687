"""Saved runs put to use: their weights loaded, their model handed out, their streams evaluated. The run is not changed."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from asyncloop.archive import find_run, is_run, read_run
from asyncloop.checkpoint import Checkpoints, Saved, load_weights
from asyncloop.config import Config, dumps, load_config
from asyncloop.engine import Engine, Result
from asyncloop.live import Run, background
from asyncloop.model_thread import ModelThread
from asyncloop.preflight import Parts, build, build_hooks
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir
from asyncloop.stream import check_streams
from asyncloop.threads import OwnThread
from asyncloop.wiring import made, with_display

__all__ = ["init_weights", "load_model", "open_evaluation", "saved_config"]

logger = logging.getLogger("asyncloop")

Overrides = Mapping[str, Any] | Sequence[str]


def load_model(run: str | Path, checkpoint: str = "latest") -> Any:
    """The model of a saved run with the weights of a checkpoint, ready for inference, built in the calling thread.

    `run` is a run directory, an id or a unique prefix of one under `runs`, or `latest`; `checkpoint` is `latest`,
    `best` or a step. Raises NothingToResumeError if there is no such run, CheckpointError if the checkpoint is damaged.
    """
    path = find_run(run)
    saved = Checkpoints(path / "checkpoints").read(checkpoint)
    config = saved_config(path)
    model: Any = config.model.build(dataset=config.dataset.build(output_dir=path), output_dir=path)
    load_weights(model, saved)
    return model


async def init_weights(model: Any, thread: ModelThread, run: str | Path) -> dict[str, Any]:
    """Put the weights of a run (`RUN` or `RUN:CHECKPOINT`) into a model, on its thread; where they came from."""

    def read() -> Saved:
        name, _, checkpoint = (str(run), "", "") if is_run(Path(run)) else str(run).partition(":")
        return Checkpoints(find_run(name) / "checkpoints").read(checkpoint or "latest")

    async with OwnThread("asyncloop reading weights") as reader:
        saved = await reader.call(read)
    await thread.call(load_weights, model, saved)
    return {"checkpoint": saved.path, "step": saved.step}


def saved_config(
    run: Path,
    source: str | Path | Mapping[str, Any] | None = None,
    *,
    set: Overrides = (),
    for_eval: str | None = None,
) -> Config:
    """The config of a saved run (or `source` in its place), with the modules it names imported.

    They come from the folder that the run was started from, while it is there; else from the run's own copy.
    """
    folder, code = read_run(run).record.get("folder"), run / "code"
    folders = [each for each in (Path(folder) if folder else Path(), code) if each.is_dir()]
    if folder and not Path(folder).is_dir():
        logger.warning("%s is gone: classes come from the run's own copy, %s", folder, code)
    if source is not None:
        return load_config(source, set=set, for_eval=for_eval)
    return load_config(run / "resolved.toml", set=set, for_eval=for_eval, folders=folders)


# --- evaluation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """Streams whose sections come to the same config: they are evaluated together."""

    config: Config
    streams: list[str]


@asynccontextmanager
async def open_evaluation(
    run: str | Path,
    streams: Sequence[str],
    *,
    checkpoint: str = "latest",
    config: str | Path | None = None,
    set: Overrides = (),
    output_dir: str | Path | None = None,
    progress: str | None = None,
    own_rng: bool = False,
) -> AsyncGenerator[Run]:
    """One pass of each stream with the weights of a saved run's checkpoint, in the background; the handle on it.

    Each stream is evaluated as its `[eval.<stream>]` says, those with equal sections together. Results go to a
    directory of their own under the run's `eval/` (or to `output_dir`). Never trains, never saves. Raises ConfigError,
    NothingToResumeError and CheckpointError before anything is made.
    """

    def read() -> tuple[Path, Saved, list[_Group], RunDir]:
        path = find_run(run)
        saved = Checkpoints(path / "checkpoints").read(checkpoint)
        groups = _groups(streams, lambda stream: saved_config(path, config, set=set, for_eval=stream))
        exact = None if output_dir is None else Path(output_dir)
        return path, saved, groups, RunDir.plan(path / "eval", "-".join(streams)[:100], exact)

    async with AsyncExitStack() as stack:
        async with OwnThread("asyncloop config") as thread:
            path, saved, groups, rundir = await thread.call(read)
        built = await _built(stack, groups, rundir, saved)
        engines = [(_evaluator(parts, saved, rundir, progress, own_rng), group.streams) for group, parts in built]
        entries = {
            "evaluation": {"run": path.absolute(), "checkpoint": saved.path.name, "streams": list(streams)},
            "seed": groups[0].config.run.seed,
            "tags": groups[0].config.run.tags,
        }
        files = {"config.toml": groups[0].config.text}
        for group, parts in built:
            files[str((parts.rundir.path / "resolved.toml").relative_to(rundir.path))] = dumps(group.config.resolved)
        await made(rundir, files, entries)
        async with background(Run(engines[0][0], rundir, partial(_evaluate, engines)), None) as live:
            yield live


def _groups(streams: Sequence[str], load: Callable[[str], Config]) -> list[_Group]:
    groups: list[_Group] = []
    for stream in dict.fromkeys(streams):
        config = load(stream)
        same = next((group for group in groups if group.config == config), None)
        if same is None:
            groups.append(_Group(config, [stream]))
        else:
            same.streams.append(stream)
    return groups


async def _built(
    stack: AsyncExitStack, groups: Sequence[_Group], rundir: RunDir, saved: Saved
) -> list[tuple[_Group, Parts]]:
    """Dataset and model once for all groups that want the same; hooks for each, in directories of their own if many."""
    built: list[tuple[_Group, Parts]] = []
    for group in groups:
        config = group.config
        own = rundir if len(groups) == 1 else RunDir(rundir.path / group.streams[0], rundir.id, rundir.name)
        same = next((p for g, p in built if (g.config.dataset, g.config.model) == (config.dataset, config.model)), None)
        if same is None:
            parts = await stack.enter_async_context(build(config, own))
            await parts.thread.call(load_weights, parts.model, saved)
        else:
            parts = replace(same, config=config, rundir=own, hooks=await build_hooks(config, same.dataset, own))
        check_streams(parts.dataset, group.streams)
        built.append((group, parts))
    return built


def _evaluator(parts: Parts, saved: Saved, rundir: RunDir, progress: str | None, own_rng: bool) -> Engine:
    settings: dict[str, Any] = parts.config.engine.kwargs()
    settings["own_rng"] = settings.get("own_rng", False) or own_rng
    hooks = [*with_display(parts.hooks, progress), Recorder(rundir)]
    engine = Engine(
        parts.model, parts.dataset, hooks, **settings, seed=parts.config.run.seed, output_dir=parts.rundir.path
    )
    engine.thread, engine.read_only = parts.thread, True
    engine.progress.step = saved.step
    engine.progress.epoch = engine.progress.epochs_done = saved.engine["epochs_done"]
    engine.run_info = replace(engine.run_info, id=rundir.id, name=rundir.name, dir=parts.rundir.path)
    return engine


async def _evaluate(engines: Sequence[tuple[Engine, list[str]]], live: Run) -> Result:
    metrics: dict[str, Mapping[str, Any]] = {}
    result = None
    for engine, streams in engines:
        live.engine = engine
        result = await engine.evaluate(*streams)
        metrics |= result.metrics
        if result.stopped:
            break
    assert result is not None
    reason = result.reason if result.stopped else f"evaluated {', '.join(metrics)}"
    return replace(result, metrics=metrics, reason=reason)
