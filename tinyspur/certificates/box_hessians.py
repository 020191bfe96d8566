"""The Hessian of L over a box of parameters, and the gradients of v_K; see `boxes`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..engine.floats import EPSILON, gamma
from ..engine.held import Held
from ..engine.losses import AbsoluteLoss, SquaredLoss
from ..engine.sweeps import patches_of
from ..layers import WeightMatrix
from .boxes import Box, BoxStep, backward, column, forward, members_of, times, top
from .enclosed_functions import activated
from .enclosed_losses import loss_curvature
from .enclosures import Enclosure

SWEPT = 2**20  # numbers in the derivatives of a layer that are held at once


class Second(NamedTuple):
    """The Hessian of L (q, q) and the gradients of v_K (kinks, q) in chosen coordinates."""

    hessian: Enclosure
    jacobian: Enclosure


def second_order(held: Held, box: Box, coordinates: np.ndarray) -> Second:
    """Enclose the Hessian of L and the gradients of v_K in chosen coordinates, ascending."""
    q, kinks = len(coordinates), len(held.kinks)
    y, total = held.data.y.T.astype(np.float64), _Sum(q)
    rows_of_Z = Enclosure(np.zeros((kinks, q)), np.zeros((kinks, q)))
    widest = max(W.shape[0] for W in box.theta.W.values()) * max(q, 1)
    size = max(1, SWEPT // widest)
    x = held.data.x.reshape(len(held.data), -1)
    for start in range(0, len(x), size):
        rows = slice(start, min(len(x), start + size))
        columns = np.ascontiguousarray(x[rows].T, dtype=np.float64)
        members = members_of(held, rows)
        trace, _ = forward(held, box, columns, members)
        delta, _ = top(held, trace[-1].o, y[:, rows], members)
        deltas, _, above = backward(trace, members, delta, box.multipliers, len(x), above=True)
        moved = None
        for (step, below, moved), dz, do in zip(
            sweep(held, trace, coordinates), deltas, above, strict=True
        ):
            _take(rows_of_Z, step.layer, members, below, moved)
            if step.trained and below is not None:
                _add_products(total, held, step, coordinates, dz, below)
            if step.activation is not None and not step.activation.piecewise_linear:
                bends = do * activated(step.activation, step.z, 2)
                total.add(moved, column(bends) * moved)
        _take(rows_of_Z, held.net.depth + 1, members, None, moved)
        if moved is not None:
            _add_curvature(total, held, trace[-1].o, y[:, rows], moved)
    return Second(total.found(), rows_of_Z)


def sweep(
    held: Held, trace: list[BoxStep], coordinates: np.ndarray
) -> Iterator[tuple[BoxStep, Enclosure | None, Enclosure | None]]:
    """Yield each step with the derivatives of o^{l-1} and z^l in the coordinates up to there.

    They are (n, N, q), None below the first layer that has some.
    """
    below = None
    for step in trace:
        n, N = step.z.shape
        moved, start = None, 0 if below is None else below.shape[2]
        if below is not None:
            W = step.W.repeated(start)
            flat = Enclosure(
                below.middle.reshape(-1, N * start), below.radius.reshape(-1, N * start)
            )
            moved = times(W, flat, step.R).reshape(n, N, start)
        if step.trained:
            moved = _with_own(held, step, coordinates, moved, start)
        if moved is not None and not moved.shape[2]:
            moved = None
        yield step, below, moved
        if moved is not None and step.slopes is not None:
            slopes = step.slopes
            moved = (
                moved * slopes[:, :, None]
                if isinstance(slopes, np.ndarray)
                else moved * column(slopes)
            )
        below = moved


def own_coordinates(
    held: Held, layer: int, coordinates: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each map of a layer which of its (weights, bias) are among the coordinates.

    As numbers of the weights, the bias last, and as positions among the coordinates.
    """
    slot, found = held.net.slots[layer], []
    for t in range(slot.shape[0]):
        numbers = slot.of_map(t)
        places = np.searchsorted(coordinates, numbers)
        inside = places < len(coordinates)
        inside[inside] = coordinates[places[inside]] == numbers[inside]
        found.append((np.flatnonzero(inside), places[inside]))
    return found


def reads(W: WeightMatrix, o: np.ndarray) -> np.ndarray:
    """Return what the weights of a map multiply, and a 1, by groups: (groups, K + 1, P, N)."""
    patches = patches_of(W, o)
    ones = np.ones((len(patches), 1, *patches.shape[2:]))
    return np.concatenate([patches, ones], axis=1)


