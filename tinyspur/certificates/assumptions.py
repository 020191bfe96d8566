"""What certificates take from objects of users: checked where it is used, and said to be assumed.

A check can find that a loss is not convex, or that a derivative is not one; it can't prove that
they are. A certificate that rests on such an object says so.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import KNOWN as KNOWN_ACTIVATIONS
from ..engine.activations import Activation
from ..engine.backend import to_numpy
from ..engine.losses import KNOWN as KNOWN_LOSSES
from ..engine.losses import Loss, gradient_at, values_at
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


def assumed(loss: Loss, activations: Iterable[Activation] = ()) -> str:
    """Return what a proof takes from a user's loss or activation without proof; "" for none."""
    found = []
    if type(loss) not in KNOWN_LOSSES:
        kinks = ", has optimal fits" if hasattr(loss, "subgradients") else ""
        found.append(f"the loss {loss!r} is convex{kinks} and has the derivatives that it returns")
    for sigma in activations:
        if type(sigma) not in KNOWN_ACTIVATIONS.values():
            found.append(f"{sigma} has the derivatives that it returns")
    return " and ".join(found)


def estimated(loss: Loss, activations: Iterable[Activation]) -> str:
    """Return what a comparison of risks takes from a user's loss or activations; "" for none."""
    users = [f"the loss {loss!r}"] * (type(loss) not in KNOWN_LOSSES)
    users += [str(s) for s in activations if type(s) not in KNOWN_ACTIVATIONS.values()]
    right = "right within the rounding errors that are estimated"
    return f"the values and derivatives of {' and '.join(users)} are {right}" if users else ""


def check_at_point(theta: Parameters, data: TrainingSet, loss: Loss) -> None:
    """Raise AssumptionError as `check_activation` and `check_loss` do, at theta, in float64."""
    check_at(theta, data, loss)
    own = all(type(sigma) in KNOWN_ACTIVATIONS.values() for sigma in theta.net.activations)
    if type(loss) in KNOWN_LOSSES and own:
        return
    outputs = []
    for _, columns in theta.net.chunks(theta, data.x):
        trace = list(steps(theta, columns))
        outputs.append(to_numpy(trace[-1].o))
        for step in trace:
            if step.activation is not None:
                check_activation(step.activation, to_numpy(step.z).ravel())
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
    value, slopes, unit = values_at(loss, o, y), [gradient_at(loss, o, y)], 16 * np.finfo(float).eps
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
