"""Stages: which losses count and which weights train in which span of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from asyncloop.errors import ConfigError
from asyncloop.torch.arguments import Span, Table, matching

__all__ = ["Stage", "Stages"]


@dataclass(frozen=True, slots=True)
class Stage(Table):
    """Until `until` updates are done (None: to the end). `losses` by name and `train`, patterns of parameters; None: all."""

    until: Span | None = None
    losses: Sequence[str] | None = None
    train: Sequence[str] | None = None


class Stages:
    """One stage after the other. The model thread's alone.

    A parameter that does not train has no gradient, so no optimizer moves it, and what it keeps of it stays.
    """

    def __init__(self, stages: Sequence[Stage], losses: Sequence[str], parameters: Mapping[str, nn.Parameter]) -> None:
        self._stages, self._parameters = stages, parameters
        self._now = -1
        ends = [stage.until for stage in stages]
        given = [end for end in ends if end is not None]
        if None in ends[:-1] or given != sorted(set(given)):
            raise ConfigError("stages: each but the last needs `until`, and each a later one than the one before")
        for n, stage in enumerate(stages):
            for what, names in (("losses", stage.losses), ("train", stage.train)):
                if names is not None and not names:
                    raise ConfigError(f"stages: stage {n} has no {what}; leave `{what}` out for all of them")
            unknown = [name for name in stage.losses or () if name not in losses]
            if unknown:
                raise ConfigError(f"stages: stage {n} wants the loss {unknown[0]!r}; there are {', '.join(losses)}")
        self._trained = [
            set(parameters if stage.train is None else matching(stage.train, parameters, f"stages: stage {n}"))
            for n, stage in enumerate(stages)
        ]

    def enter(self, n_updates: int) -> Sequence[str] | None:
        """Be in the stage of the update after `n_updates` others; the losses that count (None: all)."""
        number = next(
            (n for n, stage in enumerate(self._stages) if stage.until is None or n_updates < stage.until),
            len(self._stages) - 1,
        )
        if number != self._now:
            self._now = number
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in self._trained[number])
        return self._stages[number].losses
