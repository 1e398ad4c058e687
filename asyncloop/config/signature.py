"""What a component's constructor takes, from its signature: names, which are required, and what they accept."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Reversible, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from asyncloop.config.check import strictly
from asyncloop.nested import Nested

__all__ = ["Constructor", "Parameter"]

_ONLY_ITERATED = (Iterable, Collection, Container, Reversible)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One keyword argument. `type` is None where the annotation says nothing pydantic could check."""

    name: str
    required: bool
    default: Any
    type: TypeAdapter[Any] | None
    nested: Nested | None = None
    """Whether it takes a table that names a class of its own."""

    @property
    def validate(self) -> Callable[[Any], Any] | None:
        return strictly(self.type) if self.type is not None else None


@dataclass(frozen=True, slots=True)
class Constructor:
    """The keyword arguments of a class or factory; `open` if it takes any (`**kwargs`)."""

    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    open: bool = False
    positional_only: Sequence[str] = ()
    """Required, but out of a config's reach."""
    validate: Callable[[Any], Any] | None = None
    """Checks all arguments together, for a pydantic model that is nothing but its fields."""

    @classmethod
    def of(cls, target: Callable[..., object]) -> Constructor:
        if getattr(getattr(target, "__init__", None), "__name__", "") == "_no_init_or_replace_init":
            return cls()  # a subclass of a Protocol without a constructor pretends to take anything
        signature = _signature(target)
        if signature is None:
            return cls(open=True)
        parameters: dict[str, Parameter] = {}
        positional_only: list[str] = []
        is_open = False
        for each in signature.parameters.values():
            if each.kind is each.VAR_KEYWORD:
                is_open = True
            elif each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
                positional_only.append(each.name)
            elif each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                required = each.default is each.empty
                parameters[each.name] = Parameter(
                    each.name, required, None if required else each.default, _type(each, target), _nested(each, target)
                )
        return cls(parameters, is_open, positional_only, _whole_validation(target))


def _signature(target: Callable[..., object]) -> inspect.Signature | None:
    for eval_str in (True, False):  # a name imported for type checkers only fails the first
        try:
            return inspect.signature(target, eval_str=eval_str)
        except ValueError:
            return None  # a builtin without one
        except Exception:
            continue
    return None


def _type(parameter: inspect.Parameter, target: Callable[..., object]) -> TypeAdapter[Any] | None:
    annotation = _annotation(parameter, target)
    if annotation is parameter.empty:
        if not isinstance(parameter.default, tuple):
            return None
        annotation = tuple  # what is a tuple by default should not be a list because TOML knows no tuples
    if _has_validators(target, parameter.name):
        return None
    if typing.get_origin(annotation) in _ONLY_ITERATED or annotation in _ONLY_ITERATED:
        elements = typing.get_args(annotation)
        annotation = Sequence[elements[0]] if elements else Sequence
    try:
        return TypeAdapter(annotation)
    except (PydanticUserError, NameError, TypeError):
        return None  # arrays, devices, protocols: the constructor itself will judge


def _nested(parameter: inspect.Parameter, target: Callable[..., object]) -> Nested | None:
    """The marker in the annotation, `Annotated[…, Nested()]`."""
    marks = getattr(_annotation(parameter, target), "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Nested)), None)


def _annotation(parameter: inspect.Parameter, target: Callable[..., object]) -> Any:
    """The annotation as a type; `empty` if it is text that means nothing at run time."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    function = inspect.unwrap(getattr(target, "__init__", target) if isinstance(target, type) else target)
    module = sys.modules.get(getattr(target, "__module__", ""))
    names: dict[str, Any] = getattr(function, "__globals__", None) or vars(module or types)
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(holder, globalns=names, include_extras=True)
    except Exception:
        return parameter.empty
    return hints[parameter.name]


def _has_validators(target: Callable[..., object], name: str) -> bool:
    """Whether a pydantic model looks at this field by itself: then the bare annotation is not the whole rule."""
    if not (isinstance(target, type) and issubclass(target, BaseModel)):
        return False
    validators = target.__pydantic_decorators__.field_validators.values()
    return any(name in each.info.fields or "*" in each.info.fields for each in validators)


def _whole_validation(target: Callable[..., object]) -> Callable[[Any], Any] | None:
    if not (isinstance(target, type) and issubclass(target, BaseModel)):
        return None
    if "__init__" in {name for base in target.__mro__ if base not in BaseModel.__mro__ for name in vars(base)}:
        return None
    # Without constructor and post-init, making an instance is validation and nothing else.
    return target.model_validate if target.__pydantic_post_init__ is None else None
