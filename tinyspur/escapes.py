"""Searches for lower points near a given one: what they find refutes that it is a local minimum.

Along a line theta + t d the network is expanded in powers of t for t -> 0+. A unit at the kink
takes the side of the first term of its z that is not zero, so the expansion holds there too. A
search that finds nothing proves nothing.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize

from .backend import Array, namespace, to_numpy
from .certificates import AT_THE_KINK, EPSILON, ROUNDING, preactivation_rounding, risk_rounding
from .fitting import AssumptionError
from .losses import Loss
from .network import Parameters, TrainingSet

TRIALS = 4  # random filters, or directions in a layer, that are tried at a time
TINY = 1e-6  # a step that shows to which side of the kink units go
STEPS, SHRINK = 20, 4  # of a line search: how many, and the ratio of each to the next


@dataclass(frozen=True)
class Escape:
    """A point reached from theta, whose risk is lower by `decrease` if that is positive.

    Where it can be reached with any `step` > 0, however small, theta is not a local minimum; the
    function that returns it says so. `step` is the size of the move as the construction scales it,
    `distance` its largest and `length` its Euclidean size, `decrease` = R(theta) - `risk`, and
    `rounding` what of it rounding may account for. `derivative` is the coefficient of the step in
    the risk for an escape of first order, that of step^2 for one of second order.
    """

    kind: str
    step: float
    distance: float
    length: float
    risk: float
    decrease: float
    rounding: float
    theta: Parameters
    derivative: float | None = None

    def __str__(self) -> str:
        rate = "" if self.derivative is None else f", derivative {self.derivative:.3g}"
        return (
            f"{self.kind}: step {self.step:g}, largest change {self.distance:.3g}, "
            f"Euclidean {self.length:.3g}, risk {self.risk:.9g}, lower by {self.decrease:.3g}{rate}"
        )


def measure_escape(
    theta: Parameters,
    nearby: Parameters,
    kind: str,
    step: float,
    data: TrainingSet,
    loss: Loss,
    derivative: float | None = None,
) -> Escape:
    """Evaluate a point near theta and return it with its distance and its decrease."""
    move = nearby.vector.astype(np.float64) - theta.vector.astype(np.float64)
    before, after = theta.net.risk(theta, data, loss), theta.net.risk(nearby, data, loss)
    return Escape(
        kind=kind,
        step=step,
        distance=float(abs(move).max()),
        length=float((move**2).sum()) ** 0.5,
        risk=after,
        decrease=before - after,
        rounding=risk_rounding(theta, data, loss) + risk_rounding(nearby, data, loss),
        theta=nearby,
        derivative=derivative,
    )


# The expansion along a line


class Expansion(NamedTuple):
    """R(theta + t d) = R(theta) + `first` t + `second` t^2 + O(t^3), and their rounding errors."""

    first: float
    second: float
    first_rounding: float
    second_rounding: float


def one_sided_derivative(
    theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss
) -> float:
    """Return R'(theta; d) = lim (R(theta + t d) - R(theta)) / t, t -> 0+, exact at kinks too.

    dz^l = D^l o^{l-1} + W^l do^{l-1} + db^l, and do^l is sigma'(z) dz off the kink, sigma(dz) on
    it. A unit is at the kink where rounding explains its z, as `certify_cell` decides, in float64
    arithmetic; kinks of the loss likewise. Raises ValueError for a direction of another network.
    """
    return expand_risk(theta, direction, data, loss).first


def expand_risk(
    theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss
) -> Expansion:
    """Return the first two terms of the risk for t -> 0+; see `one_sided_derivative`."""
    if direction.net != theta.net:
        raise ValueError(f"direction: expected one of {theta.net}, got {direction.net}")
    theta, direction = _in_float64(theta), _in_float64(direction)
    y, sums = theta.net.targets(theta, data, loss), np.zeros(4)
    for rows, columns in theta.net.chunks(theta, data.x):
        o, errors = _expand(theta, direction, columns)
        g = loss.gradient(o[0], y[:, rows])
        if hasattr(loss, "subgradients"):  # where o meets y, its first move tells the side
            low, high = loss.subgradients(o[0], y[:, rows], AT_THE_KINK * errors[0])
            where = namespace(g).where
            move = where(abs(o[1]) > AT_THE_KINK * errors[1], o[1], o[2])
            g = where(move > 0, high, low)
        bent = loss.curvature(o[0], y[:, rows], o[1])
        terms = (
            g * o[1],
            g * o[2] + bent * o[1] / 2,
            abs(g) * errors[1] + errors[0] * abs(o[1]),
            abs(g) * errors[2] + errors[0] * abs(o[2]) + abs(bent) * errors[1],
        )
        sums += [float(term.sum()) for term in terms]
    return Expansion(*(sums / len(data)).tolist())


def _expand(
    theta: Parameters, direction: Parameters, columns: Array
) -> tuple[list[Array], list[Array]]:
    """Return o and errors: o[0] + t o[1] + t^2 o[2] is what columns (n_0, N) give at theta + t d.

    The errors are those of rounding. At the kink the first term of z that is not zero decides.
    """
    net, xp, unit = theta.net, namespace(columns), ROUNDING * EPSILON
    trace = list(net.layerwise(theta, columns))
    rounding = preactivation_rounding(theta, columns, trace, np.float64)
    zeros = xp.zeros_like(columns)
    o, errors = [columns, zeros, zeros], [unit * abs(columns), zeros, zeros]
    for layer, (z0, o0) in enumerate(trace, start=1):
        W, below, inexact = theta.W[layer], o, errors
        o = [o0, *(W @ below[k] for k in (1, 2))]
        errors = [rounding[layer - 1], *(abs(W) @ inexact[k] for k in (1, 2))]
        if layer in theta.b:
            D = direction.W[layer]
            bias = xp.repeat(direction.b[layer], W.positions_out)[:, None]
            o[1], o[2] = o[1] + D @ below[0] + bias, o[2] + D @ below[1]
            errors[1] = errors[1] + abs(D) @ inexact[0] + unit * abs(bias)
            errors[2] = errors[2] + abs(D) @ inexact[1]
        if net.is_active(layer):
            lead, tied = z0, abs(z0) <= AT_THE_KINK * errors[0]
            for k in (1, 2):
                lead = xp.where(tied, o[k], lead)
                tied = tied & (abs(o[k]) <= AT_THE_KINK * errors[k])
                slopes = net.activation.derivative(lead)
                o[k], errors[k] = slopes * o[k], slopes * errors[k]
        errors = [e + unit * abs(term) for e, term in zip(errors, o, strict=True)]
    return o, errors


# Escapes of first order


def coordinate_rates(
    theta: Parameters, data: TrainingSet, loss: Loss, active: bool = False
) -> tuple[Parameters, Parameters]:
    """Return the one-sided derivatives of the risk along + and along - every coordinate.

    Exact for a layer above which nothing is at the kink; kinks above it count as inactive, or as
    `active`, and those of the loss as flat, which is good for choosing directions only. With
    delta = (1/N) dl/do^l they are, for ReLU,
    +-W.gradient(delta [z > 0], o) + W.gradient(delta [z = 0], max(+-o, 0)).
    """
    theta = _in_float64(theta)
    net, xp, slope = theta.net, namespace(theta.vector), theta.net.activation.slope
    y, up, down = net.targets(theta, data, loss), *(net.zeros(like=theta.vector) for _ in "+-")
    for rows, columns in net.chunks(theta, data.x):
        trace, tied = _kinks(theta, columns)
        delta = loss.gradient(trace[-1][1], y[:, rows]) / len(data)
        for layer in range(net.depth, 0, -1):
            z, W, kinked = trace[layer - 1][0], theta.W[layer], xp.zeros_like(delta)
            if net.is_active(layer):
                kinked = (1 - slope) * delta * tied[layer]
                delta = delta * net.activation.derivative(xp.where(tied[layer], 0, z))
            if layer in theta.b:
                o = trace[layer - 2][1] if layer > 1 else columns
                smooth = W.gradient(delta, o)
                for rates, sign in ((up, 1), (down, -1)):
                    weights, biases = rates.W[layer].weights, rates.b[layer]
                    weights += sign * smooth + W.gradient(kinked, xp.maximum(sign * o, 0))
                    raised = sign * delta + max(sign, 0) * kinked
                    biases += raised.reshape(len(biases), -1).sum(axis=1)
            if layer > 1:
                delta = W.T @ (delta + kinked if active else delta)
    return up, down


def _kinks(theta: Parameters, columns: Array) -> tuple[list, dict[int, Array]]:
    """Return (z, o) for each layer, and which units are at the kink for each active layer."""
    trace = list(theta.net.layerwise(theta, columns))
    rounding = preactivation_rounding(theta, columns, trace, np.float64)
    return trace, {
        layer: abs(trace[layer - 1][0]) <= AT_THE_KINK * rounding[layer - 1]
        for layer in theta.net.active_layers
    }


def first_order_directions(
    theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0
) -> Iterator[tuple[Parameters, float]]:
    """Yield directions along which the risk falls at first order, and R'(theta; d) < 0, exact.

    For each layer with kinks in it or above: the steepest coordinate, all coordinates with negative
    rates weighted by them, the same by their signs alone, and a few random directions, since R'
    can be even and vanish along all coordinates. What is yielded is negative beyond rounding: any
    one direction proves that theta is not a local minimum.
    """
    net, xp, theta = theta.net, namespace(theta.vector), _in_float64(theta)
    rng, top = np.random.default_rng(seed), 0
    for _, columns in net.chunks(theta, data.x):
        tied = _kinks(theta, columns)[1]
        top = max([top, *(layer for layer in tied if bool(tied[layer].any()))])
    both = [coordinate_rates(theta, data, loss, active) for active in (False, True) if top]
    for layer in (layer for layer in theta.b if layer <= top):
        here = net.zeros(like=theta.vector)
        here.W[layer].weights[...] = here.b[layer][...] = 1
        tried = [rng.uniform(-1, 1, net.size) for _ in range(TRIALS)]
        for up, down in both:
            rates = xp.minimum(xp.minimum(up.vector, down.vector), 0) * here.vector
            signs = xp.where(up.vector <= down.vector, 1.0, -1.0) * (rates < 0)
            tried += [signs * (xp.arange(net.size) == rates.argmin()), signs * -rates, signs]
        for vector in tried:
            direction = Parameters(net, here.vector * xp.asarray(vector))
            rate = expand_risk(theta, direction, data, loss)
            if rate.first < -rate.first_rounding:
                yield direction, rate.first


# Escapes of second order


def second_order_directions(
    theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0
) -> Iterator[tuple[Parameters, float]]:
    """Yield directions along which R changes by rate * t^2 + O(t^3), and the exact rate < 0.

    A map, or dense neuron, with zero incoming weights and bias sits at the kink for every sample.
    It gets a filter d and a bias beta, a few random ones being tried, and one weight W^q above
    moves by 1 against the sign of its rate, an entry of (1/N) sum_i W^q.gradient(delta^q,
    do^{q-1}): what its derivative gains along the filter, by the step. The highest layers q come
    first. Any one direction proves that theta is not a local minimum.
    """
    theta, rng, unused = _in_float64(theta), np.random.default_rng(seed), _unused_maps(theta)
    gradient = theta.net.gradient(theta, data, loss).vector if unused else None
    for first in range(0, len(unused), TRIALS):
        trials = []
        for layer, t in itertools.islice(itertools.cycle(unused), first, first + TRIALS):
            filters = theta.net.zeros(like=theta.vector)
            d, beta, _ = random_unit(theta, layer, data.x, rng)
            filters.W[layer].weights[t] = namespace(theta.vector).asarray(d)
            filters.b[layer][t] = beta
            near = Parameters(theta.net, theta.vector + TINY * filters.vector)
            gained = theta.net.gradient(near, data, loss)
            gained.vector[...] -= gradient
            for q in (q for q in theta.b if q > layer):
                entry = int(abs(gained.W[q].weights).argmax())
                rate = float(gained.W[q].weights.reshape(-1)[entry])
                trials.append((-q, -abs(rate), len(trials), filters, entry, -np.sign(rate)))
        for minus_q, *_, filters, entry, sign in sorted(trials):
            direction = filters.copy()
            direction.W[-minus_q].weights.reshape(-1)[entry] += float(sign)
            rate = expand_risk(theta, direction, data, loss)
            if abs(rate.first) <= rate.first_rounding and rate.second < -rate.second_rounding:
                yield direction, rate.second


def kink_escape(
    theta: Parameters, data: TrainingSet, loss: Loss, step: float = 1e-2, seed: int = 0
) -> Escape:
    """Return the escape by a map at the kink that is not used, eps = `step` along its direction.

    The reserved maps of the literal theta are such ([CNN] (23)). The risk changes by -eps^2 |M| +
    O(eps^3), see `second_order_directions`: the gradient may vanish, yet theta is no local minimum.
    Raises AssumptionError where there is no such map or no rate is negative.
    """
    _check_positive("step", step)
    direction, rate = next(second_order_directions(theta, data, loss, seed), (None, 0.0))
    if direction is None:
        raise AssumptionError(
            "no escape from the kink: expected a map with zero weights and bias, at z = 0 for all "
            "samples, that lowers the risk in second order when it is used, got "
            f"{len(_unused_maps(theta))} with zero weights and bias, and none that does"
        )
    vector = (theta.vector + step * direction.vector).astype(theta.vector.dtype)
    near = Parameters(theta.net, vector)
    return measure_escape(theta, near, "kink, second order", step, data, loss, rate)


def _unused_maps(theta: Parameters) -> list[tuple[int, int]]:
    """Return (layer, map) wherever the incoming weights and the bias are zero before a kink."""
    found = []
    for layer in (layer for layer in theta.b if theta.net.is_active(layer)):
        weights, biases = to_numpy(theta.W[layer].weights), to_numpy(theta.b[layer])
        used = weights.reshape(len(biases), -1).any(axis=1) | (biases != 0)
        found += [(layer, int(t)) for t in np.flatnonzero(~used)]
    return found


def random_unit(
    theta: Parameters, layer: int, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return a random filter d of `layer`, beta, and z = d . patch + beta (P, N), half positive.

    A map that is active everywhere would add nothing that the affine fit does not have already.
    """
    weights = theta.W[layer].weights
    d = rng.uniform(-1, 1, weights.shape[1:])
    row = namespace(weights).asarray(d[None], dtype=weights.dtype)
    z = theta.net.filter_responses(theta, layer, row, x)
    beta = -float(np.median(z))
    return d, beta, z + beta


