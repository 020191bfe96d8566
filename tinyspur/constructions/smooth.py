"""[SMOOTH] Local minima that are not global, for activations with curvature and any widths.

W^1 = 0 makes the outputs constant, at an expansion point a where sigma bends; the targets are
chosen for given inputs so that the residuals see only the curvature. The construction does not
apply to given targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..activations import Activation
from ..curvature import CurvatureCertificate, certify_curvature, check_smooth
from ..fitting import AssumptionError
from ..losses import SquaredLoss
from ..network import Network
from ..parameters import Parameters
from ..samples import TrainingSet
from ..training import descend, kaiming_start

LOSS = SquaredLoss()
WINDOW, POINTS = 0.5, np.linspace(-3, 3, 601)  # where expansion points are looked for
GENERIC = 1e-9  # residuals exist if the linear system for them is solved to this accuracy
GAINS = 4.0 ** np.arange(-1, 5)  # of the weights that an interpolation tries
FLAT = 1e-12  # sigma'(a) and sigma''(a) are 0 below it


@dataclass(frozen=True)
class SmoothMinimum:
    """A local minimum `theta` of the squared loss on `data`, whose targets were built for it.

    `expansion_point` is a: z^l = a in every hidden unit for every sample.
    """

    theta: Parameters
    data: TrainingSet
    expansion_point: float
    certificate: CurvatureCertificate

    def __str__(self) -> str:
        where = f"{self.theta.net.activation} at a = {self.expansion_point:.3g}"
        return f"R = {self.certificate.risk:.9g}, {where}\n{self.certificate}"


def smooth_minimum(
    net: Network,
    x: np.ndarray,
    expansion_point: float | None = None,
    risk: float = 1.0,
    seed: int = 0,
) -> SmoothMinimum:
    """Return a local minimum with R = `risk` for the inputs x (N, ...), and the targets for it.

    W^1 = 0, b^1 = a; the weights above are random, of one sign in each layer, so that H is positive
    definite, and their biases keep every z at a ([SMOOTH], `theory.md` 5). The residuals are the
    shortest with sum e = 0, sum e x = 0 and sum e x x^T a multiple of the covariance of x, for each
    output a positive multiple of it, and something orthogonal to all these. `expansion_point` is
    chosen where sigma' and sigma'' are far from 0 if it is not given.

    Raises ValueError for another kind of network, for ReLU and for inputs of another shape;
    AssumptionError where sigma' or sigma'' vanish at a, where N < d(d+3)/2 + 1, and where the
    inputs are degenerate, so that no such residuals exist.
    """
    check_smooth(net)
    if x.shape[1:] != net.input_shape or not np.isfinite(x).all():
        raise ValueError(f"inputs: expected finite (N, {net.input_shape}), got {x.shape}")
    if not 0 < risk < math.inf:
        raise ValueError(f"risk: expected a finite number > 0, got {risk!r}")
    rng, sigma = np.random.default_rng(seed), net.activation
    a = _expansion_point(sigma) if expansion_point is None else float(expansion_point)
    slope, bend = (float(f(np.array([a]))[0]) for f in (sigma.derivative, sigma.second_derivative))
    if abs(slope) < FLAT or abs(bend) < FLAT:
        raise AssumptionError(
            f"smooth minimum: expected sigma'(a) != 0 and sigma''(a) != 0, got {slope:.3g} and "
            f"{bend:.3g} for {sigma} at a = {a:g}"
        )
    e = _residuals(x.reshape(len(x), -1).astype(np.float64), net.shapes[-1][0], rng)
    theta = net.zeros()
    theta.b[1][...] = a
    for layer in range(2, net.depth + 1):
        weights, biases = theta.W[layer].weights, theta.b[layer]
        sign = math.copysign(1, bend if layer == net.depth else slope)
        size = 1 if layer == net.depth else 1 / (abs(slope) * math.sqrt(math.prod(weights.shape)))
        weights[...] = sign * size * rng.uniform(0.5, 1.5, weights.shape)
        inputs = np.full(weights.shape[1], sigma(np.array([a]))[0])
        biases[...] = (0 if layer == net.depth else a) - weights @ inputs
    e *= math.sqrt(2 * len(x) * risk / (e**2).sum())
    data = TrainingSet(x, net.forward(theta, x) - e)
    return SmoothMinimum(theta, data, a, certify_curvature(theta, data, LOSS))


def interpolate(net: Network, data: TrainingSet, seed: int = 0) -> Parameters:
    """Return a point with R = 0 up to rounding: random hidden layers, then least squares.

    The best of a few sizes of the random weights. Raises AssumptionError where the last hidden
    layer has fewer units than there are samples, or the samples are not all different.
    """
    check_smooth(net)
    width = net.shapes[-2][0]
    if width < len(data):
        raise AssumptionError(
            f"interpolation: expected a last hidden layer of at least {len(data)} units, one for "
            f"each sample, got {width}"
        )
    flat = data.x.reshape(len(data), -1)
    if len(np.unique(flat, axis=0)) < len(flat):
        raise AssumptionError("interpolation: expected samples that are all different")
    found = []
    for gain in GAINS:
        theta, rng = net.zeros(), np.random.default_rng(seed)
        below, spread = flat.T, flat.std(axis=0).max()
        for layer in range(1, net.depth):
            weights, biases = theta.W[layer].weights, theta.b[layer]
            weights[...] = rng.standard_normal(weights.shape) * gain / math.sqrt(len(below))
            weights /= spread
            chosen = rng.integers(0, len(data), len(biases))  # a unit is centred at a sample
            biases[...] = -(weights * below[:, chosen].T).sum(axis=1)
            below = net.layer_output(theta, np.ascontiguousarray(flat.T), layer)
            spread = below.std(axis=1).max() or 1.0
        hats = np.vstack([below, np.ones(len(data))]).T
        left = data.y.copy()
        for _ in range(3):  # refined: the residuals are fitted again
            fit, *_ = np.linalg.lstsq(hats, left)
            theta.W[net.depth].weights[...] += fit[:-1].T
            theta.b[net.depth][...] += fit[-1]
            left = data.y - net.forward(theta, data.x)
        found.append((net.risk(theta, data, LOSS), len(found), theta))
    return min(found)[2]


def lower_point(
    found: SmoothMinimum, starts: int = 3, iterations: int = 500, seed: int = 0
) -> Parameters:
    """Return the lowest of what training reaches from random starts, and of an interpolation.

    L-BFGS from ``starts`` Kaiming starts; an interpolation where the last hidden layer is wide
    enough. Nothing says that its risk is below that of the minimum: compare the two.
    """
    net, data = found.theta.net, found.data
    points = [descend(kaiming_start(net, seed + n), data, LOSS, iterations) for n in range(starts)]
    if net.shapes[-2][0] >= len(data):
        points.append(interpolate(net, data, seed))
    return min(points, key=lambda point: net.risk(point, data, LOSS))


def _expansion_point(sigma: Activation) -> float:
    """Return the a for which |sigma' sigma''| stays largest in a window around it."""
    window = POINTS[:, None] + np.linspace(-WINDOW, WINDOW, 41)
    bends, slopes = sigma.second_derivative(window), sigma.derivative(window)
    one_sign = (np.sign(bends) == np.sign(bends[:, :1])).all(axis=1)
    least = np.where(one_sign, abs(bends * slopes).min(axis=1), 0)
    if not least.max() > FLAT:
        raise AssumptionError(
            f"smooth minimum: found no point in [-3, 3] where {sigma} has sigma' != 0 and "
            "sigma'' != 0"
        )
    return float(POINTS[least.argmax()])


