"""Resume: what it goes on from, what it refuses and by which name, and what happens when something is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting
from stopping_project import make_project, outcome

import asyncloop
from asyncloop import AfterBatch, CheckpointError, ConfigError, Engine, NothingToResumeError, StorageError, Stream
from asyncloop.archive import read_run
from asyncloop.checkpoint import Checkpoints
from asyncloop.evaluation import open_evaluation
from asyncloop.hooks import SaveLatest
from asyncloop.resuming import prepare
from asyncloop.rundir import RunDir

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
"""For what is about files, and need not be tested on each event loop."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "exact_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("STOP_AT", "STOP_IN_EVALUATION_AT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


async def run_to_end(**options: Any) -> Path:
    async with asyncloop.open_run(**options) as live:
        await live
    assert live.dir is not None
    return live.dir


@pytest.fixture
async def stopped(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped after step 10 of 24, with checkpoints of the steps 4, 8 and 10."""
    monkeypatch.setenv("STOP_AT", "10")
    run = await run_to_end(source="cfg.toml")
    monkeypatch.delenv("STOP_AT")
    return run


# --- what it goes on from -----------------------------------------------------------------------------------------


async def test_a_finished_run_with_more_epochs_goes_on_as_if_it_had_had_them(project: Path) -> None:
    run = await run_to_end(source="cfg.toml")
    await run_to_end(resume=run, set={"engine.epochs": 5})
    long = outcome(await run_to_end(source="cfg.toml", set={"engine.epochs": 5}))
    found = outcome(run)
    for part in ("step", "model", "positions", "metrics", "training.csv", "batches.jsonl", "rng"):
        assert found[part] == long[part], part


async def test_a_finished_run_is_finished(project: Path) -> None:
    run = await run_to_end(source="cfg.toml")
    before = outcome(run)
    async with asyncloop.open_run(resume=run) as live:
        result = await live
    assert (result.steps, result.reason) == (24, "3 epochs done")
    assert outcome(run) == before


async def test_an_older_checkpoint_leads_to_the_same_end(stopped: Path, project: Path) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    await run_to_end(resume=stopped, checkpoint="8")
    assert outcome(stopped) == whole


@on_asyncio
async def test_a_run_killed_right_after_it_went_back_goes_on_from_there(stopped: Path, project: Path) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    resumption = prepare(stopped, checkpoint="8")
    resumption.take_over()
    resumption.rundir.close()
    assert Checkpoints(stopped / "checkpoints").read().step == 8
    await run_to_end(resume=stopped)
    assert outcome(stopped) == whole


@on_asyncio
async def test_half_a_line_goes_even_where_the_checkpoint_does_not_say_how_many_there_were(
    stopped: Path, project: Path
) -> None:
    path = stopped / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "befo')
    rundir = RunDir.reopen(stopped)
    rundir.take_over(8, {}, {})
    rundir.close()
    assert path.read_bytes() == whole


@on_asyncio
async def test_a_finished_run_killed_while_it_goes_back_is_not_finished(
    stopped: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_to_end(resume=stopped)
    resumption = prepare(stopped, checkpoint=Checkpoints(stopped / "checkpoints").names()[-2])

    def killed(self: Checkpoints, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "go_back", killed)
        resumption.take_over()
    resumption.rundir.close()
    assert read_run(stopped).state == "lost"
    await run_to_end(resume=stopped)
    assert outcome(stopped) == outcome(await run_to_end(source="cfg.toml"))


@on_asyncio
async def test_a_best_one_that_was_given_up_is_found_anew(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(stopped / "checkpoints")
    (stopped / "checkpoints" / "best").unlink()  # as going back to before it does
    await run_to_end(resume=stopped)
    assert "is not there any more: the next one is the best" in caplog.text
    assert checkpoints.read("best").step > 10


@on_asyncio
async def test_an_evaluation_is_not_resumed(stopped: Path) -> None:
    async with open_evaluation(stopped, ["valid"]) as live:
        await live
    assert live.dir is not None
    before = contents(live.dir)
    with pytest.raises(NothingToResumeError, match=r"is an evaluation.* asyncloop eval valid "):
        await run_to_end(resume=live.dir, set={"engine.epochs": 5})
    assert contents(live.dir) == before


@on_asyncio
async def test_a_finished_run_that_saved_nothing_is_not_emptied(project: Path) -> None:
    run = await run_to_end(source="cfg.toml", set={"engine.epochs": 0, "hooks": []})
    before = contents(run)
    with pytest.raises(NothingToResumeError, match="is finished and has no checkpoint"):
        await run_to_end(resume=run, set={"engine.epochs": 2})
    assert contents(run) == before


async def test_a_run_without_a_checkpoint_begins_again(project: Path) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    code = "import os, signal, asyncloop\nasyncloop.run('cfg.toml', output_dir='run')"
    (project / "exact_parts.py").write_text(
        (project / "exact_parts.py").read_text() + "\nclass Dies:\n    async def before_epoch(self, event):\n"
        "        if os.environ.get('DIE'):\n            os.kill(os.getpid(), 9)\n"
    )
    (project / "cfg.toml").write_text((project / "cfg.toml").read_text() + '[[hooks]]\nclass = "exact_parts:Dies"\n')
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "DIE": "1"}, cwd=project, check=False)
    assert not Checkpoints(project / "run" / "checkpoints").names()
    sys.modules.pop("exact_parts", None)
    await run_to_end(resume=project / "run")
    found = outcome(project / "run")
    assert {part for part in whole if found[part] != whole[part]} == set()


async def test_a_run_of_an_engine_goes_on_with_another_engine(tmp_path: Path) -> None:
    def engine(model: Any, epochs: int) -> Engine:
        return Engine(model, Arrays(4), [SaveLatest()], epochs=epochs)  # the directory comes from open_run

    whole = Counting()
    await Engine(whole, Arrays(4), epochs=3).train()
    async with asyncloop.open_run(engine=engine(Counting(), 1), output_dir=tmp_path / "run") as live:
        await live
    model, seen = Counting(), list[int]()
    again = engine(model, 3)
    again.bus.subscribe(AfterBatch, lambda event: seen.append(event.step) if event.train else None)
    async with asyncloop.open_run(engine=again, resume=tmp_path / "run") as live:
        result = await live
    assert (result.steps, live.dir) == (12, tmp_path / "run")
    assert seen == list(range(5, 13))
    assert str(model.state_dict()) == str(whole.state_dict())


@on_asyncio
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 7}, "seed was 0 and is now 7"),
        ({"epoch_size": 3}, "epoch_size was not there and is now 3"),
        ({"batch_size": 4}, "batch_size was not there and is now 4"),
        ({"train_stream": "valid"}, "train_stream was 'train' and is now 'valid'"),
    ],
)
async def test_an_engine_that_would_lead_elsewhere_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    async with asyncloop.open_run(engine=Engine(Counting(), Arrays(4), epochs=1), output_dir=tmp_path / "run") as live:
        await live
    before = contents(tmp_path / "run")

    def other() -> Engine:
        return Engine(Counting(), Arrays(4), epochs=2, **changed)

    with pytest.raises(ConfigError, match=told):
        async with asyncloop.open_run(engine=other(), resume=tmp_path / "run") as live:
            await live
    assert contents(tmp_path / "run") == before
    async with asyncloop.open_run(engine=other(), resume=tmp_path / "run", force=True) as live:
        await live
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["resumes"][0]["changes"]
    assert list(recorded) == list(changed)


@on_asyncio
async def test_an_engine_whose_model_cannot_load_the_state_is_told_before_anything_is_changed(tmp_path: Path) -> None:
    class Refusing(Counting):
        def load_state_dict(self, state: Any) -> None:
            raise ValueError("that is no state of mine")

    async with asyncloop.open_run(engine=Engine(Counting(), Arrays(4), epochs=2), output_dir=tmp_path / "run") as live:
        await live
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="no state of mine"):
        async with asyncloop.open_run(engine=Engine(Refusing(), Arrays(4), epochs=3), resume=tmp_path / "run") as live:
            await live
    assert contents(tmp_path / "run") == before


@on_asyncio
async def test_a_model_whose_code_has_changed_is_told_before_anything_is_changed(stopped: Path, project: Path) -> None:
    with open(project / "exact_parts.py", "a") as code:
        code.write(
            "\ndef refuse(self, state):\n    raise ValueError('that is no state of mine')\n"
            "for each in [each for each in list(vars().values()) if hasattr(each, 'load_state_dict')]:\n"
            "    each.load_state_dict = refuse\n"
        )
    sys.modules.pop("exact_parts")
    before = contents(stopped)
    with pytest.raises(ValueError, match="no state of mine"):
        await run_to_end(resume=stopped, checkpoint="8")
    assert contents(stopped) == before


@on_asyncio
async def test_a_place_far_into_ten_million_examples_is_reached_without_reading_up_to_it(tmp_path: Path) -> None:
    read = list[int]()

    def reading(indices: Any) -> dict[str, Any]:
        read.append(int(indices[0]))
        return {"x": np.asarray(indices[:4], dtype=float)}

    class Millions:
        def train_stream(self) -> Stream:
            batches = Stream.range(10_000_000, shuffle=True).batch(50_000)
            return batches.map(reading, worker="inline").shuffle(16)

    whole = Counting()
    await Engine(whole, Millions(), steps=195).train()
    async with asyncloop.open_run(
        engine=Engine(Counting(), Millions(), steps=190), output_dir=tmp_path / "run"
    ) as live:
        await live
    read.clear()
    model = Counting()
    async with asyncloop.open_run(engine=Engine(model, Millions(), steps=195), resume=tmp_path / "run") as live:
        await live
    assert model.trained_on == whole.trained_on[190:]
    assert len(read) <= 16 + 10, "the window of the shuffle, and at most what is left of the pass"
    assert str(model.state_dict()) == str(whole.state_dict())


async def test_the_log_of_a_lost_attempt_is_put_aside_and_the_files_are_cut(stopped: Path) -> None:
    with open(stopped / "log.txt", "a") as log:
        log.write("the power went\n")
    with open(stopped / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 11, "str')
    await run_to_end(resume=stopped)
    assert "the power went" not in (stopped / "log.txt").read_text()
    assert "the power went" in (stopped / "log.discarded.txt").read_text()
    assert all(json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines())
    record = json.loads((stopped / "run.json").read_text())
    assert [(each["step"], each["checkpoint"], each["changes"]) for each in record["resumes"]] == [
        (10, "step-00000010", {})
    ]


# --- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.lr", 0.5),
        ("dataset.batch_size", 4),
        ("run.seed", 6),
        ("engine.epoch_size", 3),
        ("engine.batch_size", 8),
        ("engine.own_rng", False),
    ],
)
async def test_a_change_that_leads_elsewhere_is_refused_by_name_and_nothing_is_touched(
    stopped: Path, key: str, value: Any
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"{key} was .* and is now {value}"):
        await run_to_end(resume=stopped, set={key: value})
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    await run_to_end(resume=stopped)


async def test_a_forced_change_is_made_and_recorded(stopped: Path) -> None:
    await run_to_end(resume=stopped, set={"model.lr": 0.5}, force=True)
    record = json.loads((stopped / "run.json").read_text())
    assert record["resumes"][0]["changes"] == {"model.lr": [1e-3, 0.5]}
    assert "lr = 0.5" in (stopped / "resolved.toml").read_text()


async def test_what_does_not_change_the_steps_may_be_different(stopped: Path, project: Path) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    changes = {
        "engine.buffer": 1,
        "run.tags": ["again"],
        "hooks.3.variables": ["loss"],
        "engine.deadlines": {"step": 60.0},
    }
    await run_to_end(resume=stopped, set=changes)
    found = outcome(stopped)
    for part in ("model", "metrics", "positions", "rng", "training.csv"):
        assert found[part] == whole[part], part


async def test_a_run_that_is_not_there_is_named(project: Path) -> None:
    with pytest.raises(NothingToResumeError, match="no run matches 'nowhere'"):
        await run_to_end(resume="nowhere")


async def test_one_run_has_one_writer_and_a_killed_one_does_not_block(stopped: Path) -> None:
    first = RunDir.reopen(stopped)
    try:
        with pytest.raises(StorageError, match="another process is writing the run"):
            await run_to_end(resume=stopped)
    finally:
        first.close()
    code = (
        "import time\nfrom pathlib import Path\nfrom asyncloop.rundir import RunDir\n"
        "run = RunDir.reopen(Path('.'))\nprint('held', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=stopped, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="one run, one writer"):
            await run_to_end(resume=stopped)
        holder.kill()
    await run_to_end(resume=stopped)


@on_asyncio
async def test_a_forked_child_does_not_hold_the_lock_of_a_killed_run(stopped: Path) -> None:
    code = (
        "import os, time\nfrom pathlib import Path\nfrom asyncloop.rundir import RunDir\n"
        "run = RunDir.reopen(Path('.'))\n"
        "child = os.fork()\nif child:\n    print(child, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=stopped, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        holder.kill()
        holder.wait()
        try:
            await run_to_end(resume=stopped)
        finally:
            os.kill(child, signal.SIGKILL)


@on_asyncio
@pytest.mark.parametrize("content", ["[]", '{"id": "a", "name": "b"}', '{"id": "a", "name": "b", "times": 3}', "{"])
async def test_a_damaged_record_is_named(stopped: Path, content: str) -> None:
    (stopped / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"run.json is damaged"):
        await run_to_end(resume=stopped)


# --- a class that is gone -----------------------------------------------------------------------------------------

OLD = """
from asyncloop.models import MLP

class Old(MLP):
    restore_fallback = "FALLBACK"
    def __init__(self, flavour: str = "sweet", **arguments):
        super().__init__(**arguments)
"""

REFUSES = """
class Refuses:
    input_names, output_names = ("x", "label"), ("loss",)
    def __init__(self, n_inputs: int):
        pass
    def run(self, batch, *, train, stream):
        return {"loss": 1.0}
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        raise ValueError("that is no state of mine")
"""


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def forget(project: Path, run: Path, module: str = "old_models") -> None:
    """The module is gone, and the run's own copy of it."""
    (project / f"{module}.py").unlink()
    (run / "code" / f"{module}.py").unlink()
    sys.modules.pop(module)


@pytest.fixture
async def orphan(project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A run stopped after step 10, whose model's class is gone. The parameter is the fallback that it named."""
    fallback = getattr(request, "param", "asyncloop.models:MLP")
    (project / "old_models.py").write_text(OLD.replace("FALLBACK", fallback))
    (project / "fallbacks.py").write_text(REFUSES)
    config = (project / "cfg.toml").read_text()
    (project / "cfg.toml").write_text(config.replace("asyncloop.models:MLP", "old_models:Old"))
    monkeypatch.setenv("STOP_AT", "10")
    run = await run_to_end(source="cfg.toml")
    monkeypatch.delenv("STOP_AT")
    (project / "cfg.toml").write_text(config)
    forget(project, run)
    return run


async def test_a_run_whose_models_class_is_gone_goes_on_with_its_fallback(
    orphan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    caplog.clear()
    await run_to_end(resume=orphan)
    assert outcome(orphan) == whole
    told = [line for line in caplog.messages if "is gone" in line]
    assert len(told) == 1
    assert "old_models:Old is gone; restored as asyncloop.models:MLP without flavour" in told[0]
    changes = json.loads((orphan / "run.json").read_text())["resumes"][0]["changes"]
    assert changes["model.class"] == ["old_models:Old", "asyncloop.models:MLP"]
    assert changes["model.flavour"] == ["sweet", None]
    assert {key.partition(".")[0] for key in changes} == {"model"}
    resolved = tomllib.loads((orphan / "resolved.toml").read_text())
    assert (resolved["model"]["class"], "flavour" in resolved["model"]) == ("asyncloop.models:MLP", False)


async def test_afterwards_it_is_a_run_of_that_class(orphan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", "14")
    await run_to_end(resume=orphan)
    monkeypatch.delenv("STOP_AT")
    await run_to_end(resume=orphan, set={"engine.epochs": 4})
    resumes = json.loads((orphan / "run.json").read_text())["resumes"]
    assert resumes[1]["changes"] == {"engine.epochs": [3, 4]}
    assert type(asyncloop.load_model(orphan)).__name__ == "MLP"


async def test_what_else_would_lead_elsewhere_is_refused_all_the_same(
    orphan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(orphan)
    with pytest.raises(ConfigError, match="model.lr was .* and is now 0.5") as told:
        await run_to_end(resume=orphan, set={"model.lr": 0.5})
    assert "model.class" not in str(told.value)
    assert contents(orphan) == before
    assert len([line for line in caplog.messages if "is gone" in line]) == 1


async def test_a_class_that_has_moved_can_be_given_by_force_with_all_its_arguments(orphan: Path, project: Path) -> None:
    (project / "new_models.py").write_text(OLD)
    moved = {"model.class": "new_models:Old"}
    with pytest.raises(ConfigError, match="model.class was .* and is now 'new_models:Old'"):
        await run_to_end(resume=orphan, set=moved)
    await run_to_end(resume=orphan, set=moved, force=True)
    assert json.loads((orphan / "run.json").read_text())["resumes"][0]["changes"] == {
        "model.class": ["old_models:Old", "new_models:Old"]
    }
    sys.modules.pop("new_models")


@pytest.mark.parametrize("orphan", ["fallbacks:Refuses"], indirect=True)
async def test_a_fallback_that_cannot_load_the_state_is_told_before_anything_is_changed(orphan: Path) -> None:
    before = contents(orphan)
    with pytest.raises(ValueError, match="no state of mine") as told:
        await run_to_end(resume=orphan)
    assert any("loading the weights of" in note for note in told.value.__notes__)
    assert contents(orphan) == before
    sys.modules.pop("fallbacks")


async def test_a_forced_model_that_cannot_load_the_state_is_told_before_anything_is_changed(stopped: Path) -> None:
    before = contents(stopped)
    with pytest.raises(asyncloop.ModelError):
        await run_to_end(resume=stopped, set={"model.hidden": [7]}, force=True)
    assert contents(stopped) == before
    await run_to_end(resume=stopped)


@pytest.mark.parametrize("orphan", ["fallbacks:Gone"], indirect=True)
async def test_a_fallback_that_is_gone_as_well_is_noted_and_nothing_is_changed(orphan: Path) -> None:
    before = contents(orphan)
    with pytest.raises(ConfigError, match="there is no module `old_models`") as told:
        await run_to_end(resume=orphan)
    assert any("restore_fallback cannot be imported either" in note for note in told.value.__notes__)
    assert contents(orphan) == before


async def test_a_run_of_an_engine_is_told_how_to_go_on_without_a_config(tmp_path: Path) -> None:
    engine = Engine(Counting(), Arrays(4), epochs=1)
    async with asyncloop.open_run(engine=engine, output_dir=tmp_path / "run") as live:
        await live
    with pytest.raises(
        NothingToResumeError, match=r"an Engine in Python.*open_run\(engine=Engine\(…\), resume='.*run'\)"
    ):
        await run_to_end(resume=tmp_path / "run")


# --- damage -------------------------------------------------------------------------------------------------------


async def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_leads_to_the_same_end(
    stopped: Path, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = outcome(await run_to_end(source="cfg.toml"))
    damaged = stopped / "checkpoints" / "step-00000010" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        await run_to_end(resume=stopped, strict=True)
    await run_to_end(resume=stopped)
    assert any("is damaged" in line and "going back" in line for line in caplog.messages)
    assert outcome(stopped) == whole


def test_every_flip_and_every_cut_of_every_file_is_noticed(tmp_path: Path) -> None:
    import numpy as np

    checkpoints = Checkpoints(tmp_path)
    parts = {"model": {"w": np.arange(8.0)}, "hooks": {"h": {"a": np.ones(2)}}, "epoch": {"phase": "over"}}
    path = checkpoints.write(1, parts, {"epoch": 1}, [])
    n_noticed = 0
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for at in range(0, len(whole), 7):
            for spoilt in (whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], whole[:at]):
                file.write_bytes(spoilt)
                with pytest.raises(CheckpointError):
                    checkpoints.read("1")
                n_noticed += 1
        file.unlink()
        with pytest.raises(CheckpointError):
            checkpoints.read("1")
        file.write_bytes(whole)
    assert checkpoints.read("1").step == 1
    assert n_noticed > 300


def test_a_writer_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, {"model": {}, "hooks": {}}, {}, [])
    os.rename(tmp_path / "step-00000001", tmp_path / ".tmp-before-step-00000001")
    (tmp_path / ".tmp-step-00000001").mkdir()
    checkpoints.clean()
    assert checkpoints.read().step == 1
    assert not list(tmp_path.glob(".tmp-*"))


# --- stops and failures -------------------------------------------------------------------------------------------


async def test_what_a_failed_producer_leaves_is_saved_marked_and_resumed(tmp_path: Path) -> None:
    class Fails(Arrays):
        broken = True

        def train_stream(self) -> Any:
            for index, batch in enumerate(super().train_stream()):
                if index == 3 and self.broken:
                    raise OSError("the disk of the data is gone")
                yield batch

    with pytest.raises(OSError, match="the disk of the data"):
        engine = Engine(Counting(), Fails(6), epochs=2, skip_zeroth_epoch=True)
        async with asyncloop.open_run(engine=engine, output_dir=tmp_path / "run") as live:
            await live
    saved = Checkpoints(tmp_path / "run" / "checkpoints").read()
    assert (saved.step, saved.engine["after_failure"]) == (3, "OSError: the disk of the data is gone")
    repaired, model = Fails(6), Counting()
    repaired.broken = False
    async with asyncloop.open_run(engine=Engine(model, repaired, epochs=2), resume=tmp_path / "run") as live:
        assert (await live).steps == 12
    whole = Counting()
    await Engine(whole, Arrays(6), epochs=2).train()
    assert str(model.state_dict()) == str(whole.state_dict())


async def test_a_parameter_that_was_set_is_set_again(tmp_path: Path) -> None:
    class Forgetful(Counting):
        """Its state does not hold the parameter; the checkpoint does."""

        def state_dict(self) -> dict[str, Any]:
            return {"total": self.total, "lr": 1.0}

    engine = Engine(Forgetful(), Arrays(4), epochs=1)
    engine.bus.subscribe(AfterBatch, lambda event: event.control.set("lr", 0.25))
    async with asyncloop.open_run(engine=engine, output_dir=tmp_path / "run") as live:
        await live
    model = Forgetful()
    async with asyncloop.open_run(engine=Engine(model, Arrays(4), epochs=2), resume=tmp_path / "run") as live:
        await live
    assert model.lr == 0.25


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_then_resume_on_the_command_line(project: Path, number: int, code: int) -> None:
    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "asyncloop", *words, "--progress", "none"]

    slow = ["--set", "dataset.pause_s=0.05", "--output-dir"]
    whole = subprocess.run(command("run", "cfg.toml", *slow, "whole"), cwd=project, capture_output=True, check=False)
    assert whole.returncode == 0
    popen = subprocess.Popen(command("run", "cfg.toml", *slow, "cut"), cwd=project, stderr=subprocess.DEVNULL)
    newest = project / "cut" / "checkpoints" / "step-00000004" / "manifest.json"
    while not newest.exists() and popen.poll() is None:
        time.sleep(0.01)
    popen.send_signal(number)
    assert popen.wait(timeout=30) == code
    assert json.loads((project / "cut" / "run.json").read_text())["state"] == "interrupted"
    done = subprocess.run(command("resume", "cut", "--json"), cwd=project, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["state"], found["exit_code"], found["steps"]) == (0, "completed", 0, 24)
    assert outcome(project / "cut") == outcome(project / "whole")
    done = subprocess.run(command("resume", "cut"), cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert done.stdout.splitlines()[1] == str(project / "cut")


async def test_a_run_that_began_with_old_weights_and_saved_nothing_begins_with_them_again(
    stopped: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(await run_to_end(source="cfg.toml", init_from=stopped))
    run = await run_to_end(source="cfg.toml", init_from=os.path.relpath(stopped))
    shutil.rmtree(run / "checkpoints")  # as if it had been killed before the first one
    (run / "run.json").write_text((run / "run.json").read_text().replace('"completed"', '"running"'))
    project.joinpath("elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    await run_to_end(resume=run)
    assert outcome(run) == whole


async def test_an_epoch_whose_end_failed_in_a_hook_ends_once_more(project: Path) -> None:
    (project / "exact_parts.py").write_text(
        (project / "exact_parts.py").read_text() + "\nclass Fails:\n    def after_epoch(self, event):\n"
        "        if event.epoch == 2 and os.environ.get('FAIL'):\n            raise RuntimeError('told to')\n"
    )
    (project / "cfg.toml").write_text((project / "cfg.toml").read_text() + '[[hooks]]\nclass = "exact_parts:Fails"\n')
    whole = outcome(await run_to_end(source="cfg.toml"))
    os.environ["FAIL"] = "1"
    try:
        with pytest.raises(RuntimeError, match="told to"):
            await run_to_end(source="cfg.toml", output_dir=project / "run")
    finally:
        del os.environ["FAIL"]
    await run_to_end(resume=project / "run")
    assert outcome(project / "run") == whole
