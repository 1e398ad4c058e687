"""`asyncloop hooks`: what can stand under `[[hooks]]`, read from the classes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import asyncloop.hooks as shipped
from asyncloop.cli.terminal import print_json, print_table
from asyncloop.events import Event
from asyncloop.hook import COMMON_KEYS, Hook

__all__ = ["list_hooks"]

_HANDED_OVER = ("dataset", "output_dir")
"""What the run gives to a constructor that names it; not for a config."""


def list_hooks(*, as_json: bool) -> int:
    """Print each shipped hook with its own parameters, then the keys that every hook takes."""
    hooks = [_described(name, found) for name, found in _shipped_hooks()]
    common = [
        {"name": name, "type": _type_name(kind), "default": getattr(Hook, name)} for name, kind in COMMON_KEYS.items()
    ]
    if as_json:
        print_json({"hooks": hooks, "common": common})
        return 0
    rows = [(hook["name"], ", ".join(map(_shown, hook["parameters"])) or "–", hook["doc"]) for hook in hooks]
    print_table(rows, ("hook", "own parameters", "what it does"))
    print()
    print_table(
        [(f"{key['name']}", key["type"], _toml(key["default"])) for key in common], ("every hook", "type", "default")
    )
    return 0


def _shipped_hooks() -> Iterator[tuple[str, type]]:
    """Those with a handler of some event; the package may offer other things, too."""
    handlers = {"after_batches", *(event.method for event in Event.__subclasses__())}
    for name in sorted(shipped.__all__):
        found: object = getattr(shipped, name)
        if isinstance(found, type) and handlers & {*dir(found)}:
            yield name, found


def _described(name: str, hook: type) -> dict[str, Any]:
    doc = (inspect.getdoc(hook) or "").partition("\n")[0]
    return {"name": name, "doc": doc, "parameters": list(_parameters(hook))}


def _parameters(hook: type) -> Iterator[dict[str, Any]]:
    for each in inspect.signature(hook).parameters.values():
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name not in _HANDED_OVER:
            required = each.default is each.empty
            default = None if required else each.default
            yield {"name": each.name, "required": required, "type": _type_name(each.annotation), "default": default}


def _type_name(kind: Any) -> str:
    if kind is inspect.Parameter.empty:
        return ""
    return kind if isinstance(kind, str) else inspect.formatannotation(kind).replace("typing.", "")


def _shown(parameter: dict[str, Any]) -> str:
    if parameter["required"]:
        return parameter["name"]
    return parameter["name"] if parameter["default"] is None else f"{parameter['name']}={_toml(parameter['default'])}"


def _toml(value: Any) -> str:
    """A default as a config would write it."""
    from asyncloop.config import dumps

    if value is None:
        return "–"
    try:
        return dumps({"value": value}).partition("= ")[2].strip()
    except TypeError:
        return str(value)
