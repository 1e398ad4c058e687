"""TorchWorld: the processes that torchrun or srun has started, as PyTorch's process groups connect them."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from asyncloop.errors import ConfigError, PeerError
from asyncloop.world import launched

__all__ = ["TorchWorld", "join"]

logger = logging.getLogger("asyncloop")

_TIMEOUT = timedelta(minutes=10)
"""After which a collective call names a process that does not answer; a dead one is noticed at once."""

_FAILED = "asyncloop/failed"
_ROOM = 1024
"""Bytes that a message may have to be gathered in one round; others need two."""

_LOOK_S = 1.0
_GRACE_S = 10.0


class TorchWorld:
    """Two channels over gloo beside the groups that modules use, so that what processes tell each other never waits for a GPU.

    Messages are JSON; nothing is pickled.
    """

    def __init__(self, rank: int, size: int, local_rank: int, store: dist.Store | None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self._channel: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._beside: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def gather(self, value: Any) -> list[Any]:
        return self._gathered(self._channel, value)

    def gather_beside(self, value: Any) -> list[Any]:
        return self._gathered(self._beside, value)

    def fail(self, reason: str) -> None:
        if self._store is not None:
            with suppress(Exception):  # whoever kept it has gone first
                self._store.set(_FAILED, f"process {self.rank} failed: {reason}")

    def is_of_others(self, error: RuntimeError) -> bool:
        """Whether a step failed because another process did not answer."""
        return isinstance(error, dist.DistError) or "/gloo/" in str(error)

    def gone(self, error: BaseException) -> PeerError:
        """What to raise for a call that another process has not answered: with its reason, if it has left one."""
        reason = self.reason()
        text = str(error).partition("\n")[0]
        return PeerError(reason or f"a process that trains the same model has gone without a word ({text[:200]})")

    def reason(self) -> str | None:
        """Why some process has ended, if one has said so."""
        try:
            if self._store is None or not self._store.check([_FAILED]):
                return None
            return self._store.get(_FAILED).decode(errors="replace")
        except Exception:
            return None

    def watch(self) -> None:
        """On GPUs a call that waits for a dead process does not return by itself: it is broken off."""
        threading.Thread(target=self._watch, name="asyncloop world", daemon=True).start()

    def _watch(self) -> None:
        woken = threading.Event()
        while not woken.wait(_LOOK_S):
            if self.reason() is not None:
                woken.wait(_GRACE_S)  # who ends by himself until then says more
                with suppress(Exception):
                    dist.distributed_c10d._abort_process_group()  # pyright: ignore[reportPrivateUsage]
                return

    def _gathered(self, group: Any, value: Any) -> list[Any]:
        try:
            return self._all_gathered(group, json.dumps(value).encode())
        except RuntimeError as error:  # gloo's word for a connection that was closed
            raise self.gone(error) from None

    def _all_gathered(self, group: Any, own: bytes) -> list[Any]:
        header = len(own).to_bytes(8, "little")
        first = _exchanged(group, header + own[: _ROOM - 8], _ROOM, self.size)
        lengths = [int.from_bytes(each[:8], "little") for each in first]
        if max(lengths) <= _ROOM - 8:
            contents = [each[8 : 8 + length] for each, length in zip(first, lengths, strict=True)]
        else:
            whole = _exchanged(group, own, max(lengths), self.size)
            contents = [each[:length] for each, length in zip(whole, lengths, strict=True)]
        return [json.loads(each) for each in contents]


def _exchanged(group: Any, own: bytes, n: int, size: int) -> list[bytes]:
    """Everybody's bytes, padded to `n`."""
    mine = torch.frombuffer(bytearray(own.ljust(n, b"\0")), dtype=torch.uint8)
    theirs = [torch.empty(n, dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(theirs, mine, group=group)
    return [bytes(each.numpy()) for each in theirs]


_joined: TorchWorld | None = None


def join() -> TorchWorld | None:
    """Connect with the processes that the launcher has started, once; None for a process alone. Blocks until all are there.

    The calling thread gets the GPU that is this process's own.

    ConfigError if the launcher left something out.
    """
    global _joined
    launch = launched()
    if launch.size == 1:
        return None
    rank, size, local_rank = launch.rank, launch.size, launch.local_rank
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # of this thread, for CUDA keeps one for each
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    if _joined is not None:
        return _joined
    store: dist.Store | None = None
    if not dist.is_initialized():
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank), **_address())
        kept, _, _ = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))
        store = dist.PrefixStore(
            f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", kept
        )  # torchrun keeps it
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("groups", store), rank=rank, world_size=size, timeout=_TIMEOUT
        )
        atexit.register(_leave)
    _joined = TorchWorld(rank, size, local_rank, store)
    if on_gpu:
        _joined.watch()
    logger.info("process %d of %d has joined", rank, size)
    return _joined


def _leave() -> None:
    if dist.is_initialized() and (_joined is None or _joined.reason() is None):
        with suppress(Exception):
            dist.destroy_process_group()


def _address() -> dict[str, str]:
    """Where the first process listens; srun says only on which machines they are."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return {}
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), os.environ.get("SLURM_JOB_ID", "0")
    if not nodes:
        raise ConfigError("several processes, but neither MASTER_ADDR and MASTER_PORT nor SLURM_STEP_NODELIST are set")
    port = 20000 + int(re.sub(r"\D", "", job) or 0) % 20000
    return {"MASTER_ADDR": os.environ.get("MASTER_ADDR", first_of(nodes)), "MASTER_PORT": str(port)}


def first_of(nodes: str) -> str:
    """`node[03-05,9],other` → node03."""
    name, bracket, rest = nodes.partition("[")
    return name + re.split(r"[-,\]]", rest)[0] if bracket and "," not in name else nodes.split(",")[0]
