"""Which coordinates may be frozen: those along which the risk does not change, and why.

A ReLU network has whole families of points with the same outputs, so none of its local minima is
strict. Freeze coordinates that cross these families.

- *Idle* ones, in which the derivative of L is the constant 0 in a box, sample by sample: a weight
  of a unit that is strictly inactive wherever what the weight reads is not 0, or whose signal is
  cut off above.
- As many others as there are independent *generators*: fields xi(theta) with grad L . xi =
  sum_k c_k v_k for all theta in the box and all multipliers, and grad v_j . xi the same with
  other c. Where v_K = 0 and grad L = 0 in the free coordinates, Xi_frozen g = 0 for the rows xi and
  the frozen part g of the gradient: grad L = 0 in all coordinates if Xi_frozen is regular.

Then such a point theta* is one of a family m(f), f the frozen coordinates: follow sums of fields
with frozen parts f - f*. On the way v_K stays 0, since d v/ds is linear in v; so does the gradient
G of L, with multipliers that follow d lambda_k/ds = -c_k: differentiate grad L . xi = sum_k c_k v_k
where v_K = 0, then dG/ds = -(D xi)^T G. And L stays as it is, since dL/ds = G . xi = 0. How far
m(f) is from theta* follows from Xi_frozen over the box; see `Coordinates.flow`.

With delta = dL/dz, o = slope z off the kinks, o = 0 and z = v at held units, the generators are
(sums over samples and positions; c = 0 but for mixings):

- *mixing* of maps a, b of one layer, a = b being the scaling: the incoming (w, b)_a += (w, b)_b and
  the outgoing weights of b -= those of a. Its product with grad L is sum delta_a z_b - sum
  (dL/do_a) o_b. Terms are 0 where both have the same slope, and c_k v_k with c_k = delta_a where b
  is held; so each place where a is held must be one where b is.
- *shifts* of maps with the same slope s everywhere, none held: bias += 1, and each bias of a dense
  layer above -= s times the sum of its weights on the map.
- *interpolation*: a map that is not constantly 0 at n different places only, fewer than its free
  weights, so that weights X of A = A_free X for a regular n x n matrix A_free undo each other:
  sum_i delta_i (A_frozen - A_free X)_i = 0.
- *exchanges* between units a, b that only one unit above reads, with weights p, q, where they
  differ in slope or are held at few places: (w, b)_a += q x and (w, b)_b -= p x for weights x that
  give 0 at these places, if any: sum delta_a q (x . o) - delta_b p (x . o) = 0 elsewhere.
- *equal inputs* of a first dense layer: two pixels that agree, or one that is constant and the
  bias, at all samples where the unit counts.
- *outputs* of the softmax: the same vector added to all rows of the last weights, or biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held
from ..engine.held_steps import HeldStep, steps
from ..engine.losses import CrossEntropy
from ..engine.parameters import Parameters
from ..layers import Dense
from .boxes import Box, forward, influence, members_of, reads
from .enclosed_algebra import enclose_inverse, solve
from .enclosures import Enclosure, exact

SMALL = 1 + 1e-9  # for rounding errors of bounds that are computed in few steps
INDEPENDENT = 1e-8  # of the largest pivot: generators below count as dependent


class Generator(NamedTuple):
    """A field: at coordinates `at` it is factor * theta[source], or factor where source is -1.

    Coordinates that come more than once are summed. `mixes` is (layer, a, b) of a mixing.
    """

    at: np.ndarray
    source: np.ndarray
    factor: np.ndarray
    mixes: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Interpolation:
    """The rows that the weights of one map read at different places, more columns than rows.

    `layer` and `places` (position, sample) of the rows, `columns` the numbers of its weights, the
    bias last, `solved` those of a regular square matrix, `rest` the others; `coordinates` of all.
    For an exchange `others` are those of the other map, and `swapped` those of q and p.
    """

    layer: int
    positions: np.ndarray
    samples: np.ndarray
    solved: np.ndarray
    rest: np.ndarray
    coordinates: np.ndarray
    others: np.ndarray | None = None
    swapped: tuple[int, int] | None = None


@dataclass(frozen=True)
class Coordinates:
    """Which coordinates are `free`, `frozen` or `idle`, all ascending, and what explains it.

    `generators` and `interpolations` give the rows, of which `rows` are independent.
    """

    free: np.ndarray
    frozen: np.ndarray
    idle: np.ndarray
    rows: np.ndarray
    generators: tuple[Generator, ...]
    interpolations: tuple[Interpolation, ...]

    @property
    def moving(self) -> np.ndarray:
        """Return the coordinates that are not idle, ascending."""
        return np.sort(np.concatenate([self.free, self.frozen]))

    def flow(self, held: Held, box: Box) -> Flow | None:
        """Return the fields that move the frozen coordinates, over a box; None if there are none.

        Sums c_j xi_j of fields with frozen parts e_f, for each frozen coordinate f: c = Xi^-1.
        """
        rows = fields(self.generators, self.interpolations, held, box)
        if rows is None:
            return None
        rows = rows[self.rows]
        scale = np.ldexp(1.0, -np.frexp(abs(rows.middle).max(axis=1, initial=1e-300))[1])[:, None]
        inverse = enclose_inverse(rows[:, self.frozen] * scale)
        if inverse is None:
            return None
        free = (inverse @ (rows[:, self.free] * scale)).magnitude.sum(axis=0)
        return Flow(free * SMALL, inverse.magnitude.sum(axis=0) * scale[:, 0] * SMALL)


class Flow(NamedTuple):
    """How fast free coordinates move and fields are followed where frozen ones move by 1 at most.

    Bounds over a box: of the free coordinates (free,) and of the factors of the independent fields.
    """

    free: np.ndarray
    fields: np.ndarray


class Reach(NamedTuple):
    """What counts at a point: for each layer with parameters which units and what they read.

    `matters` (n_l, N): z^l has an influence on L; `moves` (n_{l-1}, N): o^{l-1} is not constantly
    0; `slopes` (n_l, N) of the activation, NaN at held units and where z^l does not matter; None
    where no activation follows.
    """

    step: HeldStep
    matters: np.ndarray
    moves: np.ndarray
    slopes: np.ndarray | None


def choose_coordinates(held: Held, theta: Parameters, data: object) -> Coordinates:
    """Return which coordinates to freeze near theta, on the host; see the module."""
    net = held.net
    reaches = reach(held, theta)
    idle = np.flatnonzero(~_supported(held, reaches))
    taken = np.zeros(net.size, dtype=bool)
    taken[idle] = True
    labels = EqualKinks(theta, data, held).labels
    generators, interpolations = [], []
    for layer in reaches:
        generators += mixings(held, theta, reaches, layer)
        generators += shifts(held, reaches, layer)
        interpolations += exchanges(held, reaches, layer, labels[layer], taken)
        for t in range(reaches[layer].step.W.maps_out):
            found = _interpolation(held, reaches[layer], labels[layer], t, taken)
            if found is not None:
                interpolations.append(found)
            elif layer == 1 and isinstance(net.layers[0], Dense):
                generators += equal_inputs(held, reaches[layer], t, taken)
    generators += output_shifts(held)
    box = Box(theta, net.zeros(), exact(np.zeros(len(held.kinks))))
    rows = fields(generators, interpolations, held, box)
    chosen, frozen = _independent(rows.middle, taken)
    free = np.ones(net.size, dtype=bool)
    free[idle] = free[frozen] = False
    return Coordinates(
        np.flatnonzero(free), frozen, idle, chosen, tuple(generators), tuple(interpolations)
    )


def fields(
    generators: list[Generator], interpolations: list[Interpolation], held: Held, box: Box
) -> Enclosure | None:
    """Return the generators over a box, one in each row, (rows, p); None where one has none."""
    vector, radii = box.theta.vector, box.radii.vector
    count = len(generators)
    middle, radius = np.zeros((count, len(vector))), np.zeros((count, len(vector)))
    for row, (at, source, factor, _) in enumerate(generators):
        values = np.where(source < 0, 1.0, vector[source]) * factor
        off = np.where(source < 0, 0.0, radii[source]) * abs(factor)
        off = off + 1e-15 * len(at) * abs(values)  # of products and of sums
        np.add.at(middle[row], at, values)
        np.add.at(radius[row], at, off * (1 + 1e-12))
    parts = [Enclosure(middle, radius)]
    for one in interpolations:
        X = exact(np.zeros((0, len(one.rest))))
        if len(one.solved):
            A = _read_rows(held, box, one)
            X = solve(A[:, one.solved], A[:, one.rest])
        if X is None:
            return None
        x = _null_weights(one, X)
        ends = [(one.coordinates, exact(np.ones(1)))]
        if one.swapped is not None:
            q, p = (Enclosure(vector[[n]], radii[[n]]) for n in one.swapped)
            ends = [(one.coordinates, q), (one.others, -p)]
        rows = exact(np.zeros((len(one.rest), len(vector))))
        for coordinates, factor in ends:
            values = x * factor
            rows.middle[:, coordinates], rows.radius[:, coordinates] = values.middle, values.radius
        parts.append(rows)
    return Enclosure(
        np.concatenate([part.middle for part in parts]),
        np.concatenate([part.radius for part in parts]),
    )


def _null_weights(one: Interpolation, X: Enclosure) -> Enclosure:
    """Return weights that give 0 at all places, one for each of the rest in each row."""
    shape = len(one.rest), len(one.coordinates)
    found = Enclosure(np.zeros(shape), np.zeros(shape))
    found.middle[np.arange(len(one.rest)), one.rest] = 1
    found.middle[:, one.solved], found.radius[:, one.solved] = -X.middle.T, X.radius.T
    return found


# What counts


def reach(held: Held, theta: Parameters) -> dict[int, Reach]:
    """Return what counts at theta, for each layer with parameters."""
    x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
    members = members_of(held, slice(None))
    trace = steps(theta, np.ascontiguousarray(x.T), members)
    found, moves = {}, []
    now = trace[0].below != 0
    for step in trace:
        moves.append(now)
        if step.b is None:
            now = (step.W @ now.astype(float)) > 0
        else:
            now = np.ones(step.z.shape, dtype=bool)
            if step.activation is not None and step.activation.piecewise_linear:
                now = step.slopes != 0
    for step, moving, matters in zip(trace, moves, influence(trace, members), strict=True):
        if step.b is None:
            continue
        some, slopes = members.get(step.layer), None
        if step.activation is not None and step.activation.piecewise_linear:
            slopes = np.where(matters, step.slopes, np.nan)
            matters = matters & (step.slopes != 0)
            if some is not None:
                slopes[some.units, some.columns] = np.nan
                matters[some.units, some.columns] = True
        found[step.layer] = Reach(step, matters, moving, slopes)
    return found


def _supported(held: Held, reaches: dict[int, Reach]) -> np.ndarray:
    """Return in which coordinates L may have a derivative, (p,)."""
    found = np.zeros(held.net.size)
    for layer, (step, matters, moves, _) in reaches.items():
        start, shape = held.net.slots[layer]
        stop = start + math.prod(shape)
        counts = step.W.gradient(matters.astype(float), moves.astype(float))
        found[start:stop] = counts.ravel()
        found[stop : stop + shape[0]] = matters.reshape(shape[0], -1).sum(axis=1)
    return found > 0


# Generators


def incoming(held: Held, layer: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a map, in order, and of its bias."""
    start, shape = held.net.slots[layer]
    K = math.prod(shape[1:])
    return np.append(start + t * K + np.arange(K), start + shape[0] * K + t)


