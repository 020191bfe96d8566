"""[SMOOTH] Local minima that are not global, for activations with curvature and any widths.

W^1 = 0 makes the outputs constant, at an expansion point a where sigma bends; the targets are
chosen for given inputs so that the residuals see only the curvature. The construction does not
apply to given targets.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..certificates.constant_outputs import check_smooth, first_layer
from ..certificates.curvature import CurvatureCertificate, certify_curvature
from ..certificates.rounding import risk_rounding
from ..datasets.duplicates import identical
from ..datasets.samples import TrainingSet, flattened
from ..engine.activations import Activation
from ..engine.floats import EPSILON
from ..engine.losses import SquaredLoss
from ..engine.network import Network, check_network, check_problem
from ..engine.parameters import Parameters
from ..engine.passes import as_inputs
from ..engine.plain import generator, number
from ..errors import AssumptionError
from ..fitting.training import descend, kaiming_start
from ..layers import Dense, WeightMatrix
from ..shown import Shown
from .grid_targets import on_a_grid
from .paths import kind_of

LOSS = SquaredLoss()
WINDOW, POINTS = 0.5, np.linspace(-3, 3, 601)  # where expansion points are looked for
GENERIC = 1e-9  # residuals exist if the linear system for them is solved to this accuracy
STEEPNESS = (2.0, 8.0, 40.0, 200.0)  # of the units that an interpolation tries
DIRECTIONS = 100  # how many are tried; the best one sorts the samples
REFINED = 4  # how often a fit is refined
TINY = 1e-6  # units count as no smaller than this share of the largest when a fit scales them
FLAT = 1e-12  # sigma'(a) and sigma''(a) count as 0 below this


@dataclass(frozen=True, repr=False)
class SmoothMinimum(Shown):
    """A point next to an exact local minimum of the squared loss on `data`, built for it.

    How near, and for which targets next to those of `data`, the certificate says.
    `expansion_point` is a: z^l = a in every hidden unit for every sample.
    """

    theta: Parameters
    data: TrainingSet
    expansion_point: float
    certificate: CurvatureCertificate

    def __str__(self) -> str:
        where = f"{self.theta.net.activations[0]} at a = {self.expansion_point:.3g}"
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
    definite, and their biases keep every z of the hidden layers at a ([SMOOTH]); those of maps that
    read beyond the border keep them as near as they can. W^1 is the first layer with weights, which
    may be a convolution, as others may; see `certify_curvature` for the layers. Let e be the
    shortest vector for which sum e = 0, sum e x = 0 and sum e x x^T is a given multiple of the
    covariance of x. The residuals of each output are a positive multiple of e plus something that
    does not change these three sums. Where it is not given, `expansion_point` is chosen so that
    sigma' and sigma'' are far from 0 around it.

    In float64 the first two sums are 0 up to rounding: an exact minimum is close to theta for
    targets close to the stored ones (see `CurvatureCertificate`). Where the inputs are small
    integers times powers of 2, the residuals are moved by up to 1e-7 of their size so that these
    sums are 0 exactly, and the minimum is one for the stored targets.

    Raises ValueError for another kind of network, for ReLU and for inputs of another shape;
    AssumptionError where sigma' or sigma'' vanish at a, where N < d(d+3)/2 + 1, and where the
    inputs are degenerate, so that no such residuals exist.
    """
    check_network(net)
    check_smooth(net)
    _check_alike(net)
    x = as_inputs(net, x)
    if not np.isfinite(x).all():
        raise ValueError("inputs: expected finite numbers, got NaN or infinite values")
    a = None if expansion_point is None else number("expansion point", expansion_point)
    if a is not None and not math.isfinite(a):
        raise ValueError(f"expansion point: expected a finite number, got {expansion_point!r}")
    if not (isinstance(risk, float | int) and 0 < risk < math.inf):
        raise ValueError(f"risk: expected a finite number > 0, got {risk!r}")
    rng, sigma = generator(seed), net.activations[0]
    a = _expansion_point(sigma) if a is None else a
    slope, bend = (float(f(np.array([a]))[0]) for f in (sigma.derivative, sigma.second_derivative))
    if abs(slope) < FLAT or abs(bend) < FLAT:
        raise AssumptionError(
            f"smooth minimum: expected sigma'(a) != 0 and sigma''(a) != 0, got {slope:.3g} and "
            f"{bend:.3g} for {sigma} at a = {a:g}"
        )
    e = _residuals(flattened(x), net.shapes[-1][0], rng)
    theta = net.zeros()
    _bend(theta, a, slope, bend, rng)
    e *= math.sqrt(2 * len(x) * risk / (e**2).sum())
    exact = on_a_grid(flattened(x), e)
    data = TrainingSet(x, -(e if exact is None else exact))  # the outputs are 0 up to rounding
    return SmoothMinimum(theta, data, a, certify_curvature(theta, data, LOSS))


