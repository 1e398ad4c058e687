"""The Model protocol: what the engine needs of a user's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from asyncloop.batch import Batch

__all__ = ["Model"]


@runtime_checkable
class Model(Protocol):
    """Runs batches. Built, run, saved and loaded on the model thread only.

    Optional: `live: dict[str, type]` with `set_parameters(**changes)` (what `control.set` may change),
    `restore_fallback: str` ("module:Class", which takes over when this class can no longer be imported),
    `weights() -> Mapping`, `has_no_weights = True` (it can be loaded from a run without a checkpoint).
    """

    input_names: Sequence[str]
    output_names: Sequence[str]

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """One step: outputs by name, for `train=True` after one optimizer update. `async def` is awaited on the loop.

        An output may be a zero-argument callable: evaluated right after the step, here, if a due hook names it.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Everything training needs to go on: nested mappings and lists of arrays, numbers, strings and None."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises on other shapes or names, before anything is overwritten."""
        ...
