"""Enclosures of the losses of this package: value, gradient and curvature in enclosed outputs.

Outputs are columns (d_y, N), targets the numbers that are stored. Where the formula of a loss takes
enclosures it is evaluated as it stands; the cross-entropy has its own, for targets whose sum is not
exactly 1.

Of a loss of a user's only estimates are known, of first order in the errors of the outputs: they
assume that its derivatives are right, and that its value and its derivatives are as exact as sums
of about 16 terms of the size of the result.
"""

from __future__ import annotations

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.floats import SMALLEST, gamma
from ..engine.losses import (
    KNOWN,
    AbsoluteLoss,
    CrossEntropy,
    FixedSumLoss,
    HuberLoss,
    Loss,
    gradient_at,
    values_at,
)
from .enclosed_functions import exp, log
from .enclosures import QUIET, Enclosure, between, exact, sound

TERMS = 16  # values and derivatives of a user's loss are taken to be as exact as such a sum


def loss_value(loss: Loss, o: Enclosure, y: Array) -> Enclosure:
    """Return an enclosure of the loss of each sample, (N,).

    It is that at the middle, and no further from it than |g| times the radius, g over all of o.
    """
    at, slopes = exact(o.middle), loss_gradient(loss, o, y)
    off = (exact(slopes.magnitude) * exact(o.radius)).sum(axis=0).magnitude
    if type(loss) not in KNOWN:
        values = values_at(loss, o.middle, y)
        return sound(values, off + gamma(len(y) + TERMS) * abs(values) + len(y) * SMALLEST)
    if not isinstance(loss, CrossEntropy):
        return loss.value(at, y).wider(off)
    shifted = at - at.max(axis=0)
    sums = _total(y) * log(exp(shifted).sum(axis=0)) - (shifted * y).sum(axis=0)
    return sums.wider(off)


def loss_gradient(loss: Loss, o: Enclosure, y: Array) -> Enclosure:
    """Return an enclosure of the gradient in o, (d_y, N).

    Where the absolute loss may be at its kink it is anything from -1 to 1.
    """
    if type(loss) not in KNOWN:
        g = gradient_at(loss, o.middle, y)
        off = _bent(loss, o.middle, y, o.radius) + gamma(TERMS) * abs(g) + SMALLEST * (g != 0)
        return sound(g, off)
    if isinstance(loss, CrossEntropy):
        return softmax(o) * _total(y) - y
    return loss.gradient(o, y)


def loss_curvature(loss: Loss, o: Enclosure, y: Array, d: Enclosure | Array) -> Enclosure:
    """Return an enclosure of the Hessian in o times d, (d_y, N).

    The absolute loss has that of its pieces, 0. Where the Huber loss may be at a corner it is
    anything between that of both sides.
    """
    d = d if isinstance(d, Enclosure) else exact(d)
    if type(loss) not in KNOWN:
        return _users_curvature(loss, o, y, d)
    if isinstance(loss, AbsoluteLoss):
        return exact(0 * o.middle)
    if isinstance(loss, HuberLoss):
        xp, size = namespace(o.middle), abs(o - y)
        least, most = size.high < loss.delta, size.low <= loss.delta
        return d * between(xp.where(least, 1.0, 0.0), xp.where(most, 1.0, 0.0))
    if isinstance(loss, CrossEntropy):
        p = softmax(o)
        weighted = p * d
        return (weighted - p * weighted.sum(axis=0)) * _total(y)
    if isinstance(loss, FixedSumLoss):
        return loss.curvature(o, y, d)
    return d


def _users_curvature(loss: Loss, o: Enclosure, y: Array, d: Enclosure) -> Enclosure:
    """Return an estimate for curvatures that change by no more than that of the cross-entropy."""
    share = 2 * o.radius.max(axis=0) + gamma(4 * len(y) + 2 * TERMS)
    off = _bent(loss, o.middle, y, d.radius + share * abs(d.middle))
    return sound(loss.curvature(o.middle, y, d.middle), off)


def _bent(loss: Loss, o: Array, y: Array, size: Array) -> Array:
    """Return |H| `size` with the Hessian H of a user's loss in o, (d_y, N)."""
    xp, total = namespace(o), 0.0
    for k in range(len(o)):
        one = xp.zeros_like(o)
        one[k] = size[k]
        total = total + abs(loss.curvature(o, y, one))
    return total


@np.errstate(**QUIET)
def softmax(o: Enclosure) -> Enclosure:
    """Return an enclosure of exp(o_k) / sum_j exp(o_j).

    If outputs change by at most r, log p_k changes by at most r_k + max_j r_j.
    """
    xp, at = namespace(o.middle), exact(o.middle)
    powers = exp(at - at.max(axis=0))
    p = powers / powers.sum(axis=0)
    if xp is np and not o.radius.any():
        return p
    moved = exact(o.radius) + exact(o.radius.max(axis=0))
    low, high = (p * exp(-moved)).low, (p * exp(moved)).high
    return between(xp.maximum(low, 0.0), xp.minimum(high, 1.0))


def _total(y: Array) -> Enclosure:
    """Return an enclosure of the sums of the targets, (N,): 1, but for their rounding."""
    total = exact(y).sum(axis=0)
    alone = (y != 0).sum(axis=0) <= 1  # nothing rounds
    return Enclosure(total.middle, namespace(y).where(alone, 0.0, total.radius))
