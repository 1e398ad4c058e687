"""Stream: what a user says about where batches come from. Nothing runs until the engine opens it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from asyncloop.errors import ConfigError
from asyncloop.stream.operators import Batched, MapInline, Node, RangeSource, Repeated, Shuffled, Taken
from asyncloop.stream.sources import Resume, source_node
from asyncloop.stream.workers import MapConcurrent

__all__ = ["Stream"]


class Stream:
    """A named-to-be, re-openable sequence of elements; in the end, of batches. Immutable: each method gives a new one.

    Order is strict and a pure function of (seed, pass, index), whatever runs concurrently. Functions given here run
    where `map` says; none of them runs on the model thread unless the engine's buffer is 0 and all are inline.
    """

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @classmethod
    def range(cls, n: int, *, shuffle: bool = False, seed: int | None = None) -> Stream:
        """The integers 0 … n - 1, with `shuffle` in another keyed order each pass (`seed` None: from run seed and name).

        O(1) memory and time to any position, for any `n`. `batch` right after it gives int64 index arrays (n,).
        """
        _whole("range(n)", n, least=0)
        return cls(RangeSource(n, shuffle, seed))

    @classmethod
    def of(cls, source: object, *, names: Sequence[str] | None = None, resume: Resume = "replay") -> Stream:
        """Whatever can be iterated: a sequence, an (async) iterable, a generator function, a function returning one.

        `names` turns tuples into batches. `resume` says how an opaque source continues: "replay" reads and skips what
        was trained on, "continue" takes what comes, "error" refuses; iterators with `state_dict` continue exactly.
        """
        if resume not in ("replay", "continue", "error"):
            raise ConfigError(f"resume is 'replay', 'continue' or 'error', not {resume!r}")
        if isinstance(names, str):
            raise ConfigError(f"names is a sequence of source names, not the string {names!r}")
        return cls(source_node(source, None if names is None else tuple(names), resume))

    def map(
        self,
        fn: Callable[..., Any],
        concurrency: int | Literal["auto"] = 8,
        worker: Literal["thread", "inline"] | None = None,
        deadline: float | None = None,
        retries: int = 0,
    ) -> Stream:
        """`fn` of each element. Async functions run as tasks on the loop, plain ones in threads or `inline`.

        `concurrency` calls are in work at once, results stay in order. A function that names `rng` gets a numpy
        Generator keyed by (seed, pass, index). `deadline`: seconds for one call, then StalledError. `retries`: how
        often a call that raised is repeated. The last error stops the run, with a note saying which element it was.
        """
        if not callable(fn):
            raise ConfigError(f"map needs a function, not {type(fn).__name__!r}")
        if worker not in (None, "thread", "inline"):
            raise ConfigError(f"worker is 'thread' or 'inline', not {worker!r}")
        is_async = inspect.iscoroutinefunction(fn)
        if is_async and worker is not None:
            raise ConfigError(f"an async function runs on the event loop; worker={worker!r} is for plain functions")
        if worker == "inline":
            if deadline is not None or retries:
                raise ConfigError("deadline and retries need a worker that can be watched: worker='thread' or async")
            return Stream(MapInline(self.node, fn))
        if concurrency == "auto":
            concurrency = 8 if is_async else max((os.cpu_count() or 2) - 1, 1)
        _whole("concurrency", concurrency, least=1)
        _whole("retries", retries, least=0)
        return Stream(MapConcurrent(self.node, fn, concurrency, deadline, retries))

    def batch(self, n: int, drop_last: bool = False, collate: Callable[[list[Any]], Any] | None = None) -> Stream:
        """`n` elements as one, nested structures stacked leaf by leaf (or by `collate`); the last may be smaller."""
        _whole("batch(n)", n, least=1)
        return Stream(Batched(self.node, n, drop_last, collate))

    def shuffle(self, block: int = 1000, seed: int | None = None) -> Stream:
        """Elements in a keyed order inside consecutive blocks of `block`, which are held in memory."""
        _whole("shuffle(block)", block, least=1)
        return Stream(Shuffled(self.node, block, seed))

    def take(self, n: int) -> Stream:
        """Only the first `n` elements."""
        _whole("take(n)", n, least=0)
        return Stream(Taken(self.node, n))

    def repeat(self, n: int) -> Stream:
        """`n` rounds of this stream in one pass, each in its own order if it is shuffled."""
        _whole("repeat(n)", n, least=0)
        return Stream(Repeated(self.node, n))

    def __repr__(self) -> str:
        return f"Stream({self.node!r})"


def _whole(what: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{what} is a whole number of at least {least}, not {value!r}")
