"""A complete good config of two files, and hundreds of broken ones made from it, each with one mistake.

What is expected of the message is known from how the config was broken: the file, the line and the column, the key,
and for a misspelt name the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PARTS = """
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from asyncloop.hook import Hook

NUMBER = 3


class Digits:
    def __init__(self, n_examples: int, folder: str = "data", classes: Sequence[str] = (), shuffle: bool = False):
        self.n_examples = n_examples

    def train_stream(self):
        yield {"image": np.ones((self.n_examples, 2)), "label": np.zeros(self.n_examples)}

    valid_stream = train_stream


class Net:
    input_names = ["image", "label"]
    output_names = ["loss"]

    def __init__(self, dataset, lr: float = 0.1, hidden: tuple[int, ...] = (), momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0,
                 activation: Literal["relu", "tanh", "gelu"] = "relu", title: str = "",
                 schedule: Mapping[str, float] | None = None):
        pass

    def run(self, batch, *, train, stream):
        return {"loss": 0.5}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Watch(Hook):
    def __init__(self, threshold: float, note: str = ""):
        pass

    async def after_batch(self, event):
        pass
"""

CFG = """\
extends = ["base.toml"]

[run]
name = "digits"
tags = ["first", "small"]

[dataset]
class = "shop:Digits"
n_examples = 8
folder = "data"
classes = ["zero", "one"]
shuffle = true

[model]
class = "shop:Net"
lr = 0.1
hidden = [64, 32]
title = "${run.name}, at ${model.lr}"

[model.schedule]
warm = 0.5
cold = 0.25

[engine]
epochs = 2
steps = 100
extra_streams = ["valid"]
buffer = 4
epoch_size = 3
evaluate_every = "50 steps"
on_nonfinite = "error"
on_unused_sources = "ignore"

[engine.deadlines]
batch = 10.0
step = 5

[[hooks]]
class = "SaveBest"
variable = "loss"
stream = "valid"
mode = "min"
keep = 2

[[hooks]]
class = "shop:Watch"
threshold = 0.5
every = "10 steps"
start = 5
streams = ["train"]
variables = ["loss"]
mailbox = 16
overflow = "drop_oldest"
concurrency = 2
background = false
on_error = "warn"
deadline = 30

[[hooks]]
class = "WriteCSV"
output_file = "log.csv"
delimiter = ";"

[eval.valid.dataset]
n_examples = 4

[[eval.valid.hooks]]
class = "ComputeStats"
variables = ["loss"]
"""

BASE = """\
[run]
root = "runs"
seed = 7

[model]
activation = "tanh"
momentum = 0.9

[engine]
train_stream = "train"
batch_size = 8
skip_zeroth_epoch = true
on_empty_batch = "warn"
own_rng = false
"""

FILES: Mapping[str, str] = {"cfg.toml": CFG, "base.toml": BASE}

MODULES: Mapping[str, str] = {
    "shop.py": PARTS,
    "failing.py": "import numpy\n\nnumpy.no_such_function()\n",
    "unfinished.py": "def net(:\n",
    "package/__init__.py": "",
    "package/nets.py": "class Net: pass\n",
}


@dataclass(frozen=True)
class Broken:
    """One config with one mistake, and what its message must say. `place` is `file:line:column`, or `--set KEY`."""

    id: str
    place: str
    says: tuple[str, ...] = ()
    key: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One line `key = value` of a file; `key` is dotted, as in the config that takes effect."""

    file: str
    line: int
    name: str
    value: str
    key: str

    @property
    def key_place(self) -> str:
        return f"{self.file}:{self.line}:1"

    @property
    def value_place(self) -> str:
        return f"{self.file}:{self.line}:{len(self.name) + 4}"

    @property
    def id(self) -> str:
        return f"{self.file}-{self.key}"

    def with_line(self, *lines: str) -> Mapping[str, str]:
        return replaced(self.file, self.line, *lines)


def replaced(file: str, line: int, *lines: str) -> Mapping[str, str]:
    """The good files with one line of them replaced."""
    old = FILES[file].splitlines()
    return {**FILES, file: "\n".join([*old[: line - 1], *lines, *old[line:]]) + "\n"}


