"""[run], [engine] and the top level: what is allowed, and what a mistake is answered with."""

import dataclasses
import pickle

import pytest

from asyncloop.config import EngineSection, load_config
from asyncloop.errors import ConfigError


def test_a_minimal_config_has_the_engines_defaults(write):
    config = load_config(write())
    assert config.run.model_dump() == {"name": "run", "root": "runs", "seed": 0, "tags": []}
    assert config.engine.kwargs() == {
        "epochs": None,
        "steps": None,
        "train_stream": "train",
        "extra_streams": [],
        "buffer": "auto",
        "epoch_size": None,
        "batch_size": None,
        "skip_zeroth_epoch": False,
        "evaluate_every": None,
        "on_empty_batch": "error",
        "on_empty_stream": "error",
        "on_unused_sources": "warn",
        "on_nonfinite": "error",
        "own_rng": False,
    }
    assert config.hooks == ()
    assert config.eval == {}


def test_all_keys_of_the_engine_can_be_given(write):
    config = load_config(
        write("""
        [engine]
        epochs = 0
        steps = 10
        train_stream = "a"
        extra_streams = ["b", "c"]
        buffer = 0
        epoch_size = 1
        batch_size = 2
        skip_zeroth_epoch = true
        evaluate_every = "10 min"
        on_empty_batch = "ignore"
        on_nonfinite = "warn"
        deadlines = { step = 5, batch = 2.5 }
        """)
    )
    assert config.engine.kwargs()["deadlines"] == {"step": 5.0, "batch": 2.5}
    assert config.engine.buffer == 0
    assert config.engine.evaluate_every == "10 min"


def test_a_config_cannot_be_changed(write):
    config = load_config(write())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run = None
    with pytest.raises(ValueError, match="frozen"):
        config.engine.epochs = 3


