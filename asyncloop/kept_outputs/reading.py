"""KeptStream: the kept outputs of one stream, found and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from asyncloop.archive import runs_below
from asyncloop.batch import Batch
from asyncloop.checkpoint import Checkpoints
from asyncloop.errors import CheckpointError, NothingToResumeError
from asyncloop.run_json import json_object
from asyncloop.storage import read_verified, sealed, storage_errors
from asyncloop.trees import decoded, read_safetensors

__all__ = ["FORMAT", "KeptStream", "find_kept", "part_name"]

FORMAT = 1


def part_name(what: str, number: int) -> str:
    """The name of the files that hold a part of the `inputs` or `outputs`, without their suffix."""
    return f"{what}-{number:05d}"


@dataclass(frozen=True, slots=True)
class KeptStream:
    """The kept outputs of one stream. Reading blocks; a part is in memory at a time. CheckpointError if it is damaged."""

    folder: Path
    index: Mapping[str, Any]
    checkpoint: str | None = None
    """Whose weights the model had; None: it has none of its own."""

    @classmethod
    def open(cls, folder: Path, checkpoint: str | None = None) -> KeptStream:
        path = folder / "index.json"
        with storage_errors("read", path):
            content = path.read_bytes()
        index = json_object(content)
        if sealed(index) != content:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one it states")
        if index["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {index['format']!r}; this version reads {FORMAT}")
        return cls(folder, index, checkpoint)

    @property
    def evaluation(self) -> str:
        """The directory of the evaluation that has kept them."""
        return self.folder.parents[1].name

    @property
    def variables(self) -> Sequence[str]:
        """Names of the sources and outputs of its batches."""
        return self.index["variables"]

    def has(self, variable: str) -> bool:
        """Whether the batches have it, or what it is a leaf of; whatever is wanted of no batches is there."""
        return not self.index["parts"] or bool({variable, variable.partition("/")[0]} & {*self.variables})

    def batches(self) -> Iterator[Batch]:
        """The batches in their places in the pass; an empty one where one was skipped."""
        n_given = 0
        for record in self._records("inputs"):
            for _ in range(n_given, record["index"]):
                yield {}
            yield record["batch"]
            n_given = record["index"] + 1

    def outputs(self) -> Iterator[tuple[dict[str, Any], list[tuple[str, float]]]]:
        """What `run` gives for each batch that was not skipped, and what it logs."""
        for record in self._records("outputs"):
            lazy = {name: _giving(value) for name, value in record["lazy"].items()}
            yield {**record["eager"], **lazy}, record["logged"]

    def metrics(self) -> dict[str, Any]:
        """The model's metrics that do not follow from that."""
        return self._read("metrics")

    def _records(self, what: str) -> Iterator[Mapping[str, Any]]:
        for number in range(self.index["parts"]):
            yield from self._read(part_name(what, number))

    def _read(self, name: str) -> Any:
        text, arrays = (self._content(f"{name}.{suffix}") for suffix in ("json", "safetensors"))
        try:
            return decoded(json.loads(text), read_safetensors(arrays))
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / name}.json is damaged: {error}") from error

    def _content(self, file: str) -> bytes:
        with storage_errors("read", self.folder / file):
            return read_verified(self.folder / file, self.index["files"][file])


def _giving(value: Any) -> Callable[[], Any]:
    return lambda: value


def find_kept(run: Path, stream: str, checkpoint: str) -> KeptStream:
    """The outputs of a stream that were kept last for this checkpoint of a run; its directory need not be there any more.

    NothingToResumeError says how to keep some. Blocks.
    """
    checkpoints, others = Checkpoints(run / "checkpoints"), set[str]()
    wanted = checkpoints.named(checkpoint)
    weights = checkpoints.fingerprint(wanted)
    for evaluation in reversed(runs_below(run / "eval")):
        folder = evaluation.path / "outputs" / stream
        if (folder / "index.json").is_file():
            about = evaluation.table("evaluation")
            own = about.get("checkpoint")
            if own is None or (own == wanted and weights in (None, about.get("weights"))):
                return KeptStream.open(folder, own)
            others.add(f"{own} as it was before" if own == wanted else str(own))
    there = f" (there are those of {', '.join(sorted(others))})" if others else ""
    raise NothingToResumeError(
        f"no outputs of {stream!r} are kept for the checkpoint {wanted} of {run}{there}; "
        f"keep them first: asyncloop eval {stream} {run} --checkpoint {checkpoint} --keep-outputs"
    )
