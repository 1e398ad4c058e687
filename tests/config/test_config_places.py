"""Mistakes that only building reveals get their place in the config, too."""

import typing

import pytest

from asyncloop.config import EngineSection, InvalidConfig, load_config
from asyncloop.errors import ConfigError
from asyncloop.watchdog import DEADLINES

CFG = """\
[engine]
extra_streams = ["tset"]
evaluate_every = "5 steps"
[[hooks]]
class = "SaveBest"
keep = 0
[[hooks]]
class = "StopAfter"
"""


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("dataset Data has no stream 'tset' (its streams: 'train')", "cfg.toml:6:18: "),
        ("evaluate_every = '5 steps' is too often", "cfg.toml:7:18: "),
        ("dataset Data has no stream 'train' (its streams: 'tset')", "engine.train_stream: "),
        ("all is wrong", ""),
    ],
)
def test_what_the_engine_or_the_dataset_refuses_is_told_at_its_place_if_it_has_one(write, message, told):
    config = load_config(write(CFG))
    with pytest.raises(InvalidConfig) as caught, config.places.named():
        raise ConfigError(message, message)
    assert caught.value.problems == (told + message,)


def test_what_a_hooks_constructor_refuses_is_told_at_its_argument_or_its_table(write):
    best, after = load_config(write(CFG)).hooks
    with pytest.raises(InvalidConfig, match=r"cfg.toml:10:8: SaveBest: keep is .* at least 1") as caught:
        best.build()
    assert caught.value.details[0].key == "hooks.0.keep"
    with pytest.raises(InvalidConfig, match=r"cfg.toml:11:1: StopAfter: give at least one of epochs, steps, minutes"):
        after.build()


def test_the_deadlines_of_a_config_are_those_of_the_engine():
    names = typing.get_args(EngineSection.model_fields["deadlines"].annotation)[0]
    assert set(typing.get_args(names)) == set(DEADLINES)


def test_a_byte_order_mark_is_no_mistake_and_moves_no_caret(write, problems, project):
    write("[engine]\nepochs = -1\n", base='[dataset]\nclass = "parts:Data"\n[model]\nclass = "parts:Net"\n')
    (project / "cfg.toml").write_text("\ufeff" + (project / "cfg.toml").read_text())
    assert problems("cfg.toml") == ["cfg.toml:6:10: engine.epochs must be at least 0, not the integer -1"]


def test_a_missing_file_is_told_with_the_one_that_may_have_been_meant(write, problems):
    write()
    assert problems("cgf.toml") == ["there is no file cgf.toml; did you mean `cfg.toml`?"]
    assert problems("digits.toml") == ["there is no file digits.toml; there is cfg.toml"]
    write(name="other.toml")
    assert problems("digits.toml") == ["there is no file digits.toml"]
