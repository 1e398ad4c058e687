"""Reports: a table with verdicts for the terminal, JSON for `bench/results`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from bench.about import about
from bench.harness import Measured, Result, Spread, Verdict

__all__ = [
    "as_json",
    "console",
    "findings",
    "missed_in",
    "print_result",
    "print_summary",
    "progress_in",
    "write_json",
]


def console() -> Console:
    """A terminal as wide as it is; a pipe as wide as the tables want."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=140)


def progress_in(status: Status, console: Console) -> Callable[[str], None]:
    """What `run_scenario` tells its progress to: whole lines stay, others are shown until the next."""

    def progress(line: str) -> None:
        if line.endswith("\n"):
            console.print(line.rstrip(), style="dim", highlight=False)
        else:
            status.update(line)

    return progress


def print_result(result: Result, console: Console) -> None:
    """One table: rows sorted by the first metric, references on top; then verdicts, what was left out, what was wrong."""
    scenario = result.scenario
    console.print(f"[bold]{scenario.name}[/bold]: {scenario.title}", highlight=False)
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for number_of, metric in enumerate(scenario.metrics):
        table.add_column(f"{metric.name}\n{metric.unit}", justify="right")
        if number_of == 0:
            table.add_column("least … most", justify="left", style="dim", no_wrap=True)
    for measured in _sorted(result):
        style = "dim" if measured.row.reference else "bold" if measured.row.family == "asyncloop" else ""
        table.add_row(measured.row.name, *_cells(measured, result), style=style)
    if result.measured:
        console.print(table)
    for remark in scenario.remarks:
        console.print(remark, style="dim", highlight=False)
    for verdict in result.verdicts:
        console.print(_sentence(verdict), highlight=False)
    for own, names in result.ahead.items():
        console.print(f"ahead of {own}: {', '.join(names)}", highlight=False)
    for why in dict.fromkeys(result.left_out.values()):
        names = [name for name, its_reason in result.left_out.items() if its_reason == why]
        console.print(f"left out ({why}): {', '.join(names)}", style="dim", highlight=False)
    for measured in result.invalid:
        console.print(
            f"INVALID: {measured.row.name}: {measured.wrong}", style="bold red", highlight=False, markup=False
        )
    console.print(f"{result.n_rounds} rounds, {result.seconds:.0f} s\n", style="dim", highlight=False)


def print_summary(results: Sequence[Result], console: Console, *, checking: bool) -> int:
    """Goals over all scenarios, and the exit code: 1 if a row is invalid or, when `checking`, a must is not reached."""
    verdicts = [verdict for result in results for verdict in result.verdicts]
    judged = [verdict for verdict in verdicts if verdict.must is not None]
    reached = sum(verdict.must is True for verdict in judged)
    moonshots = sum(verdict.moonshot is True for verdict in verdicts)
    n_moonshots = sum(verdict.moonshot is not None for verdict in verdicts)
    console.print(f"goals: {reached} of {len(judged)} musts reached, {moonshots} of {n_moonshots} moonshots")
    for result in results:
        for verdict in result.missed:
            console.print(f"missed in {result.scenario.name}: {verdict.goal.name}", highlight=False)
        for measured in result.invalid:
            console.print(f"invalid in {result.scenario.name}: {measured.row.name}", style="red", highlight=False)
    unjudged = [verdict for verdict in verdicts if verdict.spread is None and verdict.goal.must is not None]
    if unjudged:
        console.print(f"not judged, because a row is missing: {len(unjudged)} musts")
    missed = bool(unjudged) or any(result.missed for result in results)
    return 1 if any(result.invalid for result in results) or (checking and missed) else 0


def _sorted(result: Result) -> list[Measured]:
    metric, sign = result.scenario.metrics[0], 1 if result.scenario.better == "less" else -1

    def key(measured: Measured) -> tuple[bool, bool, float]:
        spread = measured.spreads.get(metric.name)
        none = spread is None or measured.wrong is not None
        return (not measured.row.reference, none, 0.0 if spread is None else sign * spread.median)

    return sorted(result.measured, key=key)


def _cells(measured: Measured, result: Result) -> list[str]:
    """The first metric with its spread, then the medians of the others."""
    if measured.wrong is not None:
        return ["[red]invalid[/red]"]
    spreads = [measured.spreads.get(metric.name) for metric in result.scenario.metrics]
    cells = ["" if spread is None else number(spread.median) for spread in spreads]
    return [cells[0], "" if spreads[0] is None else f"({_range(spreads[0])})", *cells[1:]]


