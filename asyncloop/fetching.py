"""Fetch: arrays on a device on their way to the host, copied beside the work that goes on there.

A copy begins right behind the work that makes the array, on a stream of its own into pinned memory; `ready` asks
whether it is there without waiting, so neither the model thread nor the event loop ever waits for the device.
Arrays of PyTorch only (whatever else has a device is brought over at once); it is never imported here, only found.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

__all__ = ["Fetch", "holds_more", "is_on_device", "like", "to_host"]

_own = threading.local()


def is_on_device(value: Any) -> bool:
    """Whether reading an array's values would have to wait for a device."""
    return not getattr(value, "is_cpu", True)


class Fetch:
    """Copies that have begun. Make it on the thread that launched the work; ask and take from any thread.

    The arrays are kept until the copies are done, so their memory cannot be given to others before.
    """

    __slots__ = ("_copies", "_events", "_sources")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._sources: list[Any] = []
        self._events: list[Any] = []
        self._copies = {name: self._begun(value) for name, value in values.items()}

    @property
    def is_ready(self) -> bool:
        while self._events and self._events[-1].query():
            self._events.pop()
        return not self._events

    def wait(self) -> None:
        """Wait until everything has arrived; blocks the calling thread."""
        for event in self._events:
            event.synchronize()
        self._events.clear()

    def take(self) -> dict[str, Any]:
        """The arrays as numpy arrays (nested as they were); waits for what has not arrived."""
        self.wait()
        self._sources.clear()
        return {name: to_host(copy) for name, copy in self._copies.items()}

    def _begun(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._begun(part) for name, part in cast("Mapping[str, Any]", value).items()}
        if holds_more(value):
            return like(value, [self._begun(part) for part in value])
        if not getattr(value, "is_cuda", False):
            return value
        cuda, source = sys.modules["torch"].cuda, value.detach()
        side = _side_stream(cuda, source.device)
        side.wait_stream(cuda.current_stream(source.device))
        with cuda.stream(side):
            copy = source.to("cpu", non_blocking=True)  # into pinned memory, which PyTorch keeps and hands out again
            event = cuda.Event()
            event.record(side)
        self._sources.append(source)
        self._events.append(event)
        return copy


def to_host(value: Any) -> Any:
    """A tensor as a numpy array, leaf by leaf; what is on the host already stays the object it is."""
    if isinstance(value, Mapping):
        return {key: to_host(part) for key, part in cast("Mapping[str, Any]", value).items()}
    if holds_more(value):
        return like(value, [to_host(part) for part in value])
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        try:
            return tensor.numpy()
        except TypeError:  # bfloat16 and the like, which numpy does not have
            return tensor.float().numpy()
    return value


def holds_more(value: Any) -> bool:
    """Whether this is a list or a tuple that may hold arrays, and not of numbers and texts only."""
    if not isinstance(value, list | tuple):
        return False
    return any(part.__class__ not in _PLAIN for part in cast("Sequence[Any]", value))


def like(value: Any, parts: list[Any]) -> Any:
    """Other parts in what held those before: a list, a tuple, a named one."""
    if isinstance(value, list):
        return parts
    make: Any = getattr(value, "_make", tuple)
    return make(parts)


_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


def _side_stream(cuda: Any, device: Any) -> Any:
    """A stream of this thread's own for copies from a device."""
    streams: dict[Any, Any] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = cuda.Stream(device)
    return streams[device]