def _with_own(
    held: Held, step: BoxStep, coordinates: np.ndarray, moved: Enclosure | None, start: int
) -> Enclosure:
    """Return the derivatives with those in the layer's own weights and biases beside them."""
    (n, N), maps = step.z.shape, step.W.maps_out
    own = own_coordinates(held, step.layer, coordinates)
    stop = start + sum(len(places) for _, places in own)
    middle, radius = np.zeros((n, N, stop)), np.zeros((n, N, stop))
    if moved is not None:
        middle[:, :, :start], radius[:, :, :start] = moved.middle, moved.radius
    read = Enclosure(reads(step.W, step.below.middle), reads(step.W, step.below.radius))
    read.radius[:, -1] = 0
    for t, (weights, places) in enumerate(own):
        group = t * step.W.groups // maps
        for into, values in ((middle, read.middle), (radius, read.radius)):
            found = values[group, weights].transpose(1, 2, 0)
            into.reshape(maps, n // maps, N, stop)[t][:, :, places] = found
    return Enclosure(middle, radius)


def _add_products(
    total: _Sum, held: Held, step: BoxStep, coordinates: np.ndarray, dz: Enclosure, below: Enclosure
) -> None:
    """Add the terms of the Hessian that are linear in this layer's weights and in those below."""
    (n, N), q, T = step.z.shape, below.shape[2], step.W.maps_out
    own = own_coordinates(held, step.layer, coordinates)
    wanted = max((len(places) for _, places in own), default=0)
    if not wanted:
        return
    K = math.prod(held.net.slots[step.layer].shape[1:])
    share = gamma(n // T * N)
    d, r = dz.middle.reshape(T, -1), dz.radius.reshape(T, -1)
    for c in range(step.W.maps_in):
        sides = []
        for part in (below.middle, below.radius):
            maps = part.reshape(step.W.maps_in, step.W.positions_in, N * q)
            sides.append(step.W.gathered(maps[c]).reshape(-1, n // T * N, q))
        m, e = sides
        readers, first = step.W.readers(c), c * len(m) % K
        dz, rz = d[readers], r[readers]
        middle = dz @ m  # (K', readers, q)
        off = abs(dz) @ (e + share * abs(m)) + rz @ (abs(m) + e)
        for t, (weights, places) in enumerate(own[readers]):
            inside = (weights >= first) & (weights < first + len(m)) & (weights < K)
            if inside.any():
                k, rows = weights[inside] - first, places[inside]
                total.add_block(rows, q, middle[k, t], off[k, t] * (1 + 4 * share))


def _add_curvature(total: _Sum, held: Held, o: Enclosure, y: np.ndarray, moved: Enclosure) -> None:
    """Add what the curvature of the loss contributes."""
    if isinstance(held.loss, SquaredLoss):
        total.add_square(moved, 1 / len(held.data))
        return
    if not isinstance(held.loss, AbsoluteLoss):
        bent = loss_curvature(held.loss, column(o), y[:, :, None], moved)
        total.add(moved, bent / len(held.data))


class _Sum:
    """A sum of enclosed symmetric matrices (q, q), and its rounding errors."""

    def __init__(self, q: int):
        self.middle, self.radius = np.zeros((q, q)), np.zeros((q, q))

    def add(self, A: Enclosure, B: Enclosure) -> None:
        """Add sum over units and samples of A^T B to the first rows and columns."""
        q = A.shape[2]
        A, B = A.reshape(-1, q), B.reshape(-1, q)
        share = gamma(len(A.middle))
        off = abs(A.middle).T @ (B.radius + share * abs(B.middle))
        off += A.radius.T @ (abs(B.middle) + B.radius)
        self._put(slice(q), slice(q), A.middle.T @ B.middle, off * (1 + 4 * share))

    def add_square(self, A: Enclosure, factor: float) -> None:
        """Add `factor` times the sum over units and samples of A^T A."""
        q = A.shape[2]
        A = A.reshape(-1, q)
        share, size = gamma(len(A.middle) + 2), abs(A.middle)
        lengths = np.sqrt((size**2).sum(axis=0))
        off = share * lengths[:, None] * lengths  # by Cauchy's inequality
        if A.radius.any():
            half = (size + A.radius / 2).T @ A.radius
            off = off + half + half.T
        middle = A.middle.T @ A.middle
        self._put(
            slice(q),
            slice(q),
            factor * middle,
            factor * off * (1 + 8 * share) + 2 * EPSILON * abs(factor * middle),
        )

    def add_block(self, rows: np.ndarray, q: int, middle: np.ndarray, off: np.ndarray) -> None:
        """Add a block and its transpose."""
        self._put(rows, slice(q), middle, off)
        self._put(slice(q), rows, middle.T, off.T)

    def _put(self, rows, columns, middle: np.ndarray, off: np.ndarray) -> None:
        self.middle[rows, columns] += middle
        self.radius[rows, columns] += off + 2 * EPSILON * (abs(self.middle[rows, columns]) + off)

    def found(self) -> Enclosure:
        return Enclosure(self.middle, self.radius * (1 + 1e-9)).wider(1e-300)


def _take(rows, layer, members, below, moved) -> None:
    """Write the gradients of v_k at one layer to `rows`; `moved` are those of z^l."""
    some = members.get(layer)
    if some is None or moved is None:
        return
    columns, which, width = some.columns[some.first], some.which[some.first], moved.shape[2]
    if some.pairs is None:
        found = moved[some.units[some.first], columns]
    elif below is not None:
        a, b = some.pairs[some.first].T
        found, width = below[a, columns] - below[b, columns], below.shape[2]
    else:
        return
    rows.middle[which, :width], rows.radius[which, :width] = found.middle, found.radius
