"""What a hook sees of a finished batch: everything by reference, or only the variables it named, as host arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from asyncloop.errors import HookError
from asyncloop.events import AfterBatch

__all__ = ["leaf", "narrowed", "to_host", "with_added"]

_MISSING = object()


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


def to_host(value: Any) -> Any:
    """A tensor as a numpy array, leaf by leaf; what is on the host already stays the object it is."""
    if isinstance(value, Mapping):
        return {key: to_host(part) for key, part in cast("Mapping[str, Any]", value).items()}
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        try:
            return tensor.numpy()
        except TypeError:  # bfloat16 and the like, which numpy does not have
            return tensor.float().numpy()
    return value


def narrowed(event: AfterBatch, variables: Sequence[str], who: str) -> AfterBatch:
    """The event with only `variables` in it: outputs (evaluated ones first), else inputs. HookError if one is missing."""
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
            raise _missing(event, name, who)
    return replace(event, inputs=inputs, outputs=outputs)


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
