"""Two interleaved half-moons of points: put your own data here."""

import numpy as np

from asyncloop import Stream


class Moons:
    """Batches: `x` float32 (B, 2), `label` int64 (B,), 0 or 1. One method `<name>_stream` for each stream."""

    def __init__(self, batch_size: int = 50, noise: float = 0.1) -> None:
        rng = np.random.default_rng(0)
        n, angle = 2000, rng.uniform(0, np.pi, 2000)
        self.label = rng.integers(0, 2, n)
        points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        points = np.where(self.label[:, None] == 1, np.array([1.0, 0.5]) - points, points)
        self.x = (points + rng.normal(0, noise, points.shape)).astype(np.float32)
        self.batch_size = batch_size

    def train_stream(self) -> Stream:
        # Shuffled anew in each epoch; the order depends on the seed only, so a run can be repeated and resumed.
        return Stream.range(1500, shuffle=True).batch(self.batch_size).map(self.examples, worker="inline")

    def valid_stream(self) -> Stream:
        held_out = Stream.of(range(1500, 2000))
        return held_out.batch(self.batch_size).map(self.examples, worker="inline")

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        # Reading files or asking a server takes time: then make this `async def`, or drop worker="inline" (a thread).
        return {"x": self.x[indices], "label": self.label[indices]}