def entries() -> Iterator[Entry]:
    for file, text in FILES.items():
        table, seen = "", dict[str, int]()
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("[["):
                name = line.strip("[]")
                seen[name] = seen.get(name, -1) + 1
                table = f"{name}.{seen[name]}."
            elif line.startswith("["):
                table = line.strip("[]") + "."
            elif "=" in line:
                name, _, value = line.partition(" = ")
                key = (table + name).removeprefix("eval.valid.")
                yield Entry(file, number, name, value, key)


def by_key(file: str, key: str, nth: int = 0) -> Entry:
    return [entry for entry in entries() if (entry.file, entry.key) == (file, key)][nth]


def section_of(key: str) -> str:
    return key.rpartition(".")[0]


# --- misspelt keys ------------------------------------------------------------------------------------------------


def misspellings(name: str) -> Iterator[tuple[str, str]]:
    """Kinds of slips and what they make of the name; never another name that is known."""
    middle = len(name) // 2
    yield "swapped", name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    yield "missing", name[:middle] + name[middle + 1 :]
    yield "doubled", name[:middle] + name[middle] + name[middle:]
    yield "wrong", name[:middle] + ("x" if name[middle] != "x" else "y") + name[middle + 1 :]
    yield "case", name.title()
    yield "capitals", name.upper()
    if "_" in name:
        yield "dash", name.replace("_", "-")
        yield "joined", name.replace("_", "")
        yield "camel", name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])


FREE = ("model.schedule.warm", "model.schedule.cold")
"""Keys of a table that takes any."""

SHORT = 2
"""A name of so few letters has too little to be known by: one that is wrong or missing may mean anything."""


def misspelt_keys() -> Iterator[Broken]:
    for entry in entries():
        if entry.key in FREE:
            continue
        for kind, wrong in misspellings(entry.name):
            if wrong == entry.name or (len(entry.name) <= SHORT and kind in ("missing", "wrong")):
                continue
            says = f"did you mean `{entry.name}`?"
            changed = entry.with_line(f"{wrong} = {entry.value}")
            key = f"{section_of(entry.key)}.{wrong}".removeprefix(".")
            yield Broken(f"{entry.id}-{kind}", entry.key_place, (f"`{wrong}`", says), key, changed)


def misspelt_tables() -> Iterator[Broken]:
    for file, text in FILES.items():
        for number, line in enumerate(text.splitlines(), 1):
            match = re.fullmatch(r"(\[+)(?:eval\.valid\.)?(\w+)(\.\w+)?(\]+)", line)
            if match is None or line.startswith(("[eval", "[[eval")):
                continue
            for kind, wrong in misspellings(match[2]):
                if match[3] or wrong == match[2]:
                    continue  # a table within another one is told of as a key of that one
                new = line.replace(match[2], wrong, 1)
                place = f"{file}:{number}:{len(match[1]) + 1}"
                says = (f"`{wrong}`", f"did you mean `{match[2]}`?")
                yield Broken(f"{file}-{number}-table-{kind}", place, says, wrong, replaced(file, number, new))


# --- values of a wrong type, or out of range ----------------------------------------------------------------------

INTEGER, NUMBER, TEXT, TEXTS, SIZES, FLAG, TABLE = (
    "an integer",
    "a number",
    "a string",
    "texts",
    "sizes",
    "flag",
    "table",
)

WRONG_VALUES: Mapping[str, tuple[str, ...]] = {
    INTEGER: ('"ten"', "1.5", "true", "[1]", "{ a = 1 }", "2024-01-01", "nan"),
    NUMBER: ('"fast"', "true", "[0.5]", "{ a = 1 }", "08:30:00"),
    TEXT: ("3", "1.5", "true", '["a"]', "{ a = 1 }", "2024-01-01"),
    TEXTS: ('"train"', "3", "true", "{ a = 1 }"),
    SIZES: ('"64"', "3", "1.5", "true"),
    FLAG: ("1", '"yes"', "[]", "0.0"),
    TABLE: ("3", '"fast"', "[1]"),
}

