"""The risk along a line theta + t d, for t -> 0+, exact where units sit at the kink.

A unit at the kink goes to the side of the first term of its z that is not zero. Of equal entries a
max pooling takes the one that is larger in the first term in which they differ. Smooth activations
have no kink.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..certificates.enclosed_functions import spread
from ..certificates.rounding import curvature_rounding, gradient_rounding, preactivation_rounding
from ..datasets.samples import TrainingSet
from ..engine.activations import Activation
from ..engine.backend import Array, namespace
from ..engine.floats import gamma
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import Step, margins, steps


class Expansion(NamedTuple):
    """R(theta + t d) = R(theta) + `first` t + `second` t^2 + O(t^3), and their rounding errors.

    Units that rounding can't tell from the kink are taken to be there. What the terms may be off by
    if they are next to it is `first_unsure` and `second_unsure`; such units are at most `unsure`
    away in z. `kinked` says whether anything at a kink moves: where nothing does the risk is smooth
    along the line, in both directions.
    """

    first: float
    second: float
    first_rounding: float
    second_rounding: float
    first_unsure: float
    second_unsure: float
    unsure: float
    kinked: bool

    @property
    def order(self) -> int:
        """Return the order at which the risk is seen to fall, 0 for none.

        With every unit that is unsure at the kink; the second where the first term is rounding.
        """
        if self.first < -self.first_rounding:
            return 1
        flat = abs(self.first) <= self.first_rounding
        return 2 if flat and self.second < -self.second_rounding else 0

    @property
    def beyond(self) -> float:
        """Return from about which step t on the risk falls; 0 where theta is proved no minimum.

        At second order the first term has to be exactly 0, or the risk smooth along the line: then
        it falls in one of the two directions in any case.
        """
        if self.order == 1:
            sure = self.first < -(self.first_rounding + self.first_unsure)
            return 0.0 if sure else self.unsure
        flat = self.first == 0 == self.first_rounding + self.first_unsure or not self.kinked
        sure = flat and self.second < -(self.second_rounding + self.second_unsure)
        return 0.0 if sure else max(self.unsure, self.first_rounding / -self.second)


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
    check_at(theta, data, loss)
    check_points(theta.net, direction)
    theta, direction = in_float64(theta), in_float64(direction)
    y, sums = theta.net.targets(theta, data, loss), np.zeros(6)
    far, kinked = 0.0, False
    for rows, columns in theta.net.chunks(theta, data.x):
        o, errors, unsure, distance, moving = _expand(theta, direction, columns)
        targets, far, kinked = y[:, rows], max(far, distance), kinked or moving
        g, off = loss.gradient(o[0], targets), gradient_rounding(loss, o[0], targets, errors[0])
        if hasattr(loss, "subgradients"):  # where o meets y, its first move tells the side
            where = namespace(g).where
            low, high = loss.subgradients(o[0], targets, errors[0])
            move = where(abs(o[1]) > errors[1], o[1], o[2])
            g, off = where(move > 0, high, low), where(errors[0] > 0, off, 0.0)
            kinked = kinked or bool(((low < high) & (abs(move) > 0)).any())
        bent = loss.curvature(o[0], targets, o[1])
        inexact = curvature_rounding(loss, o[0], targets, o[1], errors[0])
        terms = (
            g * o[1],
            g * o[2] + bent * o[1] / 2,
            abs(g) * errors[1] + off * (abs(o[1]) + errors[1]),
            abs(g) * errors[2]
            + off * (abs(o[2]) + errors[2])
            + abs(bent) * errors[1]
            + inexact * abs(o[1]),
            (abs(g) + off) * unsure[0],
            (abs(g) + off) * unsure[1] + abs(bent) * unsure[0],
        )
        sums += [float(term.sum()) for term in terms]
        for k in (0, 1):
            sums[2 + k] += gamma(len(data)) * float(abs(terms[k]).sum())
    return Expansion(*(sums / len(data)).tolist(), far, kinked)


def _expand(
    theta: Parameters, direction: Parameters, columns: Array
) -> tuple[list[Array], list[Array], list[Array], float, bool]:
    """Return o and errors: o[0] + t o[1] + t^2 o[2] is what columns (n_0, N) give at theta + t d.

    The errors are those of rounding. At the kink the first term of z that is not zero decides. Of
    units that only rounding puts there, return what they may change in o[1] and o[2], and the
    largest bound of their |z|; at last whether anything at a kink moves.
    """
    xp, far, kinked = namespace(columns), 0.0, False
    trace = list(steps(theta, columns))
    rounding = preactivation_rounding(abs(theta), trace, np.float64)
    zeros = xp.zeros_like(columns)
    o, errors, unsure = [columns, zeros, zeros], [zeros, zeros, zeros], [zeros, zeros]
    for step, inexact_z in zip(trace, rounding, strict=True):
        W, sigma, below, inexact, doubt = step.W, step.activation, o, errors, unsure
        unit = gamma(W.fan_in + 2)
        if W.selects:
            still = (abs(below[1]) + abs(below[2])) == 0
            kinked = kinked or not bool((W.gaps(below[0], still, inexact[0]) > 0).all())
            apart = W.gaps(below[0], still=inexact[0] == 0, change=inexact[0]) > 0
            near = ~apart & (W @ inexact[0] > 0)
            far = max(far, float(xp.where(near, 2 * (W @ inexact[0]), 0.0).max()))
            doubt = [xp.where(near, 2 * (W @ abs(below[k])), W @ doubt[k - 1]) for k in (1, 2)]
            W = W.at_limit(below, inexact)
        size = abs(W)
        o = [step.o, *(W @ below[k] for k in (1, 2))]
        errors = [inexact_z, *(size @ (inexact[k] + unit * abs(below[k])) for k in (1, 2))]
        unsure = doubt if step.W.selects else [size @ doubt[k] for k in (0, 1)]
        if W.weights is not None:
            D, widest = direction.W[step.layer].trained, abs(direction.W[step.layer]).trained
            bias = xp.zeros((len(step.z), 1), dtype=step.z.dtype)
            if step.b is not None:
                bias = W.spread(direction.b[step.layer])[:, None]
            o[1], o[2] = o[1] + D @ below[0] + bias, o[2] + D @ below[1]
            errors[1] = errors[1] + widest @ (inexact[0] + unit * abs(below[0])) + unit * abs(bias)
            errors[2] = errors[2] + widest @ (inexact[1] + unit * abs(below[1]))
            unsure[1] = unsure[1] + widest @ doubt[0]
        if step.kinked:
            lead, tied = step.z, ~(step.heights > errors[0])
            near = tied & (errors[0] > 0)
            kinked = kinked or bool((tied & (abs(o[1]) + abs(o[2]) > 0)).any())
            far = max(far, float(xp.where(near, abs(step.z) + errors[0], 0.0).max()))
            jump = abs(1 - sigma.slope)
            for k in (1, 2):
                lead = xp.where(tied, o[k], lead)
                tied = tied & ~(abs(o[k]) > errors[k])
                slopes = sigma.derivative(lead)
                steepest = xp.where(near, max(1.0, sigma.slope), slopes)
                unsure[k - 1] = steepest * unsure[k - 1] + xp.where(near, jump * abs(o[k]), 0.0)
                o[k], errors[k] = slopes * o[k], steepest * errors[k]
        elif sigma is not None:
            unsure = [abs(step.slopes) * doubt for doubt in unsure]
            o, errors = through_smooth(sigma, step.z, o, errors)
        if sigma is not None:
            errors[0] = spread(sigma, step.z, step.o, inexact_z)
    return o, errors, unsure, far, kinked


def through_smooth(
    sigma: Activation, z0: Array, o: list[Array], errors: list[Array]
) -> tuple[list[Array], list[Array]]:
    """Return o[0] = sigma(z0), sigma' z1 and sigma' z2 + sigma'' z1^2 / 2, and their errors.

    z1 and z2 come as o[1] and o[2]. The errors are of first order, with the third derivative from
    differences.
    """
    unit, (e0, e1, e2), (_, z1, z2) = gamma(2), errors, o
    slope, bend = sigma.derivative(z0), sigma.second_derivative(z0)
    turn = sigma.second_derivative(z0 + e0) - sigma.second_derivative(z0 - e0)
    slope_error = abs(bend) * e0 + unit * abs(slope)
    bend_error = abs(turn) / 2 + unit * abs(bend)
    return [o[0], slope * z1, slope * z2 + bend * z1**2 / 2], [
        abs(slope) * e0,
        abs(slope) * e1 + slope_error * abs(z1),
        abs(slope) * e2 + slope_error * abs(z2) + abs(bend * z1) * e1 + bend_error * z1**2 / 2,
    ]


def coordinate_rates(
    theta: Parameters, data: TrainingSet, loss: Loss, active: bool = False
) -> tuple[Parameters, Parameters]:
    """Return the one-sided derivatives of the risk along + and along - every coordinate.

    They are exact for a layer above which nothing is at the kink. Units at the kink above it count
    as inactive, or with `active` as active, and kinks of the loss as flat: good enough for choosing
    directions, but no proof. With delta = (1/N) dl/do^l they are, for ReLU, +-W.gradient(delta [z >
    0], o) + W.gradient(delta [z = 0], max(+-o, 0)), and +-W.gradient(delta sigma'(z), o) for a
    smooth activation.
    """
    check_at(theta, data, loss)
    theta = in_float64(theta)
    net, xp = theta.net, namespace(theta.vector)
    y, up, down = net.targets(theta, data, loss), *(net.zeros(like=theta.vector) for _ in "+-")
    for rows, columns in net.chunks(theta, data.x):
        trace, tied = kinks_of(theta, columns)
        delta = loss.gradient(trace[-1].o, y[:, rows]) / len(data)
        for step in reversed(trace):
            o, W, kinked = step.below, step.matrix, xp.zeros_like(delta)
            if step.kinked:
                at_kink, sigma = tied[step.layer], step.activation
                kinked = (1 - sigma.slope) * delta * at_kink
                delta = delta * sigma.derivative(xp.where(at_kink, 0, step.z))
            elif step.activation is not None:
                delta = delta * step.slopes
            if W.weights is not None:
                smooth = W.gradient(delta, o)
                for rates, sign in ((up, 1), (down, -1)):
                    weights = rates.W[step.layer].weights
                    weights += sign * smooth + W.gradient(kinked, xp.maximum(sign * o, 0))
                    if step.b is not None:
                        biases = rates.b[step.layer]
                        raised = sign * delta + max(sign, 0) * kinked
                        biases += W.by_map(raised).sum(axis=1)
            if step.layer > 1:
                delta = W.T @ (delta + kinked if active else delta)
    return up, down


def kinks_of(theta: Parameters, columns: Array) -> tuple[list[Step], dict[int, Array]]:
    """Return the pass, and which units are at the kink for layers with a pattern.

    With a smooth activation these are max poolings: units for which two entries are the largest.
    """
    trace = list(steps(theta, columns))
    rounding = preactivation_rounding(abs(theta), trace, np.float64)
    return trace, {layer: ~(least > rounding[layer - 1]) for layer, least in margins(trace).items()}


def in_float64(theta: Parameters) -> Parameters:
    check_points(None, theta)
    if not bool(namespace(theta.vector).isfinite(theta.vector).all()):
        raise ValueError("escape: expected finite parameters, got NaN or infinite ones")
    return Parameters(theta.net, theta.vector.astype(np.float64))