def _residuals(x: np.ndarray, outputs: int, rng: np.random.Generator) -> np.ndarray:
    """Return e (N, outputs): sum e = 0, sum e x = 0, sum e x x^T a multiple of the covariance."""
    N, d = x.shape
    needed = d * (d + 3) // 2 + 1
    if needed > N:
        raise AssumptionError(
            f"too few samples: expected at least d(d+3)/2 + 1 = {needed} for d = {d}, got {N}"
        )
    centred = x - x.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    if sizes[-1] <= GENERIC * sizes[0]:
        raise AssumptionError(
            f"degenerate inputs: expected samples that span {d} dimensions, got "
            f"{int((sizes > GENERIC * sizes[0]).sum())}"
        )
    u = centred @ axes.T / sizes * math.sqrt(N)  # of covariance 1
    i, j = np.triu_indices(d)
    Q = np.hstack([np.ones((N, 1)), u, u[:, i] * u[:, j]])
    moments = np.concatenate([np.zeros(1 + d), (i == j) * float(N)])
    basis, sizes, rows = np.linalg.svd(Q, full_matrices=False)
    kept = sizes > GENERIC * sizes[0]
    e = basis[:, kept] @ ((rows[kept] @ moments) / sizes[kept])
    if abs(Q.T @ e - moments).max() > GENERIC * N:
        raise AssumptionError(
            "degenerate inputs: no residuals are orthogonal to (x, 1) with sum e x x^T positive "
            "definite; the samples lie on a quadric, such as a sphere or the corners of a box"
        )
    free = rng.standard_normal((outputs, N))
    for _ in range(2):
        free -= free @ basis[:, kept] @ basis[:, kept].T
    sizes = np.linalg.norm(free, axis=1)
    shares = np.where(sizes > GENERIC * N, 0.5 * np.linalg.norm(e) / np.maximum(sizes, GENERIC), 0)
    return (rng.uniform(0.5, 1.5, (outputs, 1)) * (e + shares[:, None] * free)).T
