"""What an Engine may be told: its arguments checked, all mistakes at once, and the streams of an `epoch()` named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from asyncloop.cadence import Cadence
from asyncloop.errors import ConfigError
from asyncloop.model_thread import Policy
from asyncloop.watchdog import DEADLINES

__all__ = ["Source", "check_arguments", "evaluation_cadence", "listed", "named_sources", "positive_deadlines"]

Source = str | object


def check_arguments(counts: Mapping[str, tuple[object, int]], buffer: object, policies: Mapping[str, object]) -> None:
    """ConfigError for whatever is wrong. `counts`: name → (value, least allowed)."""
    problems = [
        f"{name} is a whole number of at least {least}, not {value!r}"
        for name, (value, least) in counts.items()
        if value is not None and not _is_whole(value, least)
    ]
    if buffer != "auto" and not _is_whole(buffer, 0):
        problems.append(f"buffer is a number of batches or 'auto', not {buffer!r}")
    problems += [
        f"{name} is 'ignore', 'warn' or 'error', not {policy!r}"
        for name, policy in policies.items()
        if policy not in get_args(Policy)
    ]
    if problems:
        raise ConfigError(*problems)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def listed(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} is a list of stream names, not {value!r}")
    return tuple(cast("Sequence[str]", value))


def evaluation_cadence(every: str | None, streams: Sequence[str]) -> Cadence | None:
    if every is None:
        return None
    cadence = Cadence.parse(every)
    if cadence.unit == "epochs":
        raise ConfigError(f"evaluate_every counts steps or seconds inside an epoch, not {every!r}")
    if not streams:
        raise ConfigError(f"evaluate_every = {every!r} evaluates the extra streams, but extra_streams is empty")
    return cadence


def positive_deadlines(given: Mapping[str, float] | None) -> dict[str, float]:
    for name, seconds in (given or {}).items():
        if name not in DEADLINES or seconds <= 0:
            known = " and ".join(DEADLINES)
            raise ConfigError(f"deadlines are positive seconds for {known}, not {name!r} = {seconds!r}")
    return dict(given or {})


def named_sources(
    sources: Iterable[Source], kind: str, taken: Mapping[str, Any] | None = None
) -> dict[str, tuple[Source, bool]]:
    """Names for the streams of an epoch: their own, or `unnamed_<kind>_<n>` for iterables. Duplicates are an error."""
    if isinstance(sources, str):
        raise ConfigError(f"give the streams as a list, not the string {sources!r}")
    named: dict[str, tuple[Source, bool]] = {}
    for n, source in enumerate(sources):
        name = source if isinstance(source, str) else f"unnamed_{kind}_{n}"
        if name in named or name in (taken or {}):
            raise ConfigError(f"stream {name!r} is given twice; an epoch runs each stream once")
        named[name] = (source, kind == "train")
    return named
