"""What bench/gpu.py does on a GPU runs here on the CPU from end to end, at a size at which no time means anything."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.harness import WrongResult, run_scenario
from bench.on_device import gpt
from bench.on_device.bare import BareLoop, there_already
from bench.on_device.chores import Chores, Kept
from bench.on_device.clocks import Marks, Updates, syncs_per_update, timed_run
from bench.on_device.images import TINY, Pictures
from bench.on_device.rows import Course, Entry, row_of
from bench.on_device.work import Work, loss_of
from bench.systems.registry import missing

if note := missing(("torch",)):
    pytest.skip(note, allow_module_level=True)
torch = pytest.importorskip("torch")

CPU = torch.device("cpu")
NOTHING = Kept(0, 0)


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    n_threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("name", gpu.PARTS)
def test_a_scenario_of_the_device_runs_on_the_cpu(name: str, tmp_path: Path) -> None:
    assert gpu.main([name, "--device", "cpu", "--tiny", "--rounds", "1", "--results", str(tmp_path)]) == 0
    (written,) = tmp_path.iterdir()
    assert written.name == "gpu.tiny.json"  # what is no measurement never takes a measurement's place
    found = json.loads(written.read_text())
    assert {"date", "cpu", "versions", "device"} <= found.keys()
    (scenario,) = found["scenarios"]
    assert scenario["scenario"] == name
    assert [row["name"] for row in scenario["rows"] if row["invalid"]] == []
    assert [goal["found"] for goal in scenario["goals"] if goal["found"] is None] == []
    for row in scenario["rows"]:
        assert row["metrics"], row["name"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.main(["readback"]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().out
    assert gpu.main(["readback", "--device", "cpu", "--tiny", "--rounds", "1"]) == 0
    assert gpu.main(["no-such"]) == 2
    assert not list(tmp_path.iterdir())


def a_work() -> Work:
    size = replace(gpt.TINY, n_batches=2)
    context = size.module["context"]
    return Work(lambda: gpt.example().GPT(**size.module), ["tokens", "next"], gpt.Text(2, context, 2))


class Spoiled(BareLoop):
    """The bare loop, which makes fewer updates than it is asked for, or makes them with a rate of zero."""

    def __init__(self, work: Work, *, lost: int = 0, rate: float | None = None, kept: Kept = NOTHING) -> None:
        super().__init__(work, CPU, there_already(work, CPU, 2))
        self.lost, self.kept = lost, kept
        if rate is not None:
            self.optimizer.param_groups[0]["lr"] = rate

    def train(self, n: int) -> Kept:
        super().train(n - self.lost)
        return self.kept


def wrong_with(make: Any, chores: Chores | None = None) -> dict[str, str | None]:
    course = Course(a_work(), CPU, Updates(40, first=2, last=40), n_warm=1, chores=chores)
    bare = Entry("bare loop", "plain", (), lambda: Spoiled(course.work), leads=True)
    rows = [row_of(each, course) for each in (bare, Entry("other", "plain", (), lambda: make(course.work)))]
    scenario = replace(gpt.gpt(CPU, tiny=True), rows=rows, goals=[])
    return {measured.row.name: measured.wrong for measured in run_scenario(scenario, n_rounds=2).measured}


def test_a_trainer_that_makes_too_few_updates_is_found() -> None:
    assert wrong_with(Spoiled) == {"bare loop": None, "other": None}
    assert wrong_with(lambda work: Spoiled(work, lost=1))["other"] == "39 updates were made for 40 batches"


def test_a_trainer_that_does_not_get_where_the_bare_loop_gets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.on_device.work.LR", 3e-2)  # forty updates have to make a difference
    found = wrong_with(lambda work: Spoiled(work, rate=0.0))
    assert found["bare loop"] is None
    assert "where the bare loop has" in str(found["other"])


def test_a_trainer_that_logs_or_saves_too_little_is_found() -> None:
    chores = Chores(log_every=10, save_every=20)
    assert wrong_with(lambda work: Spoiled(work, kept=Kept(4, 2)), chores)["other"] is None
    assert "n_saves=1" in str(wrong_with(lambda work: Spoiled(work, kept=Kept(4, 1)), chores)["other"])


def test_the_clock_runs_between_two_updates() -> None:
    loop = Spoiled(a_work())
    seconds, _ = timed_run(loop, Updates(6, first=2, last=5), CPU)
    assert seconds > 0
    assert not loop.optimizer._optimizer_step_post_hooks
    with pytest.raises(WrongResult):
        timed_run(Spoiled(a_work(), lost=2), Updates(6, first=2, last=4), CPU)
    assert loss_of(loop.module, a_work(), CPU) > 0


class Event:
    """A CUDA event on a device whose clock runs a hundred seconds ahead of the host's."""

    device_ms = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = self.device_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return later.at_ms - self.at_ms


def test_a_mark_on_a_device_is_told_in_the_time_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr("bench.on_device.clocks.time.perf_counter", lambda: 7.0)
    monkeypatch.setattr(Event, "device_ms", 107_000.0)
    marks = Marks(torch.device("cuda"))
    for number, device_ms in ((3, 108_000.0), (5, 108_500.0)):
        monkeypatch.setattr(Event, "device_ms", device_ms)
        marks.put(number)
    assert marks.clock_s(3) == 8.0
    assert marks.between_s(3, 5) == 0.5


class Waiting(Spoiled):
    """Waits for its device twice a batch, for as long as somebody looks."""

    mode = "default"

    def train(self, n: int) -> Kept:
        def feed(n: int) -> Iterator[Any]:
            for batch in there_already(self.work, CPU, 2)(n):
                for _ in range(2 if Waiting.mode == "warn" else 0):
                    warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
                yield batch

        self.feed = feed
        return super().train(n)


def test_synchronisations_are_counted_in_steady_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(Waiting, "mode", mode))
    assert syncs_per_update(Waiting(a_work()), Updates(9, first=2, last=6)) == 2
    assert syncs_per_update(Spoiled(a_work()), Updates(9, first=2, last=6)) == 0
    assert Waiting.mode == "default"


def test_a_batch_of_pictures_is_the_same_whoever_makes_it_and_whenever() -> None:
    once, again = Pictures(TINY), Pictures(TINY)
    batch = once(1)
    assert batch["image"].shape == (TINY.batch_size, TINY.side, TINY.side, 3)
    assert (batch["image"] == again(1 + again.n_batches)["image"]).all()
    assert (batch["image"] != once(0)["image"]).any()
