"""LogVariables: the epoch's numbers in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from asyncloop.errors import HookError
from asyncloop.events import AfterEpoch
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import names, nearest, one_of, refuse
from asyncloop.hooks.values import chosen, number, text

__all__ = ["LogVariables"]

logger = logging.getLogger("asyncloop")

Policy = Literal["error", "warn", "str", "ignore"]


class LogVariables(Hook):
    """Logs each stream's epoch data after every epoch: one INFO line a stream, also for the evaluation before training.

    It sees what the hooks before it in the config have added: scalars and dicts of scalars. `variables` names the ones
    wanted (HookError if no stream has one); `on_unknown_type` says what happens to any other value. Runs in its own
    thread.
    """

    def __init__(self, on_unknown_type: Policy = "ignore", variables: Sequence[str] | None = None) -> None:
        refuse(
            "LogVariables",
            one_of("on_unknown_type", on_unknown_type, get_args(Policy)),
            names("variables", variables),
        )
        self._on_unknown_type = on_unknown_type
        self.variables = variables

    def after_epoch(self, event: AfterEpoch) -> None:
        for name in self.variables or ():
            if not any(name in values for values in event.data.values()):
                there = list(dict.fromkeys(known for values in event.data.values() for known in values))
                raise HookError(
                    f"LogVariables wants {name!r}, but the data of epoch {event.epoch} has only "
                    f"{', '.join(there) or 'nothing'}{nearest(name, there)}"
                )
        for stream, values in chosen(event.data, self.streams, self.variables).items():
            parts = [part for name, value in values.items() if (part := self._part(stream, name, value)) is not None]
            if parts:
                logger.info("epoch %d, %s: %s", event.epoch, stream, ", ".join(parts))

    def _part(self, stream: str, name: str, value: Any) -> str | None:
        scalar = number(value)
        if scalar is not None:
            return f"{name} {text(scalar)}"
        if isinstance(value, Mapping):
            aggregates = {key: number(part) for key, part in cast("Mapping[str, Any]", value).items()}
            if aggregates and None not in aggregates.values():
                return f"{name} " + " ".join(
                    f"{key}={text(part)}" for key, part in aggregates.items() if part is not None
                )
        return self._unknown(stream, name, value)

    def _unknown(self, stream: str, name: str, value: Any) -> str | None:
        if self._on_unknown_type == "str":
            return f"{name} {value}"
        what = (
            f"variable {name!r} of stream {stream!r} is a {type(value).__name__}; LogVariables logs scalars and dicts "
            "of scalars (compute one, leave it out with `variables`, or set on_unknown_type = 'str')"
        )
        if self._on_unknown_type == "error":
            raise HookError(what)
        if self._on_unknown_type == "warn":
            logger.warning("%s", what)
        return None
