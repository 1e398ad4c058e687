"""A model of PyTorch, written by hand: stopped after each step and resumed, it ends with the same bits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stopping_project import CONFIG, make_project, outcome

import asyncloop

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

PARTS = '''
import torch
from torch import nn


class Net:
    """Dropout from torch's global generator, Adam with its moments, float32."""

    input_names, output_names = ("x", "label"), ("loss", "accuracy")

    def __init__(self, hidden: int = 6):
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, 2))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)

    def run(self, batch, *, train, stream):
        x, label = torch.as_tensor(batch["x"]), torch.as_tensor(batch["label"])
        self.net.train(train)
        with torch.set_grad_enabled(train):
            logits = self.net(x)
            loss = nn.functional.cross_entropy(logits, label)
        if train:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"loss": loss.detach(), "accuracy": (logits.detach().argmax(1) == label).float().mean()}

    def state_dict(self):
        optimizer = self.optimizer.state_dict()
        return {"net": dict(self.net.state_dict()), "moments": {str(k): dict(v) for k, v in optimizer["state"].items()}}

    def load_state_dict(self, state):
        self.net.load_state_dict({name: torch.as_tensor(value) for name, value in state["net"].items()})
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            int(k): {name: torch.as_tensor(value) for name, value in v.items()} for k, v in state["moments"].items()
        }
        self.optimizer.load_state_dict(optimizer)
'''


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.anyio
async def test_stopped_after_each_step_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path)
    (tmp_path / "torch_parts.py").write_text(PARTS)
    model, _, rest = CONFIG.partition("[model]")[2].partition("[engine]")
    (tmp_path / "cfg.toml").write_text(CONFIG.replace(model, '\nclass = "torch_parts:Net"\n\n'))
    assert rest
    monkeypatch.chdir(tmp_path)
    for name in ("exact_parts", "torch_parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.set_num_threads(1)

    async def trained(run: Path | None, stop_at: str) -> Path:
        monkeypatch.setenv("STOP_AT", stop_at)
        async with asyncloop.open_run("cfg.toml") if run is None else asyncloop.open_run(resume=run) as live:
            await live
        assert live.dir is not None
        return live.dir

    whole = outcome(await trained(None, ""))
    for step in range(1, whole["step"] + 1):
        run = await trained(None, str(step))
        assert outcome(await trained(run, "")) == whole, f"stopped after step {step}"
