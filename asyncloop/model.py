"""The Model protocol: what the engine needs of a user's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, Protocol, runtime_checkable

from asyncloop.batch import Batch

__all__ = ["Model", "Skipped"]


class Skipped(dict[str, Any]):
    """Outputs of a training step that the model skipped. What is NaN among them is shown to hooks and counts nowhere:
    in no mean, in no check of losses."""

    @property
    def counted(self) -> dict[str, Any]:
        return {name: value for name, value in self.items() if not (isinstance(value, float) and isnan(value))}


@runtime_checkable
class Model(Protocol):
    """Runs batches. Built, run, saved and loaded on the model thread only.

    Optional, all called on the model thread but for `stage`:

    * `live: dict[str, type]` with `set_parameters(**changes)`: what `control.set` may change.
    * `training_output_names`: those of `output_names` that only training steps have.
    * `may_change`: arguments that a resumed run may have other values of, because its steps stay the same.
    * `restore_fallback: str` ("module:Class"): takes over when this class can no longer be imported.
    * `load_weights(state)`: takes from another run's state only what was learned, for a new run that begins with it.
    * `weights() -> Mapping`, `has_no_weights = True` (it can be loaded from a run without a checkpoint).
    * `begin_stream(stream, *, train)` before the first batch of a stream in an epoch (not when a resume goes on in the
      middle), `end_stream(stream, *, train) -> Mapping | None` after its last: what it returns joins the epoch data.
    * `evaluated(data)` when an evaluation is complete and its hooks have run, with the data of its streams; never twice.
    * `close()` at the end of a run, whatever has ended it, before `after_training`.
    * `ahead: int` with `stage(batch) -> Any`: up to `ahead` batches are prepared by a thread of the stream's own before
      their steps; `run` then gets a RunBatch and takes what `stage` returned.
    """

    input_names: Sequence[str]
    output_names: Sequence[str]

    def run(self, batch: Batch, *, train: bool, stream: str) -> Mapping[str, Any]:
        """One step: outputs by name, for `train=True` after one optimizer update. `async def` is awaited on the loop.

        An output may be a zero-argument callable: evaluated right after the step, here, if a due hook names it.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Everything training needs to go on: nested mappings and lists of arrays, numbers, strings and None.

        Where several processes train the model, all of them call it at the same step.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises on other shapes or names, before anything is overwritten."""
        ...
