"""A disk that fails, at each call: the run ends in words, older checkpoints stay, and it resumes as if nothing had been."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk import Disk, Sweep, sweeping
from engine_parts import Arrays, Counting, batches

from asyncloop import AfterBatch, Engine, StorageError, open_run
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
    [("ENOSPC", 17), ("EIO", 19), ("EDQUOT", 67), ("EACCES", 23), ("EROFS", 37), ("EMFILE", 29), ("half", 13)],
)
def test_a_disk_that_fails_costs_no_checkpoint_and_the_run_resumes_exactly(
    sweep: Sweep, error: str, every: int, resumes: bool, for_good: bool
) -> None:
    tally = sweep.sweep(error, for_good=for_good, resumes=resumes, every=every, first=2)
    assert not tally.broken, "\n".join([str(tally), *tally.broken])
    assert sum(tally.outcomes.values()) > 0


@pytest.mark.parametrize("error", ["EACCES", "EIO", "EMFILE"])
@pytest.mark.parametrize(
    "only",
    [
        r"(stat|open|read) .*/(run\.json|resolved\.toml)",
        r"(stat|listdir|scandir) .*/checkpoints(/[^/]+)?(/manifest.json)?",
    ],
    ids=["the run", "its checkpoints"],
)
def test_a_disk_that_refuses_while_a_run_is_looked_up_is_told_and_nothing_begins_again(
    sweep: Sweep, error: str, only: str
) -> None:
    tally = sweep.sweep(error, for_good=False, resumes=True, only=only)
    assert not tally.broken, "\n".join([str(tally), *tally.broken])
    assert sum(tally.outcomes.values()) > 0


class Evaluating(Arrays):
    """Six batches to train on; an evaluation that goes on for ever, if it is `endless`. `begun`: somebody evaluates."""

    def __init__(self, *, endless: bool) -> None:
        super().__init__(6)
        self.endless, self.begun = endless, threading.Event()

    def valid_stream(self) -> Iterator[dict[str, Any]]:
        self.begun.set()
        for batch in cycle(batches(2)) if self.endless else batches(2):
            yield dict(batch)


@pytest.mark.anyio
async def test_the_event_of_a_checkpoint_that_was_in_flight_when_an_evaluation_began_is_told_by_the_resume(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"

    def engine(data: Evaluating) -> Engine:
        return Engine(
            Counting(), data, [SaveEvery("4 steps")], extra_streams=["valid"], epochs=1, skip_zeroth_epoch=True
        )

    data = Evaluating(endless=True)
    disk = Disk(run, "EIO", 3, only=r"create .*/events\.jsonl")  # before_training, before_epoch, checkpoint_saved
    disk.before_write = lambda path: None if "step-00000004" not in path else data.begun.wait() and None
    with disk, pytest.raises(StorageError, match=r"events\.jsonl"):
        async with open_run(engine=engine(data), output_dir=run) as live:
            await live
    async with open_run(engine=engine(Evaluating(endless=False)), resume=run) as live:
        assert live.progress.step == 6
        await live
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    saved = [(each["epoch"], each["step"]) for each in events if each["event"] == "checkpoint_saved"]
    assert saved == [(1, 4), (1, 6)]


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
