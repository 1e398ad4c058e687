"""The hooks that come with asyncloop: in a config their bare names do, `class = "SaveBest"`."""

from asyncloop.hooks.compute_stats import ComputeStats
from asyncloop.hooks.log_variables import LogVariables
from asyncloop.hooks.save_best import SaveBest
from asyncloop.hooks.save_every import SaveEvery, SaveLatest
from asyncloop.hooks.show_progress import ShowProgress
from asyncloop.hooks.stop_after import StopAfter
from asyncloop.hooks.stop_on_nan import StopOnNaN
from asyncloop.hooks.training_trace import TrainingTrace
from asyncloop.hooks.write_csv import WriteCSV
from asyncloop.hooks.write_jsonl import WriteJSONL

__all__ = [
    "ComputeStats",
    "LogVariables",
    "SaveBest",
    "SaveEvery",
    "SaveLatest",
    "ShowProgress",
    "StopAfter",
    "StopOnNaN",
    "TrainingTrace",
    "WriteCSV",
    "WriteJSONL",
]
