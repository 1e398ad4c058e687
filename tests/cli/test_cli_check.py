"""`asyncloop check` and `asyncloop hooks`: what there is, in words and as JSON; nothing is made."""

import json
import tomllib
from pathlib import Path

from asyncloop import hooks
from asyncloop.hook import COMMON_KEYS


def test_check_shows_sources_and_outputs_of_one_batch(asyncloop, project: Path):
    code, out, _ = asyncloop("check cfg.toml --set 'engine.extra_streams=[\"test\"]'")
    assert code == 0
    words = " ".join(out.split())
    assert "train x float64 4 × 2" in words
    assert "test x float64 4 × 2" in words
    assert "loss float scalar" in words
    assert out.endswith("cfg.toml is ready to run\n")
    assert not (project / "runs").exists()


def test_check_says_when_a_hook_is_called_and_which_ones_every_run_has(asyncloop, project: Path):
    hooks = '[[hooks]]\nclass = "SaveBest"\nvariable = "loss"\n[[hooks]]\nclass = "SaveEvery"\nevery = "2 steps"\n'
    (project / "cfg.toml").write_text((project / "cfg.toml").read_text() + hooks)
    _, out, _ = asyncloop("check cfg.toml --set 'hooks.0.stream=\"train\"'")
    lines = {words[0]: " ".join(words[1:]) for line in out.splitlines() if (words := line.removeprefix("hook").split())}
    assert "after_evaluation" in lines["SaveBest"]
    assert "every event" not in out
    assert "2 steps" in lines["SaveEvery"]
    assert lines["TrainingTrace"].endswith("in every run")
    assert lines["Recorder"].endswith("in every run")


def test_check_answers_in_json(asyncloop):
    code, out, _ = asyncloop("check cfg.toml --json")
    found = json.loads(out)
    assert (code, found["ok"], found["exit_code"], found["problems"]) == (0, True, 0, [])
    assert found["sources"] == {"train": {"x": {"dtype": "float64", "shape": [4, 2]}}}
    assert found["outputs"]["loss"] == {"dtype": "float", "shape": []}


def test_check_tells_mistakes_in_json_with_their_places(asyncloop):
    code, out, _ = asyncloop("check cfg.toml --json --set engine.epochs=-1 --set nix.a=1")
    found = json.loads(out)
    assert (code, found["ok"], found["exit_code"]) == (2, False, 2)
    assert {problem["key"] for problem in found["problems"]} == {"engine.epochs", "nix"}


def test_check_finds_what_the_users_code_raises(asyncloop):
    code, out, err = asyncloop("check cfg.toml --json --set dataset.fail_at=0")
    assert (code, json.loads(out)["exit_code"]) == (3, 3)
    assert "pixel 0 is bad" in err


def test_print_config_is_toml_with_the_origin_of_each_value(asyncloop, project: Path):
    code, out, _ = asyncloop("check cfg.toml --print-config --set model.loss=0.25")
    assert code == 0
    assert tomllib.loads(out)["model"]["loss"] == 0.25
    lines = {line.partition(" ")[0]: line.partition("# ")[2] for line in out.splitlines() if "# " in line}
    assert lines["loss"] == "--set model.loss"
    assert lines["epochs"] == "cfg.toml:9:10"
    assert lines["buffer"] == "default"
    (project / "again.toml").write_text(out)
    assert asyncloop("check again.toml --print-config --json")[0] == 0


def test_print_config_tells_origins_of_hooks_and_of_extended_files(asyncloop, project: Path):
    (project / "base.toml").write_text('[[hooks]]\nclass = "parts:Blocking"\nhow = "c"\n')
    (project / "cfg.toml").write_text('extends = ["base.toml"]\n' + (project / "cfg.toml").read_text())
    _, out, _ = asyncloop("check cfg.toml --print-config --json")
    assert json.loads(out)["origins"]["hooks.0.how"] == "base.toml:3:7"


def test_hooks_lists_every_shipped_hook_with_its_parameters(asyncloop):
    code, out, _ = asyncloop("hooks --json")
    found = json.loads(out)
    assert code == 0
    assert {hook["name"] for hook in found["hooks"]} == {
        name for name in hooks.__all__ if isinstance(getattr(hooks, name), type)
    }
    assert all(hook["doc"].endswith(".") for hook in found["hooks"])
    assert {key["name"] for key in found["common"]} == set(COMMON_KEYS)


def test_hooks_is_a_table_with_one_line_each(asyncloop):
    code, out, _ = asyncloop("hooks")
    assert code == 0
    assert sum(line.startswith("ShowProgress ") for line in out.splitlines()) == 1
    assert any(line.startswith("every ") for line in out.splitlines())
