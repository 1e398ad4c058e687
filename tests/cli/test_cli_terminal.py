"""Terminals that are there, go away, or never were: a training does not die of it."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

LONG = "run cfg.toml --set dataset.batches=1000000"

IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "asyncloop", *sys.argv[1:]])
"""


class Terminal:
    """A command with a terminal of its own, to read from and to type into."""

    def __init__(self, line: str, cwd: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\x00\x64\x00\x00\x00\x00\x00")  # 40 lines of 100 columns
        command = [sys.executable, "-c", IN_A_TERMINAL, *line.split()]
        self.popen = subprocess.Popen(command, cwd=cwd, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.text = ""

    def until(self, text: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0], self.text
            self.text += os.read(self.master, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        """Read to the end, so that nobody waits for a full terminal."""
        while True:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # Linux's way to say that nobody is left on the other side
                return self.popen.wait(20)


@pytest.fixture
def terminal(project):
    opened: list[Terminal] = []

    def terminal(line: str) -> Terminal:
        opened.append(Terminal(line, project))
        return opened[-1]

    yield terminal
    for each in opened:
        if each.popen.poll() is None:
            each.popen.kill()
        each.popen.wait()
        try:
            os.close(each.master)
        except OSError:
            pass


def test_ctrl_c_in_a_terminal_stops_the_run(terminal, record):
    window = terminal(f"{LONG} --set model.step_s=0.05")
    window.until("ready")
    window.type("\x03")
    assert window.wait() == 130
    assert "SIGINT: stopping after this step" in window.text
    assert record()["state"] == "interrupted"


def test_two_ctrl_c_give_the_cursor_back(terminal):
    window = terminal(f"{LONG} --progress rich --set model.step_s=1000")
    window.until("ready")
    window.type("\x03")
    window.until("stopping after this step")
    window.type("\x03")
    assert window.wait() == 130
    assert window.text.rindex("\x1b[?25h") > window.text.rfind("\x1b[?25l")


def test_a_terminal_that_is_closed_stops_the_run_well(terminal, record, only_run):
    window = terminal(f"{LONG} --set model.step_s=0.05")
    window.until("ready")
    os.close(window.master)
    assert window.popen.wait(20) == 143
    assert record()["state"] == "interrupted"
    assert (only_run() / "checkpoints" / "latest").is_file()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_leaves_does_not_end_the_run(start, record, closed):
    process = start("run cfg.toml --progress plain")
    getattr(process.popen, closed).close()
    setattr(process.popen, closed, None)
    assert process.wait() == 0
    assert "Traceback" not in process.err
    assert record()["state"] == "completed"


def test_a_run_needs_no_streams_at_all(project, record):
    command = f"exec {sys.executable} -m asyncloop run cfg.toml <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=project).returncode == 0
    assert record()["state"] == "completed"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("line", ["run cfg.toml", "hooks"])
def test_results_that_cannot_be_written_are_an_error_in_words(start, line):
    with open("/dev/full", "w") as full:
        process = start(line, stdout=full)
        assert process.popen.wait(20) == 4
    process.until("cannot write to standard output: No space left on device")
