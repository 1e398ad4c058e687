"""Component: the dataset, the model or a hook of a config, checked against its own signature but not yet built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time
from types import MappingProxyType
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter

from asyncloop.config.check import Checked, check, strictly, unknown_key
from asyncloop.config.importing import Kind, import_object
from asyncloop.config.places import Places
from asyncloop.config.problem import InvalidConfig, Problem, nearest
from asyncloop.config.schema import CadenceText
from asyncloop.config.signature import Constructor, Parameter
from asyncloop.config.tree import Node, Path, dotted, shown
from asyncloop.hook import COMMON_KEYS
from asyncloop.nested import Nested

__all__ = ["COMMON_TYPES", "OFFERED", "Component", "read_component"]

OFFERED: Mapping[Kind, frozenset[str]] = {
    "dataset": frozenset({"output_dir"}),
    "model": frozenset({"dataset", "output_dir"}),
    "hook": frozenset({"dataset", "output_dir"}),
}
"""What the run hands to a constructor that names it."""

_LIMITED: Mapping[str, Any] = {
    "every": CadenceText,
    "start": Annotated[float, Field(ge=0)],
    "stop": Annotated[float, Field(ge=0)],
    "mailbox": Annotated[int, Field(ge=1)],
    "concurrency": Annotated[int, Field(ge=1)],
    "deadline": Annotated[float, Field(gt=0)],
}
COMMON_TYPES: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter[Any](_LIMITED.get(name, kind)) for name, kind in COMMON_KEYS.items()
}
"""What every hook takes, with the limits that its kind alone does not say."""

_COMMON: Mapping[str, Callable[[Any], Any]] = {name: strictly(kind) for name, kind in COMMON_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Component:
    """A class (or factory) with its arguments; `key` is where it stands in the config, e.g. `hooks.0`.

    Equal components use equal values, whether a config stated them or left them to the constructor's defaults.
    """

    key: str
    cls: Callable[..., object]
    kwargs: Mapping[str, Any] = field(compare=False)
    """The arguments the config states, as the constructor's annotations want them."""
    attributes: Mapping[str, Any] = field(compare=False)
    """For a hook: common keys that its constructor does not name."""
    accepts: frozenset[str] = field(compare=False)
    """Which of the objects that a run offers the constructor names."""
    settings: Mapping[str, Any]
    """Every value used, as a config states it: `class`, arguments, attributes, the constructor's defaults."""
    places: Places = field(default_factory=Places, compare=False)

    def build(self, *, restored: bool = False, **offered: Any) -> object:
        """Call the class with its arguments and with what it names of `offered`, then set a hook's attributes.

        `restored`: the state of a checkpoint is loaded next, so what its class lists in `only_begins` is left out.

        Each call makes a new object with copies of the arguments. What the constructor raises comes out as it is,
        but for a ConfigError, which gets the place in the config.
        """
        handed = {name: value for name, value in offered.items() if name in self.accepts}
        with self.places.named():
            left_out = _only_begins(self.cls) if restored else frozenset[str]()
            own = {name: value for name, value in self.kwargs.items() if name not in left_out}
            built = self.cls(**copy.deepcopy(own), **handed)
        for name, value in copy.deepcopy(dict(self.attributes)).items():
            setattr(built, name, value)
        return built


def _only_begins(cls: Any) -> frozenset[str]:
    """The arguments that a class says are for a beginning only; of a subclass that takes arguments of its own, none."""
    owner = next((each for each in getattr(cls, "__mro__", ()) if "only_begins" in vars(each)), None)
    return frozenset(owner.only_begins) if owner is not None and cls.__init__ is owner.__init__ else frozenset()


