"""What happened: one class for each event, named like the hook method that receives it.

    before_training
      before_epoch                          epoch 0 is the evaluation before training
        (before_batch, after_batch) …       the train stream, then the extra streams
        after_evaluation                    the extra streams have been evaluated (data)
      after_epoch                           (data)
      after_epoch_profile
    after_training                          always, also after a failure
    checkpoint_saved  parameter_changed  paused  resumed  on_exception      when they happen

Events are handed to many hooks: do not change them (only `data` in the barriers and `feeds` in `before_batch`
may be written to). They are plain dataclasses, not frozen ones, because one is made for every batch and a frozen
one costs three times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from asyncloop.batch import Batch

if TYPE_CHECKING:
    from asyncloop.control import Control
    from asyncloop.fetching import Fetch
    from asyncloop.stats import Timings

__all__ = [
    "AfterBatch",
    "AfterEpoch",
    "AfterEpochProfile",
    "AfterEvaluation",
    "AfterTraining",
    "BeforeBatch",
    "BeforeEpoch",
    "BeforeTraining",
    "CheckpointSaved",
    "EpochData",
    "Event",
    "OnException",
    "ParameterChanged",
    "Paused",
    "Resumed",
    "RunInfo",
]

_NOBODY: frozenset[object] = frozenset()

EpochData: TypeAlias = dict[str, dict[str, Any]]
"""stream → variable → value. Scalar outputs are there as means; hooks may add to it in the barriers."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What an event says about its run. `dir` is None when the run writes nothing."""

    id: str
    name: str
    dir: Path | None
    dataset: Any
    epochs: int | None = None
    """What the run was told to do, as far as it was told."""
    steps: int | None = None


@dataclass(slots=True, eq=False)
class Event:
    """The fields of every event. `step` counts updates over the whole life of the run, `epoch` starts at 1 (0: before training)."""

    method: ClassVar[str] = ""
    run: RunInfo
    control: Control
    epoch: int
    step: int


@dataclass(slots=True, eq=False)
class BeforeTraining(Event):
    """Once, before the zeroth epoch. A barrier."""

    method: ClassVar[str] = "before_training"


@dataclass(slots=True, eq=False)
class BeforeEpoch(Event):
    """Before the first batch of an epoch. A barrier. `streams`: the names that will run, in order."""

    method: ClassVar[str] = "before_epoch"
    streams: Sequence[str]


@dataclass(slots=True, eq=False)
class BeforeBatch(Event):
    """Before a batch runs; the model waits, hooks run in config order. `step` is the last finished one.

    `feeds` is a fresh dict with the batch's sources that the model will get: change it at will; `batch` stays as it is.
    `ask(*names)` asks for outputs that the model only computes on demand, for this batch.
    """

    method: ClassVar[str] = "before_batch"
    stream: str
    train: bool
    index: int
    batch: Batch
    feeds: dict[str, Any]
    ask: Callable[..., None]


@dataclass(slots=True, eq=False)
class AfterBatch(Event):
    """After every processed batch of any stream. `index` counts from 0 in the pass, skipped batches included.

    Without `variables` a hook sees `inputs` (the batch itself) and all eager `outputs`, by reference; with
    `variables` it sees only those, as host arrays.
    """

    method: ClassVar[str] = "after_batch"
    stream: str
    train: bool
    index: int
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    n_examples: int = 0
    asked: Mapping[str, Any] | None = field(default=None, repr=False)
    """Outputs that were evaluated on demand; who names them in `variables` finds them in `outputs`."""
    timed: frozenset[object] = field(default=_NOBODY, repr=False)
    """The bus's own note of whose cadence in seconds is due."""
    fetch: Fetch | None = field(default=None, repr=False)
    """Values on their way from a device to `asked`; hooks get the event when they have arrived."""


@dataclass(slots=True, eq=False)
class AfterEvaluation(Event):
    """The extra streams have been evaluated (zeroth epoch, inside an epoch, at its end). A barrier; `data` may be written."""

    method: ClassVar[str] = "after_evaluation"
    data: EpochData
    streams: Sequence[str]


@dataclass(slots=True, eq=False)
class AfterEpoch(Event):
    """All streams of the epoch are over. A barrier: hooks run one after the other and share `data`."""

    method: ClassVar[str] = "after_epoch"
    data: EpochData


@dataclass(slots=True, eq=False)
class AfterEpochProfile(Event):
    """After `after_epoch`. `profile`: `read_batch_<stream>`, `eval_batch_<stream>`, `after_batch_hooks_<stream>`, `after_epoch_hooks`
    → Timings in seconds; `depth_<stream>`, `model_waits_<stream>`, `producer_waits_<stream>`, `overlap` → numbers."""

    method: ClassVar[str] = "after_epoch_profile"
    profile: Mapping[str, Timings | float]
    streams: Sequence[str]


@dataclass(slots=True, eq=False)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk. `step` is the step whose state it holds, `path` its directory."""

    method: ClassVar[str] = "checkpoint_saved"
    path: Path


@dataclass(slots=True, eq=False)
class ParameterChanged(Event):
    """`control.set` took effect after `step`."""

    method: ClassVar[str] = "parameter_changed"
    name: str
    value: Any


@dataclass(slots=True, eq=False)
class Paused(Event):
    """The run waits after `step` until `control.resume()`."""

    method: ClassVar[str] = "paused"


@dataclass(slots=True, eq=False)
class Resumed(Event):
    """The run goes on after a pause."""

    method: ClassVar[str] = "resumed"


@dataclass(slots=True, eq=False)
class OnException(Event):
    """The run fails with `exception`; every hook hears it once, before `after_training`."""

    method: ClassVar[str] = "on_exception"
    exception: BaseException


@dataclass(slots=True, eq=False)
class AfterTraining(Event):
    """Once, always. `success` is False after a failure; `reason` says why the run ended. A barrier."""

    method: ClassVar[str] = "after_training"
    success: bool
    reason: str
