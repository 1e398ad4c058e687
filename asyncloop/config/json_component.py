"""[dataset], [model] and an element of [[hooks]] as JSON Schema: by `class`, what its constructor takes."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel

from asyncloop.config.components import COMMON_TYPES, OFFERED
from asyncloop.config.importing import Kind, import_object, shipped
from asyncloop.config.json_types import Schema, default_of, described, json_type, offered, or_reference, ref
from asyncloop.config.problem import InvalidConfig
from asyncloop.config.signature import Constructor, Parameter
from asyncloop.config.tree import Node
from asyncloop.hook import Hook

__all__ = ["ComponentTable", "hook_keys"]

logger = logging.getLogger("asyncloop")

_WHAT: Mapping[Kind, str] = {
    "dataset": "Where the batches come from.",
    "model": "What is trained.",
    "hook": "Something that follows the run.",
}
_CLASS = "Name of what asyncloop ships, or of your own: `package.module:Name`."
_SPELLED = r"^[^\s:/]+:[^\s:/]+$|\$\{"
_UNLESS_TYPED = ("overflow", "on_error", "mailbox", "concurrency")
"""Checked like every hook's where a constructor names them without a type."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """A class (or factory) that a table may name, in each of the spellings."""

    target: Callable[..., object]
    spellings: list[str]


@dataclass(frozen=True, slots=True)
class ComponentTable:
    """What one kind of component may be."""

    kind: Kind
    choices: list[_Choice]
    default: str | None
    """The class of a table that names none: it is named elsewhere, in what is extended or evaluated."""

    @classmethod
    def of(cls, kind: Kind, tree: Node) -> ComponentTable:
        """With the classes named in the config and all that are shipped. Imports them."""
        default = tree.descend((kind, "class"))
        return cls(kind, _choices(kind, tree), default.value if default is not None else None)

    def schema(self, definitions: Schema, *, partial: bool = False) -> Schema:
        """The table; what each class takes goes into `definitions`. `partial`: nothing is required in it."""
        taken = [self._taken(choice, definitions, partial) for choice in self.choices]
        by_class: Schema = {"properties": dict.fromkeys(sorted(OFFERED[self.kind]), False)}  # never a config's to set
        for choice, schema in zip(reversed(self.choices), reversed(taken), strict=True):
            by_class = {"if": self._names(choice), "then": schema, "else": by_class}
        table = {"description": _WHAT[self.kind], "type": "object", "properties": {"class": self._class_key()}}
        told = or_reference(table)
        told["else"] |= by_class | ({} if partial else {"required": ["class"]})
        keys = [ref("hook_keys")] if self.kind == "hook" else []
        return told | offered(*taken, *keys)

    def _names(self, choice: _Choice) -> Schema:
        test: Schema = {"properties": {"class": {"enum": choice.spellings}}}
        return test if self.default in choice.spellings else {**test, "required": ["class"]}

    def _class_key(self) -> Schema:
        in_full = shipped(self.kind).values()
        names = [each for choice in self.choices for each in choice.spellings if each not in in_full]
        bare = [f"^{each}$" for each in names if ":" not in each]
        rule: Schema = {"description": _CLASS, "type": "string", "pattern": "|".join([*bare, _SPELLED])}
        return {**rule, **(offered({"description": _CLASS, "enum": names}) if names else {})}

    def _taken(self, choice: _Choice, definitions: Schema, partial: bool) -> Schema:
        """A reference to the definition of what the class takes."""
        name = f"{self.kind}.{choice.spellings[0]}{'.partial' if partial else ''}"
        constructor = Constructor.of(choice.target)
        docs = _docs(choice.target)
        own = {key: each for key, each in constructor.parameters.items() if key not in OFFERED[self.kind]}
        properties: Schema = {"class": True}
        for key, each in own.items():
            found = json_type(each.type, f"{name}.{key}", definitions, partial=partial)
            properties[key] = described(self._as_hook(each, found), docs.get(key, {}) | _default(each))
        if self.kind == "hook":
            properties |= {key: _common(key, choice.target) for key in COMMON_TYPES if key not in own}
        table: Schema = {**_first_line(choice.target), "type": "object", "properties": properties}
        if constructor.open:
            properties.update(dict.fromkeys(sorted(OFFERED[self.kind]), False))
        else:
            table["additionalProperties"] = False
        if not partial:
            table["required"] = ["class", *(key for key, each in own.items() if each.required)]
        definitions[name] = or_reference(table)
        return ref(name)

    def _as_hook(self, parameter: Parameter, schema: Schema) -> Schema:
        """A hook's constructor may name what every hook takes; its cadence is one all the same."""
        key = parameter.name
        if self.kind != "hook" or not (key == "every" or (key in _UNLESS_TYPED and parameter.type is None)):
            return schema
        return {"allOf": [ref(f"hook_keys/properties/{key}"), *([schema] if schema else [])]}


