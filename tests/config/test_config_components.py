"""[dataset], [model] and [[hooks]]: importing, arguments, building."""

import importlib
import sys
from pathlib import Path

import pytest

from asyncloop.config import import_object, load_config
from asyncloop.errors import ConfigError


def built():
    return importlib.import_module("parts").built


def test_loading_builds_nothing(write):
    load_config(write('[[hooks]]\nclass = "parts:Save"\n'))
    assert built() == []


def test_building_passes_the_arguments_and_what_the_constructor_names_of_the_offered(write):
    config = load_config(write('lr = 1\n[[hooks]]\nclass = "parts:Save"\nkeep = 3\nmailbox = 7\nbackground = true\n'))
    data = config.dataset.build(output_dir=Path("out"), other=1)
    assert data.output_dir == Path("out")
    model = config.model.build(dataset=data, output_dir=Path("out"))
    assert (model.dataset, model.lr, model.sizes) == (data, 1.0, (3, 4))
    hook = config.hooks[0].build(dataset=data, output_dir=Path("out"))
    assert (hook.keep, hook.mailbox, hook.background, hook.output_dir) == (3, 7, True, Path("out"))


def test_each_building_gets_its_own_copies_of_the_arguments(write):
    config = load_config(write("loose = [1, 2]\n"))
    config.model.build(dataset=None).loose.append(3)
    assert config.model.build(dataset=None).loose == [1, 2]


def test_arguments_arrive_as_their_annotations_want_them(write):
    config = load_config(
        write(
            """
        sizes = [1, 2]
        lr = 3
        [dataset]
        class = "parts:Data"
        where = "some/where"
        names = ["a"]
        limits = [3, 4]
        words = ["x", "y"]
        device = "anything"
        """,
            base='[model]\nclass = "parts:Net"\n',
        )
    )
    assert config.model.kwargs == {"sizes": (1, 2), "lr": 3.0}
    assert config.dataset.kwargs == {
        "where": Path("some/where"),
        "names": ["a"],
        "limits": (3, 4),
        "words": ["x", "y"],
        "device": "anything",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('lr = "fast"', '5:6: model.lr must be a number, not the string "fast"'),
        ("lr = true", "5:6: model.lr must be a number, not true"),
        ("sizes = 3", "5:9: model.sizes must be a list, not the integer 3"),
        ('sizes = [1, "b"]', '5:13: model.sizes.1 must be an integer, not the string "b"'),
        ("label = 3", "5:9: model.label must be a string, not the integer 3"),
        ("label = 2024-01-01", "5:9: model.label must be a string, not the date or time 2024-01-01"),
        (
            'act = "rleu"',
            '5:7: model.act must be "relu" or "tanh", not the string "rleu"; did you mean `relu`?',
        ),
        ("schedule = { a = [] }", "5:18: model.schedule.a must be a number, not an empty list"),
        (
            "learning = 1",
            "5:1: `learning` is no argument of [model]; its class takes act, label, loose, lr, schedule, sizes",
        ),
        ("shedule = 1", "5:1: `shedule` is no argument of [model]; did you mean `schedule`?"),
        ("dataset = 1", "5:1: `dataset` is handed over by the run and cannot be set in a config; remove it"),
        ("output_dir = 1", "5:1: `output_dir` is handed over by the run and cannot be set in a config; remove it"),
    ],
)
def test_a_wrong_argument_is_named_with_its_place_and_what_is_expected(write, problems, line, message):
    assert problems(write(line + "\n")) == [f"cfg.toml:{message}"]


def test_a_bare_string_is_no_list_of_strings(write, problems):
    name = write('names = "a"\nwords = "b"\n[model]\nclass = "parts:Net"\n', base='[dataset]\nclass = "parts:Data"\n')
    assert problems(name) == [
        'cfg.toml:3:9: dataset.names must be a list, not the string "a"; write ["a"]',
        'cfg.toml:4:9: dataset.words must be a list, not the string "b"; write ["b"]',
    ]


def test_a_missing_argument_is_named_but_not_the_offered_ones(problems):
    assert problems({"dataset": {"class": "parts:Data"}, "model": {"class": "parts:Needy"}}) == [
        "model lacks the argument `rate`, which its class requires"
    ]


def test_a_class_with_free_keywords_takes_any_key(write):
    config = load_config({"dataset": {"class": "parts:Anything", "x": {"y": [1]}}, "model": {"class": "parts:Net"}})
    assert config.dataset.build(output_dir="not named").kwargs == {"x": {"y": [1]}}


