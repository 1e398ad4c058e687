"""`asyncloop ls`, `show` and `compare`: what runs have left behind, read without importing anything of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncloop.archive import SavedRun, find_run, flattened, read_run, runs_below, size_of
from asyncloop.cli.terminal import complain, print_json, print_table
from asyncloop.cli.wording import ago, duration, metric_rows, size
from asyncloop.errors import NothingToResumeError
from asyncloop.hooks.values import scalars, text

__all__ = ["compare_runs", "list_runs", "show_run"]


# --- ls -----------------------------------------------------------------------------------------------------------


def list_runs(root: str, *, long: bool, recursive: bool, as_json: bool) -> int:
    """One line a run, oldest first. Raises NothingToResumeError if there is no such directory."""
    if not Path(root).is_dir():
        raise NothingToResumeError(f"there is no directory {root}; runs are made where you call `asyncloop run`")
    runs = runs_below(Path(root), recursive=recursive)
    if as_json:
        print_json([_entry(run) for run in runs])
        return 0
    if not runs:
        complain(f"no runs in {root}")
        return 0
    headers = ("id", "name", "state", "epochs", "steps", "started", "took", "last metrics")
    extra = ("model", "dataset", "size", "directory") if long else ()
    rows = [(*_row(run), *(_details(run) if long else ())) for run in runs]
    print_table(rows, (*headers, *extra), whole=("id", "directory"))
    return 0


def _entry(run: SavedRun) -> dict[str, Any]:
    names = ("reason", "exit_code", "epochs", "steps", "tags", "times")
    entry = {"id": run.id, "name": run.name, "dir": str(run.path), "state": run.state}
    return entry | {name: run.record.get(name) for name in names} | {"metrics": run.metrics}


def _row(run: SavedRun) -> tuple[str, ...]:
    return (
        run.id, run.name, run.state, str(run.epochs), str(run.steps), ago(run.time("created")),
        duration(run.seconds), _newest(run.metrics),
    )  # fmt: skip


def _details(run: SavedRun) -> tuple[str, ...]:
    config = run.config
    classes = (flattened(config).get(f"{part}.class", "–") for part in ("model", "dataset"))
    return (*map(str, classes), size(size_of(run.path)), str(run.path))


def _newest(metrics: dict[str, dict[str, Any]]) -> str:
    """The last stream's first numbers: what was evaluated last says most."""
    for stream, values in reversed(metrics.items()):
        shown = [f"{name} {text(value)}" for name, value in list(scalars(values).items())[:2]]
        if shown:
            return f"{stream} {' '.join(shown)}"
    return "–"


# --- show ---------------------------------------------------------------------------------------------------------


def show_run(name: str, *, as_json: bool) -> int:
    """Everything about one run that is not in a file of its own. Raises NothingToResumeError."""
    run = read_run(find_run(name))
    if as_json:
        print_json(
            {**run.record, **_entry(run), "config": run.config, "checkpoints": _checkpoints(run), "files": _files(run)}
        )
        return 0
    _print_facts(run)
    for title, rows in (
        ("metrics", metric_rows(run.metrics)),
        ("config", [(key, _shown(value)) for key, value in flattened(run.config).items()]),
        (
            "evaluations",
            [(each.id, *row) for each in runs_below(run.path / "eval") for row in metric_rows(each.metrics)],
        ),
        ("checkpoints", [(c["name"], size(c["bytes"]), ", ".join(c["pointers"])) for c in _checkpoints(run)]),
        ("files", [(f["name"], size(f["bytes"])) for f in _files(run)]),
    ):
        if rows:
            print(f"\n{title}")
            print_table([("", *row) for row in rows])
    return 0


def _print_facts(run: SavedRun) -> None:
    record = run.record
    host, git = run.table("host"), run.table("git")
    versions = (f"{name} {version}" for name, version in run.table("versions").items())
    reason = f": {record['reason']}" if record.get("reason") else ""
    changed = " with changes" if git.get("diff") else ""
    rows = [
        ("run", f"{run.name} {run.id}"),
        ("directory", str(run.path)),
        ("state", f"{run.state}{reason}"),
        ("trained", f"{run.epochs} epochs, {run.steps} steps"),
        ("started", f"{ago(run.time('created'))}, took {duration(run.seconds)}"),
        ("host", f"{host.get('name', '–')}, {host.get('cpus', '?')} cores, process {host.get('pid', '?')}"),
        ("versions", ", ".join(versions)),
        ("git", f"{git.get('revision', '–')[:12]}{changed}" if git else ""),
        ("tags", ", ".join(record.get("tags") or ())),
        ("weights of", str(run.table("init_from").get("checkpoint", ""))),
        ("evaluates", _evaluated(run.table("evaluation"))),
        ("command", " ".join(record.get("command") or ())),
    ]
    print_table([row for row in rows if row[1]])


def _evaluated(evaluation: Mapping[str, Any]) -> str:
    return f"{', '.join(evaluation['streams'])} with {evaluation.get('checkpoint', '–')}" if evaluation else ""


def _checkpoints(run: SavedRun) -> list[dict[str, Any]]:
    return [
        {"name": saved.path.name, "step": saved.step, "bytes": saved.n_bytes, "pointers": list(saved.names)}
        for saved in run.checkpoints
    ]


def _files(run: SavedRun) -> list[dict[str, Any]]:
    own = [entry for entry in sorted(run.path.iterdir()) if entry.name not in ("lock", "checkpoints", "eval")]
    return [{"name": f"{entry.name}{'/' if entry.is_dir() else ''}", "bytes": size_of(entry)} for entry in own]


# --- compare ------------------------------------------------------------------------------------------------------


def compare_runs(names: Sequence[str], *, as_json: bool) -> int:
    """What differs between the runs' configs, and their metrics side by side. Raises NothingToResumeError."""
    runs = [read_run(find_run(name)) for name in names]
    config = dict(_differences([flattened(run.config) for run in runs]))
    metrics = _side_by_side([_by_path(run.metrics) for run in runs])
    if as_json:
        print_json({"runs": [_entry(run) for run in runs], "config": config, "metrics": metrics})
        return 0
    facts = {
        "state": [run.state for run in runs],
        "epochs": [str(run.epochs) for run in runs],
        "steps": [str(run.steps) for run in runs],
        "took": [duration(run.seconds) for run in runs],
        "git": [str(run.table("git").get("revision", "–"))[:12] for run in runs],
    }
    print_table([(name, *values) for name, values in facts.items()], ("", *(run.id for run in runs)))
    print("\nconfig" if config else "\nthe configs are the same")
    print_table([("", key, *map(_shown, values)) for key, values in config.items()])
    if metrics:
        print("\nmetrics")
        print_table([("", path, *map(_number, values)) for path, values in metrics.items()])
    return 0


def _differences(configs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    for key, values in _side_by_side(configs).items():
        if any(value != values[0] for value in values[1:]):
            yield key, values


def _side_by_side(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [table.get(key) for table in tables] for key in keys}


def _by_path(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{stream} {name}": value for stream, values in metrics.items() for name, value in scalars(values).items()}


def _shown(value: Any) -> str:
    """As a config would write it, nearly."""
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Any) -> str:
    return "–" if value is None else text(value)
