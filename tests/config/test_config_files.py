"""Files: syntax errors, what cannot be read, `extends`, `[eval]`."""

import pytest

from asyncloop.config import load_config


def test_a_missing_file_is_named(problems, project):
    assert problems("nowhere.toml") == ["there is no file nowhere.toml"]
    assert problems("parts.py/x.toml")[0].startswith("cannot read parts.py/x.toml: ")


def test_a_directory_stands_for_its_cfg_toml(write, problems, project):
    write()
    assert load_config(project).path == project / "cfg.toml"
    (project / "empty").mkdir()
    assert problems("empty") == ["empty is a directory without a cfg.toml; name the config file"]


def test_a_file_that_is_no_text_is_told_so(problems, project):
    (project / "cfg.toml").write_bytes(b'[run]\nname = "\xff"\n')
    assert problems("cfg.toml") == ["cfg.toml is not UTF-8 text (byte 14)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[run]\nname = \n",
            "cfg.toml:2:8: not valid TOML: `name` has no value; write one after the `=`, or remove the line",
        ),
        ("[run\n", "cfg.toml:1:5: not valid TOML: expected `]` after the table's name"),
        ("a = 1\na = 2\n", "cfg.toml:2:1: not valid TOML: `a` is given twice, first in line 1; keep one of the two"),
        ('a = "x', 'cfg.toml:1:5: not valid TOML: the string that begins here is not closed; end it with `"`'),
        ("a = " + "[" * 5000, "cfg.toml: nested too deeply"),
    ],
)
def test_a_syntax_error_has_line_column_and_what_was_expected(write, problems, text, message):
    assert problems(write(text, base="")) == [message]


def test_lines_are_right_with_windows_line_ends(project, problems):
    text = '[dataset]\r\nclass = "parts:Data"\r\n[model]\r\nclass = "parts:Net"\r\n[run]\r\nseed = "x"\r\n'
    (project / "cfg.toml").write_bytes(text.encode())
    assert problems("cfg.toml") == ['cfg.toml:6:8: run.seed must be an integer, not the string "x"']


def test_the_text_is_the_file_as_given(write, project):
    name = write("# a remark\n")
    config = load_config(name)
    assert config.text == (project / name).read_text()


def test_extends_merges_tables_deeply_and_replaces_arrays(write):
    write('[engine]\nepochs = 5\nextra_streams = ["a", "b"]\n[[hooks]]\nclass = "parts:Save"\n', name="base.toml")
    write('extends = "base.toml"\n[engine]\nextra_streams = ["c"]\n[model]\nlr = 0.5\n', base="")
    config = load_config("cfg.toml")
    assert config.engine.epochs == 5
    assert config.engine.extra_streams == ["c"]
    assert config.model.kwargs == {"lr": 0.5}
    assert len(config.hooks) == 1


def test_of_several_bases_the_later_wins_and_the_file_itself_last(write):
    write("[engine]\nepochs = 1\nsteps = 1\nbuffer = 1\n", name="a.toml")
    write("[engine]\nepochs = 2\nsteps = 2\n", name="b.toml", base="")
    write('extends = ["a.toml", "b.toml"]\n[engine]\nepochs = 3\n', base="")
    engine = load_config("cfg.toml").engine
    assert (engine.epochs, engine.steps, engine.buffer) == (3, 2, 1)


def test_a_base_is_looked_up_beside_the_file_that_names_it(write, project):
    (project / "deep").mkdir()
    write("[run]\nseed = 5\n", name="deep/b.toml")
    write('extends = "b.toml"\n', name="deep/a.toml", base="")
    write('extends = "deep/a.toml"\n', base="")
    assert load_config("cfg.toml").run.seed == 5
    assert load_config({"extends": "deep/a.toml"}).run.seed == 5


def test_replace_makes_a_table_replace_the_whole_of_the_base(write):
    write("[model.schedule]\na = 1.0\nb = 2.0\n", name="base.toml", base='[dataset]\nclass = "parts:Data"\n')
    write(
        'extends = "base.toml"\n[model]\nclass = "parts:Net"\n[model.schedule]\n"!replace" = true\nc = 3.0\n', base=""
    )
    assert load_config("cfg.toml").model.kwargs["schedule"] == {"c": 3.0}
    write('extends = "base.toml"\n[model]\nclass = "parts:Net"\n[model.schedule]\nc = 3.0\n', base="")
    assert load_config("cfg.toml").model.kwargs["schedule"] == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_replace_must_be_true_or_false(write, problems):
    assert problems(write('[model.schedule]\n"!replace" = 1\n')) == [
        'cfg.toml:6:14: "!replace" must be true or false, not the integer 1'
    ]


