"""Fetch: the copy begins behind the work that makes the array, on a stream of its own, and the array is kept until it is done."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyncloop import fetching
from asyncloop.fetching import Fetch, is_on_device, to_host


class Stream:
    """A stream that notes what is queued on it; nothing happens before `run`."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def wait_stream(self, other: Stream) -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


class Event:
    """Has passed when the test says so."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.passed, self.n_waits = cuda, False, 0
        cuda.events.append(self)

    def record(self, stream: Stream) -> None:
        self.cuda.calls.append(f"event on {stream.name}")

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.n_waits += 1


class Cuda:
    """As much of torch.cuda as a Fetch uses."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[Event] = []
        self.streams: list[Stream] = []
        self.now = self.main = Stream("main", self.calls)

    def Stream(self, device: str) -> Stream:
        self.streams.append(Stream(f"side of {device}", self.calls))
        return self.streams[-1]

    def Event(self) -> Event:
        return Event(self)

    def current_stream(self, device: str) -> Stream:
        return self.now

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before


class Array:
    """An array on a GPU."""

    is_cuda, is_cpu, device = True, False, "cuda:0"

    def __init__(self, cuda: Cuda, value: float) -> None:
        self.cuda, self.value = cuda, value

    def detach(self) -> Array:
        return self

    def to(self, device: str, *, non_blocking: bool) -> torch.Tensor:
        assert (device, non_blocking) == ("cpu", True)
        self.cuda.calls.append(f"copy on {self.cuda.now.name}")
        return torch.tensor(self.value)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    monkeypatch.setattr(fetching, "sys", SimpleNamespace(modules={**sys.modules, "torch": SimpleNamespace(cuda=found)}))
    monkeypatch.setattr(fetching, "_own", fetching.threading.local())
    return found


def test_a_copy_waits_for_the_work_before_it_and_tells_when_it_is_done(cuda: Cuda) -> None:
    fetch = Fetch({"a": Array(cuda, 1.0), "nested": {"b": Array(cuda, 2.0)}, "host": 3.0})
    once = ["side of cuda:0 waits for main", "copy on side of cuda:0", "event on side of cuda:0"]
    assert cuda.calls == once * 2
    assert len(cuda.streams) == 1, "one for all copies of a thread"
    assert cuda.now is cuda.main
    assert not fetch.is_ready
    cuda.events[1].passed = True
    assert not fetch.is_ready, "the first one has not"
    cuda.events[0].passed = True
    assert fetch.is_ready
    assert fetch.take() == {"a": 1.0, "nested": {"b": 2.0}, "host": 3.0}
    assert [event.n_waits for event in cuda.events] == [0, 0], "nobody waited"


def test_who_takes_what_has_not_arrived_waits_for_it(cuda: Cuda) -> None:
    fetch = Fetch({"a": Array(cuda, 1.0)})
    assert fetch.take() == {"a": 1.0}
    assert cuda.events[0].n_waits == 1


def test_an_array_is_kept_until_its_copy_is_taken_and_no_longer(cuda: Cuda) -> None:
    array = Array(cuda, 1.0)
    kept = weakref.ref(array)
    fetch = Fetch({"a": array})
    del array
    gc.collect()
    assert kept() is not None, "its memory must not be given to others while it is copied"
    fetch.take()
    gc.collect()
    assert kept() is None


def test_what_is_on_the_host_is_ready_at_once_and_stays_the_object_it_is() -> None:
    array = np.ones(2)
    fetch = Fetch({"array": array, "number": 1.5, "word": "a"})
    assert fetch.is_ready
    taken = fetch.take()
    assert taken["array"] is array
    assert (taken["number"], taken["word"]) == (1.5, "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_become_arrays_whatever_their_dtype_and_graph(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype)
    if dtype.is_floating_point:
        tensor.requires_grad_()
    found = to_host({"nested": {"tensor": tensor}})["nested"]["tensor"]
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, np.ones((2, 3)))


def test_what_is_on_no_device_is_on_the_host() -> None:
    assert not any(is_on_device(value) for value in (1.0, "a", np.ones(2), torch.ones(2), None))
    assert is_on_device(torch.ones(2, device="meta"))
