"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from readme import README, blocks, own_commands

ROOT = Path(__file__).parent.parent


@pytest.fixture
def moons(tmp_path: Path) -> Path:
    """The README's own project: its dataset and its config."""
    (tmp_path / "mine.py").write_text(next(block for block in blocks("python") if block.startswith("# mine.py")))
    (tmp_path / "cfg.toml").write_text(blocks("toml")[0])
    return tmp_path


def test_the_commands_run_one_after_the_other(moons: Path) -> None:
    for words in own_commands():
        done = subprocess.run([sys.executable, "-m", *words], cwd=moons, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_command_and_every_option_of_run_is_in_the_readme() -> None:
    from typer.main import get_command

    from asyncloop.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    words = set(re.findall(r"[\w-]+", README))
    assert set(commands) <= words
    options = {option for each in commands["run"].params for option in each.opts if option.startswith("--")}
    assert options - {"--progress", "--output-dir"} <= words


def test_the_embedding_stops_the_run_when_it_is_good_enough(moons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(moons)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    code = next(block for block in blocks("python") if "open_run" in block)
    names: dict[str, object] = {}
    exec(code, names)
    anyio.run(names["train_and_watch"])
    assert list((moons / "runs").glob("*/checkpoints/latest"))


def test_the_rooms_of_the_architecture_are_the_packages_own() -> None:
    table = README.partition("## Architecture")[2].partition("Four rules")[0]
    named = set(re.findall(r"`(\w+)/?`", table)) - {"n"}
    package = ROOT / "asyncloop"
    there = {
        path.name.removesuffix(".py")
        for path in package.iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    }
    assert named == there
