"""What of a process decides the bits of a run that owns it (`own_rng`): the global random generators of Python, numpy and
torch, and how many threads torch computes with."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

__all__ = ["capture", "n_threads", "restore", "seed_globals", "set_threads"]

logger = logging.getLogger("asyncloop")


def seed_globals(seed: int, *more: int) -> None:
    """Seed Python's and numpy's global generators, and torch's if torch is loaded. `more` numbers: other ones for each."""
    if any(more):
        seed = int(np.random.SeedSequence([seed, *more]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def capture(model: Any = None) -> dict[str, Any]:
    """Their states as JSON values; of GPUs that of the `model`'s `device`, if it has one."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state())
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().tolist()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state(_cuda_of(model)).tolist()
    return states


def restore(states: Mapping[str, Any], model: Any = None) -> None:
    """Put them back. Torch's only if torch is loaded."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in states:
        torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), _cuda_of(model))


def n_threads() -> int | None:
    """How many threads torch computes with where this is called; None without torch. Sums differ in their last bits by it."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def set_threads(n: int) -> None:
    """Compute with as many as there were. Thread: the model's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != n:
        logger.info("torch computes with %d threads, as before, not with %d", n, torch.get_num_threads())
        torch.set_num_threads(n)


def _cuda_of(model: Any) -> Any:
    """The model's GPU; else the one of the calling thread, for CUDA keeps one for each."""
    device = getattr(model, "device", None)
    return device if getattr(device, "type", "") == "cuda" else "cuda"
