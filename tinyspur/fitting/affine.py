"""The optimal affine fit of a group of samples: argmin_F sum_i l(F (x_i, 1), y_i)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import ArrayLike

from ..engine.floats import QUIET
from ..engine.losses import LEAST_SQUARES, AbsoluteLoss, CrossEntropy, HuberLoss, Loss, check_loss
from ..engine.plain import plain_on_host
from ..errors import AssumptionError
from ..shown import Shown
from .gram_sums import block_sum, gram_sum

NEWTON_STEPS = 500
GRADIENT_GOAL = 1e-12
NEAR = 1e-12  # of the targets: no shorter step is told from rounding
LOGIT_LIMIT = 1e4
LEAST_CURVATURE = 1e-200
MET = 1e-12  # a target counts as met up to this share of the terms that the output is summed from
WELL = 1e-10  # of a scaled Gram matrix: the least 1 / condition number with which it is used
SMALLEST_LENGTH = 1e-140  # of a feature whose square is no subnormal number
REFINED = 4  # times that what is left of the targets is fitted
LARGEST = 1e140  # target and feature, so that sums of squares are finite
FAR = 1e7  # times its delta: a Huber loss of larger targets is not told from the absolute one
CONSTANT = 1e-13  # a feature that varies by less than this share of its size is constant


@dataclass(frozen=True, repr=False)
class AffineFit(Shown):
    """The affine map o = W x + b of least risk.

    `weights` (d_y, d_x), `bias` (d_y,), the `risk`, the largest entry of the `gradient`
    G = (1/N) sum_i g_i (x_i, 1)^T, the `rank` of the features (x_i, 1) and the Newton `steps`
    (0 for least squares and linear programs).
    """

    weights: np.ndarray
    bias: np.ndarray
    risk: float
    gradient: float
    rank: int
    steps: int

    def __str__(self) -> str:
        return (
            f"affine fit: risk {self.risk:.9g}, largest gradient {self.gradient:.1e}, "
            f"features of rank {self.rank} of {self.weights.shape[1] + 1}"
        )


@np.errstate(**QUIET)
def fit_affine(x: ArrayLike, y: ArrayLike, loss: Loss) -> AffineFit:
    """Return the optimal affine fit of targets y (N, d_y) to features x (N, d_x), in float64.

    Squared loss: the least-norm least squares solution, rank-deficient features included. Absolute
    loss: a linear program for each output, whose minimiser meets as many targets as there are
    features. Any other loss, which has to be convex and differentiable: Newton's method, to a
    gradient of 1e-12; raises AssumptionError where no minimiser exists, as for the cross-entropy of
    separable classes ([CNN] Lemma 8 needs one). If the gradient of a loss underflows while it
    falls, a fit without a minimiser may go unnoticed. Raises ValueError for shapes that don't
    match and numbers that are too large, as targets beyond 1e7 delta for a Huber loss,
    RuntimeError if the method stalls.
    """
    x, y = plain_on_host("x", x), plain_on_host("y", y)
    check_loss(loss)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise ValueError(
            "fit: expected x (N, d_x) and y (N, d_y) with the same N >= 1, "
            f"got {x.shape} and {y.shape}"
        )
    x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("fit: expected finite x and y, got NaN or infinite values")
    check_loss(loss, y.T)
    most = FAR * loss.delta if type(loss) is HuberLoss else LARGEST
    limits = ("features", x, LARGEST), ("targets", y, min(most, LARGEST))
    for name, values, limit in limits[: 1 + (type(loss) is not AbsoluteLoss)]:
        largest = float(abs(values).max(initial=0))
        if largest > limit:
            raise ValueError(f"fit: expected {name} up to {limit:g}, got up to {largest:g}")
    size = float(abs(x).max(initial=0))
    scale = -int(np.frexp(size)[1]) if 0 < size < SMALLEST_LENGTH else 0
    x = np.ldexp(x, scale) if scale else x  # so that squares are no subnormal numbers
    mean, low, high = x.mean(axis=0), x.min(axis=0), x.max(axis=0)
    varies = np.maximum(high - mean, mean - low) > CONSTANT * np.maximum(high, -low)
    lengths = np.sqrt(np.einsum("ij,ij->j", x, x))
    rounding = max(x.shape) * np.finfo(float).eps * lengths.max(initial=0)
    squares = type(loss) in LEAST_SQUARES
    solution = _by_normal_equations(x, y, mean, varies, rounding) if squares else None
    if solution is None:
        centred = x - mean
        centred[:, ~varies] = 0
    if squares:
        if solution is None:
            solution = _least_squares(centred, y - y.mean(axis=0), rounding)
        weights, rank = solution
        bias, steps = y.mean(axis=0) - mean @ weights, 0
    elif type(loss) is AbsoluteLoss:
        weights, offset, rank, met = _least_deviations(centred, y, rounding)
        bias, steps = offset - mean @ weights, 0
        # The vertices are solved for again, with the features as they are, not centred or scaled.
        for k, rows in list(enumerate(met)) * 2:
            if not rows.size:
                continue
            missed = y[rows, k] - (x[rows] @ weights[:, k] + bias[k])
            features = np.hstack([centred[rows], np.ones((len(rows), 1))])
            correction = np.linalg.lstsq(features, missed)[0]
            weights[:, k] += correction[:-1]
            bias[k] += correction[-1] - mean @ correction[:-1]
    elif hasattr(loss, "subgradients"):
        raise AssumptionError(f"fit: expected AbsoluteLoss() or a smooth loss, got {loss!r}")
    else:
        weights, offset, rank, steps = _newton_regression(centred, y, loss, rounding)
        bias = offset - mean @ weights
    o = weights.T @ x.T + bias[:, None]
    if type(loss) is AbsoluteLoss:
        features = np.hstack([x, np.ones((len(x), 1))])
        close = MET * (abs(weights.T) @ abs(x.T) + abs(bias)[:, None] + abs(y).max())
        residual = stationary_subgradient(features, *loss.subgradients(o, y.T, close))
    else:
        residual = loss.gradient(o, y.T)
    if scale:
        x, weights = np.ldexp(x, -scale), np.ldexp(weights, scale)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise ValueError(f"fit: expected features so large that weights are finite, got {size:g}")
    risk, gradient = loss.value(o, y.T).mean(), [residual @ x, residual.sum(axis=1)]
    largest = max(float(abs(part).max(initial=0)) for part in gradient) / len(x)
    return AffineFit(weights.T, bias, float(risk), largest, rank + 1, steps)


def stationary_subgradient(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return g (d_y, N) between `low` and `high` with the least |g x|, for features x (N, d).

    The last feature is the constant 1. If g x = 0 can be reached, the fit of a loss with kinks is
    optimal. The least is found by bounded least squares over the samples where there is a choice.
    """
    g, x = low.copy(), x.astype(np.float64)
    # Since the ones are a feature too, the condition stays the same, and is better scaled.
    x[:, :-1] -= x[:, :-1].mean(axis=0)
    x /= np.maximum(abs(x).max(axis=0), np.finfo(float).tiny)
    for k, free in enumerate(low < high):
        if free.any():
            rest = g[k, ~free] @ x[~free]
            found = scipy.optimize.lsq_linear(
                x[free].T, -rest, (low[k, free], high[k, free]), method="bvls"
            )
            g[k, free] = found.x
    return g


