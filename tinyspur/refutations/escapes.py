"""Searches for lower points near a given one: what they find refutes that it is a local minimum.

A search that finds nothing proves nothing.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.optimize

from ..certificates.assumptions import estimated
from ..certificates.enclosed_algebra import two_sum
from ..certificates.rounding import rounded_risk
from ..datasets.samples import TrainingSet
from ..engine.activations import check_piecewise_linear
from ..engine.backend import Array, namespace, to_numpy
from ..engine.floats import QUIET
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import generator, real, whole_number
from ..errors import AssumptionError
from ..shown import Shown
from ..tasks import run_tasks
from .expansion import coordinate_rates, expand_risk, in_float64, kinks_of

TRIALS = 4  # random filters, or directions in a layer, that are tried at a time
TINY = 1e-6  # a step so small that it only shows to which side of the kink units go
REACH = 0.02  # max-norm distance within which lower points are looked for, if none is given
STEPS, SHRINK = 20, 4  # of a line search: how many, and the ratio of each to the next


@dataclass(frozen=True, repr=False)
class Escape(Shown):
    """A point reached from theta, whose risk is lower by `decrease` if that is positive.

    Where it can be reached with any `step` > 0, however small, theta is not a local minimum; the
    function that returns it says so. `step` is the size of the move as the construction scales it,
    `distance` its largest entry and `length` its Euclidean length. `decrease` is R(theta) - `risk`,
    and rounding errors may explain up to `rounding` of it. `derivative` is the coefficient of step
    in the risk for an escape of first order, that of step^2 for one of second order. `assumes` says
    what is taken from a loss or an activation of a user's, whose rounding errors are estimated.
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
    assumes: str = ""

    def __str__(self) -> str:
        rate = "" if self.derivative is None else f", derivative {self.derivative:.3g}"
        rate += f", if {self.assumes}" if self.assumes else ""
        return (
            f"{self.kind}: step {self.step:g}, largest change {self.distance:.3g}, "
            f"Euclidean {self.length:.3g}, risk {self.risk:.9g}, lower by {self.decrease:.3g}{rate}"
        )


@np.errstate(**QUIET)
def measure_escape(
    theta: Parameters,
    nearby: Parameters,
    kind: str,
    step: float,
    data: TrainingSet,
    loss: Loss,
    derivative: float | None = None,
    before: tuple[float, float] | None = None,
) -> Escape:
    """Evaluate a point near theta and return it with its distance and its decrease.

    The decrease is counted from `before`, a risk and a bound of its error, by default those of
    theta.
    """
    risk, off = rounded_risk(theta, data, loss) if before is None else before
    after, off_after = rounded_risk(nearby, data, loss)
    move = nearby.vector.astype(np.float64) - theta.vector.astype(np.float64)
    return Escape(
        kind=kind,
        step=step,
        distance=float(abs(move).max()),
        length=float((move**2).sum()) ** 0.5,
        risk=after,
        decrease=risk - after,
        rounding=off + off_after,
        theta=nearby,
        derivative=derivative,
        assumes=estimated(loss, theta.net.activations),
    )


# Escapes of first order


def first_order_directions(
    theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0
) -> Iterator[tuple[Parameters, float]]:
    """Yield directions along which the risk falls at first order, and R'(theta; d) < 0, exact.

    For each layer with kinks in it or above, these are the steepest coordinate; all coordinates
    with negative rates, weighted by the rates or by their signs alone; and a few random filters,
    with biases that let half of the samples pass where the map matters most, since R' may be even
    and vanish along all coordinates. Rates are yielded if they are negative beyond rounding. Units
    that only rounding puts at the kink count as there; `Expansion.beyond` tells what is proved.
    """
    check_at(theta, data, loss)
    net, xp, theta = theta.net, namespace(theta.vector), in_float64(theta)
    rng = generator(seed)

    def highest(_: slice, columns: Array) -> int:
        tied = kinks_of(theta, columns)[1]
        return max((layer for layer in tied if bool(tied[layer].any())), default=0)

    top = max(net.over(theta, data.x, highest))
    both = [coordinate_rates(theta, data, loss, active) for active in (False, True) if top]
    for layer in (layer for layer in net.slots if layer <= top):
        here = net.zeros(like=theta.vector)
        here.vector[net.slots[layer].all] = 1
        tried = [_random_filters(theta, layer, data, loss, rng) for _ in range(TRIALS)]
        for up, down in both:
            rates = xp.minimum(xp.minimum(up.vector, down.vector), 0) * here.vector
            signs = xp.where(up.vector <= down.vector, 1.0, -1.0) * (rates < 0)
            tried += [signs * (xp.arange(net.size) == rates.argmin()), signs * -rates, signs]
        for vector in tried:
            direction = Parameters(net, here.vector * xp.asarray(vector))
            rate = expand_risk(theta, direction, data, loss)
            if rate.order == 1:
                yield direction, rate.first


