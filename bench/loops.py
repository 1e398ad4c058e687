"""The two event loops that everything of asyncloop is measured on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from bench.systems.registry import Form

__all__ = ["LOOPS", "OnALoop", "needs_of", "run_on"]

T = TypeVar("T")

LOOPS: tuple[Form, ...] = ("uvloop", "asyncio")


def needs_of(form: Form) -> tuple[str, ...]:
    """The modules without which nothing runs in this form."""
    return ("uvloop",) if form == "uvloop" else ()


def run_on(loop: Form, main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """`main(*args)` in a fresh event loop of this kind."""
    return anyio.run(main, *args, backend_options={"use_uvloop": loop == "uvloop"})


@dataclass(frozen=True, slots=True)
class OnALoop:
    """What systems that run on an event loop share: the loop is their form, and what it needs they need."""

    loop: Form

    @property
    def form(self) -> Form:
        return self.loop

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.loop)