def _check_alike(net: Network) -> None:
    """Raise ValueError unless one activation follows all layers that it follows, with biases."""
    for n in net.active_layers:
        sigma, kind = net.activation_of(n), kind_of(net, n)
        if sigma != net.activation_of(net.active_layers[0]):
            raise ValueError(
                "smooth minimum: expected one activation, "
                f"{net.activation_of(net.active_layers[0])}, got {sigma} after layer {n}, {kind}"
            )
        if not kind.bias and not _is_lifted(net, n):
            raise ValueError(
                f"smooth minimum: expected biases in each layer below an activation, got {kind} as "
                f"layer {n}"
            )


def _is_lifted(net: Network, n: int) -> bool:
    """Return whether a layer is the sum of a block whose last layer has biases in its place."""
    joins = getattr(net.chain[n - 1], "joins", False)
    return joins and net.chain[n - 2].bias and not net.is_active(n - 1)


def _bend(theta: Parameters, a: float, slope: float, bend: float, rng: np.random.Generator) -> None:
    """Put random weights of one sign into all layers but the first, and z at a, in place."""
    net, first = theta.net, first_layer(theta.net)
    sigma = net.activation_of(net.active_layers[0])
    value = float(sigma(np.array([a]))[0])
    if first in theta.b:
        theta.b[first][...] = a if net.is_active(first) else 0
    o = np.full(math.prod(net.shapes[first]), value if net.is_active(first) else 0.0)
    for layer in range(first + 1, net.depth + 1):
        W, active = theta.W[layer], net.is_active(layer)
        if W.weights is not None:
            sign = math.copysign(1, bend if layer == net.depth else slope if active else 1)
            size = sign * _size(W, layer == net.depth, slope, value)
            W.weights[...] = size * rng.uniform(0.5, 1.5, W.weights.shape)
        z = W @ o
        if layer == net.depth:
            theta.b[layer][...] = -z
        elif active:  # in the middle of what the positions of a map have
            own, kept = z[: W.rows].reshape(W.maps_out, -1), z[W.rows :]
            holder = layer if layer in theta.b else layer - 1
            theta.b[holder][...] = a - (own.min(axis=1) / 2 + own.max(axis=1) / 2)
            off = own + theta.b[holder][:, None] - a
            own = np.where(abs(off) > FLAT, sigma(a + off), value).ravel()
            o = np.concatenate([own, kept])
        else:
            o = z


def _size(W: WeightMatrix, last: bool, slope: float, value: float) -> float:
    """Return the size of weights: small enough that a map has about the same z at all positions."""
    if last:
        return 1.0
    size = 1 / (abs(slope) * math.sqrt(math.prod(W.weights.shape)))
    if W.positions_out > 1:
        fan_in = math.prod(W.weights.shape[1:])
        size = min(size, WINDOW / 2 / (fan_in * max(abs(value), FLAT)))
    return size


def interpolate(net: Network, data: TrainingSet, seed: int = 0) -> Parameters:
    """Return a point that fits the data up to rounding, R < 1e-20 or little more for many samples.

    Either a direction sorts the samples, the hidden layers below the last one keep that order, and
    each unit of the last one steps or bends between two neighbours; or all hidden weights are
    random. The last layer is then fitted by least squares. Several steepnesses of the units are
    tried both ways, and the lowest risk counts. Raises AssumptionError where the last hidden layer
    has fewer units than there are different samples, or equal samples have different targets.
    """
    check_problem(net, data, LOSS)
    check_smooth(net)
    if not _is_dense(net):
        raise ValueError(
            f"interpolation: expected dense layers with biases and one activation, got {net.layers}"
        )
    numbers = identical(data.x)
    firsts = np.unique(numbers, return_index=True)[1]
    other = (data.y != data.y[firsts][numbers]).any(axis=1)
    if other.any():
        second = int(other.argmax())
        raise AssumptionError(
            "interpolation: expected samples that are all different, or have the same targets, got "
            f"the equal samples {firsts[numbers[second]]} and {second} with different ones"
        )
    width, once = net.shapes[-2][0], TrainingSet(data.x[firsts], data.y[firsts])
    if width < len(once):
        raise AssumptionError(
            f"interpolation: expected a last hidden layer of at least {len(once)} units, one for "
            f"each sample, got {width}"
        )
    x = flattened(once.x)
    best, least = None, math.inf
    for steepness in STEEPNESS:
        for hidden in (_stairs, _random_features):
            theta = _fit_last(hidden(net, x, steepness, generator(seed)), once)
            risk = net.risk(theta, data, LOSS) + risk_rounding(theta, data, LOSS)
            if best is None or np.nan_to_num(risk, nan=math.inf) < least:
                best, least = theta, np.nan_to_num(risk, nan=math.inf)
    return best


