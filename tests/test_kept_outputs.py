"""Outputs of an evaluation, kept and run over again by hooks without the model that gave them."""

from __future__ import annotations

import errno
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncloop
from asyncloop import CheckpointError, ConfigError, HookError, NothingToResumeError, StorageError
from asyncloop.checkpoint import Checkpoints
from asyncloop.evaluation import open_evaluation
from asyncloop.kept_outputs import KeptStream, keeping

pytestmark = pytest.mark.anyio

DATA = """
import numpy as np
from asyncloop import Hook, Stream

seen, entered = {}, []

class Data:
    '''Batches of different lengths, so that means have to be weighted; the fourth one is empty.'''
    def __init__(self, spoilt: str = ""):
        self.spoilt = spoilt
    async def __aenter__(self):
        entered.append("in")
    async def __aexit__(self, *trouble):
        entered.append("out")
    def train_stream(self):
        for n in (3, 1, 7, 0, 2):
            x = np.random.default_rng(n).normal(size=(n, 2)).astype("float32")
            yield {"x": x, "name": [f"example {i}" for i in range(n)], "day": np.array(["2026-01-01"] * n, "M8[D]"),
                   "odd": [b"bytes"] * n if self.spoilt else np.array([f"é{i}" for i in range(n)], "U9")}
    valid_stream = test_stream = train_stream

class See(Hook):
    '''Takes down everything that it is given.'''
    async def after_batch(self, event):
        seen.setdefault(type(self).__name__, []).append((event.stream, event.index, event.step, event.epoch, event.n_examples,
                     dict(event.inputs), dict(event.outputs)))

class Named(See):
    variables = ["head/logits", "costly", "x"]

class Asks(Hook):
    def before_batch(self, event):
        event.ask("asked")

class Adds(Hook):
    def __init__(self, times: float = 2.0):
        self.times = times
    def add(self, event):
        return {"times": self.times * event.outputs["loss"]}

class Fails(Hook):
    def __init__(self, fails: bool = True, at: str = "after_evaluation"):
        self.fails, self.at = fails, at
    def after_evaluation(self, event):
        if self.fails and self.at == "after_evaluation":
            raise RuntimeError("a slip in a callback")
    def after_batch(self, event):
        if self.fails and self.at == "after_batch" and event.index == 2:
            raise RuntimeError("a slip in a callback")

class Stops(Hook):
    lockstep = True
    async def after_batch(self, event):
        event.control.stop("enough")
"""

MODEL = """
import asyncloop
import numpy as np

built, ran = [], []

class Model:
    input_names = ("x",)
    output_names = ("loss", "single", "scalar", "head", "said", "wide", "costly", "asked")
    def __init__(self, spoilt: str = "", hidden: int = 3):
        built.append(self)
        self.spoilt, self.steps = spoilt, 0
    def run(self, batch, *, train, stream):
        ran.append(stream)
        self.steps += train
        x = batch["x"]
        loss = float((x * 0.1 + self.steps).mean())
        asyncloop.log("logged", np.float32(loss) / 3)
        spoilt = {"": 1, "set": {1, 2}, "objects": np.array([{}]), "deep": {"a": [1, {"b": object()}]},
                  "record": np.zeros(2, [("a", "f4")])}[self.spoilt]
        return {
            "loss": loss, "single": np.float32(loss) / 7, "scalar": np.array(loss / 3), "head": {"logits": x @ x.T, "n": len(x)},
            "said": ["yes", None, (1, np.array([2]))], "wide": x.astype(">f8")[:, ::-1], "spoilt": spoilt,
            "costly": lambda: x.astype("complex64") * 2j, "asked": lambda: loss + 1, "never": lambda: 1 / 0,
        }
    def end_stream(self, stream, *, train):
        return {"ended": {"matrix": np.arange(4).reshape(2, 2)}, "of": 0.1 + 0.2}
    def state_dict(self):
        return {"steps": self.steps}
    def load_state_dict(self, state):
        self.steps = state["steps"]

class Weightless(Model):
    has_no_weights = True

class Async(Model):
    async def run(self, batch, *, train, stream):
        return Model.run(self, batch, train=train, stream=stream)
"""

