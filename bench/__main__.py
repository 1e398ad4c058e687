"""python -m bench [SCENARIO …]: measure, print a table for each scenario, write JSON and charts."""

from __future__ import annotations

import os

if __name__ == "__main__":  # a step computes on one thread, in every system; this is read when numpy is imported
    for _library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.harness import Plan, Result, run_scenario
from bench.report import console as terminal
from bench.report import missed_in, print_result, print_summary, progress_in, write_json
from bench.scenarios import QUICK, scenarios
from bench.systems.registry import all_systems, family_names, missing, quieten

ROOT = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured. 1: a row is invalid, or with --check a goal's must is not reached. 2: wrong arguments. 130: Ctrl-C."""
    options = _arguments().parse_args(arguments)
    known, console = scenarios(), terminal()
    if unknown := [name for name in options.scenarios if name not in known]:
        console.print(f"no scenario {', '.join(unknown)}; there are {', '.join(known)}", style="red")
        return 2
    if unknown := [name for name in options.systems if name not in family_names()]:
        console.print(f"no system {', '.join(unknown)}; there are {', '.join(family_names())}", style="red")
        return 2
    if options.missed:
        print(missed_in(options.results), end="")
        return 0
    if options.list:
        _list(console)
        return 0
    quieten()
    plan = Plan(options.quick, 0.25 if options.quick else 1.0)
    names = options.scenarios or (QUICK if options.quick else list(known))
    results: list[Result] = []
    try:
        for name in names:
            results.append(_measured(name, plan, options.rounds, options.systems, options.results, console))
    except KeyboardInterrupt:
        console.print(f"interrupted in {names[len(results)]}; what was measured before is written", style="red")
        print_summary(results, console, checking=False)
        return 130
    if options.charts:
        from bench.charts import draw_all

        for path in draw_all(options.results, options.charts):
            console.print(f"drew {path}", style="dim")
    return print_summary(results, console, checking=options.check)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all, or a selection with --quick")
    parser.add_argument("--quick", action="store_true", help="two minutes: few batches, three rounds, quick starters")
    parser.add_argument("--systems", type=_names, default=[], metavar="A,B", help="only these, beside the references")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="default: 5, with --quick 3; soak: 1")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="where the JSON goes")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="draw charts of all results there are into DIR")
    parser.add_argument("--list", action="store_true", help="what there is, and what is not installed")
    parser.add_argument(
        "--missed", action="store_true", help="the musts that the results there are miss; measures nothing"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 unless the must of each goal is reached")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _positive(text: str) -> int:
    if (n := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"a number of rounds is at least 1, not {n}")
    return n


def _list(console: Console) -> None:
    for name, build in scenarios().items():
        console.print(f"{name:14}{' quick ' if name in QUICK else '       '}{build.__doc__}", highlight=False)
    console.print()
    for name, system in all_systems().items():
        console.print(f"{system.family:12}{name:40}{missing(system.needs) or ''}", highlight=False)


def _measured(
    name: str, plan: Plan, n_rounds: int | None, families: list[str], folder: Path, console: Console
) -> Result:
    scenario = scenarios()[name](plan)
    usual = scenario.n_rounds or (3 if plan.quick else 5)
    n_rounds = usual if n_rounds is None else n_rounds
    with console.status(f"{name} …") as status:
        result = run_scenario(scenario, n_rounds, families, progress_in(status, console))
    print_result(result, console)
    write_json(result, folder, plan.quick, is_part=bool(families) or n_rounds < usual)
    return result


if __name__ == "__main__":
    sys.exit(main())
