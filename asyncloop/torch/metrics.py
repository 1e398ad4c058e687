"""Metrics over a whole pass, by torchmetrics or anything else with `update`, `compute` and `reset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asyncloop.errors import ConfigError
from asyncloop.nested import build, is_nested
from asyncloop.torch.losses import looked_up, named_parts
from asyncloop.torch.states import tensors_of

__all__ = ["METRIC_KEYS", "Metric", "PassMetrics"]

METRIC_KEYS = frozenset({"inputs"})
"""Keys of a metric's table that are no arguments of its class."""


@dataclass(frozen=True, slots=True)
class Metric:
    """`of` has `update(*inputs)`, `compute()` and `reset()`; `inputs` name outputs or sources, in order."""

    of: Any
    inputs: Sequence[str] = ("output", "label")


class PassMetrics:
    """The metrics of each stream, gathered over a pass; each stream has its own copies. The model thread's alone."""

    def __init__(self, given: Any, device: torch.device) -> None:
        self._device = device
        self._blank: dict[str, Metric] = {}
        self._of_stream: dict[str, dict[str, Metric]] = {}
        for name, each in named_parts(given, "metrics", "metric"):
            metric = each
            if is_nested(each):
                keys = {key: each[key] for key in METRIC_KEYS & each.keys()}
                metric = Metric(build(each, own=METRIC_KEYS), **keys)
            elif not isinstance(each, Metric):
                metric = Metric(each)
            lacking = [method for method in ("update", "compute", "reset") if not hasattr(metric.of, method)]
            if lacking:
                raise ConfigError(f"metrics: {name!r} is a {type(metric.of).__name__} without {', '.join(lacking)}")
            self._blank[name] = metric

    @property
    def inputs(self) -> list[str]:
        """Everything that some metric looks at, each name once."""
        return list(dict.fromkeys(name for each in self._blank.values() for name in each.inputs))

    @property
    def names(self) -> list[str]:
        return list(self._blank)

    def begin(self, stream: str) -> None:
        """A stream begins anew."""
        for metric in self._of_stream.get(stream, {}).values():
            metric.of.reset()

    @torch.no_grad()
    def update(self, stream: str, values: Mapping[str, Any]) -> None:
        """One batch more, from detached outputs and sources on the device."""
        for name, metric in self._own(stream).items():
            metric.of.update(*looked_up(values, metric.inputs, f"metric {name!r}"))

    def result(self, stream: str) -> dict[str, Any]:
        """The metrics of the pass that is over: numbers, arrays as lists, dicts of numbers."""
        found: dict[str, Any] = {}
        for name, metric in self._of_stream.get(stream, {}).items():
            found[name] = _host(metric.of.compute())
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            stream: {name: _state(metric.of) for name, metric in metrics.items()}
            for stream, metrics in self._of_stream.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for stream, metrics in state.items():
            own = self._own(stream)
            for name in own.keys() & metrics.keys():
                _load(own[name].of, metrics[name], self._device)

    def _own(self, stream: str) -> dict[str, Metric]:
        if stream not in self._of_stream:
            self._of_stream[stream] = {
                name: Metric(_placed(deepcopy(metric.of), self._device), metric.inputs)
                for name, metric in self._blank.items()
            }
        return self._of_stream[stream]


def _placed(metric: Any, device: torch.device) -> Any:
    if hasattr(metric, "persistent"):
        metric.persistent(True)  # so that its state_dict holds what has been gathered
    return metric.to(device) if hasattr(metric, "to") else metric


def _state(metric: Any) -> dict[str, Any]:
    own = dict(metric.state_dict()) if hasattr(metric, "state_dict") else {}
    count = getattr(metric, "_update_count", None)
    return own if count is None else {**own, "_update_count": count}


def _load(metric: Any, state: Mapping[str, Any], device: torch.device) -> None:
    own = {name: value for name, value in tensors_of(state).items() if name != "_update_count"}
    metric.load_state_dict(_on(own, device))
    if "_update_count" in state:
        metric._update_count = state["_update_count"]


def _on(state: Any, device: torch.device) -> Any:
    if isinstance(state, dict):
        return {key: _on(value, device) for key, value in state.items()}
    return [_on(each, device) for each in state] if isinstance(state, list) else state.to(device)


def _host(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _host(part) for name, part in value.items()}
    return (value.item() if value.ndim == 0 else value.tolist()) if isinstance(value, Tensor) else value
