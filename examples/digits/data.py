"""The optical digits of the UCI repository as three streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asyncloop import Batch, Stream


class Digits:
    """1797 handwritten digits, split class by class into 1197 to train on, 300 to validate and 300 to test.

    Batches: `image` float32 (B, 8, 8) from 0 to 1, `label` int64 (B,) from 0 to 9. With `augment` every training
    image is moved by up to half a pixel each way, anew in each pass. Another `split_seed` is another split.
    """

    def __init__(self, *, batch_size: int = 32, augment: bool = True, split_seed: int = 0) -> None:
        with np.load(Path(__file__).with_name("digits.npz")) as stored:
            self._images = stored["images"].astype(np.float32) / 16
            self._labels = stored["labels"].astype(np.int64)
        self._members = stratified_split(self._labels, split_seed)
        self._batch_size = batch_size
        self._augment = augment

    @property
    def num_batches(self) -> dict[str, int]:
        """Stream name to batches in a pass, for the progress bars."""
        return {name: -(-len(members) // self._batch_size) for name, members in self._members.items()}

    def train_stream(self) -> Stream:
        return self._stream("train", shuffle=True, augment=self._augment)

    def valid_stream(self) -> Stream:
        return self._stream("valid")

    def test_stream(self) -> Stream:
        return self._stream("test")

    def _stream(self, name: str, *, shuffle: bool = False, augment: bool = False) -> Stream:
        members = self._members[name]

        def take(indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
            examples = members[indices]
            images = self._images[examples]
            return {"image": moved(images, rng) if augment else images, "label": self._labels[examples]}

        return Stream.range(len(members), shuffle=shuffle).batch(self._batch_size).map(take, worker="inline")


def moved(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The images (B, H, W), each moved by up to half a pixel each way; what comes in from outside is empty."""
    down, right = rng.uniform(-0.5, 0.5, (2, len(images), 1, 1)).astype(np.float32)
    rows = np.pad(images, ((0, 0), (1, 1), (0, 0)))
    images = _blend(rows[:, :-2], images, rows[:, 2:], down)
    columns = np.pad(images, ((0, 0), (0, 0), (1, 1)))
    return _blend(columns[:, :, :-2], images, columns[:, :, 2:], right)


def _blend(
    before: NDArray[np.float32], here: NDArray[np.float32], after: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    return (1 - abs(share)) * here + np.maximum(share, 0) * before + np.maximum(-share, 0) * after


def stratified_split(labels: NDArray[np.int64], seed: int, n_held_out: int = 300) -> dict[str, NDArray[np.int64]]:
    """Indices of the parts: `valid` and `test` of `n_held_out` examples each, `train` of the rest.

    Shuffled, then ordered by how far along its class each example is: every stretch has all classes in their shares.
    """
    rng = np.random.default_rng(seed)
    progress = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        progress[of_class] = (rng.permutation(len(of_class)) + rng.random()) / len(of_class)
    valid, test, train = np.split(np.argsort(progress), (n_held_out, 2 * n_held_out))
    return {"train": np.sort(train), "valid": np.sort(valid), "test": np.sort(test)}
