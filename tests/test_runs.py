"""Runs: from a config to a directory, and a handle on it while it lives."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting

import asyncloop
from asyncloop import (
    AfterBatch,
    AfterEpoch,
    AfterTraining,
    BeforeEpoch,
    CheckpointError,
    ConfigError,
    Engine,
    Hook,
    NothingToResumeError,
)
from asyncloop.archive import read_run
from asyncloop.checkpoint import Checkpoints
from asyncloop.recorder import Recorder
from asyncloop.rundir import RunDir

CONFIG = """
[run]
name = "tiny"
root = "{root}/runs"

[dataset]
class = "tiny_parts:Data"

[model]
class = "asyncloop.models:SoftmaxRegression"
inputs = "x"
n_inputs = 3
n_classes = 2

[engine]
epochs = 2
extra_streams = ["valid"]
"""

PARTS = """
import numpy as np
from asyncloop import Hook, Stream

class Data:
    def __init__(self, n=5):
        self.n = n
    def train_stream(self):
        rng = np.random.default_rng(0)
        for _ in range(self.n):
            x = rng.normal(size=(8, 3)).astype("float32")
            yield {"x": x, "label": (x.sum(axis=1) > 0).astype("int64"), "id": np.arange(8)}
    valid_stream = train_stream

class Endless(Data):
    def train_stream(self):
        while True:
            yield from Data.train_stream(self)

class Fails(Data):
    def train_stream(self):
        yield from Data.train_stream(self)
        raise RuntimeError("the data broke")

