"""A hook that says what went wrong: a confusion matrix and pictures, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asyncloop import AfterBatch, AfterEpoch, Hook

_SHADES = " .:-=+*#%@"


class WriteMistakes(Hook):
    """After each epoch `mistakes-<stream>.txt` in the run directory: the metric `confusion`, and the wrong digits drawn.

    Named variables arrive as host arrays, wherever the model runs. `after_epoch` comes when every batch has been handled.
    """

    streams = ("valid",)
    variables = ("image", "label", "output")

    def __init__(self) -> None:
        self._wrong: dict[str, list[str]] = {}

    def after_batch(self, event: AfterBatch) -> None:
        if event.index == 0:  # a pass begins
            self._wrong[event.stream] = []
        labels, logits = event.inputs["label"], event.outputs["output"]
        for n in np.flatnonzero(logits.argmax(axis=1) != labels):
            title = f"a {labels[n]} taken for a {logits[n].argmax()} ({_probabilities(logits[n]).max():.0%} sure)"
            self._wrong[event.stream].append("\n".join([title, *_drawn(event.inputs["image"][n, 0])]))

    def after_epoch(self, event: AfterEpoch) -> None:
        for stream, wrong in self._wrong.items():
            if stream in event.data and event.run.dir is not None:
                confusion = "\n".join(_table(event.data[stream]["confusion"]))
                (event.run.dir / f"mistakes-{stream}.txt").write_text("\n\n".join([confusion, *wrong]) + "\n")


def _table(confusion: Sequence[Sequence[int]]) -> Iterator[str]:
    """Rows are what the digits are, columns what they are taken for."""
    yield "    " + "".join(f"{digit:5}" for digit in range(len(confusion)))
    for digit, row in enumerate(confusion):
        yield f"{digit:4}" + "".join(f"{n or '·':>5}" for n in row)


def _drawn(image_HW: Any) -> Iterator[str]:
    for row in np.clip(image_HW * len(_SHADES), 0, len(_SHADES) - 1).astype(int):
        yield "".join(2 * _SHADES[shade] for shade in row).rstrip()


def _probabilities(logits: Any) -> Any:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()
