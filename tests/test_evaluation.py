"""Saved runs put to use: evaluated with the weights of a checkpoint, without a change to the run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

import anyio
import numpy as np
import pytest

import asyncloop
from asyncloop import CheckpointError, ConfigError, ModelError, NothingToResumeError
from asyncloop.checkpoint import Checkpoints
from asyncloop.evaluation import open_evaluation

PARTS = """
import numpy as np
from asyncloop import Hook

class Data:
    def train_stream(self):
        yield from ({"x": np.full(4, float(i))} for i in range(3))
    def valid_stream(self):
        yield {"x": np.full(4, 10.0)}
    test_stream = valid_stream

class Labelled:
    def train_stream(self):
        yield from ({"x": np.full((4, 2), float(i)), "label": np.arange(4) % 2} for i in range(3))
    valid_stream = train_stream

class Steps:
    '''Its outputs tell how often it was trained.'''
    input_names, output_names = ("x",), ("steps", "loss")
    def __init__(self, factor: float = 1.0):
        self.steps, self.factor = 0, factor
    def run(self, batch, *, train, stream):
        self.steps += train
        return {"steps": float(self.steps), "loss": self.factor * float(batch["x"].mean())}
    def state_dict(self):
        return {"steps": self.steps}
    def load_state_dict(self, state):
        self.steps = state["steps"]
