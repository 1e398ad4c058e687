"""Checking values against types with pydantic, and saying in plain words where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from asyncloop.config.problem import Problem, nearest, suggestion
from asyncloop.config.tree import Node, Path, dotted, shown

__all__ = ["Checked", "check", "strictly", "unknown_key"]

_EXPECTED = {
    "bool_type": "true or false",
    "bytes_type": "a string",
    "date_type": "a date",
    "datetime_type": "a date with time",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "float_type": "a number",
    "frozen_set_type": "a list",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "iterable_type": "a list",
    "list_type": "a list",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "a path as a string",
    "sequence_str": "a list",
    "set_type": "a list",
    "string_type": "a string",
    "time_type": "a time",
    "tuple_type": "a list",
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


@dataclass(frozen=True, slots=True)
class Checked:
    """The value as the type makes it, the node in the reading that was taken, and what is wrong."""

    value: Any
    node: Node
    problems: list[Problem]


def check(
    validate: Callable[[Any], Any], node: Node, path: Path, *, known: Collection[str] = (), what: str = "key"
) -> Checked:
    """Run `validate` on the node's value; where it does not fit, once more with what nodes have to spare.

    `known` are the names allowed right below the node, for suggestions; `what` is the word for them.
    """
    complaints: dict[Path, list[ErrorDetails]] = {}
    current = node
    while True:
        try:
            return Checked(validate(current.plain()), current, [])
        except ValidationError as error:
            failing = _by_place(error, current)
            complaints = failing | {place: group for place, group in complaints.items() if place in failing}
            respelled = current
            for place in failing:
                respelled = _with_spare(respelled, place)
            if respelled is current:
                return Checked(None, node, _problems(complaints, node, path, known, what))
            current = respelled


def _by_place(error: ValidationError, node: Node) -> dict[Path, list[ErrorDetails]]:
    groups: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        at = details.get("ctx", {}).get(
            "at", ()
        )  # of a validator of the whole that knows which part it complains about
        groups.setdefault(_place(node, (*details["loc"], *at)), []).append(details)
    return groups


def strictly(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    """Validation without conversions, but for those that TOML makes necessary: a list for a tuple, a string for a
    path or an enum. These are the ones pydantic allows for JSON."""

    def validate(value: Any) -> Any:
        try:
            return _eager(adapter.validate_python(value, strict=True, extra="forbid"), value)
        except ValidationError as strict:
            try:
                return _eager(adapter.validate_json(json.dumps(value), strict=True, extra="forbid"), value)
            except (TypeError, ValueError) as error:
                if isinstance(error, ValidationError) and error.errors()[0]["type"] != "json_invalid":
                    raise error from None
                raise strict from None  # a date, which JSON cannot say

    return validate


def _eager(result: Any, value: Any) -> Any:
    """pydantic gives a lazy one-pass iterator for Iterable; the list itself serves better."""
    is_lazy = type(value) is list and not hasattr(result, "__len__")
    return cast(Any, value) if is_lazy else result


def unknown_key(path: Path, node: Node, known: Collection[str], what: str = "key") -> Problem:
    name = str(path[-1])
    table = f"[{dotted(path[:-1])}]" if len(path) > 1 else "the config"
    meant = nearest(name, known)
    if meant:
        hint = f"did you mean `{meant}`?"
    else:
        hint = f"known: {', '.join(sorted(known))}" if len(known) else f"{table} takes no {what}s"
    meant = dotted((*path[:-1], meant)) if meant else ""
    return Problem(f"`{name}` is no {what} of {table}", dotted(path), node.key_at, hint, meant=meant)


def _place(node: Node, loc: tuple[str | int, ...]) -> Path:
    """The part of a pydantic location that is a path in the tree; names of union members are left out."""
    path: Path = ()
    for part in loc:
        child = node.child(part)
        if child is not None:
            node, path = child, (*path, part)
    return path


def _with_spare(node: Node, path: Path) -> Node:
    if not path:
        return replace(node.spare, key_at=node.key_at) if node.spare is not None else node
    child = node.child(path[0])
    if child is None:  # what it was a part of is read in another way already
        return node
    changed = _with_spare(child, path[1:])
    return node if changed is child else node.with_child(path[0], changed)


def _problems(
    groups: Mapping[Path, list[ErrorDetails]], node: Node, path: Path, known: Collection[str], what: str
) -> list[Problem]:
    problems: list[Problem] = []
    for place, group in groups.items():
        at = node.descend(place)
        if at is None or _is_broken(node, place):
            continue
        mismatches: list[ErrorDetails] = []
        for details in group:
            if details["loc"][-1:] == ("[key]",):
                problems.append(unknown_key((*path, *place), at, _choices([details])))
            elif details["type"] in _UNKNOWN and place:
                names = known if len(place) == 1 else ()
                problems.append(unknown_key((*path, *place), at, names, what if names else "known key"))
            elif details["type"] in _MISSING:
                name = details["loc"][-1]
                message, key = f"{dotted((*path, *place))} lacks the {what} `{name}`", dotted((*path, *place, name))
                problems.append(Problem(message, key, at.at, follows=key))
            else:
                mismatches.append(details)
        deeper = any(other != place and other[: len(place)] == place for other in groups)
        if mismatches and not deeper and not any(each["type"] in _MISSING for each in group):
            problems.append(_mismatch(mismatches, at, (*path, *place)))
    return problems


def _is_broken(node: Node, place: Path) -> bool:
    above = (node.descend(place[:depth]) for depth in range(len(place) + 1))
    return any(each is not None and each.broken for each in above)


def _mismatch(group: list[ErrorDetails], node: Node, path: Path) -> Problem:
    expected: list[str] = []
    remarks: list[str] = []
    for details in group:
        if details["type"] in ("value_error", "assertion_error"):
            remarks.append(str(details.get("ctx", {}).get("error", details["msg"])))
        elif (phrase := _phrase(details)) not in expected:
            expected.append(phrase)
    name = dotted(path)
    if remarks and not expected:
        return Problem(f"{name}: {' or '.join(remarks)}", name, node.at)
    hint = ""
    if "a list" in expected and isinstance(node.value, str) and node.reference is None:
        hint = f'write ["{node.value}"]' if len(node.value) <= 60 else "put it in brackets"
    elif any(phrase.startswith(('"', "one of")) for phrase in expected) and isinstance(node.value, str):
        hint = suggestion(node.value, _choices(group)) if node.reference is None else ""
    return Problem(f"{name} must be {' or '.join([*expected, *remarks])}, not {shown(node)}", name, node.at, hint)


def _phrase(details: ErrorDetails) -> str:
    kind = details["type"]
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    if kind in ("literal_error", "enum"):
        return str(context["expected"]).replace("'", '"')
    if kind == "string_too_short" and context.get("min_length") == 1:
        return "a string that is not empty"
    if kind == "is_instance_of":
        return f"something that makes a {context['class']}"
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _choices(group: list[ErrorDetails]) -> list[str]:
    texts = [str(cast(Mapping[str, Any], details.get("ctx", {})).get("expected", "")) for details in group]
    return [choice for text in texts for choice in text.split("'")[1::2]]
