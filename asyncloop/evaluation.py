"""Saved runs put to use: their weights loaded, their model handed out, their streams evaluated. The run is not changed."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from asyncloop.archive import find_run, is_run, read_run
from asyncloop.checkpoint import Checkpoints, Saved, load_weights
from asyncloop.config import Component, Config, InvalidConfig, dumps, import_object, load_config
from asyncloop.config.components import OFFERED
from asyncloop.config.signature import Constructor
from asyncloop.engine import Engine, Result
from asyncloop.errors import CheckpointError
from asyncloop.live import Run, background
from asyncloop.model_thread import ModelThread
from asyncloop.preflight import Parts, build, build_hooks
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir
from asyncloop.stream import check_streams
from asyncloop.threads import off_loop
from asyncloop.wiring import engine_of, made, with_display

__all__ = ["init_weights", "load_model", "open_evaluation", "saved_config"]

logger = logging.getLogger("asyncloop")

Overrides = Mapping[str, Any] | Sequence[str]


def load_model(run: str | Path, checkpoint: str = "latest", *, dataset: Any = None) -> Any:
    """The model of a saved run with the weights of a checkpoint, ready for inference, built in the calling thread.

    `run` is a run directory, an id or a unique prefix of one under `runs`, or `latest`; `checkpoint` is `latest`,
    `best` or a step. A model whose constructor names `dataset` gets the given one, or else the run's own, built anew.
    If its class is gone, the one that it named as `restore_fallback` takes its place, with a warning.
    Raises NothingToResumeError if there is no such run, CheckpointError if the checkpoint is damaged.
    """
    path = find_run(run)
    found = _read(path, checkpoint)
    component, own_dataset = _model_and_dataset(path, _fallback_of(found))
    saved = _needed(found, component)
    if dataset is None and "dataset" in component.accepts:
        dataset = own_dataset().build(output_dir=path)
    model: Any = component.build(dataset=dataset, output_dir=path)
    if saved is not None:
        load_weights(model, saved)
    return model


def _read(path: Path, checkpoint: str) -> Saved | CheckpointError:
    """A checkpoint, or what is wrong with it: that depends on the model, which may not need one."""
    try:
        return Checkpoints(path / "checkpoints").read(checkpoint)
    except CheckpointError as error:
        return error


def _needed(found: Saved | CheckpointError, *models: Component) -> Saved | None:
    """The checkpoint that weights are loaded from; None for models that have none of their own (an ensemble)."""
    if all(getattr(model.cls, "has_no_weights", False) for model in models):
        return None
    if isinstance(found, CheckpointError):
        raise found
    return found


def _model_and_dataset(path: Path, fallback: str | None) -> tuple[Component, Callable[[], Component]]:
    """The model of a run, and its dataset, which may be gone as long as nobody asks for it."""
    try:
        config = saved_config(path)
        return config.model, lambda: config.dataset
    except InvalidConfig as error:
        gone, document = error, _restored(path, error, fallback)
        if document is None:
            raise
    is_lost = any(each.key.partition(".")[0] == "dataset" for each in gone.details)
    dataset = {"class": f"{__name__}:{_LostDataset.__name__}"} if is_lost else document["dataset"]
    needed = {"run": document["run"], "dataset": dataset, "model": document["model"]}
    restored = load_config(needed, folders=_folders(path)[0])

    def own_dataset() -> Component:
        if is_lost:
            raise gone
        return restored.dataset

    return restored.model, own_dataset


class _LostDataset:
    """Stands where a dataset stood that cannot be built any more, while the model is restored without it."""


# --- a class that is gone -----------------------------------------------------------------------------------------


def _fallback_of(found: Saved | CheckpointError) -> str | None:
    """The class that the model named as its `restore_fallback` when the checkpoint was written."""
    return None if isinstance(found, CheckpointError) else found.engine.get("restore_fallback")


def _is_gone(error: InvalidConfig) -> bool:
    """Whether the model's class is missing because its module or its name is; not if importing it fails."""
    return any(each.key == "model.class" and each.cause is None for each in error.details)


def _restored(path: Path, error: InvalidConfig, fallback: str | None) -> dict[str, Any] | None:
    """The run's resolved config with the fallback as its model, and of [model] the keys that this one takes.

    None if it is not due. Warns. A fallback that cannot be imported either is noted on `error`.
    """
    if fallback is None or not _is_gone(error):
        return None
    try:
        takes = Constructor.of(cast(Callable[..., object], import_object(fallback, kind="model")))
    except InvalidConfig as second:
        error.add_note(f"its restore_fallback cannot be imported either: {second}")
        return None
    document = tomllib.loads((path / "resolved.toml").read_text(encoding="utf-8"))
    table = document["model"]
    document["model"] = {**_taken(table, takes), "class": fallback}
    for section in document.get("eval", {}).values():
        if "model" in section and section["model"].get("class", table["class"]) == table["class"]:
            section["model"] = _taken(section["model"], takes)
    left_out = [name for name in table if name not in document["model"]]
    without = f" without {', '.join(left_out)}, which it does not take" if left_out else ""
    logger.warning("%s: the model's class %s is gone; restored as %s%s", path, table["class"], fallback, without)
    return document