def test_a_subclass_of_a_protocol_without_a_constructor_takes_nothing(problems):
    assert problems({"dataset": {"class": "parts:Plain", "x": 1}, "model": {"class": "parts:Net"}}) == [
        "dataset.x: `x` is no argument of [dataset]; its class takes nothing"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 5}, "dataset: low must not exceed high"),
        ({"high": 11}, "dataset.high must be at most 10, not the integer 11"),
        ({"hihg": 3}, "dataset.hihg: `hihg` is no argument of [dataset]; did you mean `high`?"),
    ],
)
def test_a_pydantic_model_validates_itself(problems, settings, message):
    mapping = {"dataset": {"class": "parts:Settings", **settings}, "model": {"class": "parts:Net"}}
    assert problems(mapping) == [message]
    good = load_config({**mapping, "dataset": {"class": "parts:Settings", "high": 5}})
    assert good.dataset.build().high == 5


def test_common_keys_of_hooks_become_attributes_unless_the_constructor_names_them(write):
    config = load_config(
        write("""
        [[hooks]]
        class = "parts:Watch"
        every = "50 steps"
        start = 10
        streams = ["train"]
        overflow = "latest"
        deadline = 2
        [[hooks]]
        class = "parts:Save"
        every = "2 epochs"
        on_error = "warn"
        [[hooks]]
        class = "parts:Table"
        variables = { loss = ["mean", "std"] }
        """)
    )
    watch, save, table = config.hooks
    assert watch.attributes == {
        "every": "50 steps",
        "start": 10.0,
        "streams": ["train"],
        "overflow": "latest",
        "deadline": 2.0,
    }
    assert (save.kwargs, save.attributes) == ({"every": "2 epochs"}, {"on_error": "warn"})
    assert table.kwargs == {"variables": {"loss": ["mean", "std"]}}
    assert watch.build().overflow == "latest"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("every = 5", "7:9: hooks.0.every must be a string, not the integer 5"),
        (
            'every = "never"',
            '7:9: hooks.0.every: a cadence must look like "1 epoch", "50 steps", "30 s" or '
            "\"1 step doubling to 1000\", not 'never'",
        ),
        ("mailbox = 0", "7:11: hooks.0.mailbox must be at least 1, not the integer 0"),
        ('variables = "loss"', '7:13: hooks.0.variables must be a list, not the string "loss"; write ["loss"]'),
        (
            'overflow = "drop"',
            '7:12: hooks.0.overflow must be "block", "drop_oldest" or "latest", not the string "drop"',
        ),
        (
            'on_error = "wran"',
            '7:12: hooks.0.on_error must be "fail", "warn" or "disable", not the string "wran"; did you mean `warn`?',
        ),
        ("lockstep = 1", "7:12: hooks.0.lockstep must be true or false, not the integer 1"),
        ("mailbx = 1", "7:1: `mailbx` is no argument of [hooks.0]; did you mean `mailbox`?"),
    ],
)
@pytest.mark.parametrize("hook", ["Watch"])
def test_a_wrong_common_key_of_a_hook_is_refused(write, problems, hook, line, message):
    assert problems(write(f'[[hooks]]\nclass = "parts:{hook}"\n{line}\n')) == [f"cfg.toml:{message}"]


@pytest.mark.parametrize("line", ["every = 5", 'every = "never"'])
def test_a_cadence_is_checked_also_where_the_constructor_names_it(write, problems, line):
    (message,) = problems(write(f'[[hooks]]\nclass = "parts:Save"\n{line}\n'))
    assert message.startswith("cfg.toml:7:9: hooks.0.every")


def test_hooks_must_be_an_array_of_tables_each_with_a_class(write, problems):
    assert problems(write('[hooks]\nclass = "Save"\n')) == [
        'cfg.toml:5:2: hooks must be an array of tables, not a table; write [[hooks]] and class = "…" for each hook'
    ]
    assert problems("cfg.toml", set=['hooks=["Save"]']) == [
        '--set hooks: hooks.0 must be a table, not the string "Save"; write [[hooks]] and class = "Save"'
    ]
    assert problems(write("[[hooks]]\n[[hooks]]\nevery = 3\n")) == [
        'cfg.toml:5:1: hooks.0 lacks `class`; write class = "package.module:Name"',
        'cfg.toml:6:1: hooks.1 lacks `class`; write class = "package.module:Name"',
    ]


def test_a_component_needs_a_class(problems, write):
    assert problems(write("[dataset]\n[model]\nclass = 3\n", base="")) == [
        'cfg.toml:1:2: dataset lacks `class`; write class = "package.module:Name"',
        'cfg.toml:3:9: model.class must be a string such as "package.module:Name", not the integer 3',
    ]


