"""Passes over a box of parameters in which units are held at their kinks.

What `Held` computes at a point is enclosed here for all points of a box: z, v_K, the signals C_K,
the gradient and the Hessian of L = R_0 + sum_k lambda_k v_k. Each unit that is not held keeps its
piece, active or inactive, and each max pooling its choice, which is checked for the whole box.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.activations import Activation
from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.held import Held
from ..engine.held_steps import HeldStep, Members, steps
from ..engine.parameters import Parameters
from ..engine.passes import unread
from ..layers import DenseMatrix, SelectionMatrix, TransposedMatrix, WeightMatrix
from .enclosed_algebra import doubled_product
from .enclosed_functions import activated
from .enclosed_losses import loss_gradient, loss_value
from .enclosed_passes import with_biases
from .enclosures import Enclosure, between, exact, product

FEWEST, LARGEST = 32, 1000  # samples in a block, if there are as many


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
    biased: bool
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


def first_order(held: Held, box: Box, released: bool = False) -> First:
    """Enclose the gradient of L over a box.

    With `released` the outputs of held units are not 0 but anything that they can be in the box:
    then z are enclosures of the network's own, and C_K those of all points between. At a point
    sums over samples are taken in about sqrt(N) blocks, which gives small bounds of their rounding.
    """
    net, kinks, count = held.net, len(held.kinks), len(held.data)
    x, y = held.data.x.reshape(count, -1), held.data.y.T.astype(np.float64)
    size = LARGEST if box.radii.vector.any() else max(FEWEST, math.isqrt(count))
    gradient, values, signals = (_zeros(n) for n in (net.size, kinks, kinks))
    risk, kept = _zeros(1), True
    for start in range(0, count, size):
        rows = slice(start, min(count, start + size))
        columns, members = np.ascontiguousarray(x[rows].T, dtype=float), members_of(held, rows)
        trace, fine = forward(held, box, columns, members, released)
        delta, values_here = top(held, trace[-1].o, y[:, rows], members)
        kept = kept and fine and _loss_kept(held, trace[-1].o, y[:, rows], members)
        risk = risk + values_here.sum() / count
        deltas, here = backward(trace, members, delta, box.multipliers, count)
        signals = signals + here
        values = values + _values(held, trace, members, y[:, rows])
        parts = []
        for step, dz in zip(trace, deltas, strict=True):
            if step.trained:
                parts.append(_weights_gradient(step, dz))
            if step.biased:
                own = dz[: step.W.rows]
                parts.append(own.reshape(step.W.maps_out, -1).sum(axis=1))
        gradient = gradient + _joined(parts)
    return First(gradient, values, signals, risk, kept)


def signal_bounds(held: Held, box: Box) -> dict[int, np.ndarray]:
    """Return bounds of |dL/dz^l| over a box, layer by layer, (n_l, N)."""
    y, found = held.data.y.T.astype(np.float64), {}
    for rows, columns in held.net.chunks(box.theta, held.data.x):
        members = members_of(held, rows)
        trace, _ = forward(held, box, columns, members)
        delta, _ = top(held, trace[-1].o, y[:, rows], members)
        deltas, _ = backward(trace, members, delta, box.multipliers, len(held.data))
        for step, dz in zip(trace, deltas, strict=True):
            found.setdefault(step.layer, []).append(dz.magnitude)
    return {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}


# Upwards


def members_of(held: Held, samples: slice | np.ndarray) -> dict[int, Members]:
    """Return the members of all kinks among some samples, ascending, in columns of these."""
    return held.members(np.arange(len(held.data))[samples])


def forward(
    held: Held, box: Box, columns: np.ndarray, members: dict[int, Members], released: bool = False
) -> tuple[list[BoxStep], bool]:
    """Return the steps of a pass over the box, and whether each piece is kept in all of it."""
    trace, kept, o, loose = [], True, exact(columns), {}
    found = steps(box.theta, columns, members)
    for middle in found:
        layer, W, below = middle.layer, middle.W, o
        some, trained = members.get(layer), W.weights is not None
        R = box.radii.W[layer].trained if trained else None
        z = times(W, below, R)
        if middle.b is not None:
            biases = Enclosure(box.theta.b[layer][:, None], box.radii.b[layer][:, None])
            z = with_biases(W, z, biases)
        elif W.weights is None and not isinstance(W, SelectionMatrix):
            z = _not_negative(z, (W @ (below.low < 0).astype(float)) == 0)
        sigma, slopes, o = middle.activation, None, z
        if isinstance(W.inner, SelectionMatrix):
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
            sides |= unread(W, middle.b, below.magnitude) | (z.magnitude == 0)
            sides[W.rows :] = True
            if some is not None:
                sides[some.units, some.columns] = True
            o = z * slopes
            if not sides.all():
                loose[layer] = ~sides
                either = activated(sigma, z)
                o.middle[~sides], o.radius[~sides] = either.middle[~sides], either.radius[~sides]
            if some is not None and released:
                reach = z.magnitude[some.units, some.columns]
                half = reach * (0.5 + EPSILON)  # from 0 on, exactly, where alpha is 0
                given = between(-sigma.slope * reach, reach)
                o = _put(o, some, given if sigma.slope else Enclosure(half, half))
        elif sigma is not None:
            o, slopes = activated(sigma, z), activated(sigma, z, 1)
        biased = middle.b is not None
        trace.append(BoxStep(layer, W, R, trained, biased, below, z, o, slopes, sigma))
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
    if isinstance(selects, SelectionMatrix) and W.fan_in == 1:
        return Enclosure(W @ x.middle, W @ x.radius)
    if isinstance(W, TransposedMatrix) and W.weights is None and W.fan_in == 1:  # divided, no more
        found, off = W @ x.middle, W @ x.radius
        return Enclosure(found, off * (1 + 4 * EPSILON) + EPSILON * abs(found) + 4 * SMALLEST)
    if isinstance(W, DenseMatrix) and not R.weights.any():  # a point: z as exact as it can be
        off = (abs(W) @ x.radius) * (1 + 2 * gamma(W.fan_in)) + 2 * W.shape[1] * SMALLEST
        return doubled_product(W.weights, x.middle).wider(off)
    found = product(W, x, R)
    if isinstance(W, TransposedMatrix):  # whose rows may be longer
        found = found.wider(gamma(W.shape[1]) * (abs(W) @ abs(x.middle)))
    return found


def _not_negative(z: Enclosure, sure: np.ndarray) -> Enclosure:
    """Return the enclosure of averages that are 0 or more where all that they are of is."""
    sure = sure & (z.low < 0)
    half = z.high * (0.5 + EPSILON)  # from 0 on, exactly
    return Enclosure(np.where(sure, half, z.middle), np.where(sure, half, z.radius))


def _choice_kept(matrix: WeightMatrix, o: Enclosure, some: Members | None) -> bool:
    """Return whether no entry of a window can be larger than the one that is selected.

    Of a held pooling two entries are equal, a and b, and the others can't be larger than b.
    """
    W, read = matrix.inner, o[matrix.read]
    low, high = (W.pooling.windows(side, -math.inf) for side in (read.low, read.high))
    chosen = np.arange(len(low))[:, None, None] == W.choice
    others = np.where(chosen, -math.inf, high)
    if some is not None:
        entries = np.arange(len(o))[matrix.read, None]
        places = W.pooling.windows(entries, -1)[..., 0]  # (entries, windows)
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


def top(
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


# Pieces


def _weights_gradient(step: BoxStep, dz: Enclosure) -> Enclosure:
    """Return an enclosure of the derivative of <dz, W @ below> in the weights."""
    W, o, share = step.W, step.below, gamma(dz.middle.size // step.W.maps_out)
    off = W.gradient(abs(dz.middle), o.radius + share * abs(o.middle))
    off = off + W.gradient(dz.radius, abs(o.middle) + o.radius)
    return Enclosure(W.gradient(dz.middle, o.middle), off * (1 + 4 * share) + 1e-300)


def _zeros(n: int) -> Enclosure:
    return exact(np.zeros(n))


def column(a: Enclosure) -> Enclosure:
    return Enclosure(a.middle[..., None], a.radius[..., None])


def _joined(parts: list[Enclosure]) -> Enclosure:
    return Enclosure(
        *(
            np.concatenate([getattr(p, name).ravel() for p in parts])
            for name in ("middle", "radius")
        )
    )


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
