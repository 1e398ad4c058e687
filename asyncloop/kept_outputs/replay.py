"""Replay: a dataset and a model that give what was kept, for an ordinary engine with the hooks of now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from asyncloop.batch import Batch
from asyncloop.errors import NothingToResumeError
from asyncloop.kept_outputs.reading import KeptStream
from asyncloop.stats import log

__all__ = ["REPLAYED", "KeptDataset", "KeptModel", "check_variables"]

REPLAYED: Mapping[str, Any] = {"batch_size": None, "on_empty_batch": "ignore", "on_unused_sources": "ignore"}
"""Settings of an engine that replays: what they are about was decided when the outputs were kept."""


class KeptDataset:
    """The streams as they were kept. `dataset` is the run's own, entered as in any evaluation, for its hooks."""

    def __init__(self, kept: Mapping[str, KeptStream], dataset: Any) -> None:
        for stream, own in kept.items():
            setattr(self, f"{stream}_stream", own.batches)
        self._dataset, self._entered = dataset, AsyncExitStack()

    async def __aenter__(self) -> KeptDataset:
        if hasattr(self._dataset, "__aenter__"):
            await self._entered.enter_async_context(self._dataset)
        return self

    async def __aexit__(self, *trouble: Any) -> None:
        await self._entered.__aexit__(*trouble)


class KeptModel:
    """Gives the outputs in `kept`, in their order, in place of the model that has computed them.

    Stands in the config instead of that one's class, whose arguments it takes and leaves alone.
    """

    class_in_config: ClassVar[str] = f"{__name__}:KeptModel"
    has_no_weights: ClassVar[bool] = True
    input_names: Sequence[str] = ()

    def __init__(self, **arguments: Any) -> None:
        self.kept: Mapping[str, KeptStream] = {}
        self._outputs: dict[str, Iterator[tuple[dict[str, Any], list[tuple[str, float]]]]] = {}

    @property
    def output_names(self) -> Sequence[str]:
        return [name for own in self.kept.values() for name in own.index["output_names"]]

    def begin_stream(self, stream: str, *, train: bool) -> None:
        self._outputs[stream] = self.kept[stream].outputs()

    def run(self, batch: Batch, *, train: bool, stream: str) -> dict[str, Any]:
        outputs, logged = next(self._outputs[stream])
        for name, value in logged:
            log(name, value)
        return outputs

    def end_stream(self, stream: str, *, train: bool) -> dict[str, Any]:
        return self.kept[stream].metrics()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has none of its own."""


def check_variables(hooks: Iterable[tuple[Any, str]], kept: Mapping[str, KeptStream]) -> None:
    """NothingToResumeError if a hook wants of a batch what was not kept: nobody had asked for it then."""
    hooks = list(hooks)
    if any(getattr(hook, "add", None) for hook, _ in hooks):  # it may add what others want
        return
    for stream, own in kept.items():
        wanted = [(name, variable) for hook, name in hooks for variable in _wanted(hook, stream)]
        for name, variable in wanted:
            if not own.has(variable):
                raise NothingToResumeError(
                    f"hook {name} wants the variable {variable!r}, but of {stream!r} only {', '.join(own.variables)} were kept; "
                    "an output that is evaluated on demand is kept if a hook names it: evaluate again with --keep-outputs"
                )


def _wanted(hook: Any, stream: str) -> Sequence[str]:
    takes_batches = hasattr(hook, "after_batch") or hasattr(hook, "after_batches")
    streams = getattr(hook, "streams", None)
    return (getattr(hook, "variables", None) or ()) if takes_batches and (streams is None or stream in streams) else ()