"""

CONFIG = """
[run]
name = "tiny"
[dataset]
class = "evaluated_parts:Data"
[model]
class = "evaluated_parts:Steps"
[engine]
epochs = 2
extra_streams = ["valid"]
[[hooks]]
class = "SaveEvery"
every = "1 epoch"
[[hooks]]
class = "WriteCSV"
[eval.test]
model = { factor = 3.0 }
[[eval.test.hooks]]
class = "WriteCSV"
output_file = "test.csv"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of six steps in two epochs, with a checkpoint after each epoch."""
    (tmp_path / "evaluated_parts.py").write_text(textwrap.dedent(PARTS))
    (tmp_path / "cfg.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evaluated_parts", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = asyncloop.run("cfg.toml")
    assert result.dir is not None
    return result.dir


def contents(run: Path) -> dict[str, str]:
    """Every file of the run but those of its evaluations."""
    files = (path for path in run.rglob("*") if path.is_file() and "eval" not in path.relative_to(run).parts)
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.anyio
async def test_an_evaluation_takes_the_weights_and_the_counters_of_the_checkpoint(run: Path) -> None:
    for checkpoint, steps, epochs in (("latest", 6, 2), ("3", 3, 1), ("step-00000003", 3, 1)):
        async with open_evaluation(run, ["valid"], checkpoint=checkpoint) as live:
            result = await live
        assert result.metrics == {"valid": {"steps": steps, "loss": 10.0}}
        assert (result.steps, result.epochs) == (steps, epochs)


@pytest.mark.anyio
async def test_the_weights_of_a_run_that_failed_are_said_to_be_that(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "run.json").write_text((run / "run.json").read_text().replace('"completed"', '"failed"'))
    async with open_evaluation(run, ["valid"]) as live:
        await live
    assert "has failed; these are its weights of step" in caplog.text


@pytest.mark.anyio
async def test_an_evaluation_leaves_the_run_as_it_was_and_writes_below_it(run: Path) -> None:
    before = contents(run)
    async with open_evaluation(run, ["valid", "train"]) as live:
        result = await live
    assert contents(run) == before
    assert live.dir is not None
    assert live.dir.parent == run / "eval"
    record = json.loads((live.dir / "run.json").read_text())
    assert (record["state"], record["exit_code"], record["reason"]) == ("completed", 0, "evaluated valid, train")
    weights = Checkpoints(run / "checkpoints").fingerprint("step-00000006")
    about = {"run": str(run), "checkpoint": "step-00000006", "streams": ["valid", "train"], "weights": weights}
    assert record["evaluation"] == about
    assert record["metrics"] == result.metrics
    lines = [json.loads(line) for line in (live.dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stream"], line["step"], line["epoch"]) for line in lines] == [("valid", 6, 2), ("train", 6, 2)]


@pytest.mark.anyio
async def test_a_stream_is_evaluated_as_its_section_says_and_the_training_hooks_stay_out(run: Path) -> None:
    async with open_evaluation(run, ["valid", "test"]) as live:
        result = await live
    assert result.metrics["valid"]["loss"] == 10.0
    assert result.metrics["test"]["loss"] == 30.0
    assert live.dir is not None
    assert [path.relative_to(live.dir) for path in live.dir.rglob("*.csv")] == [Path("test/test.csv")]
    assert not list(live.dir.rglob("checkpoints"))


@pytest.mark.anyio
async def test_streams_with_equal_sections_are_evaluated_together(run: Path) -> None:
    async with open_evaluation(run, ["valid", "train", "valid"]) as live:
        await live
    assert live.dir is not None
    begun = re.findall(r'"event": "before_training"', (live.dir / "events.jsonl").read_text())
    assert len(begun) == 1


@pytest.mark.anyio
async def test_another_config_and_other_values_can_be_given(run: Path) -> None:
    other = run.parent.parent / "other.toml"
    other.write_text(CONFIG.replace("[eval.test]", "[eval.other]"))
    async with open_evaluation(run, ["test"], config=other, set={"model.factor": 7.0}) as live:
        assert (await live).metrics["test"]["loss"] == 70.0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("streams", "options", "error", "message"),
    [
        (["vlid"], {}, ConfigError, "has no stream 'vlid'.*did you mean 'valid'"),
        (["valid"], {"checkpoint": "best"}, CheckpointError, "no checkpoint 'best'.*step-00000003, step-00000006"),
        (["valid"], {"set": {"model.fctor": 1.0}}, ConfigError, "did you mean `factor`"),
        (
            ["valid"],
            {"set": {"eval.valid.hooks": [{"class": "SaveLatest"}]}},
            ConfigError,
            "`SaveLatest` saves checkpoints, which an evaluation never does; remove it",
        ),
        (
            ["test", "valid"],
            {"set": {"eval.valid.hooks": [{"class": "WriteJSONL", "variables": ["x", "los"]}]}},
            ConfigError,
            "hook WriteJSONL wants the variable 'los', which is neither .*did you mean 'loss'",
        ),
    ],
)
async def test_a_mistake_is_named_before_anything_is_made(
    run: Path, streams: list[str], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with open_evaluation(run, streams, **options):  # type: ignore[arg-type]
            pass
    assert not (run / "eval").exists()


@pytest.mark.anyio
async def test_a_dataset_is_entered_once_whichever_of_the_streams_is_looked_into(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    data = sys.modules["evaluated_parts"].Labelled

    async def enter(self: object) -> object:
        entered.append("in")
        return self

    async def leave(self: object, *trouble: object) -> None:
        entered.append("out")

    monkeypatch.setattr(data, "__aenter__", enter, raising=False)
    monkeypatch.setattr(data, "__aexit__", leave, raising=False)
    hooks = [{"class": "WriteJSONL", "variables": ["label"]}]
    change = {"dataset.class": "evaluated_parts:Labelled", "eval.valid.hooks": hooks}
    async with open_evaluation(run, ["train", "valid"], set=change) as live:
        await live
    assert entered == ["in", "out"]
    assert live.dir is not None
    assert (live.dir / "valid" / "batches.jsonl").is_file()


@pytest.mark.anyio
async def test_a_model_that_cannot_be_trained_is_evaluated_in_the_middle_of_a_run(run: Path) -> None:
    sys.modules["evaluated_parts"].Steps.cannot_train = "cannot be trained"
    async with open_evaluation(run, ["valid"], checkpoint="3") as live:
        assert (await live).metrics["valid"]["steps"] == 3


@pytest.mark.anyio
async def test_a_run_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    with pytest.raises(NothingToResumeError, match=f"no run matches 'zzz' in runs.*{run.name}"):
        async with open_evaluation("zzz", ["valid"]):
            pass


@pytest.mark.anyio
async def test_a_stop_discards_the_evaluation_and_evaluates_nothing_more(run: Path) -> None:
    async with open_evaluation(run, ["valid", "test"]) as live:
        live.control.stop("enough")
        result = await live
    assert (result.reason, result.stopped, dict(result.metrics)) == ("enough", True, {})


@pytest.mark.anyio
async def test_a_run_begins_with_the_weights_of_another_and_counters_at_zero(run: Path) -> None:
    async with asyncloop.open_run("cfg.toml", init_from=f"{run}:3", set={"engine.epochs": 1}) as live:
        result = await live
    assert (result.steps, result.epochs) == (3, 1)
    assert result.metrics["valid"]["steps"] == 6.0
    assert live.dir is not None
    record = json.loads((live.dir / "run.json").read_text())
    assert record["init_from"] == {"checkpoint": str(run / "checkpoints/step-00000003"), "step": 3}


@pytest.mark.anyio
async def test_old_weights_begin_a_run_with_another_optimizer_and_nothing_else_of_the_old_one(run: Path) -> None:
    model = {"class": "SoftmaxRegression", "inputs": "x", "n_inputs": 2, "n_classes": 2, "lr": 0.1}
    change = {"dataset.class": "evaluated_parts:Labelled", "eval": {}, "hooks": [], "engine.epochs": 1}
    async with asyncloop.open_run("cfg.toml", set={**change, "model": model}) as live:
        first = await live
    assert first.dir is not None
    other = {**change, "model": {**model, "optimizer": "sgd", "lr": 0.0}}
    async with asyncloop.open_run("cfg.toml", set=other, init_from=first.dir) as live:
        second = await live
    assert second.metrics["valid"]["loss"] == first.metrics["valid"]["loss"]
    assert second.dir is not None
    state = Checkpoints(second.dir / "checkpoints").read().model
    assert (state["optimizer"]["name"], state["optimizer"]["n_updates"]) == ("sgd", 3)


@pytest.mark.anyio
async def test_a_run_whose_classes_are_gone_can_still_give_its_weights(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.parent.parent
    (folder / "evaluated_parts.py").rename(folder / "other_parts.py")
    shutil.rmtree(run / "code")
    monkeypatch.delitem(sys.modules, "evaluated_parts")
    (folder / "cfg.toml").write_text(CONFIG.replace("evaluated_parts", "other_parts"))
    async with asyncloop.open_run("cfg.toml", init_from=f"{run}:3", set={"engine.epochs": 1}) as live:
        result = await live
    assert result.metrics["valid"]["steps"] == 6.0
    assert "evaluated_parts" not in sys.modules
    sys.modules.pop("other_parts")


@pytest.mark.anyio
async def test_weights_that_do_not_fit_are_told_with_the_checkpoint_before_anything_is_made(run: Path) -> None:
    before = set(run.parent.iterdir())
    other = {"class": "asyncloop.models:SoftmaxRegression", "n_inputs": 1, "n_classes": 2, "inputs": "x"}
    with pytest.raises(ModelError, match="it has steps, expected") as told:
        async with asyncloop.open_run("cfg.toml", init_from=run, set={"model": other, "eval": {}}):
            pass
    assert any("loading the weights of" in note for note in told.value.__notes__)
    assert set(run.parent.iterdir()) == before


def test_the_model_of_a_run_comes_from_its_folder_and_from_its_own_copy_when_that_is_gone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncloop.load_model(run).steps == 6
    (run.parent.parent / "evaluated_parts.py").unlink()
    monkeypatch.delitem(sys.modules, "evaluated_parts")
    model = asyncloop.load_model(run, "3")
    assert model.steps == 3
    assert str(run / "code") in sys.modules["evaluated_parts"].__file__
    sys.path.remove(str(run / "code"))


@pytest.mark.anyio
async def test_the_time_limit_ends_a_run_as_interrupted(run: Path) -> None:
    async with asyncloop.open_run(
        "cfg.toml", set={"engine.epochs": 10**9, "hooks": [], "engine.extra_streams": []}, max_time="0.2 s"
    ) as live:
        with anyio.fail_after(20):
            result = await live
    assert (result.reason, result.stopped, live.state) == ("max-time", True, "interrupted")
    assert live.dir is not None
    assert json.loads((live.dir / "run.json").read_text())["exit_code"] == 75
    saved = asyncloop.load_model(live.dir)
    assert saved.steps == result.steps
    assert np.isfinite(result.steps)


def test_a_runs_own_code_comes_before_that_of_the_directory_one_is_in(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "evaluated_parts.py").write_text("raise RuntimeError('the wrong project')")
    moved = run.parent.parent.rename(other / "moved")
    monkeypatch.chdir(other)
    monkeypatch.delitem(sys.modules, "evaluated_parts", raising=False)
    path = list(sys.path)
    try:
        assert asyncloop.load_model(moved / "runs" / run.name).steps == 6
    finally:
        sys.path[:] = path


@pytest.mark.parametrize(("config", "cwd"), [("configs/cfg.toml", "."), ("cfg.toml", "sub"), ("models/cfg.toml", ".")])
def test_classes_from_beside_the_configs_folder_are_found_from_another_directory(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, config: str, cwd: str
) -> None:
    project, other = tmp_path / "project", tmp_path_factory.mktemp("other")
    at = project / cwd
    files = {
        at / "models" / "__init__.py": "",
        at / "models" / "counting.py": f"from counted_beside import *\n{textwrap.dedent(PARTS)}",
        at / "models" / "unused.py": "",
        at / "counted_beside.py": "",
        at / "not_imported.py": "",
        project / config: CONFIG.replace("evaluated_parts", "models.counting"),
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(at)

    def forget() -> None:
        for name in ("models", "models.counting", "counted_beside"):
            sys.modules.pop(name, None)

    try:
        first = asyncloop.run(project / config, output_dir=other / "run")
        assert first.dir is not None
        assert ("not_imported.py" in [path.name for path in (first.dir / "code").rglob("*")]) == (cwd == "sub")
        monkeypatch.chdir(other)
        forget()
        assert asyncloop.load_model(first.dir).steps == 6
        assert sys.modules["models.counting"].__file__ == str(at / "models" / "counting.py")
        shutil.rmtree(project)
        forget()
        assert asyncloop.load_model(first.dir).steps == 6
        assert asyncloop.run(resume=first.dir, set={"engine.epochs": 3}).epochs == 3
        assert str(first.dir / "code") in sys.modules["models.counting"].__file__
    finally:
        forget()
