"""Who a process is among several: what torchrun and srun say about it."""

from __future__ import annotations

import pytest

from asyncloop import ConfigError
from asyncloop.world import Launch, launched

TORCHRUN = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        (TORCHRUN, Launch(3, 4, 1)),
        (SRUN, Launch(5, 8, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Launch()),  # somebody else's variables
        ({**TORCHRUN, "RANK": "first", "WORLD_SIZE": "1"}, Launch()),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Launch()),  # a batch script, not a step of srun
    ],
)
def test_the_launcher_says_who_is_who(
    environment: dict[str, str], launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == launch


def test_a_launcher_that_does_not_say_which_process_this_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, TORCHRUN[name])
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4, .* but LOCAL_RANK does not say"):
        launched()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node[03-05,9],other", "node03"), ("a1,b2", "a1"), ("gpu-[1,4]", "gpu-1"), ("a,b[1-2]", "a")],
)
def test_the_first_machine_of_a_list_of_slurms(nodes: str, first: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from asyncloop.torch.world import first_of

    assert first_of(nodes) == first
