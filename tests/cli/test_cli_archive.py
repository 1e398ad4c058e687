"""`ls`, `show`, `compare` and `prune` over runs that were really trained; `--rm` and `--max-time`."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def two_runs(asyncloop, project: Path) -> list[str]:
    """The ids of two runs, the second with another loss."""
    assert asyncloop("run cfg.toml --progress none")[0] == 0
    assert asyncloop("run cfg.toml --progress none --set model.loss=0.25 --set 'run.name=\"other\"'")[0] == 0
    _, out, _ = asyncloop("ls --json")
    return [run["id"] for run in json.loads(out)]


def test_runs_are_listed_with_their_end_and_their_metrics(asyncloop, two_runs):
    code, out, _ = asyncloop("ls")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[0].split()[:5] == ["id", "name", "state", "epochs", "steps"]
    assert lines[1].split()[:5] == [two_runs[0], "small", "completed", "2", "10"]
    assert lines[2].rstrip().endswith("train loss 0.25 accuracy 0.6667")
    _, out, _ = asyncloop("ls -l")
    assert "parts:Model" in out
    assert "parts:Data" in out


def test_a_directory_without_runs_is_said_to_be_one(asyncloop, project: Path):
    (project / "none").mkdir()
    assert asyncloop("ls none") == (0, "", "no runs in none\n")
    code, out, err = asyncloop("ls nowhere")
    assert (code, out) == (5, "")
    assert "there is no directory nowhere" in err
    assert json.loads(asyncloop("ls none --json")[1]) == []


def test_a_run_is_shown_with_config_checkpoints_and_files(asyncloop, two_runs):
    code, out, _ = asyncloop(f"show {two_runs[1][:5]}")
    words = " ".join(out.split())
    assert code == 0
    for part in (f"run other {two_runs[1]}", "completed: 2 epochs done", "model.loss 0.25", "step-00000010", "log.txt"):
        assert part in words
    found = json.loads(asyncloop("show latest --json")[1])
    assert found["config"]["model"]["loss"] == 0.25
    assert found["checkpoints"][0]["pointers"] == ["latest"]


def test_two_runs_are_compared_by_what_differs_and_by_their_metrics(asyncloop, two_runs):
    code, out, _ = asyncloop(f"compare {' '.join(two_runs)}")
    words = " ".join(out.split())
    assert code == 0
    assert 'run.name "small" "other"' in words
    assert "model.loss 0.5 0.25" in words
    assert "train loss 0.5 0.25" in words
    assert "engine.epochs" not in words
    found = json.loads(asyncloop(f"compare {' '.join(two_runs)} --json")[1])
    assert found["config"] == {"run.name": ["small", "other"], "model.loss": [0.5, 0.25]}
    assert found["metrics"]["train loss"] == [0.5, 0.25]
    assert asyncloop(f"compare {two_runs[0]}")[0] == 2


@pytest.mark.parametrize("command", ["show", "compare x", "eval train"])
def test_a_run_that_is_not_there_ends_with_5(asyncloop, two_runs, command):
    code, out, err = asyncloop(f"{command} nowhere")
    assert (code, out) == (5, "")
    assert "no run matches" in err
    assert "Traceback" not in err


def test_prune_asks_and_without_a_terminal_needs_yes(asyncloop, project: Path, two_runs):
    shutil.rmtree(project / "runs" / f"{only(project, two_runs[0]).name}" / "checkpoints")
    code, out, err = asyncloop("prune")
    assert code == 2
    assert "add --yes" in err
    assert (out, two_runs[0] in err) == ("", True)
    assert len(list((project / "runs").iterdir())) == 2
    code, out, _ = asyncloop("prune --yes --json")
    assert (code, [Path(path).name[-8:] for path in json.loads(out)["removed"]]) == (0, [two_runs[0]])
    assert only(project, two_runs[1]).is_dir()


def test_prune_leaves_a_run_that_is_being_evaluated(asyncloop, project: Path, two_runs):
    for run_id in two_runs:
        shutil.rmtree(only(project, run_id) / "checkpoints")
    evaluation = only(project, two_runs[0]) / "eval" / "valid-1"
    evaluation.mkdir(parents=True)
    (evaluation / "run.json").write_text(json.dumps({"id": "1", "state": "running"}))
    with open(evaluation / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, _ = asyncloop("prune --yes --json")
    assert (code, [Path(path).name[-8:] for path in json.loads(out)["removed"]]) == (0, [two_runs[1]])
    assert evaluation.is_dir()
    assert asyncloop("prune --yes")[0] == 0
    assert list((project / "runs").iterdir()) == []


def test_what_is_in_use_is_not_told_as_removed(asyncloop, project: Path, two_runs):
    with open(only(project, two_runs[0]) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = asyncloop("prune --epochs 9 --yes --json")
    assert (code, [Path(path).name[-8:] for path in json.loads(out)["removed"]]) == (0, [two_runs[1]])
    assert "in use and stays" in err


def test_a_damaged_run_is_listed_and_breaks_no_command(asyncloop, project: Path, two_runs):
    damaged = project / "runs" / "damaged-1"
    damaged.mkdir()
    (damaged / "run.json").write_text('{"id": "1", "state": "completed", "times": {"created": "yesterday"}}')
    (damaged / "resolved.toml").write_text("model = 3\n")
    (damaged / "metrics.jsonl").write_bytes(b"\xff\n3\n")
    for command in ("ls", "ls -l", "ls -r", "show damaged-1", f"compare damaged-1 {two_runs[0]}", "prune --yes"):
        code, out, err = asyncloop(command)
        assert (code, "Traceback" in err) == (0, False), command
        assert "unreadable" in out or command.startswith("prune")
    assert damaged.is_dir()


def test_an_evaluation_is_shown_by_its_id(asyncloop, project: Path, two_runs):
    found = json.loads(asyncloop("eval train latest --progress none --json")[1])
    code, out, _ = asyncloop(f"show {found['id'][:6]} --json")
    assert (code, json.loads(out)["id"]) == (0, found["id"])
    assert json.loads(asyncloop("show latest --json")[1])["id"] == two_runs[1]


@pytest.mark.parametrize("command", ["resume nowhere", "eval test nowhere", "eval test nowhere --watch"])
def test_where_there_is_no_such_run_the_end_is_one_object_all_the_same(asyncloop, two_runs, command):
    code, out, err = asyncloop(f"{command} --json")
    found = json.loads(out)
    assert (code, err.count("no run matches 'nowhere'")) == (5, 1)
    assert list(found) == ["id", "dir", "state", "reason", "exit_code", "epochs", "steps", "metrics"]
    assert (found["state"], found["exit_code"], found["dir"]) == ("failed", 5, None)
    assert "no run matches 'nowhere'" in found["reason"]


def test_a_run_made_in_a_directory_of_another_name_is_shown_by_its_id(asyncloop, project: Path):
    assert asyncloop("run cfg.toml --progress none --output-dir runs/mine")[0] == 0
    run_id = json.loads(asyncloop("ls --json")[1])[0]["id"]
    code, out, _ = asyncloop(f"show {run_id[:5]}")
    assert (code, out.splitlines()[1].split()) == (0, ["directory", "runs/mine"])


def test_prune_removes_by_epochs_and_what_hooks_have_made_but_nothing_else(asyncloop, project: Path, two_runs):
    (project / "runs" / "notes").mkdir()
    (project / "runs" / "letter.txt").write_text("mine")
    (only(project, two_runs[1]) / "pictures").mkdir()
    record = only(project, two_runs[0]) / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "epochs": 1}))
    assert asyncloop("prune --epochs 2 --subdirs --yes")[0] == 0
    left = sorted(path.name for path in (project / "runs").iterdir())
    assert left == ["letter.txt", "notes", only(project, two_runs[1]).name]
    assert sorted(path.name for path in only(project, two_runs[1]).iterdir() if path.is_dir()) == [
        "checkpoints",
        "code",
    ]


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_prune_takes_an_answer_on_a_terminal(project: Path, two_runs, answer, left):
    command = [sys.executable, "-m", "asyncloop", "prune", "--epochs", "9"]
    ours, theirs = pty.openpty()
    popen = subprocess.Popen(command, cwd=project, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.write(ours, answer.encode())
    err = popen.communicate(timeout=30)[1].decode()
    os.close(ours)
    os.close(theirs)
    assert "remove these 2? [y/N]" in err
    assert len(list((project / "runs").iterdir())) == left


def test_rm_removes_the_run_at_its_end_and_never_what_was_there(asyncloop, project: Path):
    (project / "mine").mkdir()
    code, out, _ = asyncloop("run cfg.toml --rm --output-dir mine --json --progress none")
    assert (code, json.loads(out)["dir"], json.loads(out)["steps"]) == (0, None, 10)
    assert list((project / "mine").iterdir()) == []
    code, out, _ = asyncloop("run cfg.toml --rm --progress none --set dataset.fail_at=3")
    assert code == 3
    assert "removed" in out
    assert not (project / "runs").exists()


def test_max_time_saves_and_ends_with_75(asyncloop, record, only_run):
    code, out, _ = asyncloop("run cfg.toml --progress none --max-time 0.3 --set engine.epochs=1000000000 --json")
    found = json.loads(out)
    assert (code, found["state"], found["reason"], found["exit_code"]) == (75, "interrupted", "max-time", 75)
    assert record()["exit_code"] == 75
    assert (only_run() / "checkpoints" / "latest").read_text().strip() == f"step-{found['steps']:08d}"
    code, _, err = asyncloop("run cfg.toml --max-time soon")
    assert code == 2
    assert '"30 min"' in err


def test_a_secret_of_the_environment_is_nowhere(asyncloop, project: Path, only_run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2-hunter2")
    (project / "cfg.toml").write_text(
        (project / "cfg.toml").read_text() + '[[hooks]]\nclass = "told:Tells"\nword = "${env:SECRET}"\n'
    )
    (project / "told.py").write_text(
        "import logging, warnings\n"
        "# once it stood here: hunter2-hunter2\n"
        "class Tells:\n"
        "    def __init__(self, word: str, fails: bool = False):\n"
        "        self.word = word\n"
        "        if fails:\n"
        "            raise ValueError(word)\n"
        "    def after_epoch(self, event):\n"
        "        logging.getLogger('mine').warning('the word is %s', self.word)\n"
        "        warnings.warn(self.word)\n"
        "        event.data['train']['word'] = self.word\n"
        "        raise ValueError(f'cannot use {self.word!r}')\n"
    )
    code, out, err = asyncloop("run cfg.toml --json")
    assert code == 3
    assert "the word is ${env:SECRET}" in err
    assert "cannot use '${env:SECRET}'" in json.loads(out)["reason"]
    files = [path for path in only_run().rglob("*") if path.is_file()]
    assert len(files) > 8
    told = asyncloop("check cfg.toml --json --set hooks.0.fails=true")
    assert told[0] == 3
    out += "".join(map(str, told)) + "".join(map(str, asyncloop("show latest --json")))
    for text in (out, err, *(path.read_bytes().decode(errors="replace") for path in files)):
        assert "hunter2" not in text


def only(project: Path, run_id: str) -> Path:
    (found,) = (project / "runs").glob(f"*{run_id}")
    return found
