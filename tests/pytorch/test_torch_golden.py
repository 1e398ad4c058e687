"""The losses of a fixed training are those in the repository: whoever changes what is computed has to say so."""

from __future__ import annotations

import json

import pytest
from golden import FILE, N_STEPS, losses
from torch_parts import on_asyncio

pytestmark = pytest.mark.anyio


@on_asyncio
async def test_the_first_losses_are_those_of_the_repository() -> None:
    expected = json.loads(FILE.read_text())["losses"]
    assert len(expected) == N_STEPS
    assert await losses() == pytest.approx(expected, rel=1e-5)
    assert min(expected) < 0.85 * expected[0], "and it learns"
