"""asyncloop: an asynchronous, pipelined training service.

Batches come from async producers through a bounded stream buffer; the engine runs them back to back on one model
thread; hooks follow as async subscribers of an event bus; an epoch costs the slowest of the three, never their sum.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncloop._version import __version__

if TYPE_CHECKING:
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
        PeerError,
        StalledError,
        StopTraining,
        StorageError,
        UsageError,
    )
    from asyncloop.evaluation import load_model
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
    from asyncloop.live import Run
    from asyncloop.model import Model
    from asyncloop.runs import open_run, run, start
    from asyncloop.stats import log
    from asyncloop.stream import Stream, StreamBuffer

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
    "PeerError",
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

_ROOMS = {
    "batch": "Batch Cursor",
    "bus": "EventBus Gap",
    "control": "Control",
    "engine": "Engine Result",
    "errors": "AsyncloopError CheckpointError ConfigError DataError HookError ModelError NonFiniteError "
    "NothingToResumeError PeerError StalledError StopTraining StorageError UsageError",
    "events": "AfterBatch AfterEpoch AfterEpochProfile AfterEvaluation AfterTraining BeforeBatch BeforeEpoch "
    "BeforeTraining CheckpointSaved EpochData Event OnException ParameterChanged Paused Resumed",
    "evaluation": "load_model",
    "hook": "Hook",
    "live": "Run",
    "model": "Model",
    "runs": "open_run run start",
    "stats": "log",
    "stream": "Stream StreamBuffer",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Names are loaded when first used: an import costs next to nothing, and signal handlers can be set before numpy."""
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'asyncloop' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"asyncloop.{room}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__]
