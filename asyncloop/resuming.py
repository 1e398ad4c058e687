"""Resuming: a run directory, its newest whole checkpoint, and a config that leads to the same steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncloop.archive import find_run, flattened, run_in
from asyncloop.checkpoint import Checkpoints, Saved
from asyncloop.config import Component, Config, dumps
from asyncloop.engine import Engine
from asyncloop.errors import ConfigError, NothingToResumeError
from asyncloop.processes import shared_directory
from asyncloop.rundir import RunDir
from asyncloop.saved_config import SavedConfig, check_stored
from asyncloop.world import World

__all__ = ["Resumption", "changes_between", "engine_changes", "prepare", "reopened", "take_over", "training_run"]

logger = logging.getLogger("asyncloop")

_MAY_CHANGE = frozenset(
    {"epochs", "steps", "buffer", "deadlines", "extra_streams", "evaluate_every", "skip_zeroth_epoch"}
    | {"on_empty_batch", "on_empty_stream", "on_unused_sources", "on_nonfinite"}
)
"""Keys of [engine] that decide how long and how fast a run goes, or what is looked at, but not what a step does."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run about to go on; owns the lock of its directory. `saved` is None if it had not come to a checkpoint."""

    config: Config
    rundir: RunDir
    saved: Saved | None
    changes: Mapping[str, Sequence[Any]]
    """Dotted key → value before and now, of all that is different."""

    @property
    def began_with(self) -> str | None:
        """RUN:CHECKPOINT whose weights were the first ones."""
        found = self.rundir.entry("init_from")
        path = Path(found["checkpoint"]) if found else None
        return None if path is None else f"{path.parents[1]}:{path.name}"

    def take_over(self) -> None:
        """Cut the run's files to the checkpoint and put the config as it is now into the directory. Blocks."""
        take_over(self.rundir, self.saved, {"resolved.toml": dumps(self.config.resolved)}, self.changes)


def take_over(
    rundir: RunDir,
    saved: Saved | None,
    files: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Bring the directory back to the checkpoint, or to nothing. Blocks."""
    rundir.reopened()  # killed from here on, it is a run that has not ended
    if saved is None:
        rundir.take_over(0, None, files or {}, checkpoint=None, changes=changes or {})
    else:
        lines = saved.hooks.get("Recorder", {}).get("lines", {})
        if not rundir.is_anothers:  # before any file is cut: killed in between, a resume goes on from here all the same
            Checkpoints(rundir.path / "checkpoints").go_back(saved.path.name)
        rundir.take_over(saved.step, lines, files or {}, checkpoint=saved.path.name, changes=changes or {})


def training_run(run: str | Path) -> Path:
    """The directory of a run that trains. NothingToResumeError if there is none, or if it is an evaluation's. Blocks."""
    path = find_run(run)
    about = run_in(path).table("evaluation")
    if about:
        again = " ".join(["asyncloop eval", *about.get("streams", ()), str(about.get("run", "RUN"))])
        raise NothingToResumeError(f"{path} is an evaluation, which trains nothing; to evaluate again: {again}")
    return path


def reopened(
    run: str | Path, checkpoint: str | None = None, strict: bool = False, world: World | None = None
) -> tuple[RunDir, Saved | None]:
    """Lock the directory of a run and read its checkpoint; None if it had not come to one. Blocks.

    Of several processes the first one locks and tidies it up.
    """

    def reopen() -> RunDir:
        rundir = RunDir.reopen(training_run(run))
        try:
            Checkpoints(rundir.path / "checkpoints").clean()
        except BaseException:
            rundir.close()
            raise
        return rundir

    rundir = shared_directory(world, reopen)
    path = rundir.path
    try:
        checkpoints = Checkpoints(path / "checkpoints")
        if checkpoint is None:
            saved = checkpoints.read_newest(strict=strict)
        else:
            saved = checkpoints.read(checkpoint)
            checkpoints.refuse_given_up(saved.path.name)
        if saved is None and rundir.entry("state") == "completed":
            raise NothingToResumeError(f"{path} is finished and has no checkpoint to go on from; start a new run")
    except BaseException:
        rundir.close()
        raise
    if saved is None:
        logger.warning("%s has no checkpoint yet: it begins again", path)
    return rundir, saved


def prepare(
    run: str | Path,
    source: str | Path | Mapping[str, Any] | None = None,
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    checkpoint: str | None = None,
    force: bool = False,
    strict: bool = False,
    world: World | None = None,
) -> Resumption:
    """Lock the run, read its config (or `source`) and its checkpoint, and see that the two belong together.

    If the model's class is gone, the checkpoint's `restore_fallback` goes on: recorded as a change, but not refused.
    Blocks, and imports the user's modules. Raises NothingToResumeError, StorageError if another process writes the run,
    CheckpointError, and ConfigError naming each change that would lead elsewhere (`force` lets it).
    """
    path = training_run(run)
    check_stored(path)
    rundir, saved = reopened(path, checkpoint, strict, world)
    try:
        stored = SavedConfig(path, None if saved is None else saved.engine.get("restore_fallback"))
        before = stored.load()
        config = before if source is None and not set else stored.load(source, set=set)
        steering = changes_between(before.resolved, config.resolved)
        if not force:
            _refuse({key: values for key, values in steering.items() if _matters(key, before, config)})
    except BaseException:
        rundir.close()
        raise
    values_before = before.resolved if stored.restored is None else stored.values()
    return Resumption(config, rundir, saved, changes_between(values_before, config.resolved))


def engine_changes(saved: Saved, engine: Engine, *, force: bool = False) -> dict[str, list[Any]]:
    """Argument → value before and now, where an engine differs from the one of a checkpoint; ConfigError without `force`."""
    there = {name: [saved.engine[name], now] for name, now in engine.steering.items() if name in saved.engine}
    changes = {name: values for name, values in there.items() if values[0] != values[1]}
    if not force:
        _refuse(changes)
    return changes


def _refuse(changes: Mapping[str, Sequence[Any]]) -> None:
    if changes:
        raise ConfigError(
            *(f"{key} was {_shown(before)} and is now {_shown(now)}" for key, (before, now) in changes.items()),
            "a resumed run would not go on as it began; take these back, start a new run from its weights "
            "(--init-from), or let it (--force)",
        )


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted key → values before and now, where two resolved configs differ."""
    old, new = flattened(before), flattened(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    }


def _matters(key: str, before: Config, now: Config) -> bool:
    """Whether a change of this key can lead to other steps."""
    section, _, rest = key.partition(".")
    if section == "engine":
        return rest.partition(".")[0] not in _MAY_CHANGE
    if section == "hooks":
        changed = [hook for hook in (*before.hooks, *now.hooks) if hook not in before.hooks or hook not in now.hooks]
        return any(map(_steers, changed))
    if section == "model":  # what its class says does not change what a step computes
        return rest.partition(".")[0] not in getattr(now.model.cls, "may_change", ())
    return section == "dataset" or key == "run.seed"


def _steers(hook: Component) -> bool:
    """Whether a hook may change what is trained: it makes feeds, or says so itself."""
    return hasattr(hook.cls, "before_batch") or bool(getattr(hook.cls, "steers", False))


def _shown(value: Any) -> str:
    return "not there" if value is None else repr(value)
