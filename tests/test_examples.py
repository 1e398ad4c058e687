"""Every example runs and does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    result = json.loads(done.stdout)
    assert result["metrics"]["valid"]["accuracy"] > 0.95
    assert result["steps"] == 5 * 56


def test_a_gpt_learns_writes_samples_and_goes_on_exactly(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    config = copied("gpt", tmp_path) / "cfg.toml"
    quick = [
        *("model.module.n_layers=1", "model.module.width=32", "dataset.context=64", "dataset.valid_windows=16"),
        *("engine.steps=40", "model.schedule.warmup=5", 'engine.evaluate_every="20 steps"'),
        *('hooks.1.every="10 steps"', 'hooks.2.every="20 steps"', 'hooks.4.every="10 steps"', "hooks.4.keep=9"),
    ]
    run = tmp_path / "run"
    result = asyncloop_json(["run", str(config), "--output-dir", str(run), *set_to(quick)], tmp_path)
    assert result["steps"] == 40
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert result["metrics"]["valid"]["bits_per_byte"] < 7 < first["bits_per_byte"] < 8.5
    samples, losses = (run / "samples.txt").read_text(), (run / "batches.jsonl").read_text()
    assert re.findall(r"^--- step (\d+)\ndef ", samples, re.MULTILINE) == ["20", "40"]
    assert "tokens/s" in (run / "log.txt").read_text()
    asyncloop_json(["resume", str(run), "--from", "10"], tmp_path)
    assert (run / "samples.txt").read_text() == samples
    assert (run / "batches.jsonl").read_text() == losses


def test_the_larger_gpt_is_the_same_program_with_other_numbers(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    config = copied("gpt", tmp_path) / "gpt2.toml"
    tiny = [
        *("model.module.n_layers=1", "model.module.n_heads=2", "model.module.width=32", "model.module.vocabulary=320"),
        *("dataset.context=32", "dataset.batch_size=8", "dataset.valid_windows=8", "model.compile=false"),
        *("engine.steps=1", "model.schedule.warmup=0", 'hooks.2.every="1 step"'),
    ]
    result = asyncloop_json(["run", str(config), *set_to(tiny)], tmp_path)
    assert result["steps"] == 1
    assert result["metrics"]["train"].keys() >= {"loss", "bits_per_byte", "grad_norm", "lr"}


def test_a_cnn_reads_distorted_digits_and_draws_its_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    copied("digits", tmp_path)
    config = copied("images", tmp_path) / "cfg.toml"
    result = asyncloop_json(["run", str(config), *set_to(["engine.steps=114", "model.module.width=8"])], tmp_path)
    assert result["metrics"]["valid"]["accuracy"] > 0.8
    assert (Path(result["dir"]) / "mistakes-valid.txt").exists()
    test = asyncloop_json(["eval", "test", result["dir"], "--checkpoint", "best"], tmp_path)
    accuracy = test["metrics"]["test"]["accuracy"]
    assert accuracy > 0.8
    told = (Path(test["dir"]) / "mistakes-test.txt").read_text()
    n_wrong = len(re.findall(r"^a \d taken for a \d \(\d+% sure\)$", told, re.MULTILINE))
    assert n_wrong == round(300 * (1 - accuracy))


def asyncloop_json(arguments: list[str], folder: Path) -> dict[str, Any]:
    """What a command says with --json. One thread is enough for a small model, and does not wait for others."""
    command = [sys.executable, "-m", "asyncloop", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def set_to(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_the_examples_configs_are_valid() -> None:
    for config in EXAMPLES.glob("*/cfg.toml"):
        assert config.read_text().startswith("#"), "says on top what it is"
    assert asyncloop.__version__
