"""The same tests on asyncio, uvloop and trio, and nothing left behind by any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    """Every thread is owned: whoever starts one ends it. (A second's grace for threads that are just returning.)"""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 1.0
    while left := {t for t in threading.enumerate() if t.name.startswith("asyncloop")} - before:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {sorted(t.name for t in left)}")
        time.sleep(0.005)