TYPES: Mapping[str, str] = {
    "run.name": TEXT,
    "run.tags": TEXTS,
    "run.root": TEXT,
    "run.seed": INTEGER,
    "dataset.class": TEXT,
    "dataset.n_examples": INTEGER,
    "dataset.folder": TEXT,
    "dataset.classes": TEXTS,
    "dataset.shuffle": FLAG,
    "model.class": TEXT,
    "model.lr": NUMBER,
    "model.hidden": SIZES,
    "model.title": TEXT,
    "model.activation": TEXT,
    "model.momentum": NUMBER,
    "model.schedule.warm": NUMBER,
    "model.schedule.cold": NUMBER,
    "engine.epochs": INTEGER,
    "engine.steps": INTEGER,
    "engine.extra_streams": TEXTS,
    "engine.buffer": INTEGER,
    "engine.epoch_size": INTEGER,
    "engine.batch_size": INTEGER,
    "engine.evaluate_every": TEXT,
    "engine.on_nonfinite": TEXT,
    "engine.on_unused_sources": TEXT,
    "engine.on_empty_batch": TEXT,
    "engine.train_stream": TEXT,
    "engine.skip_zeroth_epoch": FLAG,
    "engine.own_rng": FLAG,
    "engine.deadlines.batch": NUMBER,
    "engine.deadlines.step": NUMBER,
    "hooks.0.class": TEXT,
    "hooks.0.variable": TEXT,
    "hooks.0.stream": TEXT,
    "hooks.0.mode": TEXT,
    "hooks.0.keep": INTEGER,
    "hooks.1.class": TEXT,
    "hooks.1.threshold": NUMBER,
    "hooks.1.every": TEXT,
    "hooks.1.start": NUMBER,
    "hooks.1.streams": TEXTS,
    "hooks.1.variables": TEXTS,
    "hooks.1.mailbox": INTEGER,
    "hooks.1.overflow": TEXT,
    "hooks.1.concurrency": INTEGER,
    "hooks.1.background": FLAG,
    "hooks.1.on_error": TEXT,
    "hooks.1.deadline": NUMBER,
    "hooks.2.class": TEXT,
    "hooks.2.output_file": TEXT,
    "hooks.2.delimiter": TEXT,
}

OUT_OF_RANGE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "run.name": (('""', "not empty"), ('"a/b"', "names a directory"), ('".hidden"', "names a directory")),
    "run.seed": (("-1", "at least 0"), ("9223372036854775808", "less than")),
    "run.root": (('""', "not empty"),),
    "model.activation": (('"rleu"', "did you mean `relu`?"), ('"softsign"', '"relu", "tanh" or "gelu"')),
    "model.momentum": (("1.0", "less than 1"), ("-0.1", "at least 0")),
    "engine.epochs": (("-1", "at least 0"),),
    "engine.steps": (("-5", "at least 0"),),
    "engine.buffer": (("-1", "at least 0"), ('"aut"', "did you mean `auto`?")),
    "engine.epoch_size": (("0", "at least 1"),),
    "engine.batch_size": (("0", "at least 1"), ("-3", "at least 1")),
    "engine.evaluate_every": (
        ('"often"', '"50 steps"'),
        ('"0 steps"', "positive"),
        ('"1.5 steps"', "whole number"),
        ('"2 epochs"', "steps or seconds"),
    ),
    "engine.on_nonfinite": (('"wran"', "did you mean `warn`?"), ('"Error"', "did you mean `error`?")),
    "engine.on_unused_sources": (('"ignroe"', "did you mean `ignore`?"),),
    "engine.on_empty_batch": (('"skip"', '"ignore", "warn" or "error"'),),
    "engine.extra_streams": (('["valid", "valid"]', "twice"),),
    "engine.train_stream": (('""', "not empty"),),
    "engine.deadlines.batch": (("0", "more than 0"), ("-1.5", "more than 0")),
    "hooks.0.mode": (('"mim"', "did you mean `min`?"), ('"least"', '"min" or "max"')),
    "hooks.0.keep": (("0", "at least 1"),),
    "hooks.0.variable": (('""', "a name"),),
    "hooks.1.every": (('"sometimes"', '"50 steps"'), ('"0 s"', "positive")),
    "hooks.1.start": (("-1", "at least 0"),),
    "hooks.1.mailbox": (("0", "at least 1"),),
    "hooks.1.overflow": (('"dorp_oldest"', "did you mean `drop_oldest`?"), ('"wait"', '"block"')),
    "hooks.1.concurrency": (("0", "at least 1"),),
    "hooks.1.on_error": (('"fial"', "did you mean `fail`?"),),
    "hooks.1.deadline": (("0", "more than 0"),),
    "hooks.2.delimiter": (('";;"', "one character"),),
    "hooks.2.output_file": (('"../log.csv"', "output_file"),),
}
"""Values that have the right type, and a word or two that the message must have for them."""


