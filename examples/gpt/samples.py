"""Hooks for whoever watches a GPT learn: what it writes by now, and how fast it goes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from asyncloop import AfterBatch, AfterEvaluation, BeforeTraining, Hook

logger = logging.getLogger(__name__)


class WriteSamples(Hook):
    """Logs what the model writes, and appends it to samples.txt in the run directory; on resume the file is cut to the
    checkpoint. Plain methods run in a thread of the hook's own: the model writes a sample, but waits for no disk."""

    every = "100 steps"
    streams = ("train",)
    variables = ("sample",)  # an output on demand: due steps have it, the others never make it

    def __init__(self) -> None:
        self._n_bytes = 0

    def before_training(self, event: BeforeTraining) -> None:
        if event.run.dir is not None:
            path = event.run.dir / "samples.txt"
            path.touch()
            os.truncate(path, self._n_bytes)

    def after_batch(self, event: AfterBatch) -> None:
        text = bytes(event.outputs["sample"].tolist()).decode(errors="replace").strip("\n")
        text = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
        logger.info("step %d writes\n%s", event.step, text)
        if event.run.dir is not None:
            with open(event.run.dir / "samples.txt", "ab") as file:
                file.write(f"--- step {event.step}\n{text}\n\n".encode())
                self._n_bytes = file.tell()

    def state_dict(self) -> dict[str, Any]:
        return {"n_bytes": self._n_bytes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._n_bytes = state["n_bytes"]


class LogSpeed(Hook):
    """Logs the newest step's numbers with tokens a second, everything included; and those of each evaluation."""

    every = "100 steps"
    streams = ("train",)
    scalars_on_host = True

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None

    async def after_batch(self, event: AfterBatch) -> None:
        step, now_s = event.step, time.perf_counter()
        numbers = f"step {step}: bits_per_byte {event.outputs['bits_per_byte']:.3f}, lr {event.outputs['lr']:.2e}"
        if self._since is not None:
            before, before_s = self._since
            n_tokens = (step - before) * event.inputs["tokens"].size
            numbers += f", {n_tokens / (now_s - before_s):,.0f} tokens/s"
        self._since = step, now_s
        logger.info("%s", numbers)

    async def after_evaluation(self, event: AfterEvaluation) -> None:
        for stream in event.streams:
            logger.info("step %d: %s bits_per_byte %.3f", event.step, stream, event.data[stream]["bits_per_byte"])
