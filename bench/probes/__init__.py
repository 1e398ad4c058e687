"""Probes: programs that a scenario runs in a fresh process, one sample each; they print one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.harness import Reading, WrongResult

__all__ = ["probed"]

TIMEOUT_S = 900


def probed(name: str, *arguments: str) -> Reading:
    """What the probe `name` prints, run in a fresh interpreter that has imported nothing of ours."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(f"{name}.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise WrongResult(f"the probe ended with {done.returncode}: {''.join(last)}")
    return json.loads(done.stdout.strip().splitlines()[-1])
