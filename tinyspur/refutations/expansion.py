"""The risk along a line theta + t d, for t -> 0+, exact where units sit at the kink.

A unit at the kink goes to the side of the first term of its z that is not zero. Of equal entries a
max pooling takes the one that is larger in the first term in which they differ. Of the activations
that are not piecewise linear ELU has a kink. All terms are enclosed: what they are in exact
arithmetic is within their bounds. Of losses and activations of users the bounds are estimates.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np

from ..certificates.enclosed_losses import loss_curvature, loss_gradient
from ..certificates.enclosed_passes import EnclosedStep, enclosed_steps
from ..certificates.enclosures import (
    QUIET,
    WIDER,
    Enclosure,
    between,
    concatenate,
    exact,
    product,
    sound,
)
from ..certificates.rounding import preactivation_rounding
from ..datasets.samples import TrainingSet
from ..engine.activations import ELU
from ..engine.backend import Array, namespace
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import Step, margins, steps
from ..layers import BlockMatrix, WeightMatrix

HELD = 3  # times the memory of a pass: that of the terms of what a layer reads and gives


class Expansion(NamedTuple):
    """R(theta + t d) = R(theta) + `first` t + `second` t^2 + O(t^3), and their rounding errors.

    Units, entries of a max pooling and outputs of a loss with kinks that rounding can't tell from
    the kink are taken to be there; `first_rounding` and `second_rounding` bound the errors of the
    terms then. With any that are not there the exact terms are still within `first_unsure` and
    `second_unsure`, which are no smaller. Such units are at most `unsure` away in z. `kinked` says
    whether anything at a kink moves: where nothing does the risk is smooth along the line, in both
    directions. A term of which nothing is known is NaN.
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
            return 0.0 if self.first < -self.first_unsure else self.unsure
        flat = self.first == 0 == self.first_unsure or not self.kinked
        sure = flat and self.second < -self.second_unsure
        return 0.0 if sure else max(self.unsure, self.first_rounding / -self.second)


def one_sided_derivative(
    theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss
) -> float:
    """Return R'(theta; d) = lim (R(theta + t d) - R(theta)) / t, t -> 0+, exact at kinks too.

    dz^l = D^l o^{l-1} + W^l do^{l-1} + db^l, and do^l is sigma'(z) dz off the kink, sigma(dz) on
    it. A unit is at the kink where rounding explains its z, in float64 arithmetic; kinks of the
    loss likewise. NaN where numbers overflow. Raises ValueError for a direction of another network.
    """
    return expand_risk(theta, direction, data, loss).first


def expand_risk(
    theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss
) -> Expansion:
    """Return the first two terms of the risk for t -> 0+; see `one_sided_derivative`."""
    check_at(theta, data, loss)
    check_points(theta.net, direction)
    theta, direction = in_float64(theta), in_float64(direction)
    line = _Line(theta, direction, data, loss)
    first, second = line.terms(sure=False)
    wide = line.terms(sure=True) if line.unsure else (first, second)
    values, rounding, unsure = [], [], []
    for at_kink, anywhere in zip((first, second), wide, strict=True):
        middle, radius = float(at_kink.middle), float(at_kink.radius)
        off = (abs(float(anywhere.middle) - middle) + float(anywhere.radius)) * WIDER
        values.append(middle if radius < math.inf else math.nan)
        rounding.append(radius)
        unsure.append(max(radius, off) if line.unsure else radius)
    return Expansion(*values, *rounding, *unsure, line.unsure, line.kinked)


