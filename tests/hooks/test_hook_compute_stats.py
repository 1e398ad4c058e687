"""ComputeStats: against numpy over everything at once, in whatever pieces it comes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping
from hook_parts import Events, Uneven

from asyncloop import ConfigError, Engine, HookError
from asyncloop.hooks import ComputeStats
from asyncloop.hooks.moments import AGGREGATES

pytestmark = pytest.mark.anyio

EVERYTHING = list(AGGREGATES)
NUMPY: dict[str, Any] = {
    **{name: getattr(np, name) for name in EVERYTHING if not name.endswith(("count", "fraction"))},
    "count": np.size,
    "nancount": lambda x: np.isnan(x).sum(),
    "nanfraction": lambda x: np.isnan(x).mean(),
}


def computed(blocks: list[Any], aggregates: list[str], chunk: int = 2) -> dict[str, float]:
    """The aggregates of an output that came in these batches, in handfuls of `chunk`."""
    events, hook, data = Events(), ComputeStats({"y": aggregates}), {}
    batches = [events.batch({"y": block}, step=i) for i, block in enumerate(blocks, 1)]
    for start in range(0, len(batches), chunk):
        hook.after_batches(batches[start : start + chunk])
    hook.after_epoch(events.after_epoch(data))
    return data["train"]["y"]


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("with_nan", [False, True], ids=["finite", "with NaN"])
def test_every_aggregate_agrees_with_numpy(chunk: int, with_nan: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(3, 2, size=(n, 3)).astype(np.float32) for n in (4, 1, 7, 4)]
    if with_nan:
        blocks[1][0, 1] = blocks[3][2, 2] = np.nan
    everything = np.concatenate(blocks).astype(np.float64)
    expected = {name: NUMPY[name](everything) for name in EVERYTHING}
    assert computed(blocks, EVERYTHING, chunk) == pytest.approx(expected, nan_ok=True)


def test_the_variance_of_small_deviations_on_a_large_mean_is_right() -> None:
    blocks = [np.array([1e9 + 4, 1e9 + 7]), np.array([1e9 + 13, 1e9 + 16])]
    assert computed(blocks, ["var"], 1)["var"] == pytest.approx(22.5, rel=1e-9)


@pytest.mark.parametrize("blocks", [[[1.0, math.inf], [2.0]], [[1.0], [math.inf]], [[math.inf], [-math.inf]]])
def test_infinities_are_treated_as_numpy_treats_them(blocks: list[list[float]]) -> None:
    everything = np.concatenate(blocks)
    with np.errstate(invalid="ignore"):
        expected = {name: NUMPY[name](everything) for name in ("mean", "var", "min", "max", "sum", "median")}
    assert computed(blocks, list(expected), 1) == pytest.approx(expected, nan_ok=True)


def test_booleans_integers_and_lists_are_numbers() -> None:
    assert computed([np.array([True, False]), [1, 1]], ["mean", "count"]) == {"mean": 0.75, "count": 4}


def test_results_can_be_written_as_json() -> None:
    assert set(json.loads(json.dumps(computed([np.arange(4)], EVERYTHING)))) == set(EVERYTHING)


def test_a_variable_without_elements_has_no_mean() -> None:
    results = computed([np.empty((2, 0))], EVERYTHING)
    assert {name for name, value in results.items() if math.isnan(value)} == set(EVERYTHING) - {"count", "nancount"}


async def test_all_streams_are_written_where_they_are_due_and_before_later_hooks_look() -> None:
    seen: list[tuple[str, Any]] = []

    class Looking:
        async def after_evaluation(self, event: Any) -> None:
            seen.append(("evaluation", {name: event.data[name].get("x") for name in event.streams}))

        async def after_epoch(self, event: Any) -> None:
            seen.append(("epoch", {name: values["x"] for name, values in event.data.items()}))

    hooks = [ComputeStats({"x": ["count", "max"]}), Looking()]
    await Engine(Counting(), Uneven(), hooks, epochs=2, extra_streams=["valid"]).train()
    train, valid = {"count": 10, "max": 2}, {"count": 4, "max": 11}
    one_epoch = [("evaluation", {"valid": valid}), ("epoch", {"train": train, "valid": valid})]
    assert seen == [("evaluation", {"train": train, "valid": valid}), one_epoch[1], *one_epoch, *one_epoch]


async def test_an_evaluation_inside_an_epoch_leaves_the_train_streams_numbers_alone() -> None:
    keeping = Keeping()
    engine = Engine(
        Counting(), Arrays(6), [ComputeStats({"x": ["count", "sum"]}), keeping], epochs=1, extra_streams=["valid"],
        evaluate_every="4 steps", skip_zeroth_epoch=True,
    )  # fmt: skip
    await engine.train()
    inner, outer = keeping.of("after_evaluation")
    assert (inner.step, outer.step) == (4, 6)
    assert inner.data["valid"]["x"] == outer.data["valid"]["x"] == {"count": 24, "sum": 60}
    assert keeping.of("after_epoch")[0].data["train"]["x"] == {"count": 24, "sum": 60}


async def test_names_alone_mean_the_mean_and_a_scalars_mean_is_weighted_by_examples() -> None:
    result = await Engine(Counting(), Uneven(), [ComputeStats(["loss", "double"])], epochs=1).train()
    assert result.metrics["train"] == {"loss": {"mean": pytest.approx(0.8)}, "double": {"mean": pytest.approx(1.6)}}


async def test_a_scalars_variance_is_weighted_by_examples_if_a_source_is_named_too() -> None:
    for variables, weights in ({"loss": ["var"], "x": ["count"]}, (4, 4, 2)), ({"loss": ["var"]}, (1, 1, 1)):
        result = await Engine(Counting(), Uneven(), [ComputeStats(variables)], epochs=1).train()
        losses = np.repeat([0.0, 1.0, 2.0], weights)
        assert result.metrics["train"]["loss"]["var"] == pytest.approx(losses.var())


async def test_with_a_cadence_the_mean_is_that_of_the_batches_seen() -> None:
    hook = ComputeStats(["loss"])
    hook.every = "2 steps"
    result = await Engine(Counting(), Arrays(6), [hook], epochs=1, skip_zeroth_epoch=True).train()
    assert result.metrics["train"]["loss"] == {"mean": 3.0}


def test_a_checkpoint_holds_the_training_pass_under_way_and_no_evaluation() -> None:
    events, first, second = Events(), ComputeStats({"y": EVERYTHING}), ComputeStats({"y": EVERYTHING})
    blocks = [np.array([1.0, 5.0, np.nan]), np.array([2.0, 7.0])]
    first.after_batches([events.batch({"y": blocks[0]})])
    first.after_batches([events.batch({"y": np.array([100.0])}, stream="valid", train=False)])
    second.load_state_dict(first.state_dict())
    second.after_batches([events.batch({"y": blocks[1]})])
    data: dict[str, Any] = {}
    second.after_epoch(events.after_epoch(data))
    assert list(data) == ["train"]
    assert data["train"]["y"] == pytest.approx(computed(blocks, EVERYTHING), nan_ok=True)


def test_an_evaluation_that_was_discarded_does_not_count_in_the_next() -> None:
    events, hook, data = Events(), ComputeStats({"y": ["count"]}), {}
    hook.after_batches([events.batch({"y": [1.0, 2.0]}, stream="valid", train=False)])
    hook.before_epoch(events.before_epoch(2))
    hook.after_batches([events.batch({"y": [1.0]}, stream="valid", train=False)])
    hook.after_evaluation(events.after_evaluation(data, ["valid"]))
    assert data == {"valid": {"y": {"count": 1}}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b"], "needs numbers: variable 'y' .batch 0 of stream 'train'. is a list of dtype <U1"),
        ([[1, 2], [3]], "examples of different shapes"),
        ({"a": 1}, "is a dict"),
    ],
)
def test_what_is_no_number_is_an_error_that_names_the_variable(value: Any, message: str) -> None:
    with pytest.raises(HookError, match=message):
        ComputeStats(["y"]).after_batches([Events().batch({"y": value})])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"loss": ["meen"]}, "'meen' is no aggregate; there are mean, std.*did you mean 'mean'"),
        ({"loss": "mean"}, "loss takes a list of aggregates"),
        ({"loss": []}, "loss takes a list of aggregates"),
        ("loss", "list of names"),
        ([], "list of names"),
        ([3], "holds 3"),
    ],
)
def test_wrong_variables_are_refused_at_construction(variables: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ComputeStats(variables)


async def test_an_unknown_variable_fails_the_run_with_what_there_is() -> None:
    with pytest.raises(HookError, match="ComputeStats wants the variable 'los'"):
        await Engine(Counting(), Uneven(), [ComputeStats(["los"])], epochs=1).train()
