"""Processes: several of them, started together by torchrun or srun with the same command, that train one model."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from asyncloop.archive import is_run, runs_below
from asyncloop.errors import ConfigError, PeerError
from asyncloop.rundir import RunDir, launch_id
from asyncloop.world import World, launched

__all__ = ["as_one", "is_first", "joined", "of_first", "restarted", "shared_directory"]


def is_first() -> bool:
    """Whether this process writes files and speaks for all."""
    try:
        return launched().rank == 0
    except ConfigError:  # nobody knows, so each speaks for itself
        return True


def joined() -> World | None:
    """The world that the launcher has described, joined once a process; None for a process alone. Blocks until all are there."""
    return None if launched().size == 1 else cast("World | None", import_module("asyncloop.torch.world").join())


def of_first(world: World | None, make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process (JSON), in all of them. Blocks. PeerError if it failed there."""
    if world is None:
        return make()
    return world.gather(make() if world.rank == 0 else None)[0]


def shared_directory(world: World | None, make: Callable[[], RunDir]) -> RunDir:
    """The run directory that the first process plans or reopens; in the others one that writes nothing. Blocks."""
    if world is None:
        return make()
    rundir = make() if world.rank == 0 else None
    path, run_id, name = world.gather(rundir and [str(rundir.path), rundir.id, rundir.name])[0]
    return rundir or RunDir.of_another(Path(path), run_id, name)


@contextmanager
def as_one(world: World | None) -> Generator[None]:
    """If this process fails in here, before there is an engine to say so, the others end with its reason."""
    try:
        yield
    except BaseException as error:
        if world is not None and not isinstance(error, PeerError):
            world.fail(f"{type(error).__name__}: {error}")
        raise


def restarted(root: Path, exact: Path | None) -> str | None:
    """The run to go on with, if the launcher has started these processes again after one of them had died. Blocks."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") in ("", "0"):
        return None
    if exact is not None:
        return str(exact) if is_run(exact) else None
    launch = launch_id()
    return next((str(run.path) for run in reversed(runs_below(root)) if run.record.get("launch") == launch), None)
