"""A project folder with a small dataset and model, and the command line run in it as a process of its own."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PARTS = '''
import hashlib
import os
import sys
import time

import numpy as np


def ready():
    print("ready", file=sys.stderr, flush=True)


def block_in_c():
    """Long work in C that lets other threads run but looks at no signal."""
    hashlib.pbkdf2_hmac("sha512", b"", b"", 200_000_000)


class Data:
    def __init__(self, batches: int = 5, fail_at: int = -1, block_at: int = -1, fork: bool = False):
        self.batches, self.fail_at, self.block_at = batches, fail_at, block_at
        if fork and os.fork() == 0:
            time.sleep(1)
            os._exit(0)

    def train_stream(self):
        for index in range(self.batches):
            if index == self.fail_at:
                raise ValueError(f"pixel {index} is bad")
            if index == self.block_at:
                ready()
                time.sleep(1000)
            yield {"x": np.full((4, 2), float(index))}

    def test_stream(self):
        yield {"x": np.ones((4, 2))}


class Model:
    input_names = ["x"]
    output_names = ["loss", "accuracy"]

    def __init__(self, step_s: float = 0.0, build_s: float = 0.0, build_fails: bool = False, fails: str = "",
                 loss: float = 0.5):
        if build_s:
            ready()
            time.sleep(build_s)
        if build_fails:
            raise RuntimeError("cannot build")
        self.step_s, self.fails, self.loss, self.steps = step_s, fails, loss, 0

    def run(self, batch, *, train, stream):
        if train:
            self.steps += 1
            if self.steps == 3 and self.step_s:
                ready()
                time.sleep(self.step_s)
            if self.fails == "key":
                return {"loss": self._looked_up(batch)}
            if self.fails == "exit":
                sys.exit(0)
        return {"loss": self.loss, "accuracy": 2 / 3}

    def _looked_up(self, batch):
        return batch["nowhere"]

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Blocking:
    """A hook that keeps the event loop from everything else."""

    def __init__(self, how: str):
        self.how = how

    async def before_epoch(self, event):
        ready()
        block_in_c() if self.how == "c" else time.sleep(1000)
'''

CONFIG = """
[run]
name = "small"
[dataset]
class = "parts:Data"
[model]
class = "parts:Model"
[engine]
epochs = 2
skip_zeroth_epoch = true
"""


class Process:
    """A command that runs; `err` and `out` hold what it has written once it has ended."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.out = self.err = ""

    def until(self, text: str, timeout_s: float = 60.0) -> None:
        """Read its standard error until `text` has come."""
        assert self.popen.stderr is not None
        descriptor, deadline = self.popen.stderr.fileno(), time.monotonic() + timeout_s
        while text not in self.err:
            assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], (
                f"no {text!r}: {self.err}"
            )
            read = os.read(descriptor, 65536)
            assert read, f"ended without {text!r}: {self.err}"
            self.err += read.decode()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        out, err = self.popen.communicate(timeout=timeout_s)
        self.out, self.err = (out or b"").decode(), self.err + (err or b"").decode()
        return self.popen.returncode


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "cfg.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., Process]]:
    """Start a command in the project folder; what is still there at the end of the test is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(line: str, **options: Any) -> Process:
        command = [sys.executable, "-m", "asyncloop", *shlex.split(line)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        popen = subprocess.Popen(command, cwd=project, **{**streams, **options})
        started.append(popen)
        return Process(popen)

    yield start
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.wait()
        for stream in (popen.stdout, popen.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def asyncloop(start: Callable[..., Process]) -> Callable[..., tuple[int, str, str]]:
    """Run a command to its end: its exit code, standard output and standard error."""

    def asyncloop(line: str, **options: Any) -> tuple[int, str, str]:
        process = start(line, **options)
        code = process.wait()
        return code, process.out, process.err

    return asyncloop


@pytest.fixture
def only_run(project: Path) -> Callable[[], Path]:
    """The directory of the one run there is."""

    def only_run() -> Path:
        (found,) = (project / "runs").iterdir()
        return found

    return only_run


@pytest.fixture
def record(only_run: Callable[[], Path]) -> Callable[[], dict[str, Any]]:
    """The run.json of the one run there is."""
    return lambda: json.loads((only_run() / "run.json").read_text())
