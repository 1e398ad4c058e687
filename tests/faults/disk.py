"""A disk that fails: the n-th call to the file system below a run's directory says no, n = 1, 2, 3, … until none does.

`python tests/faults/disk.py --all` fails every call with every error, for a moment and for good, in a run that begins and
in one that goes on; the suite runs a share of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anyio

sys.path.insert(0, str(Path(__file__).parents[1] / "resume"))
from failing_disk import CHANGES, ERRORS, Disk
from stopping_project import digest, make_project, outcome

import asyncloop
from asyncloop import blame
from asyncloop.blame import code_of, is_others
from asyncloop.checkpoint import Checkpoints
from asyncloop.cli import trouble
from asyncloop.cli.trouble import tell
from asyncloop.errors import alone
from asyncloop.storage import remedy_for

__all__ = ["Disk", "Sweep", "sweeping"]

SILENT: Mapping[str, str] = {
    r"mkdir again .*": "it is there, and who cannot write in it is told then",
    r"lstat (\.\.(/\.\.)?|\.|resolved\.toml)": "is a part of a path a link? asked for names to compare: of the files that a "
    "config extends, so that they go in no circle, and of the run among the code to copy, which its run.json tells, too",
    r"lstat code/.+": "has a module been copied already? where nobody can say, it is copied once more",
    r"stat resolved\.toml": "the same; that it is there was seen before, and that it can be read is seen afterwards",
    r"(stat|listdir|open) code": "are there modules? asked by Python's import, for which the config's folder comes first",
}
"""Looks that may fail without a word, as patterns of the call and its path below the run: what is asked, and why nothing
depends on the answer."""

OWN_PARTS: Mapping[str, frozenset[str]] = {
    "the checkpoint of step 0": frozenset(["saved"]),
    "the state of hook Recorder": frozenset(["metrics", "events", "saved"]),
    "the state of hook WriteJSONL": frozenset(["batches.jsonl", "hook WriteJSONL"]),
    "the state of hook WriteJSONL#2": frozenset(["sparse.jsonl", "hook WriteJSONL#2"]),
    "the state of hook TrainingTrace": frozenset(["trace.json", "hook TrainingTrace"]),
    "the state of hook WriteCSV": frozenset(["training.csv", "hook WriteCSV"]),
}
"""What a checkpoint says that it lacks → the parts of an outcome that it explains; all others have to be exact."""

LIMIT_S = 60.0
"""Longer no run of these takes, on whatever disk."""

# --- one run on such a disk ---------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the runs. `broken` says how a promise was broken."""

    outcomes: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    """By kind of call."""
    broken: list[str] = field(default_factory=list)
    raw: Counter[str] = field(default_factory=Counter)
    """Calls whose OSError came out as it was; the command line tells such ones in words."""
    gaps: Counter[str] = field(default_factory=Counter)
    """What runs lack that resumed with a gap."""
    slowest_s: float = 0.0

    def __str__(self) -> str:
        struck = ", ".join(f"{kind} {n}" for kind, n in self.struck.most_common())
        return (
            f"{sum(self.outcomes.values())} faults {dict(self.outcomes)}, {len(self.broken)} broken; "
            f"gaps {dict(self.gaps)}; the slowest {self.slowest_s:.1f} s; struck: {struck}"
        )

    def __iadd__(self, other: Tally) -> Tally:
        self.outcomes += other.outcomes
        self.struck += other.struck
        self.broken += other.broken
        self.raw += other.raw
        self.gaps += other.gaps
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        return self


