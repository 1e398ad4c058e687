# pyright: basic, reportMissingImports=false
"""Input-bound images: uint8 pictures, decoded and augmented by the producers, for a step that could take more than most deliver."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncloop import Engine
from bench.harness import Metric, Reading, Round, Row, Scenario
from bench.job import Batch
from bench.loops import run_on
from bench.on_device.asyncloop import Data, default_loop
from bench.on_device.clocks import Updates
from bench.on_device.entries import entries_for
from bench.on_device.rows import Course, row_of
from bench.on_device.work import Work, loader_of
from bench.scenarios.goals import goal_of_row
from bench.stages import NoOp

__all__ = ["TINY", "Pictures", "images"]

PRODUCERS, LOADER = "asyncloop's producers alone", "DataLoader alone"
N_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Size:
    side: int
    margin: int
    """How much larger the stored pictures are; a crop is cut out of each."""
    batch_size: int
    n_pictures: int
    blocks: Sequence[int]
    """In each stage of the network."""
    width: int
    updates: Updates


FULL = Size(224, 32, 128, 2048, (3, 4, 6, 3), 64, Updates(120, first=40, last=120))
TINY = Size(16, 4, 4, 16, (1, 1), 8, Updates(6, first=2, last=6))


def images(device: Any, tiny: bool) -> Scenario:
    """Images of 224 × 224 × 3 bytes, decoded and augmented by producers, into a ResNet-50: can the device be kept busy?"""
    size = TINY if tiny else FULL
    n_loaders = min(os.cpu_count() or 1, 2 if tiny else 16)
    pictures = Pictures(size)
    work = Work(lambda: network(size), ["image", "label"], pictures, n_loaders)
    course = Course(work, device, size.updates, n_warm=4)
    alone = [
        _alone(PRODUCERS, "asyncloop", course, lambda: _producers_marks(work, size.updates.n)),
        _alone(LOADER, "dataloader", course, _loader_marks(work, device, size.updates.n)),
    ]
    rate = Metric("images", "1/s", lambda one, name: size.batch_size / one[name]["update_s"])
    return Scenario(
        "images",
        f"{size.side} × {size.side} × 3 bytes, zlib, cropped and flipped, {n_loaders} loaders; a ResNet in bf16, batches of "
        f"{size.batch_size}",
        [*(row_of(entry, course) for entry in entries_for(course, n_there=pictures.n_batches)), *alone],
        [POSSIBLE, COMPUTE_ONLY, rate],
        [goal_of_row(POSSIBLE, "asyncloop", 97.0, None, more=True)],
        better="more",
        remarks=[
            "The bare loop has its batches on the device: the compute-only rate. Possible is that rate, or what a system's own "
            "producers alone deliver, if that is less."
        ],
        main=("asyncloop",),
    )


COMPUTE_ONLY = Metric(
    "of compute only", "%", lambda one, name: 100 * one["bare loop"]["update_s"] / one[name]["update_s"]
)


def _possible(one: Round, name: str) -> float:
    alone = PRODUCERS if name in ("asyncloop", PRODUCERS) else LOADER
    return 100 * max(one["bare loop"]["update_s"], one[alone]["update_s"]) / one[name]["update_s"]


POSSIBLE = Metric("of what is possible", "%", _possible)


# --- producers alone ----------------------------------------------------------------------------------------------


def _alone(name: str, family: str, course: Course, marks: Callable[[], Sequence[float]]) -> Row:
    """Batches that nobody trains on."""
    updates = course.updates

    def measure() -> Reading:
        at = marks()
        return {"update_s": (at[updates.last - 1] - at[updates.first - 1]) / (updates.last - updates.first)}

    return Row(name, family, measure, reference=True, notes={"updates": updates.n})


class Idle(NoOp):
    """A model that only notes when it got its batches."""

    input_names = ("image", "label")

    def run(self, batch: Batch, *, train: bool = True, stream: str = "train") -> Mapping[str, Any]:
        self.marks.append(time.perf_counter())
        return super().run(batch, train=train, stream=stream)


def _producers_marks(work: Work, n: int) -> Sequence[float]:
    model = Idle()
    run_on(default_loop(), Engine(model, Data(work, n), epochs=1, skip_zeroth_epoch=True).train)
    return model.marks


def _loader_marks(work: Work, device: Any, n: int) -> Callable[[], Sequence[float]]:
    def marks() -> Sequence[float]:
        return [time.perf_counter() for _ in loader_of(work, device)(n)]

    return marks


# --- pictures -----------------------------------------------------------------------------------------------------


class Pictures:
    """Batches by number: `image` uint8 (B, H, W, 3), `label` int64 (B,). All is random, but for what makes it compressible."""

    def __init__(self, size: Size) -> None:
        self._size, self._stored_side = size, size.side + size.margin
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, N_CLASSES, size.n_pictures)
        self.n_batches = size.n_pictures // size.batch_size
        with ThreadPoolExecutor() as pool:
            self.stored = list(pool.map(self._encoded, range(size.n_pictures)))

    def __call__(self, index: int) -> Batch:
        size = self._size
        first = index % self.n_batches * size.batch_size
        image = np.empty((size.batch_size, size.side, size.side, 3), np.uint8)
        rng = np.random.default_rng(first)
        places = rng.integers(0, size.margin + 1, (size.batch_size, 2))
        flips = rng.random(size.batch_size) < 0.5
        for at, ((top, left), flip) in enumerate(zip(places, flips, strict=True)):
            picture = self._decoded(first + at)[top : top + size.side, left : left + size.side]
            image[at] = picture[:, ::-1] if flip else picture
        return {"image": image, "label": self.labels[first : first + size.batch_size]}

    def _decoded(self, number: int) -> np.ndarray:
        side = self._stored_side
        return np.frombuffer(zlib.decompress(self.stored[number]), np.uint8).reshape(side, side, 3)

    def _encoded(self, number: int) -> bytes:
        """A coarse pattern with a little noise: some two thirds of its bytes are left."""
        rng, side = np.random.default_rng(number), self._stored_side
        coarse = 16 * rng.integers(0, 16, (-(-side // 8), -(-side // 8), 3), dtype=np.uint8)
        pattern = coarse.repeat(8, 0).repeat(8, 1)[:side, :side]
        return zlib.compress((pattern + rng.integers(0, 4, pattern.shape, dtype=np.uint8)).tobytes(), 1)


# --- the network --------------------------------------------------------------------------------------------------


def network(size: Size) -> Any:
    """A ResNet of bottleneck blocks (He et al., Deep Residual Learning, 2015), channels last, that makes its own loss."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Bottleneck(nn.Module):
        def __init__(self, n_in: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *_normed(n_in, width, 1, 1), nn.ReLU(), *_normed(width, width, 3, stride), nn.ReLU(),
                *_normed(width, 4 * width, 1, 1),
            )  # fmt: skip
            same = stride == 1 and n_in == 4 * width
            self.short = nn.Identity() if same else nn.Sequential(*_normed(n_in, 4 * width, 1, stride))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.body(x) + self.short(x))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = [*_normed(3, size.width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            blocks = [Bottleneck(*each) for each in _plan(size)]
            self.body = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(4 * size.width * 2 ** (len(size.blocks) - 1), N_CLASSES)

        def forward(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
            x = (image.permute(0, 3, 1, 2).to(torch.bfloat16) - 128) / 64
            return {"loss": F.cross_entropy(self.head(self.body(x)).float(), label)}

    return Classifier().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _normed(n_in: int, n_out: int, side: int, stride: int) -> Iterator[Any]:
    from torch import nn

    yield nn.Conv2d(n_in, n_out, side, stride, side // 2, bias=False)
    yield nn.BatchNorm2d(n_out)


def _plan(size: Size) -> Iterator[tuple[int, int, int]]:
    """Channels that come in, width and stride of each block."""
    n_in = size.width
    for stage, n_blocks in enumerate(size.blocks):
        width = size.width * 2**stage
        for block in range(n_blocks):
            yield n_in, width, 2 if stage > 0 and block == 0 else 1
            n_in = 4 * width
