"""The sections a config has of its own: `[run]` and `[engine]`. Components bring their schema themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from asyncloop.cadence import Cadence

__all__ = ["CadenceText", "EngineSection", "RunSection"]

Policy = Literal["ignore", "warn", "error"]
Text = Annotated[str, Field(min_length=1)]

# What the validators below say, as far as a JSON schema can say it.
_CADENCE_FORM = (
    r"^(?=[\s0.]*[1-9])\s*(\d+(\.0+)?\s*(epochs?|steps?)(\s+doubling\s+to\s+\d+)?"
    r"|\d+(\.\d+)?\s*(s|seconds?|min|minutes?|h|hours?))\s*$"
)
_INSIDE_FORM = _CADENCE_FORM.replace("epochs?|", "")
_FILE_NAME_FORM = r'^(?![.-])[^\s/\\:*?"<>|]([^/\\:*?"<>|\x00-\x1f]{0,98}[^\s/\\:*?"<>|])?$'


def _cadence(text: str) -> str:
    Cadence.parse(text)
    return text


def _file_name(text: str) -> str:
    if text.startswith((".", "-")) or text != text.strip() or len(text) > 100:
        raise ValueError("it names a directory: no leading `.` or `-`, no outer spaces, at most 100 characters")
    if any(char in '/\\:*?"<>|' or not char.isprintable() for char in text):
        raise ValueError(r'it names a directory: none of / \ : * ? " < > | and no control characters')
    return text


def _unique(names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice")
    return names


def _inside_an_epoch(text: str) -> str:
    if Cadence.parse(text).unit == "epochs":
        raise ValueError(f"it counts steps or seconds inside an epoch, not {text!r}")
    return text


CadenceText = Annotated[str, AfterValidator(_cadence), Field(json_schema_extra={"pattern": _CADENCE_FORM})]
"""A string that `Cadence.parse` understands."""


class Section(BaseModel):
    """Strict and frozen: no unknown keys, no conversions but from an integer to a float."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunSection(Section):
    """What the run is called and where it lives."""

    name: Annotated[Text, AfterValidator(_file_name), Field(json_schema_extra={"pattern": _FILE_NAME_FORM})] = "run"
    """The first part of the run directory's name."""
    root: Text = "runs"
    """The directory that holds the run directories."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Everything random is keyed by it: the order of the data, the weights, the global generators."""
    tags: list[Text] = []
    """Free words to find the run by."""


class EngineSection(Section):
    """The Engine's keyword arguments, but for what comes from elsewhere in the config."""

    epochs: int | None = Field(default=None, ge=0)
    """Train for exactly so many epochs; 0: only the evaluation before training."""
    steps: int | None = Field(default=None, ge=0)
    """Train for exactly so many steps; whichever of `epochs` and `steps` comes first ends the run."""
    train_stream: Text = "train"
    """The stream to train on."""
    extra_streams: Annotated[list[Text], AfterValidator(_unique), Field(json_schema_extra={"uniqueItems": True})] = []
    """The streams to evaluate after each epoch, in this order."""
    buffer: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """How many finished batches are kept ready."""
    epoch_size: int | None = Field(default=None, ge=1)
    """An epoch is exactly so many train batches; the rest carries over."""
    batch_size: int | None = Field(default=None, ge=1)
    """Batches of another number of examples are dropped and counted."""
    skip_zeroth_epoch: bool = False
    """No evaluation before training."""
    evaluate_every: (
        Annotated[CadenceText, AfterValidator(_inside_an_epoch), Field(json_schema_extra={"pattern": _INSIDE_FORM})]
        | None
    ) = None
    """Evaluate the extra streams inside an epoch too: `"500 steps"`, `"10 min"`."""
    on_empty_batch: Policy = "error"
    """A batch without examples."""
    on_empty_stream: Policy = "error"
    """A stream without batches."""
    on_unused_sources: Policy = "warn"
    """Sources of a batch that the model does not take."""
    on_nonfinite: Policy = "error"
    """A loss that is NaN or infinite."""
    own_rng: bool = False
    """Seed Python's and numpy's global generators, and keep them in checkpoints."""
    deadlines: dict[Literal["batch", "step"], Annotated[float, Field(gt=0)]] = {}
    """Seconds that waiting for a batch and that a step may take before they are named as stalled."""

    @model_validator(mode="after")
    def _has_streams_to_evaluate(self) -> Self:
        if self.evaluate_every is not None and not self.extra_streams:
            message = "it evaluates the extra streams, but `extra_streams` is empty"
            raise PydanticCustomError("value_error", message, {"at": ("evaluate_every",)})
        return self

    def kwargs(self) -> dict[str, Any]:
        """What to pass to Engine. `deadlines` only if some are given, for the Engine has its own."""
        return without_empty_deadlines(self.model_dump())


def without_empty_deadlines(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "deadlines" or value}
