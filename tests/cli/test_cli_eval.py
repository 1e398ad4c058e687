"""`asyncloop eval`: streams of a saved run, and `--watch`, which takes each checkpoint once."""

import json
import time
from pathlib import Path
from signal import SIGINT

from asyncloop.archive import read_run
from asyncloop.checkpoint import Checkpoints


def evaluated(run: Path) -> list[tuple[str, list[str]]]:
    """Checkpoint and streams of each finished evaluation, in their order."""
    records = [json.loads(path.read_text()) for path in sorted((run / "eval").glob("*/run.json"))]
    records.sort(key=lambda record: record["times"]["created"])
    return [(each["evaluation"]["checkpoint"], each["evaluation"]["streams"]) for each in records]


def test_several_streams_end_in_one_object_with_the_counters_of_the_checkpoint(asyncloop, project: Path, only_run):
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    code, out, _ = asyncloop("eval train test latest --json --progress none")
    found = json.loads(out)
    assert (code, found["state"], found["reason"]) == (0, "completed", "evaluated train, test")
    assert (found["epochs"], found["steps"], set(found["metrics"])) == (2, 10, {"train", "test"})
    assert Path(found["dir"]).parent == only_run() / "eval"


def test_a_wrong_call_is_told_with_an_example(asyncloop):
    for call, words in (
        ("eval latest", "name at least one stream before the run"),
        ("eval test latest --watch --checkpoint 3", "no --checkpoint, --output-dir"),
        ("eval test latest --watch --callbacks-only", "--callbacks-only"),
    ):
        code, _, err = asyncloop(call)
        assert code == 2
        assert words in " ".join(err.replace("│", " ").split())  # a frame breaks the line


def test_watching_evaluates_each_checkpoint_once_while_the_run_goes_on_and_ends_with_it(
    start, asyncloop, project: Path, only_run
):
    (project / "cfg.toml").write_text(
        (project / "cfg.toml").read_text() + '[[hooks]]\nclass = "SaveEvery"\nevery = "1 epoch"\n'
    )
    running = start("run cfg.toml --progress none --set model.step_s=1.5")  # the third of ten steps takes that long
    running.until("ready")
    watching = start("eval test latest --watch --progress none")
    watching.until("watching")
    assert running.wait() == 0
    assert watching.wait() == 0
    both = [("step-00000005", ["test"]), ("step-00000010", ["test"])]
    assert evaluated(only_run()) == both
    assert asyncloop("eval test latest --watch --progress none")[0] == 0
    assert evaluated(only_run()) == both
    assert asyncloop("eval train latest --watch --progress none")[0] == 0
    assert len(evaluated(only_run())) == 4


def test_a_signal_ends_the_watching_with_the_evaluation_under_way(start, asyncloop, project: Path, only_run):
    with open(project / "cfg.toml", "a") as cfg:
        cfg.write('[[hooks]]\nclass = "SaveEvery"\nevery = "1 step"\n')
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    watching = start("eval train latest --watch --progress none --set dataset.block_at=2")
    watching.until("ready")
    watching.signal(SIGINT)
    assert watching.wait() == 130
    states = [read_run(path).state for path in (only_run() / "eval").iterdir()]
    assert states == ["interrupted"]


def test_a_signal_ends_the_watching_between_evaluations(start, project: Path, only_run):
    with open(project / "cfg.toml", "a") as cfg:
        cfg.write('[[hooks]]\nclass = "SaveEvery"\nevery = "1 step"\n')
    running = start("run cfg.toml --progress none --set model.step_s=60")
    running.until("ready")
    watching = start("eval test latest --watch --progress none")
    watching.until("watching")
    deadline = time.monotonic() + 20
    while len(evaluated(only_run())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # the evaluation's end
    watching.signal(SIGINT)
    assert watching.wait() == 130


def test_other_weights_under_the_same_step_are_evaluated_too(asyncloop, project: Path, only_run):
    with open(project / "cfg.toml", "a") as cfg:
        cfg.write('[[hooks]]\nclass = "SaveEvery"\nevery = "5 steps"\n')
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    assert asyncloop("eval test latest --watch --progress none")[0] == 0
    checkpoints = Checkpoints(only_run() / "checkpoints")
    saved = checkpoints.read("10")
    parts = {"model": {**saved.model, "steps": 99}, "hooks": saved.hooks, "epoch": saved.epoch}
    checkpoints.write(10, parts, saved.engine, [])
    assert asyncloop("eval test latest --watch --progress none")[0] == 0
    assert [checkpoint for checkpoint, _ in evaluated(only_run())] == [f"step-{step:08d}" for step in (5, 10, 10)]


def test_an_evaluation_cannot_be_resumed(asyncloop, only_run):
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    assert asyncloop("eval test latest --progress none")[0] == 0
    (evaluation,) = (only_run() / "eval").iterdir()
    code, _, err = asyncloop(f"resume {evaluation}")
    assert code == 5
    assert f"is an evaluation, which trains nothing; to evaluate again: asyncloop eval test {only_run()}" in err


def test_hooks_run_once_more_over_outputs_that_were_kept(asyncloop, project: Path, only_run):
    with open(project / "cfg.toml", "a") as cfg:
        cfg.write('[[eval.test.hooks]]\nclass = "WriteJSONL"\n')
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    code, _, err = asyncloop("eval test latest --progress none --callbacks-only")
    assert code == 5
    assert (
        f"keep them first: asyncloop eval test {Path('runs') / only_run().name} --checkpoint latest --keep-outputs"
        in err
    )
    first = json.loads(asyncloop("eval test latest --json --progress none --keep-outputs")[1])
    again = json.loads(asyncloop("eval test latest --json --progress none --callbacks-only --set model.fails=key")[1])
    for key in ("state", "exit_code", "epochs", "steps", "metrics"):
        assert again[key] == first[key]
    lines = [(Path(each["dir"]) / "batches.jsonl").read_text() for each in (first, again)]
    assert lines[0] == lines[1] != ""
    code, _, err = asyncloop("eval test latest --progress none --callbacks-only --keep-outputs")
    assert code == 2
    assert "without callbacks_only" in err
