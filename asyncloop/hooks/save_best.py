"""SaveBest: the checkpoint with the best value so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from asyncloop.control import Claim
from asyncloop.errors import HookError
from asyncloop.events import AfterEpoch, AfterEvaluation, AfterTraining, BeforeTraining
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import name as is_name
from asyncloop.hooks.arguments import nearest, one_of, refuse, whole
from asyncloop.hooks.values import number
from asyncloop.storage import is_there, storage_errors
from asyncloop.stream.lookup import dataset_streams
from asyncloop.threads import off_loop

__all__ = ["SaveBest"]

logger = logging.getLogger("asyncloop")

Mode = Literal["min", "max"]


class SaveBest(Hook):
    """Saves a checkpoint when `variable` of `stream` is strictly better than before; `checkpoints/<name>` names it.

    Looks at each evaluation of the stream, inside epochs too, or at the end of an epoch if the stream is trained on.
    The first value is the best so far; NaN never is. Of a dict of aggregates `aggregation` is taken. `keep`: so many of
    the best stay (None: all). The best value is part of every checkpoint. Runs on the event loop and only requests, so the
    checkpoint holds exactly the step that was evaluated.

    HookError for a stream the dataset lacks, a variable or an aggregate that is not there, a value that is no number.
    """

    needs_output_dir = True

    saves = True
    """An evaluation, which never saves, refuses it."""

    def __init__(
        self,
        variable: str = "loss",
        stream: str = "valid",
        mode: Mode = "min",
        aggregation: str = "mean",
        keep: int | None = 1,
        name: str = "best",
    ) -> None:
        refuse(
            "SaveBest",
            is_name("variable", variable),
            is_name("stream", stream),
            one_of("mode", mode, get_args(Mode)),
            is_name("aggregation", aggregation),
            whole("keep", keep, 1),
            _pointer("name", name),
        )
        self.needs_streams = () if stream.startswith("unnamed_") else (stream,)
        """What the dataset must have; found missing before a run begins."""
        self.needs_evaluated = self.needs_streams
        """What it waits for; a run that never evaluates it is warned of before it begins."""
        self.needs_variables = (variable,)
        self._variable, self._stream, self._aggregation = variable, stream, aggregation
        self._what = f"{aggregation} {variable} of {stream}"
        self._goal = f"the {'least' if mode == 'min' else 'largest'} {self._what}"
        self._better = float.__lt__ if mode == "min" else float.__gt__
        self._claim = Claim(f"SaveBest {name}", keep, pointer=name)
        self._best: float | None = None
        self._judged: tuple[int, int] | None = None
        """Epoch and step of the value looked at last."""

    async def before_training(self, event: BeforeTraining) -> None:
        there = dataset_streams(event.run.dataset)
        if self._stream not in there and not self._stream.startswith("unnamed_"):
            raise HookError(
                f"SaveBest wants the stream {self._stream!r}, but the dataset has "
                f"{', '.join(there) or 'none'}{nearest(self._stream, there)}"
            )
        if self._best is not None and event.run.dir is not None:
            pointer = event.run.dir / "checkpoints" / str(self._claim.pointer)
            if not await off_loop("checkpoints", _is_there, pointer):  # given up when the run went back to an older one
                logger.warning(
                    "%s was best with %.4g and is not there any more: the next one is the best", pointer, self._best
                )
                self._best = None

    async def after_evaluation(self, event: AfterEvaluation) -> None:
        if self._stream in event.streams:
            self._judge(event)

    async def after_epoch(self, event: AfterEpoch) -> None:
        if self._stream in event.data and self._judged != (event.epoch, event.step):
            self._judge(event)

    async def after_training(self, event: AfterTraining) -> None:
        if self._judged is None and self._best is None and event.success and event.epoch > 0:
            logger.warning(
                "SaveBest never saw the stream %r and saved nothing; is it among the engine's extra_streams?",
                self._stream,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "goal": self._goal}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("goal", self._goal) == self._goal:
            self._best = state["best"]
        else:
            logger.warning("SaveBest wanted %s and now wants %s: the next one is the best", state["goal"], self._goal)

    def _judge(self, event: AfterEvaluation | AfterEpoch) -> None:
        self._judged = (event.epoch, event.step)
        value = self._value(event.data[self._stream])
        if math.isnan(value) or not (self._best is None or self._better(value, self._best)):
            return
        logger.info("%s is the best so far at step %d: %.4g", self._what, event.step, value)
        self._best = value
        event.control.checkpoint(self._claim)

    def _value(self, values: Mapping[str, Any]) -> float:
        if self._variable not in values:
            raise HookError(
                f"SaveBest wants the variable {self._variable!r} of stream {self._stream!r}, which has only "
                f"{', '.join(values) or 'nothing'}{nearest(self._variable, values)}"
            )
        found = values[self._variable]
        aggregates = cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {"mean": found}
        if self._aggregation not in aggregates:
            raise HookError(
                f"SaveBest wants the aggregate {self._aggregation!r} of {self._variable!r} (stream {self._stream!r}), "
                f"which has only {', '.join(aggregates)}; a ComputeStats before it in the config computes others"
                + nearest(self._aggregation, aggregates)
            )
        value = number(aggregates[self._aggregation])
        if value is None:
            raise HookError(
                f"SaveBest compares numbers, but {self._variable!r} of stream {self._stream!r} is a "
                f"{type(aggregates[self._aggregation]).__name__}"
            )
        return float(value)


def _is_there(path: Path) -> bool:
    with storage_errors("look for", path):
        return is_there(path)


def _pointer(key: str, value: object) -> str | None:
    """A file of that name goes beside the checkpoints."""
    if isinstance(value, str):
        taken = value == "latest" or value.isdigit() or value.startswith("step-")  # what names checkpoints already
        if not taken and value.replace("-", "").replace("_", "").isalnum():
            return None
    return f"{key} is a word such as 'best' (not 'latest', no number, no path), not {value!r:.60}"