def _is_dense(net: Network) -> bool:
    dense = all(isinstance(kind, Dense) and kind.bias for kind in net.chain)
    return dense and net.activations == (net.activation,)


def _stairs(net: Network, x: np.ndarray, steepness: float, rng) -> Parameters:
    """Return hidden layers whose last one has a unit for each gap between neighbours."""
    theta, scale = net.zeros(), x.std(axis=0)
    u = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1)
    rows = rng.standard_normal((DIRECTIONS, x.shape[1]))
    along = np.sort(u @ rows.T, axis=0)
    gaps = np.diff(along, axis=0).min(axis=0, initial=np.inf) / np.ptp(along, axis=0).clip(1e-300)
    row, below = rows[gaps.argmax()] / np.where(scale > 0, scale, 1), x
    a = _expansion_point(net.activation)
    for layer in range(1, net.depth):
        weights, biases, values = theta.W[layer].weights, theta.b[layer], below @ row
        low, spread = values.min(), np.ptp(values) or 1.0
        weights[...] = row / spread  # where sigma is monotone, a +- 1/2
        biases[...] = a - WINDOW - low / spread
        if layer == net.depth - 1:
            ordered = np.sort(values)
            gaps = np.diff(ordered).clip(EPSILON * spread)
            here = slice(0, len(gaps))
            weights[here] = steepness / gaps[:, None] * row
            biases[here] = -steepness * (ordered[1:] + ordered[:-1]) / 2 / gaps
        below = net.layer_output(theta, np.ascontiguousarray(x.T), layer).T
        row = np.full(below.shape[1], 1 / below.shape[1])
    return theta


def _random_features(net: Network, x: np.ndarray, steepness: float, rng) -> Parameters:
    """Return hidden layers with normal weights of this size, each unit centred at a sample."""
    theta, below = net.zeros(), x
    for layer in range(1, net.depth):
        weights, biases = theta.W[layer].weights, theta.b[layer]
        size = math.sqrt(below.shape[1]) * (below.std(axis=0).max() or 1.0)
        weights[...] = rng.standard_normal(weights.shape) * steepness / size
        biases[...] = -(weights * below[rng.integers(0, len(x), len(biases))]).sum(axis=1)
        below = net.layer_output(theta, np.ascontiguousarray(x.T), layer).T
    return theta


def _fit_last(theta: Parameters, data: TrainingSet) -> Parameters:
    """Return the point with the last layer fitted by least squares, refined a few times."""
    net = theta.net
    features = net.layer_output(
        theta, np.ascontiguousarray(data.x.reshape(len(data), -1).T), net.depth - 1
    )
    hats = np.vstack([features, np.ones(len(data))]).T
    sizes = abs(hats).max(axis=0)
    sizes = np.maximum(sizes, TINY * sizes.max())
    left = data.y
    for _ in range(REFINED):
        fit = np.linalg.lstsq(hats / sizes, left, rcond=EPSILON)[0] / sizes[:, None]
        theta.W[net.depth].weights[...] += fit[:-1].T
        theta.b[net.depth][...] += fit[-1]
        left = data.y - net.forward(theta, data.x)
    return theta


def lower_point(
    found: SmoothMinimum, starts: int = 3, iterations: int = 500, seed: int = 0
) -> Parameters:
    """Return the lowest of what training reaches from random starts, and of an interpolation.

    L-BFGS from ``starts`` >= 1 Kaiming starts; an interpolation where the last hidden layer is wide
    enough. Nothing says that its risk is below that of the minimum: compare the two.
    """
    if starts < 1:
        raise ValueError(f"lower point: expected one start or more, got {starts}")
    net, data = found.theta.net, found.data
    points = [descend(kaiming_start(net, seed + n), data, LOSS, iterations) for n in range(starts)]
    if _is_dense(net):
        with suppress(AssumptionError):  # too few units, or equal samples with different targets
            points.append(interpolate(net, data, seed))
    risks = [net.risk(point, data, LOSS) for point in points]
    return points[int(np.nan_to_num(risks, nan=np.inf).argmin())]


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
    lengths = np.linalg.norm(centred, axis=0)
    centred = centred / np.where(lengths > 0, lengths, 1)
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
            "degenerate inputs: no residuals are orthogonal to (x, 1) with sum e x x^T a multiple "
            "of the covariance; the samples lie on a quadric, such as a sphere or a box's corners"
        )
    free = rng.standard_normal((outputs, N))
    for _ in range(2):
        free -= free @ basis[:, kept] @ basis[:, kept].T
    sizes = np.linalg.norm(free, axis=1)
    shares = np.where(sizes > GENERIC * N, 0.5 * np.linalg.norm(e) / np.maximum(sizes, GENERIC), 0)
    return (rng.uniform(0.5, 1.5, (outputs, 1)) * (e + shares[:, None] * free)).T
