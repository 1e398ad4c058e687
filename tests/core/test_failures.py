"""When something fails: the right error arrives, with its note, and nothing is lost or hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from engine_parts import Arrays, Counting, Keeping, batches

from asyncloop import ConfigError, DataError, Engine, Hook, HookError, ModelError, NonFiniteError, StalledError, Stream

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


def failing_generator() -> Iterator[dict[str, Any]]:
    yield from batches(5)
    raise Boom("at five")


async def failing_async_generator() -> AsyncIterator[dict[str, Any]]:
    for batch in batches(5):
        yield batch
    raise Boom("at five")


async def _at_five(i: int) -> dict[str, Any]:
    if i == 5:
        raise Boom("at five")
    return {"x": np.full(4, float(i))}


def _plain_at_five(i: int) -> dict[str, Any]:
    if i == 5:
        raise Boom("at five")
    return {"x": np.full(4, float(i))}


SOURCES = {
    "generator": lambda: Stream.of(failing_generator),
    "async generator": lambda: Stream.of(failing_async_generator),
    "async map": lambda: Stream.range(10).map(_at_five),
    "thread map": lambda: Stream.range(10).map(_plain_at_five, concurrency=3),
    "inline map": lambda: Stream.range(10).map(_plain_at_five, worker="inline"),
}


class Failing(Arrays):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def train_stream(self) -> Any:  # type: ignore[override]
        return self.source()


@pytest.mark.parametrize("slow", [False, True], ids=["fast model", "slow model"])
@pytest.mark.parametrize("buffer", [0, 2, "auto"])
@pytest.mark.parametrize("source", SOURCES)
async def test_a_producer_error_comes_after_the_batches_before_it_with_its_own_traceback(
    source: str, buffer: Any, slow: bool
) -> None:
    model = Counting((lambda n, train: time.sleep(0.002)) if slow else None)
    hook = Keeping()
    engine = Engine(model, Failing(SOURCES[source]), [hook], epochs=1, skip_zeroth_epoch=True, buffer=buffer)
    with pytest.raises(Boom, match="at five") as caught:
        await engine.train()
    assert model.trained_on == [0, 1, 2, 3, 4]
    assert "stream 'train', batch 5" in caught.value.__notes__
    assert any(
        entry.name in ("failing_generator", "failing_async_generator", "_at_five", "_plain_at_five")
        for entry in caught.traceback
    )
    assert hook.steps == [1, 2, 3, 4, 5]
    assert hook.count("after_training") == hook.count("on_exception") == 1
    assert hook.of("after_training")[0].success is False
    assert hook.of("on_exception")[0].exception is caught.value


async def test_a_model_error_keeps_its_type_and_says_where() -> None:
    def fail(n: int, train: bool) -> None:
        if n == 3:
            raise Boom("in the model")

    hook = Keeping()
    with pytest.raises(Boom, match="in the model") as caught:
        await Engine(Counting(fail), Arrays(), [hook], epochs=1, skip_zeroth_epoch=True).train()
    assert caught.value.__notes__ == ["model.run on stream 'train', batch 3, step 4"]
    assert hook.steps == [1, 2, 3]
    assert hook.count("after_training") == 1


METHODS = ["before_training", "before_epoch", "after_batch", "after_evaluation", "after_epoch", "after_epoch_profile"]


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_failing_hook_fails_the_run_with_its_own_error_and_every_hook_that_was_set_up_hears_the_end(
    method: str, plain: bool
) -> None:
    async def async_fail(event: Any) -> None:
        raise Boom(method)

    def plain_fail(event: Any) -> None:
        raise Boom(method)

    bad, before, after = Hook(), Keeping(), Keeping()
    setattr(bad, method, plain_fail if plain else async_fail)
    engine = Engine(
        Counting(), Arrays(3), [before, bad, after], epochs=2, extra_streams=["valid"], skip_zeroth_epoch=True
    )
    with pytest.raises(Boom, match=method) as caught:
        await engine.train()
    assert any("hook Hook" in note for note in caught.value.__notes__)
    assert before.count("after_training") == before.count("on_exception") == 1
    assert after.count("after_training") == (0 if method == "before_training" else 1)
    assert before.of("after_training")[0].success is False


async def test_a_failing_after_training_skips_nobody_and_hides_nothing() -> None:
    class Bad(Hook):
        async def after_training(self, event: Any) -> None:
            raise Boom("at the end")

    def fail(n: int, train: bool) -> None:
        raise Boom("the first")

    after = Keeping()
    with pytest.raises(Boom, match="the first") as caught:
        await Engine(Counting(fail), Arrays(), [Bad(), after], epochs=1).train()
    assert "after that, also Boom: at the end" in caught.value.__notes__
    assert after.count("after_training") == 1
    with pytest.raises(Boom, match="at the end"):
        await Engine(Counting(), Arrays(2), [Bad()], epochs=1).train()


async def test_warn_and_disable_keep_the_run_alive_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Hook):
        def __init__(self, policy: Any) -> None:
            self.on_error = policy
            self.n = 0

        async def after_batch(self, event: Any) -> None:
            self.n += 1
            raise Boom(f"call {self.n}")

    warn, disable = Bad("warn"), Bad("disable")
    result = await Engine(Counting(), Arrays(5), [warn, disable], epochs=1, skip_zeroth_epoch=True).train()
    assert result.steps == 5
    assert (warn.n, disable.n) == (5, 1)
    assert "call 5" in caplog.text
    assert "switched off" in caplog.text
    assert "5 errors" in caplog.text


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_a_hook_that_hangs_is_named_and_cut_off_at_its_deadline(plain: bool) -> None:
    release = anyio.Event()

    class Hangs(Hook):
        deadline = 0.1

    hook = Hangs()
    if plain:
        hook.after_batch = lambda event: time.sleep(0.6)  # type: ignore[attr-defined]
    else:

        async def wait(event: Any) -> None:
            await release.wait()

        hook.after_batch = wait  # type: ignore[attr-defined]
    with pytest.raises(StalledError, match=r"hook Hangs took longer than its deadline of 0\.1 s"):
        await Engine(Counting(), Arrays(3), [hook], epochs=1).train()


async def test_a_map_over_its_deadline_is_named_with_its_stack() -> None:
    def slow(i: int) -> dict[str, Any]:
        if i == 2:
            time.sleep(0.5)
        return {"x": np.full(4, float(i))}

    async def slow_async(i: int) -> dict[str, Any]:
        if i == 2:
            await anyio.sleep(60)
        return {"x": np.full(4, float(i))}

    for stream, pattern in (
        (Stream.range(5).map(slow, deadline=0.1), r"(?s)element 2 took longer.*time\.sleep"),
        (Stream.range(5).map(slow_async, deadline=0.1), "element 2 took longer"),
    ):
        with pytest.raises(StalledError, match=pattern):
            await Engine(Counting(), Arrays()).epoch(train=[stream])


async def test_a_map_is_retried_as_often_as_it_was_told() -> None:
    tries: dict[int, int] = {}

    def flaky(i: int) -> dict[str, Any]:
        tries[i] = tries.get(i, 0) + 1
        if tries[i] < 3:
            raise Boom(f"try {tries[i]}")
        return {"x": np.full(4, float(i))}

    model = Counting()
    await Engine(model, Arrays()).epoch(train=[Stream.range(4).map(flaky, retries=2)])
    assert model.trained_on == [0, 1, 2, 3]
    tries.clear()
    with pytest.raises(Boom, match="try 2"):
        await Engine(Counting(), Arrays()).epoch(train=[Stream.range(4).map(flaky, retries=1)])


BAD_BATCHES = {
    "a tuple": (
        (np.zeros(2), np.zeros(2)),
        r"is a mapping of source names to arrays, not 'tuple'.*names=\(\"name0\", \"name1\"\)",
    ),
    "None": (None, "not None; to end a stream, let its iterator end"),
    "unequal lengths": ({"x": np.zeros(2), "y": np.zeros(3)}, "unequal numbers of examples: x 2, y 3"),
    "a scalar source": ({"x": 1.5}, r"source 'x' is a float \(1\.5\) and has no example axis"),
    "a missing input": ({"y": np.zeros(2)}, r"lacks the model's inputs 'x'; it has 'y'"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
async def test_a_bad_batch_is_refused_by_name_and_index_after_the_good_ones(kind: str) -> None:
    bad, pattern = BAD_BATCHES[kind]
    model = Counting()
    with pytest.raises(DataError, match=pattern) as caught:
        await Engine(model, Arrays()).epoch(train=[[*batches(2), bad]])
    assert "'unnamed_train_0', batch 2" in str(caught.value)
    assert model.trained_on == [0, 1]


async def test_bad_outputs_are_refused_by_name() -> None:
    class Wrong(Counting):
        def __init__(self, outputs: Any) -> None:
            super().__init__()
            self.outputs = outputs

        def run(self, batch: Any, *, train: bool, stream: str) -> Any:
            return self.outputs

    with pytest.raises(ModelError, match=r"must return a mapping of output names to values, not 'list'"):
        await Engine(Wrong([1]), Arrays()).epoch(train=["train"])
    with pytest.raises(ModelError, match=r"output 'x' is named like a source of stream 'train'"):
        await Engine(Wrong({"x": 1.0}), Arrays()).epoch(train=["train"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, np.nan])])
async def test_a_loss_that_is_not_finite_stops_in_that_step_naming_it(value: Any) -> None:
    def at_three(n: int, train: bool) -> Any:
        return {"class_loss": value} if n == 3 else None

    hook = Keeping()
    with pytest.raises(NonFiniteError, match=r"'class_loss' is .* at step 4 \(stream 'train', batch 3\)"):
        await Engine(Counting(at_three), Arrays(), [hook], epochs=1, skip_zeroth_epoch=True).train()
    assert hook.steps == [1, 2, 3]


async def test_a_missing_stream_says_which_method_to_write() -> None:
    with pytest.raises(
        ConfigError, match=r"no stream 'vald': write a method `def vald_stream\(self\)`.*did you mean 'valid'"
    ):
        await Engine(Counting(), Arrays(), extra_streams=["vald"], epochs=1).train()


async def test_a_variable_that_does_not_exist_is_named_with_what_there_is() -> None:
    with pytest.raises(
        HookError, match=r"variable 'los', but batch 0 of stream 'train' has only loss, double, x; did you mean 'loss'"
    ):
        await Engine(Counting(), Arrays(), [Keeping(variables=["los"])], epochs=1).train()


async def test_file_hooks_without_an_output_dir_are_an_error() -> None:
    class Files(Hook):
        needs_output_dir = True

    with pytest.raises(ConfigError, match="hook Files writes files, but the engine has no output_dir"):
        await Engine(Counting(), Arrays(), [Files()]).train()


async def test_wrong_arguments_are_all_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Engine(Counting(), Arrays(), epochs=-1, steps="3", buffer="big", on_empty_batch="explode")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="extra_streams is a list of stream names, not 'valid'"):
        Engine(Counting(), Arrays(), extra_streams="valid")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_producer_that_hangs_is_named_after_the_batch_deadline(kind: str) -> None:
    release = threading.Event()

    async def hangs_async() -> AsyncIterator[dict[str, Any]]:
        for batch in batches(2):
            yield batch
        await anyio.sleep_forever()

    def hangs() -> Iterator[dict[str, Any]]:
        yield from batches(2)
        release.wait(5)

    model = Counting()
    stream = Stream.of(hangs_async if kind == "async" else hangs)
    where = "wait" if kind == "thread" else "task"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_release_later, release)
        with pytest.raises(StalledError, match=rf"(?s)batch 2 did not come within 0\.1 s; its producers:.*{where}"):
            await Engine(model, Arrays(), buffer=2, deadlines={"batch": 0.1}).epoch(train=[stream])
    assert model.trained_on == [0, 1]


async def test_a_source_that_the_model_thread_reads_itself_is_reported_when_it_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def slow() -> Iterator[dict[str, Any]]:
        yield from batches(1)
        time.sleep(0.3)
        yield from batches(1)

    await Engine(Counting(), Arrays(), buffer=0, deadlines={"batch": 0.05}).epoch(train=[Stream.of(slow)])
    assert "batch 1 is being read for more than 0.05 s" in caplog.text
    assert "time.sleep(0.3)" in caplog.text


async def _release_later(event: threading.Event) -> None:
    await anyio.sleep(0.3)
    event.set()


async def test_a_step_over_its_deadline_is_reported_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    model = Counting(lambda n, train: time.sleep(0.3) if n == 1 else None)
    await Engine(model, Arrays(3), epochs=1, skip_zeroth_epoch=True, deadlines={"step": 0.05}).train()
    assert "stream 'train', batch 1 has been running for more than 0.05 s" in caplog.text
    assert "time.sleep(0.3)" in caplog.text
    with pytest.raises(ConfigError, match="deadlines are positive seconds for batch and step, not 'bach'"):
        Engine(model, Arrays(), deadlines={"bach": 1})
