"""A source that never ends: readings that arrive one by one. Put your own feed here."""

from collections.abc import AsyncIterator

import anyio
import numpy as np

from asyncloop import Stream


class Readings:
    """Batches: `past` float32 (B, window), `next` float32 (B,): the readings before, and the one that then came."""

    def __init__(self, window: int = 16, batch_size: int = 32, per_second: float = 20_000.0) -> None:
        self.window, self.batch_size, self.per_second = window, batch_size, per_second

    def train_stream(self) -> Stream:
        return Stream.of(self.arriving, resume="continue").batch(self.batch_size)

    def valid_stream(self) -> Stream:
        return Stream.of(self.recorded(20)).batch(self.batch_size)

    async def arriving(self) -> AsyncIterator[dict[str, np.ndarray]]:
        """One example for each reading, when it arrives: here a clock, in your program a socket or a queue."""
        rng, time = np.random.default_rng(), 0
        values = self.signal(np.arange(self.window), rng)
        while True:
            await anyio.sleep(self.batch_size / self.per_second)  # a handful arrives at once
            for _ in range(self.batch_size):
                reading = self.signal(np.array([self.window + time]), rng)
                yield {"past": values, "next": reading[0]}
                values, time = np.append(values[1:], reading), time + 1

    def recorded(self, n_batches: int) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)
        values = self.signal(np.arange(self.window + n_batches * self.batch_size), rng)
        windows = np.lib.stride_tricks.sliding_window_view(values, self.window + 1)
        return [{"past": window[:-1], "next": window[-1]} for window in windows]

    def signal(self, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        clean = np.sin(time / 5) + 0.5 * np.sin(time / 17)
        return (clean + rng.normal(0, 0.05, time.shape)).astype(np.float32)
