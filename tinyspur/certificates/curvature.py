"""Proofs of local minima at constant outputs: smooth activations and squared loss ([SMOOTH]).

Where W^1 = 0 all samples have the same output, and the residuals e_i decide. What a small move of
the parameters adds to the outputs is orthogonal to them at first order, and at second order its
product with them has one sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.backend import to_numpy
from ..engine.losses import Loss, SquaredLoss
from ..engine.network import Network, check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import steps
from ..layers import Dense
from .assumptions import assumed, check_activation
from .certificate import Certificate, in_float64, round_down
from .decrease import SHARE
from .radius import RADIUS_ACCURACY
from .rounding import EPSILON, gamma, preactivation_rounding

DEFINITE = 1000  # an eigenvalue counts as 0 up to so many rounding errors of the matrix
LARGEST = 1e6  # no radius above this is looked for
VISIBLE = 10  # a radius counts if it moves z^1 by more than so many rounding errors of any z


@dataclass(frozen=True)
class CurvatureCertificate(Certificate):
    """The curvature certificate: W^1 = 0, residuals orthogonal to (1, x), H and M definite.

    With the residuals e_i = o_i - y_i of one output, M = sum_i e_i x_i x_i^T and H the Hessian of
    that output in the pre-activations z^1. Then sum_i e_i (o'_i - o_i) = tr(W^T H' W M) / 2 up to
    third order for any parameters nearby, W = W'^1, and R(theta') >= R(theta) + sum_i e_i (o'_i -
    o_i) / N, since the loss is convex: theta is a local minimum where H and M have the same sign
    for every output with residuals. Sufficient, not necessary: directions in which the outputs
    move at first order need no curvature.

    Where the residuals are only almost orthogonal, P e being what of them is affine in x, the same
    with e - P e in place of e shows that no point within the radius is lower by more than `delta`,
    a bound of |P e|^2 / 2N, rounding errors of the residuals included.

    `hessian` and `moment` are the least eigenvalues of all H and of all M. Both matrices are first
    multiplied by the sign that M has on average, in coordinates where sum_i |e_i| x_i x_i^T is the
    identity. M counts as definite if neither P e nor the rounding errors make it otherwise.
    `orthogonality` is the largest of |sum_i e_i (x_i, 1)| relative to sum_i |e_i| |(x_i, 1)|,
    `excess` its ratio to the bound of its rounding error, at most 1 where the certificate
    `holds`. For the max-norm distance `radius` see `curvature_radius`; where the certificate holds
    it is larger than rounding errors, and `delta` small against the risk. The radius is a bound if
    `bounded`, else an estimate from samples of sigma.
    """

    holds: bool
    risk: float
    hessian: float
    moment: float
    orthogonality: float
    excess: float
    radius: float
    bounded: bool
    obstacle: str
    delta: float = 0.0
    assumes: str = ""

    kind = "curvature"
    classes = 1  # nothing has a kink
    margin = math.inf

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless the network is dense and smooth and the loss the squared one."""
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
        return super().as_dict() | {
            "lambda_min_H": self.hessian,
            "lambda_min_M": self.moment,
            "radius_proved": self.bounded,
        }

    def bounds(self) -> dict:
        """Return by how much a point within the radius may be lower."""
        return {"delta": self.delta if math.isfinite(self.delta) else None}

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        if self.holds:
            assumes = f", if {self.assumes}" if self.assumes else ""
            return f"certified local minimum, lambda_min(H) {self.hessian:.2g}{assumes}"
        return f"not certified, {self.obstacle}"

    def lines(self) -> list[str]:
        """Return eigenvalues, orthogonality and radius, and what is missing."""
        kind = "" if self.bounded else ", an estimate"
        lines = [
            f"lambda_min(H) {self.hessian:.3g}, lambda_min(M) {self.moment:.3g}, residuals "
            f"orthogonal to (x, 1) to {self.orthogonality:.1e} ({self.excess:.2g} of its rounding)",
            f"radius {round_down(self.radius)}{kind}",
        ]
        if self.holds:
            lines.append(f"no point within the radius is lower by more than {self.delta:.2g}")
        if self.assumes:
            lines.append(f"not proved, and assumed: {self.assumes}")
        return lines + ([] if self.holds else [self.obstacle])


