"""ShowProgress: what a terminal, a pipe, a program and a notebook get to see."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from engine_parts import Arrays, Counting
from hook_parts import Events, Uneven, pretend

from asyncloop import ConfigError, Engine
from asyncloop.hooks import ShowProgress

pytestmark = pytest.mark.anyio


class Shown:
    """All that came on stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


class Broken(io.StringIO):
    """A stderr whose reader has gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.n_writes = 0

    def write(self, text: str) -> int:
        self.n_writes += 1
        raise type(self.error)(*self.error.args)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("asyncloop.hooks.show_progress.time", made)
    return made


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Shown:
    return Shown(capsys)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def stderr_is(file: Any, **environment: str) -> Iterator[None]:
    """In a test's body, because pytest exchanges stderr after its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stderr", file)
        yield
        assert sys.stderr is file


class Session:
    """A hook driven by hand: ten train steps of an epoch, one a second."""

    def __init__(self, hook: ShowProgress, clock: Clock, events: Events | None = None) -> None:
        self.hook, self.clock, self.events = hook, clock, events or Events(dataset=pretend())
        self.step = 0

    def begin(self, step: int = 0) -> None:
        self.step = step
        self.hook.before_training(self.events.before_training(step))

    def train(self, epoch: int, n: int = 10, first_index: int = 0) -> None:
        self.hook.before_epoch(self.events.before_epoch(epoch, self.step))
        for index in range(first_index, n):
            self.clock.now_s += 1
            self.step += 1
            batch = self.events.batch({"loss": 1 / self.step}, step=self.step, index=index, epoch=epoch)
            self.hook.after_batches([batch])

    def end_epoch(self, epoch: int, data: Any = None) -> None:
        self.hook.after_epoch(self.events.after_epoch(data or {"train": {"loss": 0.5}}, epoch, self.step))


def test_plain_lines_say_where_the_run_is_every_few_seconds(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock)
    session.begin()
    session.train(1, 11)
    session.end_epoch(1, {"train": {"loss": 0.5, "accuracy": {"std": 0, "mean": 0.97}}, "valid": {"loss": 0.25}})
    assert stderr.getvalue().splitlines() == [
        "epoch 1  train 5  1 steps/s  loss 0.2",
        "epoch 1  train 10  1 steps/s  loss 0.1",
        "epoch 1  train loss 0.5 accuracy 0.97 · valid loss 0.25  (11 s)",
    ]


def test_the_first_epoch_teaches_the_length_of_the_next(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock)
    session.begin()
    session.train(1)
    session.end_epoch(1)
    session.train(2, 5)
    assert stderr.getvalue().splitlines()[-1] == "epoch 2  train 5/10  1 steps/s  ETA 0:05  loss 0.06667"


def test_the_dataset_may_say_the_length_beforehand(clock: Clock, stderr: Shown) -> None:
    events = Events(dataset=pretend(num_batches={"train": 4000}))
    events.run = pretend(dataset=events.run.dataset, epochs=7, dir=None)
    session = Session(ShowProgress("plain"), clock, events)
    session.begin()
    session.train(1, 5)
    assert stderr.getvalue() == "epoch 1/7  train 5/4000  1 steps/s  ETA 1:06:35  loss 0.2\n"


def test_a_run_that_ends_inside_a_pass_has_only_its_steps_before_it(clock: Clock, stderr: Shown) -> None:
    events = Events(dataset=pretend(num_batches={"train": 4000}))
    events.run = pretend(dataset=events.run.dataset, steps=16, dir=None)
    session = Session(ShowProgress("plain"), clock, events)
    session.begin()
    session.train(1, 5)
    session.end_epoch(1)
    session.train(2, 5)
    assert stderr.getvalue().splitlines()[::2] == [
        "epoch 1  train 5/16  1 steps/s  ETA 0:11  loss 0.2",
        "epoch 2  train 5/5  1 steps/s  ETA 0:00  loss 0.1",
    ]


def test_a_long_epoch_is_told_in_whole_seconds(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock)
    session.begin()
    session.train(1, 1)
    clock.now_s += 1234
    session.end_epoch(1)
    assert stderr.getvalue() == "epoch 1  train loss 0.5  (1235 s)\n"


def test_a_length_that_turns_out_wrong_is_not_shown(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock, Events(dataset=pretend(num_batches={"train": 3})))
    session.begin()
    session.train(1, 5)
    assert stderr.getvalue() == "epoch 1  train 5  1 steps/s  loss 0.2\n"


