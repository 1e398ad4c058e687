"""docs/torch.md: its project runs as it stands there, each of its examples of an argument too, and no argument is left out."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_parts import on_asyncio

import asyncloop
from asyncloop.torch import TorchModel

PAGE = (Path(__file__).parent.parent.parent / "docs" / "torch.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def file_name(block: str) -> str | None:
    found = re.match(r"# (\w+\.(?:toml|py))\n", block)
    return found[1] if found else None


FILES = {name: block for _, block in BLOCKS if (name := file_name(block))}
FRAGMENTS = [block for kind, block in BLOCKS if kind == "toml" and file_name(block) is None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files, and weights for those that load some."""
    for name, block in FILES.items():
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    search_path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = search_path
    for name in {Path(name).stem for name in FILES} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_runs_from_the_first_command_to_the_last(project: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    n_commands = 0
    for kind, block in BLOCKS:
        if kind == "sh":
            for command in block.splitlines():
                run("-m", *command.split(), *(["--progress", "none"] if command.split()[1] == "run" else []))
                n_commands += 1
        elif kind == "python" and file_name(block) is None:
            (project / "program.py").write_text(block)
            told = run("program.py").splitlines()
            assert "tensor" in told[0], "of two examples, three numbers each"
            assert float(told[-1]) < 1.0
    assert n_commands >= 6
    confused = [run / "metrics.jsonl" for run in (project / "runs").iterdir() if (run / "metrics.jsonl").exists()]
    assert any("confusion" in path.read_text() for path in confused)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fragment", FRAGMENTS, ids=[next(iter(tomllib.loads(each))) for each in FRAGMENTS])
async def test_what_is_said_of_an_argument_trains(fragment: str, project: Path) -> None:
    from safetensors.torch import save_file

    torch.compiler.reset()
    code: dict[str, type[torch.nn.Module]] = {}
    exec(FILES["shapes.py"], code)
    weights = {f"encoder.{name}": value for name, value in code["Net"]().state_dict().items()}
    save_file({**weights, "encoder.head.weight": torch.zeros(9, 9)}, "old.safetensors")
    changes = {f"model.{name}": value for name, value in tomllib.loads(fragment).items()}
    short = {"engine.epochs": 2, "engine.epoch_size": 7}
    async with asyncloop.open_run("cfg.toml", set={**changes, **short}) as live:
        result = await live
    assert result.steps == 14
    assert live.dir is not None
    if "model.profile" in changes:
        assert list((live.dir / "profile").iterdir()) == [live.dir / "profile" / "steps-11-13.json"]
    if "model.metrics" in changes:
        assert 0 <= result.metrics["valid"]["accuracy"] <= 1


def test_every_argument_has_its_place_on_the_page() -> None:
    taken = set(inspect.signature(TorchModel).parameters) - {"output_dir"}
    shown = {name for each in FRAGMENTS for name in tomllib.loads(each)} | {"module"}
    arguments = PAGE.partition("## The arguments")[2].partition("\n## ")[0]
    heads = {
        name
        for head in re.findall(r"^\*\*(.*?)\.?\*\*", arguments, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", head)
    }
    assert heads == taken
    assert taken - shown == {"cuda_graphs"}, "which needs a GPU"


def test_blocks_are_of_kinds_that_a_test_runs() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "toml", "sh"}
    assert set(FILES) == {"shapes.py", "cfg.toml", "confused.py", "mixed.py", "loaded.py"}


def test_live_parameters_are_all_named() -> None:
    from torch_parts import a_model

    everything = a_model(clip={"norm": 1.0}, ema={"decay": 0.5}).live
    assert all(f"`{name}`" in PAGE for name in everything)
