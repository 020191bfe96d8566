"""Fields along which nothing changes: the generators of the families of points with the same risk.

With delta = dL/dz, o = slope z off the kinks, o = 0 and z = v at held units, the generators are
(sums over samples and positions), beside those of `streams`, mixings and shifts:

- *interpolation*: a map that is not constantly 0 at n different places only, fewer than its free
  weights, so that weights X of A = A_free X for a regular n x n matrix A_free undo each other:
  sum_i delta_i (A_frozen - A_free X)_i = 0.
- *exchanges* between units a, b that only one unit above reads, with weights p, q, where they
  differ in slope or are held at few places: (w, b)_a += q x and (w, b)_b -= p x for weights x that
  give 0 at these places, if any: sum delta_a q (x . o) - delta_b p (x . o) = 0 elsewhere.
- *dependent inputs* of a first layer: two pixels that agree, one that is constant and the bias, or
  sums with small whole factors that are 0, as of one-hot features, wherever the unit counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.held import Held
from ..engine.held_steps import HeldStep, carried, steps
from ..engine.parameters import Parameters
from ..engine.passes import unread
from .box_hessians import reads
from .boxes import influence, members_of
from .exact_sums import integers
from .families import Symmetry
from .streams import Generator, Level, downstream, group_read, incoming, outgoing

INDEPENDENT = 1e-8  # of the largest pivot: rows below count as dependent
LARGEST_FACTOR = 1000  # in a sum of dependent inputs


@dataclass(frozen=True)
class Interpolation:
    """The rows that the weights of one map read at different places, more columns than rows.

    `symmetry` with its layer, `places` (position, sample) of the rows, `columns` the numbers of its
    weights, the bias last, `solved` those of a regular square matrix, `rest` the others;
    `coordinates` of all. They read the maps below of one `group`. For an exchange `others` are
    those of the other map, and `swapped` those of q and p.
    """

    symmetry: Symmetry
    positions: np.ndarray
    samples: np.ndarray
    solved: np.ndarray
    rest: np.ndarray
    coordinates: np.ndarray
    group: int
    others: np.ndarray | None = None
    swapped: tuple[int, int] | None = None


class Reach(NamedTuple):
    """What counts at a point: for each layer with parameters which units and what they read.

    Without what a residual block carries along, `matters` (n_l, N): z^l has an influence on L;
    `moves` (n, N): what the layer reads of o^{l-1} is not constantly 0; `slopes` (n_l, N) of the
    activation, NaN at held units and where z^l does not matter, 1 where none follows but another
    layer; None in the last layer, and where it is smooth.
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
        moves.append(now[step.W.read])
        before = now.astype(float)
        if step.W.weights is None:
            now = (step.W @ before) > 0
        else:
            now = carried(step.W, before, ~unread(step.W, step.b, before))
        if step.activation is not None and step.activation.piecewise_linear:
            now = now & (step.slopes != 0)
        elif step.activation is not None:  # which need not be 0 where z is
            now[: step.W.rows] = True
    for step, moving, matters in zip(trace, moves, influence(trace, members), strict=True):
        if step.W.weights is None:
            continue
        own, some, slopes = slice(step.W.rows), members.get(step.layer), None
        matters = matters[own]
        if step.activation is not None and step.activation.piecewise_linear:
            slopes = np.where(matters, step.slopes[own], np.nan)
            matters = matters & (step.slopes[own] != 0)
            if some is not None:
                slopes[some.units, some.columns] = np.nan
                matters[some.units, some.columns] = True
        elif step.activation is None and step.layer < len(trace):  # o = z
            slopes = np.where(matters, 1.0, np.nan)
        found[step.layer] = Reach(step, matters, moving, slopes)
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
    x = reads(at.step.W, at.step.below)[group_read(at.step.W, t)][: len(coordinates), used]
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
    levels: dict[int, Level],
    at: Reach,
    labels: np.ndarray,
    taken: np.ndarray,
) -> list[Interpolation]:
    """Return the generators that exchange between units which one unit alone reads.

    Their slopes are the products of those on the way there, through sums of residual blocks too.
    """
    W, layer, found = at.step.W, at.step.layer, []
    between, readers, ends = downstream(held.net, layer)
    if at.slopes is None or W.positions_out > 1 or ends or len(readers) != 1:
        return []
    [above], slopes = readers, at.slopes
    if held.net.shapes[above] != (1,) or any(levels[n].is_smooth for n in between):
        return []
    for n in between:
        slopes = slopes if levels[n].slopes is None else slopes * levels[n].slopes
    for a in range(W.maps_out):
        for b in range(a + 1, W.maps_out):
            if group_read(W, a) != group_read(W, b):
                continue
            same = (slopes[a] == slopes[b]) | ~(at.matters[a] | at.matters[b])
            one = _interpolating(held, at, labels, a, taken, ~same[None])
            if one is not None and at.matters[a].any() and at.matters[b].any():
                top = levels[above].step.W
                p, q = (int(outgoing(held, top, above, t)[0, 0]) for t in (a, b))
                others = incoming(held, layer, b)
                if not taken[others[~taken[one.coordinates]]].any():
                    symmetry = Symmetry("exchange", layer, (a, b))
                    found.append(replace(one, symmetry=symmetry, others=others, swapped=(q, p)))
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
        A = read[group_read(at.step.W, t), :, positions, np.arange(len(samples))]
        _, R, order = scipy.linalg.qr(A[:, columns], mode="economic", pivoting=True)
        if abs(R[-1, len(first) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            return None
        solved, rest = columns[order[: len(first)]], columns[order[len(first) :]]
    symmetry, group = Symmetry("few samples", at.step.layer, (t,)), group_read(at.step.W, t)
    return Interpolation(symmetry, positions, samples, solved, rest, coordinates, group)
