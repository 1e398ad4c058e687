"""Redaction: what `${env:NAME}` put into a config is shown and stored nowhere, only its reference is.

The values live here, for the process, because they can come out anywhere: in a log line of the user's, in the message
of an exception, in a value that a hook writes. Not every value is a secret: paths, what names the run, the variables
that every shell sets, and numbers of less than eight digits stay as they are, or messages and records would be of no use.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

__all__ = ["RedactingFormatter", "keep_secret", "redacted"]

_SHORTEST = 4
_SHORTEST_NUMBER = 8
"""Shorter values are in any text; taking them out would only make it unreadable, and hides nothing."""

_KNOWN_TO_ALL = frozenset(["HOME", "HOSTNAME", "LANG", "LOGNAME", "PWD", "SHELL", "TERM", "TMPDIR", "USER"])

_references: dict[str, str] = {}
"""Value to reference; grows when a config is read. Longest first, for one value may be a part of another."""


def keep_secret(values: Mapping[str, str]) -> None:
    """From now on `redacted` puts the reference (`${env:NAME}`) in the place of each of these values. Thread-safe."""
    global _references
    found = {value: reference for value, reference in values.items() if _is_secret(value, reference)}
    if found:
        merged = _references | found
        _references = {value: merged[value] for value in sorted(merged, key=len, reverse=True)}


def _is_secret(value: str, reference: str) -> bool:
    if reference.removeprefix("${env:").removesuffix("}") in _KNOWN_TO_ALL or _is_path(value):
        return False
    is_number = value.replace(".", "").replace("-", "").isdecimal()
    return len(value) >= (_SHORTEST_NUMBER if is_number else _SHORTEST)


def _is_path(value: str) -> bool:
    """Something that exists, or an absolute path whose first directory does."""
    try:
        first = os.sep.join(value.split(os.sep)[:2])
        return os.path.exists(value) or (os.path.isabs(value) and len(first) > 1 and os.path.isdir(first))
    except ValueError:  # a NUL
        return False


def redacted(text: str) -> str:
    """The text with references in the place of secrets, also where a secret stands as Python or JSON would quote it."""
    for value, reference in _references.items():
        text = text.replace(value, reference).replace(repr(value)[1:-1], reference)
    return text


class RedactingFormatter(logging.Formatter):
    """A log line, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
