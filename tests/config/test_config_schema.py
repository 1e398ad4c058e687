"""The JSON Schema of a config refuses what load_config refuses, as far as it can be told from one file, and no more."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

import asyncloop.hooks
from asyncloop.cli.schema import write_schema
from asyncloop.config import EngineSection, RunSection, load_config
from asyncloop.config.check import strictly
from asyncloop.config.json_schema import json_schema
from asyncloop.config.json_types import json_type
from asyncloop.errors import ConfigError
from asyncloop.hook import COMMON_KEYS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/*.toml"))

OWN = '''
from dataclasses import dataclass, field
from typing import Annotated, Callable, Literal

from pydantic import BaseModel, Field

from asyncloop.hook import Hook

print("imported")


class Crop(BaseModel):
    size: int
    border: Literal["zero", "mirror"] = "zero"


@dataclass
class Pictures:
    """Pictures and their classes.

    More about them.
    """

    n: Annotated[int, Field(ge=1)]
    """How many of them."""
    crops: list[Crop] = field(default_factory=list)
    crop: Crop | None = None


class Net(BaseModel):
    width: int = Field(3, ge=1, le=9, description="Units of a layer.")


class Other:
    def __init__(self, dataset, depth: int):
        pass


class Anything:
    def __init__(self, **kwargs):
        pass


class Odd:
    def __init__(self, clock: Callable[[], float] | None = None, matrix: "np.ndarray" = None):
        pass


class Watch(Hook):
    background = True

    def __init__(self, threshold: float, every: str = "5 steps", overflow="latest", variables: list[int] = ()):
        pass
'''

GOOD = """
[dataset]
class = "own:Pictures"
n = 5
crop = { size = 3 }
[model]
class = "own:Net"
[[hooks]]
class = "own:Watch"
threshold = 1
"""


@pytest.fixture(autouse=True)
def own(project: Path) -> None:
    (project / "own.py").write_text(OWN)


def mistakes(schema: Mapping[str, Any], config: str | Mapping[str, Any]) -> list[str]:
    """Where the schema refuses a config."""
    values = tomllib.loads(config) if isinstance(config, str) else config
    return [error.json_path for error in Draft7Validator(schema).iter_errors(values)]


@cache
def of_all_configs() -> dict[str, Any]:
    return json_schema()


def in_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def loads(config: str | Mapping[str, Any]) -> bool:
    try:
        load_config(tomllib.loads(config) if isinstance(config, str) else config)
    except ConfigError:
        return False
    return True


# --- what is good ---------------------------------------------------------------------------------------------------


def test_it_is_a_valid_schema_with_and_without_a_config(write):
    Draft7Validator.check_schema(json_schema())
    Draft7Validator.check_schema(json_schema(write(GOOD, base="")))
    assert json_schema()["$schema"] == "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda path: path.parent.name)
def test_every_example_fits_the_schema_of_all_configs_and_its_own(config):
    values = tomllib.loads(config.read_text())
    assert mistakes(of_all_configs(), values) == []
    assert mistakes(json_schema(config), values) == []


def test_a_good_config_fits(write):
    assert loads(GOOD)
    assert mistakes(json_schema(write(GOOD, base="")), GOOD) == []


def test_every_reference_between_definitions_leads_somewhere(write):
    schema = json_schema(write(GOOD, base=""))
    for path in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(schema)):
        found: Any = schema
        for part in path.split("/"):
            found = found[part]


def test_what_an_editor_shows_comes_from_docstrings_and_defaults(write):
    tables = json_schema(write(GOOD, base=""))["definitions"]
    pictures, net, watch = (tables[name] for name in ("dataset.own:Pictures", "model.own:Net", "hook.own:Watch"))
    assert pictures["description"] == "Pictures and their classes."
    assert "description" not in watch
    assert pictures["properties"]["n"]["description"] == "How many of them."
    assert net["properties"]["width"]["description"] == "Units of a layer."
    assert net["properties"]["width"]["default"] == 3
    assert tables["engine"]["properties"]["own_rng"]["description"].startswith("Seed Python's")
    assert tables["hook_keys"]["properties"]["mailbox"]["description"].startswith("How many batch events")
    assert watch["properties"]["every"]["default"] == "5 steps"
    assert watch["properties"]["background"]["default"] is True


def test_what_the_run_hands_over_is_not_offered():
    tables = of_all_configs()["definitions"]
    assert "output_dir" not in tables["hook.WriteCSV"]["properties"]
    assert "output_file" in tables["hook.WriteCSV"]["properties"]


def test_every_shipped_hook_and_model_is_offered_by_its_bare_name():
    tables = of_all_configs()["definitions"]
    assert tables["hook"]["properties"]["class"]["anyOf"][0]["enum"] == asyncloop.hooks.__all__
    assert "MLP" in tables["model"]["properties"]["class"]["anyOf"][0]["enum"]
    offered = [each["$ref"] for each in tables["hook"]["anyOf"] if each is not True]
    assert offered == [*(f"#/definitions/hook.{name}" for name in asyncloop.hooks.__all__), "#/definitions/hook_keys"]


# --- what is refused ------------------------------------------------------------------------------------------------

MLP = '[dataset]\nclass = "parts:Data"\n[model]\nclass = "MLP"\nn_inputs = 4\nn_classes = 3\n'
SHIPPED = MLP + '[[hooks]]\nclass = "SaveBest"\n'

WRONG = [
    *[
        (MLP, "[run]", line)
        for line in ("nam = 1", "name = 3", 'name = ""', 'name = "a/b"', 'name = ".a"', "seed = -1")
    ],
    *[(MLP, "[run]", line) for line in ('name = "a "', "seed = 1.5", "seed = true", 'tags = "a"', "tags = [1]")],
    *[(MLP, "[run]", line) for line in (f"seed = {2**63}", 'tags = [""]', f'name = "{"a" * 101}"')],
    *[(MLP, "[engine]", line) for line in ("epochs = -1", "epochs = 1.5", "epochs = true", 'steps = "10"')],
    *[(MLP, "[engine]", line) for line in ("epoch_size = 0", 'extra_streams = "valid"', 'extra_streams = ["a", 2]')],
    *[
        (MLP, "[engine]", line)
        for line in ('extra_streams = ["a", "a"]', 'buffer = "aut"', "buffer = -1", "own_rng = 1")
    ],
    *[(MLP, "[engine]", line) for line in ('on_nonfinite = "wran"', "evaluate_every = 5", "deadlines = { step = 0 }")],
    *[(MLP, "[engine]", line) for line in ('evaluate_every = "5 foos"', 'evaluate_every = "0 steps"', "seed = 5")],
    *[
        (MLP, "[engine]", line)
        for line in (
            'deadlines = { batch = "1" }',
            "deadlines = 5",
            "deadlines = { stp = 5 }",
            'evaluate_every = "2 epochs"',
            "batchsize = 5",
            "model = 1",
        )
    ],
    *[(MLP, "", line) for line in ('lr = "fast"', "lr = true", "hidden = 3", 'hidden = ["a"]', "hidden = [1.5]")],
    *[(MLP, "", line) for line in ('activation = "rleu"', "activation = 3", "inputs = 3", "dataset = 1", "lrr = 1")],
    *[(SHIPPED, "", line) for line in ("every = 5", 'every = "never"', "mailbox = 0", 'variables = "loss"')],
    *[
        (SHIPPED, "", line)
        for line in ('overflow = "drop"', "lockstep = 1", "mailbx = 1", 'mode = "mni"', 'keep = "1"')
    ],
    *[
        (SHIPPED, "", line)
        for line in ("deadline = 0", "start = -1", "output_dir = 1", "variable = 3", "concurrency = 0")
    ],
    *[(GOOD, "", line) for line in ('every = "x"', 'overflow = "drop"', 'threshold2 = "a"', 'variables = ["a"]')],
    *[(GOOD, "", line) for line in ("dataset = 1", "background = 3", "output_dir = 3")],
    *[(GOOD, "[model2]", line) for line in ("", "a = 1")],
    *[(GOOD, "[eval.valid]", line) for line in ("modle = 1", "engine = 3", "extends = 3", '"!replace" = true')],
    *[(GOOD, "[eval.valid.dataset]", line) for line in ("n = 0", "m = 1", 'n = "a"', "crop.size = 1.5", "crop.z = 1")],
    *[(GOOD, "[eval.valid.engine]", line) for line in ("epochs = -1", "epocs = 1", '"!replace" = 1')],
    *[(GOOD, "[eval.valid.model]", line) for line in ("width = 10", "width = 0", 'class = "nothing"', "depth = 1")],
    *[(GOOD, "[[eval.valid.hooks]]", line) for line in ("", 'class = "own:Watch"', 'class = "SaveBest"\nkep = 1')],
]


@pytest.mark.parametrize(("base", "table", "line"), WRONG)
def test_what_load_config_refuses_for_its_form_the_schema_refuses(write, base, table, line):
    config = f"{base}{table}\n{line}\n"
    own_schema = json_schema(write(base, base=""))
    assert loads(base)
    assert mistakes(own_schema, base) == []
    assert not loads(config)
    assert mistakes(own_schema, config)
    assert base == GOOD or mistakes(of_all_configs(), config)


@pytest.mark.parametrize(
    "config",
    [
        MLP.replace("n_classes = 3\n", ""),
        MLP.replace('class = "MLP"\n', ""),
        MLP.replace('"MLP"', '"MPL"'),
        MLP.replace('"MLP"', "3"),
        MLP.partition("[model]")[0],
        GOOD.replace("threshold = 1\n", ""),
        GOOD.replace("n = 5\n", ""),
        GOOD.replace("size = 3", ""),
        GOOD.replace("size = 3", "size = 3, sise = 4"),
        GOOD.replace("[[hooks]]", "[hooks]"),
        'hooks = ["SaveBest"]\n' + MLP,
        "eval = 3\n" + MLP,
        "extends = 3\n" + MLP,
        "epochs = 3\n" + MLP,
    ],
)
def test_what_is_missing_or_of_another_shape_is_refused(write, config):
    assert not loads(config)
    assert mistakes(json_schema(write(GOOD if "own:" in config else MLP, base="")), config)


def keys_of(section: str) -> Iterator[str]:
    if section in ("run", "engine"):
        yield from {"run": RunSection, "engine": EngineSection}[section].model_fields
    else:
        table = of_all_configs()["definitions"][section]["properties"]
        yield from (key for key in table if key != "class")


@pytest.mark.parametrize(
    "section", ["run", "engine", "model.MLP", *(f"hook.{name}" for name in asyncloop.hooks.__all__)]
)
def test_each_key_is_known_and_each_misspelt_key_is_refused(section):
    kind, _, name = section.partition(".")
    known = list(keys_of(section))
    for spelt in {*known, *(key + "s" for key in known), *(key[1:] for key in known)}:
        table = {"class": name, spelt: "${run.name}"} if name else {spelt: "${run.name}"}
        config: dict[str, Any] = {"extends": "base.toml", **({"hooks": [table]} if kind == "hook" else {kind: table})}
        found = {error.validator for error in Draft7Validator(of_all_configs()).iter_errors(config)}
        assert ("additionalProperties" in found) == (spelt not in known), spelt


# --- what is not refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("[engine]", 'epochs = "${run.seed}"'),
        ("[engine]", 'buffer = "${env:BUFFER}"'),
        ("[engine]", 'evaluate_every = "${run.seed} steps"'),
        ("[engine]", 'extra_streams = ["${run.name}"]'),
        ("[engine]", 'extra_streams = "${run.tags}"'),
        ("[engine]", 'on_nonfinite = "${run.name}"'),
        ("[engine]", 'own_rng = "${run.seed}"'),
        ("[engine]", 'deadlines = { step = "${run.seed}" }'),
        ("[run]", 'name = "a-${env:USER}"'),
        (
            "[[hooks]]",
            'class = "SaveBest"\nevery = "${engine.evaluate_every}"\nkeep = "${run.seed}"\nmode = "${run.name}"',
        ),
        ("[[hooks]]", 'class = "${hooks.0.class}"\nanything = 3'),
        ("[eval.valid]", 'model = "${model}"'),
    ],
)
def test_a_reference_may_stand_for_any_value(write, table, line):
    config = f"{GOOD}{table}\n{line}\n"
    assert mistakes(json_schema(write(config, base="")), config) == []


def test_a_reference_inside_other_text_is_no_number():
    assert mistakes(of_all_configs(), MLP + '[engine]\nepochs = "1${run.seed}"\n') == ["$.engine.epochs"]


def test_nothing_is_required_in_the_section_of_an_evaluation(write):
    config = GOOD + "[eval.valid.dataset]\ncrop = { border = 'mirror' }\n[eval.test]\n[eval.valid.model]\n"
    assert loads(config)
    assert mistakes(json_schema(write(config, base="")), config) == []


def test_an_evaluation_may_choose_another_class_and_gets_its_keys(write):
    config = GOOD + '[eval.valid.model]\nclass = "own:Other"\ndepth = 3\n'
    assert loads(config)
    schema = json_schema(write(config, base=""))
    assert mistakes(schema, config) == []
    assert mistakes(schema, config.replace("depth = 3", "depht = 3"))


def test_nothing_is_required_in_a_file_that_extends_another(write):
    write(GOOD, base="", name="base.toml")
    config = (
        'extends = "base.toml"\n[dataset.crop]\nborder = "mirror"\n[model]\nwidth = 4\n[engine]\n"!replace" = true\n'
    )
    assert load_config(write(config, base="")).model.kwargs == {"width": 4}
    schema = json_schema("cfg.toml")
    assert mistakes(schema, config) == []
    assert mistakes(schema, config.replace("width = 4", "width = 40")) == ["$.model.width"]


def test_a_table_may_say_that_it_replaces_another(write):
    config = '"!replace" = true\n' + GOOD + "[run]\n'!replace' = false\n[engine.deadlines]\n'!replace' = true\n"
    assert loads(config)
    assert mistakes(json_schema(write(config, base="")), config) == []


def test_a_class_with_free_keywords_is_open_but_for_what_the_run_hands_over(write):
    config = GOOD.replace("own:Net", "own:Anything") + "[eval.a.model]\nx = 3\n"
    assert loads(config)
    schema = json_schema(write(config, base=""))
    assert mistakes(schema, config) == []
    assert mistakes(schema, config + "output_dir = 3\n")


def test_what_pydantic_cannot_say_is_open(write):
    config = GOOD.replace("own:Net", "own:Odd")
    schema = json_schema(write(config, base=""))
    assert schema["definitions"]["model.own:Odd"]["properties"] == {"class": True, "clock": {}, "matrix": {}}


PLACES = [
    *[("run", key) for key in RunSection.model_fields],
    *[("engine", key) for key in EngineSection.model_fields],
    *[("dataset", key) for key in ("n", "where", "names", "limits", "words", "device", "!replace", "class")],
    *[("model", key) for key in ("lr", "sizes", "act", "label", "schedule", "loose", "dataset", "other")],
    *[("hooks", 0, key) for key in (*COMMON_KEYS, "class", "keep")],
    *[("hooks", 1, key) for key in (*COMMON_KEYS, "class", "mode")],
    *[("eval", "valid", part) for part in ("run", "engine", "dataset", "model", "hooks", "other")],
    *[(part,) for part in ("run", "engine", "dataset", "model", "hooks", "eval", "extends", "!replace", "other")],
]
names = st.sampled_from(
    ["class", "name", "epochs", "buffer", "every", "lr", "n", "names", "valid", "model", "!replace"]
)
scalars = st.sampled_from(
    ["parts:Data", "parts:Save", "SaveBest", "1 epoch", "${run.name}", "${model}", "a", "", "relu"]
)
scalars |= st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3))


def base() -> dict[str, Any]:
    hooks = [{"class": "parts:Save"}, {"class": "SaveBest"}]
    return {"dataset": {"class": "parts:Data"}, "model": {"class": "parts:Net"}, "hooks": hooks}


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=2))
def test_a_config_that_loads_is_never_refused(changes):
    config = base()
    for place, value in changes:
        table: Any = config
        for part in place[:-1]:
            assume(isinstance(table, list if isinstance(part, int) else dict) and part not in range(len(table), 2))
            table = table[part] if isinstance(part, int) else table.setdefault(part, {})
        assume(isinstance(table, dict))
        table[place[-1]] = value
    if loads(config):
        assert mistakes(schema_of_base(), config) == []


@cache
def schema_of_base() -> dict[str, Any]:
    return json_schema(base())


# --- types ----------------------------------------------------------------------------------------------------------


class Tree(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int
    below: list[Tree] = []


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    n: int = Field(alias="number")


class One(BaseModel):
    kind: Literal["one"]


class Two(BaseModel):
    kind: Literal["two"]
    n: int = 0


class Pair(NamedTuple):
    a: int
    b: str = ""


TYPES: list[Any] = [
    *(
        int,
        float,
        str,
        bool,
        Path,
        Tree,
        ByName,
        Pair,
        int | None,
        float | str,
        set[int],
        list[int],
        dict[str, int],
        dict,
    ),
    *(tuple[int, str], tuple[int, ...], Sequence[str], Mapping[str, Sequence[int]], Literal["a", "b"], bytes, complex),
    *(
        Annotated[int, Field(ge=1, lt=5)],
        Annotated[str, Field(max_length=2)],
        Annotated[int, BeforeValidator(bool)],
        Any,
    ),
    *(Annotated[One | Two, Field(discriminator="kind")], One | Two, dict[Literal["a", "n"], int], dict[int, str]),
    Annotated[list[int], Field(min_length=1, max_length=2)],
]
VALUES: list[Any] = [
    *(0, 1, 5, -1, 1.5, True, "", "a", "b", "aaa", "1", "1.5", [], [1], [1, 1], [1, "a"], ["a"], [1.5], [[1]], {}),
    *(
        {"a": 1},
        {"a": [1]},
        {"a": 1, "z": 2},
        {"n": 1},
        {"number": 1},
        {"n": 1, "below": [{"n": 2, "z": 3}]},
        [1, 2, 3],
    ),
    *(
        {"n": 1, "below": [{"n": 2}]},
        {"kind": "one"},
        {"kind": "two", "n": 1},
        {"kind": "one", "n": 1},
        {"kind": "three"},
    ),
    *({"1": "a"}, datetime.date(2024, 1, 1)),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_type_refuses_the_same_values_here_and_there(kind):
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    definitions: dict[str, Any] = {}
    schema = {"allOf": [json_type(adapter, "x", definitions)], "definitions": definitions}
    Draft7Validator.check_schema(schema)
    validator = Draft7Validator(schema)
    is_open = schema["allOf"] == [{}]
    for value in VALUES:
        try:
            strictly(adapter)(value)
        except ValidationError:
            # JSON has no dates, and no keys but texts.
            told = is_open or isinstance(value, datetime.date) or kind == dict[int, str]
            assert told or not validator.is_valid(value), value
        else:
            assert validator.is_valid(in_json(value)), value
    assert validator.is_valid("${run.seed}")


# --- unfinished configs, and the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[model]\n",
        '[model]\nclass = ""\n[dataset]\nclass = "nowhere:Data"\n[[hooks]]\nclass = "own:Wach"\n',
        "model = 3\nhooks = [1]\neval = [{ model = 3 }]\ndataset.class = [1]\n",
        "[eval.valid]\nhooks = 3\nmodel.class = 'own:OWN'\n",
        "hooks.class = 'own:Watch'\n[eval]\nvalid = 3\n",
    ],
)
def test_a_half_written_config_has_a_schema_in_which_what_it_lacks_is_open(write, config):
    schema = json_schema(write(config, base=""))
    Draft7Validator.check_schema(schema)
    finished = {"dataset": {"class": "nowhere:Data", "x": 1}, "model": {"class": "some.where:Else", "y": [2]}}
    assert mistakes(schema, finished) == []
    assert mistakes(schema, {**finished, "engine": {"epocs": 1}}) == ["$.engine"]


def test_a_class_that_cannot_be_imported_is_named(write, caplog):
    json_schema(write('[model]\nclass = "own:Nte"\n', base=""))
    assert caplog.messages == ["own:Nte is left open: there is no `Nte` in `own`; did you mean `Net`?"]


@pytest.mark.parametrize("text", ["[run\n", 'extends = "nowhere.toml"\n', "x = " + "[" * 5000])
def test_what_cannot_be_read_is_an_error(write, text):
    with pytest.raises(ConfigError):
        json_schema(write(text, base=""))
    with pytest.raises(ConfigError):
        write_schema("nowhere.toml", None)


def test_the_command_prints_the_schema_and_nothing_else(write, capsys):
    assert write_schema(write(GOOD, base=""), None) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json_schema("cfg.toml")
    assert printed.err == "imported\n"


def test_the_command_writes_the_schema_and_tells_how_an_editor_finds_it(write, capsys, project):
    write(GOOD, base="", name="cfg.toml")
    assert write_schema("cfg.toml", "schema.json") == 0
    assert json.loads((project / "schema.json").read_text()) == json_schema("cfg.toml")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("#:schema ./schema.json\n")
    with pytest.raises(OSError):
        write_schema(None, "no/such/folder.json")
