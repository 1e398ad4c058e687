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
from asyncloop.config import Component, Config, InvalidConfig, dumps, load_config
from asyncloop.engine import Engine, Result
from asyncloop.errors import CheckpointError, ConfigError
from asyncloop.kept_outputs import (
    REPLAYED,
    KeepOutputs,
    KeptDataset,
    KeptModel,
    KeptStream,
    Overheard,
    check_variables,
    find_kept,
)
from asyncloop.live import Run, background
from asyncloop.model_thread import ModelThread
from asyncloop.preflight import Parts, build, build_hooks, check_names
from asyncloop.processes import as_one, joined, shared_directory
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir
from asyncloop.saved_config import SavedConfig
from asyncloop.stream import check_streams
from asyncloop.threads import off_loop
from asyncloop.wiring import engine_of, made, with_display
from asyncloop.world import World

__all__ = ["init_weights", "load_model", "open_evaluation"]

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
    component, own_dataset = _model_and_dataset(SavedConfig(path, _fallback_of(found)))
    saved = _needed(found, component)
    if dataset is None and "dataset" in component.accepts:
        dataset = own_dataset().build(output_dir=path)
    model: Any = component.build(dataset=dataset, output_dir=path, restored=saved is not None)
    if saved is not None:
        load_weights(model, saved)
    if callable(getattr(model, "eval", None)):
        model.eval()
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


def _model_and_dataset(stored: SavedConfig) -> tuple[Component, Callable[[], Component]]:
    """The model of a run, and its dataset, which may be gone as long as nobody asks for it."""
    try:
        config = stored.load()
        return config.model, lambda: config.dataset
    except InvalidConfig as error:
        gone, document = error, stored.restored
        if document is None:
            raise
    is_lost = any(each.key.partition(".")[0] == "dataset" for each in gone.details)
    dataset = {"class": f"{__name__}:{_LostDataset.__name__}"} if is_lost else document["dataset"]
    needed = {"run": document["run"], "dataset": dataset, "model": document["model"]}
    restored = load_config(needed, folders=stored.folders)

    def own_dataset() -> Component:
        if is_lost:
            raise gone
        return restored.dataset

    return restored.model, own_dataset


class _LostDataset:
    """Stands where a dataset stood that cannot be built any more, while the model is restored without it."""


def _fallback_of(found: Saved | CheckpointError) -> str | None:
    """The class that the model named as its `restore_fallback` when the checkpoint was written."""
    return None if isinstance(found, CheckpointError) else found.engine.get("restore_fallback")


async def init_weights(model: Any, thread: ModelThread, run: str | Path) -> dict[str, Any]:
    """Put the weights of a run (`RUN` or `RUN:CHECKPOINT`) into a model, on its thread; where they came from."""

    def read() -> Saved:
        whole = is_run(Path(run)) or ":" not in str(run)
        name, _, checkpoint = (str(run), "", "latest") if whole else str(run).rpartition(":")
        return Checkpoints(find_run(name) / "checkpoints").read(checkpoint)

    saved: Saved = await off_loop("reading weights", read)
    await thread.call(_begin_with, model, saved)
    return {"checkpoint": saved.path.absolute(), "step": saved.step}


def _begin_with(model: Any, saved: Saved) -> None:
    """Give a model what was learned, by its `load_weights`; without one it takes the whole state."""
    only_weights = getattr(model, "load_weights", None)
    if only_weights is None:
        load_weights(model, saved)
        return
    try:
        only_weights(saved.model)
    except Exception as error:
        error.add_note(f"loading the weights of {saved.path}")
        raise


