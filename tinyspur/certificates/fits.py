"""The optimal affine fits of samples, enclosed: how far they are from given maps.

An optimal fit F* is hardly ever a matrix of floats. For each loss the conditions of optimality are
shown to have a solution near a given F: the sums of gradients there are computed in doubled
precision, and what inverts them is shown to be regular.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from ..datasets.duplicates import identical
from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from .enclosed_algebra import solve, two_sum
from .enclosed_functions import exp, log
from .enclosures import WIDER, Enclosure, concatenate, exact
from .exact import rational_solution
from .gram import GramInverse, Samples

STEPS = 200  # of conjugate gradients
INSIDE = 1 - 1e-6  # subgradients below this may be corrected
FEW = 12  # features up to which a vertex is solved for in fractions
MET = 1e-9  # a target may be met up to this share of the terms that the output is summed from


def _lengths(errors: np.ndarray) -> np.ndarray:
    """Return upper bounds of the lengths of rows (d_y, N)."""
    return np.linalg.norm(errors, axis=1) * (1 + gamma(errors.shape[1]))


def squared_change(loss: SquaredLoss, F: np.ndarray, samples: Samples) -> Enclosure | None:
    """Return sum_i (y_i - F z_i) z_i^T A^-1, A the Gram matrix; None where it may be singular."""
    if samples.z.shape[1] == 1 == len(samples) and (samples.z == 1).all():
        return exact(samples.y) - F
    inverse, r = GramInverse.of(samples), samples.residuals(F)
    if inverse is None:
        return None
    return _inverted(inverse, samples.sums(r.middle), _lengths(r.radius))


def _inverted(inverse: GramInverse, G: Enclosure, rounding: np.ndarray) -> Enclosure:
    """Return (G + sum_i e_i z_i^T) A^-1 for any e (d_y, N) of lengths `rounding`."""
    return inverse.times(G).wider(inverse.spread(rounding))


def huber_change(loss: HuberLoss, F: np.ndarray, samples: Samples) -> Enclosure | None:
    """Return the Newton step of each output, where it leads to the minimum of the same piece.

    Samples with |r| < delta count with r, the others with -delta or delta. On that piece the loss
    is quadratic, strictly convex if the Gram matrix of the former is regular. None where it is not,
    or where some |r| may be on the other side of delta after the step.
    """
    r = samples.residuals(F)
    if samples.z.shape[1] == 1 and (samples.y == samples.y[:, :1]).all():
        return exact(samples.y[:, :1]) - F
    g, inside = np.clip(r.middle, -loss.delta, loss.delta), abs(r.middle) < loss.delta
    G, rounding = samples.sums(g), _lengths(r.radius * inside)
    changes: list[Enclosure] = []
    inverses: dict[bytes, GramInverse | None] = {}
    for k, rows in enumerate(inside):
        key = rows.tobytes()
        if key not in inverses:
            inverses[key] = GramInverse.of(samples.of(rows)) if rows.any() else None
        inverse = inverses[key]
        if inverse is None:
            return None
        changes.append(_inverted(inverse, G[k : k + 1], rounding[k : k + 1]))
    change = concatenate(changes)
    after = r - samples.moves(change)
    kept = np.where(inside, abs(after).high < loss.delta, abs(after).low > loss.delta)
    return change if (kept & (inside | (r.middle * after.middle > 0))).all() else None


def entropy_change(loss: CrossEntropy, F: np.ndarray, samples: Samples) -> Enclosure | None:
    """Return what encloses the optimal softmax regression, which has the same shifts of outputs.

    Orthogonal to these shifts the Hessian H of the sum of all losses is at least A, the Gram matrix
    that the least curvatures c_i of the loss weigh. With G the sums of gradients and s^2 = G . H^-1
    G the loss rises on the ellipsoid D . H D = 16 s^2 where its moves of the outputs, at most rho =
    4 s / sqrt(min c), change no second derivative along them by more than exp(-2 rho) > 1/2: the
    optimal fit is inside. Where G is more than its rounding, a Newton step leads to a better centre
    first.
    """
    if samples.z.shape[1] == 1:  # all have the same outputs
        return _log_targets(F, samples.y)
    found, centre = _softmax_sums(F, samples), F
    if found is None:
        return None
    if found.length > found.rounding:
        better = F - _newton_step(loss, F, samples, found)
        again = _softmax_sums(better, samples)
        if again is not None and again.size < found.size:
            centre, found = better, again
    if not found.size < 0.34 * found.least:
        return None
    off = found.inverse.spread(np.full(len(F), found.size))
    return (exact(centre) - F).wider(off)


class SoftmaxSums(NamedTuple):
    """Sums G of the gradients of the cross-entropy, and the Gram matrix that curvatures weigh.

    `length` is sqrt(tr G A^-1 G^T), to which `rounding` may add, and `least` sqrt(min c).
    """

    G: np.ndarray
    inverse: GramInverse
    length: float
    rounding: float
    least: float

    @property
    def size(self) -> float:
        """Return 4 s."""
        return 4 * (self.length + self.rounding) * (1 + 8 * EPSILON)


def _softmax_sums(F: np.ndarray, samples: Samples) -> SoftmaxSums | None:
    """Return the sums at F, or None where a probability is 0 or A is not shown to be regular.

    A gradient is q - y with q = p sum_k y_k, p the softmax of an output. Its entry for the largest
    p is less the sum of the others, which have relative errors: for errors e of sum 0 we have
    e . H_i^-1 e = sum_k e_k^2 / q_k, H_i = diag(q) - q p^T. So errors of small probabilities count
    little. `rounding` is the root of the sum of all these.
    """
    y, o = samples.y, samples.outputs(F)
    d_y, unit = len(y), EPSILON / 2
    shifted = o.middle - o.middle.max(axis=0)
    p = np.exp(shifted)
    p = p / p.sum(axis=0)
    share = 2 * o.radius.max(axis=0) + (2 * abs(shifted).max(axis=0) + 2 * d_y + 32) * EPSILON
    if not (share.max() < 0.01 and p.min() > 1e-200):
        return None
    total = y.sum(axis=0)
    q = p * total
    largest = np.arange(d_y)[:, None] == p.argmax(axis=0)
    g = np.where(largest, 0.0, q - y)
    e = np.where(largest, 0.0, 2 * share * q + unit * abs(g))
    high, low = np.zeros(len(samples)), np.zeros(len(samples))
    for row in g:  # their sums in two parts
        high, rest = two_sum(high, row)
        low = low + rest
    tiny = 4 * d_y * unit**2 * abs(g).sum(axis=0)
    e = e + largest * e.sum(axis=0) * (1 + gamma(d_y))
    low_q = q * (1 - 2 * share)
    c = (p * (1 - 2 * share)).min(axis=0) * total * (1 - gamma(d_y))
    inverse = GramInverse.of(samples, c if d_y > 1 else np.ones(len(samples)))
    if inverse is None:
        return None
    G = samples.sums(g - largest * high) - samples.sums(largest * low)
    square = float((inverse.times(G).magnitude * G.magnitude).sum()) * (1 + gamma(G.middle.size))
    rounding = math.sqrt(float((e * e / low_q).sum())) + float(np.linalg.norm(tiny / np.sqrt(c)))
    rounding = rounding * (1 + gamma(e.size))
    return SoftmaxSums(
        G.middle,
        inverse,
        math.sqrt(square) * WIDER,
        rounding,
        math.sqrt(float(c.min())) * (1 - EPSILON),
    )


def _newton_step(
    loss: CrossEntropy, F: np.ndarray, samples: Samples, found: SoftmaxSums
) -> np.ndarray:
    """Return about H^-1 G, by conjugate gradients that A^-1 preconditions."""
    o = F @ samples.z.T

    def bent(d: np.ndarray) -> np.ndarray:
        move = d.reshape(F.shape) @ samples.z.T
        return (loss.curvature(o, samples.y, move) @ samples.z).ravel()

    def unbent(G: np.ndarray) -> np.ndarray:
        scale = found.inverse.scale
        return (G.reshape(F.shape) * scale @ found.inverse.P * scale).ravel()

    hessian, inverse = (
        scipy.sparse.linalg.LinearOperator((F.size, F.size), f, dtype=float) for f in (bent, unbent)
    )
    G = found.G - found.G.mean(axis=0)  # without shifts of all outputs
    step = scipy.sparse.linalg.cg(hessian, G.ravel(), rtol=1e-6, maxiter=STEPS, M=inverse)[0]
    return step.reshape(F.shape)


def _log_targets(F: np.ndarray, y: np.ndarray) -> Enclosure | None:
    """Return the change of equal outputs F (d_y, 1) after which softmax is the mean of y > 0."""
    whole = exact(y).sum(axis=1).reshape(-1, 1)
    if not (whole.low > 0).all():
        return None
    o = exact(F) - F.max()
    return log(whole) - log(whole.sum()) - (o - log(exp(o).sum()))


def absolute_change(loss: AbsoluteLoss, F: np.ndarray, samples: Samples) -> Enclosure | None:
    """Return how vertices that are optimal differ, each output for itself; None where not shown."""
    changes, r = [], samples.residuals(F)
    for k in range(len(F)):
        one = replace(samples, y=samples.y[k : k + 1], chosen=samples.chosen[k : k + 1])
        changes.append(_vertex_change(F[k : k + 1], one, r[k : k + 1]))
        if changes[-1] is None:
            return None
    return concatenate(changes)


def _vertex_change(F: np.ndarray, samples: Samples, r: Enclosure) -> Enclosure | None:
    """Return how the optimal least absolute deviations fit of one output differs from F (1, k).

    It meets the targets of k independent samples B, with subgradients inside (-1, 1); all others
    have residuals with signs that are proved, or are known to be met: copies of those in B, and
    where all targets in B are one number, those with this target. It is optimal as the subgradients
    of B that make the sum of all s_i z_i exactly 0 are proved to be in [-1, 1]. Where this fails,
    `_exact_vertex` may decide.
    """
    z, y, s = samples.z, samples.y[0], samples.chosen[0]
    if z.shape[1] == 1:
        return exact(_nearest_median(y, F)) - F
    inside = np.flatnonzero(abs(s) < INSIDE)
    if len(inside) < z.shape[1]:
        return _exact_vertex(F, samples, r)
    B = inside[_independent(z[inside])]
    basis = samples.of(B)
    scale = 2.0 ** -np.round(np.log2(np.maximum(abs(basis.z).max(axis=0), SMALLEST**0.5)))
    matrix = Enclosure(basis.z * scale, np.broadcast_to(basis.inexact, basis.z.shape) * scale)
    if (y[B] == y[B[0]]).all():  # the fit is a constant
        target = np.zeros_like(F)
        target[0, -1] = y[B[0]]
        change, met = exact(target) - F, y == y[B[0]]
        signs, sure = np.sign(y[B[0]] - y), np.ones(len(y), bool)
    else:
        found = solve(matrix, r[0, B].reshape(-1, 1))
        if found is None:
            return _exact_vertex(F, samples, r)
        change = Enclosure(found.middle.T * scale, found.radius.T * scale)
        left = (r - samples.moves(change))[0]
        signs, sure = -np.sign(left.middle), abs(left.middle) > left.radius
        met = _copies(z, y, B) if not samples.inexact.any() else np.isin(np.arange(len(y)), B)
    s = np.where(met, s, signs)
    s[B] = 0
    rest = samples.sums(s[None])
    dual = solve(matrix.T, Enclosure(-rest.middle.T, rest.radius.T) * scale[:, None])
    if (sure | met).all() and dual is not None and (dual.magnitude <= 1).all():
        return change
    return _exact_vertex(F, samples, r)


def _independent(z: np.ndarray) -> np.ndarray:
    """Return as many rows (N, k) as there are columns, the most independent ones."""
    order = scipy.linalg.qr(z.T, mode="r", pivoting=True, check_finite=False)[1]
    return order[: z.shape[1]]


def _exact_vertex(F: np.ndarray, samples: Samples, r: Enclosure) -> Enclosure | None:
    """Return what `_vertex_change` does, in fractions: for few features and few targets met.

    More targets may be met than there are features, and subgradients may be -1 or 1.
    """
    z, y, s = samples.z, samples.y[0], samples.chosen[0]
    near = abs(r.middle[0]) <= MET * (abs(z) @ abs(F[0]) + abs(y))
    rows = np.flatnonzero(near)
    if not z.shape[1] <= min(FEW, len(rows)) or len(rows) > 5 * FEW or samples.inexact.any():
        return None
    B = rows[_independent(z[rows])]
    vertex = rational_solution(z[B].tolist(), y[B].tolist())
    if vertex is None:
        return None
    off = [float(v - Fraction(f)) for v, f in zip(vertex, F[0].tolist(), strict=True)]
    change = np.array([off])
    change = Enclosure(change, EPSILON * abs(change) + SMALLEST)
    left = (r - samples.moves(change))[0]
    if not (near | (abs(left.middle) > left.radius)).all():
        return None
    signs = -np.sign(left.middle)
    for i in rows:
        o = sum(Fraction(a) * v for a, v in zip(z[i].tolist(), vertex, strict=True))
        signs[i] = (o > y[i]) - (o < y[i])
    free = (signs == 0) & (abs(s) < INSIDE)
    s = np.where(free, s, np.where(signs == 0, np.sign(s), signs))
    sums = [
        sum(Fraction(a) * Fraction(b) for a, b in zip(s.tolist(), column, strict=True))
        for column in z.T.tolist()
    ]
    steps = rational_solution(z[free].T.tolist(), [-v for v in sums])
    if steps is None:
        return None
    best = [Fraction(v) + step for v, step in zip(s[free].tolist(), steps, strict=True)]
    return change if all(abs(v) <= 1 for v in best) else None


def _nearest_median(y: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Return the median of y (N,) that is nearest to F (1, 1), of an interval where N is even."""
    ordered = np.sort(y)
    return np.clip(F, ordered[(len(y) - 1) // 2], ordered[len(y) // 2])


def _copies(z: np.ndarray, y: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return which samples, features z (N, k) and targets y (N,), equal one of those in B."""
    numbers = identical(np.column_stack([z, y]))
    return np.isin(numbers, numbers[B])


FITS: dict[type, Callable[..., Enclosure | None]] = {
    AbsoluteLoss: absolute_change,
    SquaredLoss: squared_change,
    CrossEntropy: entropy_change,
    HuberLoss: huber_change,
}
