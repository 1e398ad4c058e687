"""What an engine does, counted: events, updates, passes, and their order."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping, batches

from asyncloop import AfterBatch, ConfigError, DataError, Engine, Hook, Stream, UsageError

pytestmark = pytest.mark.anyio

BUFFERS = (0, 1, 3, "auto")


@pytest.mark.parametrize("buffer", BUFFERS)
async def test_three_epochs_of_thirteen_batches_fire_exactly_the_promised_events(buffer: Any) -> None:
    hook = Keeping()
    await Engine(Counting(), Arrays(), [hook], epochs=3, skip_zeroth_epoch=True, buffer=buffer).train()
    counts = {name: hook.count(name) for name in ("before_training", "after_batch", "before_epoch", "after_epoch",
              "after_epoch_profile", "after_training", "after_evaluation")}  # fmt: skip
    assert counts == {"before_training": 1, "after_batch": 39, "before_epoch": 3, "after_epoch": 3,
                      "after_epoch_profile": 3, "after_training": 1, "after_evaluation": 0}  # fmt: skip


@pytest.mark.parametrize("buffer", BUFFERS)
async def test_the_zeroth_epoch_evaluates_everything_and_epochs_train_then_evaluate(buffer: Any) -> None:
    hook, data = Keeping(), Arrays()
    await Engine(Counting(), data, [hook], epochs=2, extra_streams=["valid"], buffer=buffer).train()
    flags = [event.train for event in hook.of("after_batch")]
    assert flags == [False] * 26 + ([True] * 13 + [False] * 13) * 2
    assert [event.epoch for event in hook.of("after_epoch")] == [0, 1, 2]
    assert data.entered == {"train": 3, "valid": 3}


async def test_events_come_in_the_promised_order() -> None:
    hook = Keeping()
    await Engine(Counting(), Arrays(2), [hook], epochs=1, extra_streams=["valid"]).train()
    assert [name for name, _ in hook.seen] == [
        "before_training",
        "before_epoch", *["after_batch"] * 4, "after_evaluation", "after_epoch", "after_epoch_profile",
        "before_epoch", *["after_batch"] * 4, "after_evaluation", "after_epoch", "after_epoch_profile",
        "after_training",
    ]  # fmt: skip


@pytest.mark.parametrize("buffer", BUFFERS)
async def test_steps_are_exact_and_reopen_the_stream_as_often_as_needed(buffer: Any) -> None:
    model, data, hook = Counting(), Arrays(3), Keeping()
    result = await Engine(model, data, [hook], steps=7, skip_zeroth_epoch=True, buffer=buffer).train()
    assert model.trained_on == [0, 1, 2, 0, 1, 2, 0]
    assert data.entered["train"] == 3
    assert (result.steps, result.epochs, result.reason) == (7, 3, "7 steps done")
    assert hook.steps == list(range(1, 8))
    assert hook.count("after_epoch") == 3


async def test_reaching_steps_ends_the_epoch_normally_with_its_extra_streams() -> None:
    hook = Keeping()
    await Engine(Counting(), Arrays(5), [hook], steps=7, extra_streams=["valid"], skip_zeroth_epoch=True).train()
    assert [event.train for event in hook.of("after_batch")] == [True] * 5 + [False] * 5 + [True] * 2 + [False] * 5
    assert hook.count("after_epoch") == hook.count("after_evaluation") == 2


@pytest.mark.parametrize("buffer", BUFFERS)
async def test_an_epoch_size_carries_the_rest_over_and_loses_nothing(buffer: Any) -> None:
    model, data = Counting(), Arrays(6)
    result = await Engine(model, data, epochs=3, epoch_size=4, skip_zeroth_epoch=True, buffer=buffer).train()
    assert model.trained_on == [0, 1, 2, 3, 4, 5] * 2
    assert (result.epochs, result.steps) == (3, 12)


async def test_the_zeroth_epoch_moves_no_training_position() -> None:
    model, hook = Counting(), Keeping()
    engine = Engine(model, Arrays(6), [hook], epochs=3, epoch_size=4, extra_streams=["valid"])
    await engine.train()
    assert model.trained_on == [0, 1, 2, 3, 4, 5] * 2
    zeroth = [event for event in hook.of("after_batch") if event.epoch == 0]
    assert [event.stream for event in zeroth] == ["train"] * 4 + ["valid"] * 6


async def test_without_epochs_and_epoch_size_the_zeroth_epoch_leaves_the_train_stream_out() -> None:
    hook = Keeping()
    await Engine(Counting(), Arrays(2), [hook], steps=2, extra_streams=["valid"]).train()
    assert {event.stream for event in hook.of("after_batch") if event.epoch == 0} == {"valid"}


async def test_zero_epochs_are_only_the_zeroth_evaluation() -> None:
    model, hook = Counting(), Keeping()
    result = await Engine(model, Arrays(), [hook], epochs=0, extra_streams=["valid"]).train()
    assert (result.epochs, result.steps, model.trained_on) == (0, 0, [])
    assert hook.count("after_batch") == 26
    assert result.metrics["valid"]["loss"] == 6.0


async def test_one_epoch_call_mixes_names_and_counts_every_batch() -> None:
    hook = Keeping()
    engine = Engine(Counting(), Arrays(), [hook])
    data = await engine.epoch(train=["train", "test"], evaluate=["valid", "predict"])
    assert hook.count("after_batch") == 52
    assert list(data) == ["train", "test", "valid", "predict"]
    assert hook.count("before_training") == hook.count("after_training") == 0
    assert [event.train for event in hook.of("after_batch")] == [True] * 26 + [False] * 26
    assert (engine.progress.epochs_done, engine.progress.step) == (1, 26)


async def test_unnamed_streams_of_every_kind_get_names_that_hooks_and_profile_use() -> None:
    async def from_async() -> AsyncIterator[dict[str, Any]]:
        for batch in batches(3):
            yield batch

    hook = Keeping()
    engine = Engine(Counting(), Arrays(), [hook])
    data = await engine.epoch(train=[list(batches(2)), from_async(), Stream.of(lambda: batches(4))], evaluate=["valid"])
    names = ["unnamed_train_0", "unnamed_train_1", "unnamed_train_2", "valid"]
    assert list(data) == names
    counts = {name: sum(event.stream == name for event in hook.of("after_batch")) for name in names}
    assert counts == {"unnamed_train_0": 2, "unnamed_train_1": 3, "unnamed_train_2": 4, "valid": 13}
    profile = hook.of("after_epoch_profile")[0].profile
    assert profile["eval_batch_unnamed_train_1"].count == 3
    assert {f"read_batch_{name}" for name in names} <= set(profile)


async def test_a_stream_given_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'train' is given twice"):
        await Engine(Counting(), Arrays()).epoch(train=["train"], evaluate=["train"])


async def test_an_evaluation_fires_both_ends_and_a_context_fires_them_once_around_all() -> None:
    hook = Keeping()
    engine = Engine(Counting(), Arrays(2), [hook])
    result = await engine.evaluate("valid", "test")
    assert set(result.metrics) == {"valid", "test"}
    assert hook.count("before_training") == hook.count("after_training") == hook.count("after_evaluation") == 1
    hook.seen.clear()
    async with engine:
        await engine.epoch(train=["train"])
        await engine.epoch(train=["train"])
        await engine.evaluate("valid")
    assert hook.count("before_training") == hook.count("after_training") == 1
    assert hook.count("before_epoch") == 3


async def test_a_second_training_goes_on_where_the_first_stopped() -> None:
    model = Counting()
    engine = Engine(model, Arrays(5), epochs=2, skip_zeroth_epoch=True)
    engine.bus.subscribe(
        AfterBatch, lambda event: event.control.stop("enough") if event.step == 3 else None, lockstep=True
    )
    first = await engine.train()
    assert (first.steps, first.reason, first.stopped) == (3, "enough", True)
    second = await engine.train()
    assert (second.steps, second.epochs, second.stopped) == (10, 2, False)
    assert model.trained_on == [0, 1, 2, 3, 4] * 2


async def test_metrics_are_weighted_by_examples() -> None:
    streams = [{"x": np.array([1.0, 1.0, 1.0])}, {"x": np.array([5.0])}]
    data = await Engine(Counting(), Arrays()).epoch(evaluate=[streams])
    assert data["unnamed_eval_0"]["loss"] == 2.0


async def test_the_model_lives_on_one_thread_that_is_not_the_loops() -> None:
    model = Counting()
    await Engine(model, Arrays(), epochs=2, extra_streams=["valid"]).train()
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


async def test_an_async_model_is_awaited_on_the_loop() -> None:
    class Async(Counting):
        async def run(self, batch: Any, *, train: bool, stream: str) -> Any:  # type: ignore[override]
            return Counting.run(self, batch, train=train, stream=stream)

    model = Async()
    result = await Engine(model, Arrays(3), epochs=1, skip_zeroth_epoch=True).train()
    assert result.steps == 3
    assert model.threads == {threading.get_ident()}


async def test_an_in_epoch_evaluation_happens_at_its_steps_and_once_where_the_epoch_ends() -> None:
    hook = Keeping()
    engine = Engine(
        Counting(),
        Arrays(6),
        [hook],
        epochs=2,
        extra_streams=["valid"],
        evaluate_every="2 steps",
        skip_zeroth_epoch=True,
    )
    await engine.train()
    assert [event.step for event in hook.of("after_evaluation")] == [2, 4, 6, 8, 10, 12]
    assert hook.count("after_epoch") == 2


async def test_control_evaluate_evaluates_at_the_next_step() -> None:
    class Ask(Hook):
        every, lockstep = "4 steps", True

        async def after_batch(self, event: AfterBatch) -> None:
            if event.train and event.step == 4:
                event.control.evaluate("test")

    hook = Keeping()
    await Engine(Counting(), Arrays(6), [Ask(), hook], epochs=1, skip_zeroth_epoch=True).train()
    assert [(event.step, list(event.streams)) for event in hook.of("after_evaluation")] == [(4, ["test"])]


async def test_batches_of_another_size_are_dropped_and_a_stream_of_only_those_is_empty() -> None:
    sizes = [4, 3, 4, 2]
    model = Counting()
    engine = Engine(model, Arrays(), batch_size=4)
    await engine.epoch(train=[[{"x": np.full(size, float(i))} for i, size in enumerate(sizes)]])
    assert model.trained_on == [0, 2]
    with pytest.raises(DataError, match="gave no batch"):
        await engine.epoch(train=[[{"x": np.zeros(3)}]])


async def test_empty_batches_and_streams_follow_their_policies(caplog: pytest.LogCaptureFixture) -> None:
    source = [{"x": np.zeros(0)}, {"x": np.ones(2)}]
    with pytest.raises(DataError, match=r"batch 0 is empty"):
        await Engine(Counting(), Arrays()).epoch(train=[source])
    model = Counting()
    await Engine(model, Arrays(), on_empty_batch="warn").epoch(train=[source])
    assert model.trained_on == [1]
    assert "batch 0 is empty" in caplog.text
    with pytest.raises(DataError, match="gave no batch to run"):
        await Engine(Counting(), Arrays()).epoch(evaluate=[[]])
    await Engine(Counting(), Arrays(), on_empty_stream="ignore").epoch(evaluate=[[]])


async def test_unused_sources_follow_their_policy_and_reach_hooks(caplog: pytest.LogCaptureFixture) -> None:
    source = [{"x": np.ones(2), "id": np.arange(2)}] * 3
    hook = Keeping()
    await Engine(Counting(), Arrays(), [hook]).epoch(train=[source])
    assert caplog.text.count("does not use: 'id'") == 1
    assert "id" in hook.of("after_batch")[0].inputs
    with pytest.raises(DataError, match="does not use: 'id'"):
        await Engine(Counting(), Arrays(), on_unused_sources="error").epoch(train=[source])


async def test_one_engine_runs_one_call_at_a_time() -> None:
    engine = Engine(Counting(), Arrays(3))

    class Again(Hook):
        async def after_epoch(self, event: Any) -> None:
            await engine.train()

    engine.bus.add(Again())
    with pytest.raises(UsageError, match="running already"):
        await engine.epoch(train=["train"])


async def test_the_next_stream_is_warmed_up_while_this_one_ends() -> None:
    """With a model that waits at its last batch, the next stream has been entered before that batch is through."""
    data = Arrays(3)
    entered_at_last: list[bool] = []

    def look(n: int, train: bool) -> None:
        if n == 2:
            deadline = threading.Event()
            for _ in range(200):
                if data.entered["valid"]:
                    break
                deadline.wait(0.005)
            entered_at_last.append(bool(data.entered["valid"]))

    engine = Engine(Counting(look), data, steps=3, extra_streams=["valid"], skip_zeroth_epoch=True, buffer=8)
    await engine.train()
    assert entered_at_last == [True]
