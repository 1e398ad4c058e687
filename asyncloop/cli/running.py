"""`asyncloop run`, `resume` and `eval`: one run, with signals as stops and its outcome on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from asyncloop.archive import SavedRun, find_run, read_run, runs_below
from asyncloop.checkpoint import Checkpoints
from asyncloop.cli.logs import configure_logging
from asyncloop.cli.signals import Work, say, watch
from asyncloop.cli.terminal import complain, print_json
from asyncloop.cli.trouble import code_of, tell, users_traceback
from asyncloop.cli.wording import metric_rows
from asyncloop.errors import StorageError, alone
from asyncloop.evaluation import open_evaluation
from asyncloop.live import INTERRUPTED, Run, exit_code_of
from asyncloop.processes import is_first
from asyncloop.redact import redacted
from asyncloop.resuming import training_run
from asyncloop.rundir import now
from asyncloop.runs import open_run, uvloop_is_there
from asyncloop.threads import LoopHandle

__all__ = ["Opening", "evaluate_run", "resume_run", "run_config", "watch_run"]

Opening = Callable[[], AbstractAsyncContextManager[Run]]

logger = logging.getLogger("asyncloop")

_LOOK_EVERY_S = 0.5
_BUILDING_GRACE_S = 0.4
"""Nothing is trained yet, so nothing can be lost: what is being built may take this long to be taken down."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the command ended. `live` is None if a signal came before there was a run."""

    exit_code: int
    live: Run | None = None
    reason: str = ""
    error: BaseException | None = None


def run_config(
    config: str, overrides: Sequence[str], *, as_json: bool, debug: bool = False, rm: bool = False, **options: Any
) -> int:
    """Train to the end; the exit code. `options` are `open_run`'s. What goes wrong is told on standard error."""
    opening = partial(open_run, config, set=overrides, own_rng=True, debug=debug, **options)
    return _conduct(opening, as_json=as_json, debug=debug, rm=rm, resumable=not debug)


def resume_run(
    run: str, overrides: Sequence[str], *, as_json: bool, checkpoint: str | None = None, **options: Any
) -> int:
    """Go on with a run; the exit code, 0 if there is nothing left to do. `options` are `open_run`'s."""
    try:
        saved = read_run(training_run(run))
    except Exception as error:
        return _refused(error, as_json=as_json)
    if saved.state == "completed" and checkpoint is None and not overrides:
        return _nothing_to_do(saved, as_json=as_json)
    opening = partial(open_run, resume=saved.path, set=overrides, own_rng=True, checkpoint=checkpoint, **options)
    return _conduct(opening, as_json=as_json, resumable=True)


def _nothing_to_do(saved: SavedRun, *, as_json: bool) -> int:
    reason = str(saved.record.get("reason"))
    if as_json:
        counters = {"epochs": saved.epochs, "steps": saved.steps, "metrics": saved.metrics}
        _print_object(saved.id, str(saved.path.absolute()), saved.state, reason, 0, counters)
    else:
        more = (
            "--set engine.epochs=… gives it more" if saved.config else "the program that made its Engine gives it more"
        )
        complain(f"nothing to do: this run is finished; {more}")
        _print_words(f"{saved.state}: {reason}", str(saved.path.absolute()), saved.metrics)
    return 0


def watch_run(streams: Sequence[str], run: str, overrides: Sequence[str], *, as_json: bool, **options: Any) -> int:
    """Evaluate each checkpoint of a run once, as it comes, until the run is over; the first exit code that is not 0.

    What has been evaluated on these streams is read from the run's `eval/`, so that going on watching repeats nothing.
    A signal ends the watching with the evaluation under way. A checkpoint that the run has removed again is left out.
    """
    configure_logging()
    try:
        return _watched(find_run(run), streams, overrides, as_json=as_json, **options)
    except Exception as error:
        return _refused(error, as_json=as_json)


