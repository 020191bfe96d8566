"""How far, in the max-norm, parameters may move while all activation patterns stay."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .backend import Array, all_to_numpy, namespace
from .parameters import Parameters

RADIUS_ACCURACY = 1e-2  # the radius is the largest rho found, up to this relative error


class Chunk(NamedTuple):
    """A chunk of samples at theta: |theta|, columns (n_0, N), (z, o) and errors of each layer."""

    theta: Parameters
    magnitudes: Parameters
    columns: Array
    trace: list
    rounding: list


def shrink(radius: float, at: Chunk) -> float:
    """Return the largest rho <= radius found to keep the patterns of these samples too."""
    margins = all_to_numpy(abs(at.trace[n - 1][0]).min() for n in at.theta.net.active_layers)
    high = min([radius, *map(float, margins)])  # a bias alone moves z by rho
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
    """Return whether no z can change its sign for any parameters within max-norm distance rho."""
    kept = _kept_patterns(rho, at)
    if namespace(at.columns) is np:
        return all(kept)  # up to the first layer where one can
    return bool(functools.reduce(operator.and_, kept, True))  # one transfer for all layers


def _kept_patterns(rho: float, at: Chunk) -> Iterator[Array]:
    """Yield for each layer with a pattern whether it can't change.

    Per sample, with a = |o^{l-1}| and |change of o^{l-1}| <= d, z moves by at most
    e = |W| d + rho S (a + d) + rho, S the support of the trainable entries. The rounding
    errors of z are added, and a relative 1e-9 of e for those of this very computation.
    """
    theta, magnitudes, columns, trace, rounding = at
    net, slope, xp = theta.net, theta.net.activation.slope, namespace(columns)
    below, d = columns, None
    for layer in range(1, max(net.pattern_layers, default=0) + 1):
        z, o = trace[layer - 1]
        W = theta.W[layer]
        if layer in net.max_layers:
            change = xp.where(d > 0, d * (1 + 1e-9) + rounding[layer - 2], 0)
            yield (W.gaps(below, d == 0, change) > 0).all()
        e = xp.zeros_like(z) if d is None else magnitudes.W[layer].at(below) @ d
        if layer in theta.b:
            reach = abs(below) if d is None else abs(below) + d
            by_map = e.reshape(W.maps_out, W.positions_out, -1)
            by_map += rho * W.support_sums(reach) + rho
        if net.is_active(layer):
            yield (e * (1 + 1e-9) + rounding[layer - 1] < abs(z)).all()
            e = xp.where(z > 0, e, slope * e)
        below, d = o, e
