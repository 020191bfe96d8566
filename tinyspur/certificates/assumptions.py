"""What certificates take from objects of users: checked where it is used, and said to be assumed.

A check can find that a loss is not convex, or that a derivative is not one; it can't prove that
they are. A certificate that rests on such an object says so.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import KNOWN as KNOWN_ACTIVATIONS
from ..engine.activations import Activation
from ..engine.backend import to_numpy
from ..engine.losses import KNOWN as KNOWN_LOSSES
from ..engine.losses import CrossEntropy, Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import steps
from ..engine.user_activations import check_derivatives
from ..errors import AssumptionError

NEAR = (0.0, -0.1, 0.1)  # where, seen from its arguments, an activation is looked at
STEPS = 10.0 ** np.arange(-5, 4)  # of the moves that are tried, relative to |o - y|
TOLERANCE = 1e-10  # what rounding may add to a loss, relative to its size
STEP = 1e-6  # of the moves that give differences of gradients
CURVED = 1e-4  # the relative error of a Hessian product; a difference of gradients is as exact
FLOOR = 1e-14  # terms of a loss that cancel, such as log 2, may leave so much
NULL = 1e-12  # a Hessian product counts as 0 up to this share of the Hessian


def assumed(loss: Loss, sigma: Activation | None = None) -> str:
    """Return what a proof takes from a user's loss or activation without proof; "" for none."""
    found = []
    if type(loss) not in KNOWN_LOSSES:
        kinks = ", has optimal fits" if hasattr(loss, "subgradients") else ""
        found.append(f"the loss {loss!r} is convex{kinks} and has the derivatives that it returns")
    if sigma is not None and type(sigma) not in KNOWN_ACTIVATIONS.values():
        found.append(f"{sigma} has the derivatives that it returns")
    return " and ".join(found)


def check_at_point(theta: Parameters, data: TrainingSet, loss: Loss) -> None:
    """Raise AssumptionError as `check_activation` and `check_loss` do, at theta, in float64."""
    check_at(theta, data, loss)
    sigma = theta.net.activation
    if type(loss) in KNOWN_LOSSES and type(sigma) in KNOWN_ACTIVATIONS.values():
        return
    outputs = []
    for _, columns in theta.net.chunks(theta, data.x):
        trace = list(steps(theta, columns))
        outputs.append(to_numpy(trace[-1].o))
        for step in trace:
            if step.activation is not None:
                check_activation(sigma, to_numpy(step.z).ravel())
    check_loss(loss, np.concatenate(outputs, axis=1), data.y.T)


def check_activation(sigma: Activation, z: np.ndarray) -> None:
    """Raise AssumptionError where the derivatives of a user's activation are wrong at or near z."""
    if type(sigma) in KNOWN_ACTIVATIONS.values():
        return
    near = np.concatenate([z + step for step in NEAR])
    try:
        check_derivatives(sigma, near)
    except ValueError as error:
        raise AssumptionError(str(error)) from error


def check_loss(loss: Loss, o: np.ndarray, y: np.ndarray, seed: int = 0) -> None:
    """Raise AssumptionError where a user's loss is seen not to be convex, or its derivatives wrong.

    At outputs o and targets y (d_y, N) of all samples, on the host: l(o + d) >= l(o) + g . d for
    moves d of all sizes, towards the targets and in random directions, with g the gradient and, at
    a kink, any corner of the subgradients; Hessian products are differences of gradients, and
    d . H d >= 0.
    """
    if type(loss) not in KNOWN_LOSSES:
        rng = np.random.default_rng(seed)
        with np.errstate(over="ignore"):
            _check(loss, o, y, rng)


