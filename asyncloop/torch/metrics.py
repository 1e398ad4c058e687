"""Metrics over a whole pass, by torchmetrics or anything else with `update`, `compute` and `reset`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from asyncloop.errors import ConfigError
from asyncloop.nested import is_nested
from asyncloop.torch.arguments import Table, made, of_kind
from asyncloop.torch.losses import called, has, named_parts
from asyncloop.torch.states import tensors_of

__all__ = ["METRIC_KEYS", "Metric", "PassMetrics"]


@dataclass(frozen=True, slots=True)
class _Own(Table):
    """Keys of a metric's table that are no arguments of its class."""

    inputs: Sequence[str] = ("output", "label")


METRIC_KEYS = frozenset(each.name for each in fields(_Own))

_Pass: TypeAlias = "tuple[str, bool]"
"""The stream, and whether it is trained on: an evaluation of the train stream leaves what training has gathered alone."""


@dataclass(frozen=True, slots=True)
class Metric:
    """`of` has `update(*inputs)`, `compute()` and `reset()`; `inputs` name outputs or sources, in order."""

    of: Any
    inputs: Sequence[str] = ("output", "label")


class PassMetrics:
    """The metrics of each stream, gathered over a pass; each pass under way has its own copies. The model thread's alone."""

    def __init__(self, given: Any, device: torch.device) -> None:
        self._device = device
        self._blank: dict[str, Metric] = {}
        self._of_pass: dict[_Pass, dict[str, Metric]] = {}
        self._updated: dict[_Pass, set[str]] = {}
        """The metrics of a pass that have been given something."""
        for name, each in named_parts(given, "metrics", "metric"):
            metric = each
            if is_nested(each):
                what = "metrics" if name == "metric" else f"metrics.{name}"
                own = of_kind(what, _Own, {key: each[key] for key in METRIC_KEYS & each.keys()})
                metric = Metric(made(what, each, own=METRIC_KEYS), own.inputs)
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

    def begin(self, at: _Pass) -> None:
        """A pass begins anew."""
        for metric in self._own(at).values():
            metric.of.reset()

    @torch.no_grad()
    def update(self, at: _Pass, values: Mapping[str, Any], *, counts: bool = True, optional: bool = False) -> None:
        """One batch more, from detached outputs and sources on the device.

        `counts` false: it is another process's, and only shows of which kind the values are. `optional`: a metric of
        which something is not there is left out (inference without labels).
        """
        for name, metric in self._own(at).items():
            if optional and not all(has(values, wanted) for wanted in metric.inputs):
                continue
            self._updated.setdefault(at, set()).add(name)
            if not counts and not any(_counting(metric.of)):
                continue
            with nullcontext() if counts else _unchanged(metric.of):
                called(metric.of.update, values, metric.inputs, f"metric {name!r}")

    def result(self, at: _Pass) -> dict[str, Any]:
        """The metrics of a pass that is over: numbers, arrays as lists, dicts of numbers. What was gathered is let go."""
        found: dict[str, Any] = {}
        updated = self._updated.pop(at, set())
        for name, metric in self._of_pass.get(at, {}).items():
            if name in updated:
                found[name] = _host(metric.of.compute())
            metric.of.reset()
        return found

    def state_dict(self) -> dict[str, Any]:
        """What training passes have gathered; an evaluation that a checkpoint interrupts is repeated."""
        return {
            stream: {name: _state(metric.of) for name, metric in metrics.items()}
            for (stream, train), metrics in self._of_pass.items()
            if train
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Of several processes the first one takes all of it over; in the end it is put together again."""
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        for stream, metrics in state.items():
            own = self._own((stream, True))
            for name in own.keys() & metrics.keys():
                if not is_first and not any(_counting(own[name].of)):
                    continue
                with nullcontext() if is_first else _unchanged(own[name].of):
                    _load(own[name].of, metrics[name], self._device)
                self._updated.setdefault((stream, True), set()).add(name)

    def _own(self, at: _Pass) -> dict[str, Metric]:
        if at not in self._of_pass:
            self._of_pass[at] = {
                name: Metric(_placed(deepcopy(metric.of), self._device), metric.inputs)
                for name, metric in self._blank.items()
            }
        return self._of_pass[at]


def _placed(metric: Any, device: torch.device) -> Any:
    if hasattr(metric, "persistent"):
        metric.persistent(True)  # so that its state_dict holds what has been gathered
    return metric.to(device) if hasattr(metric, "to") else metric


def _state(metric: Any) -> dict[str, Any]:
    """What a metric has gathered in all processes; of one without a `state_dict` nothing, so a resume begins it anew."""
    with _put_together(metric):
        own = dict(metric.state_dict()) if hasattr(metric, "state_dict") else {}
        for path, part in _counting(metric):  # what was gathered one by one is one tensor when it is put together
            for name in (name for name, start in part._defaults.items() if isinstance(start, list)):
                key = f"{path}.{name}" if path else name
                own[key] = [own[key]] if isinstance(own.get(key), Tensor) else own.get(key, [])
    return {"own": own, "update_counts": {name: part._update_count for name, part in _counting(metric)}}


@contextmanager
def _put_together(metric: Any) -> Generator[None]:
    """A metric with what all processes have gathered, for as long as this lasts; each calls it for the same metrics."""
    with ExitStack() as stack:
        for _, part in _counting(metric) if dist.is_initialized() and dist.get_world_size() > 1 else ():
            stack.enter_context(part.sync_context())
        yield


@contextmanager
def _unchanged(metric: Any) -> Generator[None]:
    """Whatever a metric takes in here counts for nothing, but of what it gathers one by one it has empty ones of that kind.

    So it can be put together with those of processes that have some.
    """
    before = [
        (part, name, list(value) if isinstance(value, list) else value.clone())
        for _, part in _counting(metric)
        for name in part._defaults
        for value in (getattr(part, name),)
    ]
    counts = [(part, part._update_count) for _, part in _counting(metric)]
    yield
    for part, name, value in before:
        if isinstance(value, list) and not value:
            value = [each.reshape(-1)[:0] if each.ndim == 0 else each[:0] for each in getattr(part, name)[:1]]
        setattr(part, name, value)
    for part, count in counts:
        part._update_count = count


def _load(metric: Any, state: Mapping[str, Any], device: torch.device) -> None:
    if hasattr(metric, "load_state_dict"):
        metric.load_state_dict(_on(tensors_of(state["own"]), device))
    for name, part in _counting(metric):
        part._update_count = state["update_counts"].get(name, 0)


def _counting(metric: Any) -> Iterator[tuple[str, Any]]:
    """The parts that count their updates (torchmetrics warns of those that had none), by path."""
    parts = metric.named_modules() if isinstance(metric, nn.Module) else ()
    return ((name, part) for name, part in parts if hasattr(part, "_update_count"))


def _on(state: Any, device: torch.device) -> Any:
    if isinstance(state, dict):
        return {key: _on(value, device) for key, value in state.items()}
    if isinstance(state, list):
        return [_on(each, device) for each in state]
    return state.to(device) if isinstance(state, Tensor) else state


def _host(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _host(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_host(part) for part in value]
    return (value.item() if value.ndim == 0 else value.tolist()) if isinstance(value, Tensor) else value
