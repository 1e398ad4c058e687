"""Schedules: each kind against its formula, plateaus driven by evaluations, and PyTorch's own by class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch_parts import ADAM, Data, Net, a_model, on_asyncio, train

from asyncloop import AfterBatch, AfterEvaluation, ConfigError, Engine, Hook
from asyncloop.hooks import ComputeStats
from asyncloop.states import copy_state
from asyncloop.torch import Schedule, TorchModel
from asyncloop.torch.schedules import Plateau

pytestmark = pytest.mark.anyio

WARM, UNTIL = 4, 14


def share(n: int) -> float:
    return (n - WARM) / (UNTIL - WARM)


FORMULAS: dict[str, tuple[Schedule, Any]] = {
    "constant": (Schedule(warmup=WARM), lambda n: 1.0),
    "linear": (Schedule("linear", WARM, UNTIL, floor=0.2), lambda n: 1 - 0.8 * share(n)),
    "cosine": (Schedule("cosine", WARM, UNTIL, floor=0.1), lambda n: 0.1 + 0.45 * (1 + math.cos(math.pi * share(n)))),
    "polynomial": (Schedule("polynomial", WARM, UNTIL, power=3.0), lambda n: (1 - share(n)) ** 3),
    "step": (Schedule("step", WARM, every=3, factor=0.5), lambda n: 0.5 ** ((n - WARM) // 3)),
    "step at": (Schedule("step", WARM, at=[6, 7], factor=0.5), lambda n: 0.5 ** ((n >= 6) + (n >= 7))),
    "plateau": (Schedule("plateau", WARM), lambda n: 1.0),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_schedule_is_its_formula_after_a_linear_warmup(kind: str) -> None:
    schedule, formula = FORMULAS[kind]
    assert [schedule.factor_at(n) for n in range(WARM)] == [0.25, 0.5, 0.75, 1.0]
    assert [schedule.factor_at(n) for n in range(WARM, UNTIL)] == pytest.approx(
        [formula(n) for n in range(WARM, UNTIL)], abs=1e-12
    )


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial"])
def test_a_schedule_with_an_end_stays_at_its_floor(kind: Any) -> None:
    schedule = Schedule(kind, until=10, floor=0.3)
    assert [schedule.factor_at(n) for n in (10, 11, 1000)] == pytest.approx([0.3] * 3)


def test_spans_are_also_written_with_their_unit() -> None:
    model = a_model(schedule={"kind": "cosine", "warmup": "2 steps", "until": "6 steps"})
    rates = [model.run(Data(1).batches[0], train=True, stream="train")["lr"] for _ in range(7)]
    expected = Schedule("cosine", 2, 6)
    assert rates == [1e-2 * expected.factor_at(n) for n in range(7)]
    assert rates[6] == 0.0


def test_groups_keep_their_own_base_rates() -> None:
    groups = [{"match": "*.bias", "lr": 0.5}]
    model = a_model(optimizer={**ADAM, "groups": groups}, schedule=Schedule("linear", until=4))
    for n in range(4):
        model.run(Data(1).batches[0], train=True, stream="train")
        assert model.updates is not None
        assert [group["lr"] for group in model.updates.optimizer.param_groups] == [
            1e-2 * (1 - n / 4),
            0.5 * (1 - n / 4),
        ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "cosine"}, "a cosine schedule needs `until`"),
        ({"kind": "linear", "warmup": 5, "until": 5}, "more steps than its warmup of 5"),
        ({"kind": "constant", "until": 5}, "`until` means nothing to it"),
        ({"kind": "step"}, "either `every` or `at`"),
        ({"kind": "step", "every": 2, "at": [3]}, "either `every` or `at`"),
        ({"kind": "step", "every": 0}, "`every` is at least one step, not 0"),
        ({"warmup": -1}, "`warmup` is at least 0, not -1"),
        ({"kind": "cosine", "until": "3 epochs"}, "counted in steps"),
        ({"kind": "cosine", "untill": 3}, r"schedule\.untill: there is no such key; did you mean 'until'\?"),
        ({"class": "torch.optim.lr_scheduler:ReduceLROnPlateau"}, 'write kind = "plateau"'),
    ],
)
def test_a_schedule_that_is_none_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_model(schedule=table)


def test_a_schedule_without_an_optimizer_means_nothing() -> None:
    with pytest.raises(ConfigError, match="schedule means nothing without an optimizer"):
        a_model(optimizer=None, schedule=Schedule())


# --- plateaus -----------------------------------------------------------------------------------------------------


def factors(values: list[Any], **settings: Any) -> list[float]:
    plateau = Plateau(Schedule("plateau", factor=0.5, **settings))
    found: list[float] = []
    for value in values:
        plateau.evaluated({"valid": {"loss": value}})
        found.append(plateau.factor)
    return found


def test_a_plateau_lowers_the_rate_as_pytorchs_own_does() -> None:
    values = [3.0, 2.0, 2.0, 2.5, 2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 0.5, 0.6, 0.6, 0.6]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=0.0)
    expected: list[float] = []
    for value in values:
        theirs.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    assert factors(values, patience=2) == expected
    assert min(expected) < 0.5


def test_better_may_be_higher_and_by_how_much_is_a_threshold() -> None:
    assert factors([0.1, 0.2, 0.3, 0.3, 0.2], mode="max", patience=0) == [1, 1, 1, 0.5, 0.25]
    assert factors([1.0, 0.95, 0.8], patience=0, threshold=0.1) == [1, 0.5, 0.5]


def test_nan_is_never_the_best() -> None:
    assert factors([math.nan, 2.0, 1.0, math.nan, 0.5], patience=0) == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_mean_of_a_variables_aggregates_stands_for_it() -> None:
    assert factors([{"mean": 1.0, "std": 0.0}, {"mean": 2.0, "std": 0.0}], patience=0) == [1, 0.5]


def test_a_variable_that_the_stream_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stream 'valid' has no variable 'los' \(it has loss\)"):
        factors([1.0], variable="los")


def test_a_plateau_goes_on_where_a_checkpoint_was_taken() -> None:
    def model() -> TorchModel:
        return a_model(schedule=Schedule("plateau", factor=0.5, patience=1))

    before, after = model(), model()
    for loss in (1.0, 2.0, 2.0, 2.0):
        before.evaluated({"valid": {"loss": loss}})
    after.load_state_dict(before.state_dict())
    for each in (before, after):
        each.evaluated({"valid": {"loss": 1.5}})
        assert each.run(Data(1).batches[0], train=True, stream="train")["lr"] == 0.25e-2


@on_asyncio
async def test_evaluations_drive_a_plateau_whatever_hooks_make_of_their_data() -> None:
    values, rates = [3.0, 1.0, 2.0, 2.0, 0.5], list[float]()

    class Told(Hook):
        """Puts chosen values in the place of the evaluations' own."""

        async def after_evaluation(self, event: AfterEvaluation) -> None:
            event.data["valid"]["loss"]["mean"] = values[event.epoch]

        async def after_batch(self, event: AfterBatch) -> None:
            if event.train:
                rates.append(event.outputs["lr"])

    schedule = Schedule("plateau", factor=0.5, patience=0)
    engine = Engine(
        a_model(schedule=schedule), Data(1), [ComputeStats({"loss": ["mean"]}), Told()], epochs=4,
        extra_streams=["valid"], on_unused_sources="ignore",
    )  # fmt: skip
    await engine.train()
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3])


