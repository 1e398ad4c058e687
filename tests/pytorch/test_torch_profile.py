"""A window of steps under PyTorch's profiler: the file is there, whole, and of those steps only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_parts import Data, Net, a_model, on_asyncio, train

from asyncloop import ConfigError

pytestmark = pytest.mark.anyio


class Marked(Net):
    """Marks each forward pass in the profile, with the number of its step."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.n, self._fails_at = 0, fails_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        with torch.profiler.record_function(f"step {self.n}"):
            if self.n == self._fails_at:
                raise ZeroDivisionError
            return super().forward(x)


def steps_in(folder: Path) -> dict[str, list[str]]:
    """File → the steps that are in it."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "profile").glob("*.json")):
        trace: Mapping[str, Any] = json.loads(path.read_text())
        names = [each.get("name", "") for each in trace["traceEvents"] if each.get("cat") == "user_annotation"]
        found[path.name] = [name for name in names if name.startswith("step ")]
    return found


@on_asyncio
async def test_the_steps_of_the_window_are_in_the_file_and_no_others(tmp_path: Path) -> None:
    model = a_model(module=Marked(), profile={"start": "2 steps", "steps": 3, "shapes": True}, output_dir=tmp_path)
    await train(model, Data(8))
    assert steps_in(tmp_path) == {"steps-3-5.json": ["step 3", "step 4", "step 5"]}


@on_asyncio
async def test_a_window_goes_on_over_the_end_of_an_epoch(tmp_path: Path) -> None:
    model = a_model(module=Marked(), profile={"start": 2, "steps": 4}, output_dir=tmp_path)
    await train(model, Data(4), epochs=2)
    assert steps_in(tmp_path) == {"steps-3-6.json": ["step 3", "step 4", "step 5", "step 6"]}


@on_asyncio
async def test_a_run_that_ends_inside_the_window_has_what_there_was(tmp_path: Path) -> None:
    await train(a_model(module=Marked(), profile={"start": 1, "steps": 50}, output_dir=tmp_path), Data(3))
    assert steps_in(tmp_path) == {"steps-2-3.json": ["step 2", "step 3"]}


@on_asyncio
async def test_a_step_that_fails_inside_the_window_is_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        await train(a_model(module=Marked(3), profile={"start": 1, "steps": 5}, output_dir=tmp_path), Data(4))
    assert list(steps_in(tmp_path).values()) == [["step 2", "step 3"]]


STOPPED = """
import sys
sys.path[:0] = PATHS
import anyio
from asyncloop import AfterBatch, Engine
from torch_parts import Data, a_model

engine = Engine(
    a_model(profile={"start": 1, "steps": 50}, output_dir="."), Data(8), epochs=1, skip_zeroth_epoch=True,
    on_unused_sources="ignore",
)

def end(event):
    if event.step == 4:
        HOW

engine.bus.subscribe(AfterBatch, end, lockstep=True)
print(anyio.run(engine.train).reason)
"""


@pytest.mark.parametrize(
    "how", ["event.control.stop('told to')", "event.control.abort('told to')"], ids=["stop", "abort"]
)
def test_a_run_that_is_stopped_inside_the_window_leaves_no_profiler_that_runs_on(how: str, tmp_path: Path) -> None:
    """PyTorch crashes a process that ends with one whose thread has gone. What there was is written."""
    paths = [str(Path(__file__).parent), *sys.path]
    code = STOPPED.replace("PATHS", repr(paths)).replace("HOW", how)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "told to\n"), done.stderr
    assert [path.name for path in tmp_path.glob("profile/*.json")] == ["steps-2-4.json"]


def test_without_a_directory_there_is_nowhere_to_write() -> None:
    with pytest.raises(ConfigError, match="profile writes a file, but there is no output_dir"):
        a_model(profile={"start": 1})


@pytest.mark.parametrize("table", [{"begin": 3}, {"steps": "3 epochs"}, {"memory": "yes"}])
def test_a_window_that_is_none_is_refused(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile"):
        a_model(profile=table, output_dir=tmp_path)
