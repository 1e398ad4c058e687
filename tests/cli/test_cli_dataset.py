"""`asyncloop dataset`, `doctor` and `schema`: what they find, in words and as JSON."""

import json
from pathlib import Path

import pytest

DATA = """
import asyncio
import numpy as np

class Data:
    def __init__(self, n: int = 3, broken: bool = False):
        self.n, self.broken = n, broken
    async def __aenter__(self):
        self.open = True
        return self
    async def __aexit__(self, *trouble):
        self.open = False
    async def train_stream(self):
        assert self.open
        yield {"x": np.arange(6.0).reshape(2, 3), "name": ["a", "b"]}
    def valid_stream(self):
        if self.broken:
            raise RuntimeError("no file")
        yield {"x": np.zeros((2, 3), dtype=np.uint8)}
    def statistics(self):
        return {"n": self.n}
    def fetch(self, url, *, folder, quick=True):
        pass
    async def download(self):
        await asyncio.sleep(0)
        print("downloading")
"""


@pytest.fixture
def data(project: Path) -> Path:
    """A config with nothing but a dataset: the model is not written yet."""
    (project / "mine.py").write_text(DATA)
    (project / "cfg.toml").write_text('[dataset]\nclass = "mine:Data"\nn = 7\n')
    return project


def test_the_streams_of_a_dataset_are_shown_without_a_model(asyncloop, data):
    code, out, _ = asyncloop("dataset info cfg.toml")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["stream", "source", "dtype", "shape", "range"]
    assert lines[1] == ["train", "x", "float64", "2", "×", "3", "0", "…", "5"]
    assert lines[2] == ["train", "name", "list", "2", "–"]
    assert lines[3] == ["valid", "x", "uint8", "2", "×", "3", "0", "…", "0"]
    found = json.loads(asyncloop("dataset info cfg.toml --json")[1])
    assert found["streams"]["train"][0] == {"source": "x", "dtype": "float64", "shape": [2, 3], "min": 0, "max": 5}


def test_a_stream_that_fails_does_not_hide_the_others(asyncloop, data):
    code, out, err = asyncloop("dataset info cfg.toml --set dataset.broken=true")
    assert code == 3
    assert "float64" in out
    assert "stream 'valid': RuntimeError: no file" in err


def test_a_method_is_called_and_its_result_printed(asyncloop, data):
    assert asyncloop("dataset statistics cfg.toml")[:2] == (0, "{'n': 7}\n")
    assert asyncloop("dataset statistics cfg.toml --json --set dataset.n=8")[:2] == (0, '{"n": 8}\n')
    assert asyncloop("dataset download cfg.toml")[:2] == (0, "downloading\n")


def test_mistakes_are_told_with_their_exit_codes(asyncloop, data):
    code, _, err = asyncloop("dataset statistic cfg.toml")
    assert (code, "did you mean 'statistics'" in err) == (2, True)
    code, _, err = asyncloop("dataset info cfg.toml --set dataset.m=1")
    assert (code, "`m` is no argument" in err) == (2, True)
    (data / "cfg.toml").write_text('[model]\nclass = "mine:Data"\n')
    code, _, err = asyncloop("dataset info cfg.toml")
    assert (code, "there is no [dataset]" in err) == (2, True)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fetch", "Data.fetch needs url, folder, and is called without arguments here"),
        ("train_stream", "train_stream is a stream: `asyncloop dataset info cfg.toml` shows its first batch"),
        ("__init__", "Data has no method '__init__'"),
        ("__class__", "Data has no method '__class__'"),
    ],
)
def test_a_method_that_cannot_be_called_so_is_refused_in_words(asyncloop, data, method, message):
    code, out, err = asyncloop(f"dataset {method} cfg.toml")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_place_for_the_schema_that_cannot_be_written_is_named(asyncloop, project: Path):
    code, _, err = asyncloop("schema --output nowhere/x.json")
    assert (code, err.count("\n")) == (4, 1)
    assert f"cannot write {project}/nowhere/x.json: No such file or directory; " in err
    assert ".tmp-" not in err


def test_the_doctor_says_what_a_missing_place_for_temporary_files_means(monkeypatch, tmp_path):
    from asyncloop.cli import doctor

    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.tempfile, "gettempdir", refuse)
    assert ["TMPDIR" in each.advice for each in doctor._disk() if each.what == "temporary files"] == [True]
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    advice = {each.what: each.advice for each in doctor._disk()}
    assert "runs are made" in advice["current directory"]
    assert "TMPDIR" in advice["temporary files"]


def test_the_doctor_reports_versions_and_a_file_that_hides_a_module(asyncloop, project: Path):
    code, out, _ = asyncloop("doctor")
    assert code == 0
    assert all(word in out for word in ("asyncloop", "python", "numpy", "cores", "current directory"))
    (project / "secrets.py").write_text("")
    found = json.loads(asyncloop("doctor --json")[1])
    hidden = [each for each in found if each["what"] == "secrets.py"]
    assert hidden[0]["verdict"] == "warning"
    assert "rename it" in hidden[0]["advice"]


def test_the_schema_is_printed_or_written(asyncloop, data):
    code, out, _ = asyncloop("schema cfg.toml")
    assert code == 0
    assert json.loads(out)["properties"]["dataset"]
    assert asyncloop("schema cfg.toml --output cfg.schema.json")[:2] == (0, "")
    assert json.loads((data / "cfg.schema.json").read_text()) == json.loads(out)
