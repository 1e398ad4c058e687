"""Losses: functions of the module's outputs and the batch's sources, several of them weighted into one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import Tensor, nn

from asyncloop.bus import leaf
from asyncloop.errors import ConfigError, ModelError
from asyncloop.nested import is_nested
from asyncloop.torch.arguments import Table, close_to, made, of_kind

__all__ = ["LOSS_KEYS", "Loss", "Losses", "called", "has", "looked_up", "named_parts"]


@dataclass(frozen=True, slots=True)
class _Own(Table):
    """Keys of a loss's table that are no arguments of its class."""

    inputs: Sequence[str] = ("output", "label")
    weight: float = 1.0


LOSS_KEYS = frozenset(each.name for each in fields(_Own))


@dataclass(frozen=True, slots=True)
class Loss:
    """`fn(*inputs)` gives a scalar tensor. `inputs` name the module's outputs or the batch's sources, in order."""

    fn: Callable[..., Tensor]
    inputs: Sequence[str] = ("output", "label")
    weight: float = 1.0


class Losses(nn.Module):
    """The losses of a model by name; one that stands alone is called `loss`, like the total. Holds those with weights."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.by_name: dict[str, Loss] = dict(_losses(given))
        self._told = {name: f"loss {name!r}" for name in self.by_name}
        for name, each in self.by_name.items():
            if isinstance(each.fn, nn.Module):
                self._register(name, each.fn)

    def _register(self, name: str, loss: nn.Module) -> None:
        try:
            self.add_module(name, loss)
        except KeyError:
            raise ConfigError(f"loss: {name!r} cannot be the name of a loss that is a module; take another") from None

    @property
    def inputs(self) -> list[str]:
        """Everything that some loss looks at, each name once."""
        return list(dict.fromkeys(name for each in self.by_name.values() for name in each.inputs))

    def computed(
        self, values: Mapping[str, Any], active: Collection[str] | None = None, *, optional: bool = False
    ) -> dict[str, Tensor]:
        """`loss`, the weighted sum, and, if there are several, each by its name. `active`: only these count.

        ModelError if a name is missing; with `optional` what lacks something is left out (inference without labels).
        """
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        for name, each in self.by_name.items():
            if active is not None and name not in active:
                continue
            if optional and not all(has(values, wanted) for wanted in each.inputs):
                continue
            parts[name] = value = called(each.fn, values, each.inputs, self._told[name])
            weighted = value if each.weight == 1.0 else value * each.weight
            total = weighted if total is None else total + weighted
        if total is not None:
            parts["loss"] = total
        return parts

    def alone(self, name: str, values: Mapping[str, Any]) -> Tensor:
        """One of them, without its weight."""
        each = self.by_name[name]
        return called(each.fn, values, each.inputs, self._told[name])


def named_parts(given: Any, what: str, key: str) -> Iterator[tuple[str, Any]]:
    """The entries of an argument that is one thing, which is then called `key`, or a table of several by name."""
    if not isinstance(given, Mapping) or is_nested(given):
        yield key, given
        return
    table = cast("Mapping[str, Any]", given)
    if not table:
        raise ConfigError(f"{what}: an empty table; give a class, or leave it out")
    yield from table.items()


def called(
    fn: Callable[..., Any], values: Mapping[str, Any], names: Sequence[str], who: str, keywords: Sequence[str] = ()
) -> Any:
    """What a function makes of the values under names or paths, given in order or, if there are any, by `keywords`.

    Its errors say whose they are, and of which values.
    """
    try:
        given = [values[name] for name in names]
    except KeyError:  # a path, or not there
        given = looked_up(values, names, who)
    try:
        return fn(**dict(zip(keywords, given, strict=True))) if keywords else fn(*given)
    except Exception as error:
        parts = (f"{name}: {_kind_of(value)}" for name, value in zip(names, given, strict=True))
        error.add_note(f"{who} was given {', '.join(parts)}")
        raise


def _kind_of(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def looked_up(values: Mapping[str, Any], names: Sequence[str], who: str) -> list[Any]:
    """The values under names or paths (`head/logits`); ModelError that says who wants what, and what there is."""
    found: list[Any] = []
    for name in names:
        try:
            found.append(leaf(values, name))
        except KeyError:
            raise ModelError(
                f"{who} wants {name!r}, but there are only {', '.join(values)}{close_to(name, values)}"
            ) from None
    return found


def has(values: Mapping[str, Any], name: str) -> bool:
    """Whether there is something under a name or a path."""
    try:
        leaf(values, name)
    except KeyError:
        return False
    return True


def _losses(given: Any) -> Iterator[tuple[str, Loss]]:
    for name, loss in _stated(given):
        if getattr(loss.fn, "reduction", None) == "none":
            raise ConfigError(f"loss: {name!r} has reduction = 'none'; a loss is one number, so use 'mean'")
        yield name, loss


def _stated(given: Any) -> Iterator[tuple[str, Loss]]:
    for name, each in named_parts(given, "loss", "loss"):
        if isinstance(each, Loss):
            yield name, each
        elif is_nested(each):
            what = "loss" if name == "loss" else f"loss.{name}"
            own = of_kind(what, _Own, {key: each[key] for key in LOSS_KEYS & each.keys()})
            yield name, Loss(made(what, each, own=LOSS_KEYS), own.inputs, own.weight)
        elif callable(each):
            yield name, Loss(cast("Callable[..., Tensor]", each))
        else:
            raise ConfigError(
                f"loss: {name!r} is a {type(each).__name__}, not a function, a Loss or a table with `class`"
            )