def _random_filters(
    theta: Parameters, layer: int, data: TrainingSet, loss: Loss, rng: np.random.Generator
) -> np.ndarray:
    """Return a vector with random weights of `layer` and, where it is active, balancing biases.

    The bias of a map is minus the median response at the position whose activity moves the loss
    most, units at the kink being counted as active. The first chunk of samples decides.
    """
    net, xp = theta.net, namespace(theta.vector)
    direction = Parameters(net, xp.asarray(rng.uniform(-1, 1, net.size)))
    if not net.is_active(layer):
        return to_numpy(direction.vector)
    rows, columns = next(net.chunks(theta, data.x))
    trace, tied = kinks_of(theta, columns)
    delta = abs(loss.gradient(trace[-1].o, net.targets(theta, data, loss)[:, rows]))
    for step in reversed(trace[layer:]):
        if step.activation is not None:
            at_kink = tied.get(step.layer, False)
            delta = delta * xp.where(at_kink, 1.0, step.slopes)
        delta = abs(step.matrix).T @ delta
    if layer not in theta.b:
        return to_numpy(direction.vector)
    maps = len(theta.b[layer])
    W = direction.W[layer].trained
    place = to_numpy(delta[: W.rows].sum(axis=1)).reshape(maps, -1).argmax(axis=1)
    responses = to_numpy(W.by_map(W @ trace[layer - 1].below)).reshape(maps, -1, columns.shape[1])
    medians = np.median(responses[np.arange(maps), place], axis=1)
    direction.b[layer][...] = xp.asarray(-medians)
    return to_numpy(direction.vector)


# Escapes of second order


def second_order_directions(
    theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0
) -> Iterator[tuple[Parameters, float]]:
    """Yield directions along which R changes by rate * t^2 + O(t^3), and the exact rate < 0.

    A map, or dense neuron, with zero incoming weights and bias sits at the kink for every sample.
    It gets a random filter d and bias beta, and one weight of a layer q above moves by 1. Along the
    filter the derivative of R in that weight changes at the rate (1/N) sum_i W^q.gradient(delta^q,
    do^{q-1}); the weight with the largest rate is taken, and moves against its sign. A few filters
    are tried, and the highest layers q come first. Any one direction proves that theta is not a
    local minimum. Smooth activations have none.
    """
    check_at(theta, data, loss)
    theta, rng, unused = in_float64(theta), generator(seed), _unused_maps(theta)
    gradient = theta.net.gradient(theta, data, loss).vector if unused else None
    for first in range(0, len(unused), TRIALS):
        trials = []
        for layer, t in itertools.islice(itertools.cycle(unused), first, first + TRIALS):
            filters = theta.net.zeros(like=theta.vector)
            d, beta, _ = random_unit(theta, layer, t, data.x, rng)
            filters.W[layer].weights[t] = namespace(theta.vector).asarray(d)
            if layer in theta.b:
                filters.b[layer][t] = beta
            near = Parameters(theta.net, theta.vector + TINY * filters.vector)
            gained = theta.net.gradient(near, data, loss)
            gained.vector[...] -= gradient
            for q in (q for q in theta.net.slots if q > layer):
                entry = int(abs(gained.W[q].weights).argmax())
                rate = float(gained.W[q].weights.reshape(-1)[entry])
                trials.append((-q, -abs(rate), len(trials), filters, entry, -np.sign(rate)))
        for minus_q, *_, filters, entry, sign in sorted(trials):
            direction = filters.copy()
            direction.W[-minus_q].weights.reshape(-1)[entry] += float(sign)
            rate = expand_risk(theta, direction, data, loss)
            if rate.order == 2 and not rate.beyond:
                yield direction, rate.second


@np.errstate(**QUIET)
def kink_escape(
    theta: Parameters, data: TrainingSet, loss: Loss, step: float = 1e-2, seed: int = 0
) -> Escape:
    """Return the escape that puts an unused map at the kink to use, with eps = `step`.

    The reserved maps of the literal theta are unused ([CNN] (23)). The risk changes by rate * eps^2
    + O(eps^3), with the rate < 0 of `second_order_directions`: although the gradient may vanish,
    theta is no local minimum.
    Raises AssumptionError where there is no such map or no rate is negative, ValueError for a
    smooth activation.
    """
    direction, rate = next(second_order_directions(theta, data, loss, seed), (None, 0.0))
    _check_positive("step", step)
    check_piecewise_linear(theta.net.activations, "escape from the kink")
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
    """Return (layer, map) of all maps with kinks whose incoming weights and bias are zero."""
    found = []
    for layer in (n for n in theta.net.kinked_layers if n in theta.net.slots):
        weights = to_numpy(theta.W[layer].weights)
        used = weights.reshape(len(weights), -1).any(axis=1)
        if layer in theta.b:
            used |= to_numpy(theta.b[layer]) != 0
        found += [(layer, int(t)) for t in np.flatnonzero(~used)]
    return found


