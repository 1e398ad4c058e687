"""What a config becomes: names that are not there, room on the disk, and a dataset that is entered once."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import asyncloop
from asyncloop import ConfigError, StorageError
from asyncloop.preflight import CheckReport
from asyncloop.rundir import RunDir
from asyncloop.runs import check

pytestmark = pytest.mark.anyio

PARTS = """
import asyncloop
import numpy as np

ENTERED = []

class Data:
    async def __aenter__(self):
        ENTERED.append("in")
        return self
    async def __aexit__(self, *trouble):
        ENTERED.append("out")
    def train_stream(self):
        for i in range(3):
            yield {"x": np.full(4, float(i)), "weight": np.ones(4)}
    valid_stream = train_stream

class Model:
    input_names, output_names = ("x",), ("loss", "sharpness")
    def __init__(self, n: int = 1):
        self.w = np.zeros(n)
    def run(self, batch, *, train, stream):
        asyncloop.log("loss2", 1.0)
        return {"loss": float(batch["x"].mean()), "sharpness": 1.0}
    def state_dict(self):
        return {"w": self.w}
    def load_state_dict(self, state):
        pass
"""

SLIP = "sharp" + "nss"
"""Put together, because a name that stands somewhere in the user's code may be logged there."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wired_parts.py").write_text(textwrap.dedent(PARTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wired_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config(*hooks: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {
        "dataset": {"class": "wired_parts:Data"},
        "model": {"class": "wired_parts:Model", **model},
        "engine": {"epochs": 1, "extra_streams": ["valid"]},
        "hooks": list(hooks),
    }


async def trained(*hooks: dict[str, Any]) -> None:
    async with asyncloop.open_run(config(*hooks)) as live:
        await live


async def checked(*hooks: dict[str, Any]) -> CheckReport:
    return await check(config(*hooks))


@pytest.mark.parametrize("how", [trained, checked])
@pytest.mark.parametrize(
    "hook",
    [
        {"class": "SaveBest", "variable": SLIP},
        {"class": "WriteCSV", "variables": [SLIP]},
        {"class": "LogVariables", "variables": [SLIP]},
        {"class": "WriteJSONL", "variables": [SLIP]},
    ],
)
async def test_a_slip_in_a_variable_is_found_before_there_is_a_directory(
    project: Path, how: Any, hook: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="wants the variable 'sharpn.s'.*did you mean 'sharpness'"):
        await how(hook)
    assert not (project / "runs").exists()


async def test_a_variable_that_the_users_code_logs_is_none() -> None:
    await trained({"class": "SaveBest", "variable": "loss2"}, {"class": "WriteCSV", "variables": ["loss2", "loss"]})


@pytest.mark.parametrize("how", [trained, checked])
async def test_a_dataset_is_entered_once_for_a_run(how: Any) -> None:
    await how({"class": "WriteJSONL", "variables": ["weight"]})
    assert sys.modules["wired_parts"].ENTERED == ["in", "out"]


async def test_a_disk_without_room_for_two_checkpoints_is_told_before_anything_is_made(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    class Usage:
        free = 3 * 10**6

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"3,000,000 bytes free, and two checkpoints of this model need 17,"):
        async with asyncloop.open_run(config(n=10**6)):
            pass
    assert not (project / "runs").exists()
    await trained()


async def test_of_two_runs_that_want_one_directory_the_second_is_refused_and_takes_nothing_away(project: Path) -> None:
    first, second = (RunDir.plan(Path(), "run", project / "out") for _ in range(2))
    first.create({"config.toml": "mine"}, {})
    first.close()
    with pytest.raises(ConfigError, match="is not empty any more"):
        second.create({"config.toml": "theirs"}, {})
    second.remove()
    second.close()
    assert (project / "out" / "config.toml").read_text() == "mine"


async def test_a_run_of_a_mapping_keeps_the_code_of_the_current_directory(project: Path) -> None:
    async with asyncloop.open_run(config()) as live:
        await live
    assert live.dir is not None
    assert (live.dir / "code" / "wired_parts.py").is_file()
