"""Passes over a box of parameters in which units are held at their kinks.

What `Held` computes at a point is enclosed here for all points of a box: z, v_K, the signals C_K,
the gradient and the Hessian of L = R_0 + sum_k lambda_k v_k. Each unit that is not held keeps its
piece, active or inactive, and each max pooling its choice, which is checked for the whole box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..engine.activations import Activation
from ..engine.floats import EPSILON, gamma
from ..engine.held import Held
from ..engine.held_steps import HeldStep, Members, steps
from ..engine.losses import AbsoluteLoss, SquaredLoss
from ..engine.parameters import Parameters
from ..layers import SelectionMatrix, TransposedMatrix, WeightMatrix
from .enclosed_functions import activated
from .enclosed_losses import loss_curvature, loss_gradient, loss_value
from .enclosures import Enclosure, between, exact, product

SWEPT = 2**20  # numbers in the derivatives of a layer that are held at once


class Box(NamedTuple):
    """Parameters within `radii` of `theta`, and multipliers; all on the host."""

    theta: Parameters
    radii: Parameters
    multipliers: Enclosure


class BoxStep(NamedTuple):
    """One layer over a box: what a `HeldStep` is, with enclosures; R holds the radii of W."""

    layer: int
    W: WeightMatrix
    R: WeightMatrix | None
    trained: bool
    below: Enclosure
    z: Enclosure
    o: Enclosure
    slopes: Enclosure | np.ndarray | None
    activation: Activation | None


class First(NamedTuple):
    """What one forward and one backward pass show over a box.

    The gradient of L in all parameters (p,), v_K, the signals C_K, enclosures of R_0 and of all z,
    layer by layer, (n_l, N); and whether all pieces were `kept`.
    """

    gradient: Enclosure
    values: Enclosure
    signals: Enclosure
    risk: Enclosure
    kept: bool


class Second(NamedTuple):
    """The Hessian of L (q, q) and the gradients of v_K (kinks, q) in chosen coordinates."""

    hessian: Enclosure
    jacobian: Enclosure


def first_order(held: Held, box: Box, released: bool = False) -> First:
    """Enclose the gradient of L over a box.

    With `released` the outputs of held units are not 0 but anything that they can be in the box:
    then z are enclosures of the network's own, and C_K those of all points between.
    """
    net, kinks = held.net, len(held.kinks)
    y, count = held.data.y.T.astype(np.float64), len(held.data)
    gradient, values, signals = (_zeros(n) for n in (net.size, kinks, kinks))
    risk, kept = _zeros(1), True
    for rows, columns in net.chunks(box.theta, held.data.x):
        members = members_of(held, rows)
        trace, fine = forward(held, box, columns, members, released)
        delta, values_here = _top(held, trace[-1].o, y[:, rows], members)
        kept = kept and fine and _loss_kept(held, trace[-1].o, y[:, rows], members)
        risk = risk + values_here.sum() / count
        deltas, here = backward(trace, members, delta, box.multipliers, count)
        signals = signals + here
        values = values + _values(held, trace, members, y[:, rows])
        parts = []
        for step, dz in zip(trace, deltas, strict=True):
            if step.trained:
                parts += [_weights_gradient(step, dz), _by_map(dz, step.W.maps_out).sum(axis=1)]
        gradient = gradient + _joined(parts)
    return First(gradient, values, signals, risk, kept)


def signal_bounds(held: Held, box: Box) -> dict[int, np.ndarray]:
    """Return bounds of |dL/dz^l| over a box, layer by layer, (n_l, N)."""
    y, found = held.data.y.T.astype(np.float64), {}
    for rows, columns in held.net.chunks(box.theta, held.data.x):
        members = members_of(held, rows)
        trace, _ = forward(held, box, columns, members)
        delta, _ = _top(held, trace[-1].o, y[:, rows], members)
        deltas, _ = backward(trace, members, delta, box.multipliers, len(held.data))
        for step, dz in zip(trace, deltas, strict=True):
            found.setdefault(step.layer, []).append(dz.magnitude)
    return {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}


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
        delta, _ = _top(held, trace[-1].o, y[:, rows], members)
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
                total.add(moved, _column(bends) * moved)
        _take(rows_of_Z, held.net.depth + 1, members, None, moved)
        if moved is not None:
            _add_curvature(total, held, trace[-1].o, y[:, rows], moved)
    return Second(total.found(), rows_of_Z)


def members_of(held: Held, samples: slice | np.ndarray) -> dict[int, Members]:
    """Return the members of all kinks among some samples, ascending, in columns of these."""
    columns = np.arange(len(held.data))[samples]
    found: dict[int, list] = {}
    for number, kink in enumerate(held.kinks):
        places = np.minimum(np.searchsorted(columns, kink.samples), len(columns) - 1)
        inside = np.flatnonzero(columns[places] == kink.samples)
        if len(inside):
            parts = kink.units[inside], places[inside], np.full(len(inside), number), inside == 0
            pairs = None if kink.pairs is None else kink.pairs[inside]
            found.setdefault(kink.layer, []).append((*parts, pairs))
    return {
        layer: Members(
            *(None if part[0] is None else np.concatenate(part) for part in zip(*some, strict=True))
        )
        for layer, some in found.items()
    }


# Upwards


def forward(
    held: Held, box: Box, columns: np.ndarray, members: dict[int, Members], released: bool = False
) -> tuple[list[BoxStep], bool]:
    """Return the steps of a pass over the box, and whether each piece is kept in all of it."""
    trace, kept, o, loose = [], True, exact(columns), {}
    found = steps(box.theta, columns, members)
    for middle in found:
        layer, W, below = middle.layer, middle.W, o
        some, trained = members.get(layer), layer in box.theta.b
        R = box.radii.W[layer] if trained else None
        z = times(W, below, R)
        if trained:
            maps = _by_map(z, W.maps_out)
            biases = Enclosure(box.theta.b[layer][:, None], box.radii.b[layer][:, None])
            z = (maps + biases).reshape(*z.shape)
        sigma, slopes, o = middle.activation, None, z
        if isinstance(W, SelectionMatrix):
            kept = kept and _choice_kept(W, below, some)
            if some is not None and released:
                a, b = (below[some.pairs[:, n], some.columns] for n in (0, 1))
                o = _put(
                    z,
                    some,
                    between(
                        z.low[some.units, some.columns],
                        (b + between(np.zeros(len(some.which)), np.maximum((a - b).high, 0))).high,
                    ),
                )
        if sigma is not None and sigma.piecewise_linear:
            slopes, active = middle.slopes, middle.z > 0
            sides = np.where(active, z.low > 0, z.high < 0)
            if some is not None:
                sides[some.units, some.columns] = True
            o = z * slopes
            if not sides.all():
                loose[layer] = ~sides
                either = activated(sigma, z)
                o.middle[~sides], o.radius[~sides] = either.middle[~sides], either.radius[~sides]
            if some is not None and released:
                reach = z.magnitude[some.units, some.columns]
                o = _put(o, some, between(-held.slope * reach * (1 + EPSILON), reach))
        elif sigma is not None:
            o, slopes = activated(sigma, z), activated(sigma, z, 1)
        trace.append(BoxStep(layer, W, R, trained, below, z, o, slopes, sigma))
    for layer, units in loose.items():  # below a dead layer pieces may change
        kept = kept and not (units & influence(found, members)[layer - 1]).any()
    return trace, kept


def influence(trace: list[HeldStep], members: dict[int, Members]) -> list[np.ndarray]:
    """Return for each layer which units o^l can have an influence on L, (n_l, N)."""
    matters, found = np.ones(trace[-1].o.shape, dtype=bool), []
    for step in reversed(trace):
        found.append(matters)
        some = members.get(step.layer)
        if step.activation is not None and step.activation.piecewise_linear:
            matters = matters & (step.slopes != 0)
            if some is not None:
                matters[some.units, some.columns] = True
        W = step.W
        if W.weights is not None:
            W = W.with_weights(np.ones_like(W.weights))
        if step.layer > 1:
            matters = (W.T @ matters.astype(float)) > 0
            if some is not None and some.pairs is not None:
                for n in (0, 1):
                    matters[some.pairs[:, n], some.columns] = True
    return found[::-1]


def times(W: WeightMatrix, x: Enclosure, R: WeightMatrix | None = None) -> Enclosure:
    """Return an enclosure of W @ x for all matrices within R of W."""
    selects = W.matrix if isinstance(W, TransposedMatrix) else W
    if isinstance(selects, SelectionMatrix):
        return Enclosure(W @ x.middle, W @ x.radius)
    found = product(W, x, R)
    if isinstance(W, TransposedMatrix) and W.weights is not None:  # whose rows may be longer
        found = found.wider(gamma(W.shape[1]) * (abs(W) @ abs(x.middle)))
    return found


def _choice_kept(W: SelectionMatrix, o: Enclosure, some: Members | None) -> bool:
    """Return whether no entry of a window can be larger than the one that is selected.

    Of a held pooling two entries are equal, a and b, and the others can't be larger than b.
    """
    low, high = W.pooling.windows(o.low), W.pooling.windows(o.high)
    chosen = np.arange(len(low))[:, None, None] == W.choice
    others = np.where(chosen, -math.inf, high)
    if some is not None:
        places = W.pooling.windows(np.arange(W.shape[1])[:, None])[..., 0]  # (entries, windows)
        entry = (places[:, some.units] == some.pairs[:, 0]).argmax(axis=0)
        others[entry, some.units, some.columns] = -math.inf
    return bool((np.where(chosen, low, -math.inf).max(axis=0) >= others.max(axis=0)).all())


# Downwards


def backward(
    trace: list[BoxStep],
    members: dict[int, Members],
    delta: Enclosure,
    multipliers: Enclosure,
    count: int,
    above: bool = False,
) -> tuple:
    """Return delta z^l layer by layer, the signals C_K, and with `above` delta o^l too.

    `count` is the number of samples in all.
    """
    signals, deltas, signals_above = _zeros(len(multipliers)), [], []
    some = members.get(len(trace) + 1)
    if some is not None:
        ones = np.bincount(some.which, minlength=len(multipliers)).astype(float)
        signals = signals + exact(ones) / count
        delta = _put_first(delta, some, multipliers)
    for step in reversed(trace):
        some = members.get(step.layer)
        if some is not None:
            signals = signals + _counted(delta[some.units, some.columns], some, len(multipliers))
        signals_above.append(delta)
        if step.activation is not None:
            delta = delta * step.slopes
            if some is not None:
                delta = _put_first(delta, some, multipliers)
        deltas.append(delta)
        if step.layer > 1:
            delta = times(step.W.T, delta, None if step.R is None else step.R.T)
            if some is not None and some.pairs is not None:
                delta = _added_first(delta, some.pairs[:, 0], some, multipliers)
                delta = _added_first(delta, some.pairs[:, 1], some, -multipliers)
    found = deltas[::-1], signals
    return (*found, signals_above[::-1]) if above else found


def _top(
    held: Held, o: Enclosure, y: np.ndarray, members: dict[int, Members]
) -> tuple[Enclosure, Enclosure]:
    """Return the gradient of the losses / N in the outputs, and the losses; 0 at held ones."""
    some = members.get(held.net.depth + 1)
    if some is not None:
        o = _put(o, some, exact(y[some.units, some.columns]))
    return loss_gradient(held.loss, o, y) / len(held.data), loss_value(held.loss, o, y)


def _loss_kept(held: Held, o: Enclosure, y: np.ndarray, members: dict[int, Members]) -> bool:
    """Return whether the loss has no kink in the box but where it is held."""
    corners = {
        "absolute": (0.0,),
        "huber": (-getattr(held.loss, "delta", 0.0), getattr(held.loss, "delta", 0.0)),
    }
    kept, off = np.ones(y.shape, dtype=bool), o - y
    for corner in corners.get(held.loss.name, ()):
        kept &= (off.low > corner) | (off.high < corner)
    some = members.get(held.net.depth + 1)
    if some is not None:
        kept[some.units, some.columns] = True
    return bool(kept.all())


def _values(
    held: Held, trace: list[BoxStep], members: dict[int, Members], y: np.ndarray
) -> Enclosure:
    """Return v_k of the kinks whose first member is among these samples, 0 for the others."""
    middle, radius = np.zeros(len(held.kinks)), np.zeros(len(held.kinks))
    for layer, some in members.items():
        units, columns = some.units[some.first], some.columns[some.first]
        if layer > len(trace):
            found = (trace[-1].o - y)[units, columns]
        elif some.pairs is None:
            found = trace[layer - 1].z[units, columns]
        else:
            below = trace[layer - 1].below
            a, b = some.pairs[some.first].T
            found = below[a, columns] - below[b, columns]
        middle[some.which[some.first]] = found.middle
        radius[some.which[some.first]] = found.radius
    return Enclosure(middle, radius)


# Second derivatives


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
                else moved * _column(slopes)
            )
        below = moved


def own_coordinates(
    held: Held, layer: int, coordinates: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each map of a layer which of its (weights, bias) are among the coordinates.

    As numbers of the weights, the bias last, and as positions among the coordinates.
    """
    start, shape = held.net.slots[layer]
    K, found = math.prod(shape[1:]), []
    for t in range(shape[0]):
        numbers = np.append(start + t * K + np.arange(K), start + shape[0] * K + t)
        places = np.searchsorted(coordinates, numbers)
        inside = places < len(coordinates)
        inside[inside] = coordinates[places[inside]] == numbers[inside]
        found.append((np.flatnonzero(inside), places[inside]))
    return found


