"""TorchModel on the CPU: the networks of `digits`, as most users bring theirs, beside the bare loop and the trainers of PyTorch."""

from __future__ import annotations

from bench.digits import Network
from bench.harness import Plan, Scenario
from bench.scenarios.digits import TIMES_BARE, digits_scenario, without_hooks
from bench.scenarios.goals import goal_of_row
from bench.systems import named
from bench.systems.asyncloop import MAIN
from bench.systems.torch_model import TORCH_MODELS

__all__ = ["cnn", "mlp"]

BESIDE = (*MAIN, "ignite", "ignite + DataLoader(0)", "Lightning + DataLoader(0)", "accelerate + DataLoader(0)")
"""asyncloop with a model written by hand shows what TorchModel itself adds."""


def mlp(plan: Plan) -> Scenario:
    """TorchModel with a step of one or two hundred microseconds: everything around the operators shows."""
    return _on_digits("torch-mlp", "mlp", plan.n(1500), must=1.10, moonshot=1.05)


def cnn(plan: Plan) -> Scenario:
    """TorchModel with a step of a millisecond or two."""
    return _on_digits("torch-cnn", "cnn", plan.n(300), must=1.03, moonshot=1.00)


def _on_digits(name: str, network: Network, n: int, must: float, moonshot: float) -> Scenario:
    main = [system.name for system in TORCH_MODELS]
    rows = [*main, *map(without_hooks, TORCH_MODELS)]
    goals = [goal_of_row(TIMES_BARE, row, must, moonshot) for row in rows]
    return digits_scenario(name, network, n, [*TORCH_MODELS, *named(BESIDE)], goals, main, hookless=TORCH_MODELS)
