"""Wiring: a config and what it builds become an Engine with a run directory. The one place where everything meets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio

from asyncloop import rng
from asyncloop.blame import is_others
from asyncloop.config import Component, Config, dumps
from asyncloop.engine import Engine
from asyncloop.errors import StorageError
from asyncloop.preflight import Parts, build
from asyncloop.processes import shared_directory
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir
from asyncloop.snapshot import copy_modules
from asyncloop.states import bytes_of
from asyncloop.storage import is_dir, storage_errors
from asyncloop.threads import OwnThread, off_loop
from asyncloop.world import World

__all__ = [
    "always_for",
    "check_room",
    "engine_of",
    "made",
    "make_directory",
    "parts_of",
    "planned",
    "wire",
    "with_display",
]


_SPARE = 2**20
"""Bytes for everything that is not the model's state."""


def planned(
    load: Callable[[], Config], output_dir: str | Path | None, world: World | None = None
) -> tuple[Config, RunDir]:
    """The config, and a new directory for its run. Blocks, and imports the user's modules."""
    config = load()
    exact = None if output_dir is None else Path(output_dir)
    return config, shared_directory(world, lambda: RunDir.plan(Path(config.run.root), config.run.name, exact))


async def parts_of(
    stack: AsyncExitStack, config: Config, rundir: RunDir, *, own_rng: bool = False, restored: bool = False
) -> Parts:
    """Build what the config names. `own_rng`: seed the global generators before. `restored`: see `build`."""
    if own_rng or config.engine.own_rng:
        rng.seed_globals(config.run.seed)
    return await stack.enter_async_context(build(config, rundir, restored=restored))


def wire(parts: Parts, *, progress: str | None = None, own_rng: bool = False, debug: bool = False) -> Engine:
    """The engine of a run. Raises ConfigError if the dataset lacks a stream that the config names."""
    settings: dict[str, Any] = parts.config.engine.kwargs()
    hooks = with_display(parts.hooks, progress)
    hooks += always_for(parts.rundir, hooks)
    guard, model = None, parts.model
    if debug:
        from asyncloop.debugging import BatchGuard, few

        settings = few(settings)
        guard = BatchGuard(parts.hooks)
        model = guard.guard(parts.model)
        hooks.append(guard)
    with parts.config.places.named():
        engine = engine_of(parts, model, hooks, settings, own_rng=own_rng)
        engine.check_streams()
    engine.seeded = engine.own_rng
    engine.watched = guard.watched if guard is not None else None
    return engine


def engine_of(parts: Parts, model: Any, hooks: Sequence[Any], settings: Mapping[str, Any], *, own_rng: bool) -> Engine:
    """The engine for these parts, on the thread the model was built on. Raises ConfigError."""
    given: dict[str, Any] = {**settings, "own_rng": settings.get("own_rng", False) or own_rng}
    engine = Engine(model, parts.dataset, hooks, **given, seed=parts.config.run.seed, output_dir=parts.rundir.path)
    engine.thread = parts.thread
    engine.run_info = replace(engine.run_info, id=parts.rundir.id, name=parts.rundir.name)
    return engine


def with_display(hooks: Sequence[Any], progress: str | None) -> list[Any]:
    """The hooks with the display that `progress` asks for, whatever the config says; None leaves it to the config."""
    from asyncloop.hooks import ShowProgress

    if progress is None:
        return list(hooks)
    shown = [ShowProgress(mode=progress) if isinstance(hook, ShowProgress) else hook for hook in hooks]  # pyright: ignore[reportArgumentType]
    if progress != "none" and not any(isinstance(hook, ShowProgress) for hook in hooks):
        shown.append(ShowProgress(mode=progress))  # pyright: ignore[reportArgumentType]
    return shown


def always_for(rundir: RunDir, hooks: Iterable[Any]) -> list[Any]:
    """The hooks that no config has to name: the trace and the run's own files."""
    from asyncloop.hooks import TrainingTrace

    trace = [] if any(isinstance(hook, TrainingTrace) for hook in hooks) else [TrainingTrace()]
    return [*trace, Recorder(rundir)]


async def make_directory(parts: Parts, entries: Mapping[str, Any]) -> None:
    """Make the run directory with the config, the code and `entries` in run.json, whole or not at all."""
    config = parts.config
    files = {"config.toml": config.text, "resolved.toml": dumps(config.resolved)}
    folder = (Path() if config.path is None else config.path.parent).absolute()
    own = {"seed": config.run.seed, "tags": config.run.tags, "folder": folder}
    await made(parts.rundir, files, {**own, **entries}, partial(_copy_code, config, folder, parts.rundir))


async def made(
    rundir: RunDir, files: Mapping[str, str], entries: Mapping[str, Any], then: Callable[[], None] | None = None
) -> None:
    """Make a run directory, and `then` what else belongs into it, whole or not at all."""
    async with OwnThread("asyncloop run directory") as thread:
        try:
            await thread.call(rundir.create, files, entries)
            if then is not None:
                await thread.call(then)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await thread.call(rundir.remove)
            rundir.close()
            raise


def _copy_code(config: Config, folder: Path, rundir: RunDir) -> None:
    """Copy the config's folder, and the modules from the current directory that are not in it. Blocks."""
    if rundir.is_anothers:
        return
    rundir.snapshot_code([folder])
    cwd, folder = Path.cwd().resolve(), folder.resolve()
    modules = _modules_below(cwd, [config.dataset, config.model, *config.hooks])
    copied = copy_modules(modules, cwd, folder, rundir.path / "code", rundir.path)
    copied.pop(str(folder), None)
    if copied:
        rundir.update(imported=copied)


def _modules_below(cwd: Path, components: Iterable[Component]) -> list[Path]:
    """Files and packages of the user's top-level modules below `cwd`: those of the components, and what was imported
    from `cwd` itself, which they may need."""
    classes = [(str(each.settings["class"]).partition(":")[0], str(each.cls.__module__)) for each in components]
    own = {name.partition(".")[0] for names in classes for name in names}
    found = {
        place: None
        for name, module in sorted(sys.modules.copy().items())
        if name.isidentifier() and name != "__main__"
        for place in _places_of(module)
        if place.parent == cwd or (name in own and cwd in place.parents)
        if is_others(str(place)) and not {"site-packages", "dist-packages"} & set(place.parts)
    }
    return list(found)


def _places_of(module: ModuleType) -> list[Path]:
    """The file of a module, or the directories of a package, which may be several; links to them are left as links."""
    folders, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    paths: Iterable[str] = folders if folders is not None else [file] if file and file.endswith(".py") else []
    return [Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths]


async def check_room(parts: Parts) -> None:
    """StorageError if the disk has no room for two checkpoints: one is written while the one before stays."""
    needed = 2 * await parts.thread.call(lambda: bytes_of(parts.model.state_dict())) + _SPARE
    if parts.rundir.is_anothers:
        return

    def free() -> tuple[Path, int]:
        with storage_errors("look for room for", parts.rundir.path):
            there = next(each for each in (parts.rundir.path, *parts.rundir.path.parents) if is_dir(each))
            return there, shutil.disk_usage(there).free

    there, n_free = await off_loop("room", free)
    if n_free < needed:
        raise StorageError(
            f"no room for {parts.rundir.path}: {there} has {n_free:,} bytes free, and two checkpoints of this model need {needed:,}; "
            "free some space, or choose another directory (run.root, --output-dir)"
        )
