# pyright: basic, reportMissingImports=false
"""Card: which device is used, and what to write down about it."""

from __future__ import annotations

import gc
import shutil
import subprocess
from typing import Any

__all__ = ["about_device", "chosen", "give_back"]


def chosen(name: str) -> Any:
    """The device of this name, None if PyTorch does not find it."""
    import torch

    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            return None
        return torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(1)  # small operators on many threads are slower, and only to be run
    return torch.device(name)


def about_device(device: Any) -> dict[str, Any]:
    """Name and memory of a GPU, versions of what drives it; nothing that tells one card from another of its kind."""
    import torch

    if device.type != "cuda":
        return {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def give_back(device: Any) -> None:
    """Memory that nobody uses goes back to the device."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return told.splitlines()[0].strip() if told.strip() else None
