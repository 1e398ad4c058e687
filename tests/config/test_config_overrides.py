"""`--set` and references."""

import pytest

from asyncloop.config import load_config


def test_a_value_is_toml_and_wins_over_the_files(write):
    config = load_config(write("[engine]\nepochs = 1\n"), set=["engine.epochs=7", 'engine.extra_streams=["a"]'])
    assert config.engine.epochs == 7
    assert config.engine.extra_streams == ["a"]


def test_the_last_of_two_wins(write):
    assert load_config(write(), set=["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize("text", ["plain text", "50%", "a=b", "7", "1e3", "true", "2024-01-01", "", "é"[:1]])
def test_bare_text_is_taken_where_a_string_is_expected(write, text):
    assert load_config(write(), set=[f"model.label={text}"]).model.kwargs["label"] == text


def test_a_number_stays_a_number_where_anything_goes(write):
    config = load_config(write(), set=["model.loose=7", "model.lr=1e-3"])
    assert config.model.kwargs == {"loose": 7, "lr": 0.001}


def test_one_wrong_value_does_not_spoil_the_bare_text_of_another(write, problems):
    assert problems(write(), set=["run.name=7", "run.seed=x"]) == [
        '--set run.seed: run.seed must be an integer, not the string "x"'
    ]


def test_numbers_reach_into_arrays(write):
    config = load_config(write('[[hooks]]\nclass = "parts:Save"\n'), set=["hooks.0.every=50 steps"])
    assert config.hooks[0].kwargs == {"every": "50 steps"}


def test_a_mapping_of_values_works_too(write):
    config = load_config(write(), set={"model.lr": 0.5, "run": {"seed": 3}, 'model."label"': "x"})
    assert config.model.kwargs == {"lr": 0.5, "label": "x"}
    assert config.run.seed == 3


def test_a_missing_table_is_made(write):
    assert load_config(write(), set=["model.schedule.a=1"]).model.kwargs["schedule"] == {"a": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine.epochs", "--set engine.epochs: expected KEY=VALUE, e.g. `model.lr=0.1`"),
        ("=3", "--set : `` is no key; write e.g. `model.lr`"),
        ("a..b=3", "--set a..b: `a..b` is no key; write e.g. `model.lr`"),
        ("hooks.2.x=1", "--set hooks.2.x: hooks has 1 elements, the first is 0: there is no `2`"),
        ("hooks.x=1", "--set hooks.x: hooks is an array: `x` must be the number of an element, from 0"),
        ("model.lr.x=1", "--set model.lr.x: model.lr is the number 0.1: there is no `x` in it"),
        ("engine.epocs=1", "--set engine.epocs: `epocs` is no key of [engine]; did you mean `epochs`?"),
        ("engine.epochs=ten", '--set engine.epochs: engine.epochs must be an integer, not the string "ten"'),
        (
            "model.sizes=[1, 2",
            "--set model.sizes: [1, 2 begins like TOML but is not valid; "
            "quote it once more for the shell if quotes got lost",
        ),
        (
            "engine.extra_streams=valid",
            '--set engine.extra_streams: engine.extra_streams must be a list, not the string "valid"; write ["valid"]',
        ),
    ],
)
def test_a_wrong_override_is_named_by_its_key(write, problems, text, message):
    assert problems(write('lr = 0.1\n[[hooks]]\nclass = "parts:Save"\n'), set=[text]) == [message]


def test_an_element_of_no_array_cannot_be_set(write, problems):
    assert problems(write(), set=["hooks.0.every=x"]) == [
        "--set hooks.0.every: hooks has no element 0: there is no such array"
    ]


def test_overrides_win_over_the_evaluations_section(write):
    name = write("[eval.valid.dataset]\nn = 99\n")
    assert load_config(name, set=["dataset.n=5"], for_eval="valid").dataset.kwargs == {"n": 5}
    assert load_config(name, set=["eval.valid.dataset.n=6"], for_eval="valid").dataset.kwargs == {"n": 6}


def test_a_reference_takes_over_a_value_with_its_type(write):
    config = load_config(
        write(
            """
        lr = 0.25
        schedule = { a = "${model.lr}", b = "${dataset.n}" }
        sizes = ["${dataset.n}", 2]
        label = "lr ${model.lr}, n ${dataset.n}, ${model.sizes.1}, $${kept}"
        loose = "${model.schedule}"
        [dataset]
        n = 5
        """,
            base='[model]\nclass = "parts:Net"\n',
        ),
        set={"dataset.class": "parts:Data"},
    )
    assert config.model.kwargs["schedule"] == {"a": 0.25, "b": 5.0}
    assert config.model.kwargs["sizes"] == (5, 2)
    assert config.model.kwargs["label"] == "lr 0.25, n 5, 2, ${kept}"
    assert config.model.kwargs["loose"] == {"a": 0.25, "b": 5}


def test_a_reference_sees_what_was_set_and_the_sections_defaults(write):
    config = load_config(write('loose = "${run.seed}"\nlabel = "${engine.train_stream}"\n'), set=["run.seed=9"])
    assert config.model.kwargs == {"loose": 9, "label": "train"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('lr = "${model.lrr}"\nlrr = 1', None),
        ('label = "${model.labell}"', "5:9: there is no `model.labell` in this config to refer to"),
        (
            'label = "${engin.buffer}"',
            "5:9: there is no `engin.buffer` in this config to refer to; did you mean `engine.buffer`?",
        ),
        ('label = "${}"', "5:9: `${}` refers to nothing"),
        ('label = "a ${model.lr"', "5:9: `${model.lr` is a reference without its end; close it with `}`"),
        ('label = "${model.label}"', "5:9: references go in a circle: model.label → model.label"),
        ('loose = "${model}"', "5:9: references go in a circle: model → model.loose → model"),
        ('label = "x${dataset}"', "5:9: ${dataset} is a table, which cannot be part of a string"),
        (
            'label = "${env:NOPE_NOT_SET}"',
            "5:9: the environment variable NOPE_NOT_SET is not set; set it, or write the value",
        ),
        ('label = "${env:}"', "5:9: `${env:}` names no variable; write `${env:NAME}`"),
        (
            'lr = "${env:NOPE_NOT_SET}"',
            "5:6: the environment variable NOPE_NOT_SET is not set; set it, or write the value",
        ),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_error_at_its_place(write, problems, line, message):
    found = problems(write(line + "\n"))
    if message is None:
        assert found == ["cfg.toml:6:1: `lrr` is no argument of [model]; did you mean `lr`?"]
    else:
        assert [each.split("; did you mean `model.label`")[0] for each in found] == [f"cfg.toml:{message}"]


def test_a_longer_circle_is_shown_whole(write, problems):
    found = problems(
        write('loose = "${model.label}"\nlabel = "${dataset.n}"\n[run]\nname="${model.loose}"\n'),
        set={"dataset.n": "${model.loose}"},
    )
    assert any("dataset.n → model.loose → model.label → dataset.n" in each for each in found)


def test_the_environment_gives_strings_and_numbers_where_they_are_wanted(write, monkeypatch):
    monkeypatch.setenv("A_NUMBER", "12")
    config = load_config(write('lr = "${env:A_NUMBER}"\nlabel = "${env:A_NUMBER}"\nloose = "${env:A_NUMBER}"\n'))
    assert config.model.kwargs == {"lr": 12.0, "label": "12", "loose": "12"}


def test_what_the_environment_gave_is_stored_and_shown_nowhere(write, problems, monkeypatch):
    monkeypatch.setenv("TOKEN", "hush-hush")
    text = 'label = "Bearer ${env:TOKEN}"\nloose = ["${env:TOKEN}", "${model.label}"]\n'
    config = load_config(write(text))
    assert config.model.kwargs["label"] == "Bearer hush-hush"
    assert config.model.kwargs["loose"] == ["hush-hush", "Bearer hush-hush"]
    assert "hush" not in str(config.resolved) + config.text
    assert load_config(config.resolved) == config
    for line in ('lr = "${env:TOKEN}"', 'act = "${env:TOKEN}"', 'class = "${env:TOKEN}:X"', 'sizes = "${env:TOKEN}"'):
        (line_of_model,) = [3]
        found = problems(
            write(
                f"[model]\n{line}\n" + ("" if line.startswith("class") else 'class = "parts:Net"\n'),
                base='[dataset]\nclass = "parts:Data"\n',
            )
        )
        assert "hush" not in str(found)
        assert found[0].startswith(f"cfg.toml:{line_of_model + 1}:")
    found = problems(write('[engine]\nevaluate_every = "${env:TOKEN}"\n'))
    assert "hush" not in str(found)
