"""Hundreds of broken configs through the command line: each is told in words, at its place, and nothing is made."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broken_configs import FILES, GROUPS, MODULES, Broken, group

from asyncloop.cli.app import run_command

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shop(project: Path) -> Path:
    """A project folder with the good config and the modules that configs name."""
    (project / "package").mkdir()
    write(project, {**MODULES, **FILES})
    return project


@pytest.fixture
def command(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line, in this process: exit code, standard output and standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["asyncloop", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command()
        return code, out.getvalue(), err.getvalue()

    return command


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def made(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def faults_of_run(broken: Broken, code: int, out: str, err: str) -> Iterator[str]:
    """What is not as it should be in the answer to `asyncloop run`."""
    if code != 2:
        yield f"exit code {code}"
    if out:
        yield "something on standard output"
    if "Traceback" in err or "a bug of asyncloop" in err:
        yield "told as a failure of the program"
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    if len(messages) != 1:
        yield f"{len(messages)} messages for one mistake"
    elif not messages[0].startswith(f"error: {broken.place}"):
        yield f"another place than {broken.place}"
    elif not broken.place.startswith("--set"):
        file, line, column = messages[0].removeprefix("error: ").split(":")[:3]
        _, shown, marks = err.splitlines()
        if shown != f"  {line:>4} | {Path(file).read_text().splitlines()[int(line) - 1]}":
            yield "not the line of the file"
        if marks.index("^") != len("       | ") + int(column) - 1:
            yield "the caret does not stand at the column"
    yield from (f"does not say {words!r}" for words in broken.says if words not in "".join(messages))


def faults_of_check(broken: Broken, code: int, out: str, message: str) -> Iterator[str]:
    """What is not as it should be in the answer to `asyncloop check --json`."""
    found = json.loads(out)
    (problem,) = found["problems"]
    if (code, found["ok"], found["exit_code"]) != (2, False, 2):
        yield f"check: exit code {code}"
    if broken.key and problem["key"] != broken.key:
        yield f"check: another key than {broken.key}: {problem['key']}"
    in_file = not broken.place.startswith("--set")
    place = f"{problem['file']}:{problem['line']}:{problem['column']}: "
    if place not in message if in_file else problem["file"]:
        yield f"check: another place: {place}"


@pytest.mark.parametrize("name", GROUPS)
def test_a_broken_config_is_told_in_words_at_its_place_and_nothing_is_made(shop: Path, command: Command, name: str):
    before = made(shop)
    wrong: list[str] = []
    for number, broken in enumerate(group(name)):
        write(shop, {**FILES, **broken.files})
        code, out, err = command("run", "cfg.toml", "--progress", "none", *broken.args)
        faults = list(faults_of_run(broken, code, out, err))
        if number % 4 == 0:
            code, out, _ = command("check", "cfg.toml", "--json", *broken.args)
            faults += faults_of_check(broken, code, out, err)
        if made(shop) != before:
            faults.append(f"made {made(shop) - before}")
        wrong += [f"{broken.id}: {', '.join(faults)}\n{err}"] if faults else []
    assert not wrong, "\n".join(wrong)


def test_the_config_that_all_others_are_made_from_is_good(command: Command):
    assert command("check", "cfg.toml")[::2] == (0, "")


def test_there_are_hundreds_of_broken_configs():
    assert sum(len(group(name)) for name in GROUPS) >= 1000


SAMPLE = [group(name)[len(group(name)) // 2] for name in GROUPS] + group("bad imports")[5:7]


@pytest.mark.parametrize("broken", SAMPLE, ids=lambda broken: broken.id)
def test_a_broken_config_is_told_by_a_process_too(shop: Path, broken: Broken):
    write(shop, {**FILES, **broken.files})
    before = made(shop)
    line = [sys.executable, "-m", "asyncloop", "run", "cfg.toml", *broken.args]
    ended = subprocess.run(line, cwd=shop, capture_output=True, text=True)
    assert list(faults_of_run(broken, ended.returncode, ended.stdout, ended.stderr)) == []
    assert made(shop) == before
