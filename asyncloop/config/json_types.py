"""A type as JSON Schema (draft-07) of what a config may state for it: pydantic's schema, as strict as the config is.

Where any value stands, a reference `${…}` may stand; in any table, the `"!replace"` of files that extend others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

__all__ = ["REPLACE", "Schema", "default_of", "described", "json_type", "offered", "or_reference", "ref"]

Schema = dict[str, Any]

_REFERENCE: Schema = {"type": "string", "pattern": r"^\$\{[^{}]*\}$"}
_TEXT_WITH_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{"}
REPLACE: Schema = {"^!replace$": {"type": "boolean"}}
"""As a pattern, so that editors accept the key but do not offer it everywhere."""
_ANNOTATIONS = ("description", "default", "examples", "deprecated")
_DROPPED = ("$defs", "title", "discriminator", "format")
"""`format`: a date of TOML need not have the time zone that one of JSON Schema has."""


def json_type(adapter: TypeAdapter[Any] | None, name: str, definitions: Schema, *, partial: bool = False) -> Schema:
    """The schema of a value; anything where pydantic knows none. What it refers to goes into `definitions`.

    `partial`: nothing is required in tables, for the rest comes from what they are merged over.
    """
    if adapter is None:
        return {}
    try:
        found = adapter.json_schema(schema_generator=_Strict)
    except Exception:  # some types have no schema, and a type of the user's may fail to make its own
        return {}
    spelling = _Spelling(lambda used: f"{name}.{used}", partial)
    definitions.update({f"{name}.{used}": spelling.schema(each) for used, each in found.get("$defs", {}).items()})
    return spelling.schema(found)


def ref(name: str) -> Schema:
    """A reference to a definition, or by a path (`hook/properties/every`) to a part of one."""
    return {"$ref": f"#/definitions/{quote(name, safe='/:')}"}


def described(schema: Schema, annotations: Schema) -> Schema:
    """The schema with a description or a default, in its first alternative, too: some editors look only there."""
    told = {**schema, **annotations}
    if "anyOf" in told:
        first, *others = told["anyOf"]
        told["anyOf"] = [{**first, **annotations}, *others]
    return told


def offered(*schemas: Schema) -> Schema:
    """For editors that complete from `anyOf` but not from `then` and `else`; `true` keeps it from judging anything."""
    return {"anyOf": [*schemas, True]} if schemas else {}


def default_of(value: Any) -> Schema:
    """`default`, if it is one that a config could state."""
    try:
        text = json.dumps(value, default=os.fspath, allow_nan=False)
    except (TypeError, ValueError):
        return {}
    return {} if "null" in text or "${" in text else {"default": json.loads(text)}


def or_reference(schema: Schema) -> Schema:
    """The schema with a reference allowed in the place of its value.

    `anyOf` would be simpler, but a mistake deep inside would be told as one of the whole.
    """
    annotations = {key: schema[key] for key in _ANNOTATIONS if key in schema}
    rules = {key: rule for key, rule in schema.items() if key not in (*_ANNOTATIONS, "type")}
    given: str | list[str] = schema.get("type", [])
    kinds = [given] if isinstance(given, str) else given
    with_text = [*kinds, *([] if "string" in kinds else ["string"])]
    if "anyOf" in schema:  # each of which allows it
        return described(schema, annotations)
    if rules.keys() & {"enum", "const"} or ("string" in kinds and not _fits_references(rules)):
        kind = {"type": with_text if len(with_text) > 1 else given} if kinds else {}
        choices = {key: rules[key] for key in ("enum", "const") if key in rules}
        shown = offered({**annotations, **choices}) if choices else {}
        return {**annotations, **kind, "if": _TEXT_WITH_REFERENCE, "else": rules, **shown}
    if "string" in kinds or not kinds:
        return schema
    table = {"patternProperties": {**schema.get("patternProperties", {}), **REPLACE}} if "object" in kinds else {}
    return {**schema, **table, "type": with_text, "if": _REFERENCE, "else": {"type": given}}


def _fits_references(rules: Schema) -> bool:
    """Whether these rules for a text refuse no reference."""
    return not rules.keys() - {"minLength"} and rules.get("minLength", 0) <= len("${a}")


@dataclass(frozen=True, slots=True)
class _Spelling:
    """Rewrites pydantic's schema, which is of draft 2020-12."""

    definition: Callable[[str], str]
    partial: bool

    def schema(self, given: Any) -> Any:
        if not isinstance(given, dict):
            return given  # true or false
        schema = cast(Schema, given)
        if "prefixItems" in schema:
            rest = {"additionalItems": schema["items"]} if "items" in schema else {}
            schema = {**schema, **rest, "items": schema["prefixItems"]}
        told: Schema = {}
        for keyword, value in schema.items():
            if keyword not in (*_DROPPED, "prefixItems") and not (keyword == "required" and self.partial):
                told |= self._keyword(keyword, value)
        return or_reference(told)

    def _keyword(self, keyword: str, value: Any) -> Schema:
        if keyword == "$ref":  # beside which draft-07 ignores everything
            return {"allOf": [ref(self.definition(value.removeprefix("#/$defs/")))]}
        if keyword == "default":
            return default_of(value)
        if keyword == "oneOf":  # a reference would be several at once
            return {"anyOf": [self.schema(each) for each in value]}
        if keyword in ("anyOf", "allOf") or (keyword == "items" and isinstance(value, list)):
            return {keyword: [self.schema(each) for each in cast("list[Any]", value)]}
        if keyword == "propertyNames":
            return {keyword: {"anyOf": [self.schema(value), {"const": "!replace"}]}}
        if keyword in ("properties", "patternProperties"):
            return {keyword: {key: self.schema(each) for key, each in value.items()}}
        return {keyword: self.schema(value)}