def test_bases_that_extend_each_other_in_a_circle_are_refused(write, problems):
    write('extends = "b.toml"\n', name="a.toml", base="")
    write('extends = "a.toml"\n', name="b.toml", base="")
    assert problems("a.toml") == ["b.toml:1:11: extends goes in a circle: a.toml → b.toml → a.toml"]


def test_two_bases_may_share_a_base_of_theirs(write):
    write("[run]\nseed = 4\n", name="root.toml")
    write('extends = "root.toml"\n', name="a.toml", base="")
    write('extends = "root.toml"\n', name="b.toml", base="")
    write('extends = ["a.toml", "b.toml"]\n', base="")
    assert load_config("cfg.toml").run.seed == 4


def test_a_missing_base_and_one_that_is_no_name_are_refused_at_their_place(write, problems):
    assert problems(write('extends = ["no.toml"]\n', base="")) == ["cfg.toml:1:12: extends: there is no file no.toml"]
    assert problems(write("extends = 3\n", base="")) == [
        "cfg.toml:1:11: extends must be a file name or a list of them, not the integer 3"
    ]


def test_a_mistake_in_a_base_is_shown_there(write, problems):
    write("[engine]\nepochs = -1\n", name="base.toml")
    assert problems(write('extends = "base.toml"\n', base="")) == [
        "base.toml:6:10: engine.epochs must be at least 0, not the integer -1"
    ]


EVAL = """
[[hooks]]
class = "parts:Save"
[eval.valid.dataset]
n = 99
[[eval.valid.hooks]]
class = "parts:Watch"
"""


def test_evaluating_a_stream_merges_its_section_and_takes_its_hooks_only(write):
    config = load_config(write(EVAL), for_eval="valid")
    assert config.dataset.kwargs == {"n": 99}
    assert [hook.settings["class"] for hook in config.hooks] == ["parts:Watch"]
    assert config.hooks[0].key == "hooks.0"


def test_training_does_not_see_the_evaluations_section(write):
    config = load_config(write(EVAL))
    assert config.dataset.kwargs == {}
    assert [hook.settings["class"] for hook in config.hooks] == ["parts:Save"]
    assert config.eval["valid"]["dataset"] == {"n": 99}


def test_evaluating_a_stream_without_a_section_has_no_hooks(write):
    assert load_config(write(EVAL), for_eval="test").hooks == ()


def test_a_mistake_in_an_evaluations_section_is_found_before_the_training(write, problems):
    found = problems(
        write("""
        [eval.valid.dataset]
        n = "x"
        [eval.valid.modle]
        [[eval.test.hooks]]
        class = "parts:Wach"
        [eval.hooks]
        a = 1
        """)
    )
    assert found == [
        'cfg.toml:7:5: dataset.n must be an integer, not the string "x"',
        "cfg.toml:8:13: `modle` is no key of [eval.valid]; did you mean `model`?",
        "cfg.toml:10:9: hooks.0.class: there is no `Wach` in `parts`; did you mean `Watch`?",
        "cfg.toml:12:1: `a` is no key of [eval.hooks]; known: dataset, engine, hooks, model, run",
    ]


def test_an_evaluation_may_want_a_variable_that_the_training_lacks(write, problems):
    name = write('[eval.valid.dataset]\nn = "${env:NOT_SET_ANYWHERE}"\n')
    load_config(name)
    assert problems(name, for_eval="valid") == [
        "cfg.toml:6:5: the environment variable NOT_SET_ANYWHERE is not set; set it, or write the value"
    ]


def test_sections_of_evaluations_must_be_tables(write, problems):
    assert problems(write("eval = 3\n", base=""))[0].endswith("eval must be a table of streams, not the integer 3")
    (message,) = problems(write("[eval]\nengine = 3\n"))
    assert message == (
        "cfg.toml:6:10: eval.engine must be a table, not the integer 3; "
        "the section of one stream is [eval.<stream>.engine]"
    )
