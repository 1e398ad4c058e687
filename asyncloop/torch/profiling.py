"""Profiling: a window of steps under PyTorch's profiler, written as a trace that chrome://tracing or Perfetto opens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import profile

from asyncloop.errors import ConfigError
from asyncloop.storage import storage_errors
from asyncloop.torch.arguments import Span, Table

__all__ = ["Profile", "Profiler"]

logger = logging.getLogger("asyncloop")


@dataclass(frozen=True, slots=True)
class Profile(Table):
    """From the step after `start` on, `steps` steps. `memory`, `shapes`, `stacks`: what is recorded besides. A run that is
    stopped inside them leaves a file of those there were. Of several processes the first one is recorded."""

    start: Span = 10
    steps: Span = 5
    memory: bool = False
    shapes: bool = False
    stacks: bool = False

    def __post_init__(self) -> None:
        if self.start < 0 or self.steps < 1:
            raise ConfigError(
                f"profile: `start` is at least 0 and `steps` at least 1, not {self.start} and {self.steps}"
            )


class Profiler:
    """Records the window on the model thread and writes `profile/steps-<first>-<last>.json` in the run directory."""

    def __init__(self, given: Profile, output_dir: str | Path | None) -> None:
        if output_dir is None:
            raise ConfigError("profile writes a file, but there is no output_dir to write to")
        self._given, self._folder = given, Path(output_dir) / "profile"
        self._recording: Any = None
        self._began = 0

    @contextmanager
    def around_step(self, n_updates: int) -> Generator[None]:
        """The step after `n_updates` others. If it fails, what was recorded so far is written."""
        self._before_step(n_updates)
        try:
            yield
        except BaseException:
            self.finish(n_updates)
            raise
        if n_updates + 1 >= self._given.start + self._given.steps:
            self.finish(n_updates + 1)

    def _before_step(self, n_updates: int) -> None:
        given = self._given
        if self._recording is None and given.start <= n_updates < given.start + given.steps:
            self._began = n_updates
            self._recording = profile(
                record_shapes=given.shapes, profile_memory=given.memory, with_stack=given.stacks, acc_events=True
            )
            self._recording.start()
            _of_thread.guard = _Guard(self._recording)

    def finish(self, n_updates: int) -> None:
        """Write what was recorded, if anything was: the window is over, or the run."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        _of_thread.guard.end()
        path = self._folder / f"steps-{self._began + 1}-{n_updates}.json"
        with storage_errors("write the profile", path):
            self._folder.mkdir(parents=True, exist_ok=True)
            recording.export_chrome_trace(str(path))
        logger.info("the profile of steps %d to %d is in %s", self._began + 1, n_updates, path)


class _Guard:
    """Ends a recording at the latest with the thread that began it: PyTorch crashes the process if it outlives that."""

    def __init__(self, recording: Any) -> None:
        self._recording = recording

    def end(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.stop()

    __del__ = end


_of_thread = threading.local()
"""Its values go with their thread, on that thread."""