def _taken(table: Mapping[str, Any], takes: Constructor) -> dict[str, Any]:
    """The arguments in a [model] table that a constructor takes."""
    names = takes.parameters.keys() - OFFERED["model"]
    return {name: value for name, value in table.items() if name != "class" and (name in names or takes.open)}


async def init_weights(model: Any, thread: ModelThread, run: str | Path) -> dict[str, Any]:
    """Put the weights of a run (`RUN` or `RUN:CHECKPOINT`) into a model, on its thread; where they came from."""

    def read() -> Saved:
        name, _, checkpoint = (str(run), "", "") if is_run(Path(run)) else str(run).partition(":")
        return Checkpoints(find_run(name) / "checkpoints").read(checkpoint or "latest")

    saved: Saved = await off_loop("reading weights", read)
    await thread.call(load_weights, model, saved)
    return {"checkpoint": saved.path, "step": saved.step}


def saved_config(
    run: Path,
    source: str | Path | Mapping[str, Any] | None = None,
    *,
    set: Overrides = (),
    for_eval: str | None = None,
    fallback: str | None = None,
) -> Config:
    """The config of a saved run (or `source` in its place), with the modules it names imported.

    They come from the folder that the run was started from, while it is there; else from the run's own copy.
    `fallback` takes the place of a model's class that is gone, with a warning.
    """
    folders, lost = _folders(run)
    if lost is not None:
        logger.warning("%s is gone: classes come from the run's own copy, %s", lost, run / "code")
    if source is not None:
        return load_config(source, set=set, for_eval=for_eval)
    try:
        return load_config(run / "resolved.toml", set=set, for_eval=for_eval, folders=folders)
    except InvalidConfig as error:
        document = _restored(run, error, fallback)
        if document is None:
            raise
        return load_config(document, set=set, for_eval=for_eval, folders=folders)


def _folders(run: Path) -> tuple[list[Path], Path | None]:
    """Where a run's modules come from, those that are there; and the folder it was started from, if that is gone."""
    folder = read_run(run).record.get("folder")
    folders = [each for each in (Path(folder) if folder else Path(), run / "code") if each.is_dir()]
    return folders, Path(folder) if folder and not Path(folder).is_dir() else None


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

    def read() -> tuple[Path, Saved | None, list[_Group], RunDir]:
        path = find_run(run)
        found = _read(path, checkpoint)
        own = partial(saved_config, path, config, set=set, fallback=_fallback_of(found))
        groups = _groups(streams, lambda stream: own(for_eval=stream))
        saved = _needed(found, *(group.config.model for group in groups))
        exact = None if output_dir is None else Path(output_dir)
        return path, saved, groups, RunDir.plan(path / "eval", "-".join(streams)[:100], exact)

    async with AsyncExitStack() as stack:
        path, saved, groups, rundir = await off_loop("config", read)
        built = await _built(stack, groups, rundir, saved)
        engines = [(_evaluator(parts, saved, rundir, progress, own_rng), group.streams) for group, parts in built]
        name = None if saved is None else saved.path.name
        entries = {
            "evaluation": {"run": path.absolute(), "checkpoint": name, "streams": list(streams)},
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
    stack: AsyncExitStack, groups: Sequence[_Group], rundir: RunDir, saved: Saved | None
) -> list[tuple[_Group, Parts]]:
    """Dataset and model once for all groups that want the same; hooks for each, in directories of their own if many."""
    built: list[tuple[_Group, Parts]] = []
    for group in groups:
        config = group.config
        own = rundir if len(groups) == 1 else RunDir(rundir.path / group.streams[0], rundir.id, rundir.name)
        same = next((p for g, p in built if (g.config.dataset, g.config.model) == (config.dataset, config.model)), None)
        if same is None:
            parts = await stack.enter_async_context(build(config, own))
            if saved is not None and not getattr(parts.model, "has_no_weights", False):
                await parts.thread.call(load_weights, parts.model, saved)
        else:
            parts = replace(same, config=config, rundir=own, hooks=await build_hooks(config, same.dataset, own))
        check_streams(parts.dataset, group.streams)
        built.append((group, parts))
    return built


def _evaluator(parts: Parts, saved: Saved | None, rundir: RunDir, progress: str | None, own_rng: bool) -> Engine:
    hooks = [*with_display(parts.hooks, progress), Recorder(rundir)]
    engine = engine_of(parts, parts.model, hooks, parts.config.engine.kwargs(), own_rng=own_rng)
    engine.read_only = True
    if saved is not None:
        engine.progress.step = saved.step
        engine.progress.epoch = engine.progress.epochs_done = saved.engine["epochs_done"]
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
