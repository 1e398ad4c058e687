"""A newcomer's way: the wheel in a clean environment, an empty directory, and what the README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from readme import blocks, own_commands

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def told(command: list[str], cwd: Path) -> str:
    """The standard output of a command that has to succeed. Nothing of this environment reaches it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' directory of an environment with the built wheel and what it needs, and nothing else."""
    home = tmp_path_factory.mktemp("walk")
    told([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(home), str(ROOT)], home)
    (wheel,) = home.glob("*.whl")
    venv.create(home / "env", with_pip=True)
    programs = home / "env" / "bin"
    told([str(programs / "python"), "-m", "pip", "install", "--quiet", str(wheel)], home)
    return programs


def test_from_an_empty_directory_to_a_trained_model_of_ones_own(installed: Path, tmp_path: Path) -> None:
    asyncloop = str(installed / "asyncloop")
    (tmp_path / "mine.py").write_text(next(block for block in blocks("python") if block.startswith("# mine.py")))
    (tmp_path / "cfg.toml").write_text(blocks("toml")[0])
    for words in own_commands():
        told([asyncloop, *words[1:]], tmp_path)
    runs = json.loads(told([asyncloop, "ls", "--json"], tmp_path))
    assert all(run["state"] == "completed" for run in runs)
    assert runs[0]["metrics"]["valid"]["accuracy"] > 0.9
    code = "import asyncloop; m = asyncloop.load_model('latest', 'best'); print(type(m).__name__)"
    assert told([str(installed / "python"), "-c", code], tmp_path) == "MLP\n"


def test_a_made_project_runs_with_nothing_but_the_wheel(installed: Path, tmp_path: Path) -> None:
    asyncloop = str(installed / "asyncloop")
    told([asyncloop, "init", "new"], tmp_path)
    told([asyncloop, "check", "cfg.toml"], tmp_path / "new")
    found = json.loads(told([asyncloop, "run", "cfg.toml", "--json", "--progress", "none"], tmp_path / "new"))
    assert (found["state"], found["exit_code"]) == ("completed", 0)
    assert json.loads(told([asyncloop, "doctor", "--json"], tmp_path))
