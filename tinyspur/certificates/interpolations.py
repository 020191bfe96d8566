"""Fields along which nothing changes that have to be solved for: weights that give 0 at few places.

- *few samples*: a map that is not constantly 0 at n different places only, fewer than its free
  weights, so that weights X of A = A_free X for a regular n x n matrix A_free undo each other:
  sum_i delta_i (A_frozen - A_free X)_i = 0.
- *exchanges* between units t that only one unit above reads, with weights a_t, for signs c_t with
  sum_t c_t slope_t = 0 but for few places, at which they may be held too: (w, b)_t += c_t (product
  of the other a) x for weights x that give 0 at these places, if any. The product with grad L is
  that of all a times sum (dL/da-signal above) (sum_t c_t slope_t) (x . o) = 0. Where a unit reads 0
  wherever it counts its weight need not move. Two units that are active together are exchanged by
  c = (1, -1); a third one that is active where one of them is by (1, 1, -1).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse

from ..engine.held import Held
from .box_hessians import reads
from .families import Symmetry
from .generators import INDEPENDENT, Reach, group_read, incoming, layer_above, outgoing

MOST = 20_000  # choices of signs that are tried
EXCHANGES = 100  # of more than two units, the fewest ones, that are taken


@dataclass(frozen=True)
class Interpolation:
    """The rows that the weights of one map read at different places, more columns than rows.

    `symmetry` with its layer, `places` (position, sample) of the rows, `columns` the numbers of its
    weights, the bias last, `solved` those of a regular square matrix, `rest` the others;
    `coordinates` of all. They read the maps below of one `group`. `ends` are those that an exchange
    moves, for few samples the map itself.
    """

    symmetry: Symmetry
    positions: np.ndarray
    samples: np.ndarray
    solved: np.ndarray
    rest: np.ndarray
    coordinates: np.ndarray
    group: int
    ends: tuple[End, ...]


@dataclass(frozen=True)
class End:
    """The coordinates of a map that move by `factors` times the product of theta at `others`."""

    coordinates: np.ndarray
    factors: np.ndarray
    others: tuple[int, ...] = ()


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
    held: Held, reaches: dict[int, Reach], layer: int, labels: np.ndarray, taken: np.ndarray
) -> list[Interpolation]:
    """Return the generators that exchange between units which one unit alone reads."""
    at, above, found = reaches[layer], layer_above(held, layer), []
    W = at.step.W
    if at.slopes is None or above is None or above != layer + 1 or W.positions_out > 1:
        return []
    if held.net.shapes[above] != (1,):
        return []
    units = np.flatnonzero(at.matters.any(axis=1))
    if len(units) < 2:
        return []
    slopes = np.where(at.matters, at.slopes, 0.0)[units]
    own = np.array([incoming(held, layer, t) for t in units])
    out = np.array([outgoing(held, reaches, above, t)[0, 0] for t in units])
    groups = np.array([group_read(W, t) for t in units])
    _, first = np.unique(labels[0], return_index=True)
    signs = _signs(len(units))
    few = signs[_few(slopes[:, first], signs, _moves(at, groups[0])[:, first])]
    pairs = int((abs(few).sum(axis=1) == 2).sum())
    for c in few[: pairs + EXCHANGES]:
        some = np.flatnonzero(c)
        if len(set(groups[some])) > 1:
            continue
        factors = c[some, None] * ~taken[own[some]]
        others = [tuple(out[some[some != t]]) for t in some]
        ends = tuple(map(End, own[some], factors, others))
        symmetry = Symmetry("exchange", layer, tuple(units[some].tolist()))
        used = _odd(slopes, c[None])[0][None]
        for n, t in enumerate(some):
            if any((taken[own[u]] <= taken[own[t]]).all() for u in some[:n]):
                continue  # a unit before it moves as many
            one = _interpolating(held, at, labels, units[t], taken, used)
            if one is not None:
                found.append(replace(one, symmetry=symmetry, ends=ends))
    return found


def _signs(units: int) -> np.ndarray:
    """Return choices of 1 and -1 for some units, 0 for the others, the fewest units first."""
    found: list[np.ndarray] = []
    for size in range(2, units + 1):
        if len(found) + math.comb(units, size) * 2 ** (size - 1) > MOST:
            break
        for some in itertools.combinations(range(units), size):
            for rest in itertools.product((1.0, -1.0), repeat=size - 1):
                row = np.zeros(units)
                row[list(some)] = (1.0, *rest)
                found.append(row)
    return np.array(found).reshape(-1, units)


def _odd(slopes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return where sum_t c_t slope_t is not 0, or a unit is held, (choices, places).

    The slopes (units, places) are 0, 1 and one more, NaN at held units.
    """
    kept, ones = np.isnan(slopes), slopes == 1
    between = ~kept & ~ones & (slopes != 0)
    odd = (signs @ ones.astype(float) != 0) | (signs @ between.astype(float) != 0)
    return odd | (abs(signs) @ kept.astype(float) > 0)


