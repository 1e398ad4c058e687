"""Every verb in a terminal and in a pipe: the same results, control sequences only where somebody looks."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*3[1-7][0-9;]*m")

VERBS = [
    "check cfg.toml",
    "check cfg.toml --print-config",
    "run cfg.toml --rm",
    "eval train latest",
    "dataset info cfg.toml",
    "ls",
    "show latest",
    "compare latest latest",
    "prune",
    "hooks",
    "schema cfg.toml",
    "doctor",
    "--help",
    "run --help",
    "--version",
]


def in_a_terminal(command: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code, and all that the terminal was given on both streams."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    settings = {**os.environ, "TERM": "xterm-256color", **environment}
    settings.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
    popen = subprocess.Popen(command, cwd=cwd, env=settings, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the last writer is gone
            break
        if not read:
            break
        shown += read
    os.close(ours)
    return popen.wait(timeout=30), shown.decode()


def asyncloop_command(line: str) -> list[str]:
    return [sys.executable, "-m", "asyncloop", *line.split()]


@pytest.fixture
def trained(asyncloop, project: Path) -> Path:
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    return project


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]{3,}", ESCAPES.sub("", text))


def test_every_verb_works_in_a_pipe_without_control_sequences(asyncloop, trained: Path):
    for verb in VERBS:
        code, out, err = asyncloop(verb)
        assert code == 0, f"{verb}: {err}"
        assert out + err, verb
        assert "\x1b" not in out + err, verb
        assert "\r" not in out + err, verb
        assert "Traceback" not in err


def test_every_verb_works_in_a_terminal_and_says_the_same(asyncloop, trained: Path):
    for verb in VERBS:
        code, shown = in_a_terminal(asyncloop_command(verb), trained)
        assert code == 0, f"{verb}: {shown}"
        piped = (
            asyncloop(verb)[1] if verb not in ("run cfg.toml --rm", "eval train latest", "show latest", "ls") else ""
        )
        missing = set(words_of(piped)) - set(words_of(shown))
        assert len(missing) <= len(set(words_of(piped))) // 10, f"{verb}: {missing}"  # a narrow table wraps words


def test_no_colour_is_shown_where_none_is_wanted(trained: Path):
    for verb in ("ls", "check nowhere.toml", "--help", "run cfg.toml --rm"):
        _, shown = in_a_terminal(asyncloop_command(verb), trained, NO_COLOR="1")
        assert not COLOURS.search(shown), verb
    _, shown = in_a_terminal(asyncloop_command("check nowhere.toml"), trained)
    assert COLOURS.search(shown)


def test_the_debugger_opens_where_the_users_code_has_raised(trained: Path):
    ours, theirs = pty.openpty()
    command = asyncloop_command("run cfg.toml --debug --progress none --set dataset.fail_at=2")
    popen = subprocess.Popen(command, cwd=trained, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"p index\nq\n")
    shown = b""
    while popen.poll() is None or b"(Pdb)" not in shown:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert popen.wait(timeout=30) == 3
    text = shown.decode()
    assert "pixel 2 is bad" in text
    assert re.search(r"\(Pdb\).*\b2\b", text, re.DOTALL)


def test_json_stands_alone_on_standard_output(asyncloop, trained: Path):
    for verb in (
        "check cfg.toml",
        "check cfg.toml --print-config",
        "run cfg.toml --rm",
        "eval train latest",
        "dataset info cfg.toml",
        "ls",
        "show latest",
        "compare latest latest",
        "prune",
        "hooks",
        "doctor",
    ):
        code, out, _ = asyncloop(f"{verb} --json")
        assert code == 0, verb
        assert json.loads(out) is not None, verb


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [("asyncloop sh", 1, "show"), ("asyncloop run cfg.toml --de", 3, "--debug"), ("asyncloop show lat", 2, "latest")],
)
def test_the_shell_completes_commands_options_and_runs(asyncloop, trained: Path, monkeypatch, words, at, expected):
    for name, value in {"_ASYNCLOOP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}.items():
        monkeypatch.setenv(name, value)
    code, out, _ = asyncloop("")
    assert (code, out.split()) == (0, [expected])
