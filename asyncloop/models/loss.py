"""Loss: the softmax cross-entropy and its gradient."""

from __future__ import annotations

import numpy as np

from asyncloop.models.parameters import Array

__all__ = ["cross_entropy"]


def cross_entropy(logits_BC: Array, y_B: Array) -> tuple[float, Array]:
    """The mean over the batch of −log softmax(logits)[y], in nats, and its gradient by the logits (B, C).

    `logits_BC` is overwritten: the gradient takes its place. The maximum comes off first: exp is at most 1.
    """
    rows = np.arange(len(y_B))
    logits_BC -= logits_BC.max(axis=1, keepdims=True)
    of_label_B = logits_BC[rows, y_B]
    np.exp(logits_BC, out=logits_BC)
    total_B1 = logits_BC.sum(axis=1, keepdims=True)
    loss = float((np.log(total_B1[:, 0]) - of_label_B).mean())
    logits_BC /= total_B1
    logits_BC[rows, y_B] -= 1
    logits_BC /= len(y_B)
    return loss, logits_BC