def wrong_values() -> Iterator[Broken]:
    for entry in entries():
        kind = TYPES.get(entry.key)
        if kind is None or (entry.line > EVAL_FROM and entry.file == "cfg.toml"):
            continue
        for value in WRONG_VALUES[kind]:
            changed = entry.with_line(f"{entry.name} = {value}")
            yield Broken(f"{entry.id}={value}", entry.value_place, (f"{entry.key} must be",), entry.key, changed)
    for key in ("run.tags", "engine.extra_streams", "hooks.1.streams", "dataset.classes"):
        entry = by_key("cfg.toml", key)
        changed = entry.with_line(f'{entry.name} = ["a", 3]')
        place = f"cfg.toml:{entry.line}:{len(entry.name) + 10}"
        yield Broken(f"{entry.id}-element", place, (f"{key}.1 must be a string",), f"{key}.1", changed)


def values_out_of_range() -> Iterator[Broken]:
    for entry in entries():
        for value, says in OUT_OF_RANGE.get(entry.key, ()):
            if entry.file == "base.toml" or entry.line < EVAL_FROM:
                changed = entry.with_line(f"{entry.name} = {value}")
                yield Broken(f"{entry.id}={value}", entry.value_place, (entry.name, says), entry.key, changed)


EVAL_FROM = next(number for number, line in enumerate(CFG.splitlines(), 1) if line.startswith("[eval"))


# --- what is missing ----------------------------------------------------------------------------------------------


def without_table(file: str, header: str) -> Mapping[str, str]:
    kept, inside = list[str](), False
    for line in FILES[file].splitlines():
        inside = line == header if line.startswith("[") else inside
        kept += [] if inside else [line]
    return {**FILES, file: "\n".join(kept) + "\n"}


def what_is_missing() -> Iterator[Broken]:
    for key in ("dataset.class", "model.class", "dataset.n_examples", "hooks.0.class", "hooks.1.threshold"):
        entry = by_key("cfg.toml", key)
        lines = FILES["cfg.toml"].splitlines()
        header = max(number for number in range(1, entry.line) if lines[number - 1].startswith("["))
        place = f"cfg.toml:{header}:{2 if 'hooks' not in key else 1}"
        yield Broken(f"no-{key}", place, (section_of(key), f"`{entry.name}`"), key, entry.with_line())
    alone = {"cfg.toml": "[engine]\nepochs = 1\n", "base.toml": ""}
    for name, other in (("dataset", "model"), ("model", "dataset")):
        text = alone["cfg.toml"] + f'[{other}]\nclass = "shop:{"Net" if other == "model" else "Digits"}"\n'
        text += "n_examples = 4\n" if other == "dataset" else ""
        n_lines = text.count("\n")
        last = len(text.splitlines()[-1]) + 1
        place = f"cfg.toml:{n_lines}:{last}"
        yield Broken(f"no-[{name}]", place, (f"[{name}]", "class ="), name, {**alone, "cfg.toml": text})


# --- syntax -------------------------------------------------------------------------------------------------------


def syntax_errors() -> Iterator[Broken]:
    for file, text in FILES.items():
        for number, line in enumerate(text.splitlines(), 1):
            slips = list(_syntax_slips(line))
            some = slips[number % 3 :: 3] if len(slips) > 3 else slips  # all lines, and all kinds, but not all of both
            for kind, wrong, *says in some:
                place = f"{file}:{number + (kind == 'twice')}:"
                changed = replaced(file, number, *wrong)
                yield Broken(f"{file}-{number}-{kind}", place, ("not valid TOML", *says), "", changed)


