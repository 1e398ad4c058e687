"""Stopped after each step and resumed, a run ends as one that was never stopped: the same bits, counts and lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from stopping_project import VARIANTS, make_project, outcome

import asyncloop

pytestmark = pytest.mark.anyio


def setting(variant: str) -> dict[str, Any]:
    return {key: value for key, value in VARIANTS[variant].items() if value is not None}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "exact_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


async def trained(set: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **environment: str) -> Path:
    for name in ("STOP_AT", "STOP_IN_EVALUATION_AT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with asyncloop.open_run("cfg.toml", set=set) as live:
        await live
    assert live.dir is not None
    return live.dir


async def resumed(run: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in ("STOP_AT", "STOP_IN_EVALUATION_AT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with asyncloop.open_run(resume=run) as live:
        await live


@pytest.mark.parametrize("variant", VARIANTS)
async def test_stopped_after_each_step_it_ends_the_same(
    variant: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(await trained(setting(variant), monkeypatch))
    for step in range(1, whole["step"] + 1):
        run = await trained(setting(variant), monkeypatch, STOP_AT=str(step))
        await resumed(run, monkeypatch)
        assert outcome(run) == whole, f"stopped after step {step}"
