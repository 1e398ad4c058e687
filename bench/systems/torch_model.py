# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
"""asyncloop's TorchModel around the network and the optimizer of a torch model, as its user would write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.digits import digest_of
from bench.job import Job, Model, Outcome
from bench.loops import LOOPS, OnALoop, needs_of
from bench.systems.asyncloop import Asyncloop

__all__ = ["TORCH_MODELS", "AsyncloopTorchModel"]


@dataclass(frozen=True, slots=True)
class AsyncloopTorchModel(OnALoop):
    """The default asyncloop with a TorchModel in the place of the job's model. In the clock: what is in asyncloop's."""

    family: str = "asyncloop"

    @property
    def name(self) -> str:
        return f"asyncloop {self.loop}, TorchModel"

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.loop), "torch")

    def run(self, job: Job) -> Outcome:
        return Asyncloop(self.loop).run(replace(job, make_model=lambda: _torch_model(job.make_model())))


TORCH_MODELS = [AsyncloopTorchModel(loop) for loop in LOOPS]


def _torch_model(model: Model | Any) -> Any:
    """A TorchModel of the network of a model of `bench/digits.py`; importing this imports no torch."""
    from asyncloop.torch import TorchModel

    class Classifier(TorchModel):
        """Gives the number of right answers too."""

        marks: Sequence[float] = ()
        busy_s = 0.0

        def step(self, batch: Mapping[str, Any], *, train: bool, stream: str) -> Mapping[str, Any]:
            outputs = super().step(batch, train=train, stream=stream)
            return {**outputs, "correct": (outputs["output"].detach().argmax(1) == batch["label"]).sum()}

        @property
        def input_names(self) -> Sequence[str]:
            return ["id", *super().input_names]

        @property
        def output_names(self) -> Sequence[str]:
            return [*super().output_names, "correct"]

        @property
        def n_runs(self) -> int:
            return 0 if self.updates is None else self.updates.n_updates

        def digest(self) -> str:
            return digest_of(self.module)

    loss = {"class": "torch.nn:CrossEntropyLoss", "inputs": ["output", "label"]}
    return Classifier(model.network, ["image"], loss=loss, optimizer=model.optimizer, device="cpu")
