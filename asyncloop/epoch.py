"""EpochRecord: what one epoch gathers, its data and its profile, and how it is put into a checkpoint."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

from asyncloop.errors import CheckpointError
from asyncloop.events import AfterBatch, EpochData, Event
from asyncloop.model_thread import Stretch
from asyncloop.redact import redacted
from asyncloop.states import copy_state
from asyncloop.stats import Timings, WeightedMeans
from asyncloop.stream import BufferStatistics

__all__ = ["EpochRecord", "Training", "last_state", "restored_last", "savable"]

Phase = Literal["train", "evaluate", "over"]


@dataclass(slots=True)
class Training:
    """The training part of an epoch: the stretch, and at which of its batches the pass under way began."""

    stretch: Stretch
    accepted_before: int = 0
    began_at: int = 0
    is_over: bool = False
    """Whether the stream has ended for this epoch: its position is that of the next pass then."""

    def state_dict(self) -> dict[str, Any]:
        """Belongs to the model's thread, where the sums may be on a device."""
        stretch = self.stretch
        own = {"accepted_before": self.accepted_before, "began_at": self.began_at, "over": self.is_over}
        return {**own, "accepted": stretch.n_accepted, "dropped": stretch.n_dropped, **stretch.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.accepted_before, self.began_at = state["accepted_before"], state["began_at"]
        self.is_over = state.get("over", False)
        self.stretch.n_accepted, self.stretch.n_dropped = state["accepted"], state["dropped"]
        self.stretch.means.load_state_dict(state)


class EpochRecord:
    """Owned by the engine coroutine; only `log` may be called from a hook's thread."""

    def __init__(self, names: list[str], plan: Sequence[tuple[str, bool]] = ()) -> None:
        self.names = names
        self.next_stream = dict(pairwise(plan))
        """(stream, train) → what is planned after it, the next epoch's first stream included."""
        self.data: EpochData = {}
        self.is_zeroth = self.is_ending = False
        """Ending: it counts as done, but hooks have not all heard of it; a checkpoint taken then repeats its end."""
        self.has_begun = False
        """Whether every hook has heard of its beginning."""
        self.phase: Phase = "train"
        self.training: Training | None = None
        self.resumed: Mapping[str, Any] | None = None
        """The training part as it was in a checkpoint, until it goes on."""
        self.pending: list[str] = []
        """Streams whose evaluation is under way or due: one that is interrupted is repeated."""
        self._kept: EpochData | None = None
        self._timings: dict[str, Timings] = {}
        self._logged: dict[str, dict[str, WeightedMeans]] = {}
        self._lock = threading.Lock()
        self._began_s = time.perf_counter()

    def add_stretch(self, stretch: Stretch) -> None:
        """The timings of a stream that begins to run."""
        self._timings[f"read_batch_{stretch.stream}"] = stretch.read
        self._timings[f"eval_batch_{stretch.stream}"] = stretch.ran

    def log(self, hook: str, stream: str, name: str, value: Any, n_examples: int) -> None:
        """A value that a hook logged; averaged over the pass, weighted by examples. Thread-safe."""
        with self._lock:
            self._logged.setdefault(hook, {}).setdefault(stream, WeightedMeans()).add(name, float(value), n_examples)

    def logged_by(self, hook: str) -> dict[str, Any]:
        """What a hook has logged so far, for a checkpoint. Thread-safe."""
        with self._lock:
            return {stream: means.state_dict() for stream, means in self._logged.get(hook, {}).items()}

    def take_logged(self) -> None:
        """What was logged so far joins the data of its stream; each hook's sum by itself, so that no order matters."""
        with self._lock:
            together: dict[str, WeightedMeans] = {}
            for hook in sorted(self._logged):
                for stream, means in self._logged[hook].items():
                    together.setdefault(stream, WeightedMeans()).merge(means)
            for stream, means in together.items():
                if stream in self.data:
                    self.data[stream].update(means.result())

    def end_training(self) -> None:
        """What comes now is repeated if it is interrupted, so a checkpoint holds the data as it is now."""
        self.phase, self._kept = "evaluate", copy.deepcopy(self.data)

    def state_dict(self, means: WeightedMeans | None = None) -> dict[str, Any]:
        """For a checkpoint. Belongs to the model's thread. `means`: of all processes, where there are several."""
        training = self.training.state_dict() if self.training is not None else self.resumed
        if training is not None and means is not None:
            training = {**training, **means.state_dict()}
        return {
            "names": self.names,
            "begun": self.has_begun,
            "phase": self.phase,
            "pending": self.pending,
            "data": {} if self.phase == "over" else savable(self.data if self._kept is None else self._kept),
            "training": training if self.phase == "train" else None,
        }

    @classmethod
    def restored(
        cls, state: Mapping[str, Any], logged: Mapping[str, Any], plan: Sequence[tuple[str, bool]]
    ) -> EpochRecord:
        """The epoch of a checkpoint, as it was."""
        epoch = cls(list(state["names"]), plan)
        epoch.has_begun = True
        epoch.data = {stream: dict(values) for stream, values in state["data"].items()}
        epoch.resumed = state["training"]
        if state["phase"] == "evaluate":
            epoch.end_training()
        for hook, streams in logged.items():
            for stream, sums in streams.items():
                means = epoch._logged.setdefault(hook, {}).setdefault(stream, WeightedMeans())
                means.load_state_dict(cast("Mapping[str, Any]", sums))
        return epoch

    def profiled(
        self,
        spent: Mapping[str, Timings],
        statistics: Callable[[str], BufferStatistics | None],
        hooks_began_s: float,
    ) -> dict[str, Timings | float]:
        """Where the epoch's time went. `overlap` is the stages' sum over the wall clock: above 1, they ran at once."""
        now_s = time.perf_counter()
        hooks = Timings()
        hooks.add(now_s - hooks_began_s)
        profile: dict[str, Timings | float] = {**self._timings, "after_epoch_hooks": hooks}
        stages_s = sum(timings.total for key, timings in self._timings.items() if key.startswith("eval_batch_"))
        for name in self.names:
            profile[f"after_batch_hooks_{name}"] = spent.get(name, Timings())
            stages_s += spent[name].total if name in spent else 0.0
            gauges = statistics(name)
            if gauges is not None:
                profile[f"depth_{name}"] = gauges.depth
                profile[f"model_waits_{name}"] = gauges.taker_waits
                profile[f"producer_waits_{name}"] = gauges.producer_waits
        profile["overlap"] = stages_s / max(now_s - self._began_s, 1e-9)
        return profile


def last_state(last: AfterBatch) -> dict[str, Any]:
    """A step that may have been the run's last, for hooks that get it only then. Belongs to the model's thread."""
    values = savable({"inputs": last.inputs, "outputs": {**last.outputs, **(last.asked or {})}})
    return {"stream": last.stream, "index": last.index, "n_examples": last.n_examples, **values}


def restored_last(state: Mapping[str, Any], at: Event) -> AfterBatch:
    inputs, outputs = state["inputs"], state["outputs"]
    return AfterBatch(
        at.run,
        at.control,
        at.epoch,
        at.step,
        state["stream"],
        True,
        state["index"],
        inputs,
        outputs,
        state["n_examples"],
    )


def savable(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The data without what a checkpoint cannot hold; hooks may put anything there."""
    kept: dict[str, Any] = {}
    for stream, values in data.items():
        kept[stream] = {}
        for name, value in values.items():
            with suppress(CheckpointError):
                kept[stream][name] = copy_state(redacted(value) if isinstance(value, str) else value)
    return kept
