"""asyncloop: an asynchronous, pipelined training service.

Batches come from async producers through a bounded stream buffer; the engine runs them back to back on one model
thread; hooks follow as async subscribers of an event bus; an epoch costs the slowest of the three, never their sum.
"""

from typing import TYPE_CHECKING, Any

from asyncloop._version import __version__
from asyncloop.batch import Batch, Cursor
from asyncloop.bus import EventBus, Gap
from asyncloop.control import Control
from asyncloop.engine import Engine, Result
from asyncloop.errors import (
    AsyncloopError,
    CheckpointError,
    ConfigError,
    DataError,
    HookError,
    ModelError,
    NonFiniteError,
    NothingToResumeError,
    StalledError,
    StopTraining,
    StorageError,
    UsageError,
)
from asyncloop.events import (
    AfterBatch,
    AfterEpoch,
    AfterEpochProfile,
    AfterEvaluation,
    AfterTraining,
    BeforeBatch,
    BeforeEpoch,
    BeforeTraining,
    CheckpointSaved,
    EpochData,
    Event,
    OnException,
    ParameterChanged,
    Paused,
    Resumed,
)
from asyncloop.hook import Hook
from asyncloop.model import Model
from asyncloop.stats import log
from asyncloop.stream import Stream, StreamBuffer

if TYPE_CHECKING:
    from asyncloop.runs import Run, load_model, open_run, run, start

__all__ = [
    "AfterBatch",
    "AfterEpoch",
    "AfterEpochProfile",
    "AfterEvaluation",
    "AfterTraining",
    "AsyncloopError",
    "Batch",
    "BeforeBatch",
    "BeforeEpoch",
    "BeforeTraining",
    "CheckpointError",
    "CheckpointSaved",
    "ConfigError",
    "Control",
    "Cursor",
    "DataError",
    "Engine",
    "EpochData",
    "Event",
    "EventBus",
    "Gap",
    "Hook",
    "HookError",
    "Model",
    "ModelError",
    "NonFiniteError",
    "NothingToResumeError",
    "OnException",
    "ParameterChanged",
    "Paused",
    "Result",
    "Resumed",
    "Run",
    "StalledError",
    "StopTraining",
    "StorageError",
    "Stream",
    "StreamBuffer",
    "UsageError",
    "__version__",
    "load_model",
    "log",
    "open_run",
    "run",
    "start",
]

_FROM_RUNS = frozenset({"Run", "load_model", "open_run", "run", "start"})


def __getattr__(name: str) -> Any:
    """Runs need the config machinery (pydantic), which embedding an Engine does not: they are loaded when first used."""
    if name in _FROM_RUNS:
        from asyncloop import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'asyncloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
