"""A process that has imported PyTorch once and forks as many `asyncloop` commands as a test wants, connected as one world.

Run as a script it takes a JSON object a line on standard input: {"words", "n", "folder", "environment", "kill"}, and answers
with a line: the exit codes. What each process prints goes to `rank0.txt`, `rank1.txt`, … in the folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Forks:
    """The test's side. A context manager."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # somebody waits for somebody
            self._process.communicate()
            raise

    def run(
        self, folder: Path, *words: str, n: int = 2, kill: tuple[int, str] | None = None, **environment: str
    ) -> list[int]:
        """`asyncloop` with these words in `n` processes; their exit codes. `kill`: a rank, killed when that file is there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"words": words, "n": n, "folder": str(folder), "environment": environment, "kill": kill}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @staticmethod
    def said(folder: Path, rank: int = 0) -> str:
        return (folder / f"rank{rank}.txt").read_text()


def main() -> None:
    import torch
    import torch.distributed.fsdp
    import torch.optim  # noqa: F401
    import torchmetrics  # noqa: F401

    import asyncloop.cli.app  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(obeyed(json.loads(line))), flush=True)


def obeyed(order: dict[str, Any]) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [forked(order, rank, port) for rank in range(order["n"])]
    if order["kill"] is not None:
        rank, file = order["kill"]
        deadline = time.monotonic() + 60
        while not (Path(order["folder"]) / file).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pids[rank], signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def forked(order: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        if order["n"] > 1:
            world = {"RANK": rank, "WORLD_SIZE": order["n"], "LOCAL_RANK": rank, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
        handle = os.open(f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(handle, descriptor)
        sys.argv = ["asyncloop", *order["words"]]
        from asyncloop.__main__ import main as command

        command()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