# --- evaluation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """Streams whose sections come to the same config: they are evaluated together."""

    config: Config
    streams: list[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is evaluated: streams with the weights of a checkpoint, or with outputs that were kept before."""

    run: Path
    checkpoint: str | None
    saved: Saved | None
    kept: Mapping[str, KeptStream]
    groups: list[_Group]
    rundir: RunDir
    streams: list[str]
    """As they were asked for."""

    @property
    def step_and_epochs(self) -> tuple[int, int]:
        """Where the run stood when the weights were saved."""
        for own in self.kept.values():
            return own.index["step"], own.index["epoch"]
        return (0, 0) if self.saved is None else (self.saved.step, self.saved.engine["epochs_done"])

    @property
    def entries(self) -> dict[str, Any]:
        """What run.json says about it."""
        checkpoint = self.checkpoint
        about: dict[str, Any] = {"run": self.run.absolute(), "checkpoint": checkpoint, "streams": self.streams}
        if self.saved is not None:
            about["weights"] = Checkpoints(self.saved.path.parent).fingerprint(self.saved.path.name)
        if self.kept:
            about["outputs_of"] = {stream: own.evaluation for stream, own in self.kept.items()}
        run = self.groups[0].config.run
        return {"evaluation": about, "seed": run.seed, "tags": run.tags}


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
    keep_outputs: bool = False,
    callbacks_only: bool = False,
) -> AsyncGenerator[Run]:
    """One pass of each stream with the weights of a saved run's checkpoint, in the background; the handle on it.

    Each stream is evaluated as its `[eval.<stream>]` says, those with equal sections together. Results go to a
    directory of their own under the run's `eval/` (or to `output_dir`). Never trains, never saves. Raises ConfigError,
    NothingToResumeError and CheckpointError before anything is made.

    `keep_outputs` writes the batches and what the model gave for them there, too. `callbacks_only` runs the hooks over
    what was kept last for that checkpoint, without building the model.
    """
    if keep_outputs and (callbacks_only or output_dir is not None):
        raise ConfigError(
            "outputs are kept beside the run, where callbacks_only finds them, and need a model: "
            "keep_outputs goes without output_dir and without callbacks_only"
        )

    world: World | None = await off_loop("joining", joined)
    if world is not None and (keep_outputs or callbacks_only):
        raise ConfigError("outputs are kept, and run over again, by one process: start it without torchrun or srun")

    def plan() -> _Plan:
        path = find_run(run)
        exact = None if output_dir is None else Path(output_dir)
        rundir = shared_directory(world, lambda: RunDir.plan(path / "eval", "-".join(streams)[:100], exact))
        if callbacks_only:
            kept = {stream: find_kept(path, stream, checkpoint) for stream in streams}
            load = partial(SavedConfig(path).load, config, set=_also(set, "model.class", KeptModel.class_in_config))
            own = kept[streams[0]].checkpoint
            return _Plan(path, own, None, kept, _groups(streams, load), rundir, list(streams))
        found = _read(path, checkpoint)
        groups = _groups(streams, partial(SavedConfig(path, _fallback_of(found)).load, config, set=set))
        saved = _needed(found, *(group.config.model for group in groups))
        if saved is not None and read_run(path).state == "failed":
            logger.warning("%s has failed; these are its weights of step %d", path, saved.step)
        return _Plan(path, None if saved is None else saved.path.name, saved, {}, groups, rundir, list(streams))

    async with AsyncExitStack() as stack:
        with as_one(world):
            planned = await off_loop("config", plan)
            rundir = planned.rundir
            built = await _built(stack, planned)
            engines = [
                (_evaluator(parts, planned, progress, own_rng, keep_outputs), group.streams) for group, parts in built
            ]
            if planned.kept:
                for engine, own in engines:
                    check_variables(engine.bus.hooks, {stream: planned.kept[stream] for stream in own})
            else:
                await _check_names([parts for _, parts in built], engines)
        files = {"config.toml": planned.groups[0].config.text}
        for group, parts in built:
            files[str((parts.rundir.path / "resolved.toml").relative_to(rundir.path))] = dumps(group.config.resolved)
        await made(rundir, files, planned.entries)
        async with background(Run(engines[0][0], rundir, partial(_evaluate, engines)), None) as live:
            yield live


def _also(set: Overrides, key: str, value: str) -> Overrides:
    """The overrides with one more, which wins."""
    if isinstance(set, Mapping):
        return {**set, key: value}
    return [*([set] if isinstance(set, str) else set), f"{key}={value}"]


def _groups(streams: Sequence[str], load: Callable[..., Config]) -> list[_Group]:
    groups: list[_Group] = []
    for stream in dict.fromkeys(streams):
        config = load(for_eval=stream)
        same = next((group for group in groups if group.config == config), None)
        if same is None:
            groups.append(_Group(config, [stream]))
        else:
            same.streams.append(stream)
    return groups


async def _built(stack: AsyncExitStack, plan: _Plan) -> list[tuple[_Group, Parts]]:
    """Dataset and model once for all groups that want the same; hooks for each, in directories of their own if many."""
    built: list[tuple[_Group, Parts]] = []
    rundir, saved = plan.rundir, plan.saved
    for group in plan.groups:
        config = group.config
        own = rundir if len(plan.groups) == 1 else rundir.inside(group.streams[0])
        same = next((p for g, p in built if (g.config.dataset, g.config.model) == (config.dataset, config.model)), None)
        if same is None:
            parts = await stack.enter_async_context(build(config, own, restored=plan.saved is not None))
            if saved is not None and not getattr(parts.model, "has_no_weights", False):
                await parts.thread.call(load_weights, parts.model, saved)
        else:
            parts = replace(same, config=config, rundir=own, hooks=await build_hooks(config, same.dataset, own))
        check_streams(parts.dataset, group.streams)
        built.append((group, parts))
    return built


def _evaluator(parts: Parts, plan: _Plan, progress: str | None, own_rng: bool, keeps: bool) -> Engine:
    hooks = [*with_display(parts.hooks, progress), Recorder(plan.rundir)]
    settings, model, dataset = parts.config.engine.kwargs(), parts.model, parts.dataset
    if plan.kept:
        model.kept, dataset, settings = plan.kept, KeptDataset(plan.kept, dataset), {**settings, **REPLAYED}
    elif keeps:
        model = Overheard(model)
        hooks.insert(0, KeepOutputs(plan.rundir.path / "outputs", model))
    engine = engine_of(replace(parts, dataset=dataset), model, hooks, settings, own_rng=own_rng)
    engine.run_info = replace(engine.run_info, dataset=parts.dataset)
    engine.read_only = True
    engine.progress.step, engine.progress.epochs_done = plan.step_and_epochs
    engine.progress.epoch = engine.progress.epochs_done
    return engine


async def _check_names(all_parts: Sequence[Parts], engines: Sequence[tuple[Engine, list[str]]]) -> None:
    """`check_names` for engines that do not train, each with its own streams. A dataset is entered once for all."""
    opened: list[Any] = []
    for parts, (engine, streams) in zip(all_parts, engines, strict=True):
        parts.dataset_is_open = any(parts.dataset is each for each in opened)
        await check_names(parts, engine, evaluates=streams)
        if parts.dataset_is_open:
            opened.append(parts.dataset)
    for parts, (engine, _) in zip(all_parts, engines, strict=True):
        engine.dataset_is_open = any(parts.dataset is each for each in opened)


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
