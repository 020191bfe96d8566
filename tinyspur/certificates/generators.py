"""Fields along which nothing changes: the generators of the families of points with the same risk.

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
- *exchanges* between m + 1 units that m units of a dense layer above read, where they differ in
  slope or are held at few places: (w, b)_a += c_a x for weights x that give 0 at these places, if
  any, and c with P c = 0, P (m, m + 1) the weights above: sum_a delta_a c_a (x . o) = 0 elsewhere.
  Of the outputs of the softmax, one less counts: P are the rows of their weights less the last one.
- *dependent inputs* of a first layer: two pixels that agree, one that is constant and the bias, or
  sums with small whole factors that are 0, as of one-hot features, wherever the unit counts.
- *outputs* of the softmax: the same vector added to all rows of the last weights, or biases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.held import Held
from ..engine.held_steps import HeldStep, steps
from ..engine.losses import CrossEntropy
from ..engine.parameters import Parameters
from ..engine.passes import unread
from ..layers import Dense, Scale, WeightMatrix
from .box_hessians import reads
from .boxes import influence, members_of
from .exact_sums import integers
from .families import Symmetry

INDEPENDENT = 1e-8  # of the largest pivot: rows below count as dependent
MOST_SETS = 500  # of units that are exchanged, so that many of one pattern do not take for ever
LARGEST_FACTOR = 1000  # in a sum of dependent inputs


class Generator(NamedTuple):
    """A field: at coordinates `at` it is factor * theta[source], or factor where source is -1.

    Coordinates that come more than once are summed.
    """

    at: np.ndarray
    source: np.ndarray
    factor: np.ndarray
    symmetry: Symmetry

    @property
    def mixes(self) -> tuple[int, int, int] | None:
        """Return (layer, a, b) of a mixing or scaling, None for others."""
        kind, layer, maps = self.symmetry
        return (layer, maps[0], maps[-1]) if kind in ("scaling", "mixing") else None


@dataclass(frozen=True)
class Interpolation:
    """The rows that the weights of one map read at different places, more columns than rows.

    `symmetry` with its layer, `places` (position, sample) of the rows, `columns` the numbers of its
    weights, the bias last, `solved` those of a regular square matrix, `rest` the others;
    `coordinates` of all. They read the maps below of one `group`. For an exchange `others` are
    those of the other maps, `outgoing` (m, m + 1) those of P, the own map first, and `last`
    (m + 1,) those of the last output of the softmax, if that is above.
    """

    symmetry: Symmetry
    positions: np.ndarray
    samples: np.ndarray
    solved: np.ndarray
    rest: np.ndarray
    coordinates: np.ndarray
    group: int
    others: tuple[np.ndarray, ...] = ()
    outgoing: np.ndarray | None = None
    last: np.ndarray | None = None


class Reach(NamedTuple):
    """What counts at a point: for each layer with parameters which units and what they read.

    `matters` (n_l, N): z^l has an influence on L; `moves` (n_{l-1}, N): o^{l-1} is not constantly
    0; `slopes` (n_l, N) of the activation, NaN at held units and where z^l does not matter, 1 where
    none follows but another layer; None in the last layer, and where it is smooth.
    """

    step: HeldStep
    matters: np.ndarray
    moves: np.ndarray
    slopes: np.ndarray | None


def reach(held: Held, theta: Parameters) -> dict[int, Reach]:
    """Return what counts at theta, for each layer with parameters."""
    x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
    members = members_of(held, slice(None))
    trace = steps(theta, np.ascontiguousarray(x.T), members)
    found, moves = {}, []
    now = trace[0].below != 0
    for step in trace:
        moves.append(now)
        if step.W.weights is None:
            now = (step.W @ now.astype(float)) > 0
        else:
            now = ~unread(step.W, step.b, now.astype(float))
            if step.activation is not None and step.activation.piecewise_linear:
                now = step.slopes != 0
    for step, moving, matters in zip(trace, moves, influence(trace, members), strict=True):
        if step.W.weights is None:
            continue
        some, slopes = members.get(step.layer), None
        if step.activation is not None and step.activation.piecewise_linear:
            slopes = np.where(matters, step.slopes, np.nan)
            matters = matters & (step.slopes != 0)
            if some is not None:
                slopes[some.units, some.columns] = np.nan
                matters[some.units, some.columns] = True
        elif step.activation is None and step.layer < len(trace):  # o = z
            slopes = np.where(matters, 1.0, np.nan)
        found[step.layer] = Reach(step, matters, moving, slopes)
    return found


def incoming(held: Held, layer: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a map, in order, and of its bias if any."""
    return held.net.slots[layer].of_map(t)


