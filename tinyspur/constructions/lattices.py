"""[PWL] Continuous piecewise linear functions as maxima of minima of affine pieces, as printed.

f = max_r min_{k in S_r} f_k, one S_r for each region ((13) to (18)): the first hidden layer
computes the pieces, binary trees of gadgets of two units take the minima and then the maximum. The
function is right; the weights are in general not stationary, since comparisons among pieces that
are not selected vary within a group (E10 of the audit).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.samples import TrainingSet, check_data, flattened
from ..engine.losses import Loss, check_loss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..engine.plain import generator, whole_number
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from ..layers import Dense
from ..shown import Shown
from .piecewise_linear import PiecewiseFit
from .towers import MARGIN

STEEPER = 1.25  # caps are steeper than the samples need by this factor
TOLERANCE = 1e-9  # f_k >= f may be off by this share of the values of the pieces


@dataclass(frozen=True, repr=False)
class Lattice(Shown):
    """max_r min_{k in S_r} f_k(x): a scalar function of x, continuous and piecewise linear.

    `pieces` (n, d_x + 1) are the affine f_k, `sets` the S_r.
    """

    pieces: np.ndarray
    sets: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pieces: np.ndarray, regions: Sequence[tuple[int, np.ndarray]]) -> Lattice:
        """Return S_r = {k: f_k >= f on region r} for regions (selected piece, points (m, d_x)).

        The points stand for the region: all corners of a polytope, or the samples in it. Raises
        AssumptionError where the lattice is not the selected piece at some point; auxiliary pieces
        are then missing ([PWL] Figure 1b).
        """
        pieces, sets = np.asarray(pieces, np.float64), []
        for selected, points in regions:
            values = _values(pieces, points)
            near = TOLERANCE * (1 + abs(values[selected]))
            sets.append(tuple(np.flatnonzero((values >= values[selected] - near).all(axis=1))))
        lattice = cls(pieces, tuple(tuple(map(int, s)) for s in dict.fromkeys(sets)))
        for number, (selected, points) in enumerate(regions):
            expected = _values(pieces[selected : selected + 1], points)[0]
            wrong = abs(lattice(points) - expected) > TOLERANCE * (1 + abs(expected)) * 10
            if wrong.any():
                raise AssumptionError(
                    f"lattice: max-min is not piece {selected} at {wrong.sum()} of {len(points)} "
                    f"points of region {number}; expected auxiliary pieces between the regions"
                )
        return lattice

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the values (N,) at x (N, ...)."""
        values = _values(self.pieces, x)
        return np.max([values[list(s)].min(axis=0) for s in self.sets], axis=0)

    @property
    def depth(self) -> int:
        """Return the number of hidden layers: 1 for the pieces, then those of both trees."""
        longest = max(map(len, self.sets))
        return 1 + _levels(longest) + _levels(len(self.sets))

    def __str__(self) -> str:
        sets = ", ".join("{" + ", ".join(map(str, s)) + "}" for s in self.sets)
        return f"max over {len(self.sets)} minima of {len(self.pieces)} pieces: {sets}"


def lattices_of(fit: PiecewiseFit, x: np.ndarray) -> list[Lattice]:
    """Return for each output the lattice of the fit, with caps as auxiliary pieces if need be.

    Where the fits alone are no lattice on the samples x, each F_k gets steep pieces F_k - M (p.x -
    m_k) and F_k + M (p.x - m_{k-1}), which cut it off outside its group in any dimension.
    """
    if not isinstance(fit, PiecewiseFit):
        raise ValueError(f"fit: expected what fit_groups returns, got a {type(fit).__name__}")
    flat, groups, found = flattened(x), fit.groups, []
    for k in range(len(fit.fits[0].bias)):
        pieces = np.array([np.append(f.weights[k], f.bias[k]) for f in fit.fits])
        regions = [(r, flat[groups.labels == r]) for r in range(len(groups))]
        try:
            found.append(Lattice.of(pieces, regions))
        except AssumptionError:
            found.append(Lattice.of(_capped(pieces, groups, flat), regions))
    return found


