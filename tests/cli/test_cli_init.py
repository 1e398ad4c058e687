"""`asyncloop init`: projects that check, train, evaluate and pass their own test as they are made."""

import importlib.util
import json
from pathlib import Path

import pytest

FILES = {"cfg.toml", "cfg.schema.json", "data.py", "model.py", "test_project.py"}


@pytest.mark.parametrize("template", ["numpy", "stream", "torch"])
def test_a_project_trains_as_it_is_made(asyncloop, project: Path, template: str):
    if template == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    code, out, err = asyncloop(f"init new --template {template}")
    assert (code, {Path(line).name for line in out.splitlines()}) == (0, FILES)
    assert "cd new && asyncloop check cfg.toml" in err
    assert (project / "new" / "cfg.toml").read_text().startswith("#:schema ./cfg.schema.json\n")
    assert asyncloop("check new")[0] == 0
    code, out, _ = asyncloop("run new --json --progress none")
    assert code == 0
    assert json.loads(out)["metrics"]["valid"]["loss"] < 0.3
    assert asyncloop("eval valid latest --progress none")[0] == 0


@pytest.mark.parametrize("template", ["numpy", "stream"])
def test_its_own_test_passes(asyncloop, project: Path, template: str):
    import subprocess
    import sys

    assert asyncloop(f"init new --template {template}")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_project.py"]
    done = subprocess.run(command, cwd=project / "new", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten_and_nothing_half_made(asyncloop, project: Path):
    before = {path: path.read_text() for path in project.iterdir()}
    code, out, err = asyncloop("init .")
    assert (code, out) == (2, "")
    assert "cfg.toml: there already; nothing was written" in err
    assert {path: path.read_text() for path in project.iterdir()} == before


def test_a_directory_that_cannot_be_written_is_named(asyncloop, project: Path):
    (project / "file").write_text("")
    code, _, err = asyncloop("init file/in")
    assert code == 4
    assert "cannot write file/in" in err
    assert "Traceback" not in err


def test_a_template_that_is_not_there_is_refused_with_those_that_are(asyncloop):
    code, _, err = asyncloop("init new --template jax")
    assert code == 2
    assert all(name in err for name in ("numpy", "torch", "stream"))