class _Line:
    """The line theta + t d, and what is seen of kinks on the way: `unsure` and `kinked`."""

    def __init__(self, theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss):
        self.theta, self.direction, self.data, self.loss = theta, direction, data, loss
        self.y = theta.net.targets(theta, data, loss)
        self.unsure, self.kinked = 0.0, False

    @np.errstate(**QUIET)
    def terms(self, sure: bool) -> tuple[Enclosure, Enclosure]:
        """Return enclosures of both terms of the risk.

        Of what rounding can't tell from a kink, wherever that is if `sure`, else at the kink.
        """

        def chunk(rows: slice, columns: Array) -> tuple[list[Enclosure], _Line]:
            here, y = copy.copy(self), self.y[:, rows]  # its own, since threads see kinks together
            o = here._outputs(columns, sure)
            slopes = here._loss_slopes(o, y, sure)
            bent = loss_curvature(self.loss, o[0], y, o[1])
            terms = slopes[0] * o[1], slopes[1] * o[2] + bent * o[1] * 0.5
            return [term.sum(axis=0).sum() for term in terms], here

        found = []
        for terms, here in self.theta.net.over(self.theta, self.data.x, chunk, HELD):
            found.append(terms)
            self.unsure, self.kinked = max(self.unsure, here.unsure), self.kinked or here.kinked
        first, second = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
        return first / len(self.data), second / len(self.data)

    def _outputs(self, columns: Array, sure: bool) -> list[Enclosure]:
        """Return o: o[0] + t o[1] + t^2 o[2] is what columns (n_0, N) give at theta + t d."""
        still = exact(namespace(columns).zeros_like(columns))
        o = [exact(columns), still, still]
        for step in enclosed_steps(self.theta, columns):
            W, sigma, z = step.W, step.activation, [step.z]
            if W.selects:
                z += self._largest(W, o, sure)
            else:
                z += [_moved(W, term) for term in o[1:]]
            if W.weights is not None and self.direction.W[step.layer].weights.any():
                D = self.direction.W[step.layer].trained
                z[1:] = z[1] + product(D, o[0]), z[2] + product(D, o[1])
            if step.b is not None:
                z[1] = z[1] + exact(W.spread(self.direction.b[step.layer])[:, None])
            if sigma is None:
                o = z
            elif not _moves(z[1:]):
                o = [step.o, *z[1:]]
            elif sigma.piecewise_linear:
                slopes = self._sides(_own(W, z), float(sigma.slope), 1.0, sure)
                o = [step.o, *(slope * z_k for slope, z_k in zip(slopes, z[1:], strict=True))]
            elif type(sigma.alone) is ELU:
                first, second, bend = self._elu(step, z, sure)
                o = [step.o, first * z[1], second * z[2] + bend * z[1] ** 2 * 0.5]
            else:
                slope, bend = step.slopes, step.bends
                o = [step.o, slope * z[1], slope * z[2] + bend * z[1] ** 2 * 0.5]
        return o

    def _elu(
        self, step: EnclosedStep, z: list[Enclosure], sure: bool
    ) -> tuple[Enclosure, Enclosure, Enclosure]:
        """Return the slopes of ELU that count for z[1] and for z[2], and its bend for z[1].

        At the kink they are alpha, alpha on the left and 1, 0 on the right.
        """
        where, alpha = namespace(z[0].middle).where, float(step.activation.alone.alpha)
        met = (z[0].low <= 0) & (z[0].high >= 0)
        met[step.W.rows :] = False  # what a residual block keeps
        away = Enclosure(where(met, 0.0, 1.0), where(met, z[0].radius, 0.0))
        first, second = self._sides([away, *z[1:]], alpha, 1.0, sure)
        bend, _ = self._sides([away, *z[1:]], alpha, 0.0, sure)
        off = 2 * alpha * z[0].magnitude if sure else 0.0  # of alpha exp z next to the kink
        at_kink = (part.wider(off) for part in (first, second, bend))
        smooth = (step.slopes, step.slopes, step.bends)
        return tuple(
            Enclosure(where(met, a.middle, b.middle), where(met, a.radius, b.radius))
            for a, b in zip(at_kink, smooth, strict=True)
        )

    def _loss_slopes(self, o: list[Enclosure], y: Array, sure: bool) -> list[Enclosure]:
        """Return the gradient of the loss that counts for o[1], and that for o[2]."""
        gradient = loss_gradient(self.loss, o[0], y)
        if not hasattr(self.loss, "subgradients"):
            return [gradient, gradient]
        low, high = self.loss.subgradients(o[0].middle, y, o[0].radius)
        where, met = namespace(low).where, low < high
        away = Enclosure(where(met, 0.0, 1.0), where(met, o[0].radius, 0.0))
        slopes = self._sides([away, *o[1:]], low, high, sure)
        return [slope.wider(where(met, 0.0, gradient.radius)) for slope in slopes]

    def _sides(
        self, z: list[Enclosure], left: Array | float, right: Array | float, sure: bool
    ) -> list[Enclosure]:
        """Return the slopes, `left` or `right` of 0, that count for z[1] and for z[2].

        The first of z[0], z[1], z[2] that is not 0 decides. Both are possible where it is not known
        which one that is, or, unless `sure`, where what may be 0 is taken for it, its sign.
        """
        xp, up = namespace(z[0].middle), z[0].low > 0
        moves = (z[1].middle != 0) | (z[1].radius > 0) | (z[2].middle != 0) | (z[2].radius > 0)
        met = moves & ~up & (z[0].high >= 0)  # z[0] does not decide, and it matters which side
        found = exact(xp.where(up, right, left))
        if not bool(met.any()):
            return [found, found]
        self.kinked = True
        size = z[0].magnitude[met]
        left, right = (xp.broadcast_to(xp.asarray(side), met.shape)[met] for side in (left, right))
        self._unsure(size > 0, size)
        lost, rises, known = (size > 0) & sure, *(xp.zeros(size.shape, dtype=bool) for _ in "+-")
        slopes = []
        for k in (1, 2):
            term, open_ = z[k][met], ~(known | lost)
            up = term.low > 0
            rises, known = rises | (open_ & up), known | (open_ & (up | (term.high < 0)))
            side = xp.where(rises, right, left)
            other = xp.where(known, side, xp.where(rises, left, right))
            here = between(xp.minimum(side, other), xp.maximum(side, other))
            slopes.append(Enclosure(found.middle.copy(), found.radius.copy()))
            slopes[-1].middle[met], slopes[-1].radius[met] = here.middle, here.radius
            if k == 1:
                doubt = ~(known | lost) & (term.magnitude > 0)
                self._unsure(doubt, term.magnitude)
                lost = lost | (doubt & sure)
        return slopes

    def _largest(self, W: WeightMatrix, o: list[Enclosure], sure: bool) -> list[Enclosure]:
        """Return o[1] and o[2] of the entries of the windows of W that are the largest.

        The first term in which they differ decides. Any is possible where that is not known, and
        `sure` asks for it.
        """
        xp, found = namespace(o[0].middle), []
        if isinstance(W, BlockMatrix):
            largest = self._largest(W.own_matrix, [term[W.read] for term in o], sure)
            kept = ([term[part] for part in W.carried] for term in o[1:])
            return [concatenate([own, *rest]) for own, rest in zip(largest, kept, strict=True)]
        moves = W.windows((o[1].magnitude > 0) | (o[2].magnitude > 0), False)
        left, lost = xp.ones(moves.shape, dtype=bool), xp.zeros(moves.shape[1:], dtype=bool)

        def most(values: Array, among: Array) -> Array:
            return xp.where(among, values, -math.inf).max(axis=0)

        for k, term in enumerate(o):
            ends = term.middle, term.low, term.high
            middle, low, high = (W.windows(end, -math.inf) for end in ends)
            least = most(low, left)
            if k:
                best, lowest = most(middle, left), xp.where(lost, -most(-low, left), least)
                off = xp.maximum(most(high, left) - best, best - lowest)
                found.append(sound(best, off * WIDER))
            left = xp.where(lost, left, left & (high >= least))
            tied = (left.sum(axis=0) > 1) & (left & moves).any(axis=0)
            self.kinked = self.kinked or (k == 0 and bool(tied.any()))
            doubt = tied & ~lost & (left & (high > low)).any(axis=0)
            if k < 2:
                self._unsure(doubt, most(high, left) + most(-low, left))
                lost = lost | (doubt & sure)
        return found

    def _unsure(self, doubt: Array, sizes: Array) -> None:
        self.unsure = max(self.unsure, float(namespace(sizes).where(doubt, sizes, 0.0).max()))


