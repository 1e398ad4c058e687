"""Redaction: what `${env:NAME}` put into a config is shown and stored nowhere, only its reference is.

The values live here, for the process, because they can come out anywhere: in a log line of the user's, in the message
of an exception, in a value that a hook writes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["RedactingFormatter", "keep_secret", "redacted"]

_SHORTEST = 4
_SHORTEST_NUMBER = 8
"""Shorter values are in any text; taking them out would only make it unreadable, and hides nothing."""

_references: dict[str, str] = {}
"""Value to reference; grows when a config is read. Longest first, for one value may be a part of another."""


def keep_secret(values: Mapping[str, str]) -> None:
    """From now on `redacted` puts the reference (`${env:NAME}`) in the place of each of these values. Thread-safe."""
    global _references
    found = {value: reference for value, reference in values.items() if _worth_hiding(value)}
    if found:
        merged = _references | found
        _references = {value: merged[value] for value in sorted(merged, key=len, reverse=True)}


def _worth_hiding(value: str) -> bool:
    is_number = value.replace(".", "").replace("-", "").isdecimal()
    return len(value) >= (_SHORTEST_NUMBER if is_number else _SHORTEST)


def redacted(text: str) -> str:
    """The text with references in the place of secrets, also where a secret stands as Python or JSON would quote it."""
    for value, reference in _references.items():
        text = text.replace(value, reference).replace(repr(value)[1:-1], reference)
    return text


class RedactingFormatter(logging.Formatter):
    """A log line, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
