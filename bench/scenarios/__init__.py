"""Scenarios: a file for each question, or for a family of questions that share everything but a few numbers."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Plan, Scenario

__all__ = ["QUICK", "scenarios"]

QUICK = ("noop", "noop-hooks", "buffer-8", "triple", "digits-mlp", "latency")
"""What `--quick` measures."""


def scenarios() -> dict[str, Callable[[Plan], Scenario]]:
    """Name → how to build it for a plan. Building a scenario measures nothing but the speed of this machine."""
    from bench.scenarios import (
        backpressure,
        blocked,
        cancellation,
        digits,
        lag,
        latency,
        memory,
        overhead,
        overlap,
        startup,
        torch_model,
    )

    return {
        "noop": overhead.noop,
        "noop-hooks": overhead.noop_hooks,
        "buffer-8": overhead.buffer_8,
        "step-200us": overhead.step_200us,
        "digits-mlp": digits.mlp,
        "digits-cnn": digits.cnn,
        "torch-mlp": torch_model.mlp,
        "torch-cnn": torch_model.cnn,
        "io": overlap.io,
        "io-uneven": overlap.io_uneven,
        "hooks": overlap.hooks,
        "hooks-wide": overlap.hooks_wide,
        "triple": overlap.triple,
        "gil": overlap.gil,
        "checkpoint": overlap.checkpoint,
        "startup": startup.startup,
        "backpressure": backpressure.backpressure,
        "cancellation": cancellation.cancellation,
        "blocked": blocked.blocked,
        "latency": latency.latency,
        "lag": lag.lag,
        "memory": memory.memory,
        "soak": memory.soak,
    }
