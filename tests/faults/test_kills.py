"""Killed at random instants, a run loses nothing: resumed, it ends bit by bit as one that nobody killed."""

from __future__ import annotations

import pytest
from kills import kill


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_thirty_runs_killed_three_times_each_end_as_one_that_was_not() -> None:
    tally = kill(30, seed=7)
    assert tally.broken == 0, "\n".join([str(tally), *tally.details])
    assert sum(tally.kills.values()) >= 60, f"hardly anything was killed: {tally}"
