"""World: the processes that train one model together. Each runs the same program; what a model's library offers for it."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["World"]


class World(Protocol):
    """A model that is trained by several processes has one as its `world`. `rank` counts from 0; the first one writes.

    Both channels are used by one thread at a time and by all processes in the same order.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value (of JSON), in the order of ranks. Blocks until all have called it. Thread: the model's.

        Raises PeerError, with its reason if it could tell, when a process has gone.
        """
        ...

    def gather_beside(self, value: Any) -> list[Any]:
        """The same on a channel of its own, for the thread that writes checkpoints."""
        ...

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, so that they end, too. Any thread; does not wait."""
        ...
