"""A small HTTP server on loopback that hands out examples, each after a delay, as a data service would."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import numpy as np
from anyio.abc import SocketStream

N_EXAMPLES = 4096


def examples(index: int, n: int) -> bytes:
    """Batch `index` as the bytes of an .npz: `x` float32 (n, 8), `label` int64 (n,), whether x's sum is positive."""
    rng = np.random.default_rng(index)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    file = io.BytesIO()
    np.savez(file, x=x, label=(x.sum(axis=1) > 0).astype(np.int64))
    return file.getvalue()


async def answer(connection: SocketStream, delay_s: float) -> None:
    """Answer `GET /batch/<index>?n=<n>` requests on one connection until it is closed."""
    async with connection:
        request = b""
        while True:
            try:
                while b"\r\n\r\n" not in request:
                    request += await connection.receive(4096)
            except anyio.EndOfStream:
                return
            head, _, request = request.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            index, _, n = path.removeprefix("/batch/").partition("?n=")
            await anyio.sleep(delay_s)
            body = examples(int(index), int(n))
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@asynccontextmanager
async def serving(delay_s: float = 0.01) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; gives the base URL."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:

            async def handle(connection: SocketStream) -> None:
                with anyio.CancelScope():
                    await answer(connection, delay_s)

            tasks.start_soon(listener.serve, handle)
            yield f"http://127.0.0.1:{port}"
            tasks.cancel_scope.cancel()
