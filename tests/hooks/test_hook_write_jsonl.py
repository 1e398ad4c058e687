"""WriteJSONL: the lines, read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting
from hook_parts import Events, Uneven

from asyncloop import ConfigError, Engine, HookError, StorageError
from asyncloop.hooks import WriteJSONL

pytestmark = pytest.mark.anyio


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


async def test_every_batch_of_every_stream_is_a_line_with_its_scalars(tmp_path: Path) -> None:
    engine = Engine(Counting(), Uneven(), [WriteJSONL()], epochs=1, extra_streams=["valid"], output_dir=tmp_path)
    await engine.train()
    found = lines(tmp_path / "batches.jsonl")
    places = [(line["step"], line["epoch"], line["stream"], line["index"]) for line in found]
    zeroth = [(0, 0, "train", i) for i in range(3)] + [(0, 0, "valid", i) for i in range(2)]
    assert places == [*zeroth, *((i + 1, 1, "train", i) for i in range(3)), (3, 1, "valid", 0), (3, 1, "valid", 1)]
    assert [list(line) for line in found] == [["step", "epoch", "stream", "index", "loss"]] * 10
    assert [line["loss"] for line in found[5:]] == [0.0, 1.0, 2.0, 10.0, 11.0]


async def test_only_due_steps_and_the_last_one_are_lines(tmp_path: Path) -> None:
    hook = WriteJSONL(variables=["loss", "x"])
    hook.every = "3 steps"
    await Engine(Counting(), Arrays(7), [hook], epochs=1, skip_zeroth_epoch=True, output_dir=tmp_path).train()
    found = lines(tmp_path / "batches.jsonl")
    assert [line["step"] for line in found] == [3, 6, 7]
    assert (found[0]["loss"], found[0]["x"]) == (2.0, [2.0] * 4)


def write(directory: Path, *outputs: Any, **arguments: Any) -> list[dict[str, Any]]:
    events, hook = Events(directory), WriteJSONL(**arguments)
    hook.before_training(events.before_training())
    hook.after_batches([events.batch(each, step=i) for i, each in enumerate(outputs, 1)])
    return lines(directory / arguments.get("output_file", "batches.jsonl"))


def test_values_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    values = {"a": math.nan, "b": np.array([1.0, math.inf, -math.inf]), "c": np.float32("nan")}
    (line,) = write(tmp_path, values, variables=["a", "b", "c"])
    assert [line[name] for name in "abc"] == [None, [1.0, None, None], None]


def test_nested_scalars_are_named_by_path_and_can_be_named(tmp_path: Path) -> None:
    outputs = {"head": {"loss": np.float64(1.5), "logits": np.zeros(3)}, "n": np.int64(2), "ok": np.bool_(True)}
    (line,) = write(tmp_path, outputs)
    assert {"head/loss": 1.5, "n": 2, "ok": True}.items() <= line.items()
    assert "head/logits" not in line
    (line,) = write(tmp_path, outputs, output_file="named.jsonl", variables=["head/logits"])
    assert line["head/logits"] == [0.0, 0.0, 0.0]


def test_variables_cannot_take_the_place_of_step_and_stream(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="keys of every line"):
        write(tmp_path, {"step": 3})


def test_resuming_cuts_the_file_to_the_checkpoint(tmp_path: Path) -> None:
    events, hook, resumed = Events(tmp_path), WriteJSONL(), WriteJSONL()
    hook.before_training(events.before_training())
    hook.after_batches([events.batch({"loss": 1.0}, step=1), events.batch({"loss": 2.0}, step=2)])
    state = hook.state_dict()
    hook.after_batches([events.batch({"loss": 3.0}, step=3)])
    resumed.load_state_dict(state)
    resumed.before_training(events.before_training(step=2))
    resumed.after_batches([events.batch({"loss": 4.0}, step=3)])
    assert [line["loss"] for line in lines(tmp_path / "batches.jsonl")] == [1.0, 2.0, 4.0]


def test_a_checkpoint_before_the_first_line_cuts_everything_this_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "batches.jsonl").write_text('{"step": 0}\n')
    events, hook, resumed = Events(tmp_path), WriteJSONL(), WriteJSONL()
    hook.before_training(events.before_training())
    state = hook.state_dict()
    hook.after_batches([events.batch({"loss": 1.0})])
    resumed.load_state_dict(state)
    resumed.before_training(events.before_training())
    assert lines(tmp_path / "batches.jsonl") == [{"step": 0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_file": "../x"}, "output_file is a path inside the run directory"),
        ({"variables": "loss"}, "variables is a list of names"),
        ({"variables": ["step"]}, "step is written anyway"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WriteJSONL(**arguments)


async def test_a_refusing_file_system_fails_the_run_with_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "batches.jsonl").mkdir()
    with pytest.raises(StorageError, match="batches.jsonl"):
        await Engine(Counting(), Uneven(), [WriteJSONL()], epochs=1, output_dir=tmp_path).train()


async def test_a_directory_of_its_own_is_enough(tmp_path: Path) -> None:
    await Engine(Counting(), Uneven(), [WriteJSONL("a/b.jsonl", output_dir=tmp_path)], epochs=1).train()
    assert len(lines(tmp_path / "a" / "b.jsonl")) == 6
