# pyright: basic, reportMissingImports=false
"""Charts of what lies in `bench/results`, for the README: overhead, overlap, digits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw_all"]

OURS, THEIRS = "#0b6e4f", "#b8b8b8"

OVERHEAD = (
    "asyncloop uvloop",
    "asyncloop asyncio",
    "ignite",
    "ignite + DataLoader(0)",
    "accelerate + DataLoader(0)",
    "DataLoader(0)",
    "DataLoader(2)",
    "Lightning + DataLoader(0)",
    "grain, no threads",
    "grain, threads",
    "torchdata nodes",
    "SPDL",
    "naive uvloop",
    "thread + queue",
    "thread pool",
)

OVERLAP = (
    "asyncloop uvloop",
    "SPDL",
    "thread pool",
    "grain, threads",
    "naive uvloop",
    "DataLoader(16)",
    "Lightning + DataLoader(16)",
    "plain loop",
)
OVERLAP_SCENARIOS = ("io", "io-uneven", "hooks", "hooks-wide", "triple", "gil", "checkpoint")


def draw_all(results: Path, folder: Path) -> list[Path]:
    """Draw what there are full results for; the files. Without matplotlib nothing is drawn, and that is said."""
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError:
        print("no charts: matplotlib is not installed")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json")) if "." not in path.stem}
    drawn: list[Path] = []
    if "noop-hooks" in found:
        title = "what a trainer adds to a batch, five hooks (µs, log scale; less is better)"
        drawn.append(_bars(found["noop-hooks"], OVERHEAD, title, folder / "bench-overhead.png", log=True))
    if "digits-mlp" in found:
        title = "an MLP on handwritten digits with three metric hooks (× the bare loop; less is better)"
        drawn.append(_bars(found["digits-mlp"], OVERHEAD, title, folder / "bench-digits.png", log=False))
    if overlaps := {name: found[name] for name in OVERLAP_SCENARIOS if name in found}:
        drawn.append(_groups(overlaps, folder / "bench-overlap.png"))
    return drawn


def _first_metric(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Row → its spread of the scenario's first metric."""
    metric = result["metrics"][0]["name"]
    return {row["name"]: row["metrics"][metric] for row in result["rows"] if metric in row["metrics"]}


def _bars(result: Mapping[str, Any], names: Sequence[str], title: str, path: Path, log: bool) -> Path:
    import matplotlib.pyplot as plt

    spreads = _first_metric(result)
    shown = sorted((name for name in names if name in spreads), key=lambda name: -spreads[name]["median"])
    medians = [spreads[name]["median"] for name in shown]
    errors = [
        [max(spreads[name]["median"] - min(spreads[name]["values"]), 0) for name in shown],
        [max(spreads[name]["values"]) - spreads[name]["median"] for name in shown],
    ]
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(shown) + 1), layout="constrained")
    colours = [OURS if name.startswith("asyncloop") else THEIRS for name in shown]
    bars = axes.barh(shown, medians, color=colours, xerr=errors, error_kw={"elinewidth": 0.8, "ecolor": "#555555"})
    axes.bar_label(bars, fmt="%.3g", padding=6, fontsize=8)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(10 ** np.floor(np.log10(min(medians))), max(medians) * 2)
    _finish(figure, axes, title, path)
    return path


def _groups(results: Mapping[str, Any], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    shades = plt.get_cmap("Greys")
    width = 0.8 / len(OVERLAP)
    for k, name in enumerate(OVERLAP):
        places, heights = [], []
        for at, result in enumerate(results.values()):
            spread = _first_metric(result).get(name)
            if spread is not None:
                places.append(at + (k - (len(OVERLAP) - 1) / 2) * width)
                heights.append(spread["median"])
        axes.bar(places, heights, width * 0.92, label=name, color=OURS if k == 0 else shades(0.25 + 0.09 * k))
    axes.axhline(100, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(results)), [*results])
    axes.set_ylim(0, 105)
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    _finish(figure, axes, "share of the ideal, the slowest stage alone (%; more is better)", path)
    return path


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
