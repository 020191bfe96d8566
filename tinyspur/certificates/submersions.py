"""Fields along which few values stay as they are, through which alone L depends on parameters.

Let L depend on parameters P only through values Q, z of some units at some samples and v_K of
kinks, fewer than P. Where J = dQ/dP has full rank, with a regular part J_s of as many columns as
rows and the others J_r, the fields delta_r - J_s^-1 J_r delta_r keep Q, and with it L whatever the
multipliers are, and all v_K. Such Q and P are

- all z^l of a layer that count, if these are few, and the kinks below; the parameters up to there,
- the z^l that a map below has an influence on, if it is active for few samples, and the kinks of
  the map; its incoming and outgoing weights,
- the same of several units of a layer, between dense ones. Where these units have the same slopes
  for many samples, what they add to z^l there is affine in what they read, so as many samples
  as that has entries stand for all: J has full rank only if these determine an affine function.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held, HeldKink
from ..engine.parameters import Parameters
from ..layers import Dense
from .box_hessians import gradients_of, reads
from .boxes import Box
from .enclosed_algebra import solve
from .enclosures import Enclosure, exact
from .families import Symmetry
from .generators import INDEPENDENT, Reach
from .sizes import powers_of_two
from .streams import downstream, incoming, outgoing

RESTORING = 6  # Newton steps


@dataclass(frozen=True)
class Submersion:
    """Values Q, as those of kinks at which no unit needs to be held, and the coordinates P.

    `solved` are as many as the values, `rest` the others, `sizes` those of all parameters.
    """

    symmetry: Symmetry
    values: tuple[HeldKink, ...]
    solved: np.ndarray
    rest: np.ndarray
    sizes: np.ndarray

    def fields(self, held: Held, box: Box) -> Enclosure | None:
        """Return a field for each of the rest over a box, (rest, p), or None if J_s may not be
        regular.
        """
        some = np.sort(np.concatenate([self.solved, self.rest]))
        J = gradients_of(held, box, self.values, some) * self.sizes[some]
        J = J * (1 / powers_of_two(abs(J.middle).max(axis=1)))[:, None]
        solved, rest = (np.searchsorted(some, part) for part in (self.solved, self.rest))
        X = solve(J[:, solved], J[:, rest])
        if X is None:
            return None
        X = X * self.sizes[self.solved][:, None] * (1 / self.sizes[self.rest])
        rows = exact(np.zeros((len(self.rest), held.net.size)))
        rows.middle[np.arange(len(self.rest)), self.rest] = 1
        rows.middle[:, self.solved], rows.radius[:, self.solved] = -X.middle.T, X.radius.T
        return rows

    def restored(self, held: Held, theta: Parameters, point: Parameters) -> Parameters:
        """Return the point with the solved coordinates at which the values are those at theta."""
        both = held.at_kinks(tuple(dict.fromkeys([*held.kinks, *self.values])))
        which = [both.kinks.index(kink) for kink in self.values]
        before, scale = both.values(theta)[which], self.sizes[self.solved]
        for _ in range(RESTORING):
            J = held.jacobian(point, self.values)[:, self.solved] * scale
            step = np.linalg.lstsq(J, before - both.values(point)[which])[0] * scale
            point = point.copy()
            point.vector[self.solved] += step
        return point


def submersions(
    held: Held,
    reaches: dict[int, Reach],
    equal: EqualKinks,
    taken: np.ndarray,
    theta: Parameters,
) -> list[Submersion]:
    """Return the few values of layers, and around maps, that L depends on some parameters by."""
    found = []
    some = (*_layers(held, reaches, taken), *_maps(held, reaches, taken))
    for symmetry, places, kinks, P in (*some, *_units(held, reaches, taken)):
        most = len(P) - len(kinks)  # one more than there may be
        values = list(itertools.islice(_distinct(equal, symmetry.layer, places), max(most, 0)))
        values += kinks
        if not 0 < len(values) < len(P):
            continue
        sizes = next(iter(reaches.values())).sizes
        J = held.jacobian(theta, values)[:, P] * sizes[P]
        J = J / np.maximum(abs(J).max(axis=1), 1e-300)[:, None]
        _, R, order = scipy.linalg.qr(J, mode="economic", pivoting=True)
        if abs(R[-1, len(values) - 1]) > INDEPENDENT * abs(R[0, 0]):
            solved, rest = np.split(P[order], [len(values)])
            found.append(Submersion(symmetry, tuple(values), solved, rest, sizes))
    return found


# Each with a symmetry, the places (n_l, N) of its z^l, further kinks, and the coordinates P.
Few = tuple[Symmetry, np.ndarray, list[HeldKink], np.ndarray]


def _layers(held: Held, reaches: dict[int, Reach], taken: np.ndarray) -> Iterator[Few]:
    """Yield all that counts of a layer, and all parameters up to there."""
    net, first = held.net, min(reaches)
    for layer, at in reaches.items():
        if layer == first or any(len(state) > 1 for state in net.states[: layer + 1]):
            continue
        P = np.flatnonzero(~taken[: net.slots[layer].all.stop])
        below = [kink for kink in held.kinks if kink.layer < layer]
        maps = np.flatnonzero(at.matters.reshape(at.step.W.maps_out, -1).any(axis=1))
        yield Symmetry("few values", layer, tuple(maps.tolist())), at.matters, below, P


def _maps(held: Held, reaches: dict[int, Reach], taken: np.ndarray) -> Iterator[Few]:
    """Yield what a map that is not always active has an influence on, and its weights."""
    for layer, at in reaches.items():
        _, readers, more = downstream(held.net, layer)
        if more or len(readers) != 1 or any(len(state) > 1 for state in held.net.states):
            continue
        above = reaches[readers[0]]
        W, ones = above.step.W.inner, np.ones_like(above.step.W.weights)
        for t in range(at.step.W.maps_out):
            own = np.zeros_like(above.moves)
            units = slice(t * W.positions_in, (t + 1) * W.positions_in)
            own[units] = above.moves[units]
            places = above.matters & (W.with_weights(ones) @ own.astype(float) > 0)
            out = outgoing(held, above.step.W, readers[0], t).ravel()
            P = np.concatenate([incoming(held, layer, t), out])
            kinks = [k for k in held.kinks if layer <= k.layer < readers[0] and k.map == t]
            yield Symmetry("few values", readers[0], (t,)), places, kinks, P[~taken[P]]


def _units(held: Held, reaches: dict[int, Reach], taken: np.ndarray) -> Iterator[Few]:
    """Yield what units of a layer between dense ones add up to, where it has few dimensions.

    From each unit on, the set grows by the unit that most weights are left over with.
    """
    for layer, at in reaches.items():
        between, readers, more = downstream(held.net, layer)
        dense = at.slopes is not None and at.step.W.positions_out == at.step.W.groups == 1
        if more or between or len(readers) != 1 or not dense:
            continue
        if not isinstance(held.net.chain[readers[0] - 1], Dense):
            continue
        sums, tried = _Sums(held, at, reaches[readers[0]], taken), set()
        for seed in np.flatnonzero(at.matters.any(axis=1)).tolist():
            units, spare = (seed,), sums.spare((seed,))
            while True:
                more = [(*units, u) for u in sums.units if u not in units]
                best = max(more, key=sums.spare, default=units)
                if sums.spare(best) <= spare:
                    break
                units, spare = best, sums.spare(best)
            units = tuple(sorted(units))
            if len(units) > 1 and spare > 0 and units not in tried:
                tried.add(units)
                yield sums.of(units)


class _Sums:
    """What units of a layer add to what a dense layer above computes."""

    def __init__(self, held: Held, at: Reach, above: Reach, taken: np.ndarray):
        self.held, self.at, self.above, self.taken = held, at, above, taken
        self.units = np.flatnonzero(at.matters.any(axis=1)).tolist()
        self.pieces = np.where(np.isnan(at.slopes), 2.0, at.slopes)
        _, numbers = np.unique(self.pieces, return_inverse=True)  # a bit or two each
        self.numbers = numbers.reshape(self.pieces.shape)
        self.readers = above.matters.astype(float)
        self.read = reads(at.step.W, at.step.below)[0, :, 0]  # (weights + 1, N)
        self.kinks = [kink for kink in held.kinks if kink.layer == at.step.layer]
        self.known: dict[tuple[int, ...], int] = {}

    def spare(self, units: tuple[int, ...]) -> int:
        """Return by how many the weights of units are more than the values they add up to."""
        key = tuple(sorted(units))
        if key not in self.known:
            columns, count = len(self._columns(key)), sum(k.map in key for k in self.kinks)
            which, some = self._classes(key)
            sizes = np.stack([np.bincount(which, row, len(some)) for row in self.readers])
            count += int(np.minimum(sizes[:, some], columns).sum())
            self.known[key] = len(self._coordinates(key)) - count
        return self.known[key]

    def of(self, units: tuple[int, ...]) -> Few:
        """Return the values that some units add up to, and the coordinates that these depend on."""
        columns, places = self._columns(units), np.zeros_like(self.above.matters)
        which, classes = self._classes(units)
        for n in np.flatnonzero(classes):
            members = np.flatnonzero(which == n)
            for j, counts in enumerate(self.above.matters[:, members]):
                some = members[counts]
                if len(some) > len(columns):
                    A = self.read[np.ix_(columns, some)]
                    _, R, order = scipy.linalg.qr(A, mode="economic", pivoting=True)
                    sizes = abs(np.diag(R))
                    if sizes[-1] > INDEPENDENT * sizes[0]:
                        some = some[order[: len(columns)]]
                places[j, some] = True
        kinks = [kink for kink in self.kinks if kink.map in units]
        symmetry = Symmetry("few values", self.above.step.layer, units)
        return symmetry, places, kinks, self._coordinates(units)

    def _columns(self, units: tuple[int, ...]) -> np.ndarray:
        """Return which of the weights and the bias any of the units has."""
        own = [~self.taken[incoming(self.held, self.at.step.layer, u)] for u in units]
        return np.flatnonzero(np.any(own, axis=0))

    def _classes(self, units: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return a number for the slopes that the units have for each sample, (N,), and for each
        number whether these are not all 0.
        """
        which = np.zeros(self.numbers.shape[1], dtype=int)
        for row in self.numbers[list(units)]:  # numbered anew, so that none is large
            which = np.unique(which * (self.numbers.max() + 1) + row, return_inverse=True)[1]
        first = np.unique(which, return_index=True)[1]
        return which, self.pieces[list(units)][:, first].any(axis=0)

    def _coordinates(self, units: tuple[int, ...]) -> np.ndarray:
        """Return the weights and biases of the units, what reads them, and, where units have
        biases, those above if no sample has only slopes of 0.
        """
        layer, above, held = self.at.step.layer, self.above.step, self.held
        parts = [incoming(held, layer, u) for u in units]
        parts += [outgoing(held, above.W, above.layer, u).ravel() for u in units]
        slot = held.net.slots[above.layer]
        if self.at.step.b is not None and self.pieces[list(units)].any(axis=0).all():
            parts.append(np.arange(slot.weights.stop, slot.all.stop))
        P = np.concatenate(parts)
        return P[~self.taken[P]]


def _distinct(equal: EqualKinks, layer: int, places: np.ndarray) -> Iterator[HeldKink]:
    """Yield the places of a layer as kinks, those that are the same function of theta once."""
    left = places.copy()
    for unit, sample in np.argwhere(places):
        if left[unit, sample]:
            kink = equal.kink(layer, int(unit), int(sample))
            left[kink.units, kink.samples] = False
            yield HeldKink(layer, kink.map, kink.units[:1], kink.samples[:1])
