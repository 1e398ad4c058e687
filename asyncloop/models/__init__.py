"""What a config may name as its model: small ones in plain numpy, and those that put saved runs to use.

`MLP` and `SoftmaxRegression` are to begin with and to measure against; `Ensemble` and `Sequence` are inference over
the directories of saved runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asyncloop.models.mlp import MLP
from asyncloop.models.softmax import SoftmaxRegression

if TYPE_CHECKING:
    from asyncloop.saved_models import Ensemble, Sequence

__all__ = ["MLP", "Ensemble", "Sequence", "SoftmaxRegression"]


def __getattr__(name: str) -> Any:
    """Those over saved runs load runs, for which they need what stands above this package: imported when first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("asyncloop.saved_models"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__]
