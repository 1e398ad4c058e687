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
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncloop import NothingToResumeError
from asyncloop.archive import find_run
from asyncloop.cli.terminal import cells, print_table
from asyncloop.cli.trouble import tell, users_traceback
from asyncloop.cli.wording import ago

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


def in_a_terminal(command: list[str], cwd: Path, *, columns: int = 120, **environment: str) -> tuple[int, str]:
    """Exit code, and all that the terminal was given on both streams."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
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


def test_a_table_in_a_pipe_has_a_line_for_each_row_and_nothing_behind_it(capsys):
    print_table([("a", "x" * 3000, "z"), ("日本", "two\nlines", ""), ("e\u0301", "y", "z")], ("name", "text", "end"))
    lines = capsys.readouterr().out.split("\n")
    assert [line.split()[-1] for line in lines[:-1]] == ["end", "z", "lines", "z"]
    assert all(line == line.rstrip() for line in lines)
    assert {cells(line[: line.rindex("z")]) for line in lines if line.endswith("z")} == {6 + 3002}
    assert lines[2].startswith("日本  two lines")


def test_no_rich_is_loaded_for_a_pipe():
    code = "import sys; from asyncloop.cli.terminal import print_table; print_table([('a',)]); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a\nFalse\n"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_ids_and_directories_are_whole_in_a_narrow_terminal(trained: Path, columns: int):
    (run,) = (trained / "runs").iterdir()
    code, shown = in_a_terminal(asyncloop_command("ls -l"), trained, columns=columns)
    assert code == 0
    assert run.name[-8:] in shown.replace(f"runs/{run.name}", "")
    assert f"runs/{run.name}" in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_how_long_ago_is_said_in_one_unit(seconds: int, words: str):
    assert ago(datetime.now(UTC) - timedelta(seconds=seconds)) == f"{words} ago"


def test_a_deleted_current_directory_is_told_in_words_by_every_command(project: Path):
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m asyncloop "$@"'
    for verb in (*VERBS, "init new", "dataset info cfg.toml"):
        command = ["sh", "-c", script, sys.executable, *verb.split()]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=30)
        if verb.endswith(("--help", "--version")):
            assert done.returncode == 0, verb
        else:
            assert (done.returncode, done.stdout) == (4, ""), verb
            assert done.stderr == "error: the current directory has been deleted; change to one that is there (cd)\n"


def test_what_the_file_system_refuses_unexpectedly_is_told_with_path_and_remedy(capsys):
    assert tell(PermissionError(13, "Permission denied", "/somewhere/file")) == 4
    expected = "error: cannot use /somewhere/file: Permission denied; check the permissions"
    assert capsys.readouterr().err.startswith(expected)
    assert tell(OSError(24, "Too many open files")) == 4
    assert capsys.readouterr().err == "error: Too many open files; raise the limit of open files (ulimit -n)\n"


def test_every_verb_works_where_python_takes_ascii_for_everything(start, project: Path):
    """What is written and read is UTF-8, whatever the locale says."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (project / "cfg.toml").write_text(CONFIG_IN_GREEK, encoding="utf-8")
    for verb in (
        "run cfg.toml",
        *(verb for verb in VERBS if not verb.startswith("run cfg.toml")),
        "init new -t stream",
    ):
        process = start(verb, env=environment)
        assert process.wait() == 0, f"{verb}: {process.err}"
    assert "λ".encode() in next((project / "runs").glob("*/resolved.toml")).read_bytes()


CONFIG_IN_GREEK = """
[run]
name = "small"
tags = ["λ"]
[dataset]
class = "parts:Data"
[model]
class = "parts:Model"
[engine]
epochs = 2
"""


def test_a_traceback_for_the_debugger_ends_in_the_users_code():
    with pytest.raises(NothingToResumeError) as caught:
        find_run("")  # this file is the user's, find_run's is ours
    whole = [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    part = [frame.f_code.co_name for frame, _ in traceback.walk_tb(users_traceback(caught.value))]
    assert whole == [*part, "find_run"]
    try:
        raise ValueError
    except ValueError as error:
        ours = error.with_traceback(caught.value.__traceback__.tb_next)
    assert users_traceback(ours).tb_frame.f_code.co_name == "find_run"