DEVICE = """
class OfDevice:
    is_cpu, ndim, shape, nbytes = False, 0, (), 4
    def __init__(self, value):
        self.value = np.float32(value)
    def detach(self):
        return self
    cpu = detach
    def numpy(self):
        return np.array(self.value)
    def __float__(self):
        return float(self.value)
    def __mul__(self, weight):
        return OfDevice(self.value * np.float32(weight))
    def __add__(self, other):
        return OfDevice(self.value + other.value)

class OnDevice(Model):
    def run(self, batch, *, train, stream):
        x = batch["x"].mean()
        asyncloop.log("logged", OfDevice(x / 7))
        return {"loss": OfDevice(x / 3), "copied": float(x / 3), "head": {"loss": OfDevice(x / 9)}}
"""

CONFIG = """
[run]
name = "kept"
[dataset]
class = "kept_data:Data"
[model]
class = "kept_model:Model"
[engine]
epochs = 2
skip_zeroth_epoch = true
on_empty_batch = "ignore"
on_unused_sources = "ignore"
[[hooks]]
class = "SaveEvery"
every = "1 epoch"
[[eval.valid.hooks]]
class = "kept_data:Adds"
[[eval.valid.hooks]]
class = "kept_data:See"
[[eval.valid.hooks]]
class = "kept_data:Named"
[[eval.valid.hooks]]
class = "kept_data:Asks"
[[eval.valid.hooks]]
class = "WriteJSONL"
variables = ["loss", "single", "head/logits", "name", "odd", "asked", "times"]
[[eval.valid.hooks]]
class = "ComputeStats"
variables = { x = ["mean", "std"], loss = ["mean"], single = ["max"] }
[[eval.valid.hooks]]
class = "WriteCSV"
[eval.test.model]
hidden = 4
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "kept_data.py").write_text(textwrap.dedent(DATA))
    (tmp_path / "kept_model.py").write_text(textwrap.dedent(MODEL))
    (tmp_path / "cfg.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    for module in ("kept_data", "kept_model"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def run(project: Path) -> Path:
    """A finished run of two epochs of four steps, with a checkpoint after each."""
    result = asyncloop.run("cfg.toml")
    assert result.dir is not None
    return result.dir


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches a file."""
    monkeypatch.setattr(keeping, "_PART_BATCHES", 2)


