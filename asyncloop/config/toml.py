"""Writing TOML 1.0 that tomllib reads back equal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from typing import Any, cast

__all__ = ["dumps"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def dumps(document: Mapping[str, Any]) -> str:
    """`document` as TOML. Raises TypeError for a value TOML has no form for (None among them), naming its key."""
    lines = list(_table(document, ()))
    return "\n".join(lines).lstrip("\n") + "\n" if lines else ""


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first, for whatever follows a header belongs to it; then the tables, each under its own."""
    tables = {key: cast(Mapping[str, Any], value) for key, value in table.items() if isinstance(value, Mapping)}
    arrays = {key: value for key, value in table.items() if _is_array_of_tables(value)}
    for key, value in table.items():
        if key not in tables and key not in arrays:
            yield f"{_key(key)} = {_value(value, (*path, key))}"
    for key, inner in tables.items():
        if not inner or not all(isinstance(v, Mapping) or _is_array_of_tables(v) for v in inner.values()):
            yield from ("", f"[{_header((*path, key))}]")
        yield from _table(inner, (*path, key))
    for key, value in arrays.items():
        for element in cast(list[Mapping[str, Any]], value):
            yield from ("", f"[[{_header((*path, key))}]]")
            yield from _table(element, (*path, key))


def _is_array_of_tables(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(element, Mapping) for element in cast(list[Any], value))


def _value(value: Any, path: tuple[str, ...]) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case int():
            return str(int(value))
        case float():
            return _float(value)
        case datetime() | date():
            return value.isoformat()
        case time() if value.tzinfo is None:
            return value.isoformat()
        case list() | tuple():
            return "[" + ", ".join(_value(element, path) for element in cast(list[Any], value)) + "]"
        case Mapping():
            pairs = cast(Mapping[str, Any], value).items()
            inner = ", ".join(f"{_key(key)} = {_value(element, (*path, key))}" for key, element in pairs)
            return f"{{{inner}}}"
        case _:
            raise TypeError(f"{_header(path)}: TOML has no form for {value!r}")


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))  # an exponent without a point (1e-07) is TOML too
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _string(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(char) or _escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _header(path: tuple[str, ...]) -> str:
    return ".".join(map(_key, path))
