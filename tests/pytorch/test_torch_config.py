"""Mistakes in the config of a TorchModel: told with their place and the nearest name, and nothing is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch_parts import on_asyncio

import asyncloop
from asyncloop import ConfigError, DataError
from asyncloop.runs import check

pytestmark = pytest.mark.anyio

CONFIG = """
[dataset]
class = "torch_parts:Data"
[model]
class = "asyncloop.torch:TorchModel"
module = { class = "torch_parts:Net", width = 16 }
inputs = ["x"]
loss = { class = "torch.nn:CrossEntropyLoss", inputs = ["output", "label"] }
optimizer = { class = "torch.optim:AdamW", lr = 1e-2, groups = [{ match = "*.bias", weight_decay = 0 }] }
metrics = { right = { class = "torchmetrics.classification:MulticlassAccuracy", num_classes = 4 } }
schedule = { kind = "cosine", until = 30 }
device = "cpu"
[engine]
epochs = 1
extra_streams = ["valid"]
on_unused_sources = "ignore"
""".lstrip()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    search_path = list(sys.path)
    yield tmp_path
    sys.path[:] = search_path


async def refused(before: str, after: str) -> str:
    """What checking the config says after a change."""
    assert before in CONFIG
    Path("cfg.toml").write_text(CONFIG.replace(before, after, 1))
    made = set(Path().iterdir())
    with pytest.raises(ConfigError) as caught:
        await check("cfg.toml")
    with pytest.raises(ConfigError):
        async with asyncloop.open_run("cfg.toml"):
            pass
    assert set(Path().iterdir()) == made, "nothing was made"
    (problem,) = caught.value.problems
    return problem


MISTAKES = [
    ("width = 16", "widht = 16", r"5:39: `widht` is no argument of \[model.module\]; did you mean `width`\?"),
    ("width = 16", 'width = "16"', r"5:47: model.module.width must be an integer, not the string"),
    ("torch_parts:Net", "torch_parts:Nett", r"5:20: .*no `Nett` in `torch_parts`; did you mean `Net`\?"),
    ("CrossEntropyLoss", "CrossEntropyLos", r"7:18: .*no `CrossEntropyLos` in `torch.nn`; did you mean `CrossEntropyLoss`"),
    ('inputs = ["output"', 'weigth = 2, inputs = ["output"', r"7:47: `weigth` is no argument .*; did you mean `weight`"),
    ('["output", "label"]', '"output"', r"7:8: loss.inputs: Input should be a valid array"),
    ("lr = 1e-2", "l_r = 1e-2", r"8:44: `l_r` is no argument of \[model.optimizer\]"),
    ("torch.optim:AdamW", "torch.optim.AdamW", r'8:23: .*did you mean "torch.optim:AdamW"\?'),
    ("lr = 1e-2", "lr = -1.0", r"8:13: optimizer: AdamW refuses its arguments: Invalid learning rate: -1.0"),
    ("*.bias", "*.bais", r"8:13: optimizer: group 0: the pattern '\*\.bais' matches no name; did you mean 'head.bias'\?"),
    ("weight_decay", "weight_decya", r"8:13: optimizer: group 0: AdamW has no option 'weight_decya'; did you mean 'weight_"),
    ('[{ match = "*.bias", weight_decay = 0 }]', '"bias"', r"8:13: optimizer: groups is a list of tables"),
    ('match = "*.bias", ', "", r"8:13: optimizer: group 0 has no `match`"),
    ("num_classes", "num_clases", r"9:11: metrics.right: .*'num_clases'; did you mean 'num_classes'\?"),
    ("until = 30", "untill = 30", r"10:40: model.schedule.untill: there is no such key; did you mean 'until'\?"),
    ("cosine", "cosin", r'10:21: model.schedule.kind must be "constant", .*did you mean `cosine`\?'),
    (", until = 30", "", r"10:12: .*a cosine schedule needs `until`"),
    ("until = 30", 'until = "3 epochs"', r"10:39: model.schedule.until: a span is counted in steps, such as \"500 steps\""),
    (
        'kind = "cosine", until = 30',
        'class = "torch.optim.lr_scheduler:OneCycleLR", max_lrr = 3',
        r"10:61: `max_lrr` is no argument of \[model.schedule\]; did you mean `max_lr`\?",
    ),
    ('device = "cpu"', 'precision = "bf61"', r'11:13: model.precision must be .*did you mean `bf16`\?'),
    ('device = "cpu"', "clip = { nrom = 1.0 }", r"11:17: model.clip.nrom: there is no such key; did you mean 'norm'\?"),
    ('device = "cpu"', "ema = { decay = 1.5 }", r"11:7: .*decay is at least 0 and less than 1, not 1.5"),
    ('device = "cpu"', 'stages = [{ untill = 3 }, {}]', r"11:22: model.stages.0.untill: .*did you mean 'until'\?"),
    ('device = "cpu"', 'freeze = ["boddy"]', r"11:10: freeze: the pattern 'boddy' matches no name; did you mean 'body\."),
    ('device = "cpu"', 'weights = "nowhere.pt"', r"11:11: weights: there is no file .*nowhere.pt"),
    ('device = "cpu"', 'optimiser = 3', r"11:1: `optimiser` is no argument of \[model\]; did you mean `optimizer`\?"),
]  # fmt: skip


@on_asyncio
@pytest.mark.parametrize(("before", "after", "message"), MISTAKES, ids=[after[:30] for _, after, _ in MISTAKES])
async def test_a_mistake_is_told_with_its_place_and_nothing_is_made(before: str, after: str, message: str) -> None:

    problem = await refused(before, after)
    assert re.search(rf"cfg\.toml:{message}", problem), problem


@on_asyncio
async def test_the_config_as_it_is_runs() -> None:
    Path("cfg.toml").write_text(CONFIG)
    assert (await check("cfg.toml")).problems == []
    async with asyncloop.open_run("cfg.toml") as live:
        result = await live
    assert 0 <= result.metrics["valid"]["right"] <= 1


@on_asyncio
async def test_a_loss_input_that_nobody_gives_is_found_by_check_and_before_the_first_step() -> None:
    Path("cfg.toml").write_text(CONFIG.replace('"label"]', '"lable"]', 1))
    with pytest.raises(DataError, match=r"stream 'train' lacks the model's inputs 'lable'; it has 'x', 'label', 'id'"):
        await check("cfg.toml")
    with pytest.raises(DataError, match=r"stream 'train', batch 0 lacks the model's inputs 'lable'"):
        async with asyncloop.open_run("cfg.toml", set={"engine.skip_zeroth_epoch": True}) as live:
            await live
    assert live.progress.step == 0


@on_asyncio
async def test_shapes_that_do_not_match_are_found_by_check() -> None:
    Path("cfg.toml").write_text(CONFIG)
    Path("nets.py").write_text("from torch import nn\n\ndef wrong():\n    return nn.Linear(5, 4)\n")
    change = {"model.module": {"class": "nets:wrong"}, "model.optimizer.groups": []}
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(16x12 and 5x4\)") as caught:
        await check("cfg.toml", set=change)
    assert "model.run on stream 'train', batch 0" in caught.value.__notes__


@on_asyncio
async def test_outputs_that_the_module_does_not_return_are_found_by_check() -> None:
    Path("cfg.toml").write_text(CONFIG.replace('device = "cpu"', 'device = "cpu"\noutputs = ["logits", "more"]'))
    with pytest.raises(asyncloop.ModelError, match="returned 1 values, and `outputs` names 2: 'logits', 'more'"):
        await check(
            "cfg.toml", set={"model.loss.inputs": ["logits"], "model.metrics.right.inputs": ["logits", "label"]}
        )


@on_asyncio
async def test_the_whole_config_is_the_same_after_a_run_has_stored_it() -> None:
    Path("cfg.toml").write_text(CONFIG)
    async with asyncloop.open_run("cfg.toml") as live:
        await live
    assert live.dir is not None
    resolved = tomllib.loads((live.dir / "resolved.toml").read_text())["model"]
    given = tomllib.loads(CONFIG)["model"]
    assert {name: resolved[name] for name in given} == given


def test_without_pytorch_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "cfg.toml").write_text(CONFIG.replace("torch_parts:", "parts:"))
    (tmp_path / "parts.py").write_text("class Data:\n    def train_stream(self):\n        yield {'x': [1]}\n")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(
        "import sys\n\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "blocked")}

    def asyncloop_command(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "asyncloop", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    for words in (("check", "cfg.toml"), ("run", "cfg.toml")):
        code, told = asyncloop_command(*words)
        assert code == 2, told
        assert "cfg.toml:4:9" in told
        assert "PyTorch is not installed: pip install 'asyncloop[torch]'" in told
        assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()
    assert asyncloop_command("hooks")[0] == 0
