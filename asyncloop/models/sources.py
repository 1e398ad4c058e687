"""Sources: from the sources of a batch to the arrays that a classifier computes with."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from asyncloop.batch import Batch
from asyncloop.errors import ModelError
from asyncloop.models.parameters import Array

__all__ = ["examples_of", "labels_of"]


def examples_of(batch: Batch, source: str, *, n_inputs: int, dtype: npt.DTypeLike, stream: str) -> Array:
    """The examples of `source` as a matrix (B, n_inputs) of `dtype`, each flattened. Copies only to convert.

    ModelError if they are missing, none, not real numbers, or not of `n_inputs` numbers each.
    """
    x = _array(batch, source, stream)
    if x.dtype.kind not in "buif":
        _refuse(stream, source, f"values of dtype {x.dtype}", "real numbers", "convert them in the dataset")
    n_found = x.size // len(x)
    if n_found != n_inputs:
        found = f"shape {x.shape}, which is {n_found} numbers an example"
        _refuse(stream, source, found, f"{n_inputs}", f"set n_inputs = {n_found}, or reshape in the dataset")
    return x.reshape(len(x), n_inputs).astype(dtype, copy=False)


def labels_of(batch: Batch, source: str, *, n_examples: int, n_classes: int, stream: str) -> Array:
    """The labels of `source`, integers (B,) in 0 … n_classes − 1; ModelError if they are anything else."""
    y = _array(batch, source, stream)
    if y.shape != (n_examples,):
        hint = "class numbers, not one-hot rows" if y.ndim == 2 else "one class number for each example"
        _refuse(stream, source, f"shape {y.shape}", f"shape ({n_examples},)", f"give {hint}")
    if y.dtype.kind not in "iu":
        remedy = 'convert them in the dataset: .astype("int64")'
        _refuse(stream, source, f"values of dtype {y.dtype}", "integers", remedy)
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= n_classes:
        remedy = "number the classes from 0" if lowest < 0 else f"set n_classes = {highest + 1}, or check the labels"
        _refuse(stream, source, f"labels from {lowest} to {highest}", f"0 to {n_classes - 1}", remedy)
    return y


def _array(batch: Batch, source: str, stream: str) -> Array:
    if source not in batch:
        names = ", ".join(map(repr, batch)) or "none"
        _refuse(
            stream,
            source,
            f"only {names}",
            "it in every batch",
            "name the right source in the model's config",
        )
    try:
        array: Array = np.asarray(batch[source])
    except (TypeError, ValueError) as error:
        _refuse(stream, source, f"no array ({error})", "an array", "convert it in the dataset")
    if array.ndim == 0 or array.size == 0:
        _refuse(
            stream,
            source,
            f"nothing in it (shape {array.shape})",
            "at least one example",
            "leave empty batches out",
        )
    return array


def _refuse(stream: str, source: str, found: str, expected: str, remedy: str) -> NoReturn:
    raise ModelError(f"stream {stream!r}, source {source!r}: found {found}; expected {expected}; {remedy}")