def test_an_epoch_that_is_resumed_counts_from_its_beginning(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock, Events(dataset=pretend(num_batches={"train": 10})))
    session.begin(step=13)
    session.train(2, 10, first_index=3)
    assert stderr.getvalue() == "epoch 2  train 8/10  1 steps/s  ETA 0:02  loss 0.05556\n"


def test_evaluations_are_counted_in_batches_and_teach_their_length(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("plain"), clock)
    session.begin()
    for _ in range(2):
        session.train(1, 1)
        for start in range(0, 12, 4):
            clock.now_s += 2
            session.hook.after_batches(
                [session.events.batch({}, stream="valid", train=False, index=start + i) for i in range(4)]
            )
        session.hook.after_evaluation(session.events.after_evaluation({}, ["valid"]))
    assert stderr.getvalue().splitlines() == [
        "epoch 1  valid 8  2 batches/s",
        "epoch 1  valid 4/12",
    ]


def test_scalars_of_any_kind_are_shown_and_arrays_are_not(clock: Clock, stderr: Shown) -> None:
    hook, events = ShowProgress("plain"), Events(dataset=pretend())
    hook.before_training(events.before_training())
    hook.before_epoch(events.before_epoch(1))
    clock.now_s += 10
    outputs = {"head": {"loss": np.float32(0.5)}, "logits": np.zeros(3), "n": 4, "zero_d": np.array(2.0)}
    hook.after_batches([events.batch(outputs)])
    assert stderr.getvalue() == "epoch 1  train 1  0.1 steps/s  head/loss 0.5  n 4  zero_d 2\n"


async def test_a_pipe_gets_whole_lines_and_one_for_each_epoch(stderr: Shown) -> None:
    await Engine(Counting(), Uneven(), [ShowProgress()], epochs=2, extra_streams=["valid"]).train()
    text = stderr.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = [line.partition("  (")[0] for line in text.splitlines()]
    assert lines == [f"epoch {n}  train loss 0.8 · valid loss 10.25" for n in range(3)]


async def test_json_lines_are_for_programs(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("json"), clock)
    session.begin()
    session.train(1, 2)
    session.end_epoch(1, {"train": {"loss": float("nan")}})
    first, _, last = [json.loads(line) for line in stderr.getvalue().splitlines()]
    assert first == {
        "kind": "progress", "epoch": 1, "epochs": None, "step": 1, "stream": "train", "train": True, "done": 1,
        "total": None, "batches_per_s": 1.0, "eta_s": None, "values": {"loss": 1.0},
    }  # fmt: skip
    assert last == {"kind": "epoch", "epoch": 1, "step": 2, "epoch_s": 2.0, "data": {"train": {"loss": None}}}


def test_none_shows_nothing(clock: Clock, stderr: Shown) -> None:
    session = Session(ShowProgress("none"), clock)
    session.begin()
    session.train(1)
    session.end_epoch(1)
    session.hook.after_training(session.events.after_training())
    assert stderr.getvalue() == ""


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


async def test_a_terminal_gets_a_live_line_and_is_left_as_it_was() -> None:
    terminal, stdout = Terminal(), sys.stdout
    with stderr_is(terminal):
        await Engine(Counting(), Arrays(3), [ShowProgress()], epochs=2, extra_streams=["valid"]).train()
    assert sys.stdout is stdout
    text = terminal.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    for n in range(3):
        assert f"epoch {n}" in text.replace("\x1b[1;36m", "").replace("\x1b[0m", "")


async def test_a_failing_run_leaves_the_terminal_as_it_was() -> None:
    def fail(n: int, train: bool) -> None:
        if n == 4:
            raise ZeroDivisionError

    terminal = Terminal()
    with stderr_is(terminal), pytest.raises(ZeroDivisionError):
        await Engine(Counting(fail), Arrays(3), [ShowProgress()], epochs=2).train()
    assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) == 1


def on_terminal(clock: Clock, mode: Any = "auto", n: int = 6, **environment: str) -> str:
    """What a terminal gets of an epoch of eight batches, stopped after `n`."""
    terminal, session = (
        Terminal(),
        Session(ShowProgress(mode), clock, Events(dataset=pretend(num_batches={"train": 8}))),
    )
    with stderr_is(terminal, **environment):
        session.begin()
        session.train(1, n)
        session.end_epoch(1)
        session.hook.after_training(session.events.after_training())
    return terminal.getvalue()