def read_component(node: Node, path: Path, kind: Kind, problems: list[Problem]) -> Component | None:
    """The component in a table of the config, or None; in both cases what is wrong goes into `problems`."""
    if node.broken:
        return None
    key = dotted(path)
    if node.table is None:
        problems.append(_no_table(node, path, kind))
        return None
    target = _target(node, path, kind, problems)
    if target is None:
        return None
    constructor = Constructor.of(target)
    reader = _Arguments(node, path, constructor, problems, OFFERED[kind], is_hook=kind == "hook")
    before = len(problems)
    checked = reader.all()
    if len(problems) > before or any(result is None for result in checked.values()):
        return None
    results = cast(dict[str, Checked], checked)
    if constructor.validate is not None and not reader.offered:
        arguments = replace(node.without("class"), value={name: r.node for name, r in results.items()})
        whole = check(constructor.validate, arguments, path, what="argument")
        problems.extend(whole.problems)
    as_attributes = {name for name in results if reader.is_attribute(name)}
    defaults = {
        name: _escaped(parameter.default)
        for name, parameter in constructor.parameters.items()
        if name not in reader.offered and not parameter.required and _is_toml(parameter.default)
    }
    stated = {name: result.node.written() for name, result in results.items() if result.node.value is not None}
    return Component(
        key,
        target,
        MappingProxyType({name: r.value for name, r in results.items() if name not in as_attributes}),
        MappingProxyType({name: r.value for name, r in results.items() if name in as_attributes}),
        reader.offered,
        {"class": node.table["class"].written(), **defaults, **stated},
        Places.of_component(node, path),
    )


def _no_table(node: Node, path: Path, kind: Kind) -> Problem:
    key = dotted(path)
    head = "[[hooks]]" if kind == "hook" else f"[{key}]"
    name = node.value if isinstance(node.value, str) and node.reference is None else "package.module:Name"
    return Problem(f"{key} must be a table, not {shown(node)}", key, node.at, f'write {head} and class = "{name}"')


def _target(node: Node, path: Path, kind: Kind | None, problems: list[Problem]) -> Callable[..., object] | None:
    """The class the table names. Imports its module."""
    written = (node.table or {}).get("class")
    key = dotted((*path, "class"))
    if written is None:
        example = 'class = "package.module:Name"'
        problems.append(Problem(f"{dotted(path)} lacks `class`", key, node.key_at, f"write {example}", follows=key))
        problems += _misspelt_class(node, path)
        return None
    if written.spare is not None and isinstance(written.spare.value, str):
        written = written.spare
    if written.broken:
        return None
    if not isinstance(written.value, str):
        message = f'{key} must be a string such as "package.module:Name", not {shown(written)}'
        problems.append(Problem(message, key, written.at))
        return None
    try:
        target = import_object(written.value, kind=kind)
    except InvalidConfig as error:
        found = error.details[0]
        problems.append(Problem(f"{key}: {found.message}", key, written.at, found.hint, found.cause))
        return None
    if not callable(target):
        message = f"{key}: `{written.value}` is no class: it is of type {type(target).__name__}, which cannot be called"
        problems.append(Problem(message, key, written.at))
        return None
    return target


def _misspelt_class(node: Node, path: Path) -> list[Problem]:
    texts = {name: child for name, child in (node.table or {}).items() if isinstance(child.value, str)}
    name = nearest("class", texts)
    return [unknown_key((*path, name), texts[name], ["class"], "argument")] if name else []