async def evaluated(run: Path, *streams: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The evaluation's directory and its metrics."""
    async with open_evaluation(run, streams or ("valid",), **options) as live:
        result = await live
    assert live.dir is not None
    return live.dir, dict(result.metrics)


def taken() -> dict[str, list[Any]]:
    """Hook → what it has been given since the last time."""
    seen = sys.modules["kept_data"].seen
    found = dict(seen)
    seen.clear()
    return found


def exactly(value: Any) -> Any:
    """A value with its types, shapes and bits, to be compared; tuples and lists are the same."""
    if isinstance(value, dict):
        return [(key, exactly(part)) for key, part in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [exactly(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
    return repr(value)


# --- the same once more -------------------------------------------------------------------------------------------


async def test_hooks_are_given_the_same_to_the_last_bit_and_the_model_is_not_even_built(run: Path, parts: None) -> None:
    model = sys.modules["kept_model"]
    first, metrics = await evaluated(run, keep_outputs=True)
    given = taken()
    model.built.clear()
    model.ran.clear()
    second, again = await evaluated(run, callbacks_only=True)
    assert exactly(taken()) == exactly(given)
    assert [entry[1] for entry in given["See"]] == [0, 1, 2, 4], "the empty one has its place"
    assert exactly(again) == exactly(metrics)
    assert {"loss", "single", "scalar", "head/n", "logged", "ended", "of", "x"} <= set(metrics["valid"])
    assert not {"asked", "costly"} & set(metrics["valid"])
    assert (model.built, model.ran) == ([], [])
    for file in ("batches.jsonl", "training.csv"):
        assert (second / file).read_bytes() == (first / file).read_bytes()


async def test_keeping_changes_nothing_of_the_evaluation(run: Path) -> None:
    _, metrics = await evaluated(run)
    given = taken()
    _, kept = await evaluated(run, keep_outputs=True)
    assert exactly(kept) == exactly(metrics)
    assert exactly(taken()) == exactly(given)


async def test_the_class_of_the_model_may_be_gone_and_so_may_the_weights(run: Path, project: Path) -> None:
    _, metrics = await evaluated(run, checkpoint="4", keep_outputs=True)
    (project / "kept_model.py").unlink()
    (run / "code" / "kept_model.py").unlink()
    sys.modules.pop("kept_model")
    (run / "checkpoints/step-00000004/model.safetensors").unlink()
    async with open_evaluation(run, ["valid"], checkpoint="step-4", callbacks_only=True) as live:
        result = await live
    assert exactly(dict(result.metrics)) == exactly(metrics)
    assert (result.steps, result.epochs) == (4, 1)


async def test_hooks_may_have_changed_and_what_was_their_own_is_made_anew(run: Path) -> None:
    first, _ = await evaluated(run, keep_outputs=True)
    second, _ = await evaluated(run, set={"eval.valid.hooks.0.times": 3.0}, callbacks_only=True)
    lines = [
        [json.loads(line) for line in (each / "batches.jsonl").read_text().splitlines()] for each in (first, second)
    ]
    assert [line["times"] / line["loss"] for line in lines[1]] == pytest.approx([3.0] * 4)
    for line in [*lines[0], *lines[1]]:
        line.pop("times")
    assert lines[0] == lines[1]


async def test_an_async_models_outputs_are_kept_as_well(run: Path) -> None:
    change = {"model.class": "kept_model:Async"}
    _, metrics = await evaluated(run, keep_outputs=True, set=change)
    _, again = await evaluated(run, callbacks_only=True)
    assert exactly(again) == exactly(metrics)


async def test_a_model_without_weights_is_of_no_checkpoint(run: Path) -> None:
    change = {"model.class": "kept_model:Weightless"}
    _, metrics = await evaluated(run, keep_outputs=True, set=change)
    folder, again = await evaluated(run, callbacks_only=True)
    assert exactly(again) == exactly(metrics)
    assert json.loads((folder / "run.json").read_text())["evaluation"]["checkpoint"] is None


async def test_streams_with_sections_of_their_own_are_kept_and_found_each(run: Path) -> None:
    _, metrics = await evaluated(run, "valid", "test", "train", keep_outputs=True)
    folder, again = await evaluated(run, "train", "valid", callbacks_only=True)
    assert exactly(again) == exactly({stream: metrics[stream] for stream in ("train", "valid")})
    record = json.loads((folder / "run.json").read_text())["evaluation"]
    assert (record["streams"], record["checkpoint"]) == (["train", "valid"], "step-00000008")
    assert set(record["outputs_of"]) == {"train", "valid"}
    assert all((run / "eval" / name / "outputs").is_dir() for name in record["outputs_of"].values())


async def test_an_empty_stream_is_kept_as_empty(run: Path, project: Path) -> None:
    source = (project / "kept_data.py").read_text()
    (project / "kept_data.py").write_text(
        source + "\n    pass\n\nclass None_(Data):\n    def valid_stream(self):\n        return []\n"
    )
    sys.modules.pop("kept_data")
    change = {"dataset.class": "kept_data:None_", "engine.on_empty_stream": "ignore"}
    _, metrics = await evaluated(run, set=change, keep_outputs=True)
    _, again = await evaluated(run, set=change, callbacks_only=True)
    assert exactly(again) == exactly(metrics)


async def test_batches_of_another_size_keep_their_places(run: Path) -> None:
    change = {"engine.batch_size": 2}
    await evaluated(run, set=change, keep_outputs=True)
    given = taken()
    await evaluated(run, set=change, callbacks_only=True)
    assert exactly(taken()) == exactly(given)
    assert {entry[1] for entry in given["See"]} == {4}


async def test_the_dataset_is_the_runs_own_and_is_entered(run: Path) -> None:
    await evaluated(run, keep_outputs=True)
    sys.modules["kept_data"].entered.clear()
    async with open_evaluation(run, ["valid"], callbacks_only=True) as live:
        assert type(live.engine.run_info.dataset).__name__ == "Data"
        await live
    assert sys.modules["kept_data"].entered == ["in", "out"]


async def test_torch_tensors_come_back_as_the_arrays_that_named_variables_are(run: Path, project: Path) -> None:
    pytest.importorskip("torch")
    source = (project / "kept_model.py").read_text()
    (project / "kept_model.py").write_text(
        source + "\nimport torch\nclass Torch(Model):\n    def run(self, batch, *, train, stream):\n"
        "        x = torch.tensor(batch['x'], requires_grad=True)\n"
        "        asyncloop.log('logged', x.std(correction=0))\n"
        "        return {'loss': x.mean(), 'half': x.sum().bfloat16(), 'rows': x * 2, 'costly': lambda: x + 1, "
        "'asked': lambda: x, 'single': 1.0, 'head': {'logits': x.bfloat16(), 'norm': x.norm()}}\n"
    )
    sys.modules.pop("kept_model")
    change = {"model.class": "kept_model:Torch"}
    _, metrics = await evaluated(run, set=change, keep_outputs=True)
    given = taken()["Named"]
    _, again = await evaluated(run, callbacks_only=True)
    assert exactly(again) == exactly(metrics)
    assert exactly(taken()["Named"]) == exactly(given)


async def test_means_of_scalars_on_a_device_are_the_devices_own(run: Path, project: Path) -> None:
    source = (project / "kept_model.py").read_text()
    (project / "kept_model.py").write_text(source + DEVICE)
    sys.modules.pop("kept_model")
    without = {"eval.valid.hooks": []}
    _, metrics = await evaluated(run, set={"model.class": "kept_model:OnDevice", **without}, keep_outputs=True)
    _, again = await evaluated(run, set=without, callbacks_only=True)
    assert exactly(again) == exactly(metrics)
    assert metrics["valid"]["loss"] != metrics["valid"]["copied"]


# --- which outputs ------------------------------------------------------------------------------------------------


async def test_nothing_kept_is_told_with_what_to_do_and_nothing_is_made(run: Path) -> None:
    await evaluated(run)
    before = set((run / "eval").iterdir())
    with pytest.raises(
        NothingToResumeError, match=r"no outputs of 'valid' are kept.*asyncloop eval valid .* --keep-outputs"
    ):
        await evaluated(run, callbacks_only=True)
    await evaluated(run, checkpoint="4", keep_outputs=True)
    with pytest.raises(
        NothingToResumeError, match=r"for the checkpoint step-00000008 .*\(there are those of step-00000004\)"
    ):
        await evaluated(run, callbacks_only=True)
    assert len(set((run / "eval").iterdir()) - before) == 1


async def test_the_newest_ones_of_the_checkpoint_are_taken(run: Path) -> None:
    for factor in ("first", "second"):
        kept, _ = await evaluated(run, keep_outputs=True, set={"run.tags": [factor]})
    await evaluated(run, checkpoint="4", keep_outputs=True)
    folder, _ = await evaluated(run, callbacks_only=True)
    assert json.loads((folder / "run.json").read_text())["evaluation"]["outputs_of"] == {"valid": kept.name}


async def test_outputs_of_a_checkpoint_that_was_written_anew_with_other_weights_are_not_taken(run: Path) -> None:
    await evaluated(run, keep_outputs=True)
    checkpoints = Checkpoints(run / "checkpoints")
    saved = checkpoints.read()
    parts = {"model": dict(saved.model), "hooks": dict(saved.hooks), "epoch": dict(saved.epoch)}
    checkpoints.write(8, parts, {**saved.engine, "more": "about it"}, [])
    await evaluated(run, callbacks_only=True)
    checkpoints.write(8, {**parts, "model": {"steps": 80}}, saved.engine, [])
    with pytest.raises(NothingToResumeError, match="there are those of step-00000008 as it was before"):
        await evaluated(run, callbacks_only=True)


async def test_a_variable_that_was_not_kept_is_named_with_what_to_do(run: Path) -> None:
    without = {"eval.valid.hooks": []}
    await evaluated(run, set=without, keep_outputs=True)
    wants = {"eval.valid.hooks": [{"class": "WriteJSONL", "variables": ["loss", "costly"]}]}
    with pytest.raises(
        NothingToResumeError, match="hook WriteJSONL wants the variable 'costly'.*again with --keep-outputs"
    ):
        await evaluated(run, set=wants, callbacks_only=True)
    await evaluated(run, set=wants, keep_outputs=True)
    await evaluated(run, set=wants, callbacks_only=True)


async def test_what_was_kept_survives_a_hook_that_fails_when_all_has_been_evaluated(run: Path) -> None:
    slip = {"eval.valid.hooks": [{"class": "kept_data:Fails"}]}
    with pytest.raises(RuntimeError, match="a slip"):
        await evaluated(run, set=slip, keep_outputs=True)
    _, metrics = await evaluated(run, set={**slip, "eval.valid.hooks.0.fails": False}, callbacks_only=True)
    assert exactly(metrics) == exactly((await evaluated(run, set={"eval.valid.hooks": []}))[1])


async def test_half_an_evaluation_leaves_nothing_to_run_over(run: Path, parts: None) -> None:
    await evaluated(run, set={"eval.valid.hooks": [{"class": "kept_data:Stops"}]}, keep_outputs=True)
    assert not list((run / "eval").rglob("outputs/valid"))
    with pytest.raises(NothingToResumeError):
        await evaluated(run, callbacks_only=True)


async def test_a_hook_that_fails_meanwhile_leaves_all_outputs_or_none(run: Path, parts: None) -> None:
    fails = {"class": "kept_data:Fails", "at": "after_batch"}
    with pytest.raises(RuntimeError, match="a slip"):
        await evaluated(run, set={"eval.valid.hooks": [fails]}, keep_outputs=True)
    for folder in (run / "eval").rglob("outputs/valid"):
        assert len(list(KeptStream.open(folder).outputs())) == 4


async def test_options_that_make_no_sense_together_are_refused(run: Path, tmp_path: Path) -> None:
    for options in ({"callbacks_only": True}, {"output_dir": tmp_path / "elsewhere"}):
        with pytest.raises(ConfigError, match="keep_outputs goes without"):
            await evaluated(run, keep_outputs=True, **options)


# --- what cannot be kept, damage, a full disk ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilt", "found"),
    [("set", "a set"), ("objects", "an array of dtype object"), ("deep", "a object"), ("record", "an array of dtype")],
)
async def test_an_output_that_cannot_be_kept_is_named(run: Path, spoilt: str, found: str) -> None:
    with pytest.raises(
        HookError, match=f"the output 'spoilt' of stream 'valid', batch 0, cannot be kept: it holds {found}"
    ):
        await evaluated(run, set={"model.spoilt": spoilt}, keep_outputs=True)


async def test_a_source_that_cannot_be_kept_is_named(run: Path) -> None:
    with pytest.raises(
        HookError, match="the source 'odd' of stream 'valid', batch 0, cannot be kept: it holds a bytes"
    ):
        await evaluated(run, set={"dataset.spoilt": "yes"}, keep_outputs=True)


async def test_every_damaged_file_is_noticed(run: Path, parts: None) -> None:
    folder, _ = await evaluated(run, keep_outputs=True)
    files = sorted((folder / "outputs" / "valid").iterdir())
    assert len(files) == 11
    for file in files:
        whole = file.read_bytes()
        for spoilt in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 4]), b""):
            file.write_bytes(spoilt)
            with pytest.raises(CheckpointError, match="is damaged"):
                await evaluated(run, callbacks_only=True)
        file.write_bytes(whole)
    await evaluated(run, callbacks_only=True)


@pytest.mark.parametrize("after", range(4))
async def test_a_full_disk_ends_the_evaluation_in_words_and_gives_the_space_back(
    run: Path, parts: None, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written: list[Path] = []
    write: Callable[..., Any] = keeping.write_synced

    def fill_up(path: Path, *buffers: Any) -> Any:
        if len(written) == after:
            raise OSError(errno.ENOSPC, "full")
        written.append(path)
        return write(path, *buffers)

    monkeypatch.setattr(keeping, "write_synced", fill_up)
    with pytest.raises(StorageError, match="cannot keep outputs in .*No space left on device; free some space"):
        await evaluated(run, keep_outputs=True)
    assert not any(path.exists() for path in written)


async def test_a_part_is_written_when_it_is_large_and_reading_holds_one_at_a_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_PART_BYTES", 1)
    folder, _ = await evaluated(run, keep_outputs=True)
    kept = KeptStream.open(folder / "outputs" / "valid")
    assert kept.index["parts"] == 4
    batches = kept.batches()
    next(batches)
    (kept.folder / "inputs-00001.json").unlink()
    with pytest.raises(StorageError, match="cannot read"):
        next(batches)
