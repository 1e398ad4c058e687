"""How hooks get their events: order, cadence, mailboxes, variables, lazy outputs, lockstep, listeners."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping

import asyncloop
from asyncloop import (
    AfterBatch,
    AfterEpoch,
    AfterTraining,
    BeforeBatch,
    ConfigError,
    Engine,
    Gap,
    Hook,
    StopTraining,
)
from asyncloop.bus import pump
from asyncloop.bus.finished import as_event

pytestmark = pytest.mark.anyio


def engine(*hooks: Any, n: int = 10, **options: Any) -> Engine:
    options = {"epochs": 1, "skip_zeroth_epoch": True, **options}
    return Engine(options.pop("model", None) or Counting(), Arrays(n), hooks, **options)


async def test_every_hook_sees_every_batch_once_and_in_order_however_it_listens() -> None:
    seen: dict[str, list[int]] = {"async": [], "plain": [], "chunks": [], "plain chunks": [], "function": []}

    class Async(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            seen["async"].append(event.step)

    class Plain(Hook):
        def after_batch(self, event: AfterBatch) -> None:
            seen["plain"].append(event.step)

    class Chunks(Hook):
        async def after_batches(self, events: list[AfterBatch]) -> None:
            seen["chunks"].extend(event.step for event in events)

    class PlainChunks(Hook):
        def after_batches(self, events: list[AfterBatch]) -> None:
            seen["plain chunks"].extend(event.step for event in events)

    run = engine(Async(), Plain(), Chunks(), PlainChunks(), n=1000)
    run.bus.subscribe(AfterBatch, lambda event: seen["function"].append(event.step))
    await run.train()
    assert all(steps == list(range(1, 1001)) for steps in seen.values())


async def test_plain_methods_run_in_a_thread_of_the_hooks_own() -> None:
    threads: dict[str, set[int]] = {"one": set(), "two": set()}

    class Plain(Hook):
        def __init__(self, name: str) -> None:
            self.name = name

        def after_batch(self, event: AfterBatch) -> None:
            threads[self.name].add(threading.get_ident())

        def after_epoch(self, event: AfterEpoch) -> None:
            threads[self.name].add(threading.get_ident())

    await engine(Plain("one"), Plain("two")).train()
    assert len(threads["one"]) == len(threads["two"]) == 1
    assert threads["one"] != threads["two"]
    assert threading.get_ident() not in threads["one"] | threads["two"]


@pytest.mark.parametrize(
    ("every", "options", "due"),
    [
        ("1 step", {}, list(range(1, 11))),
        ("3 steps", {}, [3, 6, 9, 10]),
        ("3 steps", {"start": 5}, [6, 9, 10]),
        ("2 steps", {"start": 4, "stop": 6}, [4, 6, 10]),
        ("1 step doubling to 4", {}, [1, 2, 4, 8, 10]),
        ("1 epoch", {}, list(range(1, 11))),
    ],
)
async def test_a_cadence_in_steps_filters_train_steps_and_the_last_is_always_due(
    every: str, options: dict[str, Any], due: list[int]
) -> None:
    hook = Keeping(every=every, **options)
    await engine(hook, extra_streams=["valid"]).train()
    assert hook.steps == due
    assert sum(not event.train for event in hook.of("after_batch")) == 10


async def test_the_last_step_comes_before_the_evaluation_that_ends_the_run() -> None:
    hook = Keeping(every="7 steps")
    await engine(hook, extra_streams=["valid"]).train()
    assert [event.step for event in hook.of("after_batch")][:2] == [7, 10]


async def test_the_last_step_of_a_stopped_run_is_due_too() -> None:
    hook = Keeping(every="7 steps")
    stopper = Hook()
    stopper.lockstep = True

    async def after_batch(event: AfterBatch) -> None:
        if event.step == 5:
            raise StopTraining("five is enough")

    stopper.after_batch = after_batch  # type: ignore[attr-defined]
    result = await engine(hook, stopper).train()
    assert (result.reason, result.steps, hook.steps) == ("five is enough", 5, [5])


async def test_a_cadence_in_epochs_filters_after_epoch_and_the_last_epoch_is_due() -> None:
    hook = Keeping(every="2 epochs")
    await engine(hook, n=2, epochs=5, skip_zeroth_epoch=False).train()
    assert [event.epoch for event in hook.of("after_epoch")] == [0, 2, 4, 5]
    assert hook.count("before_epoch") == 6


async def test_a_cadence_in_seconds_is_due_by_the_clock_and_at_the_last_step() -> None:
    hook = Keeping(every="0.05 s")
    await engine(hook, n=40, model=Counting(lambda n, train: time.sleep(0.005))).train()
    assert 2 <= len(hook.steps) < 30
    assert hook.steps[-1] == 40


async def test_a_batch_that_nobody_is_to_have_yet_is_not_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[int] = []

    def noted(entry: Any) -> AfterBatch:
        posted.append(entry[1])
        return as_event(entry)

    monkeypatch.setattr(pump, "as_event", noted)
    hook = Keeping(every="30 steps")
    await engine(hook, n=100).train()
    assert hook.steps == [30, 60, 90, 100]
    assert posted == [30, 60, 90]  # the last one is looked up when the run ends


@pytest.mark.parametrize("listens", ["hook", "variables", "clock", "iterator", "before"])
async def test_who_comes_in_the_middle_of_a_run_hears_of_every_batch_from_then_on(listens: str) -> None:
    n = 300
    run = engine(n=n, model=Counting(lambda n, train: time.sleep(1e-3) or {"lazy": lambda: n}))
    seen: list[int] = []

    def listen(event: AfterBatch) -> None:
        seen.append(event.step)

    async def iterate(events: AsyncIterator[AfterBatch]) -> None:
        async for event in events:
            seen.append(event.step)

    async with anyio.create_task_group() as tasks:

        async def join(event: AfterBatch) -> None:
            if listens == "hook":
                run.bus.subscribe(AfterBatch, listen)
            elif listens == "variables":
                run.bus.subscribe(AfterBatch, listen, variables=["lazy"])
            elif listens == "clock":
                run.bus.subscribe(AfterBatch, listen, every="0.0001 s")
            elif listens == "before":
                run.bus.subscribe(BeforeBatch, lambda event: seen.append(event.step + 1))
            else:
                tasks.start_soon(iterate, run.bus.events(AfterBatch))

        run.bus.subscribe(AfterBatch, join, every="50 steps", stop=50)
        await run.train()
    assert seen
    assert seen == list(range(seen[0], n + 1))
    assert 50 < seen[0] < 100


async def test_a_rare_batch_is_delivered_as_soon_as_any_other() -> None:
    """The loop was woken for the slow step right before it, and nothing that comes behind would bring it along."""
    heard: list[tuple[int, int]] = []
    model = Counting(lambda n, train: time.sleep(1e-3 if n else 20e-3))
    run = engine(n=200, model=model)

    async def note(event: AfterBatch) -> None:
        heard.append((event.step, model.n_runs))

    run.bus.subscribe(AfterBatch, note, every="1 step", stop=2)
    await run.train()
    assert [step for step, _ in heard] == [1, 2, 200]
    assert heard[1][1] < 50


async def test_streams_narrow_what_a_hook_gets() -> None:
    hook = Keeping(streams=["valid"])
    await engine(hook, extra_streams=["valid"]).train()
    assert {event.stream for event in hook.of("after_batch")} == {"valid"}


async def test_without_variables_everything_comes_by_reference_and_with_them_only_those() -> None:
    batch = {"x": np.ones(3), "id": np.arange(3)}
    everything, some = Keeping(), Keeping(variables=["double", "id"])
    await engine(everything, some).epoch(train=[[batch]])
    event = everything.of("after_batch")[0]
    assert event.inputs["x"] is batch["x"]
    assert set(event.outputs) == {"loss", "double"}
    event = some.of("after_batch")[0]
    assert (set(event.inputs), set(event.outputs)) == ({"id"}, {"double"})


async def test_a_path_names_a_leaf_of_nested_outputs_and_nested_scalars_are_averaged() -> None:
    model = Counting(lambda n, train: {"head": {"logits": np.arange(2), "loss": 2.0}})
    hook = Keeping(variables=["head/logits"])
    data = await engine(hook, model=model).epoch(train=["train"])
    assert list(hook.of("after_batch")[0].outputs) == ["head/logits"]
    assert data["train"]["head/loss"] == 2.0


async def test_a_lazy_output_is_evaluated_once_on_the_model_thread_if_due_hooks_ask_and_never_otherwise() -> None:
    calls: list[tuple[int, int]] = []

    def lazy(n: int, train: bool) -> Any:
        return {"image": lambda: calls.append((n, threading.get_ident())) or np.full(2, n)}

    asking = [Keeping(variables=["image"], every="4 steps") for _ in range(3)]
    quiet, model = Keeping(), Counting(lazy)
    await engine(*asking, quiet, model=model).train()
    assert [n + 1 for n, _ in calls] == [4, 8, 10]
    assert {thread for _, thread in calls} == model.threads
    assert all(hook.steps == [4, 8, 10] for hook in asking)
    assert asking[0].of("after_batch")[2].outputs["image"].tolist() == [9, 9]
    assert all("image" not in event.outputs for event in quiet.of("after_batch"))
    calls.clear()
    await engine(Keeping(), model=Counting(lazy)).train()
    assert calls == []


async def test_before_batch_may_change_the_feeds_and_ask_for_outputs_but_not_the_batch() -> None:
    class Double(Hook):
        async def before_batch(self, event: BeforeBatch) -> None:
            event.feeds["x"] = event.batch["x"] * 2
            event.ask("extra")

    model, hook = Counting(lambda n, train: {"extra": lambda: n}), Keeping()
    await engine(Double(), hook, model=model, n=3).train()
    assert model.trained_on == [0, 2, 4]
    assert [event.inputs["x"][0] for event in hook.of("after_batch")] == [0, 1, 2]
    assert [event.outputs["extra"] for event in hook.of("after_batch")] == [0, 1, 2]


async def test_added_variables_reach_later_hooks_only() -> None:
    class Adds(Hook):
        def add(self, event: AfterBatch) -> dict[str, Any]:
            return {"square": event.inputs["x"] ** 2}

    before, after, named = Keeping(), Keeping(), Keeping(variables=["square"])
    await engine(before, Adds(), after, named, n=3).train()
    assert "square" not in before.of("after_batch")[2].outputs
    assert after.of("after_batch")[2].outputs["square"][0] == 4
    assert named.of("after_batch")[2].outputs["square"][0] == 4


async def test_lockstep_stops_at_exactly_its_step_and_a_plain_stop_within_a_flush() -> None:
    class Stops(Hook):
        def __init__(self, lockstep: bool) -> None:
            self.lockstep = lockstep

        async def after_batch(self, event: AfterBatch) -> None:
            if event.step == 100:
                event.control.stop("at a hundred")

    result = await engine(Stops(True), n=5000).train()
    assert result.steps == 100
    result = await engine(Stops(False), n=100_000).train()
    assert 100 <= result.steps < 100_000


@pytest.mark.parametrize(("overflow", "mailbox"), [("block", 4), ("drop_oldest", 4), ("latest", 64)])
async def test_a_slow_hook_is_bounded_by_its_mailbox_as_declared(
    overflow: str, mailbox: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    class Slow(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            seen.append(event.step)
            await anyio.sleep(0.002)

    hook, quick = Slow(), Keeping()
    hook.overflow, hook.mailbox = overflow, mailbox  # type: ignore[assignment]
    await engine(hook, quick, n=600).train()
    assert quick.steps == list(range(1, 601))
    assert seen == sorted(seen)
    assert seen[-1] == 600
    if overflow == "block":
        assert len(seen) == 600
    else:
        assert len(seen) < 600
        assert f"{600 - len(seen)} events dropped" in caplog.text


async def test_concurrency_handles_that_many_events_at_once_and_no_more() -> None:
    at_once = most = handled = 0

    class Wide(Hook):
        concurrency = 4

        async def after_batch(self, event: AfterBatch) -> None:
            nonlocal at_once, most, handled
            at_once += 1
            most = max(most, at_once)
            await anyio.sleep(0.002)
            at_once -= 1
            handled += 1

    hook = Keeping()
    await engine(Wide(), hook, n=40).train()
    assert (most, handled) == (4, 40)
    assert hook.count("after_epoch") == 1


async def test_barriers_wait_for_every_batch_before_and_share_data_in_config_order() -> None:
    order: list[str] = []

    class Slow(Hook):
        def __init__(self, name: str) -> None:
            self.name, self.n = name, 0

        async def after_batch(self, event: AfterBatch) -> None:
            await anyio.sleep(0.001)
            self.n += 1

        async def after_epoch(self, event: AfterEpoch) -> None:
            order.append(f"{self.name} {self.n} {event.data['train'].get('added')}")
            event.data["train"]["added"] = self.name

    await engine(Slow("one"), Slow("two"), n=20).train()
    assert order == ["one 20 None", "two 20 one"]


async def test_a_background_hook_gets_a_copy_and_the_run_goes_on() -> None:
    release, got = anyio.Event(), []

    class Background(Hook):
        background = True

        async def after_epoch(self, event: AfterEpoch) -> None:
            if event.epoch == 1:
                await release.wait()
            got.append((event.epoch, dict(event.data["train"])))

    class Later(Hook):
        async def after_epoch(self, event: AfterEpoch) -> None:
            event.data["train"]["later"] = event.epoch
            if event.epoch == 2:
                release.set()

    await engine(Background(), Later(), epochs=2, n=3).train()
    assert [epoch for epoch, _ in got] == [1, 2]
    assert all("later" not in data for _, data in got)


async def test_a_stop_in_after_epoch_takes_effect_after_all_hooks_and_profiles() -> None:
    class Stops(Hook):
        async def after_epoch(self, event: AfterEpoch) -> None:
            if event.epoch == 2:
                raise StopTraining("two epochs")

    hook = Keeping()
    result = await engine(Stops(), hook, epochs=5, n=3).train()
    assert (result.reason, result.epochs) == ("two epochs", 2)
    assert hook.count("after_epoch") == hook.count("after_epoch_profile") == 2


async def test_log_adds_values_from_model_and_hooks_to_the_epoch_data() -> None:
    def from_model(n: int, train: bool) -> None:
        asyncloop.log("lr", 0.5)

    class Logs(Hook):
        async def after_batch(self, event: AfterBatch) -> None:
            asyncloop.log("seen", event.index)

    class PlainLogs(Hook):
        def after_batch(self, event: AfterBatch) -> None:
            asyncloop.log("plain", 2)

    asyncloop.log("nowhere", 1)
    data = await engine(Logs(), PlainLogs(), model=Counting(from_model), n=5).epoch(train=["train"])
    assert data["train"]["lr"] == 0.5
    assert data["train"]["seen"] == 2.0
    assert data["train"]["plain"] == 2.0


async def test_an_iterator_replays_what_was_goes_on_live_and_ends_with_the_run() -> None:
    run = engine(n=3, epochs=3)
    live: list[int] = []

    async def follow() -> None:
        async for event in run.bus.events(AfterEpoch, AfterTraining):
            live.append(event.epoch)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await run.train()
    assert live == [1, 2, 3, 3]
    late = [type(event).__name__ async for event in run.bus.events(AfterEpoch, AfterTraining)]
    assert late == ["AfterEpoch"] * 3 + ["AfterTraining"]


async def test_a_reader_that_is_slow_sees_a_marked_gap() -> None:
    run = engine(n=100)
    events = run.bus.events(AfterBatch, bound=10)
    await run.train()
    seen = [event async for event in events]
    assert isinstance(seen[0], Gap)
    assert seen[0].missed + len(seen) - 1 == 100
    assert [event.step for event in seen[1:]] == list(range(91, 101))


async def test_wrong_declarations_are_named() -> None:
    for declared, pattern in (
        ({"every": "often"}, "a cadence must look like"),
        ({"start": 3}, "start and stop bound a cadence: they need `every`"),
        ({"stop": 9}, "start and stop bound a cadence: they need `every`"),
        ({"overflow": "explode"}, "overflow is 'block', 'drop_oldest' or 'latest', not 'explode'"),
        ({"mailbox": 0}, "mailbox is a number of events, at least 1"),
        ({"streams": "valid"}, "streams is a list of names, not the string 'valid'"),
    ):
        with pytest.raises(ConfigError, match=pattern):
            engine(Keeping(**declared))


class Misspelt(Hook):
    def after_bacth(self, event: Any) -> None:
        raise AssertionError("nothing calls it")


class Keras(Hook):
    def on_epoch_end(self, event: Any) -> None:
        raise AssertionError("nothing calls it")


async def test_a_method_that_nothing_calls_is_told(caplog: pytest.LogCaptureFixture) -> None:
    await Engine(Counting(), Arrays(2), [Misspelt(), Keras()], epochs=1).train()
    assert "hook Misspelt: nothing calls its method after_bacth; did you mean after_batch?" in caplog.text
    assert "hook Keras handles no event; what is called: after_batch, after_batches," in caplog.text


async def test_an_error_of_a_producer_is_told_without_one_of_ours() -> None:
    def broken() -> Any:
        yield {"x": np.ones(2)}
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire") as told:
        await Engine(Counting(), Arrays(), buffer=4).epoch(train=[broken()])
    assert told.value.__context__ is None