def certify_curvature(theta: Parameters, data: TrainingSet, loss: Loss) -> CurvatureCertificate:
    """Check the curvature certificate at theta; see `CurvatureCertificate` for what it proves.

    For fully connected networks with a smooth activation, of any depth from one hidden layer on,
    and the squared loss. Sufficient, not necessary. A float32 theta is taken for the numbers that
    it holds, in float64 arithmetic. Raises ValueError for other networks and losses, and where
    parameters or outputs are not finite.
    """
    check_at(theta, data, loss)
    CurvatureCertificate.require(theta, loss)
    net, theta = theta.net, in_float64(theta, np)
    y, x = net.targets(theta, data, loss), data.x.reshape(len(data), -1).astype(np.float64)
    outputs, errors, inexact, magnitudes = [], [], 0.0, abs(theta)
    for _, columns in net.chunks(theta, data.x):
        trace = list(steps(theta, columns))
        outputs.append(trace[-1].o)
        *hidden, last = preactivation_rounding(magnitudes, trace, np.float64)
        errors.append(last)
        inexact = max([inexact, *(float(z.max()) for z in hidden)])
    e = np.concatenate(outputs, axis=1) - y
    if not np.isfinite(e).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    errors = np.concatenate(errors, axis=1) + gamma(len(x)) * abs(e)  # of a sum of so many terms
    hats = np.hstack([x, np.ones((len(x), 1))])
    sums = abs(e @ hats)
    excess, orthogonality = (_share(sums, whole @ abs(hats)) for whole in (errors, abs(e)))
    check_activation(net.activation, np.concatenate(_Constant(theta).z))
    affine, size = _affine_parts(hats, e, errors)
    risk, delta = float((e**2).sum() / (2 * len(x))), float((size**2).sum() / (2 * len(x)))
    u, terms = x - x.mean(axis=0), []  # centred inputs give the same M, more exactly
    for k, H in enumerate(output_hessians(theta)):
        if e[k].any():
            share, sign = _definiteness(u, e[k], errors[k] + affine[k])
            terms.append(_Term(k, sign * H, sign * (e[k][:, None] * u).T @ u, share))
    hessian = min((_least(term.H) for term in terms), default=0.0)
    moment = min((float(np.linalg.eigvalsh(term.M)[0]) for term in terms), default=0.0)
    obstacles = {
        "W^1 is not 0": bool(theta.W[1].weights.any()),
        "all residuals are 0": not terms,
        "the residuals are not orthogonal to (x, 1)": excess > 1,
        "the residuals are no larger than rounding errors": not delta <= SHARE * risk,
        "M is not definite": min((term.share for term in terms), default=0.0) <= 0,
        "H is not definite with the sign of M": hessian <= 0,
    }
    radius, reach = 0.0, 1 + float(abs(x).sum(axis=1).max())
    if not any(obstacles.values()):
        radius = curvature_radius(theta, terms, reach)
        obstacles["the radius is no larger than rounding errors"] = (
            radius * reach <= VISIBLE * inexact
        )
    obstacle = next((text for text, found in obstacles.items() if found), "")
    return CurvatureCertificate(
        holds=not obstacle,
        risk=risk,
        hessian=hessian,
        moment=moment,
        orthogonality=orthogonality,
        excess=excess,
        radius=0.0 if obstacle else radius,
        bounded=net.activation.bounds is not None,
        obstacle=obstacle,
        delta=delta,
        assumes=assumed(loss, net.activation),
    )


def check_smooth(net: Network) -> None:
    """Raise ValueError unless the network is fully connected, with a smooth activation."""
    if net.activation.piecewise_linear:
        raise ValueError(
            f"curvature: expected an activation with sigma'' != 0, got {net.activation}"
        )
    if net.depth < 2 or not all(isinstance(layer, Dense) for layer in net.layers):
        raise ValueError(
            f"curvature: expected dense layers, at least one of them hidden, got {net}"
        )


def output_hessians(theta: Parameters) -> np.ndarray:
    """Return the Hessian of each output in z^1 where W^1 = 0, shape (d_y, n_1, n_1), on the host.

    H = sum_l J_l^T diag(sigma''(z^l) p^l) J_l over the hidden layers, with J_l = dz^l / dz^1 and
    p^l = do / do^l.
    """
    at = _Constant(theta)
    J = [np.eye(len(at.z[0]))]
    for W, slopes in zip(at.W[1:-1], at.slopes[:-1], strict=True):
        J.append(W @ (slopes[:, None] * J[-1]))
    p, H = at.W[-1], 0.0
    for layer in reversed(range(len(J))):
        bends = at.bends[layer] * p  # (d_y, n_l)
        H = H + np.array([J[layer].T @ (row[:, None] * J[layer]) for row in bends])
        p = (at.slopes[layer] * p) @ at.W[layer]
    return (H + H.swapaxes(1, 2)) / 2


class _Term(NamedTuple):
    """An output with residuals: H and M, with the sign that `_definiteness` gives.

    M - `share` sum_i |e_i| u_i u_i^T is positive semidefinite for the centred inputs u_i.
    """

    output: int
    H: np.ndarray
    M: np.ndarray
    share: float


