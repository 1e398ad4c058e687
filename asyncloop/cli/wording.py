"""How the tables of the command line say times, sizes and values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from asyncloop.hooks.values import scalars, text

__all__ = ["ago", "duration", "metric_rows", "size"]

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float | None) -> str:
    """`3 d 4 h`, `2 min 5 s`, `1.3 s`: the two largest units."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    for unit, length in _UNITS:
        n, seconds = divmod(round(seconds), length)
        if n or parts:
            parts.append(f"{n} {unit}" if n else "")
    return " ".join(part for part in parts[:2] if part)


def ago(moment: datetime | None) -> str:
    """`2 min ago`: the largest unit says enough."""
    if moment is None:
        return "–"
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0)
    unit, length = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    return f"{seconds // length:.0f} {unit} ago"


def size(n_bytes: float) -> str:
    """`12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}" if unit != "B" else f"{n_bytes:.0f} B"
        n_bytes /= 1024
    return f"{n_bytes:.3g} TiB"


def metric_rows(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Stream, variable (`loss`, `head/loss`) and value of all scalars."""
    return [
        (stream, name, text(value)) for stream, values in metrics.items() for name, value in scalars(values).items()
    ]