def _syntax_slips(line: str) -> Iterator[tuple[str | Sequence[str], ...]]:
    """Kinds of slips, the line or lines they make, and words that the message must have."""
    name, equals, value = line.partition(" = ")
    yield "junk", ["???"], "neither"
    if line.startswith("["):
        yield "open", [line.removesuffix("]")], "expected `]"
    if equals:
        yield "no equals sign", [f"{name} {value}"], f"expected `=` after `{name}`"
        yield "colon", [f"{name}: {value}"], "in TOML it is `key = value`"
        yield "no value", [f"{name} ="], f"`{name}` has no value"
        yield "bare word", [f"{name} = two words"], 'a string is written in quotes: "two words"'
        yield "no quote", [f'{name} = word"'], 'a string is written in quotes: "word"'
        yield "capital", [f"{name} = True"], "write true"
        yield "null", [f"{name} = None"], "leave the key out"
        yield "twice", [line, line], f"`{name}` is given twice"
    if equals and value.endswith('"'):
        yield "not closed", [line[:-1]], 'end it with `"`'
    if equals and value.endswith("]"):
        yield "not closed", [line[:-1]], "end it with `]`"


# --- imports ------------------------------------------------------------------------------------------------------


def bad_imports() -> Iterator[Broken]:
    cases = {
        "missing module": ("shp:Net", "there is no module `shp`", "did you mean `shop`?"),
        "missing installed module": ("nobody_has_this:Net", "there is no module `nobody_has_this`", "nor installed"),
        "missing submodule": ("package.netts:Net", "there is no module `package.netts`", "did you mean `nets`?"),
        "no package": ("shop.nets:Net", "there is no module `shop.nets`", "is a module, not a package"),
        "missing name": ("shop:Nett", "there is no `Nett` in `shop`", "did you mean `Net`?"),
        "not callable": ("shop:NUMBER", "cannot be called"),
        "failing": ("failing:Net", "AttributeError", "failing.py:3"),
        "unfinished": ("unfinished:Net", "SyntaxError", "unfinished.py:1"),
        "a dot for the colon": ("shop.Net", 'did you mean "shop:Net"?'),
        "no path": ("shop net", "is no import path"),
        "a bare name": ("Zebra", "asyncloop ships no"),
    }
    for key in ("dataset.class", "model.class", "hooks.1.class"):
        entry = by_key("cfg.toml", key)
        for kind, (path, *says) in cases.items():
            changed = entry.with_line(f'class = "{path}"')
            yield Broken(f"{key}-{kind}", entry.value_place, (key, *says), key, changed)
    for key in ("dataset.class", "model.class", "hooks.0.class", "hooks.1.class", "hooks.2.class"):
        entry = by_key("cfg.toml", key)
        changed = entry.with_line(f"class = {entry.value}", "colour = 3")
        says = ("`colour` is no argument", "takes")
        yield Broken(
            f"{key}-wrong argument", f"cfg.toml:{entry.line + 1}:1", says, f"{section_of(key)}.colour", changed
        )
    for name, wrong in (("SaveBest", "SaveBset"), ("WriteCSV", "WriteCsv"), ("SaveBest", "savebest")):
        entry = by_key("cfg.toml", "hooks.0.class")
        says = ("hooks.0.class", f"`{wrong}`", f"did you mean `{name}`?")
        changed = entry.with_line(f'class = "{wrong}"')
        yield Broken(f"hook {wrong}", entry.value_place, says, "hooks.0.class", changed)


# --- references, extends, --set -----------------------------------------------------------------------------------


def references() -> Iterator[Broken]:
    cases = {
        "nowhere": ("${run.nme}", "run.nme", "did you mean `run.name`?"),
        "no section": ("${engin.buffer}", "engin.buffer", "did you mean `engine.buffer`?"),
        "itself": ("${KEY}", "circle", "KEY"),
        "around": ("${model.title}", "circle", "model.title"),
        "empty": ("${}", "refers to nothing"),
        "open": ("a ${run.name", "without its end", "}"),
        "unset variable": ("${env:SHOP_NOBODY_SETS_THIS}", "SHOP_NOBODY_SETS_THIS", "set it"),
        "no variable": ("${env:}", "names no variable"),
        "table in text": ("a ${model.schedule}", "is a table"),
    }
    for file, key in (("cfg.toml", "model.title"), ("cfg.toml", "dataset.folder"), ("base.toml", "run.root")):
        for kind, (text, *says) in cases.items():
            entry = by_key(file, key)
            title = by_key("cfg.toml", "model.title")
            changed = entry.with_line(f'{entry.name} = "{text.replace("KEY", key)}"')
            if kind == "around":
                if key == "model.title":
                    continue
                changed = {**FILES, file: changed[file]}
                lines = changed["cfg.toml"].splitlines()
                lines[title.line - 1] = f'title = "${{{key}}}"'
                changed["cfg.toml"] = "\n".join(lines) + "\n"
            place = title.value_place if kind == "around" and file == "base.toml" else entry.value_place
            yield Broken(f"{entry.id}-{kind}", place, tuple(each.replace("KEY", key) for each in says), "", changed)