def _moved(W: WeightMatrix, term: Enclosure) -> Enclosure:
    """Return W @ term, of which nothing is computed below the layers that move: it is 0."""
    if _moves([term]):
        return product(W, term)
    return exact(namespace(term.middle).zeros((W.shape[0], term.shape[1])))


def _moves(terms: list[Enclosure]) -> bool:
    return any(bool(term.middle.any() or term.radius.any()) for term in terms)


def _own(W: WeightMatrix, z: list[Enclosure]) -> list[Enclosure]:
    """Return z with z[0] > 0 where a residual block keeps what has no kink."""
    first, xp = z[0], namespace(z[0].middle)
    kept = xp.arange(W.shape[0])[:, None] >= W.rows
    return [Enclosure(xp.where(kept, 1.0, first.middle), xp.where(kept, 0.0, first.radius)), *z[1:]]


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
    y = net.targets(theta, data, loss)

    def chunk(rows: slice, columns: Array) -> tuple[Parameters, Parameters]:
        up, down = (net.zeros(like=theta.vector) for _ in "+-")
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

    up, down = (net.zeros(like=theta.vector) for _ in "+-")
    for more in net.over(theta, data.x, chunk):
        for rates, part in zip((up, down), more, strict=True):
            rates.vector += part.vector
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