# Any escape within a radius


def find_escape(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    radius: float,
    starts: int = 4,
    iterations: int = 50,
    seed: int = 0,
) -> Escape | None:
    """Return the lowest point found within max-norm distance `radius` of theta, or None.

    Tries the escapes from the kink of first and second order, then L-BFGS-B within the ball from
    theta and from ``starts - 1`` random points: two in the ball, two in one of a quarter of its
    radius, and so on. A point counts where its risk is below R(theta) by more than rounding
    explains; what a descent reaches refutes no local minimum, only one over the whole ball.
    Finding nothing proves nothing; at a certified point, within its radius, there is nothing to be
    found. Raises ValueError for a radius that is not positive and finite, fewer than one start or
    iteration, parameters that are not finite.
    """
    ball, rng = _Ball(theta, radius), np.random.default_rng(seed)
    if starts < 1 or iterations < 1:
        raise ValueError(f"escape: expected starts, iterations >= 1, got {starts}, {iterations}")
    found = []
    steepest = sorted(first_order_directions(theta, data, loss, seed), key=operator.itemgetter(1))
    for direction, rate in steepest[:TRIALS]:
        found.append(ball.line_search(direction, "kink, first order", data, loss, rate))
    for direction, rate in itertools.islice(second_order_directions(theta, data, loss, seed), 1):
        found.append(ball.line_search(direction, "kink, second order", data, loss, rate))
    for number in range(starts):
        move = radius * rng.uniform(-1, 1, theta.net.size) / SHRINK ** ((number - 1) // 2)
        start = to_numpy(theta.vector) + (move if number else 0)
        kind = "descent from a random point nearby" if number else "descent"
        point = ball.descend(start, data, loss, iterations)
        found.append(measure_escape(theta, point, kind, radius, data, loss))
    lower = [escape for escape in found if escape.decrease > escape.rounding]
    return max(lower, key=lambda escape: escape.decrease, default=None)


class _Ball:
    """The points within max-norm distance `radius` of theta, in theta's type."""

    def __init__(self, theta: Parameters, radius: float):
        _check_positive("radius", radius)
        self.theta, self.radius = theta, radius
        self.low, self.high = self._corner(-radius), self._corner(radius)

    def _corner(self, move: float) -> np.ndarray:
        """Return theta + move on the host, rounded towards theta where that is too far."""
        theta = to_numpy(self.theta.vector)
        centre = theta.astype(np.float64)
        corner = (centre + move).astype(theta.dtype)
        while (far := abs(corner - centre) > self.radius).any():
            corner = np.where(far, np.nextafter(corner, theta), corner)
        return corner

    def point(self, vector: np.ndarray) -> Parameters:
        """Return the point of the ball next to `vector`."""
        inside = np.clip(vector, self.low, self.high).astype(self.low.dtype)
        return Parameters(self.theta.net, namespace(self.theta.vector).asarray(inside))

    def line_search(
        self, direction: Parameters, kind: str, data: TrainingSet, loss: Loss, derivative: float
    ) -> Escape:
        """Return the lowest point of steps that shrink from the border of the ball."""
        origin, move = to_numpy(self.theta.vector), to_numpy(direction.vector)
        steps = (self.radius / abs(move).max() / SHRINK ** np.arange(STEPS)).tolist()
        points = (self.point(origin + step * move) for step in steps)
        risks = [point.net.risk(point, data, loss) for point in points]
        step = steps[int(np.nan_to_num(risks, nan=np.inf).argmin())]
        point = self.point(origin + step * move)
        return measure_escape(self.theta, point, kind, step, data, loss, derivative)

    def descend(
        self, start: np.ndarray, data: TrainingSet, loss: Loss, iterations: int
    ) -> Parameters:
        """Return the lowest point that L-BFGS-B (SciPy) evaluates in the ball, from a start."""
        best: list = [np.inf, self.theta]

        def risk_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
            point = self.point(vector)
            risk, gradient = point.net.risk_and_gradient(point, data, loss)
            if risk < best[0]:
                best[:] = risk, point
            return risk, to_numpy(gradient.vector).astype(np.float64)

        scipy.optimize.minimize(
            risk_and_gradient,
            np.clip(start, self.low, self.high).astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(self.low, self.high),
            options={"maxiter": iterations, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
        )
        return best[1]


def _in_float64(theta: Parameters) -> Parameters:
    if not bool(namespace(theta.vector).isfinite(theta.vector).all()):
        raise ValueError("escape: expected finite parameters, got NaN or infinite ones")
    return Parameters(theta.net, theta.vector.astype(np.float64))


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
