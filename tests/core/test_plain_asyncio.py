"""Inside a loop that anyio did not start, as in a notebook or a web framework: what threads ask of the loop must work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from engine_parts import Arrays, Counting

from asyncloop import BeforeBatch, Engine, Hook, Stream


def test_a_dear_chain_moves_to_a_thread() -> None:
    def load(i: int) -> dict[str, Any]:
        time.sleep(0.0005)
        return {"x": np.full(2, i)}

    model = Counting()
    asyncio.run(Engine(model, Arrays()).epoch(train=[Stream.range(40).map(load, worker="inline")]))
    assert model.trained_on == list(range(40))


def test_an_async_model_and_a_hook_before_the_batch() -> None:
    class Slow(Counting):
        async def run(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            await asyncio.sleep(0)
            return super().run(batch, train=train, stream=stream)

    class Doubling(Hook):
        async def before_batch(self, event: BeforeBatch) -> None:
            event.feeds["x"] = event.feeds["x"] * 2

    model = Slow()
    asyncio.run(Engine(model, Arrays(3), [Doubling()], epochs=1, skip_zeroth_epoch=True).train())
    assert model.trained_on == [0, 2, 4]
