"""json_schema: what a config may hold, as JSON Schema (draft-07), for editors to complete keys and to find mistakes.

json_types       a type → a schema          json_component    [dataset], [model], [[hooks]]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import TypeAdapter

from asyncloop.config.document import read
from asyncloop.config.importing import make_importable
from asyncloop.config.json_component import ComponentTable, hook_keys
from asyncloop.config.json_types import REPLACE, Schema, json_type, offered, or_reference, ref
from asyncloop.config.problem import InvalidConfig, Origin, Problem
from asyncloop.config.schema import EngineSection, RunSection
from asyncloop.config.tree import Node

__all__ = ["json_schema"]


def json_schema(source: str | FilePath | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON Schema of any config, or of one: then with the classes it names, which are imported for it.

    The config may be unfinished or wrong: a class that cannot be imported is logged, and its table left open.
    Raises InvalidConfig only for what cannot be read, or is no TOML.
    """
    tree = Node({}, Origin(), Origin()) if source is None else _read(source)
    definitions: Schema = {
        "run": json_type(TypeAdapter(RunSection), "run", {}),
        "engine": json_type(TypeAdapter(EngineSection), "engine", {}),
        "hook_keys": hook_keys(),
        "hook": {},
    }
    dataset, model, hook = (ComponentTable.of(kind, tree) for kind in ("dataset", "model", "hook"))
    for component in (dataset, model):
        definitions[component.kind] = component.schema(definitions)
        definitions[f"{component.kind}.partial"] = component.schema(definitions, partial=True)
    definitions["hook"] = hook.schema(definitions)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_document(), "definitions": definitions}


def _read(source: str | FilePath | Mapping[str, Any]) -> Node:
    try:
        tree, path, _ = read(source)
    except RecursionError:
        raise InvalidConfig(Problem("the config is nested too deeply")) from None
    make_importable(path.parent if path is not None else FilePath(), FilePath())
    return tree


def _document() -> Schema:
    """The whole of it. A file that extends others leaves to them what it likes; so does an evaluation's section."""
    hooks = {"description": "What follows the run, in this order.", "type": "array"}
    hooks = {**or_reference({**hooks, "items": ref("hook")}), **offered(hooks)}
    sections: Schema = {"run": ref("run"), "engine": ref("engine"), "hooks": hooks}
    whole: Schema = {"dataset": ref("dataset"), "model": ref("model")}
    partial: Schema = {"dataset": ref("dataset.partial"), "model": ref("model.partial")}
    return {
        "title": "The config of an asyncloop run",
        "type": "object",
        "properties": {
            "extends": _extends(),
            **sections,
            **dict.fromkeys(whole, True),
            "eval": _evaluations({**sections, **partial}),
        },
        "patternProperties": REPLACE,
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "then": {"properties": partial},
        "else": {"properties": whole, "required": list(whole)},
        **offered({"properties": whole}),
    }


def _extends() -> Schema:
    said = "Files that this one is merged over, the later over the earlier ones; beside this one, or with a path."
    return {"description": said, "type": ["array", "string"], "items": {"type": "string"}}


def _evaluations(sections: Schema) -> Schema:
    return {
        "description": "[eval.<stream>] is merged over the rest to evaluate the stream; its hooks replace the others.",
        "type": "object",
        "additionalProperties": {"type": "object", "properties": sections, "additionalProperties": False},
    }