class Raises(Hook):
    async def after_epoch(self, event):
        raise KeyError("my own")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and the modules it names."""
    (tmp_path / "tiny_parts.py").write_text(textwrap.dedent(PARTS))
    (tmp_path / "cfg.toml").write_text(CONFIG.format(root=tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "tiny_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.anyio
async def test_a_run_leaves_the_promised_directory(project: Path) -> None:
    async with asyncloop.open_run(project / "cfg.toml") as live:
        assert live.state in ("starting", "running")
        result = await live
    run = result.dir
    assert run is not None
    assert re.fullmatch(r"tiny-\d{8}-\d{6}-[0-9a-f]{8}", run.name)
    assert {entry.name for entry in run.iterdir()} >= {
        "config.toml", "resolved.toml", "run.json", "trace.json", "log.txt", "events.jsonl", "metrics.jsonl", "code",
        "checkpoints", "lock",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["exit_code"], record["epochs"], record["steps"]) == ("completed", 0, 2, 10)
    assert record["reason"] == "2 epochs done"
    assert record["times"]["ended"] > record["times"]["created"]
    assert record["metrics"]["valid"]["accuracy"] == result.metrics["valid"]["accuracy"]
    assert (run / "config.toml").read_text() == (project / "cfg.toml").read_text()
    assert (run / "code" / "tiny_parts.py").read_text() == textwrap.dedent(PARTS)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["stream"]) for line in metrics] == [
        (0, 0, "train"), (0, 0, "valid"), (1, 5, "valid"), (1, 5, "train"), (2, 10, "valid"), (2, 10, "train")
    ]  # fmt: skip
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[0] == "before_training"
    assert events[-1] == "after_training"
    assert events.count("after_epoch") == 3
    trace = json.loads((run / "trace.json").read_text())
    assert (trace["epochs_done"], trace["exit_status"]) == (2, 0)
    assert Checkpoints(run / "checkpoints").read().step == 10
    assert live.snapshot()["state"] == "completed"


@pytest.mark.anyio
async def test_the_resolved_config_reloads_to_the_same_run(project: Path) -> None:
    async with asyncloop.open_run(project / "cfg.toml") as live:
        first = await live
    assert first.dir is not None
    async with asyncloop.open_run(first.dir / "resolved.toml") as live:
        second = await live
    assert first.metrics == second.metrics
    assert second.dir is not None
    for file in ("model.safetensors", "state.json"):
        paths = [run / "checkpoints" / "step-00000010" / file for run in (first.dir, second.dir)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.anyio
async def test_a_failing_run_never_cancels_the_body_and_raises_its_own_exception(project: Path) -> None:
    change = {"dataset.class": "tiny_parts:Fails"}
    reached = False
    async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
        await live.ended()
        reached = True
        with pytest.raises(RuntimeError, match="the data broke") as caught:
            await live
    assert reached
    assert "stream 'train', batch 5" in caught.value.__notes__
    with pytest.raises(RuntimeError, match="the data broke"):
        async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
            await live.ended()
    assert live.dir is not None
    record = json.loads((live.dir / "run.json").read_text())
    assert (record["state"], record["exit_code"]) == ("failed", 3)
    assert json.loads((live.dir / "trace.json").read_text())["exit_status"] == 1
    assert "the data broke" in (live.dir / "log.txt").read_text()


@pytest.mark.anyio
async def test_leaving_early_is_a_stop_with_a_final_save(project: Path) -> None:
    change = {"dataset.class": "tiny_parts:Endless", "engine.epochs": 1, "engine.extra_streams": []}
    async with asyncloop.open_run(project / "cfg.toml", set={**change, "engine.skip_zeroth_epoch": True}) as live:
        async for event in live.events(AfterBatch):
            if event.step > 20:
                break
    assert live.state == "stopped"
    assert live.dir is not None
    assert Checkpoints(live.dir / "checkpoints").read().step == live.progress.step > 20


@pytest.mark.anyio
async def test_a_body_that_raises_stops_the_run_and_its_error_comes_out_as_itself(project: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with asyncloop.open_run(project / "cfg.toml", set={"dataset.class": "tiny_parts:Endless"}):
            raise ZeroDivisionError
    # and without a config as well
    with pytest.raises(ZeroDivisionError):
        async with asyncloop.open_run(engine=Engine(Counting(), Arrays(), epochs=10)):
            raise ZeroDivisionError


@pytest.mark.anyio
async def test_a_run_of_an_engine_writes_only_where_it_is_told(tmp_path: Path) -> None:
    async with asyncloop.open_run(engine=Engine(Counting(), Arrays(), epochs=2)) as live:
        result = await live
    assert (result.dir, list(tmp_path.iterdir())) == (None, [])
    async with asyncloop.open_run(engine=Engine(Counting(), Arrays(), epochs=2), output_dir=tmp_path / "run") as live:
        events = [type(event) async for event in live.events(AfterEpoch, AfterTraining)]
        result = await live
    assert events == [AfterEpoch] * 3 + [AfterTraining]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "completed"
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()


BAD = {
    "unknown key": ({"engine.epocs": 3}, r"engine.*epocs"),
    "wrong type": ({"engine.epochs": "many"}, r"engine\.epochs"),
    "missing module": ({"dataset.class": "no_such_module:Data"}, "no_such_module"),
    "missing name": ({"dataset.class": "tiny_parts:Dat"}, r"tiny_parts.*Dat"),
    "failing import": ({"dataset.class": "broken_parts:Data"}, r"broken_parts"),
    "wrong argument": ({"dataset.m": 3}, r"dataset.*m"),
    "missing stream": (
        {"engine.extra_streams": ["vald"]},
        r"write a method `def vald_stream\(self\)`.*did you mean 'valid'",
    ),
    "unknown variable": (
        {"hooks": [{"class": "WriteJSONL", "variables": ["los"]}]},
        r"wants the variable 'los', which is neither .*did you mean 'loss'",
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", BAD)
async def test_what_is_wrong_with_a_config_is_found_before_anything_is_made(project: Path, kind: str) -> None:
    (project / "broken_parts.py").write_text("import nothing_like_this\n")
    change, pattern = BAD[kind]
    with pytest.raises(ConfigError, match=pattern) as caught:
        async with asyncloop.open_run(project / "cfg.toml", set=change):
            pytest.fail("it must not start")
    assert caught.value.exit_code == 2
    assert not (project / "runs").exists()


@pytest.mark.anyio
async def test_a_source_that_the_model_does_not_use_may_be_a_variable(project: Path) -> None:
    change = {"hooks": [{"class": "WriteJSONL", "variables": ["id"], "every": "5 steps"}]}
    async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
        result = await live
    assert result.dir is not None
    lines = [json.loads(line) for line in (result.dir / "batches.jsonl").read_text().splitlines()]
    assert lines[-1]["id"] == list(range(8))


@pytest.mark.anyio
async def test_an_output_directory_must_be_absent_or_empty_and_writable(project: Path) -> None:
    (project / "full").mkdir()
    (project / "full" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        async with asyncloop.open_run(project / "cfg.toml", output_dir=project / "full"):
            pass
    assert [entry.name for entry in (project / "full").iterdir()] == ["file"]
    (project / "in-the-way").write_text("")
    with pytest.raises(asyncloop.StorageError, match=r"cannot make the run directory .*: Not a directory; ") as caught:
        async with asyncloop.open_run(project / "cfg.toml", output_dir=project / "in-the-way" / "run"):
            pass
    assert caught.value.exit_code == 4


@pytest.mark.anyio
async def test_several_runs_in_one_process_keep_their_logs_apart(project: Path) -> None:
    results: list[Any] = []

    async def one(tag: str) -> None:
        hooks = [{"class": "LogVariables"}]
        async with asyncloop.open_run(project / "cfg.toml", set={"run.name": tag, "hooks": hooks}) as live:
            results.append(await live)

    async with anyio.create_task_group() as tasks:
        for tag in ("first", "second", "third"):
            tasks.start_soon(one, tag)
    for result in results:
        log = (result.dir / "log.txt").read_text()
        assert log.count(", valid: loss") == 3, log


@pytest.mark.parametrize("uvloop", [True, False])
def test_start_returns_at_once_and_leaves_the_loop_free(project: Path, uvloop: bool) -> None:
    async def main() -> None:
        live = await asyncloop.start(project / "cfg.toml")
        assert live.state in ("starting", "running")
        assert (await live).epochs == 2
        with pytest.raises(ConfigError):
            await asyncloop.start(project / "cfg.toml", set={"engine.epocs": 1})

    anyio.run(main, backend_options={"use_uvloop": uvloop})


def test_run_is_synchronous_owns_the_global_random_state_and_is_reproducible(project: Path) -> None:
    (project / "noisy_parts.py").write_text(
        textwrap.dedent("""
        import random
        import numpy as np
        from tiny_parts import Data
        class Noisy(Data):
            def train_stream(self):
                for batch in Data.train_stream(self):
                    yield {**batch, "x": batch["x"] + random.random() + np.random.rand()}
            valid_stream = train_stream
    """)
    )
    results = []
    for _ in range(2):
        random.seed()
        np.random.seed()
        results.append(
            asyncloop.run(project / "cfg.toml", set={"dataset.class": "noisy_parts:Noisy", "engine.buffer": 0})
        )
    assert results[0].metrics == results[1].metrics


def test_an_engine_is_run_as_it_is_opened(tmp_path: Path) -> None:
    state = random.getstate()
    first = asyncloop.run(engine=Engine(Counting(), Arrays(), epochs=2), output_dir=tmp_path / "run")
    assert (first.epochs, first.dir) == (2, tmp_path / "run")
    assert asyncloop.run(engine=Engine(Counting(), Arrays(), epochs=3), resume=tmp_path / "run").epochs == 3
    assert random.getstate() == state


@pytest.mark.anyio
async def test_run_json_counts_the_epochs_that_are_done(project: Path) -> None:
    (project / "reading_parts.py").write_text(
        textwrap.dedent("""
        import json
        class Reads:
            seen = []
            def __init__(self, output_dir):
                self.path = output_dir / "run.json"
            def before_training(self, event):
                self.seen.append(json.loads(self.path.read_text())["epochs"])
        """)
    )
    hooks = [{"class": "SaveEvery", "every": "1 epoch"}, {"class": "reading_parts:Reads"}]
    async with asyncloop.open_run(project / "cfg.toml", set={"hooks": hooks}) as live:
        result = await live
    async with asyncloop.open_run(resume=result.dir, checkpoint="5") as live:
        await live
    assert sys.modules.pop("reading_parts").Reads.seen == [0, 1]
    rundir = RunDir.plan(project, "recorded")
    rundir.create({}, {})
    recorder, info = Recorder(rundir), live.engine.run_info
    for epoch in (1, 2):
        recorder.before_epoch(BeforeEpoch(info, live.control, epoch, 5 * epoch - 5, ["train"]))
        assert read_run(rundir.path).epochs == epoch - 1
        recorder.after_epoch(AfterEpoch(info, live.control, epoch, 5 * epoch, {}))
        assert (read_run(rundir.path).epochs, read_run(rundir.path).steps) == (epoch, 5 * epoch)
    rundir.close()


@pytest.mark.anyio
async def test_embedded_nothing_global_is_touched(project: Path) -> None:
    import logging
    import signal

    state = random.getstate()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    root = list(logging.getLogger().handlers), logging.getLogger("asyncloop").level
    async with asyncloop.open_run(project / "cfg.toml") as live:
        await live
    assert random.getstate() == state
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (list(logging.getLogger().handlers), logging.getLogger("asyncloop").level) == root


@pytest.mark.anyio
async def test_a_saved_run_gives_its_model_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"hooks": [{"class": "SaveBest"}]}
    async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
        result = await live
    assert result.dir is not None
    monkeypatch.chdir(project)
    outputs: list[float] = []
    for name in (result.dir, live.id, live.id[:5], "latest"):
        model = asyncloop.load_model(name, checkpoint="best")
        batch = {"x": np.ones((2, 3), "float32"), "label": np.ones(2, "int64")}
        outputs.append(model.run(batch, train=False, stream="x")["loss"])
    assert len(outputs) == 4
    assert len(set(outputs)) == 1
    with pytest.raises(NothingToResumeError, match="no run matches 'nothing'"):
        asyncloop.load_model("nothing")
    shutil.rmtree(result.dir / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint 'latest'"):
        asyncloop.load_model(result.dir)


@pytest.mark.anyio
async def test_a_run_locks_its_directory(project: Path) -> None:
    import fcntl

    async with asyncloop.open_run(project / "cfg.toml", set={"dataset.class": "tiny_parts:Endless"}) as live:
        assert live.dir is not None
        handle = os.open(live.dir / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)


def test_checking_a_config_tells_shapes_and_makes_nothing(project: Path) -> None:
    from asyncloop.runs import check

    report = asyncio.run(check(project / "cfg.toml"))
    assert report.sources["train"]["x"] == ("float32", (8, 3))
    assert report.outputs["prediction"] == ("int64", (8,))
    assert report.n_parameters == 8
    assert not (project / "runs").exists()


@pytest.mark.anyio
async def test_a_users_exception_in_a_hook_comes_out_as_it_is(project: Path) -> None:
    with pytest.raises(KeyError, match="my own"):
        async with asyncloop.open_run(project / "cfg.toml", set={"hooks": [{"class": "tiny_parts:Raises"}]}) as live:
            await live


@pytest.mark.anyio
async def test_hooks_get_dataset_and_output_dir_if_they_name_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "asking_parts", raising=False)
    (project / "asking_parts.py").write_text(
        textwrap.dedent("""
        from asyncloop import Hook
        seen = []
        class Asks(Hook):
            def __init__(self, dataset, output_dir, mine=1):
                seen.append((type(dataset).__name__, output_dir.name[:5], mine))
    """)
    )
    change = {"hooks": [{"class": "asking_parts:Asks", "mine": 2, "every": "2 steps"}]}
    async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
        await live
        hook: Hook = live.engine.bus.hooks[0][0]
    import asking_parts  # type: ignore[import-not-found]

    assert asking_parts.seen == [("Data", "tiny-", 2)]
    assert hook.every == "2 steps"


@pytest.mark.anyio
@pytest.mark.parametrize("after", [4, 6, 8, 10, 12, 15, 20])
async def test_a_disk_that_fills_up_at_any_write_ends_the_run_in_words(
    project: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    import errno

    from asyncloop import checkpoint, storage

    write, n = storage.write_synced, 0

    def fill_up(path: Path, *buffers: Any) -> Any:
        nonlocal n
        n += 1
        if n > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *buffers)

    for module in (checkpoint, storage):
        monkeypatch.setattr(module, "write_synced", fill_up)
    change = {"engine.epochs": 6, "hooks": [{"class": "SaveLatest"}]}
    with anyio.fail_after(20), pytest.raises(asyncloop.StorageError, match="No space left on device; free some space"):
        async with asyncloop.open_run(project / "cfg.toml", set=change) as live:
            await live
    monkeypatch.undo()
    for run in (project / "runs").glob("*"):
        assert not list(run.rglob(".tmp-*"))
        if Checkpoints(run / "checkpoints").names():
            Checkpoints(run / "checkpoints").read(Checkpoints(run / "checkpoints").names()[-1])
