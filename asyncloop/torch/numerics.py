"""Numerics: in which precision a step computes, and what is watched while it does. Set around each step, then put back."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch

__all__ = ["NOTHING", "Numerics", "Precision", "is_out_of_memory"]

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

NOTHING: AbstractContextManager[Any] = nullcontext()
"""Around what needs nothing around it; one for all, for to make one costs as much as to enter it."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left, or the host, whose allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


class Numerics:
    """The settings of one model. PyTorch keeps some of them for the whole process, so they hold only while a step runs.

    fp32: as the module is. tf32: matrix products of float32 round to 10 bits on GPUs that can. bf16, fp16: autocast, the
    weights stay float32. `deterministic`: an operation that cannot be repeated bit by bit raises and is named.
    `detect_anomaly`: the forward operation behind a NaN in the backward pass is named; slow.
    """

    def __init__(
        self, precision: Precision, device: torch.device, *, deterministic: bool, detect_anomaly: bool
    ) -> None:
        self._matmul = "high" if precision == "tf32" else None
        self._deterministic, self._detect_anomaly = deterministic, detect_anomaly
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.autocast: AbstractContextManager[Any] = NOTHING if dtype is None else torch.autocast(device.type, dtype)
        """Around the forward pass and the losses, not around the backward pass."""
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        """Scales the loss, so that small gradients do not vanish in fp16."""
        self.are_plain = not (self._matmul or deterministic or detect_anomaly)
        """Whether `settings` sets nothing."""
        if deterministic and device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used

    def settings(self) -> AbstractContextManager[Any]:
        """Around a whole step."""
        return NOTHING if self.are_plain else self._set()

    @contextmanager
    def _set(self) -> Generator[None]:
        with ExitStack() as stack:
            if self._matmul is not None:
                stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                torch.set_float32_matmul_precision(self._matmul)
            if self._deterministic:
                strict, warns = (
                    torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled(),
                )
                stack.callback(torch.use_deterministic_algorithms, strict, warn_only=warns)
                torch.use_deterministic_algorithms(True)
            if self._detect_anomaly:
                stack.enter_context(torch.autograd.set_detect_anomaly(True))
            yield
