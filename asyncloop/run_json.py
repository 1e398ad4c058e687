"""run.json as readers find it: written by any version, perhaps damaged or edited by hand, and then not believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

__all__ = ["json_object", "sound_record"]


def sound_record(text: bytes) -> dict[str, Any]:
    """What run.json says; nothing at all if it is damaged or something in it is of another kind than it should be."""
    record = json_object(text)
    return record if all(is_sound(record.get(name)) for name, is_sound in _SOUND.items()) else {}


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object that a text is; empty if it is none."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_list(value: object) -> bool:
    """Of texts."""
    return value is None or (
        isinstance(value, list) and all(isinstance(each, str) for each in cast("list[Any]", value))
    )


def _is_table(value: object, holds: Callable[[object], bool] = lambda part: True) -> bool:
    return value is None or (isinstance(value, dict) and all(map(holds, cast("dict[str, Any]", value).values())))


def _is_time(value: object) -> bool:
    """A moment that can be compared with any other, wherever it was noted; or none."""
    try:
        return value is None or datetime.fromisoformat(cast(str, value)).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_evaluation(value: object) -> bool:
    table = cast("dict[str, Any]", value)
    return _is_table(value) and (not value or (bool(table.get("streams")) and _is_list(table["streams"])))


_SOUND: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "name", "state", "reason", "folder", "launch"), _is_text),
    **dict.fromkeys(("epochs", "steps", "exit_code"), _is_count),
    **dict.fromkeys(("tags", "command"), _is_list),
    **dict.fromkeys(("host", "versions", "init_from"), _is_table),
    "times": lambda value: _is_table(value, _is_time),
    "metrics": lambda value: _is_table(value, lambda part: part is not None and _is_table(part)),
    "git": lambda value: _is_table(value, _is_text),
    "evaluation": _is_evaluation,
}
"""What an entry has to be like, if it is there."""