def _check(loss: Loss, o: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
    value, slopes, unit = loss.value(o, y), [loss.gradient(o, y)], 16 * np.finfo(float).eps
    if hasattr(loss, "subgradients"):
        low, high = loss.subgradients(o, y, unit * (abs(o) + abs(y)))
        slopes += [low, high, np.where(rng.random(o.shape) < 0.5, low, high)]
    size = np.maximum(abs(o - y).max(axis=0), unit * abs(o).max(axis=0))
    size = np.where(size > 0, size, 1.0)
    moves = [sign * d for d in (y - o, size * rng.normal(size=o.shape)) for sign in (1, -1)]
    what = "l(o + d) >= l(o) + g . d, as of a convex loss with gradient g,"
    for step in STEPS:
        for d in moves:
            near = loss.value(o + step * d, y)
            for g in slopes:
                below = value + step * (g * d).sum(axis=0) - near
                terms = abs(value) + abs(near) + step * abs(g * d).sum(axis=0)
                slack = TOLERANCE * terms + unit * (abs(g) * (abs(o) + abs(y))).sum(axis=0)
                slack += FLOOR
                _expect(below <= slack, loss, what, below)
    g = slopes[0]
    for d in moves:
        bent = loss.curvature(o, y, d)
        along = (d * bent).sum(axis=0)
        _expect(along >= -NULL * abs(d * bent).sum(axis=0), loss, "d . H d >= 0", along)
        sides = [(loss.gradient(o + h * d, y) - g) / h for h in (STEP, -STEP)]
        slack = CURVED * (abs(sides[0]) + abs(sides[1]) + abs(g)) + 1e-9 * (1 + abs(g).max())
        fits = (bent >= np.minimum(*sides) - slack) & (bent <= np.maximum(*sides) + slack)
        what = "Hessian products as differences of gradients,"
        _expect(fits.all(axis=0), loss, what, abs(bent - sides[0]).max(axis=0))


def _expect(true: np.ndarray, loss: Loss, what: str, off: np.ndarray) -> None:
    if not true.all():
        n = int((~true).argmax())
        raise AssumptionError(
            f"loss {loss!r}: expected {what} got a difference of {float(off[n]):.3g} at sample {n}"
        )


def distance_to_fit(
    loss: Loss, x: np.ndarray, o: np.ndarray, y: np.ndarray, g: np.ndarray, errors: np.ndarray
) -> float:
    """Return how far the optimal affine fit of some samples moves their outputs, at most about.

    For features x (N, d), outputs and targets (d_y, N), gradients g and what they may be off by:
    |sum_i (|g_i| + errors) q_i| / lambda for an orthonormal basis q of the features, lambda the
    least eigenvalue of sum_i c_i q_i q_i^T, and c_i the least curvature of the loss at sample i. It
    is infinite where a curvature underflows. Losses that reach their least value for any data,
    squared, absolute and Huber, need no such bound: 0. Of a user's loss with kinks it is assumed.
    """
    attained = type(loss) in KNOWN_LOSSES and not isinstance(loss, CrossEntropy)
    if attained or hasattr(loss, "subgradients"):
        return 0.0
    lengths = np.linalg.norm(x, axis=0)
    u, sizes, _ = np.linalg.svd(x[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)
    q = u[:, sizes > max(x.shape) * np.finfo(float).eps * sizes[0]]
    weights = q * least_curvature(loss, o, y)[:, None]
    least = float(np.linalg.eigvalsh(q.T @ weights)[0])
    left = float(np.linalg.norm(abs(g @ q) + errors @ abs(q)))
    if not least > np.finfo(float).tiny:
        return np.inf
    return left / least * float(np.linalg.norm(q, axis=1).max())


def least_curvature(loss: Loss, o: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the least eigenvalue of the Hessian of the loss in o, shape (N,).

    Where a shift of all outputs changes no loss, the least one orthogonal to it; for the
    cross-entropy at least min_k p_k, by interlacing.
    """
    d_y, samples = o.shape
    if d_y == 1 and type(loss) is CrossEntropy:
        return np.ones(samples)  # the loss is constant
    if type(loss) is CrossEntropy:
        shifted = np.exp(o - o.max(axis=0))
        return shifted.min(axis=0) / shifted.sum(axis=0)
    H = np.empty((samples, d_y, d_y))
    for k in range(d_y):
        one = np.zeros_like(o)
        one[k] = 1
        H[:, :, k] = loss.curvature(o, y, one).T
    values = np.linalg.eigvalsh((H + H.swapaxes(1, 2)) / 2)
    shifts = d_y > 1 and (abs(H.sum(axis=2)).max() <= NULL * abs(H).max())
    return values[:, 1] if shifts else values[:, 0]