WRONG = [
    ("epochs = -1", "cfg.toml:6:10: engine.epochs must be at least 0, not the integer -1"),
    ("epochs = 1.5", "cfg.toml:6:10: engine.epochs must be an integer, not the number 1.5"),
    ("epochs = true", "cfg.toml:6:10: engine.epochs must be an integer, not true"),
    ('steps = "10"', 'cfg.toml:6:9: engine.steps must be an integer, not the string "10"'),
    ("epoch_size = 0", "cfg.toml:6:14: engine.epoch_size must be at least 1, not the integer 0"),
    (
        'extra_streams = "valid"',
        'cfg.toml:6:17: engine.extra_streams must be a list, not the string "valid"; write ["valid"]',
    ),
    (
        'extra_streams = ["a", 2]',
        "cfg.toml:6:23: engine.extra_streams.1 must be a string, not the integer 2",
    ),
    ('extra_streams = ["a", "a"]', "cfg.toml:6:17: engine.extra_streams: a is named twice"),
    (
        'buffer = "aut"',
        'cfg.toml:6:10: engine.buffer must be an integer or "auto", not the string "aut"; did you mean `auto`?',
    ),
    ("buffer = -1", 'cfg.toml:6:10: engine.buffer must be at least 0 or "auto", not the integer -1'),
    ("own_rng = 1", "cfg.toml:6:11: engine.own_rng must be true or false, not the integer 1"),
    (
        'on_nonfinite = "wran"',
        'cfg.toml:6:16: engine.on_nonfinite must be "ignore", "warn" or "error", not the string "wran"; '
        "did you mean `warn`?",
    ),
    (
        'evaluate_every = "5 foos"',
        'cfg.toml:6:18: engine.evaluate_every: a cadence must look like "1 epoch", "50 steps", "30 s" or '
        "\"1 step doubling to 1000\", not '5 foos'",
    ),
    ("evaluate_every = 5", "cfg.toml:6:18: engine.evaluate_every must be a string, not the integer 5"),
    ("deadlines = { step = 0 }", "cfg.toml:6:22: engine.deadlines.step must be more than 0, not the integer 0"),
    ('deadlines = { step = "1" }', 'cfg.toml:6:22: engine.deadlines.step must be a number, not the string "1"'),
    (
        "deadlines = { stpe = 1 }",
        "cfg.toml:6:15: `stpe` is no key of [engine.deadlines]; did you mean `step`?",
    ),
    (
        'evaluate_every = "5 steps"',
        "cfg.toml:6:18: engine.evaluate_every: it evaluates the extra streams, but `extra_streams` is empty",
    ),
    ("batchsize = 5", "cfg.toml:6:1: `batchsize` is no key of [engine]; did you mean `batch_size`?"),
    ("seed = 5", "cfg.toml:6:1: `seed` is no key of [engine]; it belongs to [run]"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_mistake_in_the_engine_section_is_named_with_its_place_and_what_is_allowed(write, problems, line, message):
    assert problems(write(f"[engine]\n{line}\n")) == [message]


def test_an_unknown_key_that_looks_like_nothing_gets_the_list_and_no_suggestion(write, problems):
    (message,) = problems(write("[run]\nzebra = 1\n"))
    assert message == "cfg.toml:6:1: `zebra` is no key of [run]; known: name, root, seed, tags"


@pytest.mark.parametrize("name", ["a/b", ".hidden", "", "x" * 101, "a\\nb"])
def test_the_runs_name_must_be_good_for_a_directory(write, problems, name):
    (message,) = problems(write(f'[run]\nname = "{name}"\n'))
    assert message.startswith("cfg.toml:6:8: run.name")


def test_a_section_that_is_no_table_is_told_so(write, problems):
    assert problems(write('engine = "fast"\nrun = [1]\n', base="") + "") == [
        'cfg.toml:1:10: engine must be a table, not the string "fast"',
        "cfg.toml:2:7: run must be a table, not a list",
        'cfg.toml:2:10: there is no [dataset]; write [dataset] and class = "package.module:Name"',
        'cfg.toml:2:10: there is no [model]; write [model] and class = "package.module:Name"',
    ]


def test_an_unknown_table_is_named_with_the_nearest_one(write, problems):
    assert problems(write("[engin]\nepochs = 1\n")) == [
        "cfg.toml:5:2: `engin` is no table of the config; did you mean `engine`?"
    ]
    assert problems(write("epochs = 1\n", base=""))[0] == (
        "cfg.toml:1:1: `epochs` is no table of the config; it belongs to [engine]"
    )


def test_all_mistakes_come_at_once_in_the_order_of_the_file(write, problems):
    found = problems(
        write("""
        [engine]
        epochs = -1
        [run]
        sed = 1
        [[hooks]]
        class = "parts:Nothing"
        [modell]
        """)
    )
    assert [message.split(": ")[0] for message in found] == [
        "cfg.toml:7:10",
        "cfg.toml:9:1",
        "cfg.toml:11:9",
        "cfg.toml:12:2",
    ]


def test_problems_keep_their_place_as_data(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("[engine]\nepochs = -100\n"))
    (problem,) = caught.value.details
    assert (problem.file, problem.line, problem.column, problem.origin.width) == ("cfg.toml", 6, 10, 4)
    assert problem.key == "engine.epochs"
    assert caught.value.exit_code == 2
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_mapping_works_like_a_file_and_its_mistakes_have_their_key_as_place(problems):
    mapping = {"dataset": {"class": "parts:Data"}, "model": {"class": "parts:Net"}, "engine": {"epochs": 2}}
    config = load_config(mapping)
    assert config.engine.epochs == 2
    assert config.path is None
    assert load_config(config_from(config.text)) == config
    assert problems({**mapping, "engine": {"epochs": -2}}) == ["engine.epochs must be at least 0, not the integer -2"]


def config_from(text):
    import tomllib

    return tomllib.loads(text)


def test_none_in_a_mapping_means_the_default_and_nothing_else(problems):
    mapping = {"dataset": {"class": "parts:Data"}, "model": {"class": "parts:Net"}}
    assert load_config({**mapping, "engine": {"epochs": None}}) == load_config(mapping)
    assert load_config({**mapping, "model": {"class": "parts:Net", "schedule": None}}) == load_config(mapping)
    assert problems({**mapping, "model": {"class": "parts:Net", "lr": None}}) == [
        "model.lr holds None, but TOML has no null; leave the key out"
    ]


def test_a_mapping_may_hold_numpy_numbers_paths_and_tuples_but_no_objects(problems):
    import pathlib

    import numpy as np

    data = {"class": "parts:Data", "n": np.int64(5), "where": pathlib.Path("x"), "names": ("a",)}
    config = load_config({"dataset": data, "model": {"class": "parts:Net", "lr": np.float32(0.5)}})
    assert config.dataset.kwargs == {"n": 5, "where": pathlib.Path("x"), "names": ["a"]}
    assert type(config.dataset.kwargs["n"]) is int
    assert problems({"dataset": {"class": object()}}) == ["dataset.class: a config cannot hold a value of type object"]
    assert problems({"dataset": {"class": dict}}) == [
        'dataset.class: a config cannot hold a value of type type; name a class as "module:Name"'
    ]


def test_the_engine_section_can_be_made_by_hand():
    assert EngineSection(epochs=3).kwargs()["epochs"] == 3