class Sweep:
    """A project in a folder, a whole run of it, and runs of it on disks that fail."""

    def __init__(self, folder: Path, stop_at: int = 5, **setting: Any) -> None:
        self.folder, self.setting = folder, {"engine.epochs": 1, **setting}
        make_project(folder)
        self.whole = parts_of(self.train(source=self.config, set=self.setting, output_dir=folder / "whole"))
        os.environ["STOP_AT"] = str(stop_at)
        self.stopped = self.train(source=self.config, set=self.setting, output_dir=folder / "stopped")
        del os.environ["STOP_AT"]
        self.root = folder / "out"
        self.run = self.root / "runs" / "run"

    @property
    def config(self) -> Path:
        return self.folder / "cfg.toml"

    def train(self, **options: Any) -> Path:
        async def main() -> Path:
            async with asyncloop.open_run(**options) as live:
                await live
            assert live.dir is not None
            return live.dir

        return anyio.run(main)

    def sweep(
        self, error: str, *, for_good: bool, resumes: bool, every: int = 1, first: int = 1, only: str = ".*"
    ) -> Tally:
        """Fail the first call, then each `every`-th, until a run gets through untouched."""
        tally = Tally()
        n = first
        while self.one(tally, Disk(self.root, error, n, for_good=for_good, only=only), resumes):
            n += every
        return tally

    def one(self, tally: Tally, disk: Disk, resumes: bool) -> bool:
        """One run on a failing disk, and on a whole one afterwards; False if nothing failed."""
        shutil.rmtree(self.root, ignore_errors=True)
        options: dict[str, Any] = {"source": self.config, "set": self.setting, "output_dir": self.run}
        if resumes:
            shutil.copytree(self.stopped, self.run)
            options = {"resume": self.run}
        error: Exception | None = None
        began_s = time.monotonic()
        with _noticed() as seen:
            with disk:
                try:
                    self.train(**options)
                except Exception as caught:
                    error = caught
            took_s = time.monotonic() - began_s
            if not disk.failed_at:
                return False
            wrong = [*seen.problems, *self._wrong_with(error, disk)]
        if error is None:
            wrong += self._untold(disk, seen)
            wrong += ["a resume began again"] if resumes and seen.began_again else []
        wrong += [f"it took {took_s:.0f} s"] if took_s > LIMIT_S else []
        tally.slowest_s = max(tally.slowest_s, took_s)
        tally.struck[disk.failed_at.rpartition(" ")[0]] += 1
        if error is not None and not isinstance(alone(error), asyncloop.StorageError):
            tally.raw[disk.failed_at.replace(str(self.run), "")] += 1
        try:
            ending, lacks = ("went on", "") if error is None else self._repaired(wrong)
            tally.gaps.update([lacks] if lacks else [])
            wrong += self._different(lacks)
            wrong += _unreadable(self.run)
        except Exception as failure:
            ending = "not repaired"
            wrong.append("after the repair: " + "".join(traceback.format_exception_only(failure)).strip())
        tally.outcomes["broken" if wrong else ending] += 1
        if wrong:
            which = f"{disk.error} {'for good' if disk.for_good else 'once'} at {disk.n}: {disk.failed_at}"
            what = "" if error is None else f"\n   {type(error).__name__}: {str(error)[:300]}"
            tally.broken.append(f"{'resume' if resumes else 'run'}, {which}\n   {'; '.join(wrong)}{what}")
        return True

    def _repaired(self, wrong: list[str]) -> tuple[str, str]:
        """Go on where a run has failed: how it ended, and what the checkpoint lacked that it went on from."""
        if not (self.run / "run.json").exists():
            shutil.rmtree(self.root, ignore_errors=True)
            self.train(source=self.config, set=self.setting, output_dir=self.run)
            return "began anew", ""
        whole = self._whole_checkpoints()
        with _noticed() as seen:
            self.train(resume=self.run)
        if seen.began_again and whole:
            wrong.append(f"{', '.join(whole)} was whole, and the run began again")
        lacks = seen.lacks
        return ("resumed with a gap, told", lacks) if lacks else ("resumed exactly", "")

    def _whole_checkpoints(self) -> list[str]:
        """Those that lack nothing."""
        checkpoints = Checkpoints(self.run / "checkpoints")
        return [name for name in checkpoints.names() if "lacks" not in checkpoints.read(name).engine]

    def _different(self, lacks: str) -> Iterator[str]:
        """The parts that are not as those of a whole run, and that no gap explains."""
        found = parts_of(self.run)
        explained = frozenset[str]().union(*(OWN_PARTS.get(each, frozenset()) for each in lacks.split(", ")))
        for part in [*self.whole, *(found.keys() - self.whole.keys())]:
            if part not in explained and found.get(part) != self.whole.get(part):
                yield _difference(part, found.get(part), self.whole.get(part))

    def _untold(self, disk: Disk, seen: Noticed) -> Iterator[str]:
        """Calls that failed while the run went on and that no warning names: by their path, by a directory above it, or for
        want of a directory by what should have come into it."""
        for kind, where in disk.refused:
            path = Path(where)
            below_run = (each for each in path.parents if each.is_relative_to(self.run) and each != self.run)
            names = "|".join(re.escape(str(each)) for each in (path, *below_run))
            below = os.path.relpath(where, self.run)
            may_be_silent = any(re.fullmatch(pattern, f"{kind} {below}") for pattern in SILENT)
            ends = r"(?=[/:;,\s]|$)" if kind == "mkdir" else r"(?=[:;,\s]|$)"
            if not may_be_silent and not any(re.search(f"({names}){ends}", line) for line in seen.warnings):
                yield f"nobody was told that {'a change' if kind in CHANGES else 'a look'} failed: {kind} {below}"

    def _wrong_with(self, error: Exception | None, disk: Disk) -> Iterator[str]:
        if error is not None:
            told = io.StringIO()
            with redirect_stderr(told):
                tell(error)
            error_said = told.getvalue()
            if code_of(error) != 4:
                yield f"exit code {code_of(error)}: {''.join(traceback.format_exception(error))[-1500:]}"
            lacks = [each for each in (str(self.root), os.strerror(disk.errno)) if each not in error_said]
            if remedy_for(OSError(disk.errno, "")) not in error_said and code_of(error) == 4:
                lacks.append("a remedy")
            if lacks:
                yield f"the message lacks {', '.join(lacks)}"
            if "Traceback" in told.getvalue() or "bug of" in told.getvalue():
                yield f"a traceback: {told.getvalue()[-1500:]}"
        yield from _unreadable(self.run)
        if disk.complete:
            newest = max(disk.complete)
            checkpoints = Checkpoints(self.run / "checkpoints")
            there = [*checkpoints.names(), *(path.name[12:] for path in checkpoints.directory.glob(".tmp-before-*"))]
            if not there or max(there) < newest:
                yield f"{newest} was complete and is gone (there: {there})"


