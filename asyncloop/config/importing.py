"""Importing what a config names, `"module:Name"` or a bare name of asyncloop's, with the failures told apart."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from types import ModuleType
from typing import Literal, cast

from asyncloop.config.problem import InvalidConfig, Problem, suggestion

__all__ = ["Kind", "import_object", "make_importable", "shipped"]

Kind = Literal["dataset", "model", "hook"]

_SHIPPED: dict[Kind, str] = {
    "dataset": "asyncloop.data",
    "model": "asyncloop.models",
    "hook": "asyncloop.hooks",
}


def import_object(path: str, *, kind: Kind | None = None) -> object:
    """The object that `"package.module:Name"` names; for a `kind` also a bare name of what asyncloop ships.

    Raises InvalidConfig that says whether the path is malformed, the module is not there, its own import failed
    (with the cause), or the name is not in it. Imports the module, and so runs its top level; nothing else.
    """
    module_name, colon, name = path.partition(":")
    if not colon and kind is not None and path.isidentifier():
        return _shipped(path, kind)
    parts = [*module_name.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise InvalidConfig(Problem(f"`{path}` is no import path", hint=_spelling(path, kind)))
    found: object = _module(module_name)
    for depth, part in enumerate(name.split(".")):
        owner = ":".join([module_name, ".".join(name.split(".")[:depth])]) if depth else module_name
        found = _attribute(found, part, owner)
    return found


def shipped(kind: Kind) -> dict[str, str]:
    """What asyncloop ships of a kind: bare name → `"module:Name"`."""
    try:
        home = _module(_SHIPPED[kind])
    except InvalidConfig:
        return {}
    return {name: f"{_SHIPPED[kind]}:{name}" for name in cast(Sequence[str], getattr(home, "__all__", ()))}


def make_importable(*folders: FilePath) -> None:
    """Put the folders in front of `sys.path`, the first foremost."""
    for folder in reversed(folders):
        entry = os.path.abspath(folder)
        if sys.path[:1] != [entry]:
            sys.path[:] = [entry, *(other for other in sys.path if other != entry)]
    importlib.invalidate_caches()


def _spelling(path: str, kind: Kind | None) -> str:
    module_name, dot, name = path.rpartition(".")
    if dot and ":" not in path and all(part.isidentifier() for part in path.split(".")):
        return f'did you mean "{module_name}:{name}"?'
    bare = f", or the bare name of a {kind} that asyncloop ships" if kind else ""
    return f'write "package.module:Name"{bare}'


def _shipped(name: str, kind: Kind) -> object:
    known = shipped(kind)
    if name not in known:
        hint = suggestion(name, known) or (f"there are: {', '.join(sorted(known))}" if known else "")
        separator = "" if not hint else " " if hint.endswith("?") else "; "
        hint += f'{separator}one of your own is written "package.module:{name}"'
        raise InvalidConfig(Problem(f"asyncloop ships no {kind} `{name}`", hint=hint))
    return _attribute(_module(_SHIPPED[kind]), name, _SHIPPED[kind])


def _module(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed_inside(name, error) from error
        raise _missing_module(name, error) from None
    except (Exception, SystemExit) as error:
        raise _failed_inside(name, error) from error
    if name not in _SHIPPED.values():
        _refuse_another_ones(name.partition(".")[0])
    return module


def _missing_module(name: str, error: ModuleNotFoundError) -> InvalidConfig:
    missing = str(error.name)
    parent, _, leaf = missing.rpartition(".")
    if not parent:
        siblings = {module.name for module in pkgutil.iter_modules(sys.path[:2])}
        where = "neither beside the config, nor in the current directory, nor installed"
    elif (path := getattr(sys.modules.get(parent), "__path__", None)) is not None:
        siblings = {module.name for module in pkgutil.iter_modules(path)}
        where = f"`{parent}` is a package without it"
    else:
        siblings = set[str]()
        where = f"`{parent}` is a module, not a package"
    return InvalidConfig(Problem(f"there is no module `{missing}`: {where}", hint=suggestion(leaf, siblings)))


def _failed_inside(name: str, error: BaseException) -> InvalidConfig:
    """The module is there, but importing it raised: say what, and where in the user's code."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    own = [frame for frame in frames if _is_users(frame.filename)] or frames
    place = f" at {_relative(own[-1].filename)}:{own[-1].lineno}" if own else ""
    text = str(error).partition("\n")[0]
    if isinstance(error, SyntaxError) and error.filename:
        place, text = f" at {_relative(error.filename)}:{error.lineno}", error.msg
    message = f"module `{name}` cannot be imported: {type(error).__name__}{f': {text}' if text else ''}{place}"
    return InvalidConfig(Problem(message, cause=error))


def _is_users(file: str) -> bool:
    """Below the config's folder or the current directory, and not installed there."""
    path = FilePath(file)
    return any(path.is_relative_to(folder) for folder in sys.path[:2]) and "site-packages" not in path.parts


def _relative(file: str) -> str:
    path = FilePath(file)
    return str(path.relative_to(FilePath.cwd())) if path.is_relative_to(FilePath.cwd()) else file


def _attribute(owner: object, name: str, owner_name: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [each for each in dir(owner) if not each.startswith("_")]
        message = f"there is no `{name}` in `{owner_name}`"
        raise InvalidConfig(Problem(message, hint=suggestion(name, known))) from None
    except Exception as error:  # a module may import its names lazily
        raise _failed_inside(f"{owner_name}.{name}", error) from error


def _refuse_another_ones(name: str) -> None:
    """A module of the same name that was imported from elsewhere must not stand in for the one beside the config."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = importlib.machinery.PathFinder.find_spec(name, sys.path[:2])
    if loaded is None or spec is None or spec.origin is None or not spec.has_location:
        return
    if os.path.realpath(loaded) != os.path.realpath(spec.origin) and not _same_bytes(loaded, spec.origin):
        message = f"module `{name}` was already imported from {loaded}, but the config means {spec.origin}"
        raise InvalidConfig(Problem(message, hint="rename one, or use a process for each"))


def _same_bytes(*files: str) -> bool:
    contents: Iterator[bytes] = (FilePath(file).read_bytes() for file in files)
    try:
        return len(set(contents)) == 1
    except OSError:
        return False
