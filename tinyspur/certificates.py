"""Proofs that a point is a local minimum, and points nearby that refute it.

A certificate is a proof up to floating-point rounding; a search that finds nothing is evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backend import Array, namespace, to_numpy
from .losses import Loss
from .matrices import AveragePoolingMatrix
from .network import Network, Parameters, TrainingSet

STATIONARY = 1e-10  # relative size of G_s that counts as zero, besides the outputs' rounding
ROUNDING_LIMIT = 1e-6  # relative size of G_s above which rounding is no excuse
ROUNDING = 4  # units in the last place that each layer may cost an output, relative to its terms
AT_THE_KINK = 1e-12  # |z| relative to |W^l| |o^{l-1}| + |b^l|, the terms that it is made of
RADIUS_ACCURACY = 1e-2  # the radius is the largest rho found, up to this relative error


@dataclass(frozen=True)
class Kink:
    """Units of one map (or one dense neuron) that sit at z = 0 for some sample."""

    layer: int
    map: int
    locations: int
    samples: int


@dataclass(frozen=True)
class CellCertificate:
    """The cell certificate: all z nonzero and G_s = 0 for every activation pattern s.

    G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T with g_i the gradient of the loss in the output. Where
    it `holds`, R(theta) <= R(theta') for every theta' within max-norm distance `radius` of theta,
    since all patterns are constant there and l is convex: theta is a local minimum.

    `classes` counts the patterns, `margin` is the least |z|, `stationarity` the largest entry of
    any G_s relative to the largest of (1/N) sum_i |g_i| |(x_i, 1)|^T, `kinks` the units at z = 0.
    Of the stationarity, 1e-10 and the share `rounding` count as zero: the latter is what errors of
    a few units in the last place of every layer, relative to |W^L| |o^{L-1}| + |b^L|, amount to,
    and at most 1e-6.
    """

    holds: bool
    classes: int
    margin: float
    radius: float
    stationarity: float
    rounding: float
    kinks: tuple[Kink, ...]
    kind: str = "cell"
    evidence_only: bool = False

    def as_dict(self) -> dict:
        """Return what the report of a run holds."""
        keys = ("kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only")
        return {key: getattr(self, key) for key in keys}

    def __str__(self) -> str:
        lines = [
            f"cell certificate: {'holds, a local minimum' if self.holds else 'does not hold'}",
            f"  pattern classes {self.classes}, margin {self.margin:.3g}, "
            f"radius {self.radius:.3g}, stationarity {self.stationarity:.1e} "
            f"(rounding {self.rounding:.0e})",
        ]
        if self.kinks:
            lines += ["  at the kink z = 0:", *(f"    {line}" for line in self._kinks_by_layer())]
        if self.stationarity > STATIONARY + self.rounding:
            lines.append(f"  not stationary: expected at most {STATIONARY + self.rounding:.0e}")
        return "\n".join(lines)

    def _kinks_by_layer(self) -> list[str]:
        """Return a line for the maps of a layer that have equally many locations and samples."""
        alike: dict[tuple[int, int, int], list[str]] = {}
        for kink in self.kinks:
            key = (kink.layer, kink.locations, kink.samples)
            alike.setdefault(key, []).append(str(kink.map))
        return [
            f"layer {layer} map{'s' * (len(maps) > 1)} {', '.join(maps)} "
            f"({locations} locations, {samples} samples)"
            for (layer, locations, samples), maps in alike.items()
        ]


def certify_cell(theta: Parameters, data: TrainingSet, loss: Loss) -> CellCertificate:
    """Check the cell certificate at theta; see `CellCertificate` for what it proves.

    Sufficient, not necessary, for a local minimum; holds for tied weights, pooling and flat
    directions. Needs float64: in float32 rounding alone exceeds the bound on the stationarity.
    """
    net = theta.net
    if not bool(namespace(theta.vector).isfinite(theta.vector).all()):
        raise ValueError("certificate: expected finite parameters, got NaN or infinite ones")
    y = net.targets(theta, data, loss)
    residuals, errors, keys = [], [], []
    margin, radius = np.inf, np.inf
    at_kink = _KinkCounter(net)
    for rows, columns in net.chunks(theta, data.x):
        trace = list(net.layerwise(theta, columns))
        residuals.append(to_numpy(loss.gradient(trace[-1][1], y[:, rows])))
        outputs = [columns, *(o for _, o in trace)]
        errors.append(_rounding(theta, outputs[-2], np.float64))
        bits = [np.zeros((1, columns.shape[1]), np.uint8)]
        for layer in net.active_layers:
            z = trace[layer - 1][0]
            margin = min(margin, float(abs(z).min()))
            at_kink.add(layer, z, _terms(theta, layer, outputs[layer - 1]))
            bits.append(np.packbits(to_numpy(z > 0), axis=0))
        keys += [column.tobytes() for column in np.ascontiguousarray(np.concatenate(bits).T)]
        radius = _shrink(radius, theta, columns, trace)
    g = np.concatenate(residuals, axis=1).astype(np.float64)
    x = np.concatenate([data.x.reshape(len(data), -1), np.ones((len(data), 1))], axis=1)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    classes = np.array([numbers[key] for key in keys])
    scale = float((abs(g) @ abs(x)).max())
    order = np.argsort(classes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
    largest = max(float(abs(g[:, s] @ x[s]).max()) for s in groups)
    stationarity = largest / scale if scale else 0.0
    rounding = float((np.concatenate(errors, axis=1) @ abs(x)).max()) / scale if scale else 0.0
    rounding = min(rounding, ROUNDING_LIMIT)
    kinks = at_kink.found()
    return CellCertificate(
        holds=bool(not kinks and radius > 0 and stationarity <= STATIONARY + rounding),
        classes=len(groups),
        margin=margin,
        radius=0.0 if kinks else radius,
        stationarity=stationarity,
        rounding=rounding,
        kinks=kinks,
    )


def _terms(theta: Parameters, layer: int, below: Array) -> Array:
    """Return |W^l| |o^{l-1}| + |b^l|, shape (n_l, N): the size of the terms that z^l adds up."""
    terms = abs(theta.W[layer]) @ abs(below)
    if layer in theta.b:
        by_map = terms.reshape(len(theta.b[layer]), -1)
        by_map += abs(theta.b[layer])[:, None]
    return terms


def _rounding(theta: Parameters, below: Array, dtype: type) -> np.ndarray:
    """Return a bound on the rounding errors of outputs computed in `dtype`, (d_y, N), float64.

    A few units in the last place of each layer, relative to the terms of the last.
    """
    terms = to_numpy(_terms(theta, theta.net.depth, below)).astype(np.float64)
    return ROUNDING * theta.net.depth * float(np.finfo(dtype).eps) * terms


def output_rounding(theta: Parameters, x: np.ndarray) -> np.ndarray:
    """Return a bound on the rounding errors of the network's outputs, (d_y, N), on the host.

    A few units in the last place of theta's type for each layer, relative to the terms
    |W^L| |o^{L-1}| + |b^L| that the outputs add up.
    """
    errors = []
    for _, columns in theta.net.chunks(theta, x):
        below = [columns, *(o for _, o in theta.net.layerwise(theta, columns))][-2]
        errors.append(_rounding(theta, below, theta.vector.dtype))
    return np.concatenate(errors, axis=1)


def risk_rounding(theta: Parameters, data: TrainingSet, loss: Loss) -> float:
    """Return a bound on the rounding error of R(theta), to first order.

    A risk that is lower by less than the sum of two such bounds can't be told from an equal one.
    """
    o = namespace(theta.vector).asarray(theta.net.forward(theta, data.x).T)
    g = to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss))).astype(np.float64)
    losses = float(abs(loss.value(to_numpy(o).astype(np.float64), data.y.T)).mean())
    own = ROUNDING * float(np.finfo(theta.vector.dtype).eps) * losses
    return float((abs(g) * output_rounding(theta, data.x)).sum()) / len(data) + own


class _KinkCounter:
    """Collects which units of which maps sit at the kink, over chunks of samples."""

    def __init__(self, net: Network):
        self.net = net
        self.locations: dict[tuple[int, int], np.ndarray] = {}
        self.samples: dict[tuple[int, int], int] = {}

    def add(self, layer: int, z: Array, terms: Array) -> None:
        zero = to_numpy(abs(z) <= AT_THE_KINK * terms)
        if not zero.any():
            return
        for t, units in enumerate(zero.reshape(self.net.shapes[layer][0], -1, zero.shape[1])):
            if units.any():
                key = (layer, t)
                self.locations[key] = self.locations.get(key, False) | units.any(axis=1)
                self.samples[key] = self.samples.get(key, 0) + int(units.any(axis=0).sum())

    def found(self) -> tuple[Kink, ...]:
        return tuple(
            Kink(*key, int(self.locations[key].sum()), self.samples[key])
            for key in sorted(self.locations)
        )


def _shrink(radius: float, theta: Parameters, columns: Array, trace: list) -> float:
    """Return the largest rho <= radius found to keep the patterns of these samples too."""
    margins = [float(abs(trace[layer - 1][0]).min()) for layer in theta.net.active_layers]
    high = min([radius, *margins])  # a bias alone moves z by rho
    if high in (0, np.inf) or _keeps_patterns(high, theta, columns, trace):
        return high
    low = high / 2
    while not _keeps_patterns(low, theta, columns, trace):
        high, low = low, low / 2
        if low < 1e-300:
            return 0.0
    while high - low > RADIUS_ACCURACY * high:
        middle = (low + high) / 2
        if _keeps_patterns(middle, theta, columns, trace):
            low = middle
        else:
            high = middle
    return low


def _keeps_patterns(rho: float, theta: Parameters, columns: Array, trace: list) -> bool:
    """Return whether no z can change its sign for any parameters within max-norm distance rho.

    Per sample, with a = |o^{l-1}| and |change of o^{l-1}| <= d, z moves by at most
    e = |W| d + rho S (a + d) + rho, S the support of the trainable entries. A relative 1e-9 of e
    is added for the rounding of this very computation.
    """
    net, slope = theta.net, theta.net.activation.slope
    xp = namespace(columns)
    below, d = columns, None
    for layer in range(1, max(net.active_layers, default=0) + 1):
        z, o = trace[layer - 1]
        W = theta.W[layer]
        e = xp.zeros_like(z) if d is None else abs(W) @ d
        if not isinstance(W, AveragePoolingMatrix):
            reach = abs(below) if d is None else abs(below) + d
            by_map = e.reshape(W.maps_out, W.positions_out, -1)
            by_map += rho * W.support_sums(reach) + rho
        if net.is_active(layer):
            if not bool((e * (1 + 1e-9) < abs(z)).all()):
                return False
            e = xp.where(z > 0, e, slope * e)
        below, d = o, e
    return True


@dataclass(frozen=True)
class Escape:
    """A point reached from theta, whose risk is lower by `decrease` if that is positive.

    Where it can be reached with any `step` > 0, however small, theta is not a local minimum; the
    function that returns it says so. `step` is the size of the move as the construction scales it,
    `distance` its largest and `length` its Euclidean size, `decrease` = R(theta) - `risk`, and
    `rounding` what of it rounding may account for.
    """

    kind: str
    step: float
    distance: float
    length: float
    risk: float
    decrease: float
    rounding: float
    theta: Parameters

    def __str__(self) -> str:
        return (
            f"{self.kind}: step {self.step:g}, largest change {self.distance:.3g}, "
            f"Euclidean {self.length:.3g}, risk {self.risk:.9g}, lower by {self.decrease:.3g}"
        )


def measure_escape(
    theta: Parameters, nearby: Parameters, kind: str, step: float, data: TrainingSet, loss: Loss
) -> Escape:
    """Evaluate a point near theta and return it with its distance and its decrease."""
    move = nearby.vector - theta.vector
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
    )
