"""docs/migrate.md: its examples run as they stand there, and it leaves nothing out that exists.

Blocks marked `toml`, `python` and `sh` are asyncloop's; `yaml` and `py` show the other systems and are not run. A block
whose first line is a comment with a file name is that file; any other `python` block is a program; `sh` are commands.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import asyncloop.hooks
from asyncloop import Stream
from asyncloop.archive import runs_below
from asyncloop.cli.app import app
from asyncloop.config.schema import EngineSection
from asyncloop.hook import COMMON_KEYS

PAGE = (Path(__file__).parent.parent / "docs" / "migrate.md").read_text()
PREDECESSORS = ["emloop", "EDflow", "iMIX"]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def file_name(block: str) -> str | None:
    found = re.match(r"# (\w+\.(?:toml|py))\n", block)
    return found[1] if found else None


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("predecessor", PREDECESSORS)
def test_the_example_runs_from_the_first_command_to_the_last(predecessor: str, tmp_path: Path) -> None:
    text = section(f"From {predecessor}")
    assert blocks("py", text), "shows theirs, too"
    for block in [*blocks("toml", text), *blocks("python", text)]:
        name = file_name(block)
        if name is not None:
            (tmp_path / name).write_text(block)
    assert all(file_name(block) for block in blocks("toml", text))

    commands = "".join(blocks("sh", text)).splitlines()
    assert len(commands) >= 2
    for command in commands:
        run(["-m", *command.split()], tmp_path)
    for program in blocks("python", text):
        if file_name(program) is None:
            (tmp_path / "program.py").write_text(program)
            assert run(["program.py"], tmp_path)

    there = [each for root in ("runs", "work") for each in runs_below(tmp_path / root, recursive=True)]
    assert len(there) == len([command for command in commands if command.split()[1] in ("run", "eval")])
    assert {each.state for each in there} == {"completed"}
    for each in (each for each in there if each.checkpoints):
        losses = [float(values["loss"]) for name, values in each.metrics.items() if name != "train"]
        assert losses, each.metrics
        assert max(losses) < 0.6, "it has learnt something"


def test_every_predecessors_section_has_tables_and_an_example_of_both_sides() -> None:
    for predecessor in PREDECESSORS:
        text = section(f"From {predecessor}")
        assert text.count("| ours |") >= 3
        for kind in ("py", "toml", "python", "sh"):
            assert blocks(kind, text), f"{predecessor}: {kind}"
    marks = re.findall(r"^```(\w*)$", PAGE, re.MULTILINE)
    assert set(marks) <= {"", "toml", "python", "sh", "yaml", "py"}
    assert marks.count("") * 2 == len(marks)


def test_the_tables_have_three_cells_in_every_row() -> None:
    for predecessor in PREDECESSORS:
        for row in re.findall(r"^\|.*$", section(f"From {predecessor}"), re.MULTILINE):
            assert len(re.findall(r"(?<!\\)\|", row)) == 4, row


def test_everything_that_exists_is_mentioned() -> None:
    code = {word for span in re.findall(r"`([^`\n]+)`", PAGE) for word in re.findall(r"\w+", span)}
    for what, names in (
        ("keys of [engine]", set(EngineSection.model_fields)),
        ("hooks", set(asyncloop.hooks.__all__)),
        ("keys of every hook", set(COMMON_KEYS)),
    ):
        assert names <= code, f"docs/migrate.md lacks {what}: {', '.join(sorted(names - code))}"
    named = set(re.findall(r"`asyncloop (\w+)", PAGE))
    assert set(COMMANDS) <= named, f"docs/migrate.md lacks commands: {', '.join(sorted(set(COMMANDS) - named))}"


def test_only_what_exists_is_said_to_exist() -> None:
    absent = section("Not there yet")
    planned = set(re.findall(r"`asyncloop (\w+)", absent))
    assert set(re.findall(r"`asyncloop (\w+)", PAGE)) <= set(COMMANDS) | planned
    for command in re.findall(r"^asyncloop .*$|`asyncloop [^`]*`", PAGE.replace(absent, ""), re.MULTILINE):
        words = command.strip("`").split()
        if words[1] in COMMANDS:
            known = {option for each in COMMANDS[words[1]].params for option in [*each.opts, *each.secondary_opts]}
            options = {word for word in words[2:] if word.startswith("-")}
            strange = {option for option in options - known if f"{words[1]} {option}" not in absent}
            assert not strange, f"{command}: {strange}"


def test_what_is_not_there_yet_is_not_there() -> None:
    """When one of them is, its row goes, and so does the **not yet** wherever else the page says it."""
    there: list[str] = []
    for row in section("Not there yet").splitlines()[4:]:
        for name in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            if exists(name):
                told = [str(n) for n, line in enumerate(PAGE.splitlines(), 1) if "not yet" in line and name in line]
                there.append(f"`{name}` exists now (said to be missing in lines {', '.join(told) or '-'}, too)")
    assert not there, "docs/migrate.md: " + "; ".join(there)


def exists(name: str) -> bool:
    if name.startswith("asyncloop "):
        _, command, *options = name.split()
        if command not in COMMANDS:
            return False
        return not options or any(options[0] in each.opts for each in COMMANDS[command].params)
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            return False
    if name.startswith("Stream."):
        return hasattr(Stream, name.removeprefix("Stream."))
    return hasattr(asyncloop.hooks, name)
