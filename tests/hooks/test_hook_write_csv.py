"""WriteCSV: the file, read back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from engine_parts import Counting, Keeping
from hook_parts import Events, Uneven

from asyncloop import ConfigError, Engine, HookError, StorageError
from asyncloop.hooks import ComputeStats, WriteCSV

pytestmark = pytest.mark.anyio


def rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def written(directory: Path, *epochs: Any, hook: WriteCSV | None = None, **arguments: Any) -> list[list[str]]:
    """What stands in the file after epochs 0, 1, … with these data."""
    hook, events = hook or WriteCSV(**arguments), Events(directory)
    hook.before_training(events.before_training())
    for epoch, data in enumerate(epochs):
        hook.after_epoch(events.after_epoch(data, epoch=epoch))
    path = directory / "training.csv"
    return rows(path) if path.exists() else []


async def test_a_run_writes_one_header_and_a_row_for_each_epoch_with_epoch_0(tmp_path: Path) -> None:
    hooks = [ComputeStats({"x": ["max", "mean"]}), WriteCSV()]
    await Engine(Counting(), Uneven(), hooks, epochs=2, extra_streams=["valid"], output_dir=tmp_path).train()
    assert rows(tmp_path / "training.csv") == [
        ["epoch", "train_loss", "train_x", "valid_loss", "valid_x"],
        *([str(epoch), "0.8", "0.8", "10.25", "10.25"] for epoch in range(3)),
    ]


async def test_a_run_without_a_bounded_epoch_0_gets_the_train_columns_when_they_come(tmp_path: Path) -> None:
    hooks = [WriteCSV(default_value="-")]
    await Engine(Counting(), Uneven(), hooks, steps=3, extra_streams=["valid"], output_dir=tmp_path).train()
    assert rows(tmp_path / "training.csv") == [
        ["epoch", "valid_loss", "train_loss"],
        ["0", "10.25", "-"],
        ["1", "10.25", "0.8"],
    ]


def test_dicts_give_their_mean_or_their_first_and_odd_values_get_no_column(tmp_path: Path) -> None:
    data = {
        "b": {"s": {"min": 1, "mean": 2}, "t": {"max": 3}, "curve": [1], "none": None, "empty": {}},
        "a": {"note": "x,y"},
    }
    assert written(tmp_path, data) == [["epoch", "a_note", "b_s", "b_t"], ["0", "x,y", "2", "3"]]


def test_names_and_values_with_delimiters_quotes_and_newlines_come_back_as_they_were(tmp_path: Path) -> None:
    data = {"train": {'odd,"name"': 'a,"b"\nc'}}
    assert written(tmp_path, data, data)[1:] == [["0", 'a,"b"\nc'], ["1", 'a,"b"\nc']]


def test_epochs_without_data_do_no_harm(tmp_path: Path) -> None:
    assert written(tmp_path, {}, {"train": {}}) == []


def test_variables_and_streams_restrict_the_columns(tmp_path: Path) -> None:
    hook = WriteCSV(variables=["loss"])
    hook.streams = ["valid"]
    data = {"train": {"loss": 1}, "valid": {"loss": 2, "n": 3}}
    assert written(tmp_path, data, hook=hook) == [["epoch", "valid_loss"], ["0", "2"]]


FULL, SHORT = {"train": {"loss": 1, "n": 2}}, {"train": {"loss": 3}}


def test_a_missing_value_is_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(
        HookError, match="epoch 1 has no value for the column 'train_n'.*on_missing_variable = 'default'"
    ):
        written(tmp_path, FULL, SHORT)


def test_a_missing_value_can_be_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = written(tmp_path, FULL, SHORT, on_missing_variable="warn", default_value=-1)
    assert found[1:] == [["0", "1", "2"], ["1", "3", "-1"]]
    assert "no value for the column 'train_n'" in caplog.text


def test_a_missing_value_can_be_left_to_the_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert written(tmp_path, FULL, SHORT, on_missing_variable="default")[2] == ["1", "3", ""]
    assert not caplog.records


def test_a_named_variable_that_no_stream_has_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="the variable 'los'; did you mean 'loss'"):
        written(tmp_path, FULL, variables=["los"])


def test_two_variables_cannot_share_a_column(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="share the column 'a_b_c'"):
        written(tmp_path, {"a": {"b_c": 1}, "a_b": {"c": 2}})


def test_a_second_session_continues_the_file_under_its_own_header(tmp_path: Path) -> None:
    written(tmp_path, FULL)
    written(tmp_path, {"train": {"n": 5, "loss": 4}})
    assert rows(tmp_path / "training.csv") == [["epoch", "train_loss", "train_n"], ["0", "1", "2"], ["0", "4", "5"]]


def test_resuming_cuts_the_file_to_the_checkpoint_even_if_it_was_widened_since(tmp_path: Path) -> None:
    hook, events = WriteCSV(on_missing_variable="default"), Events(tmp_path)
    hook.before_training(events.before_training())
    hook.after_epoch(events.after_epoch(SHORT, epoch=0))
    state = hook.state_dict()
    hook.after_epoch(events.after_epoch(FULL, epoch=1))
    hook.after_epoch(events.after_epoch(FULL, epoch=2))
    resumed = WriteCSV(on_missing_variable="default")
    resumed.load_state_dict(state)
    resumed.before_training(events.before_training(step=3))
    resumed.after_epoch(events.after_epoch(FULL, epoch=1))
    header = ["epoch", "train_loss", "train_n"]
    assert rows(tmp_path / "training.csv") == [header, ["0", "3", ""], ["1", "1", "2"]]
    assert resumed.state_dict() == {"rows": 2}


def test_a_line_that_a_killed_run_left_unfinished_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text("epoch,train_loss,train_n\n0,1,2\n1,3")
    assert written(tmp_path, FULL)[-2:] == [["1", "3"], ["0", "1", "2"]]


def test_file_delimiter_and_directory_can_be_chosen(tmp_path: Path) -> None:
    hook = WriteCSV("tables/log.txt", delimiter=";", output_dir=tmp_path / "elsewhere")
    hook.after_epoch(Events().after_epoch(FULL))
    assert rows(tmp_path / "elsewhere" / "tables" / "log.txt", ";") == [
        ["epoch", "train_loss", "train_n"],
        ["1", "1", "2"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_file": "/tmp/x.csv"}, "output_file is a path inside the run directory"),
        ({"output_file": "../x.csv"}, "output_file is a path inside"),
        ({"output_file": ""}, "output_file is a path inside"),
        ({"delimiter": ", "}, "delimiter is one character"),
        ({"on_missing_variable": "ignore"}, "on_missing_variable is 'error' or 'warn' or 'default', not 'ignore'"),
        ({"variables": "loss"}, "variables is a list of names"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WriteCSV(**arguments)


@pytest.mark.anyio
async def test_without_any_directory_the_engine_refuses_it_and_so_does_the_hook() -> None:
    with pytest.raises(ConfigError, match="WriteCSV writes files"):
        await Engine(Counting(), Uneven(), [WriteCSV()], epochs=1).train()
    with pytest.raises(HookError, match="nowhere to write"):
        WriteCSV().after_epoch(Events().after_epoch(FULL))


def test_with_a_directory_of_its_own_it_needs_none_from_the_engine(tmp_path: Path) -> None:
    Engine(Counting(), Uneven(), [WriteCSV(output_dir=tmp_path)])


def test_a_refusing_file_system_is_named_with_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "training.csv").mkdir()
    with pytest.raises(StorageError, match="training.csv"):
        written(tmp_path, FULL)


async def test_it_writes_in_a_thread_of_its_own_while_the_run_goes_on(tmp_path: Path) -> None:
    keeping = Keeping()
    hook = WriteCSV()
    assert hook.background
    await Engine(Counting(), Uneven(), [hook, keeping], epochs=3, output_dir=tmp_path).train()
    assert len(rows(tmp_path / "training.csv")) == 1 + keeping.count("after_epoch")