@on_asyncio
async def test_an_evaluation_of_other_streams_is_none_of_a_plateaus_business() -> None:
    schedule = Schedule("plateau", stream="test", patience=0)
    await train(a_model(schedule=schedule), Data(2), epochs=2, extra_streams=["valid"])


# --- PyTorch's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_function", [False, True])
def test_a_scheduler_may_be_given_as_it_is_or_as_a_function_of_the_optimizer(as_function: bool) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

    def make(own: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        parts = [torch.optim.lr_scheduler.StepLR(own, 1), torch.optim.lr_scheduler.ConstantLR(own, 0.5, 9)]
        return torch.optim.lr_scheduler.SequentialLR(own, parts, [2])

    def model_of(optimizer: Any) -> Any:
        return a_model(module=net, optimizer=optimizer, schedule=make if as_function else make(optimizer))

    def rates(model: Any, n: int) -> list[float]:
        return [model.run(Data(1).batches[0], train=True, stream="train")["lr"] for _ in range(n)]

    model = model_of(optimizer)
    expected = [1e-2, 1e-3, 5e-3, 5e-3]
    assert rates(model, 4) == pytest.approx(expected)
    state = model_of(torch.optim.AdamW(net.parameters(), lr=1e-2))
    rates(state, 2)
    saved = copy_state(state.state_dict())
    resumed = model_of(torch.optim.AdamW(net.parameters(), lr=1e-2))
    resumed.load_state_dict(saved)
    assert rates(resumed, 2) == pytest.approx(expected[2:])


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(Net().parameters(), lr=1.0), 1)
    with pytest.raises(ConfigError, match="of another optimizer than the model's"):
        a_model(schedule=other)


@pytest.mark.parametrize(
    "table",
    [
        {"class": "torch.optim.lr_scheduler:OneCycleLR", "max_lr": 0.1, "total_steps": 8},
        {"class": "torch.optim.lr_scheduler:CosineAnnealingLR", "T_max": 5},
        {"class": "torch.optim.lr_scheduler:StepLR", "step_size": 2},
    ],
    ids=lambda table: table["class"].partition(":")[2],
)
def test_a_scheduler_of_pytorchs_own_is_stepped_with_each_update(table: dict[str, Any]) -> None:
    model, batch = a_model(schedule=table), Data(1).batches[0]
    optimizer = torch.optim.AdamW(Net().parameters(), lr=1e-2)
    arguments = {name: value for name, value in table.items() if name != "class"}
    theirs = getattr(torch.optim.lr_scheduler, table["class"].partition(":")[2])(optimizer, **arguments)
    for _ in range(7):
        expected = optimizer.param_groups[0]["lr"]
        assert model.run(batch, train=True, stream="train")["lr"] == expected
        optimizer.step()
        theirs.step()


def test_the_rate_of_a_scheduler_of_pytorchs_own_is_its_own_affair() -> None:
    table = {"class": "torch.optim.lr_scheduler:StepLR", "step_size": 2}
    assert "lr" not in a_model(schedule=table).live
    assert "lr" in a_model(schedule=Schedule()).live


def test_arguments_that_a_scheduler_refuses_are_an_error_of_the_config() -> None:
    table = {"class": "torch.optim.lr_scheduler:OneCycleLR", "max_lr": 0.1}
    with pytest.raises(ConfigError, match=r"schedule: OneCycleLR refuses its arguments: .*total_steps"):
        a_model(schedule=table)
