"""The messages people will see most, word for word: `messages/*.txt` holds what a command says and its exit code.

Run with ASYNCLOOP_WRITE_MESSAGES=1 to write these files anew; then read what has changed as a newcomer would.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

MESSAGES = Path(__file__).parent / "messages"

MODELS = """
from parts import Model


class Blind(Model):
    input_names = ["x", "y"]


class Half:
    input_names = ["x"]
"""


@dataclass(frozen=True)
class Case:
    """A change of the good config of this folder's project, and the command that is run with it."""

    command: str = "run cfg.toml --progress none"
    replace: Mapping[str, str] = field(default_factory=dict)
    append: str = ""


HOOK = '[[hooks]]\nclass = "SaveBest"\nstream = "test"\n'

CASES = {
    "misspelt_key": Case(replace={"epochs": "epcohs"}),
    "unknown_key": Case(append="zebra = 1\n"),
    "misspelt_table": Case(replace={"[model]": "[modle]"}),
    "wrong_type": Case(replace={"epochs = 2": 'epochs = "two"'}),
    "bare_string_for_a_list": Case(append='extra_streams = "test"\n'),
    "out_of_range": Case(replace={"epochs = 2": "epochs = -1"}),
    "out_of_range_in_a_hook": Case(append=HOOK + "keep = 0\n"),
    "missing_class": Case(replace={'class = "parts:Model"\n': ""}),
    "missing_table": Case(replace={'[model]\nclass = "parts:Model"\n': ""}),
    "missing_module": Case(replace={"parts:Model": "part:Model"}),
    "missing_name": Case(replace={"parts:Model": "parts:Modle"}),
    "failing_module": Case(replace={"parts:Model": "failing:Model"}),
    "wrong_constructor_argument": Case(replace={'"parts:Model"': '"parts:Model"\nlos = 0.1'}),
    "syntax_error": Case(replace={"epochs = 2": "epochs = two"}),
    "string_not_closed": Case(replace={'"small"': '"small'}),
    "given_twice": Case(append="epochs = 3\n"),
    "unknown_hook": Case(append=HOOK.replace("SaveBest", "SaveBset")),
    "wrong_cadence": Case(append='[[hooks]]\nclass = "SaveEvery"\nevery = "2 epohcs"\n'),
    "wrong_override": Case(command="run cfg.toml --set engine.epochs=ten"),
    "no_stream_method": Case(append='extra_streams = ["tset"]\n'),
    "unknown_variable": Case(append='[[hooks]]\nclass = "WriteJSONL"\nvariables = ["los"]\n'),
    "no_model": Case(replace={"parts:Model": "models:Half"}),
    "missing_model_input": Case(replace={"parts:Model": "models:Blind"}),
    "missing_model_input_found_by_check": Case("check cfg.toml", replace={"parts:Model": "models:Blind"}),
    "model_raises": Case(replace={'"parts:Model"': '"parts:Model"\nfails = "key"'}),
    "model_cannot_be_built": Case(replace={'"parts:Model"': '"parts:Model"\nbuild_fails = true'}),
    "producer_raises": Case(replace={'"parts:Data"': '"parts:Data"\nfail_at = 2'}),
    "loss_is_nan": Case(replace={'"parts:Model"': '"parts:Model"\nloss = nan'}),
    "missing_config_file": Case(command="run cgf.toml"),
    "directory_without_a_config": Case(command="run empty"),
    "output_dir_not_empty": Case(command="run cfg.toml --output-dir full"),
    "several_at_once": Case(
        replace={"epochs": "epcohs", "parts:Model": "parts:Modle", 'name = "small"': "name = 3"},
        append=HOOK.replace('"test"', '["test"]'),
    ),
}


@pytest.fixture
def folder(project: Path) -> Path:
    (project / "models.py").write_text(MODELS)
    (project / "failing.py").write_text('import json\n\nSIZES = json.loads("[1, 2")\n')
    (project / "full").mkdir()
    (project / "full" / "results.txt").write_text("mine")
    (project / "empty").mkdir()
    return project


