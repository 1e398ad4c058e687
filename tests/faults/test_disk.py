"""A disk that fails, at each call: the run ends in words, older checkpoints stay, and it resumes as if nothing had been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import Disk, Sweep, sweeping
from engine_parts import Arrays

from asyncloop import AfterBatch, Engine
from asyncloop.checkpoint import Checkpoints
from asyncloop.hooks import SaveEvery


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with sweeping(tmp_path_factory.mktemp("disk")) as sweep:
        yield sweep


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("resumes", [False, True], ids=["run", "resume"])
@pytest.mark.parametrize(
    ("error", "every"),
    [("ENOSPC", 17), ("EIO", 19), ("EDQUOT", 67), ("EACCES", 41), ("EROFS", 37), ("EMFILE", 29), ("half", 13)],
)
def test_a_disk_that_fails_costs_no_checkpoint_and_the_run_resumes_exactly(
    sweep: Sweep, error: str, every: int, resumes: bool, for_good: bool
) -> None:
    tally = sweep.sweep(error, for_good=for_good, resumes=resumes, every=every, first=2)
    assert not tally.broken, "\n".join([str(tally), *tally.broken])
    assert sum(tally.outcomes.values()) > 0


class InPlace:
    """A model whose weights are one array, changed in place by every step; it remembers them by step."""

    input_names, output_names = ("x",), ("loss",)

    def __init__(self) -> None:
        self.w = np.zeros(1000)
        self.at: dict[int, float] = {}

    def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
        if train:
            self.w += 1.0
            self.at[len(self.at) + 1] = float(self.w[0])
        return {"loss": 0.0}

    def state_dict(self) -> Mapping[str, Any]:
        return {"w": self.w}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.w[:] = state["w"]


@pytest.mark.anyio
async def test_weights_that_change_in_place_during_a_slow_write_do_not_reach_the_older_checkpoint(
    tmp_path: Path,
) -> None:
    model = InPlace()
    n_behind: list[int] = []

    def wait_until_the_model_is_ahead(path: str) -> None:
        if path.endswith("model.safetensors"):
            step = int(path.split("step-")[1][:8])
            for _ in range(10**6):
                if len(model.at) >= min(step + 3, 40):
                    break
            n_behind.append(len(model.at) - step)

    engine = Engine(model, Arrays(40), [SaveEvery("7 steps")], epochs=1, output_dir=tmp_path / "run")
    steps: list[int] = []
    engine.bus.subscribe(AfterBatch, lambda event: steps.append(event.step) if event.train else None)
    with Disk(tmp_path / "run", "EIO") as disk:
        disk.before_write = wait_until_the_model_is_ahead
        await engine.train()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert len(checkpoints.names()) >= 5
    assert max(n_behind) >= 3, "no write was slow enough for the model to go on"
    for name in checkpoints.names():
        saved = checkpoints.read(name)
        assert (saved.model["w"] == model.at[saved.step]).all(), name
