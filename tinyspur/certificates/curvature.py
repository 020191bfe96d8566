"""Proofs of local minima at constant outputs: smooth activations and squared loss ([SMOOTH]).

Where W^1 = 0 all samples have the same output, and the residuals e_i decide. What a small move of
the parameters adds to the outputs is orthogonal to them at first order, and at second order its
product with them has one sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet, flattened
from ..engine.activations import Activation
from ..engine.floats import EPSILON, QUIET, SMALLEST, gamma
from ..engine.losses import Loss, SquaredLoss
from ..engine.network import Network, check_at
from ..engine.parameters import Parameters, check_points
from .assumptions import assumed, check_activation
from .certificate import Certificate, in_float64, round_down, round_up
from .constant_outputs import (
    TINY,
    ConstantOutputs,
    check_smooth,
    first_layer,
    lower_eigenvalue,
)
from .enclosures import Enclosure
from .orthogonal_residuals import Residuals
from .radius import RADIUS_ACCURACY

ORTHOGONAL = 1e-13  # targets may be off by this share of the largest residual
ROUNDED = 4 * EPSILON  # and by this share of the largest target
NEAR = 0.01  # an exact minimum is near if it is within this share of the radius
LARGEST = 1e6  # no radius above this is looked for


@dataclass(frozen=True, repr=False)
class CurvatureCertificate(Certificate):
    """The curvature certificate: W^1 = 0, residuals orthogonal to (1, x), H and M definite.

    Let e_i = o_i - y_i be the residuals of one output, sum_i e_i (x_i, 1) = 0, M = sum_i e_i x_i
    x_i^T and H the Hessian of that output in the pre-activations z^1. Then sum_i e_i (o'_i - o_i) =
    tr(W^T H' W M) / 2 up to third order for any parameters nearby, W = W'^1, and R(theta') >=
    R(theta) + sum_i e_i (o'_i - o_i) / N, since the loss is convex: theta is a local minimum where
    H and M have the same sign for every output with residuals. Sufficient, not necessary:
    directions in which the outputs move at first order need no curvature.

    In float64 the sums are seldom 0. With the means of the targets as outputs, which other biases
    b^L give, and y - P y for y, P y being what of the centred targets is linear in x, they are,
    exactly. So if H and M are definite, a point theta* within max-norm distance `distance` of theta
    is exactly a local minimum, with no lower point within `radius` of it, for targets within
    `targets` of the stored ones; `targets` is 0 where P y is 0 in exact arithmetic. For the stored
    theta and targets no point within the radius of theta is lower by more than `delta`, what the
    two changes take from |e|^2 / 2N. That H and M are definite, the radius (`curvature_radius`) and
    these numbers are proved, with bounds of all rounding errors; where that fails the radius is 0.
    The certificate `holds` where `distance` is at most a hundredth of the radius and the targets of
    each output are moved by at most 1e-13 of the largest residual, or four units in the last place
    of the largest target.

    `hessian` and `moment` are the least eigenvalues of all H and of all M, multiplied by the sign
    that M has on average; the first is a lower bound where it is positive, the second what float64
    gives. `orthogonality` is the largest of |sum_i e_i (x_i, 1)| relative to sum_i |e_i| |(x_i, 1)|
    in float64. The radius is a bound if `bounded`; else all numbers are estimates, from what the
    activation returns at a few points near z. `assumes` says what is taken from a user's
    activation.
    """

    holds: bool
    risk: float
    hessian: float
    moment: float
    orthogonality: float
    radius: float
    bounded: bool
    obstacle: str
    delta: float = math.inf
    distance: float = math.inf
    targets: float = math.inf
    assumes: str = ""

    kind = "curvature"
    classes = 1  # nothing has a kink
    margin = math.inf

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless the layers are as `check_smooth` has them, the loss squared."""
        check_points(None, theta)
        check_smooth(theta.net)
        if type(loss) is not SquaredLoss:
            raise ValueError(f"curvature certificate: expected the squared loss, got {loss!r}")

    @property
    def stationarity(self) -> float:
        """Return how far the residuals are from being orthogonal to (1, x)."""
        return self.orthogonality

    def as_dict(self) -> dict:
        """Return what a report holds; there are no patterns, hence no margin."""
        found = {"lambda_min_H": self.hessian, "lambda_min_M": self.moment}
        return super().as_dict() | _finite(found) | {"radius_proved": self.bounded}

    def bounds(self) -> dict:
        """Return what is proved, for a report; None stands for an infinite number.

        By how much a point within the radius may be lower, how far an exact local minimum is, and
        how far from the stored ones the targets are for which it is one.
        """
        return super().bounds() | _finite({"distance_of_targets": self.targets})

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        if self.holds:
            assumes = f", if {self.assumes}" if self.assumes else ""
            found = f"certified local minimum{self.changed}, lambda_min(H) {self.hessian:.2g}"
            return f"{found}{assumes}"
        return f"not certified, {self.obstacle}"

    @property
    def changed(self) -> str:
        """Return for which targets P1 is proved if not for the stored ones."""
        if not 0 < self.targets < math.inf:
            return ""
        return f", for targets within {round_up(self.targets)} of the stored ones"

    def lines(self) -> list[str]:
        """Return eigenvalues, orthogonality and radius, what is proved and what is missing."""
        lines = [
            f"lambda_min(H) {self.hessian:.3g}, lambda_min(M) {self.moment:.3g}, residuals "
            f"orthogonal to (x, 1) to {self.orthogonality:.1e}",
            f"radius {round_down(self.radius)}{'' if self.bounded else ', an estimate'}",
            *self.bound_lines(),
        ]
        return lines + ([] if self.holds else [self.obstacle])


@np.errstate(**QUIET)
def certify_curvature(theta: Parameters, data: TrainingSet, loss: Loss) -> CurvatureCertificate:
    """Check the curvature certificate at theta; see `CurvatureCertificate` for what it proves.

    For dense layers, convolutions, average poolings, scales and residual blocks under smooth
    activations, of any depth from one hidden layer on, and the squared loss; the last layer is
    dense, with biases. W^1 is the matrix of the first layer that has weights. Sufficient, not
    necessary. A float32 theta is taken for the numbers that it holds, in float64 arithmetic. Raises
    ValueError for other networks and losses, and where parameters or outputs are not finite.
    """
    check_at(theta, data, loss)
    CurvatureCertificate.require(theta, loss)
    net, theta = theta.net, in_float64(theta, np)
    y, x = (a.astype(np.float64) for a in (net.targets(theta, data, loss).T, flattened(data.x)))
    e = net.forward(theta, data.x) - y
    if not np.isfinite(e).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    hats, at = np.hstack([x, np.ones((len(x), 1))]), ConstantOutputs(theta)
    for sigma in net.activations:
        here = [z.middle for own, z in at.hidden if own == sigma]
        check_activation(sigma, np.concatenate(here))
    left = Residuals(x, y, theta.b[net.depth])
    constant = not theta.W[first_layer(net)].weights.any()
    terms = [_Term.of(at, left, int(k)) for k in np.flatnonzero(~left.constant)]
    definite = {
        "W^1 is not 0": not constant,
        "all targets of an output are equal": not terms,
        "M is not shown to be definite": not all(term.share > 0 for term in terms),
        "H is not shown to be definite with the sign of M": not all(
            term.least > 0 for term in terms
        ),
    }
    radius = 0.0
    if not any(definite.values()):
        radius = curvature_radius(at, terms, _reach(net, theta, x))
    off, moved = (at.unbiased - left.means).magnitude, left.in_units(left.moved)
    obstacles = {
        "the residuals are not orthogonal to (x, 1)": constant
        and not _nearly_orthogonal(moved, y.mean(axis=0) - y, y),
        **definite,
        "no radius is shown: a kink or rounding errors are too close": not radius,
        "the mean of the residuals is too large for the radius": (not off.max() <= NEAR * radius),
    }
    obstacle = next((text for text, found in obstacles.items() if found), "")
    proved = radius > 0
    return CurvatureCertificate(
        holds=not obstacle,
        risk=float((e**2).sum() / (2 * len(x))),
        hessian=min((term.hessian for term in terms), default=0.0),
        moment=min((term.moment for term in terms), default=0.0),
        orthogonality=_share(abs(e.T @ hats), abs(e.T) @ abs(hats)),
        radius=radius,
        bounded=all(sigma.bounds is not None for sigma in net.activations),
        obstacle=obstacle,
        delta=_decrease(off, left, len(x)) if proved else math.inf,
        distance=float(off.max()) if proved else math.inf,
        targets=float(moved.max()) if proved else math.inf,
        assumes=_assumed(loss, net.activations),
    )


class _Term(NamedTuple):
    """An output with residuals: what is known of H and M, with the sign that M has on average.

    `least` is a lower bound of the eigenvalues of H, M - `share` sum_i |e_i| u_i u_i^T is positive
    semidefinite. `hessian` and `moment` are the least eigenvalues of H and M that are reported.
    """

    output: int
    least: float
    share: float
    hessian: float
    moment: float

    @classmethod
    def of(cls, at: ConstantOutputs, left: Residuals, k: int) -> _Term:
        """Return what is known for output k."""
        share, sign = left.definiteness(k)
        H = at.hessian(k) * sign
        if not at.read.all():  # others reach no output, at any point
            H = Enclosure(*(part[np.ix_(at.read, at.read)] for part in (H.middle, H.radius)))
        least = lower_eigenvalue(H)
        hessian = least if least > 0 else float(np.linalg.eigvalsh(H.middle)[0])
        return cls(k, least, share, hessian, left.moment(k, sign))


def curvature_radius(at: ConstantOutputs, terms: list[_Term], reach: float) -> float:
    """Return rho so that no theta' within max-norm distance rho has a lower risk.

    With g' the layers above z^1, u_i = x_i - x_mean and c' the outputs for z^1 = b' + W x_mean,
    o'_i - c' = J' W u_i + int_0^1 (1 - t) (W u_i)^T H'(z) (W u_i) dt at z = b' + W x_mean + t W
    u_i, no further from b^1 than rho `reach`, reach = 1 + max_i |x_i|_1. The first part is
    orthogonal to the residuals. If no H' in reach differs from H by more than eps in the spectral
    norm, the second gives at least (tr W^T H W M - eps tr W A W^T) / 2 with A = sum_i |e_i| u_i
    u_i^T, which is not negative if eps <= lambda_min(H) share, M >= share A. The largest row sum
    bounds eps: each factor of H grows at most by what rho and the bounds of the second and the
    third derivative of sigma allow. The biases of the outputs don't matter: rho is the same around
    all points that differ in these alone.
    """
    limits = [term.least * term.share * (1 - 4 * EPSILON) - TINY for term in terms]
    still = [at.row_sums(term.output, 0.0, reach) for term in terms]

    def safe(rho: float) -> bool:
        for term, before, limit in zip(terms, still, limits, strict=True):
            after = at.row_sums(term.output, rho, reach)
            change = after - before + 2 * at.rounding * (after + before)
            if not float(change.max()) <= limit:
                return False
        return True

    low = 1.0
    while not safe(low):
        low /= 2
        if low < 1e-300:
            return 0.0
    high = 2 * low
    while safe(high) and high < LARGEST:
        low, high = high, 2 * high
    while high - low > RADIUS_ACCURACY * high:
        middle = (low + high) / 2
        low, high = (middle, high) if safe(middle) else (low, middle)
    return low


def _reach(net: Network, theta: Parameters, x: np.ndarray) -> float:
    """Return 1 + max_i |x_i|_1, or a little more; where poolings come first, of what they make."""
    sizes, terms = abs(x), x.shape[1]
    for W in (theta.W[n] for n in range(1, first_layer(net))):
        sizes, terms = (W @ np.ascontiguousarray(sizes.T)).T, terms + W.fan_in + 2
    with np.errstate(over="ignore"):
        return (1 + float(sizes.sum(axis=1).max())) * (1 + 2 * gamma(terms))


def _nearly_orthogonal(moved: np.ndarray, e: np.ndarray, y: np.ndarray) -> bool:
    """Return whether targets y (N, d_y) moved by so much per output are still the same in float64.

    By 1e-13 of the largest residual, or by no more than rounding moves the targets themselves.
    """
    limit = ORTHOGONAL * abs(e).max(axis=0) + ROUNDED * abs(y).max(axis=0)
    return bool((moved <= limit).all())


def _decrease(off: np.ndarray, left: Residuals, samples: int) -> float:
    """Return a bound of R(theta) - R(theta') for theta' within the radius, any targets.

    The residuals are those of `left`, and what is off, P y and the means, is orthogonal to them
    and to each other: R(theta') >= R(theta) - |off|^2 / 2N by completing the square.
    """
    lengths = left.in_units(left.length)
    with np.errstate(over="ignore", under="ignore"):
        total = float((samples * off**2 + lengths**2).sum()) / (2 * samples)
    return total * (1 + gamma(2 * len(off) + 10)) + 4 * len(off) * SMALLEST


def _share(parts: np.ndarray, wholes: np.ndarray) -> float:
    """Return the largest part / whole, 0 where both are 0."""
    ratios = np.divide(parts, wholes, where=wholes > 0, out=np.where(parts > 0, np.inf, 0.0))
    return float(ratios.max())


def _assumed(loss: Loss, sigmas: Sequence[Activation]) -> str:
    """Return what is assumed of a user's activations."""
    found = assumed(loss, sigmas)
    if not found:
        return ""
    few = any(sigma.bounds is None for sigma in sigmas)
    more = "changes near z as at a few points" if few else "keeps its bounds"
    return f"{found}, to a few units in the last place, and {more}"


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}