def _range(spread: Spread) -> str:
    return f"{number(spread.least)} … {number(spread.most)}"


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
    return f"{value:,.{digits}f}"


def _sentence(verdict: Verdict) -> str:
    goal, sign = verdict.goal, "≤" if verdict.goal.better == "less" else "≥"
    if verdict.spread is None:
        return f"[dim]–[/dim] {goal.name}: not judged, a row is missing"
    mark = "[green]✓[/green]" if verdict.must is not False else "[red]✗[/red]"
    found = f"{mark} {goal.name}: {number(verdict.spread.median)} {goal.unit} ({_range(verdict.spread)})"
    if goal.must is not None:
        found += f"; must {sign} {number(goal.must)} {'reached' if verdict.must else '[red]missed[/red]'}"
    if goal.moonshot is not None:
        found += (
            f"; moonshot {sign} {number(goal.moonshot)} {'[green]reached[/green]' if verdict.moonshot else 'missed'}"
        )
    return found


def as_json(result: Result, quick: bool) -> dict[str, Any]:
    """All values of all rounds, with versions, hardware and date."""
    return {"scenario": result.scenario.name, "title": result.scenario.title, **about(), **findings(result, quick)}


def findings(result: Result, quick: bool) -> dict[str, Any]:
    """All values of all rounds."""
    scenario = result.scenario
    return {
        "rounds": result.n_rounds,
        "quick": quick,
        "seconds": round(result.seconds, 1),
        "better": scenario.better,
        "metrics": [{"name": metric.name, "unit": metric.unit} for metric in scenario.metrics],
        "remarks": list(scenario.remarks),
        "rows": [_row_json(measured) for measured in result.measured],
        "goals": [_goal_json(verdict) for verdict in result.verdicts],
        "ahead_of_asyncloop": result.ahead,
        "left_out": dict(result.left_out),
    }


def _row_json(measured: Measured) -> dict[str, Any]:
    row = measured.row
    return {
        "name": row.name,
        "family": row.family,
        "reference": row.reference,
        **row.notes,
        "invalid": measured.wrong,
        "metrics": {name: _spread_json(spread) for name, spread in measured.spreads.items()},
        "readings": [{name: float(f"{value:.6g}") for name, value in one.items()} for one in measured.readings],
    }


def _goal_json(verdict: Verdict) -> dict[str, Any]:
    goal = verdict.goal
    return {
        "name": goal.name,
        "unit": goal.unit,
        "better": goal.better,
        "must": goal.must,
        "moonshot": goal.moonshot,
        "found": None if verdict.spread is None else _spread_json(verdict.spread),
        "must_reached": verdict.must,
        "moonshot_reached": verdict.moonshot,
    }


def _spread_json(spread: Spread) -> dict[str, Any]:
    return {"median": float(f"{spread.median:.6g}"), "values": [float(f"{value:.6g}") for value in spread.values]}


def missed_in(folder: Path) -> str:
    """The musts that results in a folder miss, as a table in Markdown."""
    lines = ["| scenario | goal | found | must | rounds, day, processor |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if path.stem.partition(".")[2] or "goals" not in found:
            continue
        for goal in found["goals"]:
            if goal["must_reached"] is False:
                sign = "≤" if goal["better"] == "less" else "≥"
                median, must = number(goal["found"]["median"]), number(goal["must"])
                when = f"{found['rounds']}, {found['date'][:10]}, {found['cpu']}"
                lines.append(
                    f"| `{found['scenario']}` | {goal['name']} | {median} {goal['unit']} | {sign} {must} | {when} |"
                )
    return "\n".join(lines) + "\n"


def write_json(result: Result, folder: Path, quick: bool, is_part: bool = False) -> Path:
    """`<folder>/<scenario>.json`; of a quick run `<scenario>.quick.json`, of one with fewer rounds or systems than
    usual (`is_part`) `<scenario>.part.json`, so that neither ever takes a full one's place."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.scenario.name}{'.quick' if quick else '.part' if is_part else ''}.json"
    path.write_text(json.dumps(as_json(result, quick), indent=1) + "\n")
    return path
