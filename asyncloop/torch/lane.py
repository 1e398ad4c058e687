"""Lane: batches on their way to a device. Pinned, copied on a stream of their own, kept until the step that used them is over.

On the CPU the same code makes tensors of arrays and copies nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from asyncloop.batch import Batch, RunBatch

__all__ = ["Lane"]

_NUMBERS = "biufc"


@dataclass(slots=True)
class _Staged:
    """A batch on the device, or about to be: `event` has passed when it is there."""

    sources: dict[str, Any]
    event: torch.cuda.Event | None


class Lane:
    """`stage` may be called by a thread ahead of the steps; `take` and `used` belong to the model thread.

    `names`: the sources that the model looks at (None: all). Float64 sources become `dtype`, the module's own, because
    numpy makes float64 of everything. What is on the device already passes through, and so does what is no array of numbers.
    """

    def __init__(
        self, device: torch.device, names: Collection[str] | None, dtype: torch.dtype, *, channels_last: bool
    ) -> None:
        self.device, self._names, self._dtype = device, names, dtype
        self._channels_last = channels_last
        self._leaves_tensors = device.type == "cpu" and not channels_last
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_use: deque[tuple[torch.cuda.Event, _Staged]] = deque()
        self._taken: _Staged | None = None

    def stage(self, batch: Batch) -> _Staged:
        """Begin to copy a batch to the device. Any thread; does not wait for the device."""
        if self._stream is None:
            return _Staged(self._moved(batch), None)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            sources = self._moved(batch)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _Staged(sources, event)

    def take(self, batch: Batch) -> dict[str, Any]:
        """The sources on the device, ready for work launched from now on."""
        staged: _Staged | Exception | None = batch.take() if isinstance(batch, RunBatch) else None
        if isinstance(staged, Exception):
            raise staged
        if staged is None:
            if self._stream is None:
                return self._moved(batch)
            staged = self.stage(batch)
        if staged.event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.event)
            self._taken = staged
            for name, value in staged.sources.items():
                staged.sources[name] = self._wanted(value)
                _used_on(stream, value)
        return staged.sources

    def used(self) -> None:
        """All work with the batch that was taken has been launched. Memory of batches whose work is done is given back."""
        if self._taken is not None:
            staged, self._taken = self._taken, None
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._in_use.append((event, staged))
            while self._in_use and self._in_use[0][0].query():
                self._in_use.popleft()

    def _moved(self, batch: Batch) -> dict[str, Any]:
        moved: dict[str, Any] = {}
        leaves = self._leaves_tensors
        for name in batch if self._names is None else self._names:
            if name in batch:
                value = batch[name]
                # The common kind on the CPU, where all that is asked of a tensor shows in a short step.
                as_is = leaves and value.__class__ is Tensor and value.is_cpu and value.dtype is not torch.float64
                moved[name] = value if as_is else self._on_device(value)
        return moved

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            tensor = value
        elif not isinstance(value, np.ndarray) and isinstance(value, Mapping):
            return {name: self._on_device(part) for name, part in cast("Mapping[str, Any]", value).items()}
        else:
            tensor = _tensor(value)
            if tensor is None:
                return value
        if self._stream is not None and tensor.device == self.device:
            return tensor  # made on another stream than this one, so `take` does the rest
        tensor = self._wanted(tensor)
        if self._stream is not None and tensor.is_cpu:
            tensor = tensor.pin_memory()  # of memory that PyTorch keeps, and hands out again when the copy is done
        return tensor if tensor.device == self.device else tensor.to(self.device, non_blocking=True)

    def _wanted(self, value: Any) -> Any:
        """In the dtype and the memory format that the module wants."""
        if not isinstance(value, Tensor):
            if isinstance(value, Mapping):
                return {name: self._wanted(part) for name, part in cast("Mapping[str, Any]", value).items()}
            return value
        if value.dtype is torch.float64 and self._dtype is not torch.float64:
            value = value.to(self._dtype)
        return value.to(memory_format=torch.channels_last) if self._channels_last and value.ndim == 4 else value


def _used_on(stream: torch.cuda.Stream, value: Any) -> None:
    """Who keeps a source beyond the step (the module itself, a loss that a hook asks for) still reads it on this stream."""
    if isinstance(value, Mapping):
        for part in cast("Mapping[str, Any]", value).values():
            _used_on(stream, part)
    elif isinstance(value, Tensor) and value.is_cuda:
        value.record_stream(stream)


def _tensor(value: Any) -> Tensor | None:
    """A tensor that shares an array's memory; None for what is no array of numbers."""
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        return None
    if array.dtype.kind not in _NUMBERS:
        return None
    if array.flags.writeable:
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError):  # of another byte order, or backwards
            pass
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
