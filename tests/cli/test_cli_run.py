"""`asyncloop run`: what it prints, what it leaves, and the exit code that says whose fault a failure was."""

import json
import re
from pathlib import Path

import pytest


def test_a_run_ends_with_reason_directory_and_metrics(asyncloop, only_run):
    code, out, err = asyncloop("run cfg.toml --progress none --set 'engine.extra_streams=[\"test\"]'")
    assert code == 0
    assert out.splitlines() == [
        "completed: 2 epochs done",
        str(only_run()),
        "train loss 0.5",
        "train accuracy 0.6667",
        "test loss 0.5",
        "test accuracy 0.6667",
    ]
    assert "Traceback" not in err


def test_json_is_one_object_with_the_outcome(asyncloop, only_run, record):
    code, out, _ = asyncloop("run cfg.toml --json --set model.loss=nan --set 'engine.on_nonfinite=\"ignore\"'")
    found = json.loads(out)
    assert list(found) == ["id", "dir", "state", "reason", "exit_code", "epochs", "steps", "metrics"]
    assert found["metrics"] == {"train": {"loss": None, "accuracy": pytest.approx(2 / 3)}}
    assert (found["state"], found["exit_code"], code) == ("completed", 0, 0)
    assert (found["dir"], found["id"]) == (str(only_run()), record()["id"])
    assert (found["epochs"], found["steps"]) == (2, 10)


def test_the_run_directory_can_be_chosen_and_must_be_empty(asyncloop, project: Path):
    assert asyncloop("run cfg.toml --output-dir here")[0] == 0
    assert (project / "here" / "run.json").is_file()
    code, _, err = asyncloop("run cfg.toml --output-dir here")
    assert code == 2
    assert "is not empty" in err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message", "line"),
    [
        ("dataset.fail_at=2", "ValueError: pixel 2 is bad", "in train_stream"),
        ('model.fails="key"', "KeyError: 'nowhere'", "in _looked_up"),
        ("model.build_fails=true", "RuntimeError: cannot build", "in __init__"),
    ],
)
def test_an_exception_of_the_users_comes_with_the_users_frames_alone(asyncloop, project, setting, message, line):
    code, _, err = asyncloop(f"run cfg.toml --progress none --set '{setting}'")
    assert code == 3
    assert message in err
    assert line in err
    files = re.findall(r'File "([^"]*)"', err)
    assert set(files) == {str(project / "parts.py")}


def test_an_exception_comes_with_its_notes(asyncloop):
    assert "stream 'train', batch 2" in asyncloop("run cfg.toml --set dataset.fail_at=2")[2]


def test_a_failed_run_still_answers_in_json(asyncloop, record):
    code, out, _ = asyncloop("run cfg.toml --json --set dataset.fail_at=2")
    found = json.loads(out)
    assert (code, found["exit_code"], found["state"]) == (3, 3, "failed")
    assert found["reason"] == "ValueError: pixel 2 is bad"
    assert record()["state"] == "failed"


def test_a_loss_that_is_not_finite_is_told_without_a_traceback(asyncloop):
    code, _, err = asyncloop("run cfg.toml --set model.loss=nan")
    assert code == 3
    assert "Traceback" not in err


def test_the_users_code_cannot_end_the_process_as_if_all_were_well(asyncloop):
    assert asyncloop("run cfg.toml --set 'model.fails=\"exit\"'")[0] == 3


def test_all_mistakes_of_a_config_are_told_with_carets_and_nothing_is_made(asyncloop, project: Path):
    (project / "cfg.toml").write_text((project / "cfg.toml").read_text() + 'epoch = 3\nbuffer = "much"\n')
    code, out, err = asyncloop("run cfg.toml --set model.step=1")
    assert (code, out) == (2, "")
    assert "cfg.toml:11:1: `epoch` is no key of [engine]; did you mean `epochs`?" in err
    assert "    11 | epoch = 3\n       | ^^^^^\n" in err
    assert "engine.buffer must be" in err
    assert "did you mean `step_s`?" in err
    assert "Traceback" not in err
    assert not (project / "runs").exists()


def test_carets_stand_under_wide_characters(asyncloop, project: Path):
    (project / "cfg.toml").write_text((project / "cfg.toml").read_text() + '[eval]\ntest.run.tags = ["界", 3]\n')
    assert '    12 | test.run.tags = ["界", 3]\n       | ' + " " * 23 + "^\n" in asyncloop("check cfg.toml")[2]


@pytest.mark.parametrize(
    "line", ["run nowhere.toml", "run", "run cfg.toml --progres none", "run cfg.toml --progress loud", "rum cfg.toml"]
)
def test_wrong_usage_ends_with_2(asyncloop, project: Path, line):
    code, out, err = asyncloop(line)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
    assert not (project / "runs").exists()


def test_a_stream_that_the_dataset_lacks_is_a_mistake_of_the_config(asyncloop, project: Path):
    code, _, err = asyncloop("run cfg.toml --set 'engine.extra_streams=[\"tset\"]'")
    assert code == 2
    assert "did you mean 'test'?" in err
    assert not (project / "runs").exists()


def test_a_directory_that_cannot_be_made_ends_with_4_in_words(asyncloop):
    code, _, err = asyncloop("run cfg.toml --output-dir /proc/here")
    assert code == 4
    assert "/proc/here" in err
    assert "Traceback" not in err


def test_a_bug_of_ours_is_told_in_full(asyncloop, project: Path):
    (project / "sitecustomize.py").write_text("import sys; sys.modules['asyncloop.runs'] = None")
    code, _, err = asyncloop("run cfg.toml", env={"PYTHONPATH": str(project)})
    assert code == 1
    assert "a bug of asyncloop" in err
    assert "Traceback" in err


def test_the_version_is_one_line(asyncloop):
    from asyncloop import __version__

    assert asyncloop("--version") == (0, f"{__version__}\n", "")


def test_help_names_every_command(asyncloop):
    code, out, _ = asyncloop("--help")
    assert code == 0
    assert all(command in out for command in ("run", "check", "hooks"))
