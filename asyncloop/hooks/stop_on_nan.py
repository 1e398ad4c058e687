"""StopOnNaN: the end as soon as a value is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from asyncloop.bus import named_values
from asyncloop.errors import StopTraining
from asyncloop.events import AfterBatch, AfterEpoch
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import names, refuse

__all__ = ["StopOnNaN"]


class StopOnNaN(Hook):
    """Stops when a train step's output or a value of the epoch data is NaN (or infinite, if `stop_on_inf`).

    Looks into nested dicts, lists and arrays of any shape; texts and other things are passed over. `variables`: only
    these, sources among them; else all outputs. It replaces the engine's own `on_nonfinite` for its variables. The
    engine waits for it at each step it looks at, so that the run ends at exactly that step; `every = "10 steps"` makes
    that cheaper. Runs on the event loop.
    """

    lockstep = True
    scalars_on_host = True

    def __init__(self, variables: Sequence[str] | None = None, stop_on_inf: bool = True) -> None:
        refuse("StopOnNaN", names("variables", variables))
        self.variables = variables
        self._stop_on_inf = stop_on_inf

    @property
    def takes_over_nonfinite(self) -> tuple[str, ...] | None:
        """The outputs that the engine leaves to this hook; None: all."""
        return None if self.variables is None else tuple(self.variables)

    async def after_batch(self, event: AfterBatch) -> None:
        if not event.train:
            return
        values = event.outputs if self.variables is None else dict(named_values(event, self.variables))
        self._check(values, event.stream, event.step)

    async def after_epoch(self, event: AfterEpoch) -> None:
        for stream, values in event.data.items():
            wanted = {name: value for name, value in values.items() if self.variables is None or name in self.variables}
            self._check(wanted, f"{stream} (mean of epoch {event.epoch})", event.step)

    def _check(self, values: Mapping[str, Any], stream: str, step: int) -> None:
        for path, what in _nonfinite(values):
            if what == "NaN" or self._stop_on_inf:
                raise StopTraining(f"StopOnNaN: variable {path!r} of stream {stream} is {what} at step {step}")


def _nonfinite(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, "NaN" or "infinite") of every part that is not finite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, "NaN" if math.isnan(value) else "infinite"
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield from _nonfinite(part, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(cast("Sequence[Any]", value)):
            yield from _nonfinite(part, f"{path}/{i}")
    elif isinstance(value, np.ndarray | np.generic):
        array = cast("np.ndarray[Any, Any]", value)
        if array.dtype.kind == "O":
            yield from _nonfinite(array.tolist(), path)
        elif array.dtype.kind in "fc" and not np.isfinite(array).all():
            yield path, "NaN" if np.isnan(array).any() else "infinite"
    elif hasattr(value, "isnan") and hasattr(value, "isinf"):  # a tensor, on whatever device
        if bool(value.isnan().any()):
            yield path, "NaN"
        elif bool(value.isinf().any()):
            yield path, "infinite"
