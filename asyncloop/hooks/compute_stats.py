"""ComputeStats: aggregates of any variable over the batches of a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from asyncloop.bus import named_values
from asyncloop.errors import HookError
from asyncloop.events import AfterBatch, AfterEpoch, AfterEvaluation, BeforeEpoch, EpochData
from asyncloop.fetching import to_host
from asyncloop.hook import Hook
from asyncloop.hooks.arguments import nearest, refuse
from asyncloop.hooks.moments import AGGREGATES, Floats, Moments
from asyncloop.hooks.values import number

__all__ = ["ComputeStats"]

_Pass = tuple[str, bool]


class ComputeStats(Hook):
    """Writes `data[stream][name] = {aggregate: value}` over all elements of a variable, over all examples of the pass.

    * `variables`: names (their `mean`), or name → aggregates (`moments.AGGREGATES` has them all). Memory is constant,
      but `median` keeps every number of its variable until the pass is over.
    * Arrays count element by element. A scalar output counts once a batch: its `mean` is the engine's own, weighted by
      examples (with an `every`: of the batches seen); its `var` and `std` are weighted by examples if `variables` names
      a source too, so that there is something to count, else batches weigh the same.
    * Evaluated streams are written in `after_evaluation`, all others in `after_epoch`; then they start afresh. An
      evaluation inside an epoch leaves the train stream's aggregates alone, and a checkpoint holds them.

    HookError for values that are no numbers. Runs in its own thread, but not in the background: later hooks read what
    it writes.
    """

    def __init__(self, variables: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
        refuse("ComputeStats", *_problems(variables))
        wanted = variables if isinstance(variables, Mapping) else dict.fromkeys(variables, ("mean",))
        self._aggregates = {name: tuple(aggregates) for name, aggregates in wanted.items()}
        self.variables = tuple(wanted)
        self._moments: dict[_Pass, dict[str, Moments]] = {}

    def before_epoch(self, event: BeforeEpoch) -> None:
        """What is left of an evaluation is of one that was stopped and discarded."""
        self._moments = {at: moments for at, moments in self._moments.items() if at[1]}

    def after_batches(self, events: Sequence[AfterBatch]) -> None:
        """Batch by batch, however many have piled up: sums depend on where they are cut."""
        for event in events:
            for name, value in named_values(event, self._aggregates):
                block = _elements(event, name, value)
                moments = self._of((event.stream, event.train), name)
                if block.ndim == 0:
                    moments.add_scalar(float(block), _n_examples(event))
                else:
                    moments.scalar = False
                    moments.add(block.ravel())

    def after_evaluation(self, event: AfterEvaluation) -> None:
        for stream in event.streams:
            self._write((stream, False), event.data)

    def after_epoch(self, event: AfterEpoch) -> None:
        for at in list(self._moments):
            self._write(at, event.data)

    def state_dict(self) -> dict[str, Any]:
        """The aggregates of training passes; an evaluation that a checkpoint interrupts is repeated."""
        return {
            stream: {name: own.state_dict() for name, own in moments.items()}
            for (stream, train), moments in self._moments.items()
            if train
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._moments = {}
        for stream, saved in state.items():
            for name in (each for each in self._aggregates if each in saved):
                self._of((stream, True), name).load_state_dict(saved[name])

    def _of(self, at: _Pass, name: str) -> Moments:
        gathered = self._moments.setdefault(at, {})
        if name not in gathered:
            gathered[name] = Moments("median" in self._aggregates[name])
        return gathered[name]

    def _write(self, at: _Pass, data: EpochData) -> None:
        values = data.setdefault(at[0], {})
        for name, moments in self._moments.pop(at, {}).items():
            results = {aggregate: AGGREGATES[aggregate](moments) for aggregate in self._aggregates[name]}
            gathered = number(values.get(name))
            if "mean" in results and gathered is not None and moments.scalar and self.every is None:
                results["mean"] = float(gathered)
            values[name] = results


def _elements(event: AfterBatch, name: str, value: Any) -> np.ndarray[Any, Any]:
    where = f"variable {name!r} (batch {event.index} of stream {event.stream!r})"
    try:
        array: np.ndarray[Any, Any] = np.asarray(to_host(value))
    except ValueError:
        raise HookError(f"ComputeStats needs arrays: {where} has examples of different shapes") from None
    if array.dtype.kind not in "biuf":
        raise HookError(f"ComputeStats needs numbers: {where} is a {type(value).__name__} of dtype {array.dtype}")
    return cast(Floats, array.astype(np.float64, copy=False))


def _n_examples(event: AfterBatch) -> int:
    """The batch's length if a source is among the variables, else 1: how much its scalars weigh."""
    return next((len(source) for source in event.inputs.values() if hasattr(source, "__len__")), 1)


def _problems(variables: object) -> list[str]:
    if isinstance(variables, str) or not isinstance(variables, Mapping | Sequence) or not variables:
        return [f"variables is a list of names, or name → list of aggregates, not {variables!r:.60}"]
    if not isinstance(variables, Mapping):
        listed = cast("Sequence[object]", variables)
        return [f"variables is a list of names, but holds {name!r:.60}" for name in listed if not isinstance(name, str)]
    problems: list[str] = []
    for name, aggregates in cast("Mapping[object, object]", variables).items():
        if isinstance(aggregates, str) or not isinstance(aggregates, Sequence) or not aggregates:
            problems.append(
                f"variables: {name} takes a list of aggregates such as ['mean', 'std'], not {aggregates!r:.60}"
            )
            continue
        problems.extend(
            f"variables: {name}: {aggregate!r:.60} is no aggregate; there are {', '.join(AGGREGATES)}"
            + nearest(aggregate, AGGREGATES)
            for aggregate in cast("Sequence[object]", aggregates)
            if aggregate not in AGGREGATES
        )
    return problems
