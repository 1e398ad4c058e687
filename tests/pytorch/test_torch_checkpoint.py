"""Checkpoints of a TorchModel: nothing lost, nothing loaded that does not fit, and models that come from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_parts import Arrays, Counting
from safetensors.torch import load_file
from torch_parts import ADAM, Data, Net, a_model, on_asyncio, same_bits

import asyncloop
from asyncloop import Engine, ModelError
from asyncloop.checkpoint import Checkpoints
from asyncloop.torch import EMA, TorchModel

pytestmark = pytest.mark.anyio

CONFIG = """
run = { name = "small", root = "ROOT" }
dataset = { class = "torch_parts:Data" }
engine = { epochs = 1, extra_streams = ["valid"], on_unused_sources = "ignore" }
[model]
class = "asyncloop.torch:TorchModel"
module = { class = "torch_parts:Net" }
inputs = ["x"]
loss = { class = "torch.nn:CrossEntropyLoss" }
optimizer = { class = "torch.optim:AdamW", lr = 1e-2 }
ema = { decay = 0.5 }
schedule = { kind = "linear", until = 16 }
device = "cpu"
[[hooks]]
class = "WriteJSONL"
streams = ["train"]
"""


def config(folder: Path) -> Path:
    path = folder / "cfg.toml"
    path.write_text(CONFIG.replace("ROOT", str(folder / "runs")))
    return path


async def trained(path: Path, **options: Any) -> Path:
    async with asyncloop.open_run(path, **options) as live:
        await live
    assert live.dir is not None
    return live.dir


@on_asyncio
async def test_a_loaded_model_evaluates_with_the_average_of_its_run(tmp_path: Path) -> None:
    run = await trained(config(tmp_path))
    saved = Checkpoints(run / "checkpoints").read().model
    model = asyncloop.load_model(run)
    batch = Data(1).batches[0]
    loss = model.run(batch, train=False, stream="valid")["loss"]
    net = Net()
    net.load_state_dict({name: torch.tensor(value) for name, value in {**saved["module"], **saved["average"]}.items()})
    net.eval()
    expected = torch.nn.functional.cross_entropy(net(torch.from_numpy(batch["x"])), torch.from_numpy(batch["label"]))
    assert loss == expected.item()
    assert not np.array_equal(saved["module"]["head.weight"], saved["average"]["head.weight"])
    assert torch.equal(model.weights()["head.weight"], torch.tensor(saved["average"]["head.weight"]))


@on_asyncio
async def test_a_run_that_begins_with_old_weights_begins_its_schedule_anew(tmp_path: Path) -> None:
    path = config(tmp_path)
    old = await trained(path)
    new = await trained(path, init_from=old)
    lines = [map(json.loads, (run / "batches.jsonl").read_text().splitlines()) for run in (old, new)]
    rates = [[line["lr"] for line in each if "lr" in line] for each in lines]
    assert rates[0][0] == 1e-2
    assert rates[1] == rates[0]


@on_asyncio
async def test_the_file_of_a_checkpoint_is_read_by_safetensors_and_fits_the_module(tmp_path: Path) -> None:
    run = await trained(config(tmp_path))
    (folder,) = (run / "checkpoints").glob("step-*")
    content = load_file(folder / "model.safetensors")
    own = {name.removeprefix("module/"): value for name, value in content.items() if name.startswith("module/")}
    Net().load_state_dict(own)


@on_asyncio
async def test_weights_in_bfloat16_go_through_a_checkpoint_bit_by_bit(tmp_path: Path) -> None:
    class Half(Data):
        def __init__(self) -> None:
            super().__init__(4)
            self.batches = [{**each, "x": torch.from_numpy(each["x"]).bfloat16()} for each in self.batches]

    def half() -> TorchModel:
        return a_model(module=Net(dropout=0.0).bfloat16(), ema=EMA(0.5))

    def engine(model: TorchModel, epochs: int) -> Engine:
        return Engine(model, Half(), epochs=epochs, skip_zeroth_epoch=True, on_unused_sources="ignore")

    whole, first, second = half(), half(), half()
    await engine(whole, 2).train()
    async with asyncloop.open_run(engine=engine(first, 1), output_dir=tmp_path / "run") as live:
        await live
    async with asyncloop.open_run(engine=engine(second, 2), resume=tmp_path / "run") as live:
        assert (await live).steps == 8
    assert second.module.get_parameter("head.weight").dtype == torch.bfloat16
    for part in ("module", "average"):
        assert same_bits(second.state_dict()[part], whole.state_dict()[part])


# --- what does not fit --------------------------------------------------------------------------------------------


class Wider(Net):
    def __init__(self) -> None:
        super().__init__(width=20)


class Longer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.tail = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Wider(), r"the module 'body.0.weight' has shape \(16, 12\), expected \(20, 12\)"),
        (Longer(), r"the module lacks 'tail.weight', 'tail.bias'"),
        (torch.nn.Sequential(), r"the module has 'body.0.weight', .* and 3 more, which this model does not"),
    ],
)
def test_the_weights_of_another_network_are_refused_by_name_and_nothing_changes(module: Any, message: str) -> None:
    state = a_model().state_dict()
    other = a_model(module=module, optimizer=None)
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    for load in (other.load_state_dict, other.load_weights):
        with pytest.raises(ModelError, match=message):
            load(state)
    assert same_bits(other.module.state_dict(), before)


def test_another_optimizers_groups_are_refused_before_anything_is_changed() -> None:
    model, batch = a_model(), Data(1).batches[0]
    model.run(batch, train=True, stream="train")
    other = a_model(optimizer={**ADAM, "groups": [{"match": "*.bias", "weight_decay": 0}]})
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    with pytest.raises(ModelError, match="the optimizer had 1 groups of parameters, not 2"):
        other.load_state_dict(model.state_dict())
    assert same_bits(other.module.state_dict(), before)


def test_a_setting_that_the_config_changed_is_the_configs_and_the_others_are_the_checkpoints() -> None:
    model, batch = a_model(optimizer={**ADAM, "weight_decay": 0.1}), Data(1).batches[0]
    model.run(batch, train=True, stream="train")
    model.set_parameters(weight_decay=0.4)
    other = a_model(optimizer={**ADAM, "lr": 5e-2, "weight_decay": 0.1})
    other.load_state_dict(model.state_dict())
    assert other.updates is not None
    assert other.updates.optimizer.param_groups[0]["weight_decay"] == 0.4
    assert other.run(batch, train=True, stream="train")["lr"] == 5e-2


def test_a_state_without_an_average_gives_the_average_its_weights() -> None:
    model, batch = a_model(), Data(1).batches[0]
    model.run(batch, train=True, stream="train")
    other = a_model(ema=EMA(0.5))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.state_dict()["average"]["head.weight"], model.module.get_parameter("head.weight"))


@on_asyncio
async def test_a_resumed_run_computes_with_as_many_threads_as_before(tmp_path: Path) -> None:
    n_before = torch.get_num_threads()

    def with_three(n: int, train: bool) -> None:
        torch.set_num_threads(3)

    found: list[int] = []

    def look(n: int, train: bool) -> None:
        found.append(torch.get_num_threads())

    settings: dict[str, Any] = {"skip_zeroth_epoch": True, "own_rng": True, "output_dir": tmp_path}
    try:
        await Engine(Counting(with_three), Arrays(2), epochs=1, **settings).train()
        torch.set_num_threads(1)
        resumed = Engine(Counting(look), Arrays(2), epochs=2, **settings)
        resumed.restore(Checkpoints(tmp_path / "checkpoints").read())
        await resumed.train()
    finally:
        torch.set_num_threads(n_before)
    assert found == [3, 3]