def _affine_parts(
    hats: np.ndarray, e: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds of |P e|, entry by entry (d_y, N) and in the Euclidean norm (d_y,).

    P projects on the span of the features `hats` (N, d + 1), and e may be off by `errors`.
    """
    lengths = np.linalg.norm(hats, axis=0)
    basis = np.linalg.svd(hats / np.where(lengths > 0, lengths, 1), full_matrices=False)[0]
    size = np.linalg.norm(e @ basis, axis=1) + np.linalg.norm(errors, axis=1)
    return size[:, None] * np.linalg.norm(basis, axis=1), size


def _definiteness(u: np.ndarray, e: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Return the largest share with s M >= share A, and the sign s of M; 0 for no share.

    A = sum_i (|e_i| + errors_i) u_i u_i^T, and M is taken for the worst e_i within their errors. In
    an orthonormal basis Q of the columns of B, A = B^T B, M is Q^T diag(e / (|e| + errors)) Q.
    """
    weights = abs(e) + errors
    B = np.sqrt(weights)[:, None] * u
    lengths = np.linalg.norm(B, axis=0)
    if not lengths.all():
        return 0.0, 1.0
    Q, sizes, _ = np.linalg.svd(B / lengths, full_matrices=False)
    if sizes[-1] <= DEFINITE * EPSILON * sizes[0]:
        return 0.0, 1.0
    sign = np.sign((Q**2).sum(axis=1) @ (e / weights)) or 1.0
    share = np.linalg.eigvalsh((Q * ((sign * e - errors) / weights)[:, None]).T @ Q)[0]
    return float(share) if share > DEFINITE * EPSILON else 0.0, float(sign)


def curvature_radius(theta: Parameters, terms: list[_Term], reach: float) -> float:
    """Return rho so that no theta' within max-norm distance rho has a lower risk.

    With g' the layers above z^1, u_i = x_i - x_mean and c' the outputs for z^1 = b' + W x_mean,
    o'_i - c' = J' W u_i + int_0^1 (1 - t) (W u_i)^T H'(z) (W u_i) dt at z = b' + W x_mean + t W
    u_i, no further from b^1 than rho `reach`, reach = 1 + max_i |x_i|_1. The first part is
    orthogonal to the residuals. If no H' in reach differs from H by more than eps in the spectral
    norm, the second gives at least (tr W^T H W M - eps tr W A W^T) / 2 with A = sum_i |e_i| u_i
    u_i^T, which is not negative if eps <= lambda_min(H) share, M >= share A. The largest row sum
    bounds eps: each factor of H grows at most by what rho and the bounds of the second and the
    third derivative of sigma allow.
    """
    at = _Constant(theta)
    limits = [_least(term.H) * term.share for term in terms]
    still = [at.row_sums(term.output, 0.0, reach) for term in terms]

    def safe(rho: float) -> bool:
        for term, before, limit in zip(terms, still, limits, strict=True):
            change = float((at.row_sums(term.output, rho, reach) - before).max())
            if not change * (1 + 1e-6) + DEFINITE * EPSILON * float(before.max()) <= limit:
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


class _Constant:
    """The layers where W^1 = 0: z, o, sigma'(z) and sigma''(z) of each hidden one, (n_l,)."""

    def __init__(self, theta: Parameters):
        net = theta.net
        self.sigma = sigma = net.activation
        self.W = [to_numpy(theta.W[n].weights) for n in range(1, net.depth + 1)]
        self.z, self.o = [to_numpy(theta.b[1])], []
        for n in range(2, net.depth + 1):
            self.o.append(sigma(self.z[-1]))
            self.z.append(self.W[n - 1] @ self.o[-1] + to_numpy(theta.b[n]))
        del self.z[-1]
        self.slopes = [sigma.derivative(z) for z in self.z]
        self.bends = [sigma.second_derivative(z) for z in self.z]

    @np.errstate(invalid="ignore", over="ignore")  # beyond a kink the bounds are infinite
    def row_sums(self, output: int, rho: float, reach: float) -> np.ndarray:
        """Return bounds of the row sums of |H'|, shape (n_1,), for parameters up to rho away.

        All factors |sigma'|, |sigma''| and |W| are taken as large as they can be, at any z^1 within
        `reach` times rho of b^1.
        """

        def product(W: np.ndarray, v: np.ndarray) -> np.ndarray:
            return abs(W) @ v + rho * v.sum()

        slopes, bends, r = [], [], np.full(len(self.z[0]), rho * reach)
        sums = [np.ones(len(r))]  # of the rows of |J_l|
        for n, z in enumerate(self.z):
            more, bent = self.sigma.changes(z, r)
            slopes.append(abs(self.slopes[n]) + more)
            bends.append(abs(self.bends[n]) + bent)
            moved = slopes[n] * r
            r = product(self.W[n + 1], moved) + rho * (abs(self.o[n]).sum() + 1)
            sums.append(product(self.W[n + 1], slopes[n] * sums[n]))
        p, rows = abs(self.W[-1][output]) + rho, 0.0
        for n in reversed(range(len(slopes))):
            rows = rows + bends[n] * p * sums[n]
            if n:
                rows = slopes[n - 1] * product(self.W[n].T, rows)
                p = product(self.W[n].T, slopes[n] * p)
        return rows


def _least(matrix: np.ndarray) -> float:
    """Return the least eigenvalue, 0 where rounding explains it."""
    values = np.linalg.eigvalsh(matrix)
    return float(values[0]) if abs(values[0]) > DEFINITE * EPSILON * abs(values).max() else 0.0


def _share(parts: np.ndarray, wholes: np.ndarray) -> float:
    """Return the largest part / whole, 0 where both are 0."""
    ratios = np.divide(parts, wholes, where=wholes > 0, out=np.where(parts > 0, np.inf, 0.0))
    return float(ratios.max())