def test_the_ways_not_to_be_importable_are_told_apart(problems, project):
    (project / "broken.py").write_text("x = 1\nimport a_module_that_nobody_has\n")
    (project / "wrong.py").write_text("def f(:\n")
    (project / "leaving.py").write_text("raise SystemExit(3)\n")
    (project / "package").mkdir()
    (project / "package/__init__.py").write_text("")
    (project / "package/inner.py").write_text("class Thing:\n    class Part: pass\n")

    def complaint(path):
        (message,) = problems({"dataset": {"class": path}, "model": {"class": "parts:Net"}})
        return message.removeprefix("dataset.class: ")

    assert complaint("part:Data") == (
        "there is no module `part`: neither beside the config, nor in the current directory, nor installed; "
        "did you mean `parts`?"
    )
    assert complaint("package.iner:Thing") == (
        "there is no module `package.iner`: `package` is a package without it; did you mean `inner`?"
    )
    assert complaint("parts.x:Thing") == "there is no module `parts.x`: `parts` is a module, not a package"
    assert complaint("broken:Data") == (
        "module `broken` cannot be imported: ModuleNotFoundError: No module named 'a_module_that_nobody_has' "
        "at broken.py:2"
    )
    assert complaint("wrong:Data").startswith("module `wrong` cannot be imported: SyntaxError: ")
    assert complaint("wrong:Data").endswith(" at wrong.py:1")
    assert complaint("leaving:Data") == "module `leaving` cannot be imported: SystemExit: 3 at leaving.py:1"
    assert complaint("parts:Dta") == "there is no `Dta` in `parts`; did you mean `Data`?"
    assert complaint("package.inner:Thing.Prt") == ("there is no `Prt` in `package.inner:Thing`; did you mean `Part`?")
    assert complaint("parts:NUMBER") == "`parts:NUMBER` is no class: it is of type int, which cannot be called"
    assert complaint("parts.Data") == '`parts.Data` is no import path; did you mean "parts:Data"?'
    for malformed in ("parts:", ":Data", "parts:Data:x", "a b", "../parts:Data", ""):
        assert complaint(malformed) == (
            f'`{malformed}` is no import path; write "package.module:Name", '
            "or the bare name of a dataset that asyncloop ships"
        )


def test_the_cause_of_a_failed_import_is_kept(project, write):
    (project / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config({"dataset": {"class": "broken:Data"}, "model": {"class": "parts:Net"}})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert isinstance(caught.value.details[0].cause, ZeroDivisionError)


def test_an_object_can_be_imported_by_hand():
    assert import_object("os.path:join") is __import__("os").path.join
    with pytest.raises(ConfigError, match="no import path"):
        import_object("join")


def test_the_configs_folder_is_searched_before_the_current_directory(project, monkeypatch):
    for folder in ("here", "there"):
        (project / folder).mkdir()
        (project / folder / f"only_{folder}.py").write_text("class Data: pass\n")
        (project / folder / "both.py").write_text(f"class Data: place = {folder!r}\n")
    monkeypatch.chdir(project / "here")
    text = '[dataset]\nclass = "both:Data"\n[model]\nclass = "only_here:Data"\n[[hooks]]\nclass = "only_there:Data"\n'
    (project / "there/cfg.toml").write_text(text)
    config = load_config("../there/cfg.toml")
    assert config.dataset.cls.place == "there"
    assert [Path(entry).name for entry in sys.path[:2]] == ["there", "here"]


def test_a_module_of_the_same_name_from_elsewhere_is_not_taken_for_the_configs_own(project, monkeypatch):
    for folder in ("one", "two", "like_one"):
        (project / folder).mkdir()
        text = f"class Data:\n    place = {'one' if folder != 'two' else 'two'!r}\n"
        (project / folder / "twins.py").write_text(text)
        (project / folder / "cfg.toml").write_text('[dataset]\nclass = "twins:Data"\n[model]\nclass = "twins:Data"\n')
    assert load_config("one").dataset.cls.place == "one"
    assert load_config("like_one").dataset.cls.place == "one"
    with pytest.raises(ConfigError, match=r"module `twins` was already imported from .*one.twins.py"):
        load_config("two")


def test_what_asyncloop_ships_goes_by_its_bare_name(problems):
    config = load_config({"dataset": {"class": "parts:Data"}, "model": {"class": "parts:Net"}})
    assert config.model.cls is importlib.import_module("parts").Net
    models = importlib.import_module("asyncloop.models")
    assert import_object("MLP", kind="model") is models.MLP
    home, own = f"there are: {', '.join(sorted(models.__all__))}", 'one of your own is written "package.module:'
    for name, hint in {"MPL": "did you mean `MLP`?", "Zzz": f"{home};"}.items():
        (message,) = problems({"dataset": {"class": "parts:Data"}, "model": {"class": name}})
        assert message == f'model.class: asyncloop ships no model `{name}`; {hint} {own}{name}"'
