"""What a bus remembers for those who come later: bounded in events and bytes, and a gap is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting

from asyncloop import AfterEpoch, AfterEpochProfile, Engine, Gap
from asyncloop.stats import Timings

pytestmark = pytest.mark.anyio


class Fills:
    """Puts a large array into the data of each epoch."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    async def after_epoch(self, event: Any) -> None:
        event.data["train"]["picture"] = {"pixels": np.zeros(self.n_bytes, np.uint8)}


async def told_afterwards(engine: Engine, *kinds: Any) -> list[Any]:
    return [event async for event in engine.bus.events(*kinds)]


async def test_large_data_of_old_epochs_are_let_go_and_the_gap_is_told() -> None:
    engine = Engine(Counting(), Arrays(2), [Fills(20 * 2**20)], epochs=8, skip_zeroth_epoch=True)
    await engine.train()
    told = await told_afterwards(engine, AfterEpoch)
    assert isinstance(told[0], Gap)
    assert [event.epoch for event in told[1:]] == [6, 7, 8]


async def test_small_data_are_all_there() -> None:
    engine = Engine(Counting(), Arrays(2), [Fills(100)], epochs=30, skip_zeroth_epoch=True)
    await engine.train()
    assert [event.epoch for event in await told_afterwards(engine, AfterEpoch)] == [*range(1, 31)]


async def test_a_profile_is_remembered_without_single_durations() -> None:
    engine = Engine(Counting(), Arrays(50), epochs=1, skip_zeroth_epoch=True)
    await engine.train()
    (event,) = await told_afterwards(engine, AfterEpochProfile)
    timings = event.profile["eval_batch_train"]
    assert isinstance(timings, Timings)
    assert timings.count == 50
    assert timings.total > 0
    assert list(timings) == []
