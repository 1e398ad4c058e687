"""Hook: what a subscriber of the event bus may declare. Nobody has to inherit from it.

A hook has one method for each event it wants (`after_batch`, `after_epoch`, … see `asyncloop.events`), as
`async def` (runs on the event loop) or as `def` (runs in a thread of the hook's own), and these attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["COMMON_KEYS", "Hook"]


class Hook:
    """Defaults for what every hook may declare, as class or instance attributes; `Hook.__init__` need not be called.

    * Delivery: each event once and in order, on the event loop for `async def`, in the hook's own thread for `def`.
      `async def after_batches(self, events)` instead of `after_batch` takes all that has piled up.
    * `before_training`, `before_epoch`, `after_evaluation`, `after_epoch` and `after_training` are barriers: the run
      waits for them, one hook after the other in config order (unless `background`).
    * Cancellation: a handler is cancelled when its `deadline` has passed, and on `control.abort()`.
    """

    every: str | None = None
    """`"1 epoch"`, `"50 steps"`, `"30 s"`, `"1 step doubling to 1000"`: steps and seconds filter `after_batch` of train
    steps, epochs filter `after_epoch`. The last step is always due."""
    start: float = 0
    stop: float | None = None
    """The first and last counter value (in the unit of `every`) that may be due."""
    streams: Sequence[str] | None = None
    """Only these streams' batches; None: all."""
    variables: Sequence[str] | None = None
    """Inputs and outputs wanted, `head/logits` for nested ones; they arrive as host arrays. None: everything by reference."""
    all_processes: bool = False
    """Whether it runs in each of several processes that train together, not in the first one only. No key of a config."""
    scalars_on_host: bool = False
    """Whether scalar outputs on a device arrive as host arrays all the same, when `variables` is None. No key of a config."""
    mailbox: int = 64
    """How many batch events may wait for this hook (and at most 64 MiB of them)."""
    overflow: Literal["block", "drop_oldest", "latest"] = "block"
    """What happens when the mailbox is full: the model waits, or events are dropped, counted and reported."""
    concurrency: int = 1
    """How many events this hook handles at once; above 1 they may end out of order."""
    background: bool = False
    """Barrier events come through the mailbox with a copy of `data`, and the run goes on meanwhile."""
    lockstep: bool = False
    """The engine waits for this hook at its due steps, so that what it requests happens at exactly that step."""
    on_error: Literal["fail", "warn", "disable"] = "fail"
    """An exception fails the run, or is logged and counted, or is logged and switches the hook off."""
    deadline: float | None = 60.0
    """Seconds one handler may take before it is named as stalled (None: for ever)."""


COMMON_KEYS: dict[str, object] = {
    "every": str,
    "start": float,
    "stop": float,
    "streams": list[str],
    "variables": list[str],
    "mailbox": int,
    "overflow": Literal["block", "drop_oldest", "latest"],
    "concurrency": int,
    "background": bool,
    "lockstep": bool,
    "on_error": Literal["fail", "warn", "disable"],
    "deadline": float,
}
"""The keys that every hook accepts in a config; set as attributes unless the constructor names them."""