def _capped(pieces: np.ndarray, groups, x: np.ndarray) -> np.ndarray:
    """Return the pieces, followed by the caps that cut each off on its sides."""
    values, rows = _values(pieces, x), list(pieces)
    selected = values[groups.labels, np.arange(len(x))]
    for r, piece in enumerate(pieces):
        for side, m in ((-1, r), (1, r - 1)):
            if 0 <= m < len(groups.thresholds):
                gate = np.append(groups.direction, -groups.thresholds[m])
                far = side * (x @ gate[:-1] + gate[-1])  # > 0 on the group's side
                beyond = far < 0
                M = ((values[r] - selected)[beyond] / -far[beyond]).max(initial=0.0)
                rows.append(piece + side * STEEPER * (M + 1) * gate)
    return np.array(rows)


def connected_pieces(fit: PiecewiseFit, x: np.ndarray) -> tuple[np.ndarray, list]:
    """Return the pieces and regions of a fit in one dimension, one output ([PWL] Figure 1).

    Neighbours that don't meet in the gap between their samples are connected by an auxiliary piece
    over the middle half of it. Regions are (piece, their two ends).
    """
    along = flattened(x)
    if along.shape[1] != 1 or len(fit.fits[0].bias) != 1:
        raise ValueError(
            f"connected pieces: expected inputs of one dimension and one output, got "
            f"{along.shape[1]} and {len(fit.fits[0].bias)}"
        )
    along = along[:, 0]
    lines = [np.array([f.weights[0, 0], f.bias[0]]) for f in fit.fits]
    order = np.argsort([along[fit.groups.labels == k].mean() for k in range(len(lines))])
    pieces, ends = [lines[order[0]]], [along.min()]
    for left, right in itertools.pairwise(order):
        a = along[fit.groups.labels == left].max()
        b = along[fit.groups.labels == right].min()
        (slope, offset), (slope2, offset2) = lines[left], lines[right]
        meet = (offset2 - offset) / (slope - slope2) if slope != slope2 else np.inf
        if a < meet < b:
            ends.append(meet)
        else:
            ends += [c := a + (b - a) / 4, d := b - (b - a) / 4]
            steep = ((slope2 * d + offset2) - (slope * c + offset)) / (d - c)
            pieces.append(np.array([steep, slope * c + offset - steep * c]))
        pieces.append(lines[right])
    ends.append(along.max())
    regions = [
        (n, np.array([[low], [high]])) for n, (low, high) in enumerate(itertools.pairwise(ends))
    ]
    return np.array(pieces), regions


def lattice_network(
    input_shape: tuple[int, ...], lattices: Sequence[Lattice], x: np.ndarray
) -> Parameters:
    """Return the network that computes one lattice for each output, in float64 ([PWL] 6.1.4).

    Hidden layers: all pieces, each with a bias that makes it positive on the samples x; then
    min(a, b) = sigma(b) - sigma(b - a) in binary trees, then max(a, b) = sigma(b) + sigma(a - b).
    The minima take as many layers as the longest S_r of all outputs needs, the maxima as the most
    S_r of one; smaller trees hand their value on.
    """
    flat = flattened(x)
    lift = MARGIN - min(0.0, *(float(_values(f.pieces, flat).min()) for f in lattices))
    rows = np.vstack([f.pieces for f in lattices])
    layers = [(rows[:, :-1], rows[:, -1] + lift)]
    layers += [(matrix, np.zeros(len(matrix))) for matrix in trees(lattices)]
    layers[-1] = layers[-1][0], layers[-1][1] - lift
    net = Network(input_shape, [Dense(len(matrix)) for matrix, _ in layers])
    theta = net.zeros()
    for number, (matrix, biases) in enumerate(layers, start=1):
        theta.W[number].weights[...] = matrix
        theta.b[number][...] = biases
    return theta


def trees(lattices: Sequence[Lattice]) -> list[np.ndarray]:
    """Return the matrices above a layer that holds all pieces, positive, lattice by lattice.

    The last one gives the outputs, one for each lattice; all biases are 0.
    """
    starts = np.cumsum([0, *(len(f.pieces) for f in lattices)])
    unit = np.eye(starts[-1])
    terms = [
        [[unit[start + k] for k in s] for s in f.sets]
        for f, start in zip(lattices, starts, strict=False)
    ]
    matrices: list[np.ndarray] = []
    for minimum, most in (
        (True, max(len(s) for f in lattices for s in f.sets)),
        (False, max(len(f.sets) for f in lattices)),
    ):
        for _ in range(_levels(most)):
            units = len(matrices[-1]) if matrices else len(unit)
            terms, matrix = _level(terms, units, minimum)
            matrices.append(matrix)
        if minimum:
            terms = [[[value for (value,) in sets]] for sets in terms]
    return [*matrices, np.array([value for ((value,),) in terms])]


