"""load_config: from a TOML file or a mapping to a checked Config, with all mistakes at once and nothing built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from asyncloop.config.check import check, strictly, unknown_key
from asyncloop.config.components import Component, read_component
from asyncloop.config.document import read
from asyncloop.config.importing import Kind, make_importable
from asyncloop.config.override import read_overrides
from asyncloop.config.places import Places
from asyncloop.config.problem import InvalidConfig, Origin, Problem, without_consequences
from asyncloop.config.reference import References
from asyncloop.config.schema import EngineSection, RunSection, without_empty_deadlines
from asyncloop.config.tree import Node, Path, from_value, merge, shown, without_markers
from asyncloop.redact import keep_secret, redacted

__all__ = ["Config", "load_config", "load_dataset"]

_S = TypeVar("_S", bound=BaseModel)

_PARTS = ("run", "dataset", "model", "engine", "hooks")
_SECTIONS: Mapping[str, type[BaseModel]] = {"run": RunSection, "engine": EngineSection}


@dataclass(frozen=True, slots=True)
class Config:
    """A config that was read and checked. Two are equal if they use equal values, wherever these were written."""

    run: RunSection
    dataset: Component
    model: Component
    engine: EngineSection
    hooks: tuple[Component, ...]
    eval: Mapping[str, Any]
    """The `[eval]` tables as they are written, references included."""
    path: FilePath | None = field(compare=False)
    text: str = field(compare=False)
    """The file as it is, or the given mapping as TOML; without what it extends and what `set` changed."""
    resolved: dict[str, Any] = field(compare=False)
    """Every value used, defaults of sections and constructors included: `dumps` can write it and `load_config` reads
    it to an equal config. What came from the environment stands there as its `${env:…}`."""
    places: Places = field(compare=False)
    """For what the dataset and the engine find wrong with it when they are built."""


def load_config(
    source: str | FilePath | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    for_eval: str | None = None,
    folders: Sequence[FilePath] = (),
) -> Config:
    """Read and check a config: a TOML file, a directory with a cfg.toml, or a mapping of the same form.

    `set` holds the values of `--set`, as texts `a.b=VALUE` or as `{"a.b": value}`; they win over all files.
    `for_eval` merges `[eval.<stream>]` over the rest, and its hooks (none, if it has none) replace the training hooks.

    Imports the modules the config names, for which its folder (or `folders`) and the current directory go to the
    front of `sys.path`; builds nothing. Raises ConfigError with every problem found, each with its place.
    """
    try:
        return _load(source, set, for_eval, folders)
    except RecursionError:
        raise InvalidConfig(Problem("the config is nested too deeply")) from None


def _load(
    source: str | FilePath | Mapping[str, Any],
    set: Mapping[str, Any] | Sequence[str],
    for_eval: str | None,
    folders: Sequence[FilePath],
) -> Config:
    tree, path, text = read(source)
    make_importable(*(folders or [path.parent if path is not None else FilePath()]), FilePath())
    overrides, problems = read_overrides(set)
    after_merge = [each for each in overrides if for_eval is not None and each.path[0] != "eval"]
    for override in overrides:
        if override not in after_merge:
            tree = override.apply(tree, problems)
    streams = _eval_streams(tree, problems)
    if for_eval is not None:
        tree = _merged_for_eval(tree, streams.get(for_eval))
    for override in after_merge:
        tree = override.apply(tree, problems)

    reading = _Reading(problems, end := _end(path, text))
    config = reading.config(tree, path, text)
    for stream in streams.values() if for_eval is None else ():
        # A mistake in an evaluation's section is to be found before the training, not after it.
        evaluation = _Reading([], end, env_optional=True)
        found = evaluation.config(_merged_for_eval(tree, stream), path, text)
        evaluation.problems += _saving_hooks(found, stream)
        problems += [each for each in evaluation.problems if (each.origin, each.message) not in _seen(problems)]
    if for_eval is not None and for_eval in streams:
        problems += _saving_hooks(config, streams[for_eval])
    if config is None or problems:
        raise _refusal(problems)
    return config


def load_dataset(
    source: str | FilePath | Mapping[str, Any], *, set: Mapping[str, Any] | Sequence[str] = ()
) -> tuple[RunSection, Component]:
    """Only `[run]` and `[dataset]` of a config, checked as `load_config` does; the rest may be missing yet."""
    tree, path, text = read(source)
    make_importable(path.parent if path is not None else FilePath(), FilePath())
    overrides, problems = read_overrides(set)
    for override in overrides:
        tree = override.apply(tree, problems)
    run, dataset = _Reading(problems, _end(path, text)).run_and_dataset(tree)
    if problems or run is None or dataset is None:
        raise _refusal(problems)
    return run, dataset


def _refusal(problems: list[Problem]) -> InvalidConfig:
    """All mistakes in the order of the files, without what only follows from one of them, and without secrets."""
    problems = without_consequences(problems)
    cleaned = [replace(each, message=redacted(each.message), hint=redacted(each.hint)) for each in problems]
    cleaned.sort(key=lambda each: (each.file or "", each.line or 0, each.column or 0))
    refusal = InvalidConfig(*cleaned)
    refusal.__cause__ = next((each.cause for each in problems if each.cause), None)
    return refusal


def _eval_streams(tree: Node, problems: list[Problem]) -> dict[str, Node]:
    """The `[eval.<stream>]` tables, with only the keys they may have."""
    section = tree.child("eval")
    if section is None:
        return {}
    if section.table is None:
        problems.append(Problem(f"eval must be a table of streams, not {shown(section)}", "eval", section.at))
        return {}
    streams: dict[str, Node] = {}
    for name, node in section.table.items():
        if node.table is None:
            message = f"eval.{name} must be a table, not {shown(node)}"
            hint = f"the section of one stream is [eval.<stream>.{name}]" if name in _PARTS else ""
            problems.append(Problem(message, f"eval.{name}", node.at, hint))
            continue
        strange = [key for key in node.table if key not in _PARTS]
        problems += [unknown_key(("eval", name, key), node.table[key], _PARTS) for key in strange]
        streams[name] = node.without(*strange)
    return streams


def _merged_for_eval(tree: Node, section: Node | None) -> Node:
    training = tree.without("hooks")
    return training if section is None else merge(training, section)


def _saving_hooks(config: Config | None, section: Node) -> list[Problem]:
    """A hook that saves checkpoints has no place in an evaluation, which never does."""
    hooks = section.child("hooks")
    return [
        Problem(f"`{node.plain()}` saves checkpoints, which an evaluation never does", hook.key, node.at, "remove it")
        for index, hook in enumerate(config.hooks if config is not None else ())
        if getattr(hook.cls, "saves", False) and hooks is not None
        for node in [hooks.descend((index, "class"))]
        if node is not None
    ]


def _seen(problems: list[Problem]) -> list[tuple[Origin, str]]:
    return [(each.origin, each.message) for each in problems]


@dataclass(slots=True)
class _Reading:
    """Makes a Config of a merged tree; owns the problems found on the way."""

    problems: list[Problem]
    end: Origin
    env_optional: bool = False

    def run_and_dataset(self, tree: Node) -> tuple[RunSection | None, Component | None]:
        tree = self._resolved(without_markers(tree, self.problems, skip="eval"))
        run, _ = self._section("run", RunSection, tree)
        return run, self._component("dataset", tree)

    def config(self, tree: Node, path: FilePath | None, text: str) -> Config | None:
        tree = self._resolved(without_markers(tree, self.problems, skip="eval"))
        self._unknown_tables(tree)
        run, run_values = self._section("run", RunSection, tree)
        engine, engine_values = self._section("engine", EngineSection, tree)
        dataset = self._component("dataset", tree)
        model = self._component("model", tree)
        hooks = self._hooks(tree)
        if self.problems or run is None or engine is None or dataset is None or model is None or None in hooks:
            return None
        evaluation = tree.child("eval")
        as_written: dict[str, Any] = evaluation.given() if evaluation is not None else {}
        resolved: dict[str, Any] = {
            "run": run_values,
            "dataset": dict(dataset.settings),
            "model": dict(model.settings),
            "engine": without_empty_deadlines(engine_values),
            "hooks": [dict(hook.settings) for hook in hooks if hook is not None],
            **({"eval": as_written} if as_written else {}),
        }
        built = tuple(hook for hook in hooks if hook is not None)
        return Config(run, dataset, model, engine, built, as_written, path, text, resolved, Places.of_config(tree))

    def _resolved(self, tree: Node) -> Node:
        values = {name: section().model_dump(exclude_none=True) for name, section in _SECTIONS.items()}
        references = References(tree, from_value(values)[0], self.env_optional)
        tree = references.resolve(skip="eval")
        self.problems += references.problems
        run = tree.child("run")
        named = [str(node.value) for _, node in run.walk()] if run is not None else []
        keep_secret(
            {value: name for value, name in references.secrets.items() if not any(value in text for text in named)}
        )
        return tree

    def _unknown_tables(self, tree: Node) -> None:
        for name, node in (tree.table or {}).items():
            if name == "extends":
                self.problems.append(Problem("`extends` is for a file, not for --set", name, node.key_at))
            elif name not in (*_PARTS, "eval"):
                problem = unknown_key((name,), node, (*_PARTS, "eval", "extends"), "table")
                self.problems.append(_with_home(problem, name, ""))

    def _section(self, name: str, section: type[_S], tree: Node) -> tuple[_S | None, dict[str, Any]]:
        node = tree.child(name) or Node({}, Origin(name), Origin(name))
        known = section.model_fields
        checked = check(strictly(TypeAdapter(section)), node, (name,), known=known)
        if checked.problems or any(each.broken for _, each in node.walk()):
            self.problems += [_with_home(each, each.key.rpartition(".")[2], name) for each in checked.problems]
            return None, {}
        stated = checked.node.written()
        values = checked.value.model_dump(exclude_none=True)
        return checked.value, {key: stated.get(key, value) for key, value in values.items()}

    def _component(self, name: Any, tree: Node) -> Component | None:
        node = tree.child(name)
        if node is None:
            hint = f'write [{name}] and class = "package.module:Name"'
            self.problems.append(Problem(f"there is no [{name}]", name, self.end, hint, follows=name))
            return None
        return self._read_component(node, (name,), name)

    def _read_component(self, node: Node, path: Path, kind: Kind) -> Component | None:
        found: list[Problem] = []
        component = read_component(node, path, kind, found)
        self.problems += [each if each.meant else _with_home(each, each.key.rpartition(".")[2], kind) for each in found]
        return component

    def _hooks(self, tree: Node) -> list[Component | None]:
        node = tree.child("hooks")
        if node is None or node.broken:
            return []
        if node.items is None:
            message = f"hooks must be an array of tables, not {shown(node)}"
            hint = 'write [[hooks]] and class = "…" for each hook'
            self.problems.append(Problem(message, "hooks", node.at, hint))
            return []
        return [self._read_component(each, ("hooks", index), "hook") for index, each in enumerate(node.items)]


def _with_home(problem: Problem, name: str, section: str) -> Problem:
    """For an unknown key that another section has: say which."""
    if not problem.message.startswith(f"`{name}` is no "):
        return problem
    if name == "extends":
        return replace(problem, hint="it belongs at the top of the file, before the first table", meant=name)
    homes = [home for home, model in _SECTIONS.items() if name in model.model_fields and home != section]
    return replace(problem, hint=f"it belongs to [{homes[0]}]", meant=f"{homes[0]}.{name}") if homes else problem


def _end(path: FilePath | None, text: str) -> Origin:
    """Where something that is missing could be written: behind the last line that says something."""
    lines = text.rstrip().split("\n")
    return Origin() if path is None else Origin("", str(path), len(lines), len(lines[-1].rstrip()) + 1)
