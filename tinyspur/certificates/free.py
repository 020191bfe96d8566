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
those of `generators`, `interpolations`, `submersions`, `streams` and `parallel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize

from ..engine.equal_kinks import EqualKinks
from ..engine.floats import gamma, slack
from ..engine.held import Held
from ..engine.parameters import Parameters
from ..errors import TOO_LARGE, AssumptionError
from .box_hessians import reads
from .boxes import Box, forward, members_of
from .enclosed_algebra import enclose_inverse, solve
from .enclosures import Enclosure, exact
from .families import Family, Symmetry
from .generators import (
    INDEPENDENT,
    Reach,
    dependent_inputs,
    reach,
)
from .interpolations import Interpolation, exchanges, interpolation
from .parallel import parallel_ways
from .sizes import powers_of_two
from .streams import Generator, incoming, levels_of, stream_symmetries
from .submersions import Submersion, submersions

LAST = 2.0**-10  # of the length of other rows: those of the general kinds, which are taken last


@dataclass(frozen=True)
class Coordinates:
    """Which coordinates are `free`, `frozen` or `idle`, all ascending, and what explains it.

    `sizes` are those of all parameters, see `parameter_sizes`. `generators` and `interpolations`
    give the rows, of which `rows` are independent. `family` says which symmetry moves each frozen
    coordinate, and why the idle ones have no influence.
    """

    free: np.ndarray
    frozen: np.ndarray
    idle: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    generators: tuple[Generator, ...]
    interpolations: tuple[Interpolation | Submersion, ...]
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
        rows, more = rows[self.rows], slack(2 * len(self.rows))
        columns = 1 / self.sizes[self.frozen]
        scale = 1 / powers_of_two(abs(rows.middle[:, self.frozen] * columns).max(axis=1))[:, None]
        inverse = enclose_inverse(rows[:, self.frozen] * scale * columns)
        if inverse is None:
            return None
        inverse = inverse * columns[:, None]
        free = (inverse @ (rows[:, self.free] * scale)).magnitude.sum(axis=0)
        return Flow(free * more, inverse.magnitude.sum(axis=0) * scale[:, 0] * more)


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
    equal = EqualKinks(theta, data, held)
    labels = equal.labels
    levels = levels_of(held, theta)
    generators, interpolations = stream_symmetries(held, levels) + parallel_ways(held, levels), []
    for layer in reaches:
        interpolations += exchanges(held, levels, reaches, layer, labels[layer], taken, theta)
        for t in range(reaches[layer].step.W.maps_out):
            found = interpolation(held, reaches[layer], labels[layer], t, taken)
            if found is not None:
                interpolations.append(found)
            elif layer == 1:
                generators += dependent_inputs(held, reaches[layer], t, taken)
    interpolations += submersions(held, reaches, equal, taken, theta)
    box = Box(theta, net.zeros(), exact(np.zeros(len(held.kinks))))
    parts = [(one, _interpolated(one, held, box)) for one in interpolations]
    parts = [(one, part) for one, part in parts if part is not None]
    interpolations = [one for one, _ in parts]
    rows = _stacked([_generated(generators, box), *(part for _, part in parts)])
    sizes = next(iter(reaches.values())).sizes
    symmetries = row_symmetries(generators, interpolations)
    last = np.array([one.kind == "few values" for one in symmetries], dtype=bool)
    chosen, frozen = _independent(rows.middle, taken, sizes, last)
    free = np.ones(net.size, dtype=bool)
    free[idle] = free[frozen] = False
    moving = named(rows.middle[np.ix_(chosen, frozen)])
    reasons = {int(f): symmetries[chosen[row]] for f, row in zip(frozen, moving, strict=True)}
    reasons |= dict(_why_idle(held, reaches, idle))
    return Coordinates(
        np.flatnonzero(free),
        frozen,
        idle,
        sizes,
        chosen,
        tuple(generators),
        tuple(interpolations),
        Family(dict(sorted(reasons.items()))),
    )


def row_symmetries(
    generators: Sequence[Generator], interpolations: Sequence[Interpolation | Submersion]
) -> list[Symmetry]:
    """Return the symmetry that each row of `fields` belongs to."""
    found = [one.symmetry for one in generators]
    for one in interpolations:
        found += [one.symmetry] * len(one.rest)
    return found


def named(rows: np.ndarray) -> np.ndarray:
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
            slopes = at.step.slopes
            dead = slopes is not None and not slopes[: at.step.W.rows].reshape(maps, -1)[t].any()
            kind = "reads nothing" if counts else "dead" if dead else "unread"
            for n in coordinates[is_idle[coordinates]]:
                yield int(n), Symmetry(kind, layer, (t,))


def fields(
    generators: Sequence[Generator],
    interpolations: Sequence[Interpolation | Submersion],
    held: Held,
    box: Box,
) -> Enclosure | None:
    """Return the generators over a box, one in each row, (rows, p); None where one has none."""
    parts = [_interpolated(one, held, box) for one in interpolations]
    if any(part is None for part in parts):
        return None
    return _stacked([_generated(generators, box), *parts])


def _stacked(parts: Sequence[Enclosure]) -> Enclosure:
    return Enclosure(
        np.concatenate([part.middle for part in parts]),
        np.concatenate([part.radius for part in parts]),
    )


def _generated(generators: Sequence[Generator], box: Box) -> Enclosure:
    """Return the generators over a box that need not be solved for, one in each row."""
    vector, radii = box.theta.vector, box.radii.vector
    count = len(generators)
    middle, radius = np.zeros((count, len(vector))), np.zeros((count, len(vector)))
    for row, (at, source, factor, _, times) in enumerate(generators):
        values = np.where(source < 0, 1.0, vector[source]) * factor
        off = np.where(source < 0, 0.0, radii[source]) * abs(factor)
        if times is not None:
            more = np.where(times < 0, 1.0, vector[times])
            reach = np.where(times < 0, 0.0, radii[times])
            off = off * (abs(more) + reach) + abs(values) * reach
            values = values * more
        off = off + gamma(len(at) + 2) * abs(values)  # of products and of sums
        np.add.at(middle[row], at, values)
        np.add.at(radius[row], at, off * slack(len(at)))
    return Enclosure(middle, radius)


def _interpolated(one: Interpolation | Submersion, held: Held, box: Box) -> Enclosure | None:
    """Return the generators of an interpolation over a box, one in each row, or None."""
    if isinstance(one, Submersion):
        return one.fields(held, box)
    vector, radii = box.theta.vector, box.radii.vector
    X, shares = exact(np.zeros((0, len(one.rest)))), _shares(one, box)
    if len(one.solved):
        A, own, others = _read_rows(held, box, one), one.sizes[one.solved], one.sizes[one.rest]
        X = solve(A[:, one.solved] * own, A[:, one.rest] * others)
        X = X if X is None else X * own[:, None] * (1 / others)
    if X is None or shares is None:
        return None
    x = _null_weights(one, X)
    rows = exact(np.zeros((len(one.rest), len(vector))))
    for end, share in zip(one.ends, shares, strict=True):
        values = x * exact(end.factors) * share
        for n in end.others:
            values = values * Enclosure(vector[[n]], radii[[n]])
        rows.middle[:, end.coordinates] = values.middle
        rows.radius[:, end.coordinates] = values.radius
    return rows


def _shares(one: Interpolation, box: Box) -> list[Enclosure] | None:
    """Return what the ends of an interpolation move by, or None where the weights may not tell."""
    ones = exact(np.ones(1))
    if one.weights is None:
        return [ones] * len(one.ends)
    vector, radii = box.theta.vector, box.radii.vector
    P = Enclosure(vector[one.weights], radii[one.weights])
    P = P if one.last is None else P - Enclosure(vector[one.last], radii[one.last])
    found = solve(P[:, 1:], -P[:, :1])
    return None if found is None else [ones, *(found[k] for k in range(len(one.ends) - 1))]


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
    for layer, (step, matters, moves, *_) in reaches.items():
        slot = held.net.slots[layer]
        counts = step.W.inner.gradient(matters.astype(float), moves.astype(float))
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


def _independent(
    rows: np.ndarray, taken: np.ndarray, sizes: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return independent rows of the generators, and as many coordinates that they all cross.

    Which rows are independent is decided in the units of the parameters' `sizes`; those that are
    `last` count where the others leave something. Coordinates are preferred that are large as they
    are: a move by rho counts little there.
    """
    columns = np.flatnonzero(~taken)
    rows = rows[:, columns]
    relative = rows / sizes[columns]
    if not np.isfinite(relative).all():
        raise AssumptionError(TOO_LARGE)
    used = np.flatnonzero(relative.any(axis=1))
    if not len(used):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    relative = _of_length_1(relative[used])
    share = np.where(last[used], LAST, 1.0)
    _, R, order = scipy.linalg.qr((relative * share[:, None]).T, mode="economic", pivoting=True)
    order, diagonal = order[: len(R)], abs(np.diag(R))
    chosen = order[diagonal > INDEPENDENT * share[order]]
    rows, relative = rows[used[chosen]], relative[chosen]
    for some in (_of_length_1(rows), relative):
        crossed = scipy.linalg.qr(some, mode="r", pivoting=True)[1][: len(chosen)]
        values = np.linalg.svd(relative[:, crossed], compute_uv=False)
        if values[-1] > INDEPENDENT * values[0]:
            break
    return used[chosen], np.sort(columns[crossed])


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    """Return rows, none of them 0, divided by their lengths, whose squares may overflow."""
    rows = rows / abs(rows).max(axis=1)[:, None]
    return rows / np.linalg.norm(rows, axis=1)[:, None]
