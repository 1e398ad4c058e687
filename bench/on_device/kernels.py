# pyright: basic, reportMissingImports=false
"""Kernels: a module whose step keeps a device busy for a known while, whatever it is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["kernels_lasting"]


def kernels_lasting(seconds: float, side: int, device: Any) -> Callable[[], Any]:
    """Makes modules whose forward pass takes about so long on this device: as many products of square matrices as it takes.

    `module(x)` looks at x once, for the loss that its one weight is trained by.
    """
    n_products = max(round(seconds / _product_s(side, device)), 1)
    return lambda: _kernels(n_products, side)


def _kernels(n_products: int, side: int) -> Any:
    import torch
    from torch import nn

    class Kernels(nn.Module):
        matrix: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.register_buffer("matrix", torch.full((side, side), 1 / side, dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                product = self.matrix
                for _ in range(n_products):
                    product = product @ self.matrix
            return {"loss": (self.weight - x.mean() - product[0, 0].float()).square()}

    return Kernels()


def _product_s(side: int, device: Any, n: int = 50) -> float:
    """Seconds for one product, the clock running until the device is done with `n` of them."""
    import torch

    matrix = torch.full((side, side), 1 / side, dtype=torch.bfloat16, device=device)
    took = 0.0
    for _ in range(2):  # the first time it is not warm
        began = time.perf_counter()
        for _ in range(n):
            product = matrix @ matrix
        float(product[0, 0])
        took = (time.perf_counter() - began) / n
    return took
