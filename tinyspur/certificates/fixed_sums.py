"""The squared loss of targets with one sum, as one-hot labels have: one output less.

Let h be what the last layer reads, a dense one with weights A, biases b and m outputs, u = sum_j
A_j, c = sum_j b_j, and S what the targets of each sample sum to. Then

    R(theta) = R(Pi theta) + sum_i (u . h_i + c - S)^2 / (2 m N),

where Pi takes u / m off each row of A and (c - S) / m off each bias, so that outputs sum to S. A
minimum among points with u = 0 and c = S is therefore one of R. Among them the last residual is
minus the sum of the others: what counts is a network without the last output, with `FixedSumLoss`.

There are directions without change that no symmetry of R explains, as they need u = 0: units that
two outputs read with opposite weights are read by one. And there are those with u != 0: n is added
to the weights and biases of all outputs, where n . (h_i, 1) = 0 for all samples.

Rows move by at most 2 (m - 1) / m times what all numbers do under Pi, and by |u| / m, |c - S| / m.
Columns of A that read 0 throughout may be as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..datasets.samples import TrainingSet
from ..engine.held import Held, HeldKink
from ..engine.losses import FixedSumLoss, Loss, SquaredLoss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..layers import Dense
from .boxes import Box, forward, members_of
from .enclosed_algebra import enclose_inverse
from .enclosures import Enclosure, exact
from .families import IDLE, Family
from .free import choose_coordinates, fields, named, row_symmetries
from .generators import INDEPENDENT
from .sizes import powers_of_two


class FixedSum(NamedTuple):
    """A point of a network without its last output, data and loss, for those that were `given`."""

    theta: Parameters
    data: TrainingSet
    loss: Loss
    given: Parameters
    total: Fraction

    @property
    def coordinates(self) -> np.ndarray:
        """Return which coordinates of the network that was given those of this one are."""
        full, own = (point.net.slots[point.net.depth] for point in (self.given, self.theta))
        biases = full.weights.stop + np.arange(own.biases)
        return np.concatenate([np.arange(own.weights.stop), biases])

    @property
    def _x(self) -> np.ndarray:
        return np.ascontiguousarray(self.data.x.reshape(len(self.data), -1).T, dtype=np.float64)

    def projected(self) -> Parameters:
        """Return the point without the last output of Pi theta, where the risk is no higher.

        Weights that read 0 for all samples are those that were given.
        """
        net, point = self.theta.net, self.theta.copy()
        W, b = self.given.W[net.depth].weights, self.given.b[net.depth]
        read = net.layer_output(point, self._x, net.depth - 1).any(axis=1)
        point.W[net.depth].weights[:, read] -= W[:, read].sum(axis=0) / len(b)
        point.b[net.depth][:] -= (b.sum() - float(self.total)) / len(b)
        return point

    def lifted(self, theta: Parameters) -> Parameters:
        """Return the point with the last output, so that the outputs sum to the targets' sum.

        Weights that read 0 for all samples are those that were given.
        """
        net, full = theta.net, self.given.copy()
        full.vector[self.coordinates] = theta.vector
        W, b = (part[net.depth] for part in (full.W, full.b))
        read = net.layer_output(theta, self._x, net.depth - 1).any(axis=1)
        W.weights[-1, read] = -W.weights[:-1, read].sum(axis=0)
        b[-1] = float(self.total - sum(map(Fraction, b[:-1].tolist())))
        return full

    def lifted_family(self, family: Family) -> Family:
        """Return the family in the coordinates of the network that was given.

        Where weights of an output read nothing but 0, so do those of the last one.
        """
        own, slot = self.coordinates, self.given.net.slots[self.given.net.depth]
        inputs, last = slot.shape[1], slot.weights.stop - slot.shape[1]
        found = {int(own[n]): symmetry for n, symmetry in family.symmetries.items()}
        idle = family.of_kinds(*IDLE)
        found |= {last + k: found[slot.start + k] for k in range(inputs) if slot.start + k in idle}
        return Family(dict(sorted(found.items())))

    def whole_family(
        self, family: Family, kinks: Sequence[HeldKink], data: TrainingSet, distance: float
    ) -> Family | None:
        """Return the lifted family with what may be added to all outputs, around a minimum.

        As many weights and biases of the last output as there are sums of (h, 1) that are 0 within
        `distance`: no more, as the others are independent, and no fewer, as fields of the network
        that was given move as many u. None where either is not shown.
        """
        net = self.given.net
        slot, free = net.slots[net.depth], np.ones(net.size, dtype=bool)
        free[list(family.symmetries)] = False
        where = np.arange(slot.shape[1] * slot.shape[0]).reshape(slot.shape[0], -1) + slot.start
        biases = slot.weights.stop + np.arange(slot.biases)
        where = np.hstack([where, biases[:, None]])  # (outputs, weights + 1)
        columns = np.flatnonzero(free[where[-1]])
        independent, rest = self._independent(columns, kinks, distance)
        if not independent or not len(rest):
            return family if independent else None
        held = Held(net, data, SquaredLoss(), kinks)
        full = choose_coordinates(held, self.given, data)
        radii = Parameters(net, np.full(net.size, distance))
        box = Box(self.given, radii, exact(np.zeros(len(kinks))))
        rows = fields(full.generators, full.interpolations, held, box)
        if rows is None or len(rows.middle) < len(rest):
            return None
        rows = rows * (1 / powers_of_two(abs(rows.middle / full.sizes).max(axis=1)))[:, None]
        moved = sum((rows[:, row] for row in where[1:, rest]), rows[:, where[0, rest]])
        moved = moved * (1 / full.sizes[where[-1, rest]])
        order = scipy.linalg.qr(moved.middle.T, mode="r", pivoting=True)[1][: len(rest)]
        if enclose_inverse(moved[order]) is None:
            return None
        symmetries = row_symmetries(full.generators, full.interpolations)
        found = dict(family.symmetries)
        for n, k in zip(where[-1, rest], named(moved.middle[order]), strict=True):
            found[int(n)] = symmetries[order[k]]
        return Family(dict(sorted(found.items())))

    def _independent(
        self, columns: np.ndarray, kinks: Sequence[HeldKink], distance: float
    ) -> tuple[bool, np.ndarray]:
        """Return whether all but some columns of (h, 1) are shown to be independent, and these."""
        net, x = self.theta.net, self._x
        held = Held(net, self.data, self.loss, kinks)
        h = net.layer_output(self.theta, x, net.depth - 1)
        A = np.vstack([h, np.ones(len(self.data))])[columns].T
        A = A / powers_of_two(abs(A).max(axis=0))
        _, R, order = scipy.linalg.qr(A, mode="economic", pivoting=True)
        sizes = abs(np.diag(R))
        rank = int((sizes > INDEPENDENT * sizes[0]).sum())
        own, rest = order[:rank], order[rank:]
        some = np.sort(scipy.linalg.qr(A[:, own].T, mode="r", pivoting=True)[1][:rank])
        radii = Parameters(net, np.full(net.size, distance))
        box = Box(self.theta, radii, exact(np.zeros(len(kinks))))
        samples = np.ascontiguousarray(x[:, some])
        trace, kept = forward(held, box, samples, members_of(held, some))
        middle, radius = (
            np.vstack([part, np.full(rank, last)])[columns[own]].T
            for part, last in ((trace[-1].below.middle, 1.0), (trace[-1].below.radius, 0.0))
        )
        found = Enclosure(middle, radius) * (1 / powers_of_two(abs(middle).max(axis=0)))
        return kept and enclose_inverse(found) is not None, columns[rest]

    def off(self, family: Family) -> float:
        """Return a bound of |u| where it counts, by the lifted family, and |c - S|."""
        net, idle = self.given.net, family.of_kinds(*IDLE)
        W, b = (part[net.depth] for part in (self.given.W, self.given.b))
        sums = [sum(map(Fraction, b.tolist()), -self.total)]
        for n, column in enumerate(W.weights.T.tolist(), start=net.slots[net.depth].start):
            if n not in idle:
                sums.append(sum(map(Fraction, column)))
        return float(np.nextafter(float(max(map(abs, sums))), np.inf))


def fixed_sum(theta: Parameters, data: TrainingSet, loss: Loss) -> FixedSum | None:
    """Return the problem without the last output, None where it is not for that.

    It is for the squared loss, two outputs or more of a dense layer with biases, and targets that
    sum to exactly the same number for each sample. Raises ValueError for a point or data of another
    network.
    """
    check_at(theta, data, loss)
    net = theta.net
    last, outputs = net.layers[-1], data.y.shape[1]
    plain = type(last) is Dense and last.bias and net.activation_at(net.depth) is None
    if type(loss) is not SquaredLoss or not plain or outputs < 2:
        return None
    sums = {sum(map(Fraction, row)) for row in data.y[:2].tolist()}
    if len(sums) == 1:
        different = np.unique(np.sort(data.y, axis=1), axis=0)
        sums = {sum(map(Fraction, row)) for row in different.tolist()}
    if len(sums) > 1:
        return None
    fewer = type(net)(
        net.input_shape,
        [*net.layers[:-1], Dense(outputs - 1)],
        net.activation,
        net.memory_budget,
    )
    found = FixedSum(
        fewer.zeros(), TrainingSet(data.x, data.y[:, :-1]), FixedSumLoss(), theta, sums.pop()
    )
    found.theta.vector[:] = theta.vector[found.coordinates]
    return found
