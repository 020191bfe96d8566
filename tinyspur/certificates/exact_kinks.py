"""Exact local minima of one hidden layer and one output, with units at kinks or without.

With the outgoing weights a fixed, outputs are affine in the incoming weights and the biases as long
as no unit changes its sign, and so are the pre-activations of units at kinks. So the conditions of
a local minimum are linear equations: its numbers are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.rational import (
    Rational,
    check_work,
    digits,
    independent_rows,
    joined,
    product,
    rational,
    size_of,
    solve,
    times,
)
from ..layers import Dense
from .exact import ExactPoint, exact_steps
from .exact_cells import columns_of
from .exact_fits import NEAR, check_exact

AT_KINK = 1e-6  # |z| up to this share of the unit's largest |w| |x| + |b| is taken for 0


class KinkedMinimum(NamedTuple):
    """An exact local minimum, as proof files have it.

    Kinks (sample, layer, unit) with a multiplier each, and the coordinates that are frozen:
    (layer, "W" or "b", *index). The others are unique.
    """

    point: ExactPoint
    risk: Fraction
    distance: Fraction
    kinks: list[tuple[int, int, int]]
    multipliers: list[Fraction]
    frozen: list[tuple]


def is_shallow(net: Network) -> bool:
    """Return whether there are one hidden layer and one output, above poolings if any."""
    layers, kinked = net.chain[net.leading_poolings :], net.kinked_layers
    dense = [type(layer) for layer in layers] == [Dense, Dense]
    shallow = dense and all(layer.bias for layer in layers) and net.shapes[-1] == (1,)
    return shallow and net.active_layers == kinked == (net.depth - 1,)


def find_kinks(theta: Parameters, data: TrainingSet) -> list[tuple[int, int]]:
    """Return the (sample, unit) of the hidden layer that are at a kink, up to rounding."""
    net, (hidden, _) = theta.net, theta.b
    o = data.x.reshape(len(data), -1).T.astype(np.float64)
    o = net.layer_output(theta, o, net.leading_poolings)
    W, b = theta.W[hidden].weights, theta.b[hidden][:, None]
    sizes = (abs(W) @ abs(o) + abs(b)).max(axis=1, keepdims=True)
    near = abs(W @ o + b) <= AT_KINK * sizes
    return [(int(i), int(j)) for i, j in np.argwhere(near.T)]


def exact_kinked_minimum(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    kinks: Iterable[tuple[int, int]] | None = None,
) -> KinkedMinimum:
    """Return the exact strict local minimum next to a stored point of a shallow network.

    `kinks` are the (sample, unit) with z = 0, by default those that are, up to rounding. Checked in
    fractions: z = 0 there and nowhere else, all signs are those of the stored point, the gradient
    with multipliers is 0, each of them is strictly between the bounds slope C and C, C the
    derivative of the risk in the output of the unit. Outputs and kinks determine the coordinates
    that are not frozen, so that the Hessian is positive definite; what is frozen the others undo.
    Raises as `exact_minimum` does.
    """
    theta = check_exact(theta, data, loss)
    if not is_shallow(theta.net):
        raise ValueError(f"exact: expected one hidden layer and one output, got {theta.net}")
    kinks = find_kinks(theta, data) if kinks is None else [(int(i), int(j)) for i, j in kinks]
    problem = _Problem(theta, data, sorted(set(kinks)))
    return problem.minimum()


class _Problem:
    """The equations of a local minimum with given kinks, over v = (|a_j| (w_j, b_j) for all j, c).

    Outputs are J v for J (N, p), with slope 0 at kinks; Z v = 0 at kinks, Z (K, p).
    """

    def __init__(self, theta: Parameters, data: TrainingSet, kinks: list[tuple[int, int]]):
        self.theta, self.data, net = theta, data, theta.net
        self.hidden = net.leading_poolings + 1
        self.stored = ExactPoint(theta)
        v = columns_of(data)
        for step in exact_steps(self.stored, v, 1, net.leading_poolings):
            v = step.o
        ones = Rational(np.ones((1, len(data)), dtype=np.int64), 1)
        self.hats = joined([v, ones], axis=0)  # (n + 1, N)
        unknowns = len(theta.b[self.hidden]) * len(self.hats.n) + 1
        check_work(unknowns, len(data) * size_of(self.hats.n) ** 2)
        self.a = rational(theta.W[self.hidden + 1].weights[0])
        z = self.stored.dense(self.hidden) @ self.hats
        self.signs = np.sign(z.n.astype(object)).astype(np.int64)  # (m, N)
        for i, j in kinks:
            if not (0 <= i < len(data) and 0 <= j < len(self.signs)):
                raise ValueError(
                    f"exact: expected kinks (sample, unit) below {len(data)} and "
                    f"{len(self.signs)}, got {(i, j)}"
                )
            self.signs[j, i] = 0
        missing = np.argwhere((self.signs == 0).T).tolist()
        if len(missing) > len(kinks):
            i, j = next(at for at in missing if tuple(at) not in kinks)
            raise AssumptionError(f"exact: expected unit {j} for sample {i} among the kinks")
        slope = Fraction(net.activation_of(self.hidden).slope)
        self.slope = slope
        live = (self.signs >= 0).any(axis=1) | (slope != 0)
        idle = np.flatnonzero(live & (self.a.n == 0))
        if idle.size:
            raise AssumptionError(
                "exact: expected outgoing weights that are not 0 of the units that are active for "
                f"some sample, got 0 from unit {idle[0]}"
            )
        self.kinks, self.groups = [], []  # equal ones, of equal samples, count as one
        places: dict[tuple, int] = {}
        for i, j in kinks:
            key = j, *self.hats.n[:, i].tolist()
            if key not in places:
                places[key] = len(self.kinks)
                self.kinks.append((i, j))
                self.groups.append([])
            self.groups[places[key]].append(i)
        self._matrices()

    def _matrices(self) -> None:
        n, N = self.hats.n.shape
        m, q = len(self.signs), self.slope.denominator
        shares = np.where(self.signs > 0, q, np.where(self.signs < 0, self.slope.numerator, 0))
        shares = shares.astype(object) * np.sign(self.a.n.astype(object)).astype(int)[:, None]
        columns = self.hats.n[None] * shares[:, None]  # (m, n + 1, N)
        J = columns.reshape(m * n, N).T
        ones = np.full((N, 1), self.hats.d * q, dtype=object)
        self.J = Rational(np.hstack([J, ones]), self.hats.d * q)
        Z = np.zeros((len(self.kinks), m * n + 1), dtype=object)
        for row, (i, j) in zip(Z, self.kinks, strict=True):
            row[j * n : (j + 1) * n] = self.hats.n[:, i]
        self.Z = Rational(Z, self.hats.d)

    def minimum(self) -> KinkedMinimum:
        rows = np.concatenate([self.J.n, self.Z.n])
        free = independent_rows(rows.T)
        self._check_spanned(rows, free)
        v, multipliers = self._solved(free)
        point = self._point(v)
        distance = max(
            (point.own[layer] - self.stored.dense(layer)).largest() for layer in point.own
        )
        largest = max(self.stored.dense(layer).largest() for layer in point.own)
        if distance > NEAR * largest:
            raise AssumptionError(
                f"exact: expected a point next to a local minimum with {len(self.kinks)} units at "
                f"kinks, got one at distance {digits(distance, 2)} from where the gradient is 0"
            )
        risk, scaled = self._checked(point, multipliers)
        layer = self.hidden
        kinks = [(i, layer, j) for i, j in self.kinks]
        return KinkedMinimum(point, risk, distance, kinks, scaled, self._frozen(free))

    def _check_spanned(self, rows: np.ndarray, free: np.ndarray) -> None:
        """Raise AssumptionError unless the free columns span all, and the kinks are independent."""
        others = np.setdiff1d(np.arange(rows.shape[1]), free)
        others = others[(rows[:, others] != 0).any(axis=0)]
        if others.size:
            some = independent_rows(rows[:, free])
            X = solve(rows[np.ix_(some, free)], rows[np.ix_(some, others)])
            if (product(rows[:, free], X.n) != times(rows[:, others], X.d)).any():
                raise AssumptionError("exact: expected columns whose rank is known, got others")
        if len(independent_rows(self.Z.n)) < len(self.kinks):
            raise AssumptionError(
                f"exact: expected kinks that are independent, got {len(self.kinks)} of which some "
                "depend on others: their multipliers are not unique"
            )

    def _stored(self) -> Rational:
        """Return v at the stored point."""
        W, top = self.stored.dense(self.hidden), self.stored.dense(self.hidden + 1)
        W = Rational(W.n.astype(object) * abs(self.a.n.astype(object))[:, None], W.d * self.a.d)
        return joined([Rational(W.n.ravel(), W.d), top[0, -1:]], axis=0)

    def _solved(self, free: np.ndarray) -> tuple[Rational, Rational]:
        """Return v and the multipliers: J^T (J v - y) / N + Z^T lambda = 0 and Z v = 0."""
        v = self._stored()
        others = np.setdiff1d(np.arange(len(v.n)), free)
        y = rational(self.data.y)[:, 0]
        J, Z = self.J.n[:, free], self.Z.n[:, free]
        rest = y - self.J[:, others] @ v[others]
        held = self.Z[:, others] @ v[others]
        d = math.lcm(rest.d, held.d)
        K = len(Z)
        A = np.block([[product(J.T, J), Z.T], [Z, np.zeros((K, K), dtype=object)]])
        right = times(product(J.T, rest.over(d)[:, None]), self.J.d)
        below = times(held.over(d)[:, None], -self.Z.d)
        X = solve(A, np.concatenate([right, below]))
        if X is None:
            raise AssumptionError("exact: expected a local minimum that is strict, got no such one")
        n = X.n[:, 0]
        solved = Rational(n[: len(free)], X.d * d)
        whole = joined([v[others], solved], axis=0)
        found = Rational(np.zeros(len(v.n), dtype=object), whole.d)
        found.n[np.concatenate([others, free])] = whole.n
        # A's second column stands for Z^T lambda N J.d^2 with Z's integers over Z.d.
        multipliers = Rational(n[len(free) :] * self.Z.d, X.d * d * len(self.data) * self.J.d**2)
        return found, multipliers

    def _point(self, v: Rational) -> ExactPoint:
        """Return the point with the outgoing weights as they are stored."""
        m, n = len(self.signs), len(self.hats.n)
        size = abs(self.a.n.astype(object))
        W = v.n[:-1].reshape(m, n)
        live = size != 0
        common = math.lcm(*(int(s) for s in size[live]))
        factors = np.array([common // int(s) if s else 0 for s in size], dtype=object)
        W = Rational(W * factors[:, None] * self.a.d, v.d * common)
        if not live.all():  # dead, and nothing depends on them
            stored = self.stored.dense(self.hidden)
            both = joined([W, stored], axis=0)
            W = Rational(np.where(live[:, None], both.n[:m], both.n[m:]), both.d)
        top = joined([self.a[None], Rational(v.n[None, -1:], v.d)], axis=1)
        return ExactPoint(self.theta, {self.hidden: W.reduced(), self.hidden + 1: top.reduced()})

    def _checked(self, point: ExactPoint, multipliers: Rational) -> tuple[Fraction, list[Fraction]]:
        """Return the risk and the multipliers of the kinks of z, or raise AssumptionError."""
        N, y = len(self.data), rational(self.data.y).T
        *_, step, top = exact_steps(point, columns_of(self.data), 1, self.theta.net.depth)
        if (np.sign(step.z.n.astype(object)).astype(int) != self.signs).any():
            raise AssumptionError(
                "exact: expected the signs of the stored point, got others where the gradient is 0"
            )
        e = (top.z - y).T
        gradient = self.J.T @ e + self.Z.T @ Rational(multipliers.n[:, None] * N, multipliers.d)
        if not gradient.is_zero():
            raise AssumptionError("exact: expected a gradient that is 0, got another")
        found = []
        for (i, j), group, share in zip(
            self.kinks, self.groups, multipliers.fractions(), strict=True
        ):
            a = Fraction(int(self.a.n[j]), self.a.d)
            C = a * Fraction(sum(int(e.n[s, 0]) for s in group), e.d * N)
            multiplier = share * abs(a)
            if not self.slope * C < multiplier < C:
                raise AssumptionError(
                    f"exact: expected a multiplier strictly between {digits(self.slope * C, 3)} "
                    f"and {digits(C, 3)} at the kink of unit {j} for sample {i}, got "
                    f"{digits(multiplier, 3)}: the risk falls to a side, or that is not decided"
                )
            found.append(multiplier)
        squares = sum(int(value) ** 2 for value in e.n.flat)
        return Fraction(squares, e.d**2 * 2 * N), found

    def _frozen(self, free: np.ndarray) -> list[tuple]:
        (m, _), n, chosen = self.signs.shape, len(self.hats.n), set(free.tolist())
        names = [("W", k) for k in range(n - 1)] + [("b",)]
        places = [(self.hidden, kind, j, *k) for j in range(m) for kind, *k in names]
        places.append((self.hidden + 1, "b", 0))
        found = [place for p, place in enumerate(places) if p not in chosen]
        return found + [(self.hidden + 1, "W", 0, j) for j in range(m)]
