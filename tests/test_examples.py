"""Every example runs and does what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asyncloop

EXAMPLES = Path(__file__).parent.parent / "examples"


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__")))


def test_the_digits_reach_97_percent_with_one_command(tmp_path: Path) -> None:
    folder = copied("digits", tmp_path)
    command = [sys.executable, "-m", "asyncloop", "run", "cfg.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"^test accuracy (0\.\d+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert float(found[1]) >= 0.97


def test_the_digits_check_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asyncloop", "check", str(copied("digits", tmp_path) / "cfg.toml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "image" in done.stdout


def test_embedding_pauses_resumes_stops_and_shows_the_ticks(tmp_path: Path) -> None:
    copied("digits", tmp_path)
    script = shutil.copy(EXAMPLES / "embed.py", tmp_path)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) >= 9
    assert any(line.startswith("paused after step") for line in lines)
    assert "resumed" in lines
    assert "eight epochs are enough" in done.stdout
    late = re.search(r"(\d+) ticks, late by ([\d.]+) ms in the median", lines[-1])
    assert late
    assert int(late[1]) > 30


def test_batches_come_over_http_and_overlap(tmp_path: Path) -> None:
    pytest.importorskip("httpx2")
    folder = copied("http_source", tmp_path)
    command = [sys.executable, "-m", "asyncloop", "run", "cfg.toml", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = __import__("json").loads(done.stdout)
    assert result["metrics"]["valid"]["accuracy"] > 0.95
    assert result["steps"] == 5 * 56


def test_the_examples_configs_are_valid() -> None:
    for config in EXAMPLES.glob("*/cfg.toml"):
        assert config.read_text().startswith("#"), "says on top what it is"
    assert asyncloop.__version__