def hook_keys() -> Schema:
    """The table of the keys that every hook takes."""
    docs = _docs(Hook)
    types = {key: json_type(kind, "hook", {}) for key, kind in COMMON_TYPES.items()}
    keys = {key: described(each, docs.get(key, {}) | default_of(getattr(Hook, key))) for key, each in types.items()}
    return {"properties": keys}


def _choices(kind: Kind, tree: Node) -> list[_Choice]:
    choices: list[_Choice] = []
    there = shipped(kind)
    for spelling in dict.fromkeys([*_named(kind, tree), *there, *there.values()]):
        target = _imported(spelling, kind)
        same = [choice for choice in choices if choice.target is target]
        if same:
            same[0].spellings.append(spelling)
        elif target is not None:
            choices.append(_Choice(target, [spelling]))
    return choices


def _named(kind: Kind, tree: Node) -> Iterator[str]:
    """The classes that the config names, for evaluations too; without those that are references."""
    evaluation = tree.child("eval")
    streams = [] if evaluation is None else [stream for _, stream in evaluation.children()]
    for section in [tree, *streams]:
        hooks = section.child("hooks")
        tables = (hooks.items or [] if hooks is not None else []) if kind == "hook" else [section.child(kind)]
        for table in tables:
            written = table.child("class") if table is not None else None
            if written is not None and isinstance(written.value, str) and "${" not in written.value:
                yield written.value


def _imported(spelling: str, kind: Kind) -> Callable[..., object] | None:
    try:
        target = import_object(spelling, kind=kind)
    except InvalidConfig as error:
        if spelling not in shipped(kind):
            logger.warning("%s is left open: %s", spelling, error)
        return None
    return target if callable(target) else None


def _default(parameter: Parameter) -> Schema:
    return {} if parameter.required else default_of(parameter.default)


def _common(key: str, hook: Callable[..., object]) -> Schema:
    """A key of every hook, with the default that this one has for it."""
    shared, default = ref(f"hook_keys/properties/{key}"), getattr(hook, key, None)
    return shared if default in (None, getattr(Hook, key)) else {"allOf": [shared], **default_of(default)}


def _first_line(target: Callable[..., object]) -> Schema:
    line = inspect.cleandoc(target.__doc__ or "").partition("\n")[0]
    is_generated = line.startswith(f"{getattr(target, '__name__', '')}(")  # a dataclass without a docstring
    return {} if not line or is_generated else {"description": line}


def _docs(target: Callable[..., object]) -> dict[str, Schema]:
    """Descriptions by name: the strings below attributes of a class, and those of a pydantic model's fields."""
    if not isinstance(target, type):
        return {}
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(target))).body[0]
    except (OSError, TypeError, SyntaxError):
        parsed = None
    docs: dict[str, Schema] = {}
    for attribute, below in pairwise(parsed.body if isinstance(parsed, ast.ClassDef) else []):
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[attribute.target.id] = {"description": inspect.cleandoc(text)}
                case _:
                    pass
    fields = target.model_fields if issubclass(target, BaseModel) else {}
    return docs | {name: {"description": each.description} for name, each in fields.items() if each.description}