def change(folder: Path, case: Case) -> None:
    text = (folder / "cfg.toml").read_text().lstrip()
    for old, new in case.replace.items():
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "cfg.toml").write_text(text + case.append)


def without_what_varies(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "PROJECT")
    text = re.sub(r"small-\d{8}-\d{6}-[0-9a-f]{8}", "small-STAMP-ID", text)
    text = re.sub(r'(\.py", line) \d+', r"\1 N", text)
    text = re.sub(r"^\d\d:\d\d:\d\d INFO .*\n", "", text, flags=re.M)
    text = re.sub(r"^\d\d:\d\d:\d\d ", "HH:MM:SS ", text, flags=re.M)
    return re.sub(r"^    [ ~^]+\n", "", text, flags=re.M)  # a traceback's own marks differ between versions of Python


def told(folder: Path, command: str) -> str:
    line = [sys.executable, "-m", "asyncloop", *command.split()]
    ended = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60)
    parts = [f"$ asyncloop {command}\n", ended.stderr, f"stdout: {ended.stdout}" if ended.stdout else ""]
    return without_what_varies("".join(parts) + f"exit code {ended.returncode}\n", folder)


@pytest.mark.parametrize("name", CASES)
def test_a_message_stays_as_good_as_it_is(folder: Path, name: str):
    change(folder, CASES[name])
    found = told(folder, CASES[name].command)
    file = MESSAGES / f"{name}.txt"
    if "ASYNCLOOP_WRITE_MESSAGES" in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text()


def test_there_is_no_message_without_its_case():
    assert {file.stem for file in MESSAGES.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_message_for_a_mistake_in_the_config_has_what_a_newcomer_needs(name: str):
    text = (MESSAGES / f"{name}.txt").read_text()
    if not text.endswith("exit code 2\n"):
        return
    assert "Traceback" not in text
    assert "INFO" not in text
    places = re.findall(r"^error: (\S+\.toml):(\d+):(\d+): ", text, flags=re.M)
    marks = re.findall(r"^ +(\d+) \| .*\n +\| ( *)\^", text, flags=re.M)
    assert [(line, int(column) - 1) for _, line, column in places] == [(line, len(space)) for line, space in marks]


# --- on a terminal ------------------------------------------------------------------------------------------------

RED_ERROR = "\x1b[1;31merror\x1b[0m: "


def shown_on_a_terminal(folder: Path, command: str, **environment: str) -> str:
    """What a terminal gets to see of standard error."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    line = [sys.executable, "-m", "asyncloop", *command.split()]
    env = {**plain, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(line, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        seen = b""
        try:
            while more := os.read(ours, 65536):
                seen += more
        except OSError:  # Linux's way to say that nobody is left on the other side
            pass
        os.close(ours)
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("name", ["misspelt_key", "syntax_error", "several_at_once"])
def test_on_a_terminal_the_word_error_is_red_and_all_else_as_in_a_pipe(folder: Path, name: str):
    change(folder, CASES[name])
    seen = shown_on_a_terminal(folder, CASES[name].command)
    lines = (MESSAGES / f"{name}.txt").read_text().splitlines(keepends=True)[1:-1]
    assert seen == "".join(re.sub("^error: ", RED_ERROR, line) for line in lines)
    assert seen.count(RED_ERROR) == seen.count("| ^") + seen.count("|  ") >= 1


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_for_who_wants_none(folder: Path, environment: dict[str, str]):
    change(folder, CASES["misspelt_key"])
    seen = shown_on_a_terminal(folder, CASES["misspelt_key"].command, **environment)
    assert "\x1b" not in seen
    assert seen == "".join((MESSAGES / "misspelt_key.txt").read_text().splitlines(keepends=True)[1:-1])


def test_a_users_exception_is_told_in_red_too(folder: Path):
    change(folder, CASES["producer_raises"])
    seen = shown_on_a_terminal(folder, CASES["producer_raises"].command)
    assert f"{RED_ERROR}ValueError in your code\n" in seen