def _by_normal_equations(
    x: np.ndarray, y: np.ndarray, mean: np.ndarray, varies: np.ndarray, rounding: float
) -> tuple[np.ndarray, int] | None:
    """Return the least squares solution (d_x, d_y) and the rank, or None if features may depend.

    For features x - mean, of which those that do not vary count as zero, and y less its mean.
    Cholesky's factors of the Gram matrix, scaled to a diagonal of ones, solve for what is left of
    y, a few times: each time the error shrinks by its condition number times the unit roundoff.
    """
    if len(x) <= varies.sum() or not varies.any():
        return None
    used = slice(None) if varies.all() else varies

    def block(rows: slice) -> np.ndarray:
        return (x[rows] - mean)[:, used]

    gram = gram_sum(block, len(x))
    lengths = np.sqrt(np.diag(gram))
    if not (np.isfinite(lengths).all() and lengths.min() > SMALLEST_LENGTH):
        return None
    gram /= lengths
    gram /= lengths[:, None]
    factor, failed = scipy.linalg.lapack.dpotrf(gram)
    if failed:
        return None
    least, _ = scipy.linalg.lapack.dpocon(factor, abs(gram).sum(axis=0).max())
    if not (least > WELL and lengths.min() * np.sqrt(least) > rounding):
        return None
    weights, y = np.zeros((len(gram), y.shape[1])), y - y.mean(axis=0)

    def left(rows: slice) -> np.ndarray:
        z = block(rows)
        return z.T @ (y[rows] - z @ weights)

    for _ in range(REFINED):
        sums = block_sum(left, len(x)) / lengths[:, None]
        step = scipy.linalg.cho_solve((factor, False), sums, check_finite=False)
        weights += step / lengths[:, None]
    found = np.zeros((x.shape[1], y.shape[1]))
    found[used] = weights
    return found, len(gram)