def _level(terms: list, units: int, minimum: bool) -> tuple[list, np.ndarray]:
    """Pair the terms of every list: return the new terms, and the next layer's matrix.

    A term is a row of weights that reads the layer below, of `units` units.
    """
    rows: list[np.ndarray] = []
    paired = []
    for lists in terms:
        paired.append([])
        for values in lists:
            made = []
            for a, b in zip(values[::2], values[1::2], strict=False):
                rows += [b, b - a] if minimum else [b, a - b]
                made.append((len(rows) - 2, -1.0 if minimum else 1.0))
            if len(values) % 2:
                rows.append(values[-1])
                made.append((len(rows) - 1, None))
            paired[-1].append(made)
    matrix = np.array(rows).reshape(len(rows), units)
    unit = np.eye(len(rows))
    return [
        [
            [unit[n] if sign is None else unit[n] + sign * unit[n + 1] for n, sign in made]
            for made in lists
        ]
        for lists in paired
    ], matrix


@dataclass(frozen=True)
class SmallestCase:
    """max(f_1, f_2) or min(f_1, f_2), each optimal for the samples where it is selected.

    `theta` is a network of two hidden layers with two units ([PWL] Theorem 1).
    """

    theta: Parameters
    labels: np.ndarray
    risk: float
    maximum: bool


def smallest_cases(
    data: TrainingSet, loss: Loss, starts: int = 20, seed: int = 0
) -> list[SmallestCase]:
    """Return self-consistent pairs for one output, lowest risk first.

    Alternating fits from random directions: f_1 and f_2 are fitted to the samples where each is the
    larger (the smaller) one, until the samples no longer change. All are points of one network.
    Raises ValueError for more than one output, AssumptionError where no start gets there.
    """
    check_data(data)
    check_loss(loss)
    if data.y.shape[1] != 1:
        raise ValueError(f"smallest case: expected one output, got {data.y.shape[1]}")
    starts = whole_number("starts", starts)
    x, rng, found = flattened(data.x), generator(seed), {}
    for start in range(2 * starts):
        maximum = bool(start % 2)
        along = x @ rng.standard_normal(x.shape[1])
        labels = (along > np.quantile(along, rng.uniform(0.2, 0.8))).astype(int)
        seen: set[bytes] = set()
        while 0 < labels.sum() < len(x) and labels.tobytes() not in seen:
            seen.add(labels.tobytes())
            fits = [fit_affine(x[labels == k], data.y[labels == k], loss) for k in (0, 1)]
            values = np.array([f.weights[0] @ x.T + f.bias[0] for f in fits])
            chosen = (values[1] > values[0]) == maximum
            apart = abs(values[1] - values[0]).min() > TOLERANCE * abs(values).max()
            if (chosen == labels).all() and apart:
                pieces = np.array([np.append(f.weights[0], f.bias[0]) for f in fits])
                sets = ((0,), (1,)) if maximum else ((0, 1),)
                theta = lattice_network(data.x.shape[1:], [Lattice(pieces, sets)], data.x)
                key = (maximum, labels.tobytes() if labels[0] else (1 - labels).tobytes())
                risk = theta.net.risk(theta, data, loss)
                found[key] = SmallestCase(theta, labels, risk, maximum)
                break
            labels = chosen.astype(int)
    if not found:
        raise AssumptionError(f"smallest case: none of {2 * starts} starts is self-consistent")
    return sorted(found.values(), key=lambda case: case.risk)


def _levels(terms: int) -> int:
    """Return the height of a binary tree over so many terms."""
    return (terms - 1).bit_length()


def _values(pieces: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return f_k(x), (n, N)."""
    return pieces[:, :-1] @ flattened(x).T + pieces[:, -1:]
