"""How far, in the max-norm, parameters may move while all activation patterns stay."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..engine.backend import Array, all_to_numpy, namespace
from ..engine.parameters import Parameters
from ..engine.passes import Step

RADIUS_ACCURACY = 1e-2  # the radius is the largest rho found, up to this relative error


class Chunk(NamedTuple):
    """A pass of some samples at theta, with |theta|, bounds of the rounding errors of each z, and
    for each sample the layer below which nothing counts, see `highest_dead_layer`.
    """

    magnitudes: Parameters
    trace: list[Step]
    rounding: list[Array]
    cut: Array


def highest_dead_layer(trace: list[Step], rounding: list[Array]) -> Array:
    """Return for each sample the highest layer of which every unit is strictly inactive, or 0.

    Near theta the outputs of a sample don't depend on what is below that layer.
    """
    xp = namespace(trace[0].below)
    cut = xp.zeros(trace[0].below.shape[1], dtype=int)
    for step, inexact in zip(trace, rounding, strict=True):
        if step.kinked and step.activation.slope == 0:
            cut = xp.where((step.z < -inexact).all(axis=0), step.layer, cut)
    return cut


def shrink(radius: float, at: Chunk) -> float:
    """Return the largest rho <= radius found to keep the patterns of these samples too."""
    xp = namespace(at.trace[0].below)
    counted = [xp.where(at.cut > s.layer, np.inf, abs(s.z)).min() for s in at.trace if s.kinked]
    high = min([radius, *map(float, all_to_numpy(counted))])  # a bias alone moves z by rho
    if high in (0, np.inf) or keeps_patterns(high, at):
        return high
    low = high / 2
    while not keeps_patterns(low, at):
        high, low = low, low / 2
        if low < 1e-300:
            return 0.0
    while high - low > RADIUS_ACCURACY * high:
        middle = (low + high) / 2
        if keeps_patterns(middle, at):
            low = middle
        else:
            high = middle
    return low


def keeps_patterns(rho: float, at: Chunk) -> bool:
    """Return whether no z can change its sign for any parameters within max-norm distance rho.

    What lies below a layer that stays dead may.
    """
    kept = _kept_patterns(rho, at)
    if namespace(at.trace[0].below) is np:
        return all(kept)  # up to the first layer where one can
    return bool(functools.reduce(operator.and_, kept, True))  # one transfer for all layers


def _kept_patterns(rho: float, at: Chunk) -> Iterator[Array]:
    """Yield for each layer with a pattern whether it can't change.

    Per sample, with a = |o^{l-1}| and |change of o^{l-1}| <= d, z moves by at most
    e = |W| d + rho S (a + d) + rho, S the support of the trainable entries. The rounding errors of
    z are added, and 1e-9 of e for those of this computation itself.
    """
    xp, d, inexact = namespace(at.trace[0].below), None, None
    last = max(at.magnitudes.net.pattern_layers, default=0)
    for step, rounding in zip(at.trace[:last], at.rounding, strict=False):
        W, below, free = step.W, step.below, at.cut > step.layer
        if W.selects and d is not None:
            change = xp.where(d > 0, d * (1 + 1e-9) + inexact, 0)
            yield (free | (W.gaps(below, d == 0, change) > 0)).all()
        e = xp.zeros_like(step.z) if d is None else at.magnitudes.W[step.layer].at(below) @ d
        if W.selects and d is not None:  # where the selection may change
            e = xp.where(free, W @ d, e)
        if step.b is not None:
            reach = abs(below) if d is None else abs(below) + d
            maps = e.reshape(W.maps_out, W.positions_out, -1)
            maps += rho * W.support_sums(reach) + rho
        if step.kinked:
            yield (free | (e * (1 + 1e-9) + rounding < abs(step.z))).all()
            e = xp.where((step.z > 0) | free, e, step.activation.slope * e)
        d, inexact = e, rounding
