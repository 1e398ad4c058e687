"""Recorder: the hook that keeps a run's own files (run.json, events.jsonl, metrics.jsonl) up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncloop.events import (
    AfterEpoch,
    AfterEpochProfile,
    AfterEvaluation,
    AfterTraining,
    BeforeEpoch,
    BeforeTraining,
    CheckpointSaved,
    Event,
    OnException,
    ParameterChanged,
    Paused,
    Resumed,
)
from asyncloop.hook import Hook
from asyncloop.rundir import LINE_FILES, RunDir, jsonable, now
from asyncloop.stats import Timings
from asyncloop.storage import append, content_of, storage_errors

__all__ = ["Recorder"]


class Recorder(Hook):
    """Appends one line for each event that is not per batch, and one for each finished pass of a stream.

    Its methods are plain, so all writing happens in its own thread; it is last in order and in the background, so it
    sees what other hooks added and holds nobody up.
    """

    background = True

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._evaluated: set[tuple[str, int]] = set()
        self._lines = dict.fromkeys(LINE_FILES, 0)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """How far its files had come; `RunDir.take_over` cuts them to that."""
        return {"lines": dict(self._lines), "evaluated": [list(each) for each in sorted(self._evaluated)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._resumed = True
        self._evaluated = {(stream, step) for stream, step in state["evaluated"]}

    def before_training(self, event: BeforeTraining) -> None:
        for name in self._lines:
            self._lines[name] = len(self._read(name))
        if self._resumed:
            self._tell_of_saved(event)
        self._write(event, {"resumed": True} if self._resumed else {})

    def _tell_of_saved(self, event: BeforeTraining) -> None:
        """The checkpoint that the run goes on from, and one before it that may have no line: the run ended before it had."""
        events = map(json.loads, self._read("events.jsonl"))
        told = {each["step"] for each in events if each["event"] == "checkpoint_saved"}
        for epoch, step in (*self._untold_before(event.step), (event.epoch, event.step)):
            if step not in told:
                then = replace(event, epoch=epoch, step=step)
                self._append("events.jsonl", _entry("checkpoint_saved", then, path=str(self._checkpoint(step))))

    def _untold_before(self, step: int) -> list[tuple[int, int]]:
        """Epoch and step of the checkpoint that was in flight when the hooks' states of this one were taken, if any."""
        path = self._checkpoint(step) / "manifest.json"
        with storage_errors("read", path):
            manifest = json.loads(content_of(path) or b"{}")
        untold = manifest.get("engine", {}).get("untold")
        return [] if untold is None else [(untold[0], untold[1])]

    def _checkpoint(self, step: int) -> Path:
        return self._rundir.path / "checkpoints" / f"step-{step:08d}"

    def _read(self, name: str) -> list[bytes]:
        path = self._rundir.path / name
        with storage_errors("read", path):
            return (content_of(path) or b"").splitlines()

    def before_epoch(self, event: BeforeEpoch) -> None:
        self._write(event, {"streams": list(event.streams)})

    def after_evaluation(self, event: AfterEvaluation) -> None:
        self._write(event, {"data": event.data, "streams": list(event.streams)})
        for stream in event.streams:
            self._evaluated.add((stream, event.step))
            self._metrics(event, stream, event.data.get(stream, {}))

    def after_epoch(self, event: AfterEpoch) -> None:
        self._rundir.update(epochs=event.epoch, steps=event.step)
        self._write(event, {"data": event.data})
        for stream, values in event.data.items():
            if (stream, event.step) not in self._evaluated:
                self._metrics(event, stream, values)
        self._evaluated.clear()

    def after_epoch_profile(self, event: AfterEpochProfile) -> None:
        profile = {
            name: {"count": value.count, "total_s": value.total, "mean_s": value.mean}
            if isinstance(value, Timings)
            else value
            for name, value in event.profile.items()
        }
        self._write(event, {"profile": profile})

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self._write(event, {"path": str(event.path)})

    def parameter_changed(self, event: ParameterChanged) -> None:
        self._write(event, {"name": event.name, "value": event.value})

    def paused(self, event: Paused) -> None:
        self._rundir.update(state="paused", steps=event.step)
        self._write(event, {})

    def resumed(self, event: Resumed) -> None:
        self._rundir.update(state="running")
        self._write(event, {})

    def on_exception(self, event: OnException) -> None:
        self._write(event, {"exception": f"{type(event.exception).__name__}: {event.exception}"})

    def after_training(self, event: AfterTraining) -> None:
        self._write(event, {"success": event.success, "reason": event.reason})

    def _write(self, event: Event, fields: Mapping[str, Any]) -> None:
        self._append("events.jsonl", _entry(event.method, event, **fields))

    def _metrics(self, event: Event, stream: str, values: Mapping[str, Any]) -> None:
        entry = {"step": event.step, "epoch": event.epoch, "stream": stream, "time": now(), **values}
        self._append("metrics.jsonl", entry)

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        path = self._rundir.path / name
        with storage_errors("write", path):
            append(path, (json.dumps(jsonable(entry)) + "\n").encode())
        self._lines[name] += 1


def _entry(name: str, event: Event, /, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": now(), "epoch": event.epoch, "step": event.step, **fields}
