"""Tests of asyncloop.torch: skipped where PyTorch or torchmetrics is not installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


@pytest.fixture(autouse=True)
def one_thread_and_its_own_random_numbers() -> Iterator[None]:
    """Sums depend on the number of threads; what a test draws must not depend on the tests before it."""
    n_threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n_threads)
    torch.random.set_rng_state(state)
