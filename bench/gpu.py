"""python -m bench.gpu: TorchModel on a GPU, beside the bare loop and the trainers of PyTorch. Tables, and bench/results/gpu.json.

No part of `python -m bench`. `--device cpu --tiny` runs everything at a size at which times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.about import about
from bench.harness import Result, Scenario, run_scenario
from bench.on_device.card import about_device, chosen
from bench.on_device.copies import copies
from bench.on_device.gpt import gpt
from bench.on_device.images import images
from bench.on_device.readback import readback
from bench.report import console as terminal
from bench.report import findings, print_result, print_summary, progress_in
from bench.systems.registry import missing, quieten

__all__ = ["main"]

ROOT = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """A scenario, and how many seconds its rounds may take together."""

    build: Callable[[Any, bool], Scenario]
    budget_s: float


PARTS = {
    "gpt": Part(gpt, 190),
    "images": Part(images, 90),
    "copies": Part(copies, 40),
    "readback": Part(readback, 30),
}
"""With compiling and warming up the whole is meant to stay under ten minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured. 1: a row is invalid, or with --check a goal's must is missed. 2: there is no such device or scenario."""
    options, console = _arguments().parse_args(arguments), terminal()
    if unknown := [name for name in options.scenarios if name not in PARTS]:
        console.print(f"no scenario {', '.join(unknown)}; there are {', '.join(PARTS)}", style="red")
        return 2
    device = None if missing(("torch",)) else chosen(options.device)
    if device is None:
        console.print(f"PyTorch or its device {options.device!r} is not here; --device cpu --tiny runs it all, small")
        return 2
    quieten()
    if options.tiny:
        console.print("tiny: whether everything runs; the times mean nothing", style="dim")
    results: list[Result] = []
    for name in options.scenarios or PARTS:
        scenario = PARTS[name].build(device, options.tiny)
        results.append(_measured(scenario, PARTS[name].budget_s, options.rounds, options.systems, console))
    folder = options.results or (None if options.tiny or device.type != "cuda" else ROOT / "results")
    if folder is not None:
        console.print(f"wrote {_write(results, folder, device, options.tiny)}", style="dim", highlight=False)
    return print_summary(results, console, checking=options.check)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda", help="default: cuda; cpu shows whether everything runs")
    parser.add_argument("--tiny", action="store_true", help="sizes at which every CPU takes seconds")
    parser.add_argument("--systems", type=_names, default=[], metavar="A,B", help="only these, beside the references")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3, or as many as there is time for")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="default: bench/results if it is a GPU and not tiny, else nowhere"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if the must of a goal is missed")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _measured(scenario: Scenario, budget_s: float, n_rounds: int, families: list[str], console: Console) -> Result:
    with console.status(f"{scenario.name} …") as status:
        result = run_scenario(scenario, n_rounds, families, progress_in(status, console), budget_s)
    print_result(result, console)
    return result


def _write(results: Sequence[Result], folder: Path, device: Any, tiny: bool) -> Path:
    """All scenarios in one file; what a tiny run reads never takes the place of a measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu{'.tiny' if tiny else ''}.json"
    scenarios = [
        {"scenario": result.scenario.name, "title": result.scenario.title, **findings(result, tiny)}
        for result in results
    ]
    path.write_text(json.dumps({**about(), **about_device(device), "scenarios": scenarios}, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
