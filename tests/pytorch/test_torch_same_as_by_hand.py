"""With the same seeds TorchModel in an Engine ends where a loop written by hand does, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_parts import ADAM, Data, a_model, by_hand, same_bits

from asyncloop import AfterBatch, Engine
from asyncloop.torch import EMA, Clip, Schedule

pytestmark = pytest.mark.anyio

COSINE = Schedule(kind="cosine", warmup=3, until=12, floor=0.1)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "microbatches": ({"microbatches": 4}, {"microbatches": 4}),
    "clipping": ({"clip": Clip(norm=0.5)}, {"clip": 0.5}),
    "bf16": ({"precision": "bf16"}, {"dtype": torch.bfloat16}),
    "fp16": ({"precision": "fp16"}, {"dtype": torch.float16}),
    "fp16, clipped, in parts": (
        {"precision": "fp16", "clip": Clip(norm=0.5), "microbatches": 2},
        {"dtype": torch.float16, "clip": 0.5, "microbatches": 2},
    ),
    "schedule": ({"schedule": COSINE}, {"factor": COSINE.factor_at}),
    "average": ({"ema": EMA(0.9)}, {"decay": 0.9}),
    "groups": ({"optimizer": {**ADAM, "groups": [{"match": "*.bias", "weight_decay": 0}]}}, {"groups": True}),
    "staged ahead": ({"ahead": 2}, {}),
}


async def trained(**settings: Any) -> tuple[Any, list[float]]:
    model = a_model(**settings)
    losses: list[float] = []
    engine = Engine(model, Data(), epochs=2, extra_streams=["valid"], on_unused_sources="ignore")
    engine.bus.subscribe(AfterBatch, lambda event: losses.append(event.outputs["loss"]), streams=["train"])
    engine.skip_zeroth_epoch = True
    await engine.train()
    return model, losses


@pytest.mark.parametrize("case", CASES)
async def test_a_run_ends_with_the_bits_of_a_loop_by_hand(case: str) -> None:
    settings, hand = CASES[case]
    model, losses = await trained(**settings)
    net, expected, average = by_hand(**hand)
    assert losses == expected
    state = model.state_dict()
    assert same_bits(state["module"], net.state_dict())
    if average is not None:
        assert same_bits({name: each for name, each in state["average"].items() if name in average}, average)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_compiled_module_ends_with_the_bits_of_a_compiled_loop_by_hand() -> None:
    model, losses = await trained(compile=True)
    net, expected, _ = by_hand(compiled=True)
    assert losses == expected
    assert same_bits(model.state_dict()["module"], net.state_dict())
