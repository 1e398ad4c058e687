"""`asyncloop run`: one run from a config, with signals as stops and its outcome on standard output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio

from asyncloop.cli.logs import configure_logging
from asyncloop.cli.signals import Work, say, watch
from asyncloop.cli.terminal import print_json
from asyncloop.cli.trouble import code_of, tell
from asyncloop.rundir import now
from asyncloop.runs import Run, exit_code_of, open_run, uvloop_is_there
from asyncloop.threads import LoopHandle

__all__ = ["run_config"]

_SIGNAL_CODES = {"SIGINT": 130, "SIGTERM": 143}

_BUILDING_GRACE_S = 0.4
"""Nothing is trained yet, so nothing can be lost: what is being built may take this long to be taken down."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the command ended. `live` is None if a signal came before there was a run."""

    exit_code: int
    live: Run | None = None
    reason: str = ""
    error: BaseException | None = None


def run_config(config: str, overrides: Sequence[str], *, progress: str, output_dir: str | None, as_json: bool) -> int:
    """Run to the end; the exit code. What goes wrong is told on standard error, not raised."""
    configure_logging()

    async def main() -> _Outcome:
        return await _run(config, overrides, progress, output_dir)

    try:
        outcome = anyio.run(main, backend_options={"use_uvloop": uvloop_is_there()})
    except SystemExit as leaving:  # of the user's code, to whom it does not belong to end the process
        return tell(leaving)
    if outcome.error is not None:
        tell(outcome.error)
    if outcome.live is not None:
        _print_outcome(outcome.live, outcome, as_json)
    return outcome.exit_code


async def _run(config: str, overrides: Sequence[str], progress: str, output_dir: str | None) -> _Outcome:
    """The run itself. Raises what happens before there is one."""
    watch.listen()
    loop, live, signals = LoopHandle(), None, list[str]()

    def give_up(signal_name: str) -> None:
        signals.append(signal_name)
        loop.soon(lambda: live.control.stop(signal_name) if live is not None else building.cancel())

    with anyio.CancelScope() as building:
        watch.work = Work(give_up, "nothing is trained yet, taking down what was built", grace_s=_BUILDING_GRACE_S)
        try:
            async with open_run(config, set=overrides, output_dir=output_dir, progress=progress, own_rng=True) as live:
                return await _followed(live)
        except Exception as error:
            if live is None:
                raise
            return _Outcome(code_of(error), live, f"{type(error).__name__}: {error}", error)
        finally:
            watch.work = None
    return _Outcome(_SIGNAL_CODES[signals[0]])


async def _followed(live: Run) -> _Outcome:
    watch.work = _training(live)
    try:
        result = await live
    except Exception as error:
        watch.outcome = code_of(error)
        raise
    finally:
        watch.work = None
    watch.outcome = exit_code_of(result, None)
    return _Outcome(watch.outcome, live, result.reason)


# --- ended by force -----------------------------------------------------------------------------------------------


def _training(live: Run) -> Work:
    def last_words(signal_name: str) -> None:
        say(f"unsaved: what was trained after {_newest_checkpoint(live.dir)} is lost; {live.dir}")
        _record_interruption(live.dir, signal_name)

    return Work(live.control.stop, "stopping after this step; press Ctrl-C again to quit at once", last_words)


def _newest_checkpoint(run_dir: Path | None) -> str:
    try:
        return (run_dir / "checkpoints" / "latest").read_text().strip() if run_dir is not None else "the start"
    except OSError:
        return "the start"


def _record_interruption(run_dir: Path | None, signal_name: str) -> None:
    """In run.json, beside the run's own writer, who may be in the middle of writing an older state: until it holds."""
    if run_dir is None:
        return
    path, written_by_run = run_dir / "run.json", run_dir / ".tmp-run.json"
    ended: dict[str, Any] = {"state": "interrupted", "reason": signal_name, "exit_code": _SIGNAL_CODES[signal_name]}
    while True:  # the caller waits only so long
        record = json.loads(path.read_text())
        if record["state"] == "interrupted" and not written_by_run.exists():
            return
        record |= ended | {"times": {**record["times"], "ended": now()}}
        aside = run_dir / ".tmp-run.json-at-exit"
        aside.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(aside, path)
        time.sleep(0.01)


# --- the end on standard output -----------------------------------------------------------------------------------


def _print_outcome(live: Run, outcome: _Outcome, as_json: bool) -> None:
    found = live.snapshot()
    if as_json:
        counters = {name: found[name] for name in ("epochs", "steps", "metrics")}
        head = {"id": live.id, "dir": found["dir"], "state": live.state, "reason": outcome.reason}
        print_json({**head, "exit_code": outcome.exit_code, **counters})
        return
    print(f"{live.state}: {outcome.reason}")
    print(live.dir)
    for stream, values in found["metrics"].items():
        for name, value in _scalars(values):
            print(f"{stream} {name} {value:.4f}")


def _scalars(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among the values, those in tables as `name/part`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(cast("Mapping[str, Any]", value), f"{above}{name}/")
        elif getattr(value, "ndim", 0) == 0 and not isinstance(value, str | bytes | list | tuple | None):
            try:
                yield above + name, float(value)
            except (TypeError, ValueError):
                continue
