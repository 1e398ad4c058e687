"""Several processes train one model: as one would, whatever their number; they stop, fail and go on together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from processes_project import furthest, ids_by_step, make_project, metrics_of, weights_of

import asyncloop
from asyncloop.checkpoint import Checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def alone(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[int]]]:
    """A run of one process, and the examples of each of its steps."""
    folder = tmp_path_factory.mktemp("alone")
    make_project(folder)
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", n=1) == [0], forks.said(folder)
    return folder / "run", ids_by_step(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_project(tmp_path)
    return tmp_path


def same_numbers(some: Any, others: Any, by: float) -> bool:
    """Whether nested metrics are alike, from which the processes' own parts of statistics are left out."""
    if isinstance(some, dict):
        return all(same_numbers(some[name], others[name], by) for name in some)
    return abs(some - others) <= by


@pytest.mark.parametrize(
    ("n", "settings"),
    [
        (2, ()),
        (3, ("model.parallel=ddp", "dataset.worker=async", "model.microbatches=2")),
        (2, ("model.parallel=fsdp",)),
        (3, ("model.parallel=fsdp", "model.microbatches=2")),
        (2, ("dataset.whole=true",)),
    ],
)
def test_they_end_where_one_does(
    forks: Forks, folder: Path, alone: tuple[Path, dict[int, list[int]]], n: int, settings: tuple[str, ...]
) -> None:
    """61 examples by twelve: the last batch has one, so all but one process only take part."""
    words = [word for setting in settings for word in ("--set", setting)]
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *words, n=n) == [0] * n, forks.said(folder)
    run, by_step = alone
    if "dataset.whole=true" in settings:
        ids_by_step(folder)
        assert forks.run(folder, "run", "cfg.toml", "--output-dir", "one", *words, n=1) == [0]
        run, by_step = folder / "one", ids_by_step(folder)
        assert furthest(weights_of(run), weights_of(folder / "run")) < 1e-5
        return
    assert ids_by_step(folder) == by_step
    assert furthest(weights_of(run), weights_of(folder / "run")) < 1e-5
    assert same_numbers(metrics_of(run), metrics_of(folder / "run"), by=1e-4)


def test_each_loads_only_its_own_examples(forks: Forks, folder: Path) -> None:
    words = (
        "run",
        "cfg.toml",
        "--output-dir",
        "run",
        "--set",
        "engine.epochs=1",
        "--set",
        "engine.skip_zeroth_epoch=true",
    )
    assert forks.run(folder, *words, COUNT_LOADS="1") == [0, 0], forks.said(folder)
    loads = [sorted(map(int, (folder / f"loads{rank}.txt").read_text().split())) for rank in (0, 1)]
    stands_in = len(loads[1]) - 30  # an example for the last batch, in which the second process has none
    assert stands_in in (0, 1)
    assert len(set(loads[0]) | set(loads[1])) == 61
    assert len(loads[0]) == 31


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_stopped_and_resumed_by_another_number_of_processes_the_order_goes_on(
    forks: Forks, folder: Path, alone: tuple[Path, dict[int, list[int]]], kind: str
) -> None:
    setting = ("--set", f"model.parallel={kind}")
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *setting, n=2, STOP_AT="5") == [0, 0]
    seen = ids_by_step(folder)
    assert list(seen) == [1, 2, 3, 4, 5]
    assert forks.run(folder, "resume", "run", n=3, STOP_AT="11") == [0, 0, 0], forks.said(folder)
    other = "model.parallel=fsdp" if kind == "ddp" else "model.parallel=ddp"
    assert forks.run(folder, "resume", "run", "--set", other, n=2, STOP_AT="12") == [0, 0], forks.said(folder)
    assert forks.run(folder, "resume", "run", n=1, STOP_AT="13") == [0], forks.said(folder)
    assert forks.run(folder, "resume", "run", n=2) == [0, 0], forks.said(folder)
    run, by_step = alone
    assert seen | ids_by_step(folder) == by_step
    assert furthest(weights_of(run), weights_of(folder / "run")) < 1e-5
    assert same_numbers(metrics_of(run), metrics_of(folder / "run"), by=1e-4)


