"""History: the events that are not per batch, for those who begin to follow a run later. Bounded in number and in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from asyncloop.batch import nbytes_of
from asyncloop.events import AfterEpochProfile, Event
from asyncloop.stats import Timings

__all__ = ["History"]

_EVENTS = 4096
_BYTES = 64 * 2**20


class History:
    """Iterating gives the events that are kept, oldest first. Lives on the event loop."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self._n_bytes = 0
        self.n_dropped = 0

    def append(self, event: Event) -> None:
        """Remember one more; what is too much goes, the oldest first, but never the newest."""
        n_bytes = _arrays_in(getattr(event, "data", {}))
        self._events.append((_in_brief(event), n_bytes))
        self._n_bytes += n_bytes
        while len(self._events) > _EVENTS or (self._n_bytes > _BYTES and len(self._events) > 1):
            self._n_bytes -= self._events.popleft()[1]
            self.n_dropped += 1

    def __iter__(self) -> Iterator[Event]:
        return (event for event, _ in self._events)


def _arrays_in(data: Mapping[str, Any]) -> int:
    """The bytes of the arrays that hooks have put into an epoch's data."""
    tables = [cast("Mapping[str, Any]", each) for each in data.values() if isinstance(each, Mapping)]
    return nbytes_of(*tables) + sum(map(_arrays_in, tables))


def _in_brief(event: Event) -> Event:
    """What is kept of a profile: counts, sums and extremes. Its single durations were 100 KiB and more an epoch."""
    if not isinstance(event, AfterEpochProfile):
        return event
    profile = {key: value.in_brief() if isinstance(value, Timings) else value for key, value in event.profile.items()}
    return replace(event, profile=profile)