def _above(held: Held, layer: int) -> int | None:
    """Return the next layer with parameters above, or None."""
    return next((n for n in sorted(held.net.slots) if n > layer), None)


def _outgoing(held: Held, reaches: dict[int, Reach], above: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a layer that read a map, (maps_out, ...)."""
    W, (start, shape) = reaches[above].step.W, held.net.slots[above]
    numbers = start + np.arange(math.prod(shape), dtype=float).reshape(shape)
    found = W.with_weights(numbers).outgoing(t)
    return found.reshape(shape[0], -1).astype(int)


def mixings(
    held: Held, theta: Parameters, reaches: dict[int, Reach], layer: int
) -> list[Generator]:
    """Return the generators that mix maps of a layer, scalings first."""
    slopes, above = reaches[layer].slopes, _above(held, layer)
    if slopes is None or above is None or not theta.net.activation.piecewise_linear:
        return []
    maps, found = reaches[layer].step.W.maps_out, []
    slopes = slopes.reshape(maps, -1)
    matters = reaches[layer].matters.reshape(maps, -1)
    selects = any(net_layer.selects for net_layer in held.net.layers[layer : above - 1])
    kept = np.isnan(slopes) & matters  # held
    for a in range(maps):
        for b in range(maps):
            if not matters[a].any() or (a != b and selects):
                continue
            if a != b and not _mixes(slopes, matters, kept, a, b):
                continue
            own, other = incoming(held, layer, a), incoming(held, layer, b)
            out, back = (_outgoing(held, reaches, above, t).ravel() for t in (b, a))
            one = Generator(
                np.concatenate([own, out]),
                np.concatenate([other, back]),
                np.concatenate([np.ones(len(own)), -np.ones(len(out))]),
                (layer, a, b),
            )
            found.append(one)
    return found


def _mixes(slopes, matters, kept, a: int, b: int) -> bool:
    """Return whether maps a and b can be mixed: delta_a z_b = (dL/do_a) o_b at each place."""
    counts = ~np.isnan(slopes[a]) | kept[a]  # where the signal reaches a
    same = (slopes[a] == slopes[b]) | kept[b]
    return bool(matters[b].any() and same[counts].all())


def shifts(held: Held, reaches: dict[int, Reach], layer: int) -> list[Generator]:
    """Return the generators that shift maps of one slope, where a dense layer takes it back."""
    slopes, above = reaches[layer].slopes, _above(held, layer)
    if slopes is None or above is None or not held.net.activation.piecewise_linear:
        return []
    if not isinstance(held.net.layers[above - 1], Dense):
        return []
    maps, found = reaches[layer].step.W.maps_out, []
    for t, (own, counts) in enumerate(
        zip(slopes.reshape(maps, -1), reaches[layer].matters.reshape(maps, -1), strict=True)
    ):
        values = own[~np.isnan(own)]
        if not len(values) or (np.isnan(own) & counts).any() or len(np.unique(values)) > 1:
            continue
        slope = float(values[0])
        if slope == 0:
            continue
        out = _outgoing(held, reaches, above, t)
        biases = np.array([incoming(held, above, h)[-1] for h in range(len(out))])
        found.append(
            Generator(
                np.concatenate([incoming(held, layer, t)[-1:], np.repeat(biases, out.shape[1])]),
                np.concatenate([[-1], out.ravel()]),
                np.concatenate([[1.0], np.full(out.size, -slope)]),
            )
        )
    return found


def equal_inputs(held: Held, at: Reach, t: int, taken: np.ndarray) -> list[Generator]:
    """Return the generators of inputs that agree wherever a unit of the first layer counts."""
    coordinates, found = incoming(held, at.step.layer, t), []
    used = at.matters[t]
    x = at.step.below[:, used]
    first: dict[bytes, int] = {}
    for k, row in enumerate(x):
        if taken[coordinates[k]]:
            continue
        if (row == row[0]).all():
            at_, factor, source = [k, len(x)], [1.0, -float(row[0])], [-1, -1]
        elif (key := row.tobytes()) in first:
            at_, factor, source = [k, first[key]], [1.0, -1.0], [-1, -1]
        else:
            first[key] = k
            continue
        found.append(Generator(coordinates[at_], np.array(source), np.array(factor)))
    return found


def output_shifts(held: Held) -> list[Generator]:
    """Return the generators that shift all outputs of the softmax."""
    net = held.net
    if not isinstance(held.loss, CrossEntropy) or not isinstance(net.layers[-1], Dense):
        return []
    columns = np.array([incoming(held, net.depth, h) for h in range(net.shapes[-1][0])])
    nothing, ones = np.full(len(columns), -1), np.ones(len(columns))
    return [Generator(column, nothing, ones) for column in columns.T]


def _interpolation(
    held: Held, at: Reach, labels: np.ndarray, t: int, taken: np.ndarray
) -> Interpolation | None:
    """Return the rows that a map reads where it counts, if there are fewer than weights."""
    maps, P = at.step.W.maps_out, at.step.W.positions_out
    used = at.matters.reshape(maps, P, -1)[t]
    if not used.any():
        return None
    return _interpolating(held, at, labels, t, taken, used)


def exchanges(
    held: Held, reaches: dict[int, Reach], layer: int, labels: np.ndarray, taken: np.ndarray
) -> list[Interpolation]:
    """Return the generators that exchange between units which one unit alone reads."""
    at, above, found = reaches[layer], _above(held, layer), []
    W = at.step.W
    if at.slopes is None or above is None or above != layer + 1 or W.positions_out > 1:
        return []
    if held.net.shapes[above] != (1,):
        return []
    for a in range(W.maps_out):
        for b in range(a + 1, W.maps_out):
            same = (at.slopes[a] == at.slopes[b]) | ~(at.matters[a] | at.matters[b])
            one = _interpolating(held, at, labels, a, taken, ~same[None])
            if one is not None and at.matters[a].any() and at.matters[b].any():
                p, q = (int(_outgoing(held, reaches, above, t)[0, 0]) for t in (a, b))
                others = incoming(held, layer, b)
                if not taken[others[~taken[one.coordinates]]].any():
                    found.append(replace(one, others=others, swapped=(q, p)))
    return found


def _interpolating(
    held: Held, at: Reach, labels: np.ndarray, t: int, taken: np.ndarray, used: np.ndarray
) -> Interpolation | None:
    """Return what the weights of a map read at places (positions, N), where these are few."""
    coordinates = incoming(held, at.step.layer, t)
    columns = np.flatnonzero(~taken[coordinates])
    positions, samples = np.nonzero(used)
    _, first = np.unique(labels[positions, samples], return_index=True)
    if len(first) >= len(columns):
        return None
    positions, samples = positions[first], samples[first]
    solved, rest = columns[:0], columns
    if len(first):
        read = reads(at.step.W, np.ascontiguousarray(at.step.below[:, samples]))
        A = read[:, positions, np.arange(len(samples))].T
        _, R, order = scipy.linalg.qr(A[:, columns], mode="economic", pivoting=True)
        if abs(R[-1, len(first) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            return None
        solved, rest = columns[order[: len(first)]], columns[order[len(first) :]]
    return Interpolation(at.step.layer, positions, samples, solved, rest, coordinates)


def _read_rows(held: Held, box: Box, one: Interpolation) -> Enclosure:
    """Return what is read at the places of an interpolation, over the box, (rows, weights + 1)."""
    samples, inverse = np.unique(one.samples, return_inverse=True)
    x = held.data.x.reshape(len(held.data), -1)[samples].astype(np.float64)
    trace, _ = forward(held, box, np.ascontiguousarray(x.T), members_of(held, samples))
    step = trace[one.layer - 1]
    places = one.positions, inverse.reshape(-1)
    middle = reads(step.W, step.below.middle)[:, places[0], places[1]].T
    radius = reads(step.W, step.below.radius)[:, places[0], places[1]].T.copy()
    radius[:, -1] = 0
    return Enclosure(np.ascontiguousarray(middle), radius)


def _independent(rows: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return independent rows of the generators, and as many coordinates that they all cross."""
    columns = np.flatnonzero(~taken)
    rows = rows[:, columns]
    lengths = np.linalg.norm(rows, axis=1)
    used = np.flatnonzero(lengths > 0)
    if not len(used) or not len(columns):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    rows = rows[used] / lengths[used][:, None]
    _, R, order = scipy.linalg.qr(rows.T, mode="economic", pivoting=True)
    sizes = abs(np.diag(R))
    chosen = order[: int((sizes > INDEPENDENT * sizes[0]).sum())]
    pivots = scipy.linalg.qr(rows[chosen], mode="r", pivoting=True)[1]
    return used[chosen], np.sort(columns[pivots[: len(chosen)]])
