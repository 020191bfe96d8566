"""By how much the risk can be lower at most, in a cell where G_s is not exactly 0."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.floats import slack
from ..engine.parameters import Parameters
from ..engine.passes import steps

FARTHEST = 1e6  # no radius above this is claimed where G_s is not known to be 0
SHARE = 1e-6  # of the risk: delta is no more where a certificate holds, or where P1 is not shown
LEAST = 1e-150  # bounds of |G_s| and distances are no less: their products could underflow
ROWS = 1000  # of all G_s up to which each counts for itself
HALVINGS = 4  # of the ratio between a radius that is tolerated and one that is not


class Classes(NamedTuple):
    """One sample x of each pattern class, and bounds of its |G_s|, row by row or of all rows.

    Columns of numbers for rows of G_s: `features` (n, S) for the features, `constants` (S,) for the
    ones, and in which output each of them counts, `outputs` (d_y, S). `slack` is a decrease that is
    possible at any radius.
    """

    x: np.ndarray
    features: Array
    constants: Array
    outputs: Array
    slack: float

    @classmethod
    def of(cls, theta: Parameters, x: np.ndarray, bounds: np.ndarray, slack: float) -> Classes:
        """Return them for bounds (S, d_y, n + 1) of |G_s| and a sample x of each class.

        Row by row where there are few classes; of many the largest over the outputs.
        """
        xp, (classes, outputs, _) = namespace(theta.vector), bounds.shape
        bounds = np.maximum(bounds, LEAST)
        count = np.ones((outputs, classes))
        if classes * outputs <= ROWS:
            x, count = x.repeat(outputs, axis=0), np.tile(np.eye(outputs), classes)
            bounds = bounds.reshape(classes * outputs, -1)
        else:
            bounds = bounds.max(axis=1)
        columns = np.ascontiguousarray(bounds.T)
        return cls(x, xp.asarray(columns[:-1]), xp.asarray(columns[-1]), xp.asarray(count), slack)

    def decrease(self, theta: Parameters, rho: float) -> float:
        """Return a bound of R(theta) - R(theta') for theta' within max-norm distance rho.

        It is sum_s <|G_s|, |F'_s - F_s|>, valid where the patterns are constant: with a = |F| h and
        |F' - F| h <= d for a row h of |G_s|, d^l is at most |W| d + rho S (a + d) + rho c, masked
        by the pattern, as for the radius of patterns.
        """
        if not theta.net.size:
            return self.slack
        rho = max(rho, LEAST)
        net = theta.net

        def chunk(rows: slice, columns: Array) -> float:
            a, c = self.features[:, rows], self.constants[rows]
            d = namespace(a).zeros_like(a)
            for step in list(steps(theta, columns))[net.leading_poolings :]:
                W = abs(step.matrix)
                reach, a, d = a + d, W @ a, W @ d
                shape = (W.maps_out, W.positions_out, -1)
                maps, moved = (v[: W.rows].reshape(shape) for v in (a, d))
                if W.weights is not None:
                    moved += rho * W.support_sums(reach)
                if step.b is not None:
                    maps += abs(step.b)[:, None, None] * c
                    moved += rho * c
                if step.kinked:
                    a, d = a * step.slopes, d * step.slopes
            return float((self.outputs[:, rows] * d).sum())

        with np.errstate(over="ignore", invalid="ignore"):
            total = sum(net.over(theta, self.x, chunk), self.slack)
        terms = sum(W.shape[1] + 4 for W in theta.W.values()) + self.outputs.size
        return total * slack(2 * terms)

    def reach(self, theta: Parameters, radius: float, tolerated: float) -> tuple[float, float]:
        """Return the largest rho <= radius found with a tolerated decrease, and that decrease.

        The decrease is convex in rho, so that a share of rho has at most that share of it. Where
        none is tolerated rho is 0.
        """
        rho = min(radius, FARTHEST) if theta.net.size else radius
        delta, high = self.decrease(theta, rho), None
        while not delta <= tolerated:
            if not rho > 1e-300 or self.slack > tolerated:
                return 0.0, delta
            share = (tolerated - self.slack) / (delta - self.slack) if delta < math.inf else 0
            high = rho
            rho *= min(0.5, max(share / 2, 1e-3))
            delta = self.decrease(theta, rho)
        for _ in range(HALVINGS if high is not None else 0):
            middle = math.sqrt(rho * high)
            found = self.decrease(theta, middle)
            if found <= tolerated:
                rho, delta = middle, found
            else:
                high = middle
        return rho, delta
