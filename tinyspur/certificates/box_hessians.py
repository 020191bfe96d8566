"""The Hessian of L over a box of parameters, and the gradients of v_K; see `boxes`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..engine.floats import EPSILON, gamma, slack
from ..engine.held import Held, HeldKink
from ..engine.held_steps import Members
from ..engine.losses import AbsoluteLoss, SquaredLoss
from ..engine.sweeps import patches_of
from ..engine.threads import in_order
from ..layers import WeightMatrix
from .boxes import Box, BoxStep, backward, column, forward, members_of, times, top
from .enclosed_functions import activated
from .enclosed_losses import loss_curvature
from .enclosures import Enclosure, concatenate

ROWS = 2**12  # of the derivatives of a layer, units times samples, that a thread takes at once
FEWEST = 64  # samples that it takes at once, if they and their derivatives are no more than
LARGEST = 2**24  # numbers


class Second(NamedTuple):
    """The Hessian of L (q, q) and the gradients of v_K (kinks, q) in chosen coordinates."""

    hessian: Enclosure
    jacobian: Enclosure


def second_order(held: Held, box: Box, coordinates: np.ndarray) -> Second:
    """Enclose the Hessian of L and the gradients of v_K in chosen coordinates, ascending."""
    q, kinks, count = len(coordinates), len(held.kinks), len(held.data)
    y, total = held.data.y.T.astype(np.float64), _Sum(q)
    rows_of_Z = Enclosure(np.zeros((kinks, q)), np.zeros((kinks, q)))
    widest = max(W.shape[0] for W in box.theta.W.values())
    x, size = held.data.x.reshape(count, -1), max(FEWEST, ROWS // widest)
    size = max(1, min(size, LARGEST // (widest * max(q, 1))))

    def part(rows: slice) -> _Sum:
        columns = np.ascontiguousarray(x[rows].T, dtype=np.float64)
        members, some = members_of(held, rows), _Sum(q)
        trace, _ = forward(held, box, columns, members)
        delta, _ = top(held, trace[-1].o, y[:, rows], members)
        deltas, _, above = backward(trace, members, delta, box.multipliers, count, above=True)
        moved = None
        for (step, below, moved), dz, do in zip(
            sweep(held, trace, coordinates), deltas, above, strict=True
        ):
            _take(rows_of_Z, step.layer, members, below, moved)
            if step.trained and below is not None and below.width:
                chosen = own_coordinates(held, step.layer, coordinates)
                _add_products(some, held, step, dz, below, chosen)
            if step.activation is not None and not step.activation.piecewise_linear:
                bends = do * activated(step.activation, step.z, 2)
                _add_bends(some, bends, moved)
        moved = _behind(trace[-1], moved)  # of o^L
        _take(rows_of_Z, held.net.depth + 1, members, None, moved)
        if moved is not None and moved.width:
            _add_curvature(some, held, trace[-1].o, y[:, rows], moved.full())
        return some

    blocks = [slice(start, min(count, start + size)) for start in range(0, count, size)]
    for some in in_order(part, blocks, np):
        total.add_sum(some)
    return Second(total.found(), rows_of_Z)


def gradients_of(
    held: Held, box: Box, kinks: Sequence[HeldKink], coordinates: np.ndarray
) -> Enclosure:
    """Enclose the gradients of v of some kinks in chosen coordinates, (kinks, q).

    No unit needs to be held at these, and none is but for those of `held`.
    """
    x, asked = held.data.x.reshape(len(held.data), -1), held.at_kinks(kinks)
    samples, widest = (
        np.unique([k.samples[0] for k in kinks]),
        max(map(held.net.rows, range(held.net.depth + 1))),
    )
    rows = Enclosure(*(np.zeros((len(kinks), len(coordinates))) for _ in range(2)))
    size = max(1, LARGEST // (widest * max(len(coordinates), 1)))
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        columns = np.ascontiguousarray(x[some].T, dtype=np.float64)
        trace, _ = forward(held, box, columns, members_of(held, some))
        for step, below, moved in sweep(held, trace, coordinates):
            _take(rows, step.layer, members_of(asked, some), below, moved)
    return rows


class Moved(NamedTuple):
    """The derivatives of units in coordinates of the layers up to there.

    `below` (n, N, start) are those in the first coordinates, of the layers below the last one with
    parameters; `own` (n, N, weights + 1) those in the weights and the bias of the map of that layer
    that the unit moves with, chosen or not. For each map `chosen` are the numbers of those that are
    coordinates, and their places among all coordinates. In a residual block, where units may move
    with several maps, all coordinates are in `below`, and there is one map without any of its own.
    """

    below: Enclosure
    own: Enclosure
    chosen: list[tuple[np.ndarray, np.ndarray]]

    @property
    def width(self) -> int:
        """Return the number of coordinates."""
        return self.below.shape[2] + sum(len(places) for _, places in self.chosen)

    def of_map(self, t: int) -> tuple[Enclosure, np.ndarray]:
        """Return the derivatives of the units of a map in what they move with, and its places."""
        weights, places = self.chosen[t]
        units = self.units(t)
        parts = [self.below[units], self.own[units][:, :, weights]]
        return concatenate(parts, axis=2), np.append(np.arange(self.below.shape[2]), places)

    def read_from(self, W: WeightMatrix, c: int) -> tuple[Enclosure, np.ndarray]:
        """Return the derivatives of the units of map c of what W reads, and their places."""
        if len(self.chosen) == W.maps_in and W.inner is W:
            return self.of_map(c)
        start = (W.read.start or 0) + c * W.inner.positions_in
        units = slice(start, start + W.inner.positions_in)
        whole = self.whole().below
        return whole[units], np.arange(whole.shape[2])

    def whole(self) -> Moved:
        """Return the same with all coordinates in `below`."""
        if len(self.chosen) == 1 and not len(self.chosen[0][1]):
            return self
        full, none = self.full(), np.zeros(0, dtype=int)
        return Moved(full, self.own[:, :, :0], [(none, none)])

    def units(self, t: int) -> slice:
        """Return the units of a map."""
        count = len(self.below) // len(self.chosen)
        return slice(t * count, (t + 1) * count)

    def full(self) -> Enclosure:
        """Return the derivatives in all coordinates up to there, (n, N, width)."""
        shape = *self.below.shape[:2], self.width
        found = Enclosure(np.zeros(shape), np.zeros(shape))
        for t in range(len(self.chosen)):
            values, places = self.of_map(t)
            found.middle[self.units(t)][:, :, places] = values.middle
            found.radius[self.units(t)][:, :, places] = values.radius
        return found

    def at(self, units: np.ndarray, columns: np.ndarray) -> Enclosure:
        """Return the derivatives of units, each at one of the columns, (units, width)."""
        one = Moved(self.below[units, columns], self.own[units, columns], self.chosen)
        found = Enclosure(*(np.zeros((len(units), self.width)) for _ in range(2)))
        start, maps = one.below.shape[1], units * len(self.chosen) // len(self.below)
        for name in ("middle", "radius"):
            into, own = getattr(found, name), getattr(one.own, name)
            into[:, :start] = getattr(one.below, name)
            for row, t in enumerate(maps):
                weights, places = self.chosen[t]
                into[row, places] = own[row, weights]
        return found


def sweep(
    held: Held, trace: list[BoxStep], coordinates: np.ndarray
) -> Iterator[tuple[BoxStep, Moved | None, Moved | None]]:
    """Yield each step with the derivatives of o^{l-1} and z^l in the coordinates up to there.

    They are None below the first layer with parameters.
    """
    moved = None
    for step in trace:
        below = moved if moved is None or step.W.inner is step.W else moved.whole()
        if step.trained:
            chosen = own_coordinates(held, step.layer, coordinates)
            moved = _carrying(step, _moved_by(step, below), _own(step), chosen)
        elif below is not None:
            parts = [_times(step.W, part) for part in below[:2]]
            moved = Moved(*parts, below.chosen)
        yield step, below, moved
        moved = _behind(step, moved)


def _behind(step: BoxStep, moved: Moved | None) -> Moved | None:
    """Return the derivatives of o^l from those of z^l."""
    if moved is None or step.slopes is None:
        return moved
    return Moved(*(_times_slopes(part, step.slopes) for part in moved[:2]), moved.chosen)


def _carrying(step: BoxStep, below: Enclosure, own: Enclosure, chosen: list) -> Moved:
    """Return the derivatives of z^l, of what a residual block carries along too."""
    moved = Moved(below[: step.W.rows], own, chosen)
    if step.W.inner is step.W:
        return moved
    full, rest = moved.full(), below[step.W.rows :]
    found = Enclosure(*(np.zeros((*below.shape[:2], full.shape[2])) for _ in range(2)))
    for name in ("middle", "radius"):
        getattr(found, name)[: step.W.rows] = getattr(full, name)
        getattr(found, name)[step.W.rows :, :, : rest.shape[2]] = getattr(rest, name)
    none = np.zeros(0, dtype=int)
    return Moved(found, found[:, :, :0], [(none, none)])


def _moved_by(step: BoxStep, below: Moved | None) -> Enclosure:
    """Return the derivatives of z^l in the coordinates of the layers below, (n, N, width)."""
    (n, N), width = step.z.shape, 0 if below is None else below.width
    found = Enclosure(np.zeros((n, N, width)), np.zeros((n, N, width)))
    if not width:
        return found
    parts = [(_times(step.W, below.below, step.R), np.arange(below.below.shape[2]))]
    for t, (weights, places) in enumerate(below.chosen):
        if not len(places):
            continue
        own = below.own[below.units(t)][:, :, weights]
        parts.append((_times(step.W.of_map(t), own, step.R.of_map(t)), places))
    for values, places in parts:
        found.middle[:, :, places], found.radius[:, :, places] = values.middle, values.radius
    return found


def _times(W: WeightMatrix, a: Enclosure, R: WeightMatrix | None = None) -> Enclosure:
    """Return W times the derivatives (n, N, k) of what it reads, for all matrices within R of W."""
    _, N, k = a.shape
    if not k:
        return Enclosure(np.zeros((W.shape[0], N, 0)), np.zeros((W.shape[0], N, 0)))
    return times(W.repeated(k), a.reshape(-1, N * k), R).reshape(-1, N, k)


def _own(step: BoxStep) -> Enclosure:
    """Return the derivatives of z^l in the weights and the bias of the unit's own map."""
    T, parts = step.W.maps_out, []
    for part in (step.below.middle, step.below.radius):
        read = reads(step.W, part).transpose(0, 2, 3, 1)  # (groups, positions, N, weights + 1)
        read = read.repeat(T // len(read), axis=0)
        parts.append(read.reshape(-1, *read.shape[2:]))
    parts[1][:, :, -1] = 0
    return Enclosure(*parts)


def _times_slopes(moved: Enclosure, slopes: Enclosure | np.ndarray) -> Enclosure:
    """Return derivatives of o^l from those of z^l."""
    if isinstance(slopes, Enclosure):
        return moved * column(slopes)
    if ((slopes == 0) | (slopes == 1)).all():  # nothing rounds
        slopes = slopes[:, :, None]
        return Enclosure(moved.middle * slopes, moved.radius * slopes)
    return moved * slopes[:, :, None]


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


def _add_products(
    total: _Sum, held: Held, step: BoxStep, dz: Enclosure, below: Moved, chosen: list
) -> None:
    """Add the terms of the Hessian that are linear in this layer's weights and in those below."""
    (n, N), T = dz[: step.W.rows].shape, step.W.maps_out
    K = math.prod(held.net.slots[step.layer].shape[1:])
    share = gamma(n // T * N)
    d, r = (part[:n].reshape(T, -1) for part in (dz.middle, dz.radius))
    for c in range(step.W.maps_in):
        values, columns = below.read_from(step.W, c)
        q, sides = len(columns), []
        if not q:
            continue
        for part in (values.middle, values.radius):
            flat = np.ascontiguousarray(part).reshape(-1, N * q)
            sides.append(step.W.gathered(flat).reshape(-1, n // T * N, q))
        m, e = sides
        readers, first = step.W.readers(c), c * len(m) % K
        dz, rz = d[readers], r[readers]
        middle = dz @ m  # (K', readers, q)
        off = abs(dz) @ (e + share * abs(m)) + rz @ (abs(m) + e)
        for t, (weights, places) in enumerate(chosen[readers]):
            inside = (weights >= first) & (weights < first + len(m)) & (weights < K)
            if inside.any():
                k, rows = weights[inside] - first, places[inside]
                total.add_block(rows, columns, middle[k, t], off[k, t] * (1 + 4 * share))


def _add_bends(total: _Sum, bends: Enclosure, moved: Moved) -> None:
    """Add what the curvature of an activation contributes, `bends` (n, N) times it."""
    for t in range(len(moved.chosen)):
        values, places = moved.of_map(t)
        if len(places):
            total.add(values, column(bends[moved.units(t)]) * values, places)


def _add_curvature(total: _Sum, held: Held, o: Enclosure, y: np.ndarray, moved: Enclosure) -> None:
    """Add what the curvature of the loss contributes."""
    if type(held.loss) is SquaredLoss:
        total.add_square(moved, 1 / len(held.data))
        return
    if not isinstance(held.loss, AbsoluteLoss):
        bent = loss_curvature(held.loss, column(o), y[:, :, None], moved)
        total.add(moved, bent / len(held.data))


class _Sum:
    """A sum of enclosed symmetric matrices (q, q), and its rounding errors."""

    def __init__(self, q: int):
        self.middle, self.radius, self.terms = np.zeros((q, q)), np.zeros((q, q)), 0

    def add(self, A: Enclosure, B: Enclosure, places: np.ndarray | None = None) -> None:
        """Add sum over units and samples of A^T B to the first rows and columns, or to `places`."""
        q = A.shape[2]
        A, B = A.reshape(-1, q), B.reshape(-1, q)
        share = gamma(len(A.middle))
        off = abs(A.middle).T @ (B.radius + share * abs(B.middle))
        off += A.radius.T @ (abs(B.middle) + B.radius)
        places = np.arange(q) if places is None else places
        self._put(np.ix_(places, places), A.middle.T @ B.middle, off * (1 + 4 * share))

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
            (slice(q), slice(q)),
            factor * middle,
            factor * off * (1 + 8 * share) + 2 * EPSILON * abs(factor * middle),
        )

    def add_block(
        self, rows: np.ndarray, columns: np.ndarray, middle: np.ndarray, off: np.ndarray
    ) -> None:
        """Add a block and its transpose."""
        self._put(np.ix_(rows, columns), middle, off)
        self._put(np.ix_(columns, rows), middle.T, off.T)

    def add_sum(self, other: _Sum) -> None:
        """Add another sum, of other samples."""
        self._put(slice(None), other.middle, other.radius)
        self.terms += other.terms

    def _put(self, where: tuple | slice, middle: np.ndarray, off: np.ndarray) -> None:
        self.middle[where] += middle
        self.radius[where] += off + 2 * EPSILON * (abs(self.middle[where]) + off)
        self.terms += 1

    def found(self) -> Enclosure:
        return Enclosure(self.middle, self.radius * slack(4 * self.terms)).wider(1e-300)


def _take(
    rows: Enclosure,
    layer: int,
    members: dict[int, Members],
    below: Moved | None,
    moved: Moved | None,
) -> None:
    """Write the gradients of v_k at one layer to `rows`; `moved` are those of z^l."""
    some = members.get(layer)
    if some is None:
        return
    columns, which = some.columns[some.first], some.which[some.first]
    if some.pairs is None and moved is not None:
        found = moved.at(some.units[some.first], columns)
    elif some.pairs is not None and below is not None:
        a, b = some.pairs[some.first].T
        found = below.at(a, columns) - below.at(b, columns)
    else:
        return
    width = found.shape[1]
    rows.middle[which, :width], rows.radius[which, :width] = found.middle, found.radius