def random_unit(
    theta: Parameters, layer: int, t: int, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return a random filter d of map t of `layer`, beta, and z = d . patch + beta (P, N).

    z is positive for half of the samples at the position where it varies most: a map that is active
    for all of them would add nothing that the affine fit does not have already. Without biases beta
    is 0.
    """
    W = theta.W[layer]
    d, row, live = rng.uniform(-1, 1, W.weights.shape[1:]), slice(0, 1), live_part(theta)
    point = live.point
    if W.groups == 1:  # of maps that are not 0
        read = d.reshape(W.maps_in, -1)[live.kept[layer - 1]]
        read = read.reshape(1, *point.W[layer].weights.shape[1:])
        filters = namespace(W.weights).asarray(read, dtype=W.weights.dtype)
    else:  # what a map reads depends on its group
        filters = namespace(W.weights).zeros_like(W.weights)
        filters[t] = namespace(W.weights).asarray(d, dtype=W.weights.dtype)
        row = slice(t, t + 1)
    z = point.net.filter_responses(point, layer, filters, x)
    z = z.reshape(len(filters), W.positions_out, -1)[row][0]
    beta = -float(np.median(z[z.std(axis=1).argmax()])) if layer in theta.b else 0.0
    z += beta
    return d, beta, z


# Any escape within a radius


@np.errstate(**QUIET)
def find_escape(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    radius: float,
    starts: int = 4,
    iterations: int = 50,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | Path | None = None,
) -> Escape | None:
    """Return the lowest point found within max-norm distance `radius` of theta, or None.

    Tries the escapes from the kink of first and second order, then L-BFGS-B within the ball from
    theta and from ``starts - 1`` random points: two in the ball, two in one of a quarter of its
    radius, and so on. A point counts where its risk is below R(theta) by more than rounding
    explains. What a descent reaches does not refute a local minimum: it shows that theta is not the
    lowest point of the ball. Finding nothing proves nothing; within the radius of a certificate
    there is nothing to be found. The descents go to `executor`, and to the file `path` when they
    are done, as in `run_each`. Raises ValueError for settings or parameters out of range, and what
    `run_each` raises.
    """
    check_at(theta, data, loss)
    starts, iterations = whole_number("starts", starts), whole_number("iterations", iterations)
    ball = _Ball(theta, radius)
    if not math.isfinite(in_float64(theta).net.risk(theta, data, loss)):
        raise ValueError("escape: expected a finite risk at theta, got NaN or infinity")
    steepest = sorted(first_order_directions(theta, data, loss, seed), key=operator.itemgetter(1))
    kind = "kink, first order"
    found = [ball.line_search(d, kind, data, loss, rate) for d, rate in steepest[:TRIALS]]
    for direction, rate in itertools.islice(second_order_directions(theta, data, loss, seed), 1):
        found.append(ball.line_search(direction, "kink, second order", data, loss, rate))
    descent = partial(_descent, ball, data, loss, iterations, seed)
    found += run_tasks("find_escape", descent, range(starts), executor, path)
    lower = [escape for escape in found if escape.decrease > escape.rounding]
    return max(lower, key=lambda escape: escape.decrease, default=None)


def _descent(
    ball: _Ball, data: TrainingSet, loss: Loss, iterations: int, seed: int, number: int
) -> Escape:
    """Return where the descent with this number ends."""
    theta, rng = ball.theta, generator(seed)
    rng.bit_generator.advance(number * theta.net.size)  # past the numbers of the descents before
    move = ball.radius * rng.uniform(-1, 1, theta.net.size) / SHRINK ** ((number - 1) // 2)
    start = to_numpy(theta.vector) + (move if number else 0)
    kind = "descent from a random point nearby" if number else "descent"
    point = ball.descend(start, data, loss, iterations)
    return measure_escape(theta, point, kind, ball.radius, data, loss)


class _Ball:
    """The points within max-norm distance `radius` of theta, in theta's type."""

    def __init__(self, theta: Parameters, radius: float):
        _check_positive("radius", radius)
        self.theta, self.radius = theta, radius
        self.low, self.high = self._corner(-radius), self._corner(radius)

    @np.errstate(invalid="ignore")
    def _corner(self, move: float) -> np.ndarray:
        """Return theta + move on the host, rounded towards theta so as to stay in the ball."""
        theta = to_numpy(self.theta.vector)
        corner = (theta.astype(np.float64) + move).astype(theta.dtype)
        gap, rest = two_sum(corner.astype(np.float64), -theta.astype(np.float64))  # exactly
        at_border = (abs(gap) == self.radius) & (np.sign(gap) * rest > 0)
        far = (abs(gap) > self.radius) | at_border
        return np.where(far, np.nextafter(corner, theta), corner)  # rounding is less than a place

    def point(self, vector: np.ndarray) -> Parameters:
        """Return the point of the ball that is nearest to `vector`."""
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


def _check_positive(name: str, value: float) -> None:
    if not 0 < real(value) < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
