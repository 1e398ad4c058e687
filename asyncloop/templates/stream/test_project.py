"""The project trains: `pytest` in this directory."""

from pathlib import Path

import asyncloop


def test_it_learns(tmp_path: Path) -> None:
    result = asyncloop.run(Path(__file__).with_name("cfg.toml"), output_dir=tmp_path / "run")
    assert result.steps == 500
    assert result.metrics["valid"]["loss"] < 0.05
