"""What a hook sees of a finished batch: everything by reference, or only the variables it named, as host arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from asyncloop.errors import HookError
from asyncloop.events import AfterBatch
from asyncloop.fetching import is_on_device, to_host

__all__ = ["device_scalars", "leaf", "named_values", "narrowed", "with_added", "with_scalars"]


def leaf(values: Mapping[str, Any], name: str) -> Any:
    """The value under a name, or under a path like `head/logits` in nested mappings; KeyError if there is none."""
    if name in values:
        return values[name]
    value: Any = values
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(name)
        value = cast("Mapping[str, Any]", value)[part]
    return value


def named_values(event: AfterBatch, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The variables under these names, outputs before inputs; without those that only training steps have, elsewhere."""
    for name in names:
        for values in (event.outputs, event.inputs):
            try:
                yield name, leaf(values, name)
                break
            except KeyError:
                continue


def narrowed(event: AfterBatch, variables: Sequence[str], who: str, only_training: Collection[str] = ()) -> AfterBatch:
    """The event with only `variables` in it: outputs (evaluated ones first), else inputs.

    HookError if one is missing, unless only training steps have it and this is none.
    """
    asked = event.asked or {}
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for name in variables:
        for place, values in ((outputs, asked), (outputs, event.outputs), (inputs, event.inputs)):
            try:
                place[name] = to_host(leaf(values, name))
                break
            except KeyError:
                continue
        else:
            if event.train or name.partition("/")[0] not in only_training:
                raise _missing(event, name, who)
    return replace(event, inputs=inputs, outputs=outputs)


def device_scalars(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The scalars among (nested) outputs that are on a device, by path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= device_scalars(cast("Mapping[str, Any]", value), f"{above}{name}/")
        elif is_on_device(value) and not value.ndim:
            found[above + name] = value
    return found


def with_scalars(event: AfterBatch) -> AfterBatch:
    """The event with those scalars on the host that were brought over."""
    return replace(event, outputs=_replaced(event.outputs, event.asked or {}, ""))


def _replaced(values: Mapping[str, Any], by: Mapping[str, Any], above: str) -> dict[str, Any]:
    return {
        name: _replaced(cast("Mapping[str, Any]", value), by, f"{above}{name}/")
        if isinstance(value, Mapping)
        else by.get(above + name, value)
        for name, value in values.items()
    }


def with_added(event: AfterBatch, added: Mapping[str, Any]) -> AfterBatch:
    """The event as later hooks see it, with the variables that an earlier hook's `add` gave."""
    return replace(event, outputs={**event.outputs, **added})


def _missing(event: AfterBatch, name: str, who: str) -> HookError:
    known = [*event.outputs, *(event.asked or ()), *event.inputs]
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return HookError(
        f"hook {who} wants the variable {name!r}, but batch {event.index} of stream {event.stream!r} "
        f"has only {', '.join(known)}{hint}"
    )
