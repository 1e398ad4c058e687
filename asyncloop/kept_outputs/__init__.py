"""Kept outputs: what a model gave in an evaluation, on disk with its batches, so that hooks run over it without the model.

    <evaluation>/outputs/<stream>/   inputs-00000.json   inputs-00000.safetensors    what went in, a part of some batches
                                     outputs-00000.json  outputs-00000.safetensors   what came out, likewise
                                     metrics.json  metrics.safetensors  index.json

Each file is synced and the index comes last: a stream's outputs are complete or invisible. No pickle. In a replay
everything is on the host: device arrays come back as numpy arrays, tuples as lists.
"""

from asyncloop.kept_outputs.keeping import KeepOutputs, Overheard
from asyncloop.kept_outputs.reading import KeptStream, find_kept
from asyncloop.kept_outputs.replay import REPLAYED, KeptDataset, KeptModel, check_variables

__all__ = [
    "REPLAYED",
    "KeepOutputs",
    "KeptDataset",
    "KeptModel",
    "KeptStream",
    "Overheard",
    "check_variables",
    "find_kept",
]
