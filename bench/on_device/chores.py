# pyright: basic, reportMissingImports=false
"""Chores: what goes on beside the steps of a real run. Five hooks; here for loops that call them after each step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

__all__ = ["BestLoss", "Chores", "InLoopHook", "Kept", "LogLines", "MeanLoss", "Saves", "Tokens", "in_loop", "kept_in"]


class Kept(NamedTuple):
    """What a run has left behind: lines of its log, and checkpoints."""

    n_lines: int
    n_saves: int


@dataclass(frozen=True, slots=True)
class Chores:
    """A line of the log every `log_every` steps, a checkpoint every `save_every`."""

    log_every: int
    save_every: int

    def expected(self, n: int) -> Kept:
        return Kept(n // self.log_every, n // self.save_every)


class InLoopHook(Protocol):
    """Called by the loop after each step, which waits for it. `loss` is on the device."""

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None: ...


class MeanLoss:
    """The mean of all losses, summed where they are."""

    def __init__(self) -> None:
        self.total: Any = 0.0

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None:
        self.total = self.total + loss * n_examples


class Tokens:
    """The number of examples so far."""

    def __init__(self) -> None:
        self.n_examples = 0

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None:
        self.n_examples += n_examples


class BestLoss:
    """The least of every so many losses."""

    def __init__(self, every: int) -> None:
        self.every, self.best = every, math.inf

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None:
        if step % self.every == 0:
            self.best = min(self.best, float(loss))


class LogLines:
    """A JSON line every so many steps."""

    def __init__(self, every: int, path: Path) -> None:
        self.every, self.path = every, path

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None:
        if step % self.every == 0:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "loss": float(loss), "lr": lr}) + "\n")


class Saves:
    """A checkpoint every so many steps, written by `save`."""

    def __init__(self, every: int, folder: Path, save: Callable[[Path], None]) -> None:
        self.every, self.folder, self.save = every, folder, save

    def after_step(self, step: int, loss: Any, n_examples: int, lr: float) -> None:
        if step % self.every == 0:
            self.save(self.folder / f"step-{step}.pt")


def in_loop(chores: Chores | None, folder: Path, save: Callable[[Path], None]) -> Sequence[InLoopHook]:
    if chores is None:
        return ()
    log, saves = LogLines(chores.log_every, folder / "log.jsonl"), Saves(chores.save_every, folder, save)
    return log, saves, MeanLoss(), Tokens(), BestLoss(chores.log_every)


def kept_in(folder: Path) -> Kept:
    """What those hooks have left in their folder."""
    log = folder / "log.jsonl"
    return Kept(len(log.read_text().splitlines()) if log.exists() else 0, len(list(folder.glob("step-*"))))
