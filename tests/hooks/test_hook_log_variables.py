"""LogVariables: what of the epoch data reaches the log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from engine_parts import Counting
from hook_parts import Events, Uneven

from asyncloop import ConfigError, Engine, Hook, HookError
from asyncloop.hooks import LogVariables

pytestmark = pytest.mark.anyio


class Adding(Hook):
    def __init__(self, **values: Any) -> None:
        self._values = values

    async def after_epoch(self, event: Any) -> None:
        event.data["valid"].update(self._values)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


async def test_every_stream_of_every_epoch_gets_a_line_and_earlier_hooks_have_their_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "asyncloop")
    hooks = [Adding(spread={"mean": 1.5, "std": np.float32(0.25)}), LogVariables(), Adding(late=1)]
    await Engine(Counting(), Uneven(), hooks, epochs=1, extra_streams=["valid"]).train()
    assert lines(caplog) == [
        "epoch 0, train: loss 0.8",
        "epoch 0, valid: loss 10.25, spread mean=1.5 std=0.25",
        "epoch 1, train: loss 0.8",
        "epoch 1, valid: loss 10.25, spread mean=1.5 std=0.25",
    ]


def test_only_the_named_variables_and_streams_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncloop")
    hook = LogVariables(variables=["loss"])
    hook.streams = ["valid"]
    hook.after_epoch(Events().after_epoch({"train": {"loss": 1.0}, "valid": {"loss": 2.0, "n": 3}}))
    assert lines(caplog) == ["epoch 1, valid: loss 2"]


def test_a_variable_that_no_stream_has_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(HookError, match="'los'.*only loss, accuracy; did you mean 'loss'"):
        LogVariables(variables=["los"]).after_epoch(Events().after_epoch({"train": {"loss": 1.0, "accuracy": 1.0}}))


ODD: dict[str, Any] = {"train": {"loss": 1.0, "curve": [1, 2], "note": "good", "parts": {"mean": [1]}}}


def test_values_of_unknown_type_are_ignored_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncloop")
    LogVariables().after_epoch(Events().after_epoch(ODD))
    assert [record.getMessage() for record in caplog.records] == ["epoch 1, train: loss 1"]


def test_values_of_unknown_type_can_be_logged_as_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncloop")
    LogVariables("str").after_epoch(Events().after_epoch(ODD))
    assert lines(caplog) == ["epoch 1, train: loss 1, curve [1, 2], note good, parts {'mean': [1]}"]


def test_values_of_unknown_type_can_be_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    LogVariables("warn").after_epoch(Events().after_epoch(ODD))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "variable 'curve' of stream 'train' is a list" in caplog.text


def test_values_of_unknown_type_can_be_an_error() -> None:
    with pytest.raises(HookError, match="variable 'curve' of stream 'train' is a list"):
        LogVariables("error").after_epoch(Events().after_epoch(ODD))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_unknown_type": "warm"}, "on_unknown_type is .*did you mean 'warn'"),
        ({"variables": "loss"}, "list of names"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogVariables(**arguments)
