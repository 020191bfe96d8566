"""The convex model of the risk near a point: a quadratic and the kinks that are near.

With the gradient g of R without what the candidates add, B positive definite, and for each
candidate k the value v_k, its gradient a_k and the bounds of its multiplier,

    m(d) = g . d + d^T B d / 2 + sum_k max over low <= lambda_k <= high of lambda_k (v_k + a_k . d),

up to a constant. Its minimum is found in the multipliers: d = -B^-1 (g + A^T lambda). Those that
end strictly between their bounds belong to kinks at which d ends, to first order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held, HeldGradient, HeldKink, View
from ..engine.losses import AbsoluteLoss
from ..engine.parameters import Parameters
from .box_qp import minimise_in_box

AT_KINK = 1e-12  # of the largest |z| of a layer: a unit that is nearer is at its kink
DEPENDENT = 1e-9  # gradients of length 1 that differ by less from those before count as dependent


class State(NamedTuple):
    """A point, the kinks at which it is held, their multipliers, its risk and its pass."""

    theta: Parameters
    kinks: list[HeldKink]
    multipliers: np.ndarray
    risk: float
    seen: View


class ModelStep(NamedTuple):
    """The minimum of the model: the step d, the multipliers, the kinks at which it ends (indices).

    `decrease` is by how much the model is lower there than at 0.
    """

    d: np.ndarray
    multipliers: np.ndarray
    held: np.ndarray
    decrease: float


class Candidates:
    """The kinks that a step may meet: first those at which theta is held, then those it crossed."""

    def __init__(
        self,
        state: State,
        held: Held,
        found: HeldGradient,
        seen: View,
        before: EqualKinks | None,
    ):
        self.theta, self.risk, self.held, self.seen = state.theta, state.risk, held, seen
        self.net, self.data = held.net, held.data
        self.kinks: list[HeldKink] = list(held.kinks)
        self.values, self.now = found.values, state.multipliers
        self.start = self.now  # of the minimisation in the multipliers
        self.low, self.high = held.bounds(found.signals)
        self.rows = held.jacobian(self.theta)
        self.gradient = found.gradient  # of L, with what the pieces of all candidates add
        shapes = [z.shape for z in seen.z] + [seen.z[-1].shape]
        self.known = [np.zeros(shape, dtype=bool) for shape in shapes]
        self.before, self.equal = before, None
        for kink in self.kinks:
            self.known[kink.layer - 1][kink.units, kink.samples] = True

    def base_gradient(self) -> np.ndarray:
        """Return the gradient of the risk without what the candidates add."""
        return self.gradient - self.now @ self.rows

    def add_crossed(self, trial: View, most: int) -> int:
        """Add kinks that lie between theta and a trial point, the nearest first; return how many.

        Those whose signal is not positive are concave, and are left to the quadratic.
        """
        new: list[HeldKink] = []
        bounds: list[tuple[float, float, float, float]] = []
        for layer, unit, sample, other in self._crossed(trial, most):
            if self.known[layer - 1][unit, sample]:
                continue
            kink = self._kink(layer, unit, sample, other)
            if kink is None:
                self.known[layer - 1][unit, sample] = True
                continue
            self.known[layer - 1][kink.units, kink.samples] = True
            entry = self._bounds(kink)
            if entry is not None:
                new.append(kink)
                bounds.append(entry)
        if not new:
            return 0
        rows = self.held.jacobian(self.theta, new)
        useful = np.flatnonzero(abs(rows).max(axis=1) > 0)
        values, low, high, now = np.array(bounds).T
        self.kinks += [new[n] for n in useful]
        self.rows = np.concatenate([self.rows, rows[useful]])
        for name, part in (
            ("values", values),
            ("low", low),
            ("high", high),
            ("now", now),
            ("start", now),
        ):
            setattr(self, name, np.concatenate([getattr(self, name), part[useful]]))
        return len(useful)

    @np.errstate(over="ignore")  # what does not move is met last
    def _crossed(self, trial: View, most: int) -> list[tuple[int, int, int, int]]:
        """Return (layer, unit, sample, choice at the trial point) of what was crossed, or left."""
        found, times = [], []
        net, seen = self.net, self.seen
        for layer in net.bent_layers:
            own = slice(math.prod(net.shapes[layer]))
            z, there = seen.z[layer - 1][own], trial.z[layer - 1][own]
            met = ((z > 0) != (there > 0)) | (abs(z) <= AT_KINK * abs(z).max())
            units, samples = np.nonzero(met & ~self.known[layer - 1][own])
            z, there = z[units, samples], there[units, samples]
            times.append(abs(z) / (abs(z - there) + 1e-300))
            found += _listed(layer, units, samples, 0 * units)
        for layer in net.max_layers:
            here, there = seen.choices[layer - 1], trial.choices[layer - 1]
            units, samples = np.nonzero((here != there) & ~self.known[layer - 1][: len(here)])
            W = self.theta.W[layer]
            values, after = (W.inner.windows(v.below(layer)[W.read]) for v in (seen, trial))
            one, other = here[units, samples], there[units, samples]
            gap = values[one, units, samples] - values[other, units, samples]
            then = after[one, units, samples] - after[other, units, samples]
            times.append(abs(gap) / (abs(gap - then) + 1e-300))
            found += [
                (layer, int(u), int(s), int(c))
                for u, s, c in zip(units, samples, other, strict=True)
            ]
        if type(self.held.loss) is AbsoluteLoss:
            y = self.data.y.T
            r, there = seen.o[-1] - y, trial.o[-1] - y
            units, samples = np.nonzero(((r > 0) != (there > 0)) & ~self.known[net.depth])
            r, there = r[units, samples], there[units, samples]
            times.append(abs(r) / (abs(r - there) + 1e-300))
            found += [
                (net.depth + 1, int(u), int(s), 0) for u, s in zip(units, samples, strict=True)
            ]
        order = np.argsort(np.concatenate(times), kind="stable") if times else []
        return [found[n] for n in order[:most]]

    def _kink(self, layer: int, unit: int, sample: int, choice: int) -> HeldKink | None:
        if self.equal is None:
            self.equal = EqualKinks(self.theta, self.data, self.held, self.seen, self.before)
        if layer > self.net.depth or not self.net.chain[layer - 1].selects:
            return self.equal.kink(layer, unit, sample)
        W, o = self.theta.W[layer], self.seen.below(layer)
        rows = W.inner.windows(np.arange(len(o))[W.read, None], -1)[:, unit, 0]
        here = self.seen.choices[layer - 1][unit, sample]
        return self.equal.tie(layer, W, o, int(rows[here]), int(rows[choice]), sample)

    def _bounds(self, kink: HeldKink) -> tuple[float, float, float, float] | None:
        """Return v, the bounds of the multiplier and its value here; None where it is concave."""
        depth, units, samples = self.net.depth, kink.units, kink.samples
        if kink.layer > depth:
            value = float((self.seen.o[-1] - self.data.y.T)[units[0], samples[0]])
            size = len(units) / len(self.data)
            return value, -size, size, size if value > 0 else -size
        size = float(self.seen.signals[kink.layer - 1][units, samples].sum())
        if size <= 0:
            return None
        if kink.pairs is None:
            value = float(self.seen.z[kink.layer - 1][units[0], samples[0]])
        else:
            (a, b), o = kink.pairs[0], self.seen.below(kink.layer)
            value = float(o[a, samples[0]] - o[b, samples[0]])
        slope = self.held.slope(kink)
        return value, slope * size, size, size if value > 0 else slope * size


def _listed(layer: int, units, samples, choices) -> list[tuple[int, int, int, int]]:
    places = zip(units.tolist(), samples.tolist(), choices.tolist(), strict=True)
    return [(layer, *place) for place in places]


class Quadratic:
    """B^-1 = E diag(1 / (e + mu)) E^T: |H| on the tangent space of the held kinks, and beside it.

    `eigenvalues` are those of the Hessian on the tangent space, `tangent` (p, dimension) its
    eigenvectors, `normal` (p, rank) the span of the gradients of the held kinks.
    """

    def __init__(self, hessian: np.ndarray, rows: np.ndarray):
        self.normal, tangent = split(rows)
        self.eigenvalues, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        self.tangent = tangent @ vectors
        self.size = float(abs(self.eigenvalues).max(initial=0.0))
        self.size = self.size or float(abs(hessian).max(initial=0.0))
        self.E = np.concatenate([self.tangent, self.normal], axis=1)
        self.e = np.concatenate([abs(self.eigenvalues), np.full(self.normal.shape[1], self.size)])

    def steep(self, share: float, mu: float) -> np.ndarray:
        """Return those of B^-1 in its eigenvectors that belong to more than a share of |H|."""
        curved = np.concatenate([self.eigenvalues, self.e[len(self.eigenvalues) :]])
        return np.where(curved > share * self.size, 1 / (self.e + mu), 0.0)

    def step(self, candidates: Candidates, mu: float) -> ModelStep:
        """Return the minimum of the model."""
        g, scale = self.E.T @ candidates.base_gradient(), self.e + mu
        A, v = candidates.rows @ self.E, candidates.values
        low, high = candidates.low, candidates.high
        M, q = (A / scale) @ A.T, v - A @ (g / scale)
        multipliers = minimise_in_box(M, q, low, high, candidates.start)
        candidates.start = multipliers
        d = -(g + multipliers @ A) / scale
        slack = 1e-9 * (high - low)
        held = np.flatnonzero((multipliers > low + slack) & (multipliers < high - slack))
        after = v + A @ d
        kinks = np.maximum(high * after, low * after) - np.maximum(high * v, low * v)
        decrease = -(g @ d + (scale * d) @ d / 2 + kinks.sum())
        return ModelStep(self.E @ d, multipliers, held, float(decrease))


def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal bases (p, r), (p, p - r) of the span of rows (m, p) and its complement."""
    p = rows.shape[1]
    if not len(rows):
        return np.zeros((p, 0)), np.eye(p)
    sizes = np.sqrt((rows * rows).sum(axis=1))
    columns = (rows / np.where(sizes > 0, sizes, 1)[:, None]).T
    basis, R, _ = scipy.linalg.qr(columns, pivoting=True, check_finite=False)
    rank = int((abs(np.diag(R)) > DEPENDENT).sum())
    return basis[:, :rank], basis[:, rank:]
