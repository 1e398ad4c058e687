"""A TorchModel with a state wherever it can have one: stopped after any step and resumed, it ends with the same bits."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping_project import CONFIG, digest, make_project, outcome
from torch_parts import on_asyncio

import asyncloop
from asyncloop.checkpoint import Checkpoints

pytestmark = pytest.mark.anyio

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x))
"""

MODEL = """
class = "asyncloop.torch:TorchModel"
module = { class = "exact_net:Net", width = 6 }
inputs = ["x"]
loss = { class = "torch.nn:CrossEntropyLoss" }
optimizer = { class = "torch.optim:AdamW", lr = 1e-2, groups = [{ match = "*.bias", weight_decay = 0 }] }
device = "cpu"
MORE
[engine]"""

AREA = '{ class = "torchmetrics.classification:MulticlassAUROC", num_classes = 2 }'
RIGHT = '{ class = "torchmetrics.classification:MulticlassAccuracy", num_classes = 2 }'

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "everything": (
        f"""
clip = {{ norm = 0.5 }}
ema = {{ decay = 0.9, warmup = true }}
schedule = {{ kind = "cosine", warmup = 4, until = 20, floor = 0.1 }}
metrics = {{ area = {AREA}, right = {RIGHT} }}
microbatches = 2
stages = [{{ until = 3, train = ["head"] }}, {{}}]
""",
        {"engine.evaluate_every": "3 steps"},
    ),
    "fp16 and a plateau": (
        """
precision = "fp16"
clip = { norm = 0.5 }
schedule = { kind = "plateau", patience = 0, factor = 0.5 }
ahead = 2
""",
        {
            "engine.evaluate_every": "5 steps",
            "model.optimizer": {"class": "torch.optim:SGD", "lr": 0.1, "momentum": 0.9},
        },
    ),
    "a scheduler of PyTorch's": (
        """
schedule = { class = "torch.optim.lr_scheduler:OneCycleLR", max_lr = 0.1, total_steps = 24 }
ema = { decay = 0.9 }
""",
        {},
    ),
}

Trained = Callable[..., Awaitable[Path]]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Train a variant, or go on with a run, until its end or until the environment says stop; the run's directory."""
    make_project(tmp_path)
    (tmp_path / "exact_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    for name in ("exact_parts", "exact_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    before, rest = CONFIG.split("[model]")[0], CONFIG.split("[engine]")[1]

    async def trained(variant: str = "", run: Path | None = None, **environment: object) -> Path:
        for name in ("STOP_AT", "STOP_IN_EVALUATION_AT"):
            monkeypatch.setenv(name, str(environment.get(name, "")))
        if run is None:
            more, changes = VARIANTS[variant]
            (tmp_path / "cfg.toml").write_text(f"{before}[model]{MODEL.replace('MORE', more)}{rest}")
            changes = {**changes, "hooks.0.variables": {"loss": ["mean", "std"]}}
            opened = asyncloop.open_run("cfg.toml", set=changes)
        else:
            opened = asyncloop.open_run(resume=run)
        async with opened as live:
            await live
        assert live.dir is not None
        return live.dir

    return trained


def end_of(run: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on where it was stopped, PyTorch's generator included."""
    saved = Checkpoints(run / "checkpoints").read()
    return {**outcome(run), "torch": digest(saved.engine["rng"]["torch"])}


@on_asyncio
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", VARIANTS)
async def test_stopped_after_each_step_it_ends_the_same(variant: str, trained: Trained) -> None:
    whole = end_of(await trained(variant))
    for step in range(1, whole["step"] + 1):
        run = await trained(variant, STOP_AT=step)
        assert end_of(await trained(run=run)) == whole, f"stopped after step {step}"


@on_asyncio
@pytest.mark.parametrize(
    ("variant", "step"), [("everything", 4), ("fp16 and a plateau", 10), ("a scheduler of PyTorch's", 7)]
)
async def test_stopped_in_its_middle_it_ends_the_same(variant: str, step: int, trained: Trained) -> None:
    whole = end_of(await trained(variant))
    run = await trained(variant, STOP_AT=step)
    assert end_of(await trained(run=run)) == whole


@on_asyncio
async def test_stopped_in_an_evaluation_it_ends_the_same(trained: Trained) -> None:
    whole = end_of(await trained("everything"))
    for step in (3, 8):
        run = await trained("everything", STOP_IN_EVALUATION_AT=step)
        assert end_of(await trained(run=run)) == whole, f"stopped in the evaluation after step {step}"


@on_asyncio
async def test_what_is_compared_depends_on_what_it_should(trained: Trained) -> None:
    """The proof is none if runs end alike whatever is lost: another seed and another state of the optimizer do not."""
    whole = end_of(await trained("everything"))
    run = await trained("everything", STOP_AT=4)
    checkpoint = Checkpoints(run / "checkpoints").read().model
    assert {"module", "updates", "average", "metrics"} <= checkpoint.keys()
    assert checkpoint["metrics"]["train"]["area"]["own"]["preds"], "inside the epoch"
    assert checkpoint["updates"]["n_updates"] == 4
    torch.manual_seed(1)
    async with asyncloop.open_run("cfg.toml", set={"run.seed": 6, "hooks.0.variables": ["loss"]}) as live:
        await live
    assert live.dir is not None
    other = end_of(live.dir)
    assert all(other[part] != whole[part] for part in ("model", "torch", "rng"))
