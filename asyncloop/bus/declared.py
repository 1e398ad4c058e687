"""Declared: what a hook says about how it wants its events, read once and checked."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from asyncloop.cadence import Cadence
from asyncloop.errors import ConfigError
from asyncloop.events import Event
from asyncloop.hook import Hook

__all__ = ["Declared", "warn_of_slips"]

logger = logging.getLogger("asyncloop")

Overflow = Literal["block", "drop_oldest", "latest"]
OnError = Literal["fail", "warn", "disable"]


@dataclass(frozen=True, slots=True)
class Declared:
    """The attributes of `asyncloop.Hook`, from any object; what it does not have, has Hook's default."""

    cadence: Cadence | None
    streams: tuple[str, ...] | None
    variables: tuple[str, ...] | None
    mailbox: int
    overflow: Overflow
    concurrency: int
    background: bool
    lockstep: bool
    on_error: OnError
    deadline: float | None
    scalars_on_host: bool

    @classmethod
    def by(cls, hook: Any, name: str) -> Declared:
        """Read a hook's declarations. Raises ConfigError naming the hook and everything that is wrong."""
        value = {key: getattr(hook, key, default) for key, default in _DEFAULTS.items()}
        problems: list[str] = []
        for key, choices in (("overflow", get_args(Overflow)), ("on_error", get_args(OnError))):
            if value[key] not in choices:
                allowed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
                problems.append(f"{key} is {allowed}, not {value[key]!r}")
        for key, unit in (("mailbox", "events"), ("concurrency", "events at once")):
            if not isinstance(value[key], int) or value[key] < 1:
                problems.append(f"{key} is a number of {unit}, at least 1, not {value[key]!r}")
        if value["concurrency"] != 1 and not _is_async_one_by_one(hook):
            problems.append(
                "concurrency is for `async def after_batch`; plain methods and after_batches run one by one"
            )
        for key in ("streams", "variables"):
            if isinstance(value[key], str):
                problems.append(f"{key} is a list of names, not the string {value[key]!r}")
        deadline = value["deadline"]
        if deadline is not None and (not isinstance(deadline, int | float) or deadline <= 0):
            problems.append(f"deadline is a positive number of seconds, or None, not {deadline!r}")
        cadence = None
        if value["every"] is None and (value["start"] or value["stop"] is not None):
            problems.append("start and stop bound a cadence: they need `every`, such as '1 step' or '1 epoch'")
        if value["every"] is not None:
            try:
                cadence = Cadence.parse(value["every"], start=value["start"] or 0, stop=value["stop"])
            except (ConfigError, TypeError) as error:
                problems.append(f"every: {error}")
        if problems:
            raise ConfigError(*(f"hook {name}: {problem}" for problem in problems))
        return cls(
            cadence,
            None if value["streams"] is None else tuple(value["streams"]),
            None if value["variables"] is None else tuple(value["variables"]),
            1 if value["overflow"] == "latest" else value["mailbox"],
            value["overflow"],
            value["concurrency"],
            bool(value["background"]),
            bool(value["lockstep"]),
            value["on_error"],
            deadline,
            bool(value["scalars_on_host"]),
        )


def warn_of_slips(hook: Any, name: str) -> None:
    """A method that no event calls, but is called nearly like one; or a Hook without any that is called."""
    if not isinstance(hook, Hook):
        return
    events = {each.method for each in Event.__subclasses__() if each.method} | {"after_batches"}
    run_together = {each.replace("_", ""): each for each in events}
    for method in dir(type(hook)):
        if method.startswith("_") or method in events or hasattr(Hook, method):
            continue
        near = get_close_matches(method.replace("_", ""), run_together, 1, 0.85)
        if near and callable(getattr(type(hook), method)):
            meant = run_together[near[0]]
            logger.warning("hook %s: nothing calls its method %s; did you mean %s?", name, method, meant)
    if not events.intersection(dir(hook)):
        logger.warning("hook %s handles no event; what is called: %s", name, ", ".join(sorted(events)))


def _is_async_one_by_one(hook: Any) -> bool:
    return not hasattr(hook, "after_batches") and inspect.iscoroutinefunction(getattr(hook, "after_batch", None))


_DEFAULTS: dict[str, Any] = {key: value for key, value in vars(Hook).items() if not key.startswith("_")}
