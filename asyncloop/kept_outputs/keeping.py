"""KeepOutputs: the hook that writes what a model gives, and Overheard: the model as seen by it."""

from __future__ import annotations

import inspect
import json
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from asyncloop.batch import Batch
from asyncloop.errors import HookError
from asyncloop.events import AfterBatch, AfterEvaluation, AfterTraining, Event
from asyncloop.fetching import is_on_device, to_host
from asyncloop.hook import Hook
from asyncloop.kept_outputs.reading import FORMAT, part_name
from asyncloop.states import bytes_of
from asyncloop.stats import WeightedMeans, metric_sink
from asyncloop.storage import clear_away, sealed, storage_errors, write_atomically, write_synced
from asyncloop.trees import encoded, safetensors

__all__ = ["KeepOutputs", "Overheard"]

_PART_BYTES = 32 * 2**20
_PART_BATCHES = 1024

_Values = list[tuple[str, Any]]
"""Names and scalars."""


class Overheard:
    """A model seen through, which hears of what goes into its metrics besides numbers in its outputs: values it logs,
    tensors that are summed as tensors, what it adds at a stream's end. For the model thread; KeepOutputs asks behind it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.run = self._async(model.run) if inspect.iscoroutinefunction(model.run) else self._plain(model.run)
        self.lazy: set[str] = set()
        """Outputs that are evaluated on demand."""
        self.heard: defaultdict[str, deque[tuple[_Values, _Values]]] = defaultdict(deque)
        """Stream → for each batch that was not asked for yet, what was logged and which outputs are such tensors."""
        self.ended: dict[str, Mapping[str, Any]] = {}
        """Stream → what the model added at its end."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def end_stream(self, stream: str, *, train: bool) -> Mapping[str, Any]:
        end = getattr(self._model, "end_stream", None)
        self.ended[stream] = (None if end is None else end(stream, train=train)) or {}
        return self.ended[stream]

    def _plain(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def overheard(batch: Batch, *, train: bool, stream: str) -> Any:
            with _logged() as logged:
                outputs = run(batch, train=train, stream=stream)
            return self._hear(outputs, stream, logged)

        return overheard

    def _async(self, run: Callable[..., Any]) -> Callable[..., Any]:
        async def overheard(batch: Batch, *, train: bool, stream: str) -> Any:
            with _logged() as logged:
                outputs = await run(batch, train=train, stream=stream)
            return self._hear(outputs, stream, logged)

        return overheard

    def _hear(self, outputs: object, stream: str, logged: _Values) -> Any:
        if isinstance(outputs, Mapping):
            named = cast("Mapping[str, Any]", outputs)
            self.lazy |= {name for name, value in named.items() if callable(value)}
            self.heard[stream].append((logged, _tensors(named)))
        return cast(Any, outputs)


@contextmanager
def _logged() -> Generator[_Values]:
    """What is logged inside, which goes where it would have gone all the same."""
    sink, heard = metric_sink.get(), _Values()

    def hear(name: str, value: Any) -> None:
        if sink is not None:
            heard.append((name, value))
            sink(name, value)

    token = metric_sink.set(hear)
    try:
        yield heard
    finally:
        metric_sink.reset(token)


def _tensors(outputs: Mapping[str, Any], above: str = "") -> _Values:
    """The scalar outputs whose mean is that of tensors, where copies on the host would give other last digits: those on a
    device, and nested ones."""
    found = _Values()
    for name, value in outputs.items():
        if isinstance(value, Mapping):
            found += _tensors(cast("Mapping[str, Any]", value), f"{above}{name}/")
        elif hasattr(value, "detach") and not value.ndim and (above or is_on_device(value)):
            found.append((above + name, value))
    return found


class KeepOutputs(Hook):
    """Writes each batch of an evaluation, with its outputs, below `folder`. Belongs first among the hooks, so that it
    sees what the model gave and not what hooks have added.

    What is not complete at the end is removed. Runs in its own thread; holds a part of a stream in memory (32 MiB, or a
    batch if that is larger). Raises HookError for what cannot be kept, StorageError if the file system refuses.
    """

    def __init__(self, folder: Path, model: Overheard) -> None:
        self._folder, self._model = folder, model
        self._writers: dict[str, _Writer] = {}

    def after_batches(self, events: Sequence[AfterBatch]) -> None:
        for event in events:
            self._add(event, self._writer(event.stream))

    def _writer(self, stream: str) -> _Writer:
        if stream not in self._writers:
            self._writers[stream] = _Writer(self._folder / stream)
        return self._writers[stream]

    def _add(self, event: AfterBatch, writer: _Writer) -> None:
        logged, tensors = self._model.heard[event.stream].popleft()
        logged = [(name, value.detach() if hasattr(value, "detach") else value) for name, value in logged]
        for name, value in (*logged, *tensors):
            if hasattr(value, "detach"):
                writer.means.add(name, value.detach(), event.n_examples)
        lazy = self._model.lazy
        asked = {name: value for name, value in (event.asked or {}).items() if name in lazy}
        eager = {name: value for name, value in event.outputs.items() if name not in lazy}
        outputs = {
            "logged": [[name, float(value)] for name, value in logged],
            "eager": _kept(eager, "output", event),
            "lazy": _kept(asked, "output", event),
        }
        writer.add(event.index, _kept(event.inputs, "source", event), outputs)

    def after_evaluation(self, event: AfterEvaluation) -> None:
        for stream in event.streams:
            writer = self._writer(stream)
            metrics = {**writer.means.result(), **self._model.ended.get(stream, {})}
            writer.finish(_kept(metrics, "metric", event), event, list(self._model.output_names))
            del self._writers[stream]

    def after_training(self, event: AfterTraining) -> None:
        for writer in self._writers.values():
            writer.discard()


class _Writer:
    """The outputs of one stream as they come; owns its folder until the index is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.means = WeightedMeans()
        """Of tensors, which cannot be made anew from copies on the host."""
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._n_bytes = self._n_parts = 0
        self._names: dict[str, None] = {}
        self._files: dict[str, Any] = {}
        with storage_errors("keep outputs in", folder):
            folder.mkdir(parents=True)

    def add(self, index: int, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._names |= dict.fromkeys([*inputs, *outputs["eager"], *outputs["lazy"]])
        self._inputs.append({"index": index, "batch": inputs})
        self._outputs.append(outputs)
        self._n_bytes += bytes_of(inputs) + bytes_of(outputs)
        if self._n_bytes >= _PART_BYTES or len(self._inputs) >= _PART_BATCHES:
            self._end_part()

    def _end_part(self) -> None:
        self._write(part_name("inputs", self._n_parts), self._inputs)
        self._write(part_name("outputs", self._n_parts), self._outputs)
        self._inputs, self._outputs, self._n_bytes = [], [], 0
        self._n_parts += 1

    def finish(self, metrics: Mapping[str, Any], at: Event, output_names: list[str]) -> None:
        if self._inputs:
            self._end_part()
        self._write("metrics", metrics)
        where = {"step": at.step, "epoch": at.epoch, "parts": self._n_parts}
        names = {"variables": list(self._names), "output_names": output_names}
        index = {"format": FORMAT, **where, **names, "files": self._files}
        with storage_errors("keep outputs in", self._folder):
            write_atomically(self._folder / "index.json", sealed(index))

    def _write(self, name: str, tree: Any) -> None:
        text, arrays = encoded(tree)
        contents = {f"{name}.json": [json.dumps(text).encode()], f"{name}.safetensors": safetensors(arrays)}
        with storage_errors("keep outputs in", self._folder):
            for file, buffers in contents.items():
                self._files[file] = write_synced(self._folder / file, *buffers)

    def discard(self) -> None:
        """Give the space back."""
        clear_away(self._folder)


def _kept(values: Mapping[str, Any], what: str, at: Event) -> dict[str, Any]:
    """Values in the form in which they can be kept; HookError names the first one that cannot."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            kept[name] = _plain(value)
        except TypeError as error:
            where = f" of stream {at.stream!r}, batch {at.index}," if isinstance(at, AfterBatch) else ""
            raise HookError(
                f"the {what} {name!r}{where} cannot be kept: it holds {error}; arrays, numbers, texts, None, and lists "
                f"and mappings of these can: give it in another form, or evaluate without --keep-outputs"
            ) from None
    return kept


def _plain(value: Any) -> Any:
    """Host arrays and plain values, nested as they were; TypeError says what is neither."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_plain_key(key): _plain(part) for key, part in items}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("Sequence[Any]", value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "detach"):
        value = to_host(value)
    elif hasattr(value, "__array__") and not isinstance(value, np.ndarray | np.generic | type):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) or hasattr(cast(object, value), "mask"):
        raise TypeError(f"a {type(cast(object, value)).__name__}")
    if value.dtype.kind not in "biufcmMSU":
        raise TypeError(f"an array of dtype {value.dtype}")
    return cast(Any, value)


def _plain_key(key: Any) -> Any:
    if isinstance(key, str | int | float):
        return key
    raise TypeError(f"a mapping with the key {key!r:.40}")
