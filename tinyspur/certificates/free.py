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
m(f) is from theta* follows from Xi_frozen over the box, see `Coordinates.flow`; the generators are
those of `generators`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize

from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held
from ..engine.parameters import Parameters
from .box_hessians import reads
from .boxes import Box, forward, members_of
from .enclosed_algebra import enclose_inverse, solve
from .enclosures import Enclosure, exact
from .families import Family, Symmetry
from .generators import (
    INDEPENDENT,
    Generator,
    Interpolation,
    Reach,
    dependent_inputs,
    exchanges,
    incoming,
    interpolation,
    mixings,
    output_shifts,
    reach,
    shifts,
)

SMALL = 1 + 1e-9  # for rounding errors of bounds that are computed in few steps


@dataclass(frozen=True)
class Coordinates:
    """Which coordinates are `free`, `frozen` or `idle`, all ascending, and what explains it.

    `generators` and `interpolations` give the rows, of which `rows` are independent. `family` says
    which symmetry moves each frozen coordinate, and why the idle ones have no influence.
    """

    free: np.ndarray
    frozen: np.ndarray
    idle: np.ndarray
    rows: np.ndarray
    generators: tuple[Generator, ...]
    interpolations: tuple[Interpolation, ...]
    family: Family

    @property
    def moving(self) -> np.ndarray:
        """Return the coordinates that are not idle, ascending."""
        return np.sort(np.concatenate([self.free, self.frozen]))

    def flow(self, held: Held, box: Box) -> Flow | None:
        """Return the fields that move the frozen coordinates, over a box; None if there are none.

        Sums c_j xi_j of fields with frozen parts e_f, for each frozen coordinate f: c = Xi^-1.
        """
        if not len(self.frozen):
            return Flow(np.zeros(len(self.free)), np.zeros(0))
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
        interpolations += exchanges(held, theta, reaches, layer, labels[layer], taken)
        for t in range(reaches[layer].step.W.maps_out):
            found = interpolation(held, reaches[layer], labels[layer], t, taken)
            if found is not None:
                interpolations.append(found)
            elif layer == 1:
                generators += dependent_inputs(held, reaches[layer], t, taken)
    generators += output_shifts(held)
    box = Box(theta, net.zeros(), exact(np.zeros(len(held.kinks))))
    rows = fields(generators, interpolations, held, box)
    chosen, frozen = _independent(rows.middle, taken)
    free = np.ones(net.size, dtype=bool)
    free[idle] = free[frozen] = False
    named = _named(rows.middle[np.ix_(chosen, frozen)])
    symmetries = row_symmetries(generators, interpolations)
    reasons = {int(f): symmetries[chosen[row]] for f, row in zip(frozen, named, strict=True)}
    reasons |= dict(_why_idle(held, reaches, idle))
    return Coordinates(
        np.flatnonzero(free),
        frozen,
        idle,
        chosen,
        tuple(generators),
        tuple(interpolations),
        Family(dict(sorted(reasons.items()))),
    )


def row_symmetries(
    generators: Sequence[Generator], interpolations: Sequence[Interpolation]
) -> list[Symmetry]:
    """Return the symmetry that each row of `fields` belongs to."""
    found = [one.symmetry for one in generators]
    for one in interpolations:
        found += [one.symmetry] * len(one.rest)
    return found


def _named(rows: np.ndarray) -> np.ndarray:
    """Return a row for each column of a regular matrix, each once, with an entry that is not 0."""
    sizes = abs(rows / abs(rows).max(axis=1, initial=1e-300)[:, None])
    return scipy.optimize.linear_sum_assignment(np.log(sizes.T + 1e-200), maximize=True)[1]


def _why_idle(
    held: Held, reaches: dict[int, Reach], idle: np.ndarray
) -> Iterator[tuple[int, Symmetry]]:
    """Yield each idle coordinate and why it has no influence."""
    is_idle = np.zeros(held.net.size, dtype=bool)
    is_idle[idle] = True
    for layer, at in reaches.items():
        maps = at.step.W.maps_out
        for t, counts in enumerate(at.matters.reshape(maps, -1).any(axis=1)):
            coordinates = incoming(held, layer, t)
            dead = at.step.slopes is not None and not at.step.slopes.reshape(maps, -1)[t].any()
            kind = "reads nothing" if counts else "dead" if dead else "unread"
            for n in coordinates[is_idle[coordinates]]:
                yield int(n), Symmetry(kind, layer, (t,))


def fields(
    generators: Sequence[Generator], interpolations: Sequence[Interpolation], held: Held, box: Box
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
        if one.outgoing is not None:
            P = Enclosure(vector[one.outgoing], radii[one.outgoing])
            P = P if one.last is None else P - Enclosure(vector[one.last], radii[one.last])
            shares = solve(P[:, 1:], -P[:, :1])
            if shares is None:
                return None
            ends += [(other, shares[k]) for k, other in enumerate(one.others)]
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


def _supported(held: Held, reaches: dict[int, Reach]) -> np.ndarray:
    """Return in which coordinates L may have a derivative, (p,)."""
    found = np.zeros(held.net.size)
    for layer, (step, matters, moves, _) in reaches.items():
        slot = held.net.slots[layer]
        counts = step.W.gradient(matters.astype(float), moves.astype(float))
        found[slot.weights] = counts.ravel()
        if slot.biases:
            sums = matters.reshape(slot.biases, -1).sum(axis=1)
            found[slot.weights.stop : slot.all.stop] = sums
    return found > 0


def _read_rows(held: Held, box: Box, one: Interpolation) -> Enclosure:
    """Return what is read at the places of an interpolation, over the box, (rows, weights + 1)."""
    samples, inverse = np.unique(one.samples, return_inverse=True)
    x = held.data.x.reshape(len(held.data), -1)[samples].astype(np.float64)
    trace, _ = forward(held, box, np.ascontiguousarray(x.T), members_of(held, samples))
    step = trace[one.symmetry.layer - 1]
    places = one.group, slice(None), one.positions, inverse.reshape(-1)
    middle, radius = (reads(step.W, x)[places] for x in (step.below.middle, step.below.radius))
    radius[:, -1] = 0
    return Enclosure(middle, radius)


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