class _Strict(GenerateJsonSchema):
    """What is accepted without conversions and without null, which TOML has not; anything where pydantic cannot tell."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """None are needed: what cannot be said is left open."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> Schema:
        return self.generate_inner(schema["schema"])

    def lax_or_strict_schema(self, schema: Any) -> Schema:
        return self.generate_inner(schema["strict_schema"])

    def function_before_schema(self, schema: Any) -> Schema:
        """A function that comes first may accept more than the type does."""
        said = schema.get("json_schema_input_schema")
        return self.generate_inner(said) if said is not None else {}

    def function_wrap_schema(self, schema: Any) -> Schema:
        return self.function_before_schema(schema)

    def complex_schema(self, schema: Any) -> Schema:
        return {}

    def call_schema(self, schema: Any) -> Schema:
        """A named tuple: a list or a table."""
        return {}

    def named_tuple_schema(self, schema: Any) -> Schema:
        """The same in later versions of pydantic."""
        return {}

    def set_schema(self, schema: Any) -> Schema:
        """A list may say the same twice."""
        return {key: value for key, value in super().set_schema(schema).items() if key != "uniqueItems"}

    def frozenset_schema(self, schema: Any) -> Schema:
        return self.set_schema(schema)

    def dict_schema(self, schema: Any) -> Schema:
        return _closed(super().dict_schema(schema))

    def model_schema(self, schema: Any) -> Schema:
        return {} if _has_other_names(schema["cls"]) else _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: Any) -> Schema:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> Schema:
        return _closed(super().typed_dict_schema(schema))


def _closed(table: Schema) -> Schema:
    """A config takes no unknown key in a table of known ones, whatever the class would do."""
    known = {"properties", "patternProperties"} & table.keys()
    return {**table, "additionalProperties": False} if known else table


def _has_other_names(model: type[BaseModel]) -> bool:
    """Whether a field goes by several names, of which a schema would know only one."""
    config = model.model_config
    aliases = [field.validation_alias for field in model.model_fields.values() if field.validation_alias is not None]
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    return any(by_name or not isinstance(alias, str) for alias in aliases)