def _watched(path: Path, streams: Sequence[str], overrides: Sequence[str], *, as_json: bool, **options: Any) -> int:
    code = 0
    watch.goes_on = True
    logger.info("watching %s for checkpoints", path)
    checkpoints, done, seen = Checkpoints(path / "checkpoints"), _evaluated(path, streams), set[tuple[str, int]]()
    while True:
        saved = read_run(path)  # before its checkpoints are looked at: what was saved until then is seen
        changed = [each for each in checkpoints.stamps() if each not in seen]
        seen.update(changed)
        new = [each for each in ((name, checkpoints.fingerprint(name)) for name, _ in changed) if each not in done]
        for name, weights in new:
            done.add((name, weights))
            if name not in checkpoints.names():
                logger.info("%s has gone before it could be evaluated", name)
                continue
            opening = partial(open_evaluation, path, streams, set=overrides, own_rng=True, checkpoint=name, **options)
            found = _conduct(opening, as_json=as_json)
            if watch.code is not None:  # also one that came too late for the evaluation
                return watch.code
            if found and name not in checkpoints.names():
                logger.info("%s has gone while it was evaluated; it is left out", name)
                continue
            code = code or found
        if saved.is_over and not new:
            return code
        if not new:
            time.sleep(_LOOK_EVERY_S)


def _evaluated(path: Path, streams: Sequence[str]) -> set[tuple[str, str | None]]:
    """The checkpoints that were evaluated on these streams, and what weights they had."""
    tables = [run.table("evaluation") for run in runs_below(path / "eval") if run.state == "completed"]
    wanted = sorted(streams)
    return {
        (str(table.get("checkpoint")), table.get("weights"))
        for table in tables
        if sorted(table.get("streams", ())) == wanted
    }


def evaluate_run(streams: Sequence[str], run: str, overrides: Sequence[str], *, as_json: bool, **options: Any) -> int:
    """Evaluate a saved run; the exit code. `options` are `open_evaluation`'s. What goes wrong is told on standard error."""
    return _conduct(partial(open_evaluation, run, streams, set=overrides, own_rng=True, **options), as_json=as_json)


def _conduct(opening: Opening, *, as_json: bool, debug: bool = False, rm: bool = False, resumable: bool = False) -> int:
    configure_logging()
    try:
        outcome = anyio.run(_run, opening, rm, debug, backend_options={"use_uvloop": uvloop_is_there()})
    except (Exception, SystemExit) as error:
        # Before there was a run. To end the process is not for the user's code to do.
        return _refused(error, as_json=as_json)
    if outcome.error is not None and not debug:
        tell(outcome.error)
    if not is_first():  # of several processes one speaks for all
        return outcome.exit_code
    if outcome.live is not None:
        _print_outcome(outcome.live, outcome, as_json, removed=rm)
        if resumable and not rm and outcome.exit_code in INTERRUPTED.values():
            complain(f"to go on: asyncloop resume {_short(outcome.live)}")
    elif as_json:
        _print_nothing(outcome.reason, outcome.exit_code)
    return outcome.exit_code


def _refused(error: BaseException, *, as_json: bool) -> int:
    """Tell what has ended the command before there was a run; the exit code."""
    code = tell(error)
    if as_json and is_first():
        _print_nothing(redacted(f"{type(error).__name__}: {error}"), code)
    return code


def _short(live: Run) -> str:
    """How `find_run` is told which run this is: its id, or its path if it is not below runs/."""
    return live.id if live.dir is not None and live.dir.parent == Path("runs").absolute() else str(live.dir)


async def _run(opening: Opening, rm: bool, debug: bool) -> _Outcome:
    """The run itself. Raises what happens before there is one."""
    watch.listen()
    loop, live, signals = LoopHandle(), None, list[str]()

    def give_up(signal_name: str) -> None:
        signals.append(signal_name)
        loop.soon(lambda: live.control.stop(signal_name) if live is not None else building.cancel())

    with anyio.CancelScope() as building:
        watch.work = Work(give_up, "nothing is trained yet, taking down what was built", grace_s=_BUILDING_GRACE_S)
        try:
            async with opening() as live:
                live.remove_at_end = rm
                return await _followed(live, debug)
        except Exception as error:
            if live is None:
                raise
            return _Outcome(code_of(error), live, f"{type(error).__name__}: {error}", error)
        finally:
            watch.work = None
    return _Outcome(INTERRUPTED[signals[0]], reason=signals[0])


