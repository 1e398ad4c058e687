"""`asyncloop check`: everything but training, and what was found on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import anyio

from asyncloop.cli.logs import configure_logging
from asyncloop.cli.terminal import complain, print_json, print_table, strong
from asyncloop.cli.trouble import code_of, tell
from asyncloop.config import InvalidConfig
from asyncloop.errors import ConfigError
from asyncloop.events import Event
from asyncloop.preflight import CheckReport
from asyncloop.runs import check, uvloop_is_there

__all__ = ["check_config"]

_WRONG = 2
_ALWAYS = ("TrainingTrace", "Recorder")
"""Hooks that a run has though no config names them."""


def check_config(source: str, overrides: Sequence[str], *, as_json: bool) -> int:
    """Check a config and what it names; 0 if a run can begin."""
    configure_logging()

    async def main() -> CheckReport:
        return await check(source, set=overrides)

    try:
        report = anyio.run(main, backend_options={"use_uvloop": uvloop_is_there()})
    except (Exception, SystemExit) as error:
        code = tell(error)
        if as_json:
            print_json({"ok": False, "exit_code": code_of(error), "problems": list(_problems(error))})
        return code
    code = _WRONG if report.problems else 0
    if as_json:
        print_json({"ok": not report.problems, "exit_code": code, **_as_data(report)})
        return code
    _print_report(report)
    for problem in report.problems:
        complain(f"{strong('error')}: {problem}")
    if not report.problems:
        print(f"{source} is ready to run")
    return code


def _problems(error: BaseException) -> Iterable[dict[str, Any]]:
    if isinstance(error, InvalidConfig):
        for each in error.details:
            place = {"key": each.key, "file": each.file, "line": each.line, "column": each.column}
            yield {"message": each.message, **place, "hint": each.hint}
    else:
        texts = error.problems if isinstance(error, ConfigError) else [f"{type(error).__name__}: {error}"]
        yield from ({"message": text} for text in texts)


def _as_data(report: CheckReport) -> dict[str, Any]:
    def described(values: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        return {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in values.items()}

    return {
        "sources": {stream: described(sources) for stream, sources in report.sources.items()},
        "outputs": described(report.outputs),
        "n_parameters": report.n_parameters,
        "hooks": [{"name": name, "kind": kind, "every": every} for name, kind, every in report.hooks],
        "problems": [{"message": problem} for problem in report.problems],
    }


def _print_report(report: CheckReport) -> None:
    rows: list[tuple[str, str, str, str]] = []
    for stream, sources in report.sources.items():
        rows += [("stream", stream, name, _shown(*found)) for name, found in sources.items()]
    rows += [("model", "outputs", name, _shown(*found)) for name, found in report.outputs.items()]
    if report.n_parameters is not None:
        rows.append(("model", "parameters", "", f"{report.n_parameters:,}"))
    rows += [("hook", name, kind, when) for name, kind, when in _hooks(report)]
    print_table(_without_repetitions(rows))


def _hooks(report: CheckReport) -> Iterable[tuple[str, str, str]]:
    """Name, kind and when it is called; of a hook without a cadence, the events that it handles."""
    classes = {getattr(each.cls, "__name__", ""): each.cls for each in report.config.hooks}
    events = ["after_batches", *(event.method for event in Event.__subclasses__() if event.method)]
    for name, kind, every in report.hooks:
        found = classes.get(name)
        if found is None:
            yield name, kind, "in every run" if name in _ALWAYS else every
        else:
            handled = ", ".join(event for event in events if hasattr(found, event))
            yield name, kind, handled if every == "every event" else every


def _shown(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {' × '.join(map(str, shape)) or 'scalar'}"


def _without_repetitions(rows: Iterable[tuple[str, str, str, str]]) -> Iterable[tuple[str, ...]]:
    """What a row has in common with the one above it, from the left, is left out."""
    above: tuple[str, ...] = ("",) * 4
    for row in rows:
        same = next((at for at in range(4) if row[at] != above[at]), 4)
        yield (*("",) * min(same, 2), *row[min(same, 2) :])
        above = row