def test_the_live_line_shows_a_bar_and_what_a_plain_line_shows(clock: Clock) -> None:
    text = on_terminal(clock, "rich")
    for part in ("epoch 1  train", "6/8", "1 steps/s  ETA 0:02", "━"):
        assert part in text


def test_a_narrow_terminal_keeps_it_in_one_line(clock: Clock) -> None:
    text = on_terminal(clock, "rich", COLUMNS="40")
    assert "\x1b[1A" not in text.partition(SHOW)[0]  # no line to go up to


def test_no_color_is_respected(clock: Clock) -> None:
    assert "\x1b[1;36m" in on_terminal(clock)
    assert "\x1b[1;36m" not in on_terminal(clock, NO_COLOR="1")


def test_a_dumb_terminal_gets_plain_lines(clock: Clock) -> None:
    assert on_terminal(clock, TERM="dumb").splitlines()[0] == "epoch 1  train 5/8  1 steps/s  ETA 0:03  loss 0.2"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "gone"), ValueError("I/O operation on closed file")])
@pytest.mark.parametrize("mode", ["plain", "json", "rich"])
async def test_a_stderr_that_is_gone_silences_it_and_the_run_goes_on(
    mode: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(error)
    with stderr_is(broken):
        result = await Engine(Counting(), Arrays(3), [ShowProgress(mode)], epochs=2).train()
    assert result.epochs == 2
    assert mode == "rich" or broken.n_writes == 1
    assert not caplog.records


async def test_a_terminal_that_goes_away_ends_neither_the_run_nor_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Closing(Terminal):
        def write(self, text: str) -> int:
            if "epoch 1" in text:
                raise BrokenPipeError
            return super().write(text)

    with stderr_is(Closing()):
        result = await Engine(Counting(), Arrays(3), [ShowProgress()], epochs=2).train()
    assert result.epochs == 2
    assert not caplog.records


async def test_without_any_stderr_nothing_is_shown() -> None:
    with stderr_is(None):
        assert (await Engine(Counting(), Arrays(3), [ShowProgress()], epochs=1).train()).epochs == 1


class Notebook:
    """As much of IPython as the hook may touch."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.n_displays = 0
        self.kernel = object()

    def get_ipython(self) -> Notebook:
        return self

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Notebook:
        assert raw
        assert display_id
        self.n_displays += 1
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(bundle["text/plain"])


def test_a_notebook_gets_one_display_that_is_updated(
    clock: Clock, stderr: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)  # pyright: ignore[reportArgumentType]
    session = Session(ShowProgress(), clock)
    session.begin()
    session.train(1, 2)
    session.end_epoch(1)
    session.train(2, 1)
    session.hook.after_training(session.events.after_training())
    first, second, epoch, live, last = notebook.shown
    assert first == "epoch 1  train 1  1 steps/s  loss 1"
    assert second == "epoch 1  train 2  1 steps/s  loss 0.5"
    assert epoch == last == "epoch 1  train loss 0.5  (2 s)"
    assert live == epoch + "\nepoch 2  train 1/2  1 steps/s  ETA 0:01  loss 0.3333"
    assert notebook.n_displays == 1
    assert stderr.getvalue() == ""


def test_a_shell_without_a_kernel_is_no_notebook(clock: Clock, stderr: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", pretend(get_ipython=object))
    session = Session(ShowProgress(), clock)
    session.begin()
    session.train(1, 5)
    assert stderr.getvalue() == "epoch 1  train 5  1 steps/s  loss 0.2\n"


def test_a_notebook_that_cannot_display_gets_plain_lines(
    clock: Clock, stderr: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Notebook())  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "IPython.display", pretend(display=lambda *_, **__: 1 / 0))
    session = Session(ShowProgress(), clock)
    session.begin()
    session.train(1, 5)
    assert stderr.getvalue() == "epoch 1  train 5  1 steps/s  loss 0.2\n"


async def test_a_train_step_costs_it_nothing_until_it_looks() -> None:
    seen: list[int] = []

    class Counted(ShowProgress):
        def after_batches(self, events: Any) -> None:
            seen.extend(event.step for event in events)

    await Engine(Counting(), Arrays(500), [Counted("plain")], epochs=1, skip_zeroth_epoch=True).train()
    assert seen[-1] == 500  # the last step is always due
    assert len(seen) < 50


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="mode is 'auto' or 'rich' or 'plain' or 'json' or 'none', not 'fancy'"):
        ShowProgress("fancy")  # pyright: ignore[reportArgumentType]
