"""Values as hooks meet them in outputs and in the epoch data: which are scalars, and how they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from asyncloop.events import EpochData

__all__ = ["chosen", "number", "scalars", "summary", "text"]


def number(value: Any) -> int | float | None:
    """`value` as a Python number if it is a scalar (an array or tensor without axes is one too), else None."""
    if isinstance(value, bool | int | float):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        item = value.item()
        return item if isinstance(item, bool | int | float) else None
    return None


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float]:
    """All scalars in nested mappings, by path (`head/loss`), in order."""
    found: dict[str, int | float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= scalars(cast("Mapping[str, Any]", value), f"{prefix}{key}/")
        elif (scalar := number(value)) is not None:
            found[prefix + key] = scalar
    return found


def summary(value: Any) -> int | float | None:
    """One number for an entry of the epoch data: itself, of a dict of aggregates its `mean`, else its first."""
    if isinstance(value, Mapping):
        aggregates = cast("Mapping[str, Any]", value)
        value = aggregates.get("mean", next(iter(aggregates.values()), None))
    return number(value)


def chosen(data: EpochData, streams: Sequence[str] | None, variables: Sequence[str] | None) -> EpochData:
    """The part of the epoch data with these streams and variables (None: all)."""
    return {
        stream: {name: value for name, value in values.items() if variables is None or name in variables}
        for stream, values in data.items()
        if streams is None or stream in streams
    }


def text(value: float) -> str:
    """A number for people: six significant digits, whole numbers as they are."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