def setting(**values: Any) -> list[str]:
    """`--set` for each; `__` stands for a dot."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def test_what_saves_at_a_step_does_so_where_the_other_processes_run_no_hook(forks: Forks, folder: Path) -> None:
    only = "[{class = 'SaveEvery', every = '4 steps'}]"
    words = ("run", "cfg.toml", "--output-dir", "run", *setting(hooks=only, engine__epochs=2))
    assert forks.run(folder, *words) == [0, 0], forks.said(folder)
    names = [f"step-{step:08d}" for step in (4, 8, 12)]
    assert Checkpoints(folder / "run" / "checkpoints").names() == names


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_norms_averages_a_loss_with_weights_and_another_optimizer_are_trained_and_resumed(
    forks: Forks, folder: Path, kind: str
) -> None:
    words = setting(
        model__parallel=kind,
        model__module__class="many_parts:Norms",
        model__loss__class="many_parts:Scaled",
        model__optimizer__class="torch.optim:Adamax",
    )
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "whole", *words) == [0, 0], forks.said(folder)
    means = [(folder / f"means{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert means[0] == means[1]
    assert len(set(means[0])) > 3
    if kind == "ddp":
        return
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *words, STOP_AT="5") == [0, 0]
    assert forks.run(folder, "resume", "run") == [0, 0], forks.said(folder)
    assert furthest(weights_of(folder / "whole"), weights_of(folder / "run")) < 1e-6


AREA = "{area={class='torchmetrics.classification:MulticlassAUROC',num_classes=3}}"


def test_a_metric_that_gathers_everything_is_resumed_by_any_number(forks: Forks, folder: Path) -> None:
    words = setting(model__metrics=AREA)
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "whole", *words) == [0, 0], forks.said(folder)
    for n in (1, 2):
        run = ("run", "cfg.toml", "--output-dir", f"run{n}", *words)
        assert forks.run(folder, *run, STOP_AT="5") == [0, 0], forks.said(folder)
        assert forks.run(folder, "resume", f"run{n}", n=n) == [0] * n, forks.said(folder)
        assert same_numbers(metrics_of(folder / "whole"), metrics_of(folder / f"run{n}"), by=1e-4)


def test_a_process_without_an_example_takes_part_in_such_a_metric(forks: Forks, folder: Path) -> None:
    words = setting(model__metrics=AREA, dataset__n_valid=1, engine__epochs=1)
    for n in (1, 2):
        run = ("run", "cfg.toml", "--output-dir", f"run{n}", *words)
        assert forks.run(folder, *run, n=n) == [0] * n, forks.said(folder)
    assert same_numbers(metrics_of(folder / "run1"), metrics_of(folder / "run2"), by=1e-4)


def test_a_metric_of_ones_own_counts_no_example_twice(forks: Forks, folder: Path) -> None:
    words = setting(model__metrics="{n={class='many_parts:Examples'}}", dataset__n_valid=1, engine__epochs=1)
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *words) == [0, 0], forks.said(folder)
    found = metrics_of(folder / "run")
    assert (found["train"]["n"], found["valid"]["n"]) == (61, 1)


def test_shards_with_other_weights_have_another_fingerprint(forks: Forks, folder: Path) -> None:
    prints = set[str | None]()
    for seed in (1, 2):
        words = setting(model__parallel="fsdp", run__seed=seed, engine__steps=2)
        assert forks.run(folder, "run", "cfg.toml", "--output-dir", f"run{seed}", *words) == [0, 0], forks.said(folder)
        prints.add(Checkpoints(folder / f"run{seed}" / "checkpoints").fingerprint("step-00000002"))
    assert len(prints - {None}) == 2


def test_what_one_is_asked_all_do_at_the_same_step(forks: Forks, folder: Path) -> None:
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", STOP_AT="3@1", n=3) == [0, 0, 0]
    record = json.loads((folder / "run" / "run.json").read_text())
    assert (record["state"], record["reason"]) == ("stopped", "told to")
    assert 3 <= record["steps"] <= 3 + 16
    lines = [(folder / f"ids{rank}.txt").read_text().splitlines() for rank in range(3)]
    assert {int(own[-1].split()[0]) for own in lines} == {record["steps"]}


def test_a_pause_that_one_is_asked_for_is_everybodys(
    forks: Forks, folder: Path, alone: tuple[Path, dict[int, list[int]]]
) -> None:
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", PAUSE_AT="4") == [0, 0], forks.said(folder)
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    (paused,) = [each for each in events if each["event"] == "paused"]
    (resumed,) = [each for each in events if each["event"] == "resumed"]
    assert paused["step"] == resumed["step"]
    assert furthest(weights_of(alone[0]), weights_of(folder / "run")) < 1e-5


def test_one_that_fails_ends_the_others_with_its_reason(forks: Forks, folder: Path) -> None:
    words = ("run", "cfg.toml", "--output-dir", "run", "--set", "model.module.class=many_parts:Breaks")
    assert forks.run(folder, *words) == [3, 3]
    assert "broken on purpose" in forks.said(folder, 1)
    assert "process 1 failed: ArithmeticError: broken on purpose" in forks.said(folder, 0)
    record = json.loads((folder / "run" / "run.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 3)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_hook_that_fails_ends_all_of_them_and_what_they_have_done_is_saved(
    forks: Forks, folder: Path, alone: tuple[Path, dict[int, list[int]]], kind: str
) -> None:
    setting = ("--set", f"model.parallel={kind}")
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *setting, FAIL_AT="10") == [3, 3]
    assert "the hook gives up" in forks.said(folder, 0)
    assert "process 0 failed: LookupError: the hook gives up" in forks.said(folder, 1)
    assert Checkpoints(folder / "run" / "checkpoints").find().name == "step-00000010"
    assert forks.run(folder, "resume", "run", n=3) == [0, 0, 0], forks.said(folder)
    assert furthest(weights_of(alone[0]), weights_of(folder / "run")) < 1e-5


def test_a_killed_one_ends_the_others_and_the_run_goes_on_as_if_nothing_had_been(
    forks: Forks, folder: Path, alone: tuple[Path, dict[int, list[int]]]
) -> None:
    codes = forks.run(folder, "run", "cfg.toml", "--output-dir", "run", kill=(1, "marked"), MARK_AT="9")
    assert codes == [3, -9]
    assert "a process that trains the same model has gone" in forks.said(folder, 0)
    (folder / "marked").unlink()
    assert forks.run(folder, "resume", "run") == [0, 0], forks.said(folder)
    assert furthest(weights_of(alone[0]), weights_of(folder / "run")) < 1e-5


def test_a_model_of_one_process_is_refused(forks: Forks, folder: Path) -> None:
    text = (folder / "cfg.toml").read_text()
    begin, end = text.index("[model]"), text.index("[engine]")
    mlp = '[model]\nclass = "asyncloop.models:MLP"\ninputs = "x"\nn_inputs = 8\nn_classes = 3\n'
    (folder / "cfg.toml").write_text(text[:begin] + mlp + text[end:])
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run") == [2, 2]
    assert "MLP is trained by one process, and 2 were started" in forks.said(folder)
    assert not (folder / "run").exists()


def test_shards_are_read_by_pytorch_by_one_process_and_by_an_evaluation(forks: Forks, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    setting = ("--set", "model.parallel=fsdp")
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *setting, n=3) == [0, 0, 0], forks.said(folder)
    weights = weights_of(folder / "run")
    path = Checkpoints(folder / "run" / "checkpoints").find()
    assert sorted(each.name for each in path.glob("*.shard-*")) == [
        f"model.shard-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    there = {f"module/{name}": torch.zeros(each.shape) for name, each in weights.items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(there, storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    assert furthest(weights, {name.removeprefix("module/"): each.numpy() for name, each in there.items()}) == 0.0
    assert forks.run(folder, "eval", "valid", "run", n=1) == [0], forks.said(folder)
    assert forks.run(folder, "eval", "valid", "run", n=2) == [0, 0], forks.said(folder)
    alone, together = sorted((folder / "run" / "eval").iterdir(), key=lambda each: each.stat().st_mtime)
    assert same_numbers(metrics_of(alone), metrics_of(together), by=1e-5)
    code = f"import asyncloop; print(float(asyncloop.load_model({str(folder / 'run')!r}).weights()['head.bias'].sum()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert np.isfinite(float(done.stdout))


def test_a_damaged_shard_is_noticed(forks: Forks, folder: Path) -> None:
    setting = ("--set", "model.parallel=fsdp", "--set", "engine.epochs=1")
    assert forks.run(folder, "run", "cfg.toml", "--output-dir", "run", *setting) == [0, 0], forks.said(folder)
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    shard = checkpoints.find() / "model.shard-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(asyncloop.CheckpointError, match="shard-00002-of-00002"):
        checkpoints.read()
    saved = checkpoints.read_newest()
    assert saved is not None
    assert saved.step == 4


def test_started_again_by_torchrun_the_run_goes_on_by_itself(
    folder: Path, alone: tuple[Path, dict[int, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed; torchrun starts both anew, and they find the run that they had begun."""
    monkeypatch.setenv("MARK_AT", "9")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    popen = subprocess.Popen(
        [*torchrun, "-m", "asyncloop", "run", "cfg.toml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(popen.pid), str(folder / "marked")],
        capture_output=True,
        text=True,
        check=False,
    )
    said, _ = popen.communicate(timeout=120)
    assert killed.returncode == 0, killed.stderr
    assert popen.returncode == 0, said
    (run,) = (folder / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "completed"
    assert [each["checkpoint"] for each in record["resumes"]] == ["step-00000008"]
    assert furthest(weights_of(alone[0]), weights_of(run)) < 1e-5


KILLER = """
import os, signal, sys, time
from pathlib import Path
agent, mark = int(sys.argv[1]), Path(sys.argv[2])
deadline = time.monotonic() + 100
while not mark.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
children = [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
ranks = {}
for pid in children:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\\0")
    ranks.update({entry.split(b"=")[1]: pid for entry in environment if entry.startswith(b"RANK=")})
mark.unlink()
os.kill(ranks[b"1"], signal.SIGKILL)
"""
