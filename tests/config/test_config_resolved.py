"""What is written: TOML that reads back equal, and the resolved config."""

import math
import tomllib
from datetime import date, datetime, time, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncloop.config import dumps, load_config

texts = st.text(st.characters(exclude_categories=["Cs"]))
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
scalars = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=offsets)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
documents = st.dictionaries(texts, values, max_size=5)


@given(documents)
def test_what_is_written_is_read_back_equal(document):
    assert tomllib.loads(dumps(document)) == document


@given(st.dictionaries(texts, st.lists(st.dictionaries(texts, values, max_size=2), min_size=1, max_size=3)))
def test_arrays_of_tables_are_read_back_equal(document):
    assert tomllib.loads(dumps(document)) == document


def test_infinite_numbers_and_nan_have_a_form():
    table = tomllib.loads(dumps({"a": math.inf, "b": -math.inf, "c": math.nan, "d": 1e-7, "e": 1e300}))
    assert (table["a"], table["b"], table["d"], table["e"]) == (math.inf, -math.inf, 1e-7, 1e300)
    assert math.isnan(table["c"])


def test_the_form_is_what_a_person_would_write():
    document = {
        "title": 'say "hi"',
        "run": {"name": "x", "when": datetime(2024, 1, 2, 3, 4, 5)},
        "hooks": [{"class": "A", "sub": {"t": time(1, 2)}}, {"class": "B", "points": [{"x": 1}, {"x": 2}]}],
        "eval": {"valid": {"day": date(2024, 1, 2)}},
        "empty": {},
    }
    assert dumps(document) == (
        'title = "say \\"hi\\""\n'
        '\n[run]\nname = "x"\nwhen = 2024-01-02T03:04:05\n'
        "\n[eval.valid]\nday = 2024-01-02\n"
        "\n[empty]\n"
        '\n[[hooks]]\nclass = "A"\n'
        "\n[hooks.sub]\nt = 01:02:00\n"
        '\n[[hooks]]\nclass = "B"\n'
        "\n[[hooks.points]]\nx = 1\n"
        "\n[[hooks.points]]\nx = 2\n"
    )
    assert dumps({}) == ""


@pytest.mark.parametrize("value", [None, object(), [1, None], {"b": {1, 2}}])
def test_what_has_no_form_is_refused_by_its_key(value):
    with pytest.raises(TypeError, match=r"^a"):
        dumps({"a": value})


FULL = """
lr = 0.5
label = "$${x} ${run.name}"
[run]
name = "digits"
tags = ["a"]
[engine]
epochs = 3
extra_streams = ["valid"]
evaluate_every = "5 steps"
deadlines = { step = 3 }
[[hooks]]
class = "parts:Save"
keep = 2
mailbox = 5
[[hooks]]
class = "parts:Watch"
[eval.valid.dataset]
n = "${run.seed}"
"""


def test_the_resolved_config_holds_every_value_with_its_default(write):
    assert load_config(write(FULL), set=["model.sizes=[7]"]).resolved == {
        "run": {"name": "digits", "root": "runs", "seed": 0, "tags": ["a"]},
        "dataset": {
            "class": "parts:Data",
            "n": 8,
            "names": [],
            "limits": [1, 2],
            "words": [],
        },
        "model": {"class": "parts:Net", "lr": 0.5, "sizes": [7], "act": "relu", "label": "$${x} digits"},
        "engine": {
            "epochs": 3,
            "train_stream": "train",
            "extra_streams": ["valid"],
            "buffer": "auto",
            "skip_zeroth_epoch": False,
            "evaluate_every": "5 steps",
            "on_empty_batch": "error",
            "on_empty_stream": "error",
            "on_unused_sources": "warn",
            "on_nonfinite": "error",
            "own_rng": False,
            "deadlines": {"step": 3},
        },
        "hooks": [
            {"class": "parts:Save", "every": "1 epoch", "keep": 2, "mailbox": 5},
            {"class": "parts:Watch"},
        ],
        "eval": {"valid": {"dataset": {"n": "${run.seed}"}}},
    }


@pytest.mark.parametrize("stream", [None, "valid", "other"])
def test_the_resolved_config_written_and_read_is_an_equal_config(write, project, stream):
    config = load_config(write(FULL), for_eval=stream)
    (project / "resolved.toml").write_text(dumps(config.resolved))
    again = load_config("resolved.toml")
    assert again.resolved == config.resolved
    if stream is None:
        assert again == config
    assert (again.run, again.engine, again.dataset, again.model) == (
        config.run,
        config.engine,
        config.dataset,
        config.model,
    )
    assert again.hooks == config.hooks


def test_configs_with_different_values_are_different(write):
    name = write(FULL)
    assert load_config(name) == load_config(name, set=["run.seed=0", "dataset.n=8"])
    for change in ("run.seed=1", "dataset.n=9", "model.lr=0.6", "engine.epochs=4", "hooks.1.mailbox=3"):
        assert load_config(name) != load_config(name, set=[change])
