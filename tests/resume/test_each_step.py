"""Stopped after each step and resumed, a run ends as one that was never stopped: the same bits, counts and lines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from stopping_project import VARIANTS, make_project, outcome

import asyncloop

Trained = Callable[..., Awaitable[Path]]

_SWITCHES = ("STOP_AT", "STOP_IN_EVALUATION_AT")


def setting(variant: str) -> dict[str, Any]:
    return {key: value for key, value in VARIANTS[variant].items() if value is not None}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Train, or go on with a run, until its end or until the environment says stop; the run's directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "exact_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))

    async def trained(variant: str = "tasks", run: Path | None = None, **environment: object) -> Path:
        for name in _SWITCHES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        opened = asyncloop.open_run("cfg.toml", set=setting(variant)) if run is None else asyncloop.open_run(resume=run)
        async with opened as live:
            await live
        assert live.dir is not None
        return live.dir

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.anyio
async def test_stopped_after_each_step_it_ends_the_same(variant: str, trained: Trained) -> None:
    whole = outcome(await trained(variant))
    for step in range(1, whole["step"] + 1):
        run = await trained(variant, STOP_AT=step)
        assert outcome(await trained(run=run)) == whole, f"stopped after step {step}"


@pytest.mark.anyio
async def test_on_every_loop_it_ends_the_same_as_on_asyncio(trained: Trained, trajectory: dict[str, Any]) -> None:
    for step in (1, 8, 13):
        run = await trained(STOP_AT=step)
        assert outcome(await trained(run=run)) == trajectory, f"stopped after step {step}"


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How an uninterrupted run ends, in a process of its own, on asyncio."""
    folder = tmp_path_factory.mktemp("trajectory")
    make_project(folder)
    code = "from asyncloop import runs; runs.uvloop_is_there = lambda: False; print(runs.run('cfg.toml').dir)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return outcome(Path(done.stdout.strip()))


@pytest.mark.anyio
@pytest.mark.parametrize("variant", ["tasks", "evaluations inside epochs"])
async def test_an_evaluation_that_is_interrupted_is_repeated(variant: str, trained: Trained) -> None:
    whole = outcome(await trained(variant))
    for step in (0, 8, 16, 24) if variant == "tasks" else (0, 3, 6, 8):
        run = await trained(variant, STOP_IN_EVALUATION_AT=step)
        assert outcome(await trained(run=run)) == whole, f"stopped in the evaluation after step {step}"


@pytest.mark.anyio
async def test_stopped_twice_in_one_epoch_and_again_in_the_next_it_ends_the_same(trained: Trained) -> None:
    whole = outcome(await trained())
    run = await trained(STOP_AT=2)
    for step in (3, 7, 8, 9):
        await trained(run=run, STOP_AT=step)
    assert outcome(await trained(run=run)) == whole


def test_resumed_in_a_fresh_process_by_the_command_line_it_ends_the_same(tmp_path: Path) -> None:
    make_project(tmp_path)

    def asyncloop_command(*words: str, stop_at: str = "") -> None:
        environment = {**os.environ, "STOP_AT": stop_at}
        command = [sys.executable, "-m", "asyncloop", *words, "--progress", "none"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    asyncloop_command("run", "cfg.toml", "--output-dir", "whole")
    whole = outcome(tmp_path / "whole")
    for step in range(1, whole["step"] + 1, 3):
        asyncloop_command("run", "cfg.toml", "--output-dir", f"at{step}", stop_at=str(step))
        asyncloop_command("resume", f"at{step}")
        assert outcome(tmp_path / f"at{step}") == whole, f"stopped after step {step}"
