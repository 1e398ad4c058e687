"""The package: what it offers, what it needs to be imported, and that configs can build it all."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import asyncloop.hooks
from asyncloop.config import load_config
from asyncloop.hook import Hook

NAMES = sorted(asyncloop.hooks.__all__)
REQUIRED: dict[str, dict[str, Any]] = {"ComputeStats": {"variables": {"loss": ["std"]}}, "StopAfter": {"steps": 3}}


def test_all_promised_hooks_are_there() -> None:
    assert set(NAMES) == {
        "ShowProgress", "LogVariables", "ComputeStats", "WriteCSV", "WriteJSONL", "SaveEvery", "SaveLatest", "SaveBest",
        "StopAfter", "StopOnNaN", "TrainingTrace",
    }  # fmt: skip


def test_importing_them_imports_no_display() -> None:
    code = "import sys, asyncloop.hooks; sys.exit(any(name in sys.modules for name in ('rich', 'IPython', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_name_it_and_set_the_common_keys(name: str) -> None:
    own = REQUIRED.get(name, {})
    common = {"on_error": "warn", "deadline": 5.0, "streams": ["train"]}
    config = load_config(
        {
            "dataset": {"class": "types:SimpleNamespace"},
            "model": {"class": "types:SimpleNamespace"},
            "hooks": [{"class": name, **own, **common}],
        }
    )
    hook: Any = config.hooks[0].build(output_dir="somewhere", dataset=None)
    assert type(hook).__name__ == name
    assert {key: getattr(hook, key) for key in common} == common


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_begins_with_a_sentence_and_its_arguments_are_typed(name: str) -> None:
    cls = getattr(asyncloop.hooks, name)
    assert issubclass(cls, Hook)
    assert len((inspect.getdoc(cls) or "").partition("\n")[0]) > 20
    parameters = list(inspect.signature(cls).parameters.values())
    assert all(each.annotation is not each.empty for each in parameters)


def test_writers_run_in_the_background_and_what_steers_does_not() -> None:
    made = {name: getattr(asyncloop.hooks, name)(**REQUIRED.get(name, {})) for name in NAMES}
    in_background = {name for name, hook in made.items() if hook.background}
    assert in_background == {"WriteCSV", "WriteJSONL", "TrainingTrace", "ShowProgress"}
    writes = {name for name, hook in made.items() if getattr(hook, "needs_output_dir", False)}
    assert writes == {"WriteCSV", "WriteJSONL", "TrainingTrace", "SaveEvery", "SaveLatest", "SaveBest"}