def _above(held: Held, layer: int) -> int | None:
    """Return the next layer with parameters above, or None."""
    return next((n for n in sorted(held.net.slots) if n > layer), None)


def _outgoing(held: Held, reaches: dict[int, Reach], above: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a layer that read a map, (maps_out, ...)."""
    W, slot = reaches[above].step.W, held.net.slots[above]
    numbers = slot.start + np.arange(math.prod(slot.shape), dtype=float).reshape(slot.shape)
    found = W.with_weights(numbers).outgoing(t)
    return found.reshape(len(found), -1).astype(int)


def mixings(
    held: Held, theta: Parameters, reaches: dict[int, Reach], layer: int
) -> list[Generator]:
    """Return the generators that mix maps of a layer, scalings first."""
    slopes, above = reaches[layer].slopes, _above(held, layer)
    if slopes is None or above is None or layer not in theta.net.kinked_layers:
        return []
    W, next_W, found = reaches[layer].step.W, reaches[above].step.W, []
    maps, slopes = W.maps_out, slopes.reshape(W.maps_out, -1)
    matters = reaches[layer].matters.reshape(maps, -1)
    selects = any(net_layer.selects for net_layer in held.net.chain[layer : above - 1])
    kept = np.isnan(slopes) & matters  # held
    for a in range(maps):
        for b in range(maps):
            if not matters[a].any() or (a != b and selects):
                continue
            if a != b and not _mixes(slopes, matters, kept, a, b):
                continue
            if _reads(W, a) != _reads(W, b) or next_W.readers(a) != next_W.readers(b):
                continue
            own, other = incoming(held, layer, a), incoming(held, layer, b)
            out, back = (_outgoing(held, reaches, above, t).ravel() for t in (b, a))
            one = Generator(
                np.concatenate([own, out]),
                np.concatenate([other, back]),
                np.concatenate([np.ones(len(own)), -np.ones(len(out))]),
                Symmetry("scaling", layer, (a,)) if a == b else Symmetry("mixing", layer, (a, b)),
            )
            found.append(one)
    return found


def _reads(W: WeightMatrix, t: int) -> int:
    """Return the group of maps below that map t reads."""
    return t * W.groups // W.maps_out


def _mixes(slopes, matters, kept, a: int, b: int) -> bool:
    """Return whether maps a and b can be mixed: delta_a z_b = (dL/do_a) o_b at each place."""
    counts = ~np.isnan(slopes[a]) | kept[a]  # where the signal reaches a
    same = (slopes[a] == slopes[b]) | kept[b]
    return bool(matters[b].any() and same[counts].all())


def shifts(held: Held, reaches: dict[int, Reach], layer: int) -> list[Generator]:
    """Return the generators that shift maps of one slope, where a dense layer takes it back."""
    slopes, above = reaches[layer].slopes, _above(held, layer)
    if slopes is None or above is None or layer not in held.net.kinked_layers:
        return []
    if not isinstance(held.net.chain[above - 1], Dense | Scale):
        return []
    if not all(held.net.slots[n].biases for n in (layer, above)):
        return []
    if not all(pooling.keeps_constants for pooling in held.net.chain[layer : above - 1]):
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
        readers = range(held.net.shapes[above][0])[reaches[above].step.W.readers(t)]
        biases = np.array([incoming(held, above, h)[-1] for h in readers])
        found.append(
            Generator(
                np.concatenate([incoming(held, layer, t)[-1:], np.repeat(biases, out.shape[1])]),
                np.concatenate([[-1], out.ravel()]),
                np.concatenate([[1.0], np.full(out.size, -slope)]),
                Symmetry("shift", layer, (t,)),
            )
        )
    return found


def dependent_inputs(held: Held, at: Reach, t: int, taken: np.ndarray) -> list[Generator]:
    """Return the generators of inputs of a map of the first layer that are dependent where it
    counts: equal ones, constant ones, and sums with small whole factors, as of one-hot features.
    """
    coordinates, found = incoming(held, at.step.layer, t), []
    symmetry = Symmetry("dependent inputs", at.step.layer, (t,))
    maps, P = at.step.W.maps_out, at.step.W.positions_out
    used = at.matters.reshape(maps, P, -1)[t]
    if not used.any():
        return []
    x = reads(at.step.W, at.step.below)[_reads(at.step.W, t)][: len(coordinates), used]
    bias, weights = at.step.b is not None, math.prod(at.step.W.weights.shape[1:])
    first: dict[bytes, int] = {}

    def add(inputs: Sequence[int], factors: Sequence[float]) -> None:
        source = np.full(len(inputs), -1)
        found.append(Generator(coordinates[inputs], source, np.array(factors, float), symmetry))

    for k, row in enumerate(x[:weights]):
        if taken[coordinates[k]]:
            continue
        if (row == row[0]).all() and bias:
            add([k, weights], [1.0, -float(row[0])])
        elif (key := row.tobytes()) in first:
            add([k, first[key]], [1.0, -1.0])
        else:
            first[key] = k
    rest = np.array([*first.values(), *[weights] * bias], dtype=int)
    for factors in whole_null_vectors(x[rest].T):
        inside = np.flatnonzero(factors)
        add(rest[inside], factors[inside])
    return found


def whole_null_vectors(A: np.ndarray) -> list[np.ndarray]:
    """Return independent vectors n of small whole numbers with A n = 0 exactly, A (rows, n)."""
    _, R, order = scipy.linalg.qr(A, mode="economic", pivoting=True)
    sizes = abs(np.diag(R))
    rank = int((sizes > INDEPENDENT * sizes.max(initial=0)).sum())
    if rank in (0, A.shape[1]):
        return []
    solved, rest = order[:rank], order[rank:]
    X = scipy.linalg.solve_triangular(R[:rank, :rank], R[:rank, rank:])
    columns, powers = integers(np.unique(A, axis=0))
    columns = columns * np.array([1 << (max(powers) - p) for p in powers], dtype=object)
    found = []
    for k, x in zip(rest, X.T, strict=True):
        parts = [Fraction(v).limit_denominator(LARGEST_FACTOR) for v in x.tolist()]
        common = math.lcm(*(part.denominator for part in parts))
        factors = np.zeros(A.shape[1])
        factors[k] = common
        factors[solved] = [float(-part * common) for part in parts]
        whole = np.array([int(v) for v in factors], dtype=object)
        if abs(whole).max() <= LARGEST_FACTOR and not (columns @ whole).any():
            found.append(factors)
    return found


def output_shifts(held: Held) -> list[Generator]:
    """Return the generators that shift all outputs of the softmax."""
    net = held.net
    if not isinstance(held.loss, CrossEntropy) or not isinstance(net.chain[-1], Dense):
        return []
    columns = np.array([incoming(held, net.depth, h) for h in range(net.shapes[-1][0])])
    nothing, ones = np.full(len(columns), -1), np.ones(len(columns))
    symmetry = Symmetry("outputs", net.depth, tuple(range(len(columns))))
    return [Generator(column, nothing, ones, symmetry) for column in columns.T]


def interpolation(
    held: Held, at: Reach, labels: np.ndarray, t: int, taken: np.ndarray
) -> Interpolation | None:
    """Return the rows that a map reads where it counts, if there are fewer than weights."""
    maps, P = at.step.W.maps_out, at.step.W.positions_out
    used = at.matters.reshape(maps, P, -1)[t]
    if not used.any():
        return None
    return _interpolating(held, at, labels, t, taken, used)


def exchanges(
    held: Held,
    theta: Parameters,
    reaches: dict[int, Reach],
    layer: int,
    labels: np.ndarray,
    taken: np.ndarray,
) -> list[Interpolation]:
    """Return the generators that exchange between one unit more than the units that read them."""
    at, above, found, last = reaches[layer], _above(held, layer), [], None
    W = at.step.W
    if at.slopes is None or above is None or above != layer + 1 or W.positions_out > 1:
        return []
    if not isinstance(held.net.chain[above - 1], Dense):
        return []
    out = [_outgoing(held, reaches, above, t)[:, 0] for t in range(W.maps_out)]
    out = np.array(out).T[reaches[above].matters.any(axis=1)]
    if isinstance(held.loss, CrossEntropy) and above == held.net.depth:
        out, last = out[:-1], out[-1]
    for maps in _nearly_equal(at, labels, len(out) + 1) if len(out) else ():
        P = theta.vector[out[:, maps]] - (0 if last is None else theta.vector[last[maps]])
        _, R, order = scipy.linalg.qr(P, mode="economic", pivoting=True)
        if abs(R[-1, len(out) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            continue
        maps = np.roll(maps[order], 1)
        one = _interpolating(held, at, labels, maps[0], taken, _differ(at, maps)[None])
        others = tuple(incoming(held, layer, t) for t in maps[1:])
        if one is None or any(taken[other[~taken[one.coordinates]]].any() for other in others):
            continue
        symmetry = Symmetry("exchange", layer, tuple(sorted(maps.tolist())))
        outgoing = out[:, maps]
        below = None if last is None else last[maps]
        one = replace(one, symmetry=symmetry, others=others, outgoing=outgoing, last=below)
        found.append(one)
    return found


def _differ(at: Reach, maps: Sequence[int]) -> np.ndarray:
    """Return where units differ in slope, or are held, though one of them counts there, (N,)."""
    slopes = at.slopes[maps]
    return at.matters[maps].any(axis=0) & ~(slopes == slopes[0]).all(axis=0)


def _nearly_equal(at: Reach, labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Return sets of so many units that read the same and differ at few places, two by two."""
    W, some = at.step.W, np.flatnonzero(at.matters.any(axis=1))
    few = math.prod(W.weights.shape[1:]) + (at.step.b is not None)

    def near(a: int, b: int) -> bool:
        different = (
            len(np.unique(labels[0, _differ(at, [a, b])])) if _reads(W, a) == _reads(W, b) else few
        )
        return different < few

    pairs = {(a, b) for a in some.tolist() for b in some.tolist() if a < b and near(a, b)}
    sets = [(a,) for a in some.tolist()]
    for _ in range(count - 1):
        longer = (
            (*one, b) for one in sets for b in some.tolist() if all((a, b) in pairs for a in one)
        )
        sets = list(itertools.islice(longer, MOST_SETS))
    return [np.array(one) for one in sets]


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
        A = read[_reads(at.step.W, t), :, positions, np.arange(len(samples))]
        _, R, order = scipy.linalg.qr(A[:, columns], mode="economic", pivoting=True)
        if abs(R[-1, len(first) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            return None
        solved, rest = columns[order[: len(first)]], columns[order[len(first) :]]
    symmetry, group = Symmetry("few samples", at.step.layer, (t,)), _reads(at.step.W, t)
    return Interpolation(symmetry, positions, samples, solved, rest, coordinates, group)