def wrong_extends() -> Iterator[Broken]:
    def cfg(line: str) -> Mapping[str, str]:
        return replaced("cfg.toml", 1, line)

    yield Broken("no such base", "cfg.toml:1:12", ("extends", "bse.toml"), "extends", cfg('extends = ["bse.toml"]'))
    yield Broken("itself", "cfg.toml:1:12", ("circle", "cfg.toml"), "extends", cfg('extends = ["cfg.toml"]'))
    yield Broken("number", "cfg.toml:1:11", ("extends", "file name"), "extends", cfg("extends = 3"))
    yield Broken("numbers", "cfg.toml:1:12", ("extends", "file name"), "extends", cfg("extends = [3]"))
    yield Broken("folder", "cfg.toml:1:12", ("extends", "package"), "extends", cfg('extends = ["package"]'))
    circle = {**FILES, "base.toml": 'extends = "cfg.toml"\n' + BASE}
    yield Broken("circle", "base.toml:1:11", ("circle", "cfg.toml", "base.toml"), "extends", circle)
    late = {**FILES, "cfg.toml": CFG.replace('extends = ["base.toml"]\n', "") + '\n[run]\nextends = "base.toml"\n'}
    late["cfg.toml"] = CFG.replace('extends = ["base.toml"]\n', "").replace("[run]", '[run]\nextends = "base.toml"')
    yield Broken("in a table", "cfg.toml:3:1", ("`extends`", "before the first table"), "run.extends", late)


def wrong_overrides() -> Iterator[Broken]:
    cases = (
        ("engine.epocs=3", "did you mean `epochs`?"),
        ("engin.epochs=3", "did you mean `engine`?"),
        ("engine.epochs=ten", "engine.epochs must be an integer"),
        ("engine.epochs=-1", "at least 0"),
        ("engine.extra_streams=valid", 'write ["valid"]'),
        ("model.lr=fast", "model.lr must be a number"),
        ("model.lrr=1", "did you mean `lr`?"),
        ("model.hidden=[1, 2", "begins like TOML"),
        ("model.lr.x=1", "there is no `x` in it"),
        ("model.class=shop:Nett", "did you mean `Net`?"),
        ("dataset.class=Nothing", "asyncloop ships no dataset"),
        ("hooks.7.keep=1", "there is no `7`"),
        ("hooks.x.keep=1", "the number of an element"),
        ("hooks.0.kep=1", "did you mean `keep`?"),
        ("hooks.0.keep=0", "at least 1"),
        ("hooks=3", "array of tables"),
        ("engine.epochs", "KEY=VALUE"),
        ("a..b=3", "no key"),
        ("=3", "no key"),
        ("extends=other.toml", "extends"),
        ("eval=7", "eval must be a table of streams"),
        ("zebra=1", "`zebra`"),
    )
    for text, says in cases:
        name = text.partition("=")[0]
        yield Broken(f"--set {text}", f"--set {name}", (says,), args=("--set", text))


GROUPS = {
    "misspelt keys": misspelt_keys,
    "misspelt tables": misspelt_tables,
    "wrong values": wrong_values,
    "values out of range": values_out_of_range,
    "what is missing": what_is_missing,
    "syntax errors": syntax_errors,
    "bad imports": bad_imports,
    "references": references,
    "extends": wrong_extends,
    "overrides": wrong_overrides,
}


def group(name: str) -> list[Broken]:
    """The broken configs of a group, those that turned out the same only once."""
    return list({(*each.files.items(), each.args): each for each in GROUPS[name]()}.values())
