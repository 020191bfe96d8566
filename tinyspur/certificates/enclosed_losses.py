"""Enclosures of losses, of their gradients and of their curvature, at enclosed outputs.

Outputs are enclosures (d_y, N), targets exact numbers (d_y, N). The loss of targets with any sum
s is that of -sum_k y_k log p_k, with the gradient s p - y: rounded targets need not sum to 1.
"""

from __future__ import annotations

import numpy as np

from ..engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, Loss, SquaredLoss
from .enclosed_functions import exp, log
from .enclosures import Enclosure, between, exact

KNOWN = (SquaredLoss, CrossEntropy, AbsoluteLoss, HuberLoss)


def enclosed_values(loss: Loss, o: Enclosure, y: np.ndarray) -> Enclosure:
    """Return an enclosure of what each output adds to the loss, (d_y, N)."""
    if isinstance(loss, CrossEntropy):
        return log(_odds(o)) * y
    off = o - y
    if isinstance(loss, SquaredLoss):
        return off**2 * 0.5
    if isinstance(loss, AbsoluteLoss):
        return abs(off)
    inside = enclosed_gradient(loss, o, y)  # h(r) = c (r - c / 2), c = r cut to [-delta, delta]
    return inside * (off - inside * 0.5)


def enclosed_gradient(loss: Loss, o: Enclosure, y: np.ndarray) -> Enclosure:
    """Return an enclosure of the gradient in the outputs, (d_y, N)."""
    if isinstance(loss, CrossEntropy):
        return _probabilities(o) * exact(y).sum(axis=0) - y
    off = o - y
    if isinstance(loss, SquaredLoss):
        return off
    if isinstance(loss, AbsoluteLoss):
        return between(np.sign(off.low), np.sign(off.high))
    return between(
        np.clip(off.low, -loss.delta, loss.delta), np.clip(off.high, -loss.delta, loss.delta)
    )


def curved(loss: Loss, o: Enclosure, y: np.ndarray, moved: Enclosure) -> Enclosure | None:
    """Return an enclosure of the loss's Hessians times derivatives (d_y, N, q) of the outputs.

    None where they are 0, as those of the absolute loss are.
    """
    if isinstance(loss, AbsoluteLoss):
        return None
    if isinstance(loss, SquaredLoss):
        return moved
    if isinstance(loss, HuberLoss):
        size = abs(o - y)
        return moved * _column(
            between(1.0 * (size.high < loss.delta), 1.0 * (size.low <= loss.delta))
        )
    p = _probabilities(o)
    weighted = moved * _column(p * exact(y).sum(axis=0))
    return weighted - _column(p) * weighted.sum(axis=0)


def _odds(o: Enclosure) -> Enclosure:
    """Return 1 / p_k = sum_j exp(o_j - o_k)."""
    return exp(o[None] - Enclosure(o.middle[:, None], o.radius[:, None])).sum(axis=1)


def _probabilities(o: Enclosure) -> Enclosure:
    return 1.0 / _odds(o)


def _column(a: Enclosure) -> Enclosure:
    return Enclosure(a.middle[..., None], a.radius[..., None])
