"""Every scenario runs from end to end, with few batches and what everybody has installed. No test looks at a time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from bench.harness import Plan, run_scenario
from bench.probes import probed
from bench.report import console, print_result, write_json
from bench.scenarios import QUICK, scenarios
from bench.systems.registry import missing

HURRIED = Plan(scale=0.002, pace=0.02)
WITHOUT_PEERS = ["plain", "queue", "pool", "naive", "asyncloop"]


@pytest.mark.parametrize("name", scenarios())
def test_a_scenario_runs_and_writes_what_it_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_scenario(scenarios()[name](HURRIED), n_rounds=1, families=WITHOUT_PEERS)
    assert [(measured.row.name, measured.wrong) for measured in result.invalid] == []
    print_result(result, console())
    path = write_json(result, tmp_path, quick=False)
    assert path.name == f"{name}.json"
    written = json.loads(path.read_text())
    assert {"date", "python", "cpu", "cores", "versions"} <= set(written)
    for measured in result.measured:
        assert measured.spreads, measured.row.name
        assert measured.row.name in capsys.readouterr().out or measured is not result.measured[0]
    if name.startswith(("digits", "torch")) and missing(("torch",)):
        assert set(written["left_out"].values()) == {"not installed: torch"}
    else:
        assert [row for row in written["rows"] if row["family"] == "asyncloop"]
        assert all(goal["unit"] and goal["name"] for goal in written["goals"])


def test_results_name_neither_the_machine_nor_its_user(tmp_path: Path) -> None:
    result = run_scenario(scenarios()["buffer-8"](HURRIED), n_rounds=1)
    text = write_json(result, tmp_path, quick=True).read_text()
    assert socket.gethostname() not in text
    assert os.path.expanduser("~") not in text


@pytest.mark.parametrize("loop", ["plain", "asyncio"])
def test_a_hundred_epochs_leave_nothing_behind_that_grows_with_their_batches(loop: str) -> None:
    assert probed("soak", loop, "100", "1000")["growth_mib"] < 3


def test_the_quick_selection_is_made_of_scenarios() -> None:
    assert set(QUICK) <= set(scenarios())