def reads(W: WeightMatrix, o: np.ndarray) -> np.ndarray:
    """Return what the weights of one map multiply at each position, and a 1: (K + 1, P, N)."""
    maps = o.reshape(W.maps_in, W.positions_in, -1)
    parts = [W.gathered(maps[c]) for c in range(len(maps))]
    return np.concatenate([*parts, np.ones((1, *parts[0].shape[1:]))])


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
    read.radius[-1] = 0
    for t, (weights, places) in enumerate(own):
        for into, values in ((middle, read.middle), (radius, read.radius)):
            into.reshape(maps, -1, N, stop)[t][:, :, places] = values[weights].transpose(1, 2, 0)
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
    K = math.prod(held.net.slots[step.layer][1][1:])
    share = gamma(n // T * N)
    d, r = dz.middle.reshape(T, -1), dz.radius.reshape(T, -1)
    for c in range(step.W.maps_in):
        sides = []
        for part in (below.middle, below.radius):
            maps = part.reshape(step.W.maps_in, step.W.positions_in, N * q)
            sides.append(step.W.gathered(maps[c]).reshape(-1, n // T * N, q))
        m, e = sides
        first = c * len(m)
        middle = d @ m  # (K', T, q)
        off = abs(d) @ (e + share * abs(m)) + r @ (abs(m) + e)
        for t, (weights, places) in enumerate(own):
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
        bent = loss_curvature(held.loss, _column(o), y[:, :, None], moved)
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


# Pieces


def _zeros(n: int) -> Enclosure:
    return exact(np.zeros(n))


def _column(a: Enclosure) -> Enclosure:
    return Enclosure(a.middle[..., None], a.radius[..., None])


def _joined(parts: list[Enclosure]) -> Enclosure:
    return Enclosure(
        *(
            np.concatenate([getattr(p, name).ravel() for p in parts])
            for name in ("middle", "radius")
        )
    )


def _by_map(a: Enclosure, maps: int) -> Enclosure:
    return a.reshape(maps, -1)


def _weights_gradient(step: BoxStep, dz: Enclosure) -> Enclosure:
    """Return an enclosure of the derivative of <dz, W @ below> in the weights."""
    W, o, share = step.W, step.below, gamma(dz.middle.size // step.W.maps_out)
    off = W.gradient(abs(dz.middle), o.radius + share * abs(o.middle))
    off = off + W.gradient(dz.radius, abs(o.middle) + o.radius)
    return Enclosure(W.gradient(dz.middle, o.middle), off * (1 + 4 * share) + 1e-300)


def _put(a: Enclosure, some: Members, values: Enclosure) -> Enclosure:
    """Return the enclosure with other values at the members."""
    middle, radius = a.middle.copy(), a.radius.copy()
    middle[some.units, some.columns], radius[some.units, some.columns] = (
        values.middle,
        values.radius,
    )
    return Enclosure(middle, radius)


def _put_first(a: Enclosure, some: Members, values: Enclosure) -> Enclosure:
    """Return the enclosure with the values of kinks at their first members, 0 at the others."""
    found = values[some.which]
    return _put(a, some, Enclosure(found.middle * some.first, found.radius * some.first))


def _added_first(a: Enclosure, units, some: Members, values: Enclosure) -> Enclosure:
    """Return the enclosure with the values of kinks added at some units of their first members."""
    more = Enclosure(np.zeros(a.shape), np.zeros(a.shape))
    places = units[some.first], some.columns[some.first]
    np.add.at(more.middle, places, values.middle[some.which[some.first]])
    np.add.at(more.radius, places, values.radius[some.which[some.first]])
    size = np.zeros(a.shape)
    np.add.at(size, places, EPSILON * 8 * values.magnitude[some.which[some.first]])
    return a + more.wider(size)


def _counted(a: Enclosure, some: Members, kinks: int) -> Enclosure:
    """Return the sums over the members of each kink."""
    share = gamma(len(some.which))
    middle = np.bincount(some.which, weights=a.middle, minlength=kinks)
    off = np.bincount(some.which, weights=a.radius + share * abs(a.middle), minlength=kinks)
    return Enclosure(middle, off * (1 + 2 * share))