async def _followed(live: Run, debug: bool) -> _Outcome:
    watch.work = _training(live)
    try:
        result = await live
    except Exception as error:
        watch.outcome = code_of(error)
        if debug:
            tell(error)
            _look_into(error)  # while the run's directory is there, whatever becomes of it
        raise
    finally:
        watch.work = None
    watch.outcome = exit_code_of(result, None)
    return _Outcome(watch.outcome, live, result.reason)


# --- ended by force -----------------------------------------------------------------------------------------------


def _training(live: Run) -> Work:
    def last_words(signal_name: str) -> None:
        if is_first():
            say(f"unsaved: what was trained after {_newest_checkpoint(live.dir)} is lost; {live.dir}")
            _record_interruption(live.dir, signal_name)

    return Work(live.control.stop, "stopping after this step; press Ctrl-C again to quit at once", last_words)


def _newest_checkpoint(run_dir: Path | None) -> str:
    if run_dir is None:
        return "the start"
    try:
        return Checkpoints(run_dir / "checkpoints").pointers().get("latest", "the start")
    except StorageError:
        return "the start"


def _record_interruption(run_dir: Path | None, signal_name: str) -> None:
    """In run.json, beside the run's own writer, who may be in the middle of writing an older state: until it holds."""
    if run_dir is None:
        return
    path, aside = run_dir / "run.json", run_dir / ".tmp-run.json-at-exit"
    ended: dict[str, Any] = {"state": "interrupted", "reason": signal_name, "exit_code": INTERRUPTED[signal_name]}
    while True:  # the caller waits only so long
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["state"] == "interrupted" and not any(run_dir.glob(".tmp-run.json-*")):
            return
        record |= ended | {"times": {**record["times"], "ended": now()}}
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
        time.sleep(0.01)


# --- the end on standard output -----------------------------------------------------------------------------------


def _print_outcome(live: Run, outcome: _Outcome, as_json: bool, *, removed: bool) -> None:
    found = live.snapshot()
    run_dir = None if removed else found["dir"]
    if as_json:
        counters = {name: found[name] for name in ("epochs", "steps", "metrics")}
        _print_object(live.id, run_dir, live.state, outcome.reason, outcome.exit_code, counters)
    else:
        where = run_dir if run_dir is not None else f"removed {found['dir']}"
        _print_words(f"{live.state}: {outcome.reason}", where, found["metrics"])


def _print_object(
    run_id: str | None, run_dir: str | None, state: str, reason: str, exit_code: int, counters: Mapping[str, Any]
) -> None:
    head = {"id": run_id, "dir": run_dir, "state": state, "reason": reason}
    print_json({**head, "exit_code": exit_code, **counters})


def _print_nothing(reason: str, exit_code: int) -> None:
    """The object of a command that has come to no run."""
    _print_object(None, None, "failed", reason, exit_code, {"epochs": 0, "steps": 0, "metrics": {}})


def _print_words(end: str, where: str, metrics: dict[str, dict[str, Any]]) -> None:
    print(redacted(end))
    print(where)
    for row in metric_rows(metrics):
        print(*row)


# --- after a failure ----------------------------------------------------------------------------------------------


def _look_into(error: BaseException) -> None:
    """The debugger at the frame that raised; only where somebody can type."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        complain("no debugger: standard input is no terminal")
        return
    import pdb

    complain("the debugger, where it was raised: `w` shows the stack, `u` goes up, `p name` a value, `q` leaves")
    watch.work = Work(lambda name: None, "type q to leave the debugger")
    pdb.post_mortem(users_traceback(alone(error)))
