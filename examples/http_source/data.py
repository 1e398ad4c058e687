"""A dataset whose batches come over HTTP, sixteen requests at a time."""

from __future__ import annotations

import io
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import numpy as np
from server import N_EXAMPLES, serving

from asyncloop import Batch, Stream


class Remote:
    """Batches `x` float32 (B, 8) and `label` int64 (B,) from a server that takes `delay_ms` for each answer.

    The dataset is an async context manager: the engine enters it for the run, so client and server live as long.
    """

    def __init__(self, *, batch_size: int = 64, delay_ms: float = 10.0, concurrency: int = 16) -> None:
        self._batch_size, self._delay_s, self._concurrency = batch_size, delay_ms / 1000, concurrency
        self._stack = AsyncExitStack()
        self._client: Any = None

    @property
    def num_batches(self) -> dict[str, int]:
        n = N_EXAMPLES // self._batch_size
        return {"train": n - n // 8, "valid": n // 8}

    async def __aenter__(self) -> Remote:
        import httpx2

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells of each request
        self._stack = await AsyncExitStack().__aenter__()
        url = await self._stack.enter_async_context(serving(self._delay_s))
        self._client = await self._stack.enter_async_context(httpx2.AsyncClient(base_url=url, trust_env=False))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def fetch(self, index: int) -> Batch:
        response = await self._client.get(f"/batch/{index}?n={self._batch_size}")
        response.raise_for_status()
        with np.load(io.BytesIO(response.content)) as arrays:
            return {"x": arrays["x"], "label": arrays["label"]}

    def train_stream(self) -> Stream:
        return Stream.range(self.num_batches["train"], shuffle=True).map(self.fetch, concurrency=self._concurrency)

    def valid_stream(self) -> Stream:
        first = self.num_batches["train"]
        return (
            Stream.range(self.num_batches["valid"])
            .map(lambda index: first + index, worker="inline")
            .map(self.fetch, concurrency=self._concurrency)
        )