def _least_squares(x: np.ndarray, y: np.ndarray, rounding: float) -> tuple[np.ndarray, int]:
    """Return the least-norm solution (d_x, d_y) and the rank, by a complete orthogonal QR.

    What is below `rounding` in the features x counts as zero.
    """
    largest = np.linalg.norm(x, axis=0).max(initial=0)
    if largest <= rounding:
        return np.zeros((x.shape[1], y.shape[1])), 0
    weights, _, rank, _ = scipy.linalg.lstsq(
        x, y, cond=rounding / largest, lapack_driver="gelsy", check_finite=False
    )
    return weights, int(rank)


def _least_deviations(
    x: np.ndarray, y: np.ndarray, rounding: float
) -> tuple[np.ndarray, np.ndarray, int, list[np.ndarray]]:
    """Return weights (d_x, d_y), offset (d_y,), the rank and the samples whose targets are met.

    The linear program finds a vertex, which is then solved for again from the targets that it
    meets.
    """
    basis, back, rank = _orthonormal(x, rounding)
    features = np.hstack([basis, np.ones((len(x), 1))])
    n, d = features.shape
    identity = scipy.sparse.identity(n, format="csr")
    constraints = scipy.sparse.hstack([scipy.sparse.csr_array(features), identity, -identity])
    costs = np.concatenate([np.zeros(d), np.ones(2 * n)])
    bounds = [(None, None)] * d + [(0, None)] * (2 * n)
    coefficients, vertices = [], []
    middle = np.median(y, axis=0)
    size = np.maximum(abs(y - middle).max(axis=0), np.finfo(float).tiny)
    for target in ((y - middle) / size).T:
        found = scipy.optimize.linprog(
            costs, A_eq=constraints, b_eq=target, bounds=bounds, method="highs-ds"
        )
        if found.status != 0:
            raise RuntimeError(f"least absolute deviations: {found.message}")
        residuals = abs(found.x[d : d + n] - found.x[d + n :])
        met = np.argsort(residuals, kind="stable")
        met = met[residuals[met] <= 1e-9]
        exact = np.linalg.lstsq(features[met], target[met])[0] if met.size >= d else found.x[:d]
        coefficients.append(exact)
        vertices.append(met if met.size >= d else met[:0])
    coefficients = np.array(coefficients) * size[:, None]
    return back @ coefficients[:, :-1].T, coefficients[:, -1] + middle, rank, vertices


