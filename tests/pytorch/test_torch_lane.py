"""The lane to a GPU, with streams and events that only note what is asked of them, and PyTorch's meta device for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from asyncloop.batch import RunBatch
from asyncloop.torch.lane import Lane

META = torch.device("meta")


class Stream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def wait_event(self, event: Event) -> None:
        self.calls.append(f"{self.name} waits for event {event.number}")


class Event:
    """Has passed when the test says so."""

    def __init__(self, card: Card) -> None:
        self.card, self.number, self.passed = card, len(card.events), False
        card.events.append(self)

    def record(self, stream: Stream) -> None:
        self.card.calls.append(f"event {self.number} on {stream.name}")

    def query(self) -> bool:
        return self.passed


class Card:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[Event] = []
        self.main, self.side = Stream("main", self.calls), Stream("side", self.calls)
        self.now = self.main

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    found = Card()
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(found))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: found.now)
    monkeypatch.setattr(torch.cuda, "stream", found.stream)
    monkeypatch.setattr(torch.cuda, "device", found.device)

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        found.calls.append(f"pinned on {found.now.name}: {tensor.dtype}")
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return found


def a_lane(card: Card, *, channels_last: bool = False) -> Any:
    lane: Any = Lane(META, None, torch.float32, channels_last=channels_last)
    lane._stream = card.side
    return lane


def test_a_batch_is_pinned_and_copied_on_the_side_and_the_models_stream_waits_for_it(card: Card) -> None:
    lane, batch = a_lane(card), {"x": np.zeros(3), "word": np.array(["a"] * 3)}
    staged = lane.stage(batch)
    assert card.calls == ["pinned on side: torch.float32", "event 0 on side"]
    card.calls.clear()
    sources = lane.take(RunBatch(batch, staged))
    assert card.calls == ["main waits for event 0"]
    assert sources["x"].device == META
    assert sources["word"] is batch["word"]
    lane.used()
    assert card.calls[-1] == "event 1 on main"


def test_a_batch_that_nobody_has_staged_goes_the_same_way(card: Card) -> None:
    lane = a_lane(card)
    assert lane.take({"x": np.zeros(3)})["x"].device == META
    assert card.calls == ["pinned on side: torch.float32", "event 0 on side", "main waits for event 0"]


def test_what_is_on_the_device_already_is_touched_on_the_models_stream_only(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_on: list[str] = []
    to = torch.Tensor.to

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        changed_on.append(card.now.name)
        return to(tensor, *args, **kwargs)

    lane = a_lane(card, channels_last=True)
    batch = {"image": torch.zeros(2, 3, 4, 4, device=META, dtype=torch.float64), "label": torch.zeros(2, device=META)}
    monkeypatch.setattr(torch.Tensor, "to", noted)
    staged = lane.stage(batch)
    assert changed_on == [], "it may have been made on another stream, which this one does not wait for"
    sources = lane.take(RunBatch(batch, staged))
    assert set(changed_on) == {"main"}
    assert sources["image"].dtype == torch.float32
    assert sources["image"].is_contiguous(memory_format=torch.channels_last)
    assert sources["label"] is batch["label"]
    assert not [call for call in card.calls if "pinned" in call]


def test_a_batch_is_kept_until_the_work_with_it_is_over(card: Card) -> None:
    lane = a_lane(card)
    for _ in range(3):
        lane.take({"x": np.zeros(3)})
        lane.used()
    assert len(lane._in_use) == 3
    first, second, third = (event for event, _ in lane._in_use)
    second.passed = True
    lane.take({"x": np.zeros(3)})
    lane.used()
    assert len(lane._in_use) == 4, "in order: the first is not over"
    first.passed = True
    lane.take({"x": np.zeros(3)})
    lane.used()
    assert next(iter(lane._in_use))[0] is third
