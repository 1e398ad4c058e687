"""The structure that a reader relies on: who imports whom, what is public, what an import costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asyncloop
import asyncloop.errors
from asyncloop import Event

ROOT = Path(asyncloop.__file__).parent

PUBLIC = {
    *[
        "Engine",
        "Model",
        "Hook",
        "Stream",
        "EventBus",
        "StreamBuffer",
        "Control",
        "Run",
        "Result",
        "Batch",
        "Cursor",
        "EpochData",
        "StopTraining",
    ],
    *[
        "open_run",
        "start",
        "run",
        "load_model",
        "log",
        "BeforeTraining",
        "BeforeEpoch",
        "BeforeBatch",
        "AfterBatch",
        "AfterEvaluation",
    ],
    *[
        "AfterEpoch",
        "AfterEpochProfile",
        "CheckpointSaved",
        "ParameterChanged",
        "Paused",
        "Resumed",
        "OnException",
        "AfterTraining",
    ],
}


def test_a_module_imports_only_from_rows_above_it() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", str(ROOT.parent / "pyproject.toml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stdout


def test_the_public_names_are_the_promised_ones() -> None:
    errors = {
        name
        for name, value in vars(asyncloop.errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert set(asyncloop.__all__) == PUBLIC | errors | {"Event", "Gap", "__version__"}
    for name in asyncloop.__all__:
        assert getattr(asyncloop, name) is not None
    assert callable(asyncloop.run)


def test_every_event_is_public_and_named_like_its_method() -> None:
    for kind in Event.__subclasses__():
        if kind.method:
            assert "".join(part.capitalize() for part in kind.method.split("_")) == kind.__name__
            assert getattr(asyncloop, kind.__name__) is kind


def test_importing_asyncloop_brings_in_nothing_it_does_not_use() -> None:
    heavy = ["torch", "rich", "typer", "starlette", "matplotlib", "pydantic", "uvloop", "trio", "safetensors.torch"]
    code = f"import asyncloop, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["hooks", "models"])
def test_what_a_config_may_name_is_listed_and_documented(package: str) -> None:
    module = __import__(f"asyncloop.{package}", fromlist=["__all__"])
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name))


def test_no_module_asks_for_a_task_outside_a_task_group() -> None:
    allowed = {"runs.py"}  # `start` hands a run to a loop that is not ours; it keeps hold of the task
    for path in ROOT.rglob("*.py"):
        calls = {node.func.attr for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}  # fmt: skip
        if path.name not in allowed:
            assert not calls & {"create_task", "ensure_future"}, path


def test_every_module_says_what_it_is_and_exports_what_it_means_to() -> None:
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