def _newton_regression(
    x: np.ndarray, y: np.ndarray, loss: Loss, rounding: float
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return weights (d_x, d_y), offset (d_y,), rank and steps for centred features x.

    For a Huber loss the fits of losses with larger delta come first, each the start of the next.
    """
    basis, back, rank = _orthonormal(x, rounding)
    features = np.vstack([basis.T, np.ones(len(x))])  # (rank + 1, N), rows of mean square 1
    coefficients, steps = np.zeros((y.shape[1], rank + 1)), 0
    stages: list[Loss] = [loss]
    while type(loss) is HuberLoss and stages[0].delta < np.ptp(y):
        stages.insert(0, HuberLoss(4 * stages[0].delta))
    for stage in stages:
        coefficients, taken = _newton(features, coefficients, y.T, stage)
        steps += taken
    return back @ coefficients[:, :-1].T, coefficients[:, -1], rank, steps


def _newton(
    features: np.ndarray, coefficients: np.ndarray, y: np.ndarray, loss: Loss
) -> tuple[np.ndarray, int]:
    """Return the coefficients (d_y, rank + 1) of the fit to targets (d_y, N), and the steps.

    SciPy's trust region leads to where changes of the risk drown in rounding; Newton steps without
    one go on until those of the gradient do. In an orthonormal basis of the features the length of
    a step is the root mean square of the move of the logits, and conjugate gradients are short.
    """
    risk = _Risk(features, y, loss)
    goal = GRADIENT_GOAL * max(1.0, float(abs(loss.gradient(coefficients @ features, y)).max()))
    goal = max(goal, 8 * np.finfo(float).eps * float(abs(y).max()))
    near = max(1e-6, NEAR * float(abs(y).max()))
    c = scipy.optimize.minimize(
        risk.value_and_gradient,
        coefficients.ravel(),
        method="trust-ncg",
        jac=True,
        hessp=risk.hessian_product,
        callback=risk.after_step,
        options={"gtol": 1e4 * goal, "maxiter": NEWTON_STEPS, "max_trust_radius": np.inf},
    ).x
    while risk.steps < NEWTON_STEPS:
        gradient = risk.value_and_gradient(c)[1]
        hessian = scipy.sparse.linalg.LinearOperator(
            (c.size, c.size), functools.partial(risk.hessian_product, c)
        )
        with np.errstate(**QUIET):
            step, _ = scipy.sparse.linalg.cg(hessian, -gradient, rtol=1e-6, atol=risk.rounding(c))
        flat, moved = abs(gradient).max() <= goal, abs(risk.moves(step)).max()
        if not np.isfinite(moved):  # there is no curvature along the gradient
            break
        # The third derivative of the risk along a line is at most the second times the move of the
        # logits: after a full step this short a minimiser exists and is this close. Where there is
        # none, the gradient and the curvature vanish together, and the steps stay about as long.
        if flat and moved <= near:
            return (c + step).reshape(coefficients.shape), risk.steps
        if flat and moved > 0.01 and not risk.bounded:
            raise risk.without_minimiser(c)
        c = c + step
        risk.after_step(c)
    raise RuntimeError(
        f"{loss.name} regression: expected a gradient of {goal:g} within {NEWTON_STEPS} Newton "
        f"steps, got {abs(risk.value_and_gradient(c)[1]).max():.1e} with logits up to "
        f"{abs(risk.outputs(c)).max():.3g}"
    )


class _Risk:
    """The risk of coefficients c, the entries of C (d_y, rank + 1): the mean of l(C f_i, y_i)."""

    def __init__(self, features: np.ndarray, y: np.ndarray, loss: Loss):
        self.features, self.y, self.loss, self.steps = features, y, loss, 0
        self.c, self.o = None, None
        self.entropy = type(loss) is CrossEntropy
        positive = self.entropy and bool(y.min() > 0)
        self.bounded = positive or type(loss) is HuberLoss  # there is a minimiser
        self.hard = bool((y.max(axis=0) == 1).all())

    def outputs(self, c: np.ndarray) -> np.ndarray:
        """Return o (d_y, N), computed once for all Hessian products with the same c."""
        if self.c is None or not np.array_equal(c, self.c):
            self.c, self.o = c.copy(), self.moves(c)
        return self.o

    def moves(self, d: np.ndarray) -> np.ndarray:
        """Return how far a step d moves the outputs, (d_y, N)."""
        return d.reshape(len(self.y), -1) @ self.features

    def summed(self, g: np.ndarray) -> np.ndarray:
        """Return (1/N) sum_i g_i f_i^T; of the cross-entropy no shift of o, which is rounding."""
        total = g @ self.features.T / self.y.shape[1]
        return (total - total.mean(axis=0) if self.entropy else total).ravel()

    def value_and_gradient(self, c: np.ndarray) -> tuple[float, np.ndarray]:
        o = self.outputs(c)
        return self.loss.value(o, self.y).mean(), self.summed(self.loss.gradient(o, self.y))

    def rounding(self, c: np.ndarray) -> float:
        """Return the length of what rounding adds to the gradient."""
        size = abs(self.loss.gradient(self.outputs(c), self.y)) @ abs(self.features.T)
        return float(np.finfo(float).eps * np.linalg.norm(size) / self.y.shape[1])

    def hessian_product(self, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Return H d; 0 for a curvature so small that its inverse overflows."""
        bent = self.summed(self.loss.curvature(self.outputs(c), self.y, self.moves(d)))
        return np.where(abs(bent) < LEAST_CURVATURE * abs(d).max(), 0, bent)

    def after_step(self, c: np.ndarray) -> None:
        """Raise AssumptionError if a map separates the classes, or its logits grow for ever."""
        self.steps += 1
        if not self.entropy:
            return
        o = self.outputs(c)
        lead = (o * self.y).sum(axis=0) - o.max(axis=0, where=self.y < 1, initial=-np.inf)
        if (self.hard and lead.min() > 0) or np.ptp(o, axis=0).max() > LOGIT_LIMIT:
            raise self.without_minimiser(c)

    def without_minimiser(self, c: np.ndarray) -> AssumptionError:
        if not self.entropy:
            return AssumptionError(
                f"{self.loss.name} regression has no minimiser: gradient and curvature vanish"
            )
        risk, logits = self.value_and_gradient(c)[0], abs(self.outputs(c)).max()
        return AssumptionError(
            f"softmax regression has no minimiser: the risk ({risk:.3g}) falls as long as the "
            f"logits grow ({logits:.3g} after {self.steps} Newton steps), because an affine map "
            "separates classes; no local minimum of this kind exists. Smooth the labels, or use "
            "the squared loss"
        )


def _orthonormal(x: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return features (N, rank) with mean square 1, `back` (d_x, rank), the rank.

    features = x @ back, so that weights c on the features are weights back @ c on x.
    """
    _, triangle, order = scipy.linalg.qr(x, mode="economic", pivoting=True, check_finite=False)
    rank = int((abs(np.diag(triangle)) > rounding).sum())
    back = np.zeros((x.shape[1], rank))
    if rank:
        inverse = scipy.linalg.solve_triangular(triangle[:rank, :rank], np.eye(rank))
        back[order[:rank]] = inverse * np.sqrt(len(x))
    return x @ back, back, rank
