"""Random kills: a run is killed with SIGKILL at random instants, resumed until it ends, and compared with a whole one.

`python tests/faults/kills.py --runs 1000` is the soak test, some half an hour on two cores; the suite runs a few dozen.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "resume"))
from stopping_project import make_project, outcome

PAUSE_S = 0.06
"""What a batch takes to be made: kills then land in training as often as in start-up, saving and evaluation."""


@dataclass
class Tally:
    """What became of the runs. Anything but `same` breaks the promise."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    """By what the run was doing, as its run.json says."""
    details: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        return sum(count for name, count in self.outcomes.items() if name != "same")

    def __str__(self) -> str:
        n_kills = sum(self.kills.values())
        doing = ", ".join(f"{name} {count}" for name, count in self.kills.most_common())
        return f"{sum(self.outcomes.values())} runs, {n_kills} kills ({doing}): {dict(self.outcomes)}"


def asyncloop_command(*words: str) -> list[str]:
    setting = ["--set", f"dataset.pause_s={PAUSE_S}"] if words[0] == "run" else []
    return [sys.executable, "-m", "asyncloop", *words, "--progress", "none", *setting]


def whole_run(folder: Path) -> tuple[dict[str, Any], float]:
    """How a run ends that nobody kills, and the seconds it takes."""
    began_s = time.perf_counter()
    subprocess.run(
        asyncloop_command("run", "cfg.toml", "--output-dir", "whole"), cwd=folder, check=True, capture_output=True
    )
    return outcome(folder / "whole"), time.perf_counter() - began_s


def killed_run(folder: Path, name: str, seed: int, takes_s: float, kills: int, tally: Tally, whole: Any) -> None:
    """One run, killed `kills` times (fewer where it ends sooner), then resumed to its end."""
    rng = random.Random(seed)
    run = folder / name
    kills_left = kills
    for attempt in range(50):
        fresh = not (run / "run.json").exists()
        if fresh and run.exists():
            shutil.rmtree(run)  # killed before there was a run: nothing to resume
        words = ("run", "cfg.toml", "--output-dir", name) if fresh else ("resume", name, *going_back(run, rng))
        popen = subprocess.Popen(
            asyncloop_command(*words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            said, _ = popen.communicate(timeout=rng.uniform(0.2, takes_s) if kills_left else 120)
        except subprocess.TimeoutExpired:
            tally.kills[state_of(run)] += 1
            popen.kill()
            popen.communicate()
            kills_left -= 1
            continue
        if popen.returncode != 0:
            tally.outcomes["refused"] += 1
            tally.details.append(f"seed {seed}, attempt {attempt}: code {popen.returncode}\n{said.decode()}")
            return
        if '"state": "completed"' in (run / "run.json").read_text():
            break
    found = outcome(run)
    different = [key for key in whole if found[key] != whole[key]]
    tally.outcomes["diverged" if different else "same"] += 1
    if different:
        tally.details.append(f"seed {seed}: {different} of {run}")
    else:
        shutil.rmtree(run)


def going_back(run: Path, rng: random.Random) -> list[str]:
    """Now and then to the checkpoint before the newest one, from which the run has to end in the same way."""
    from asyncloop.checkpoint import Checkpoints

    checkpoints = Checkpoints(run / "checkpoints")
    latest = checkpoints.pointers().get("latest")
    older = [name for name in checkpoints.names() if latest is not None and name < latest]
    return ["--from", older[-1]] if older and rng.random() < 0.25 else []


def state_of(run: Path) -> str:
    from asyncloop.archive import read_run

    if not (run / "run.json").exists():
        return "not begun"
    if any((run / "checkpoints").glob(".tmp-*")):
        return "saving"
    return str(read_run(run).record.get("state"))


def kill(runs: int, *, seed: int, kills: int = 3, jobs: int = 2) -> Tally:
    """`runs` runs with `kills` kills each, at most `jobs` at a time; every fiftieth says to the terminal how it stands."""
    tally = Tally()
    folder = Path(tempfile.mkdtemp(prefix="asyncloop-kills-"))
    make_project(folder)
    whole, takes_s = whole_run(folder)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(killed_run, folder, f"run{n}", seed + n, takes_s, kills, tally, whole) for n in range(runs)
        ]
        for n_ended, each in enumerate(as_completed(waiting), 1):
            each.result()
            if n_ended % 50 == 0:
                print(f"{time.strftime('%H:%M:%S')}  {tally}", file=sys.stderr, flush=True)
    if not tally.broken:
        shutil.rmtree(folder)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    found = kill(asked.runs, seed=asked.seed, kills=asked.kills, jobs=asked.jobs)
    print(found, *found.details, sep="\n")
    sys.exit(1 if found.broken else 0)
