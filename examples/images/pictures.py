"""The digits of examples/digits as pictures for a convolutional network, distorted anew in every pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asyncloop import Batch, Stream

Images = NDArray[np.float32]


class Pictures:
    """1797 handwritten digits: 300 to validate, 300 to test, the others to train on.

    Batches: `image` float32 (B, 1, 8, 8) from 0 to 1, `label` int64 (B,). Training images are turned by up to `degrees`,
    moved by up to `shift` pixels and get noise of standard deviation `noise`. Another `split_seed` is another split.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        degrees: float = 12.0,
        shift: float = 1.0,
        noise: float = 0.05,
        split_seed: int = 0,
        file: str | None = None,
    ) -> None:
        with np.load(file or Path(__file__).parents[1] / "digits" / "digits.npz") as stored:
            self._images = stored["images"].astype(np.float32) / 16
            self._labels = stored["labels"].astype(np.int64)
        order = np.random.default_rng(split_seed).permutation(len(self._labels))
        valid, test, train = np.split(order, (300, 600))
        self._members = {"train": train, "valid": valid, "test": test}
        self._batch_size = batch_size
        self._degrees, self._shift, self._noise = degrees, shift, noise

    @property
    def num_batches(self) -> dict[str, int]:
        """Stream name to batches in a pass, for the progress bars."""
        return {name: -(-len(members) // self._batch_size) for name, members in self._members.items()}

    def train_stream(self) -> Stream:
        """Threads distort batches ahead of the model. `rng` is keyed by (seed, pass, index): a resumed run draws the same."""

        def distorted_batch(indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
            batch = self._take("train", indices)
            images_BHW = distorted(batch["image"][:, 0], rng, degrees=self._degrees, shift=self._shift)
            images_BHW += rng.normal(0, self._noise, images_BHW.shape).astype(np.float32)
            return {**batch, "image": images_BHW[:, None]}

        return (
            Stream.range(len(self._members["train"]), shuffle=True)
            .batch(self._batch_size)
            .map(distorted_batch, concurrency=2)
        )

    def valid_stream(self) -> Stream:
        return self._plain_stream("valid")

    def test_stream(self) -> Stream:
        return self._plain_stream("test")

    def _plain_stream(self, name: str) -> Stream:
        indices = Stream.range(len(self._members[name])).batch(self._batch_size)
        return indices.map(lambda each: self._take(name, each), worker="inline")

    def _take(self, name: str, indices: NDArray[np.int64]) -> Batch:
        examples = self._members[name][indices]
        return {"image": self._images[examples, None], "label": self._labels[examples]}


def distorted(images_BHW: Images, rng: np.random.Generator, *, degrees: float, shift: float) -> Images:
    """Each image turned around its middle and moved, by amounts of its own. Between pixels linear, outside empty."""
    n, height, width = images_BHW.shape
    angle_B11 = np.radians(rng.uniform(-degrees, degrees, (n, 1, 1)))
    down_B11, right_B11 = rng.uniform(-shift, shift, (2, n, 1, 1))
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y_HW, x_HW = np.mgrid[:height, :width] - np.array([middle_y, middle_x])[:, None, None]
    # where each pixel comes from, in a picture with an empty frame of one pixel, to which all beyond it is clipped
    from_y = np.cos(angle_B11) * y_HW - np.sin(angle_B11) * x_HW - down_B11 + middle_y + 1
    from_x = np.sin(angle_B11) * y_HW + np.cos(angle_B11) * x_HW - right_B11 + middle_x + 1
    framed = np.pad(images_BHW, ((0, 0), (1, 2), (1, 2)))
    from_y, from_x = np.clip(from_y, 0, height + 1), np.clip(from_x, 0, width + 1)
    top, left = from_y.astype(np.int64), from_x.astype(np.int64)
    part_y, part_x = (from_y - top).astype(np.float32), (from_x - left).astype(np.float32)
    each = np.arange(n)[:, None, None]
    above = (1 - part_x) * framed[each, top, left] + part_x * framed[each, top, left + 1]
    below = (1 - part_x) * framed[each, top + 1, left] + part_x * framed[each, top + 1, left + 1]
    return (1 - part_y) * above + part_y * below