def parts_of(run: Path) -> dict[str, Any]:
    """What must not depend on where a run was stopped, in parts: hooks' states by hook, and every file of its own."""
    saved, found = Checkpoints(run / "checkpoints").read(), outcome(run)
    del found["hooks"]
    found |= {f"hook {name}": digest(state) for name, state in saved.hooks.items() if name != "Recorder"}
    trace = json.loads((run / "trace.json").read_text())
    return found | {
        "trace.json": {name: trace[name] for name in ("epochs_done", "exit_status")},
        "config.toml": (run / "config.toml").read_text(),
    }


def _difference(part: str, found: Any, whole: Any) -> str:
    if isinstance(found, list | set):
        more, less = ([each for each in one if each not in other] for one, other in ((found, whole), (whole, found)))
        return f"{part}: too much {more}, missing {less}"
    return f"{part} differs"


def _unreadable(run: Path) -> Iterator[str]:
    checkpoints = Checkpoints(run / "checkpoints")
    pointers = [name for name in ("latest", "best") if (checkpoints.directory / name).exists()]
    for name in [*checkpoints.names(), *pointers]:
        try:
            checkpoints.read(name)
        except Exception as error:
            yield f"{name} cannot be read: {error}"


@dataclass
class Noticed:
    """What was logged while a run ran, and the tracebacks of ours on their way to the log, to a thread's end or nowhere."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def began_again(self) -> bool:
        return any("it begins again" in line for line in self.warnings)

    @property
    def lacks(self) -> str:
        """What the checkpoint lacks that the run went on from although it lacks something; empty if there is none such."""
        told = "\n".join(self.warnings)
        gap = re.search(r"going on from (.*), and what it lacks stays lost", told)
        found = re.search(f"{re.escape(gap[1])} lacks (.*); going back", told) if gap else None
        return "" if gap is None else found[1] if found else "nobody knows what"


@contextmanager
def _noticed() -> Iterator[Noticed]:
    seen = Noticed()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                seen.warnings.append(record.getMessage())
            if record.exc_info and record.exc_info[0] is not None:
                seen.problems.append(f"a traceback in the log: {record.getMessage()}")

    handler, logger = Seen(), logging.getLogger()
    logger.addHandler(handler)
    patches = [
        mock.patch.object(blame, "is_others", lambda file: not _is_sweeps(file) and is_others(file)),
        mock.patch.object(trouble, "is_others", lambda file: not _is_sweeps(file) and is_others(file)),
        mock.patch.object(sys, "unraisablehook", lambda each: seen.problems.append(f"unraisable: {each.exc_value!r}")),
        mock.patch.object(
            threading, "excepthook", lambda each: seen.problems.append(f"in a thread: {each.exc_value!r}")
        ),
    ]
    for patch in patches:
        patch.start()
    faulthandler.dump_traceback_later(LIMIT_S)
    try:
        yield seen
    finally:
        faulthandler.cancel_dump_traceback_later()
        for patch in patches:
            patch.stop()
        logger.removeHandler(handler)


def _is_sweeps(file: str) -> bool:
    return os.path.dirname(os.path.realpath(file)) == os.path.dirname(os.path.realpath(__file__))


@contextmanager
def sweeping(folder: Path, **setting: Any) -> Iterator[Sweep]:
    """A sweep in a folder, which is where the project's module comes from."""
    before, module = os.getcwd(), sys.modules.pop("exact_parts", None)
    level, logger = logging.root.level, logging.getLogger("asyncloop")
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    disabled, logger.propagate = logger.propagate, True
    try:
        yield Sweep(folder, **setting)
    finally:
        logger.propagate = disabled
        logging.root.setLevel(level)
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop("exact_parts", None)
        if module is not None:
            sys.modules["exact_parts"] = module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every call, not only every --every-th")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--errors", nargs="*", default=list(ERRORS))
    parser.add_argument("--show", type=int, default=10, help="broken promises to print of each sweep")
    asked = parser.parse_args()
    logging.lastResort = None
    total = Tally()
    place = Path(tempfile.mkdtemp(prefix="asyncloop-disk-"))
    with sweeping(place) as sweep:
        for name in asked.errors:
            for resumes in (False, True):
                for for_good in (False, True):
                    began = time.monotonic()
                    found = sweep.sweep(name, for_good=for_good, resumes=resumes, every=1 if asked.all else asked.every)
                    total += found
                    which = f"{name} {'for good' if for_good else 'once'} in a {'resume' if resumes else 'run'}"
                    print(f"{which}, {time.monotonic() - began:.0f} s: {found}", flush=True)
                    print(*found.broken[: asked.show], sep="\n", flush=True)
                    print(*(f"   raw: {call} ({n})" for call, n in found.raw.items()), sep="\n", flush=True)
    print(total)
    if not total.broken:
        shutil.rmtree(place)
    sys.exit(1 if total.broken else 0)
