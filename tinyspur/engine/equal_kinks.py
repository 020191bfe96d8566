"""Which kinks are the same function of theta: equal kinks count as one.

Places (position, sample) of a layer get a label, and two have the same one only where z^l is the
same function of theta nearby, exactly: where the maps below are read at places with equal labels,
on the same pieces of the activation, or give 0 there. What gives 0 is the padding, an input that is
0, a unit of ReLU that is inactive, and averages and sums of these. So equal patches of images have
equal labels in the first layer, and samples for which all units below are inactive in the next one.
In layers without weights, and in sums of residual blocks, each map has labels of its own.
"""

from __future__ import annotations

import math

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
        self.pieces = {n: self._pieces(n, to_numpy(seen.z[n - 1])) for n in theta.net.bent_layers}
        ties: dict[int, list[HeldKink]] = {}
        for kink in held.kinks:
            if kink.pairs is not None:
                ties.setdefault(kink.layer, []).append(kink)
            elif kink.layer <= theta.net.depth:
                self.pieces[kink.layer][kink.units, kink.samples] = 2
        self.alone: dict[tuple[int, int], np.ndarray] = {}
        self.functions: dict[int, np.ndarray] = {}  # what stands for z^l, 0 where it is always 0
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
        z = z[: math.prod(self.net.shapes[layer])]
        return np.where(z > 0, 1, 0 if self.net.activation_of(layer).slope else -1)

    def kink(self, layer: int, unit: int, sample: int) -> HeldKink:
        """Return the kink of a unit of z^l, or an output for layer L + 1, with all equal ones."""
        level = min(layer, self.net.depth)
        positions = self.net.positions(level)
        t, p = divmod(unit, positions)
        if layer <= self.net.depth:
            if self._alone(layer, t)[p, sample]:
                return HeldKink(layer, t, np.array([unit]), np.array([sample]))
            tokens = self._of_map(layer, t)
            same = tokens == tokens[p, sample]
        else:
            tokens = self.tokens[level].reshape(-1, positions, len(self.data))[t]
            same = tokens == tokens[p, sample]
            y = self.data.y.T.reshape(-1, positions, len(self.data))[t]
            same = same & (y == y[p, sample])
        places, samples = np.nonzero(same)
        return HeldKink(layer, t, t * positions + places, samples)

    def never_moves(self, layer: int) -> np.ndarray:
        """Return which z^l are 0 for all parameters nearby, without what a block keeps, (n, N)."""
        return self.functions[layer] == 0

    def _of_map(self, layer: int, t: int) -> np.ndarray:
        """Return what stands for the function that z^l is at each place of a map."""
        if layer in self.labels:
            return self.labels[layer]
        return self.functions[layer].reshape(-1, self.net.positions(layer), len(self.data))[t]

    def _alone(self, layer: int, t: int) -> np.ndarray:
        """Return for each place of a map whether no other one has its label."""
        key = layer, 0 if layer in self.labels else t
        if key not in self.alone:
            labels = _ranked(self._of_map(layer, t).ravel()).reshape(-1, len(self.data))
            self.alone[key] = (np.bincount(labels.ravel()) == 1)[labels]
        return self.alone[key]

    def tie(self, layer: int, W: WeightMatrix, o: np.ndarray, a: int, b: int, sample: int):
        """Return the tie of the entries a and b of o^{l-1} in a max pooling, with all equal ones.

        `W` is its matrix, `o` (n_{l-1}, N) are the outputs below. None where both are the same
        function of theta, and where one of them is 0, held or not: then the kink is that of the
        unit itself.
        """
        tokens = self.tokens[layer - 1]
        first, second = sorted((tokens[a, sample], tokens[b, sample]))
        if first == second or first == 0 or o[a, sample] == 0 or o[b, sample] == 0:
            return None
        pooling = W.inner
        windows, values = pooling.windows(tokens[W.read], -1), pooling.windows(o[W.read], -np.inf)
        rows = pooling.windows(np.arange(len(o))[W.read, None], -1)[..., 0]
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
        below, sigma = self.tokens[-1], self.net.bend_at(layer)
        tokens = self._own(layer, W.inner, below[W.read])
        for kink in ties:
            a, b = (below[kink.pairs[:, n], kink.samples] for n in (0, 1))
            # the pair of two functions: above all numbers of single ones
            tokens[kink.units, kink.samples] = (1 + a) * (1 + below.max()) + b
        if ties:
            tokens = _numbered(tokens)
        added, carried = getattr(W, "added", None), getattr(W, "carried", ())
        if added is not None:
            tokens = _joined(tokens, below[added])
        self.functions[layer] = tokens
        if layer in self.pieces:
            pieces = self.pieces[layer]
            tokens = np.where((pieces < 0) | (tokens == 0), 0, PIECES * tokens + pieces + 1)
        elif sigma is not None:  # which need not be 0 where z is
            tokens = tokens + 1
        return np.concatenate([tokens, *(below[part] for part in carried)])

    def _own(self, layer: int, W: WeightMatrix, below: np.ndarray) -> np.ndarray:
        """Return what stands for the functions that W makes of those below, 0 for the 0."""
        if W.selects:
            windows = W.windows(below)
            return np.take_along_axis(windows, self.choices[layer][None], axis=0)[0]
        maps = below.reshape(W.maps_in, W.positions_in, len(self.data))
        if layer not in self.net.slots:
            windows = [_nonzero(np.sort(W.gathered(o), axis=0)) for o in maps]
            return np.stack(windows).reshape(W.shape[0], -1)
        read = np.concatenate([W.gathered(o.astype(float)) for o in maps])
        if layer not in self.labels:
            self.labels[layer] = _combined(read)
        labels = self.labels[layer] + 1
        if not self.net.slots[layer].biases:
            labels = np.where((read == 0).all(axis=0), 0, labels)
        return np.broadcast_to(labels, (W.maps_out, *labels.shape)).reshape(W.shape[0], -1).copy()


def _combined(read: np.ndarray) -> np.ndarray:
    """Return numbers (P, N) from 0 on that agree where all of `read` (K, P, N) does."""
    found = np.zeros(read[0].size, dtype=np.int64)
    for row in read:
        values = _ranked(row.ravel())
        found = _ranked(found * (values.max() + 1) + values)
        if found.max() + 1 == found.size:
            break
    return found.reshape(read.shape[1:])


def _nonzero(read: np.ndarray) -> np.ndarray:
    """Return the same from 1 on, and 0 where no function is read but 0; divisors are below 0."""
    return np.where((read <= 0).all(axis=0), 0, 1 + _combined(read))


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return what stands for the sums of functions, (n, N)."""
    pairs = first * (1 + second.max()) + second
    return _numbered(pairs)


def _numbered(values: np.ndarray) -> np.ndarray:
    """Return numbers that agree where the values do: 0 for 0, from 1 on for the others."""
    return np.where(values == 0, 0, 1 + _ranked(values.ravel()).reshape(values.shape))


def _ranked(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1)
