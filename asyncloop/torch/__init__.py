"""PyTorch: any `torch.nn.Module` as a model, on the CPU, on a GPU, or in many processes. Needs the extra `torch`."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("PyTorch is not installed: pip install 'asyncloop[torch]'", name="torch") from None

from asyncloop.torch.averaging import EMA
from asyncloop.torch.losses import Loss
from asyncloop.torch.model import TorchModel
from asyncloop.torch.schedules import Schedule
from asyncloop.torch.updates import Clip

__all__ = ["EMA", "Clip", "Loss", "Schedule", "TorchModel"]
