"""ShowProgress in a notebook: what its display says, and how often."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
from hook_parts import Events, pretend

from asyncloop import Paused, Resumed
from asyncloop.hooks import ShowProgress, progress_screens


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


class Notebook:
    """As much of IPython as a display may touch. Keeps the words of each bundle, in HTML."""

    def __init__(self) -> None:
        self.kernel = object()
        self.shown: list[str] = []

    def get_ipython(self) -> Notebook:
        return self

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Notebook:
        self.update(bundle, raw=raw)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        apart = re.sub(r"</(?:div|t[hd])>", " ", bundle["text/html"])
        self.shown.append(" ".join(re.sub(r"<[^>]*>", "", apart).split()))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    pretended = Notebook()
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, pretended)  # pyright: ignore[reportArgumentType]
    return pretended


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_screens, "time", made)
    monkeypatch.setattr("asyncloop.hooks.show_progress.time", made)
    return made


def under_way(clock: Clock) -> tuple[ShowProgress, Events]:
    """In the middle of the second of four epochs of ten steps, a step a second."""
    events = Events(dataset=pretend(num_batches={"train": 10}))
    events.run = replace(events.run, epochs=4)
    hook = ShowProgress()
    hook.before_training(events.before_training())
    for step in range(1, 16):
        epoch, index = divmod(step - 1, 10)
        if index == 0:
            hook.before_epoch(events.before_epoch(epoch + 1, step - 1))
        clock.now_s += 1
        hook.after_batches([events.batch({"loss": 0.25}, step=step, index=index, epoch=epoch + 1)])
        if index == 9:
            hook.after_epoch(events.after_epoch({"train": {"loss": 0.5}, "<b>": {"loss": {"mean": 0.75}}}, 1, step))
    return hook, events


def test_it_shows_place_speed_and_values_and_the_time_left_of_the_whole_run(notebook: Notebook, clock: Clock) -> None:
    under_way(clock)
    assert notebook.shown[-1] == (
        "run id · ● running · 00:15 epoch 2/4 · step 15 · 1 steps/s · 00:25 left train 5/10 · loss 0.25 "
        "epoch train &lt;b&gt; loss loss s 1 0.5 0.75 10"
    )


def test_it_shows_a_pause(notebook: Notebook, clock: Clock) -> None:
    hook, events = under_way(clock)
    hook.paused(Paused(events.run, events.control, 2, 16))
    assert "● paused · 00:15 epoch 2/4 · step 16 train 5/10 · loss 0.25 " in notebook.shown[-1]
    hook.resumed(Resumed(events.run, events.control, 2, 16))
    assert "● running" in notebook.shown[-1]
    hook.paused(Paused(events.run, events.control, 3, 21))
    assert "epoch 3/4 · step 21 epoch train" in notebook.shown[-1], "what was seen of the epoch before is over"


def test_it_shows_why_the_run_ended(notebook: Notebook, clock: Clock) -> None:
    for reason, success, shown in ((None, True, "completed"), ("enough", True, "stopped"), (None, False, "failed")):
        hook, events = under_way(clock)
        if reason is not None:
            events.control.stop(reason)
        hook.after_training(events.after_training(success))
        assert f"● {shown}: done · 00:15 epoch 1/4 · step 1 epoch train" in notebook.shown[-1]


def test_short_epochs_update_it_four_times_a_second_and_the_end_is_always_shown(
    notebook: Notebook, clock: Clock
) -> None:
    hook, events = ShowProgress(), Events()
    hook.before_training(events.before_training())
    for epoch in range(1000):
        clock.now_s += 0.01
        hook.after_epoch(events.after_epoch({"train": {"loss": 0.5}}, epoch, epoch))
    assert 35 < len(notebook.shown) < 48
    hook.after_training(events.after_training())
    assert "completed: done" in notebook.shown[-1]
    assert " 999 0.5 " in notebook.shown[-1]


def test_a_slow_last_step_and_the_end_of_its_epoch_are_both_shown(notebook: Notebook, clock: Clock) -> None:
    hook, events = ShowProgress(), Events()
    hook.before_training(events.before_training())
    for epoch in (1, 2, 3):
        hook.before_epoch(events.before_epoch(epoch, epoch))
        clock.now_s += 10
        hook.after_batches([events.batch({"loss": 0.25}, step=epoch, epoch=epoch)])
        hook.after_epoch(events.after_epoch({"train": {"loss": 0.5}}, epoch, epoch))
    assert len(notebook.shown) == 1 + 2 * 3