def _few(slopes: np.ndarray, signs: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Return the choices of signs for which k weights, for some k, read 0 but at < k odd places."""
    patterns, which = np.unique(slopes, axis=1, return_inverse=True)
    order, found = np.argsort(which.reshape(-1), kind="stable"), []
    starts = np.searchsorted(which.reshape(-1)[order], np.arange(patterns.shape[1]))
    counts = np.add.reduceat(moves[:, order].astype(float), starts, axis=1).T
    for part in np.array_split(signs, 1 + len(signs) // 1000):
        places = np.sort(_odd(patterns, part).astype(float) @ counts, axis=1)
        found.append((places <= np.arange(places.shape[1])).any(axis=1))
    return np.flatnonzero(np.concatenate(found))


def _interpolating(
    held: Held, at: Reach, labels: np.ndarray, t: int, taken: np.ndarray, used: np.ndarray
) -> Interpolation | None:
    """Return what the weights of a map read at places (positions, N), where these are few.

    Or some of the weights, which read 0 but at few of the places.
    """
    coordinates, group = incoming(held, at.step.layer, t), group_read(at.step.W, t)
    columns = np.flatnonzero(~taken[coordinates])
    positions, samples = np.nonzero(used)
    _, first = np.unique(labels[positions, samples], return_index=True)
    positions, samples = positions[first], samples[first]
    if len(first) >= len(columns) and at.step.W.positions_out == 1:
        moves = _moves(at, group)[:, samples]
        some, places = fewest_places(moves[columns])
        columns, positions, samples = columns[some], positions[places], samples[places]
    if len(samples) >= len(columns):
        return None
    solved, rest = columns[:0], columns
    if len(samples):
        read = reads(at.step.W, np.ascontiguousarray(at.step.below[:, samples]))
        A = read[group, :, positions, np.arange(len(samples))]
        A = A[:, columns] * at.sizes[coordinates[columns]]
        _, R, order = scipy.linalg.qr(A, mode="economic", pivoting=True)
        if abs(R[-1, len(samples) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            return None
        solved, rest = columns[order[: len(samples)]], columns[order[len(samples) :]]
    symmetry = Symmetry("few samples", at.step.layer, (t,))
    ends = (End(coordinates, np.ones(len(coordinates))),)
    return Interpolation(symmetry, positions, samples, solved, rest, coordinates, group, ends)


def _moves(at: Reach, group: int) -> np.ndarray:
    """Return whether what weights and bias of a dense layer read is not 0, (weights + 1, N)."""
    found = reads(at.step.W, at.moves.astype(float))[group, :, 0] != 0
    return found if at.step.b is not None else found[:-1]


def fewest_places(moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return columns that read something at fewer places than they are, and these places.

    `moves` (columns, places). The columns exceed the places by as many as a largest matching
    leaves out: they are those that alternating paths lead to from there (Koenig).
    """
    graph = scipy.sparse.csr_array(moves)
    place_of = scipy.sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column")
    chosen = place_of < 0
    while True:
        places = moves[chosen].any(axis=0)
        more = chosen | ((place_of >= 0) & places[place_of])
        if (more == chosen).all():
            return np.flatnonzero(chosen), np.flatnonzero(places)
        chosen = more
