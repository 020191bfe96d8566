"""Which kinks are the same function of theta: equal kinks count as one.

Places (position, sample) of a layer get a label, and two have the same one only where z^l is the
same function of theta nearby, exactly: where the maps below are read at places with equal labels,
on the same pieces of the activation, or give 0 there. What gives 0 is the padding, an input that is
0, and a unit of ReLU that is inactive. So equal patches of images have equal labels in the first
layer, and samples for which all units below are inactive in the next one.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..layers import WeightMatrix
from .backend import to_numpy
from .held import Held, HeldKink, View
from .parameters import Parameters

PIECES = 3  # of an activation: inactive, active, held


class EqualKinks:
    """The kinks of a network on data, equal ones as one, with the patterns that theta has.

    `held` are the kinks that theta is held at already, `seen` what `Held.view` or `Held.forward`
    found there, and `before` the same of another point for the same data, if these are known.
    """

    def __init__(
        self,
        theta: Parameters,
        data: TrainingSet,
        held: Held,
        seen: View | None = None,
        before: EqualKinks | None = None,
    ):
        self.net, self.data = theta.net, data
        seen = held.forward(theta)[2] if seen is None else seen
        self.choices = {
            n: to_numpy(c) for n, c in enumerate(seen.choices, start=1) if c is not None
        }
        self.pieces = {n: self._pieces(n, to_numpy(seen.z[n - 1])) for n in theta.net.kinked_layers}
        ties: dict[int, list[HeldKink]] = {}
        for kink in held.kinks:
            if kink.pairs is not None:
                ties.setdefault(kink.layer, []).append(kink)
            elif kink.layer <= theta.net.depth:
                self.pieces[kink.layer][kink.units, kink.samples] = 2
        self.alone: dict[int, np.ndarray] = {}
        self.tokens, self.labels, first = [], {}, self.net.leading_poolings + 1
        if before is None:
            self.tokens = [_numbered(data.x.reshape(len(data), -1).T)]
        else:  # these depend on the inputs alone
            self.tokens = before.tokens[:first]
            self.labels = {n: labels for n, labels in before.labels.items() if n == first}
        for layer in range(len(self.tokens), self.net.depth + 1):
            W = theta.W[layer]
            self.tokens.append(self._above(layer, W, ties.get(layer, [])))

    def _pieces(self, layer: int, z: np.ndarray) -> np.ndarray:
        """Return -1 where a unit gives 0, else 0 for the lower piece and 1 for the upper one."""
        return np.where(z > 0, 1, 0 if self.net.activation_of(layer).slope else -1)

    def kink(self, layer: int, unit: int, sample: int) -> HeldKink:
        """Return the kink of a unit of z^l, or an output for layer L + 1, with all equal ones."""
        level = min(layer, self.net.depth)
        positions = self.net.positions(level)
        t, p = divmod(unit, positions)
        if layer <= self.net.depth:
            if self._alone(layer)[p, sample]:
                return HeldKink(layer, t, np.array([unit]), np.array([sample]))
            same = self.labels[level] == self.labels[level][p, sample]
        else:
            tokens = self.tokens[level].reshape(-1, positions, len(self.data))[t]
            same = tokens == tokens[p, sample]
            y = self.data.y.T.reshape(-1, positions, len(self.data))[t]
            same = same & (y == y[p, sample])
        places, samples = np.nonzero(same)
        return HeldKink(layer, t, t * positions + places, samples)

    def _alone(self, layer: int) -> np.ndarray:
        """Return for each place of a layer whether no other one has its label."""
        if layer not in self.alone:
            labels = self.labels[layer]
            self.alone[layer] = (np.bincount(labels.ravel()) == 1)[labels]
        return self.alone[layer]

    def tie(self, layer: int, W: WeightMatrix, o: np.ndarray, a: int, b: int, sample: int):
        """Return the tie of the entries a and b of o^{l-1} in a max pooling, with all equal ones.

        `o` (n_{l-1}, N) are the outputs below. None where both are the same function of theta, and
        where one of them is 0, held or not: then the kink is that of the unit itself.
        """
        tokens = self.tokens[layer - 1]
        first, second = sorted((tokens[a, sample], tokens[b, sample]))
        if first == second or first == 0 or o[a, sample] == 0 or o[b, sample] == 0:
            return None
        windows, values = W.windows(tokens), W.windows(o)
        rows = W.windows(np.arange(len(o))[:, None])[..., 0]
        inside = np.zeros(values.shape[1], dtype=bool)
        positions = self.net.positions(layer)
        t = int(np.nonzero((rows == a).any(axis=0))[0][0]) // positions
        inside[t * positions : (t + 1) * positions] = True
        one, other = windows == second, windows == first
        best = np.take_along_axis(windows, values.argmax(axis=0)[None], axis=0)[0]
        same = one.any(axis=0) & other.any(axis=0) & ((best == first) | (best == second))
        units, samples = np.nonzero(same & inside[:, None])
        which = one.argmax(axis=0)[units, samples], other.argmax(axis=0)[units, samples]
        pairs = np.stack([rows[entry, units] for entry in which], axis=1)
        return HeldKink(layer, t, units, samples, pairs)

    def _above(self, layer: int, W: WeightMatrix, ties: list[HeldKink]) -> np.ndarray:
        """Return what stands for the function that each unit of o^l is of theta, (n_l, N)."""
        below, (n, _), N = self.tokens[-1], W.shape, len(self.data)
        if W.selects:
            windows = W.windows(below)
            tokens = np.take_along_axis(windows, self.choices[layer][None], axis=0)[0]
            for kink in ties:
                a, b = below[kink.pairs[:, 0], kink.samples], below[kink.pairs[:, 1], kink.samples]
                # the pair of two functions: above all numbers of single ones
                tokens[kink.units, kink.samples] = (1 + a) * (1 + below.max()) + b
            return _numbered(tokens)
        maps = below.reshape(W.maps_in, W.positions_in, N)
        if W.weights is None:
            windows = np.stack([_combined(np.sort(W.gathered(o), axis=0)) for o in maps])
            return windows.reshape(n, N)
        if layer not in self.labels:
            read = np.concatenate([W.gathered(o.astype(float)) for o in maps])
            self.labels[layer] = _combined(read)
        labels = self.labels[layer]
        tokens = np.broadcast_to(labels, (W.maps_out, *labels.shape)).reshape(n, N)
        if layer in self.pieces:
            pieces = self.pieces[layer]
            return np.where(pieces < 0, 0, PIECES * tokens + pieces + 1)
        return tokens + 1


def _combined(read: np.ndarray) -> np.ndarray:
    """Return numbers (P, N) from 0 on that agree where all of `read` (K, P, N) does."""
    found = np.zeros(read[0].size, dtype=np.int64)
    for row in read:
        values = _ranked(row.ravel())
        found = _ranked(found * (values.max() + 1) + values)
        if found.max() + 1 == found.size:
            break
    return found.reshape(read.shape[1:])


def _numbered(values: np.ndarray) -> np.ndarray:
    """Return numbers that agree where the values do: 0 for 0, from 1 on for the others."""
    return np.where(values == 0, 0, 1 + _ranked(values.ravel()).reshape(values.shape))


def _ranked(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1)