@dataclass(slots=True)
class _Arguments:
    """Checks the keys of one component's table against its constructor."""

    node: Node
    path: Path
    constructor: Constructor
    problems: list[Problem]
    handed: frozenset[str]
    """What whoever builds it hands over by itself."""
    is_hook: bool = False
    others: frozenset[str] = frozenset()
    """Keys of the table that are somebody else's."""

    @property
    def offered(self) -> frozenset[str]:
        return self.handed & self.constructor.parameters.keys()

    def is_attribute(self, name: str) -> bool:
        return self.is_hook and name in COMMON_KEYS and name not in self.constructor.parameters

    def all(self) -> dict[str, Checked | None]:
        """Each key's checked value; what is required and not there is reported, too."""
        table = (self.node.table or {}).items()
        checked = {name: self.argument(name, value) for name, value in table if name not in {"class", *self.others}}
        self.missing()
        return checked

    def argument(self, name: str, node: Node) -> Checked | None:
        """The checked value of one key; None if it is refused, or has been reported already."""
        parameter = self.constructor.parameters.get(name)
        path = (*self.path, name)
        if name in self.handed:
            message = f"`{name}` is handed over by the run and cannot be set in a config"
            self.problems.append(Problem(message, dotted(path), node.key_at, "remove it"))
            return None
        if self.is_attribute(name):
            return self._checked(_COMMON[name], node, path)
        if parameter is None and not self.constructor.open:
            known = (self.constructor.parameters.keys() - self.handed) | {"class", *self.others}
            common = COMMON_KEYS if self.is_hook else ()
            self.problems.append(_unknown_argument(path, node, known, common))
            return None
        return self._argument_of(parameter, name, node, path)

    def _argument_of(self, parameter: Parameter | None, name: str, node: Node, path: Path) -> Checked | None:
        validate = parameter.validate if parameter is not None else None
        if self.is_hook and name == "every" and not self._is_cadence(node, path):
            return None
        if self.is_hook and validate is None and name in ("overflow", "on_error", "mailbox", "concurrency"):
            validate = _COMMON[name]
        if any(each.broken for _, each in node.walk()):
            return None
        if self._has_no_form(node, path, parameter):
            return None
        checked = self._checked(validate, node, path)
        if checked is not None and parameter is not None and parameter.nested is not None:
            _check_nested(node, path, parameter.nested, self.problems)
        return checked

    def _checked(self, validate: Callable[[Any], Any] | None, node: Node, path: Path) -> Checked | None:
        if node.broken:
            return None
        if validate is None:
            return Checked(node.plain(), node, [])
        try:
            result = check(validate, node, path)
        except Exception as error:  # a validator of the user's that raises what pydantic does not expect
            message = f"{dotted(path)}: its validator raised {type(error).__name__}: {error}"
            self.problems.append(Problem(message, dotted(path), node.at, cause=error))
            return None
        self.problems.extend(result.problems)
        return None if result.problems else result

    def _is_cadence(self, node: Node, path: Path) -> bool:
        """A constructor that names `every` may leave its type open; a cadence it is all the same."""
        return self._checked(_COMMON["every"], node, path) is not None

    def _has_no_form(self, node: Node, path: Path, parameter: Parameter | None) -> bool:
        """None, from a mapping: without a form in TOML a run could not be stored, unless it is the default."""
        default_is_none = parameter is not None and not parameter.required and parameter.default is None
        if all(each.value is not None for _, each in node.walk()) or (node.value is None and default_is_none):
            return False
        key = dotted(path)
        self.problems.append(Problem(f"{key} holds None, but TOML has no null", key, node.at, "leave the key out"))
        return True

    def missing(self) -> None:
        given = (self.node.table or {}).keys()
        key = dotted(self.path)
        for name, parameter in self.constructor.parameters.items():
            if parameter.required and name not in given and name not in self.offered:
                message = f"{key} lacks the argument `{name}`, which its class requires"
                absent = dotted((*self.path, name))
                self.problems.append(Problem(message, absent, self.node.key_at, follows=absent))
        for name in self.constructor.positional_only:
            message = f"{key}: its class takes `{name}` by position only; a config passes arguments by name"
            self.problems.append(Problem(message, f"{key}.{name}", self.node.key_at))


def _check_nested(node: Node, path: Path, nested: Nested, problems: list[Problem]) -> None:
    """A table inside the component's that names a class: its import and its arguments, tables in these included."""
    if node.table is None:
        return
    if "class" in node.table:
        target = _target(node, path, None, problems)
        if target is not None:
            constructor = Constructor.of(target)
            handed = frozenset(list(constructor.parameters)[: nested.given])
            _Arguments(node, path, constructor, problems, handed, others=nested.own).all()
            for name, each in node.table.items():
                if name not in nested.own:
                    _check_nested(each, (*path, name), Nested(), problems)
    elif nested.several:
        for name, each in node.table.items():
            _check_nested(each, (*path, name), replace(nested, several=False), problems)


def _unknown_argument(path: Path, node: Node, known: set[str], common: Mapping[str, object] | tuple[()]) -> Problem:
    problem = unknown_key(path, node, [*known, *common], "argument")
    if problem.meant:
        return problem
    own = ", ".join(sorted(known - {"class"})) or "nothing"
    extra = f", and every hook {', '.join(common)}" if common else ""
    return replace(problem, hint=f"its class takes {own}{extra}")


def _is_toml(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_toml, cast("list[Any]", value)))
    if isinstance(value, dict):
        table = cast(dict[Any, Any], value)
        return all(isinstance(key, str) for key in table) and all(map(_is_toml, table.values()))
    return type(value) in (str, bool, int, float) or isinstance(value, date | time)


def _escaped(value: Any) -> Any:
    """A default in the form a config would state it in."""
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in cast(dict[str, Any], value).items()}
    return value.replace("${", "$${") if isinstance(value, str) else copy.copy(value)
