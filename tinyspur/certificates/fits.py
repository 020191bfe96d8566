"""The optimal affine fits of samples, enclosed: how far they are from given maps.

An optimal fit F* is hardly ever a matrix of floats. For each loss the conditions of optimality are
shown to have a solution near a given F: the sums of gradients there are computed in doubled
precision, and what inverts them is shown to be regular.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from ..datasets.duplicates import identical
from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from ..fitting.affine import stationary_subgradient
from .enclosed_algebra import solve, two_sum
from .enclosed_functions import exp, log
from .enclosures import QUIET, WIDER, Enclosure, concatenate, exact
from .exact import rational_solution
from .gram import GramInverse, Samples, row_lengths

STEPS = 200  # of conjugate gradients
INSIDE = 1 - 1e-6  # subgradients below this may be corrected
FEW = 12  # features up to which a vertex is solved for in fractions
FRACTIONS = 50_000  # products of fractions up to which they are formed
MET = 1e-9  # a target may be met up to this share of the terms that the output is summed from


def squared_change(loss: SquaredLoss, F: np.ndarray, samples: Samples) -> Enclosure | None:
    """Return sum_i (y_i - F z_i) z_i^T A^-1, A the Gram matrix; None where it may be singular."""
    if samples.z.shape[1] == 1 == len(samples) and (samples.z == 1).all():
        return exact(samples.y) - F
    inverse, r = GramInverse.of(samples), samples.residuals(F)
    if inverse is None:
        return None
    return _inverted(inverse, samples.sums(r.middle), row_lengths(r.radius))


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
    G, rounding = samples.sums(g), row_lengths(r.radius * inside)
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
    off = found.inverse.spread(np.full(len(F), found.size), sharp=True)
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
    total = y.sum(axis=0)
    if not (share.max() < 0.01 and p.min() > 1e-200 and total.min() > 1e-50):
        return None
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
    off = row_lengths((e / np.sqrt(low_q)).reshape(1, -1)) + row_lengths((tiny / np.sqrt(c))[None])
    rounding = float(off[0]) * (1 + gamma(e.size))
    return SoftmaxSums(
        G.middle,
        inverse,
        math.sqrt(square) * WIDER,
        rounding,
        math.sqrt(float(c.min())) * (1 - EPSILON),
    )


@np.errstate(**QUIET)  # where curvatures are nearly 0 there is no step
def _newton_step(
    loss: CrossEntropy, F: np.ndarray, samples: Samples, found: SoftmaxSums
) -> np.ndarray:
    """Return about H^-1 G, by conjugate gradients that A^-1 preconditions."""
    o = F @ samples.z.T

    def bent(d: np.ndarray) -> np.ndarray:
        move = d.reshape(F.shape) @ samples.z.T
        return (loss.curvature(o, samples.y, move) @ samples.z).ravel()

    def unbent(G: np.ndarray) -> np.ndarray:
        return found.inverse.solve(G.reshape(F.shape)).ravel()

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
        change = _vertex_change(F[k : k + 1], one, r[k : k + 1])
        if change is None:  # targets may be met up to more than the rounding of outputs
            one = replace(one, chosen=_chosen(F[k : k + 1], one, r[k : k + 1]))
            change = _vertex_change(F[k : k + 1], one, r[k : k + 1])
        if change is None:
            return None
        changes.append(change)
    return concatenate(changes)


def _chosen(F: np.ndarray, samples: Samples, r: Enclosure) -> np.ndarray:
    """Return subgradients (1, N) with sums of about 0, free where targets are met up to `MET`."""
    near, signs = _nearly_met(F, samples, r), -np.sign(r.middle)
    low, high = np.where(near, -1.0, signs), np.where(near, 1.0, signs)
    return stationary_subgradient(samples.z, low, high)


def _nearly_met(F: np.ndarray, samples: Samples, r: Enclosure) -> np.ndarray:
    """Return whether residuals of one output are small against the largest terms, (N,)."""
    return abs(r.middle[0]) <= MET * (abs(samples.z) @ abs(F[0]) + abs(samples.y[0])).max()


class Vertex(NamedTuple):
    """A fit of one output: how it differs, which samples it meets, and the signs of o - y, (N,)."""

    change: Enclosure
    met: np.ndarray
    signs: np.ndarray


def _vertex_change(F: np.ndarray, samples: Samples, r: Enclosure) -> Enclosure | None:
    """Return how the optimal least absolute deviations fit of one output differs from F (1, k).

    It is known which targets it meets, and the signs of all other residuals are proved. It is
    optimal as subgradients in [-1, 1] of those that are met make the sum of all s_i z_i exactly 0.
    """
    if samples.z.shape[1] == 1:
        return exact(_nearest_median(samples.y[0], F)) - F
    best = None  # there may be several optimal fits
    for way in (_constant, _enclosed_vertex, _exact_vertex):
        found = way(F, samples, r)
        size = np.inf if found is None else found.change.magnitude.max()
        nearer = best is None or size < best.magnitude.max()
        if found is not None and nearer and _balanced(samples, found):
            best = found.change
            if size <= MET * abs(F).max():
                break
    return best


def _constant(F: np.ndarray, samples: Samples, r: Enclosure) -> Vertex | None:
    """Return the fit that is constant, if all targets that seem to be met are one number."""
    y, inside = samples.y[0], abs(samples.chosen[0]) < INSIDE
    if not inside.any() or np.ptp(y[inside]):
        return None
    target = np.zeros_like(F)
    target[0, -1] = y[inside][0]
    return Vertex(exact(target) - F, y == target[0, -1], np.sign(target[0, -1] - y))


def _enclosed_vertex(F: np.ndarray, samples: Samples, r: Enclosure) -> Vertex | None:
    """Return the fit that meets k independent samples, and with them their copies."""
    z, y, inside = samples.z, samples.y[0], np.flatnonzero(abs(samples.chosen[0]) < INSIDE)
    if len(inside) < z.shape[1]:
        return None
    B = inside[_independent(z[inside])]
    matrix, scale = _scaled_rows(samples, B)
    found = solve(matrix, r[0, B].reshape(-1, 1))
    if found is None:
        return None
    change = Enclosure(found.middle.T * scale, found.radius.T * scale)
    left = (r - samples.moves(change))[0]
    numbers = np.arange(len(y)) if samples.inexact.any() else identical(np.column_stack([z, y]))
    met = np.isin(numbers, numbers[B])
    sure = met | (abs(left.middle) > left.radius)
    return Vertex(change, met, -np.sign(left.middle)) if sure.all() else None


def _exact_vertex(F: np.ndarray, samples: Samples, r: Enclosure) -> Vertex | None:
    """Return a fit in fractions: of few numbers that are not 0, which may meet more targets."""
    z, y = samples.z, samples.y[0]
    terms = (abs(z) * abs(F)).max(axis=0)
    rows = np.flatnonzero(_nearly_met(F, samples, r))
    columns = terms > MET * max(terms.max(), abs(y).max())
    columns[-1] = True
    few = columns.sum() <= min(FEW, len(rows)) and len(rows) * columns.sum() <= FRACTIONS
    if not few or samples.inexact.any() or not np.isfinite(F).all():
        return None
    start = [Fraction(f) for f in F[0, columns].tolist()]
    features = {int(i): list(map(Fraction, z[i, columns].tolist())) for i in rows}
    left = {i: Fraction(y[i]) - _dot(features[i], start) for i in features}
    B = rows[_independent(z[rows][:, columns])].tolist()
    step = rational_solution([features[i] for i in B], [left[i] for i in B])
    if step is None:
        return None
    best = np.full(z.shape[1], Fraction(0))
    best[columns] = [f + d for f, d in zip(start, step, strict=True)]
    change = np.array([[float(v - Fraction(f)) for v, f in zip(best, F[0].tolist(), strict=True)]])
    change = Enclosure(change, EPSILON * abs(change) + SMALLEST)
    after = (r - samples.moves(change))[0]
    signs, sure = -np.sign(after.middle), abs(after.middle) > after.radius
    for i in features:
        off = left[i] - _dot(features[i], step)
        signs[i], sure[i] = (off < 0) - (off > 0), True
    if not sure.all():
        return None
    return Vertex(change, signs == 0, signs)


def _balanced(samples: Samples, vertex: Vertex) -> bool:
    """Return whether subgradients of a fit are shown to make all sums 0: those near the `chosen`.

    Those of k independent samples B are solved for; where that fails, in fractions, those of all
    that are not -1 or 1.
    """
    z, s = samples.z, np.where(vertex.met, samples.chosen[0], vertex.signs)
    free = vertex.met & (abs(s) < INSIDE)
    inside = np.flatnonzero(free)
    if len(inside) >= z.shape[1]:
        B = inside[_independent(z[inside])]
        matrix, scale = _scaled_rows(samples, B)
        rest = samples.sums(np.where(np.isin(np.arange(len(s)), B), 0.0, s)[None])
        found = solve(matrix.T, -rest.T * scale[:, None])
        if found is not None and (found.magnitude <= 1).all():
            return True
    if samples.inexact.any() or max(z.shape[1], len(inside) / 5) > FEW or z.size > FRACTIONS:
        return False
    s = np.where(free, s, np.sign(s))
    sums = [_dot(map(Fraction, s.tolist()), map(Fraction, column)) for column in z.T.tolist()]
    steps = rational_solution(z[free].T.tolist(), [-v for v in sums])
    if steps is None:
        return False
    return all(abs(Fraction(v) + d) <= 1 for v, d in zip(s[free].tolist(), steps, strict=True))


def _dot(a: Iterable[Fraction], b: Iterable[Fraction]) -> Fraction:
    return sum((v * w for v, w in zip(a, b, strict=True)), Fraction(0))


def _scaled_rows(samples: Samples, rows: np.ndarray) -> tuple[Enclosure, np.ndarray]:
    """Return features of some samples, columns times powers of two, and these."""
    some = samples.of(rows)
    scale = 2.0 ** -np.round(np.log2(np.maximum(abs(some.z).max(axis=0), SMALLEST**0.5)))
    return Enclosure(some.z * scale, np.broadcast_to(some.inexact, some.z.shape) * scale), scale


def _independent(z: np.ndarray) -> np.ndarray:
    """Return as many rows (N, k) as there are columns, the most independent ones."""
    order = scipy.linalg.qr(z.T, mode="r", pivoting=True, check_finite=False)[1]
    return order[: z.shape[1]]


def _nearest_median(y: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Return the median of y (N,) that is nearest to F (1, 1), of an interval where N is even."""
    ordered = np.sort(y)
    return np.clip(F, ordered[(len(y) - 1) // 2], ordered[len(y) // 2])


FITS: dict[type, Callable[..., Enclosure | None]] = {
    AbsoluteLoss: absolute_change,
    SquaredLoss: squared_change,
    CrossEntropy: entropy_change,
    HuberLoss: huber_change,
}
