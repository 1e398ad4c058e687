"""Ctrl-C and SIGTERM: the first ends a run well, the second ends the process, at any moment."""

import os
import subprocess
import sys
import time
from signal import SIGINT, SIGTERM

import pytest

LONG = "run cfg.toml --progress none --set dataset.batches=1000000"
QUIT_S = 1.5  # half a second is promised; machines that run tests are busy


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_the_first_signal_finishes_the_step_and_saves(start, only_run, record, number, code):
    process = start(f"{LONG} --set model.step_s=0.05")
    process.until("ready")
    process.signal(number)
    assert process.wait() == code
    assert f"{number.name}: stopping after this step" in process.err
    assert "Traceback" not in process.err
    found = record()
    assert (found["state"], found["reason"], found["exit_code"]) == ("interrupted", number.name, code)
    assert found["steps"] >= 3
    assert (only_run() / "checkpoints" / "latest").is_file()
    assert process.out.splitlines()[:2] == [f"interrupted: {number.name}", str(only_run())]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_wakes_a_loop_that_sleeps(start, record, project, loop):
    pytest.importorskip("uvloop")
    if loop == "asyncio":
        (project / "hidden").mkdir()
        (project / "hidden" / "uvloop.py").write_text("raise ImportError")
    path = [str(project / "hidden"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = start(f"{LONG} --set dataset.block_at=2", env={**os.environ, "PYTHONPATH": os.pathsep.join(path)})
    process.until("ready")
    process.signal(SIGINT)
    assert process.wait() == 130
    assert record()["state"] == "interrupted"


BLOCKED = {
    "model": "model.step_s=1000",
    "producer": "dataset.block_at=2",
    "hook": 'hooks=[{class="parts:Blocking", how="sleep"}]',
    "hook in C": 'hooks=[{class="parts:Blocking", how="c"}]',
}


@pytest.mark.parametrize("blocked", BLOCKED)
def test_the_second_signal_ends_the_process_whatever_is_blocked(start, record, blocked):
    process = start(f"{LONG} --set '{BLOCKED[blocked]}'")
    process.until("ready")
    process.signal(SIGTERM)
    process.until("stopping after this step")
    began_s = time.monotonic()
    process.signal(SIGINT)
    assert process.wait() == 143
    assert time.monotonic() - began_s < QUIT_S
    assert "unsaved: what was trained after " in process.err
    assert "Traceback" not in process.err
    assert (record()["state"], record()["exit_code"]) == ("interrupted", 143)


def test_signals_that_come_together_are_one(start, only_run, record):
    """As from `timeout`, which signals its child and then its group."""
    process = start(f"{LONG} --set model.step_s=0.05")
    process.until("ready")
    process.signal(SIGINT)
    process.signal(SIGTERM)  # a second SIGINT might never arrive: for the kernel it is the one that is waiting
    assert process.wait() in (130, 143)
    assert record()["state"] == "interrupted"
    assert "unsaved" not in process.err
    assert (only_run() / "checkpoints" / "latest").is_file()


def test_a_storm_of_signals_does_no_more_than_two(start):
    process = start(f"{LONG} --set model.step_s=1000")
    process.until("ready")
    while process.popen.poll() is None:
        process.signal(SIGINT)
        time.sleep(0.001)  # faster ones are one signal for the kernel
    assert process.wait() == 130
    assert process.err.count("stopping after this step") == 1
    assert "Traceback" not in process.err


def test_a_signal_while_the_model_is_built_leaves_nothing(start, project):
    process = start(f"{LONG} --set model.build_s=1000")
    process.until("ready")
    process.signal(SIGINT)
    assert process.wait() == 130
    assert process.out == ""
    assert "Traceback" not in process.err
    assert not (project / "runs").exists()


def test_a_signal_while_modules_are_imported_ends_the_process(start, project):
    parts = (project / "parts.py").read_text()
    (project / "parts.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n{parts}"
    )
    process = start("check cfg.toml")
    assert process.wait() == 143
    assert "Traceback" not in process.err


def test_a_signal_after_the_run_changes_nothing(asyncloop, project, record):
    late = "import atexit\natexit.register(lambda: (os.kill(os.getpid(), 2), time.sleep(60)))\n"
    (project / "parts.py").write_text((project / "parts.py").read_text() + late)
    assert asyncloop("run cfg.toml")[0] == 0
    assert record()["state"] == "completed"


def test_ctrl_c_that_reaches_forked_workers_too_counts_once(start, only_run):
    process = start(f"{LONG} --set model.step_s=0.2 --set dataset.fork=true", start_new_session=True)
    process.until("ready")
    os.killpg(process.popen.pid, SIGINT)
    assert process.wait() == 130
    assert (only_run() / "checkpoints" / "latest").is_file()


def test_handlers_are_set_before_anything_else_is_imported():
    heavy = {"numpy", "anyio", "asyncio", "pydantic", "typer", "rich"}
    code = "import sys, asyncloop.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_importing_the_command_line_touches_no_handler():
    code = (
        "import signal; before = [signal.getsignal(each) for each in signal.valid_signals()]\n"
        "import asyncloop.__main__, asyncloop.cli.app\n"
        "print(before == [signal.getsignal(each) for each in signal.valid_signals()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
