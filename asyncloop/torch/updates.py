"""Updates: everything between a loss and the next weights. Gradients, their scale and norm, the optimizer, its schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from asyncloop.errors import ConfigError
from asyncloop.nested import is_nested, named
from asyncloop.torch.arguments import Table, close_to, made, matching
from asyncloop.torch.parallel import full
from asyncloop.torch.schedules import Plateau, Schedule
from asyncloop.torch.states import differences, fill, is_shared, of_one_kind, tensors_of

__all__ = ["OPTIMIZER_KEYS", "Clip", "Updates"]

_ELEMENTWISE = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"}
    | {"acc_delta", "exp_inf", "grad_avg", "prev", "step_size", "ax"}
)
"""What the common optimizers keep of a parameter in its own shape: a state of another shape is seen before it is loaded."""

OPTIMIZER_KEYS = frozenset({"groups"})
"""Keys of an optimizer's table that are no arguments of its class."""


@dataclass(frozen=True, slots=True)
class Clip(Table):
    """Gradients are shortened to a `norm` (over all of them, of `norm_type`) or each number cut to ± `value`."""

    norm: float | None = None
    value: float | None = None
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        given = [each for each in (self.norm, self.value) if each is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ConfigError("clip: give either a positive `norm` or a positive `value`")
        if not self.norm_type > 0:
            raise ConfigError(f"clip: norm_type is positive, such as 2 or inf, not {self.norm_type}")


class Updates:
    """The optimizer over named parameters. The model thread's alone.

    `optimizer`: a table with `class` (and `groups`: tables with `match`, patterns of names, and what is different for
    them; the first that matches counts), an optimizer, or a function of parameters that makes one.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Any,
        *,
        schedule: Schedule | Mapping[str, Any] | LRScheduler | Callable[[torch.optim.Optimizer], LRScheduler] | None,
        clip: Clip | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.parameters = {name: each for name, each in parameters.items() if each.requires_grad}
        if not self.parameters:
            raise ConfigError("optimizer: the module has no parameter to train; leave the optimizer out, or thaw some")
        self.optimizer: torch.optim.Optimizer = _optimizer(optimizer, self.parameters)
        self.n_updates = 0
        self.clip, self._scaler = clip, scaler
        self._schedule = schedule if isinstance(schedule, Schedule) else Schedule()
        self._plateau = Plateau(self._schedule) if self._schedule.kind == "plateau" else None
        self._rates = rates = [float(group["lr"]) for group in self._groups]
        self._ratios = [rate / rates[0] if rates[0] else 1.0 for rate in rates]
        self._torchs: Any = None if isinstance(schedule, Schedule | None) else _torchs(schedule, self.optimizer)
        self._configured = self._options()
        self._names = {id(each): name for name, each in self.parameters.items()}
        self._alike = of_one_kind(self.parameters)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def has_own_rates(self) -> bool:
        """Whether the rates may be changed: a schedule of torch's own keeps them to itself."""
        return self._torchs is None

    def set_rate(self, rate: float) -> None:
        """Change the first group's base rate; the others keep their ratio to it."""
        self._rates = [rate * ratio for ratio in self._ratios]

    def set_decay(self, decay: float) -> None:
        """Change the weight decay of all groups that were made with any; of all, if none was."""
        has_any = [bool(options.get("weight_decay")) for options in self._configured]
        for group, changes in zip(self._groups, has_any if any(has_any) else [True] * len(has_any), strict=True):
            if changes:
                group["weight_decay"] = decay

    def prepare(self) -> float:
        """Set the rates of the update to come; the first group's."""
        groups = self.optimizer.param_groups
        if self._torchs is None:
            factor = self._schedule.factor_at(self.n_updates) * (self._plateau.factor if self._plateau else 1.0)
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate * factor
        return float(groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def update(self) -> dict[str, Any]:
        """One update with the gradients that are there, which are then gone; what it tells: `grad_norm` if they are clipped."""
        told: dict[str, Any] = {}
        if self.clip is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self.optimizer)
            told = self._clipped(self.clip)
            if self._scaler is not None and "grad_norm" in told:  # of gradients that overflowed, which the scaler skips
                told["grad_norm"] = torch.nan_to_num(told["grad_norm"], nan=0.0, posinf=0.0)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.forget_gradients()
        self.n_updates += 1
        if self._torchs is not None:
            self._torchs.step()
        return told

    def forget_gradients(self) -> None:
        """Free them. As `zero_grad` does, without the marks that it leaves for a profiler: they cost seven times as much."""
        for each in self.parameters.values():
            each.grad = None

    def skip(self) -> None:
        """An update that cannot be made counts all the same: schedules go by the run's steps. What there is of it is freed."""
        self.forget_gradients()
        if self._scaler is not None:  # it may have been in the middle of one
            before, self._scaler = self._scaler.state_dict(), torch.amp.GradScaler(self._device_type)
            self._scaler.load_state_dict(before)
        self.n_updates += 1
        if self._torchs is not None:
            self._torchs.step()

    @property
    def _device_type(self) -> str:
        return next(iter(self.parameters.values())).device.type

    def evaluated(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """An evaluation is complete: a plateau schedule takes note."""
        if self._plateau is not None:
            self._plateau.evaluated(data)

    def _clipped(self, clip: Clip) -> dict[str, Any]:
        groups = [[self.parameters[name] for name in names] for names in self._alike]
        if clip.norm is not None:
            if len(groups) == 1:
                return {"grad_norm": full(nn.utils.clip_grad_norm_(groups[0], clip.norm, clip.norm_type))}
            groups = [own for own in groups if _gradients(own)]
            norms = [full(nn.utils.get_total_norm(_gradients(own), clip.norm_type)) for own in groups]
            norm = torch.linalg.vector_norm(torch.stack(norms), clip.norm_type)
            for own in groups:
                nn.utils.clip_grads_with_norm_(own, clip.norm, norm)
            return {"grad_norm": norm}
        assert clip.value is not None
        for own in groups:
            nn.utils.clip_grad_value_(own, clip.value)
        return {}

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on; what the optimizer keeps of a parameter is under the parameter's name."""
        state: dict[str, Any] = {
            "n_updates": self.n_updates,
            "rates": list(self._rates),
            "groups": self._options(),
            "configured": self._configured,
            "optimizer": {self._names[id(each)]: dict(kept) for each, kept in self.optimizer.state.items()},
        }
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        if self._plateau is not None:
            state["plateau"] = self._plateau.state_dict()
        if self._torchs is not None:
            kept = cast("dict[str, Any]", self._torchs.state_dict())
            state["schedule"] = {key: _plain(value) for key, value in kept.items() if _is_plain(value)}
        return state

    def differences(self, state: Mapping[str, Any]) -> list[str]:
        """In words, why a state does not fit."""
        problems: list[str] = []
        if len(state["groups"]) != len(self._groups):
            problems.append(f"the optimizer had {len(state['groups'])} groups of parameters, not {len(self._groups)}")
        kept = state["optimizer"]
        if kept and kept.keys() - self.parameters.keys():
            problems.append(f"the optimizer trained {', '.join(map(repr, kept.keys() - self.parameters.keys()))}")
        for name, each in kept.items():
            arrays = {key: each[key] for key in _ELEMENTWISE & each.keys() if each[key] is not None}
            if name in self.parameters:
                there = dict.fromkeys(arrays, cast(Tensor, self.parameters[name]))
                problems += differences(there, arrays, f"the optimizer's state of {name!r}:")
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that fits. A setting that this model was built with another value of keeps its own."""
        kept = self.optimizer.state_dict()
        order = [self._names[id(each)] for group in self._groups for each in group["params"]]
        kept["state"] = {
            n: _parts_of(self.parameters[name], state["optimizer"][name])
            for n, name in enumerate(order)
            if name in state["optimizer"]
        }
        self.optimizer.load_state_dict(kept)
        own = self._configured
        for group, mine, theirs, now in zip(self._groups, own, state["configured"], state["groups"], strict=True):
            same = [key for key, value in mine.items() if key in now and theirs.get(key) == value]
            group.update({key: tuple(now[key]) if isinstance(now[key], list) else now[key] for key in same})
        same_rates = [mine["lr"] == theirs["lr"] for mine, theirs in zip(own, state["configured"], strict=True)]
        self._rates = [
            saved if same else mine for saved, same, mine in zip(state["rates"], same_rates, self._rates, strict=True)
        ]
        self.n_updates = state["n_updates"]
        if self._scaler is not None and "scaler" in state:
            self._scaler.load_state_dict(dict(state["scaler"]))
        if self._plateau is not None and "plateau" in state:
            self._plateau.load_state_dict(state["plateau"])
        if self._torchs is not None and "schedule" in state:
            self._torchs.load_state_dict(dict(state["schedule"]))

    def _options(self) -> list[dict[str, Any]]:
        """Each group's settings, as values that a checkpoint can hold."""
        return [
            {key: _plain(value) for key, value in group.items() if key != "params" and _is_plain(value)}
            for group in self._groups
        ]


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [each.grad for each in parameters if each.grad is not None]


def _parts_of(parameter: nn.Parameter, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer kept of a parameter; of one that processes share, this one's part of it."""
    found: dict[str, Any] = {}
    for key, value in kept.items():
        if is_shared(parameter) and hasattr(value, "shape") and tuple(value.shape) == tuple(parameter.shape) != ():
            found[key] = torch.zeros_like(parameter.detach())
            fill(found[key], value)
        else:
            found[key] = tensors_of(value)
    return found


def _optimizer(given: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    found = _made(given, parameters)
    if isinstance(found, torch.optim.LBFGS):
        raise ConfigError("optimizer: LBFGS computes the loss several times a step, and a training step does it once")
    return found


def _made(given: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(given, torch.optim.Optimizer):
        theirs = {id(each) for group in given.param_groups for each in group["params"]}
        if strangers := theirs - {id(each) for each in parameters.values()}:
            raise ConfigError(f"optimizer: {len(strangers)} of its parameters are not the module's, or are frozen")
        return given
    if is_nested(given):
        table = cast("Mapping[str, Any]", given)
        given_groups = _checked_groups(table.get("groups", ()))
        groups = _grouped(given_groups, parameters)
        if "fused" not in table and "foreach" not in table and _may_be_fused(table["class"], parameters):
            table = {**table, "fused": True}
        found = made("optimizer", table, groups, own=OPTIMIZER_KEYS)
        if isinstance(found, torch.optim.Optimizer):
            _refuse_unknown_options(given_groups, found)
            return found
    elif callable(given):
        return cast("Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]", given)(parameters.values())
    raise ConfigError(f"optimizer: a table with `class`, an optimizer, or a function that makes one, not {given!r:.60}")


def _checked_groups(groups: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Mapping) for group in groups):
        raise ConfigError("optimizer: groups is a list of tables with `match`, patterns of names")
    return groups


def _refuse_unknown_options(groups: Sequence[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """PyTorch takes any option of a group, and never looks at those that it does not know."""
    known = optimizer.defaults
    for n, group in enumerate(groups):
        for key in group.keys() - known.keys() - {"match"}:
            hint = close_to(key, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"optimizer: group {n}: {type(optimizer).__name__} has no option {key!r}{hint}")


def _grouped(groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    left, found = dict(parameters), list[dict[str, Any]]()
    for n, group in enumerate(groups):
        if "match" not in group:
            raise ConfigError(f"optimizer: group {n} has no `match`, the patterns of the names that it is for")
        names = matching(group["match"], parameters, f"optimizer: group {n}")
        options = {key: value for key, value in group.items() if key != "match"}
        own = [left.pop(name) for name in names if name in left]
        if own:
            found.append({"params": own, **options})
    return [{"params": list(left.values())}, *found] if left else found


def _may_be_fused(cls: str, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether one kernel does the whole update on a GPU; then fp16's check of the gradients costs no wait either."""
    on_gpu = all(each.is_cuda and each.is_floating_point() for each in parameters.values())
    return on_gpu and cls in ("torch.optim:Adam", "torch.optim:AdamW", "torch.optim:SGD", "torch.optim:Adagrad")


def _torchs(table: Any, optimizer: torch.optim.Optimizer) -> Any:
    if not isinstance(table, Mapping) and callable(table):
        table = table(optimizer)
    if isinstance(table, LRScheduler):
        if table.optimizer is not optimizer:
            raise ConfigError("schedule: the scheduler is of another optimizer than the model's")
        return table
    if not is_nested(table):
        raise ConfigError("schedule: a table with `kind`, or with the `class` of a scheduler of torch's own")
    if named(table["class"]) is torch.optim.lr_scheduler.ReduceLROnPlateau:
        raise ConfigError('schedule: ReduceLROnPlateau needs evaluations; write kind = "plateau"')
    return made("schedule", table, optimizer)


def _plain(value: Any) -> Any:
    """A setting as a checkpoint holds it: tensors of one number as that, tuples as lists."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("list[Any]", value)]
    return {str(key): _plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, cast("list[Any]", value)))
    if isinstance(value, Mapping):
        return all(map(_is_plain, cast("Mapping[Any, Any]", value).values()))
    return (
        value is None or isinstance(value, bool | int | float | str) or (isinstance(value, Tensor) and not value.ndim)
    )
