"""Fields along which nothing changes that have to be solved for: weights that give 0 at few places.

- *few samples*: a map that is not constantly 0 at n different places only, fewer than its free
  weights, so that weights X of A = A_free X for a regular n x n matrix A_free undo each other:
  sum_i delta_i (A_frozen - A_free X)_i = 0.
- *exchanges* between units t that only one unit reads, with weights a_t, for signs c_t with
  sum_t c_t slope_t = 0 but for few places, at which they may be held too: (w, b)_t += c_t (product
  of the other a) x for weights x that give 0 at these places, if any. The product with grad L is
  that of all a times sum (dL/da-signal above) (sum_t c_t slope_t) (x . o) = 0. Where a unit reads 0
  wherever it counts its weight need not move. Two units that are active together are exchanged by
  c = (1, -1); a third one that is active where one of them is by (1, 1, -1). Slopes are products of
  those on the way to the unit above, through sums of residual blocks too.
- *exchanges* between m + 1 units that m units of a dense layer read, where they differ in slope or
  are held at few places: (w, b)_t += c_t x, with P c = 0 and P (m, m + 1) the weights above:
  sum_t delta_t c_t (x . o) = 0 elsewhere. Of the outputs of the softmax, one less counts: P are the
  rows of their weights less the last one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse

from ..engine.held import Held
from ..engine.losses import CrossEntropy
from ..engine.parameters import Parameters
from ..layers import Dense
from .box_hessians import reads
from .families import Symmetry
from .generators import INDEPENDENT, Reach
from .streams import Level, downstream, group_read, incoming, outgoing

MOST = 20_000  # choices of signs that are tried
MOST_SETS = 500  # of units that several read, so that many of one pattern do not take for ever
EXCHANGES = 100  # of more than two units, the fewest ones, that are taken


@dataclass(frozen=True)
class Interpolation:
    """The rows that the weights of one map read at different places, more columns than rows.

    `symmetry` with its layer, `places` (position, sample) of the rows, `columns` the numbers of its
    weights, the bias last, `solved` those of a regular square matrix, `rest` the others;
    `coordinates` and `sizes` of all. They read the maps below of one `group`. `ends` are those that
    an exchange moves, for few samples the map itself. Where several units read, all ends but the
    first one move by shares that `weights` (m, m + 1) give, the numbers of P, with `last` (m + 1,)
    those of the last output of the softmax, if that is above.
    """

    symmetry: Symmetry
    positions: np.ndarray
    samples: np.ndarray
    solved: np.ndarray
    rest: np.ndarray
    coordinates: np.ndarray
    sizes: np.ndarray
    group: int
    ends: tuple[End, ...]
    weights: np.ndarray | None = None
    last: np.ndarray | None = None


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
    held: Held,
    levels: dict[int, Level],
    reaches: dict[int, Reach],
    layer: int,
    labels: np.ndarray,
    taken: np.ndarray,
    theta: Parameters,
) -> list[Interpolation]:
    """Return the generators that exchange between units which one layer alone reads."""
    at = reaches[layer]
    between, readers, more = downstream(held.net, layer)
    if at.slopes is None or at.step.W.positions_out > 1 or more or len(readers) != 1:
        return []
    if any(levels[n].is_smooth for n in between):
        return []
    slopes = at.slopes
    for n in between:
        slopes = slopes if levels[n].slopes is None else slopes * levels[n].slopes
    at, [above] = at._replace(slopes=slopes), readers
    if held.net.shapes[above] == (1,):
        return _of_one_reader(held, levels, at, above, labels, taken)
    if isinstance(held.net.chain[above - 1], Dense):
        return _of_readers(held, levels, at, reaches[above], labels, taken, theta)
    return []


def _of_one_reader(
    held: Held,
    levels: dict[int, Level],
    at: Reach,
    above: int,
    labels: np.ndarray,
    taken: np.ndarray,
) -> list[Interpolation]:
    """Return the generators that exchange between units which one unit alone reads."""
    W, layer, found = at.step.W, at.step.layer, []
    units = np.flatnonzero(at.matters.any(axis=1))
    if len(units) < 2:
        return []
    slopes = np.where(at.matters, at.slopes, 0.0)[units]
    own = np.array([incoming(held, layer, t) for t in units])
    top = levels[above].step.W
    out = np.array([outgoing(held, top, above, t)[0, 0] for t in units])
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


def _of_readers(
    held: Held,
    levels: dict[int, Level],
    at: Reach,
    above: Reach,
    labels: np.ndarray,
    taken: np.ndarray,
    theta: Parameters,
) -> list[Interpolation]:
    """Return the generators that exchange between one unit more than the units that read them."""
    layer, n, found, last = at.step.layer, above.step.layer, [], None
    out = [outgoing(held, levels[n].step.W, n, t)[:, 0] for t in range(at.step.W.maps_out)]
    out = np.array(out).T[above.matters.any(axis=1)]
    softmax = type(held.loss) is CrossEntropy and n == held.net.depth
    if softmax and above.step.activation is None:
        out, last = out[:-1], out[-1]
    for maps in _nearly_equal(at, labels, len(out) + 1) if len(out) else ():
        P = theta.vector[out[:, maps]] - (0 if last is None else theta.vector[last[maps]])
        _, R, order = scipy.linalg.qr(P, mode="economic", pivoting=True)
        if abs(R[-1, len(out) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            continue
        maps = np.roll(maps[order], 1)
        own = [incoming(held, layer, t) for t in maps]
        one = _interpolating(held, at, labels, maps[0], taken, _differ(at, maps)[None])
        if one is None or any(taken[other[~taken[own[0]]]].any() for other in own):
            continue
        ends = tuple(End(coordinates, np.ones(len(coordinates))) for coordinates in own)
        symmetry = Symmetry("exchange", layer, tuple(sorted(maps.tolist())))
        below = None if last is None else last[maps]
        one = replace(one, symmetry=symmetry, ends=ends, weights=out[:, maps], last=below)
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
        if group_read(W, a) != group_read(W, b):
            return False
        return len(np.unique(labels[0, _differ(at, [a, b])])) < few

    pairs = {(a, b) for a in some.tolist() for b in some.tolist() if a < b and near(a, b)}
    sets = [(a,) for a in some.tolist()]
    for _ in range(count - 1):
        longer = (
            (*one, b) for one in sets for b in some.tolist() if all((a, b) in pairs for a in one)
        )
        sets = list(itertools.islice(longer, MOST_SETS))
    return [np.array(one) for one in sets]


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

    The slopes (units, places) are NaN at held units. Each of the others that is not 0 has to cancel
    by itself.
    """
    kept = np.isnan(slopes)
    odd = abs(signs) @ kept.astype(float) > 0
    for value in np.unique(slopes[~kept & (slopes != 0)]):
        odd = odd | (signs @ (slopes == value).astype(float) != 0)
    return odd


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
    sizes = at.sizes[coordinates]
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
        A = A[:, columns] * sizes[columns]
        _, R, order = scipy.linalg.qr(A, mode="economic", pivoting=True)
        if abs(R[-1, len(samples) - 1]) <= INDEPENDENT * abs(R[0, 0]):
            return None
        solved, rest = columns[order[: len(samples)]], columns[order[len(samples) :]]
    symmetry = Symmetry("few samples", at.step.layer, (t,))
    ends = (End(coordinates, np.ones(len(coordinates))),)
    return Interpolation(
        symmetry, positions, samples, solved, rest, coordinates, sizes, group, ends
    )


def _moves(at: Reach, group: int) -> np.ndarray:
    """Return whether what weights and bias of a dense layer read is not 0, (weights + 1, N)."""
    found = reads(at.step.W.inner, at.moves.astype(float))[group, :, 0] != 0
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
