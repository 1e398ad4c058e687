"""A run in HTML, for notebooks. Colours that are set are readable on light and on dark; all others are the theme's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from typing import Any

from asyncloop.events import EpochData
from asyncloop.hooks.progress_state import Snapshot, rounded_s
from asyncloop.hooks.values import summary, text
from asyncloop.progress import Progress

__all__ = ["Moment", "live_html", "run_html"]

_COLOURS = {"paused": "#c98a1b", "completed": "#3a9d5d", "stopped": "#c98a1b", "failed": "#d9534f"}
_ELSE = "#4a8fe0"
_FAINT = "opacity: 0.65"
_CELL = "text-align: right; padding: 0.1em 0.6em"
_TABLE = "border-collapse: collapse; margin: 0.3em 0; color: inherit; font-size: inherit"
_TRACK = (
    "display: inline-block; width: 16em; max-width: 40%; height: 0.6em; margin-right: 0.6em; vertical-align: middle; "
    "overflow: hidden; border-radius: 0.3em; background: rgba(128, 128, 128, 0.3)"
)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a live display shows. `pass_under_way` is None before the first batch and after the last."""

    title: str
    state: str
    elapsed_s: float
    epoch: int
    epochs: int | None
    step: int
    pass_under_way: Snapshot | None
    left_s: float | None
    """Until the end of the run if that can be told, else of the pass."""
    ended: Sequence[Mapping[str, Any]]
    """Finished epochs, oldest first: `epoch`, `epoch_s` and `data`."""


def live_html(moment: Moment) -> str:
    """State, place, bar, speed, newest values and a table of the newest epochs."""
    head = [f"<b>{escape(moment.title)}</b>", _state(moment.state), _faint(_clock(moment.elapsed_s))]
    place = [f"epoch {_of(moment.epoch, moment.epochs)}", f"step {moment.step}"]
    lines = [_line(head)]
    now = moment.pass_under_way
    if now is None:
        lines.append(_line(place))
    else:
        lines.append(_line([*place, *(_speed(now, moment.left_s) if moment.state == "running" else [])]))
        lines.append(_line([f"{_bar(now)}{escape(now.stream)} {now.count}", *_named(now.values.items())]))
    return _block([*lines, _epochs(moment.ended)])


def run_html(snapshot: Mapping[str, Any], progress: Progress) -> str:
    """A handle on a run, from its `Run.snapshot()`: where it is, how far it has come, the newest metrics."""
    state, reason, where = snapshot["state"], snapshot["reason"], snapshot["dir"]
    place = [f"epoch {_of(progress.epoch, progress.epochs)}", f"step {_of(progress.step, progress.steps)}"]
    head = [f"<b>run {escape(snapshot['id'])}</b>", _state(f"{state}: {reason}" if reason else state), *place]
    lines = [_line(head)]
    if where is not None:
        lines.append(_line([f"<code>{escape(where)}</code>"]))
    return _block([*lines, _metrics(snapshot["metrics"])])


def _block(parts: Iterable[str]) -> str:
    return f'<div style="line-height: 1.6; font-variant-numeric: tabular-nums">{"".join(parts)}</div>'


def _line(parts: Iterable[str]) -> str:
    return f"<div>{' · '.join(parts)}</div>"


def _faint(content: str) -> str:
    return f'<span style="{_FAINT}">{content}</span>'


def _state(state: str) -> str:
    colour = _COLOURS.get(state.partition(":")[0], _ELSE)
    return f'<span style="color: {colour}">●</span> {escape(state)}'


def _of(done: int, whole: int | None) -> str:
    return str(done) if whole is None else f"{done}/{whole}"


def _speed(now: Snapshot, left_s: float | None) -> list[str]:
    """As far as they are known."""
    rate, unit = now.batches_per_s, "steps/s" if now.train else "batches/s"
    speed = [] if rate is None else [f"{rate:.3g} {unit}" if rate < 100 else f"{rate:.0f} {unit}"]
    return speed if left_s is None else [*speed, f"{_clock(left_s)} left"]


def _bar(now: Snapshot) -> str:
    """Not <progress>: browsers choose the colour of its track to go with the bar, not with the page."""
    if now.total is None:
        return ""
    share = 100 * now.done / max(now.total, 1)
    bar = f'<span style="display: block; height: 100%; width: {share:.1f}%; background: {_ELSE}"></span>'
    return f'<span role="progressbar" aria-valuenow="{share:.0f}" style="{_TRACK}">{bar}</span>'


def _named(values: Iterable[tuple[str, float]]) -> list[str]:
    return [f"{_faint(escape(name))} {text(value)}" for name, value in values]


def _numbers(data: Mapping[str, Mapping[str, Any]]) -> EpochData:
    """The values that can be told in one number; streams without any are left out."""
    found = {
        stream: {name: number for name, value in values.items() if (number := summary(value)) is not None}
        for stream, values in data.items()
    }
    return {stream: values for stream, values in found.items() if values}


def _metrics(metrics: EpochData) -> str:
    """A row for each stream."""
    data = _numbers(metrics)
    names = list(dict.fromkeys(name for values in data.values() for name in values))
    rows = [[escape(stream), *(_text_of(values.get(name)) for name in names)] for stream, values in data.items()]
    return _table([["", *map(escape, names)]], rows)


def _epochs(ended: Sequence[Mapping[str, Any]]) -> str:
    """A row for each epoch, a column for each stream's variable."""
    data = [_numbers(entry["data"]) for entry in ended]
    columns = list(dict.fromkeys((stream, name) for one in data for stream, values in one.items() for name in values))
    heads = [
        ["epoch", *(escape(stream) for stream, _ in columns), ""],
        ["", *(escape(name) for _, name in columns), "s"],
    ]
    rows = [
        [
            str(entry["epoch"]),
            *(_text_of(one.get(stream, {}).get(name)) for stream, name in columns),
            rounded_s(entry["epoch_s"]),
        ]
        for entry, one in zip(ended, data, strict=True)
    ]
    return _table(heads, rows)


def _text_of(value: float | None) -> str:
    return "" if value is None else text(value)


def _table(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """Nothing at all without a row. Cells are HTML already."""
    if not rows:
        return ""
    head = "".join(_row("th", f"{_CELL}; {_FAINT}; font-weight: normal", cells) for cells in heads)
    body = "".join(_row("td", _CELL, cells) for cells in rows)
    return (
        f'<div style="overflow-x: auto"><table style="{_TABLE}">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _row(tag: str, style: str, cells: Sequence[str]) -> str:
    made = (f'<{tag} style="{style}">{cell}</{tag}>' for cell in cells)
    return f"<tr>{''.join(made)}</tr>"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
