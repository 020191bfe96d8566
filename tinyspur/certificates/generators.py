"""Fields along which nothing changes: the generators of the families of points with the same risk.

With delta = dL/dz, o = slope z off the kinks, o = 0 and z = v at held units, the generators are
those of `streams`, of `interpolations` and:

- *dependent inputs* of a first layer: two pixels that agree, one that is constant and the bias, or
  sums with small whole factors that are 0, as of one-hot features, wherever the unit counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from .sizes import parameter_sizes, powers_of_two
from .streams import Generator, group_read, incoming

INDEPENDENT = 1e-8  # of the largest pivot: rows below count as dependent
MOST_SETS = 500  # of units that are exchanged, so that many of one pattern do not take for ever
LARGEST_FACTOR = 1000  # in a sum of dependent inputs


class Reach(NamedTuple):
    """What counts at a point: for each layer with parameters which units and what they read.

    Without what a residual block carries along, `matters` (n_l, N): z^l has an influence on L;
    `moves` (n, N): what the layer reads of o^{l-1} is not constantly 0; `slopes` (n_l, N) of the
    activation, NaN at held units and where z^l does not matter, 1 where none follows but another
    layer; None in the last layer, and where it is smooth. `sizes` (p,) are those of all parameters,
    see `parameter_sizes`.
    """

    step: HeldStep
    matters: np.ndarray
    moves: np.ndarray
    slopes: np.ndarray | None
    sizes: np.ndarray


def reach(held: Held, theta: Parameters) -> dict[int, Reach]:
    """Return what counts at theta, for each layer with parameters."""
    x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
    members = members_of(held, slice(None))
    trace = steps(theta, np.ascontiguousarray(x.T), members)
    found, moves, sizes = {}, [], parameter_sizes(theta, trace).vector
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
        found[step.layer] = Reach(step, matters, moving, slopes, sizes)
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
    """Return independent vectors n with A n = 0 exactly, A (rows, n), of small whole numbers.

    They are small whole numbers where columns are divided by the powers of two that their largest
    entries are about.
    """
    scale = powers_of_two(abs(A).max(axis=0, initial=0.0))
    A = A / scale
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
            found.append(factors / scale)
    return found
