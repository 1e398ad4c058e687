"""`asyncloop init`: projects that check, train, evaluate and pass their own test as they are made."""

import importlib.util
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

FILES = {"cfg.toml", "cfg.schema.json", "data.py", "model.py", "test_project.py", ".gitignore", "pytest.ini"}

every_template = pytest.mark.parametrize(
    "template",
    [
        "numpy",
        "stream",
        pytest.param(
            "torch",
            marks=pytest.mark.skipif(
                any(importlib.util.find_spec(name) is None for name in ("torch", "torchmetrics")),
                reason="PyTorch or torchmetrics is not installed",
            ),
        ),
    ],
)


@every_template
def test_a_project_trains_as_it_is_made(asyncloop, project: Path, template: str):
    code, out, err = asyncloop(f"init new --template {template}")
    assert (code, {Path(line).name for line in out.splitlines()}) == (0, FILES)
    assert "cd new && asyncloop check cfg.toml" in err
    assert (project / "new" / "cfg.toml").read_text().startswith("#:schema ./cfg.schema.json\n")
    assert asyncloop("check new")[0] == 0
    code, out, _ = asyncloop("run new --json --progress none")
    assert code == 0
    assert json.loads(out)["metrics"]["valid"]["loss"] < 0.3
    assert asyncloop("eval valid latest --progress none")[0] == 0


@every_template
def test_its_own_test_passes(asyncloop, project: Path, template: str):
    import subprocess
    import sys

    assert asyncloop(f"init new --template {template}")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_project.py"]
    done = subprocess.run(command, cwd=project / "new", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_its_test_passes_beside_a_run_that_holds_a_copy_of_it(asyncloop, project: Path):
    assert asyncloop("init new")[0] == 0
    assert asyncloop("run new --progress none --set engine.epochs=1 --set run.root=new/runs")[0] == 0
    (run,) = (project / "new" / "runs").iterdir()
    assert (run / "code" / "test_project.py").is_file()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "new"], cwd=project, capture_output=True, text=True)
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


def test_a_file_in_the_place_of_the_directory_is_said_to_be_one(asyncloop):
    code, out, err = asyncloop("init cfg.toml")
    assert (code, out) == (2, "")
    assert "cfg.toml is a file; name the directory to make the project in" in err


@pytest.mark.parametrize(("template", "size"), [("numpy", "hidden"), ("stream", "window")])
def test_a_template_refuses_the_weights_of_another_network(template: str, size: str):
    source = resources.files("asyncloop") / "templates" / template / "model.py"
    names: dict = {}
    exec(source.read_text(encoding="utf-8"), names)
    model = names["TwoLayers" if template == "numpy" else "LinearPredictor"]
    saved = model(**{size: 7}).state_dict()
    model(**{size: 7}).load_state_dict(saved)
    with pytest.raises(ValueError, match=rf"7.*9.*another.*|7.*9.*`{size}`"):
        model(**{size: 9}).load_state_dict(saved)


def test_a_template_that_is_not_there_is_refused_with_those_that_are(asyncloop):
    code, _, err = asyncloop("init new --template jax")
    assert code == 2
    assert all(name in err for name in ("numpy", "torch", "stream"))
