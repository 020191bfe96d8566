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

ROUNDING = 4  # units in the last place of its terms that each sum is taken to be off by
AT_THE_KINK = 1000  # z = 0 where |z| is at most so many times its rounding error
ROUNDING_LIMIT = 1e-6  # share of the largest target above which an output's error is no excuse
EPSILON = float(np.finfo(np.float64).eps)
RADIUS_ACCURACY = 1e-2  # the radius is the largest rho found, up to this relative error


@dataclass(frozen=True)
class Kink:
    """Units of one map (or one dense neuron) that sit at z = 0, up to rounding, for some sample."""

    layer: int
    map: int
    locations: int
    samples: int


def round_down(value: float) -> str:
    """Return a number >= 0 with three digits, never more than it is."""
    if not 0 < value < np.inf:
        return f"{value:.3g}"
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return f"{np.floor(value / unit) * unit:.3g}"


@dataclass(frozen=True)
class CellCertificate:
    """The cell certificate: all z nonzero and G_s = 0 for every activation pattern s.

    G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T with g_i the gradient of the loss in the output; where
    poolings come first, x_i is the pooled input. Where it `holds`, R(theta) <= R(theta') for every
    theta' within max-norm distance `radius` of theta, since all patterns are constant there and l
    is convex: theta is a local minimum.

    `classes` counts the patterns, `margin` is the least |z|, `stationarity` the largest entry of
    any G_s relative to the largest of (1/N) sum_i |g_i| |(x_i, 1)|^T, `kinks` the units at z = 0.
    An entry of G_s counts as zero up to the rounding error that is estimated for it, from a few
    units in the last place for every sum of the forward pass; `excess` is the largest ratio of an
    entry to its estimate, and at most 1 where the certificate holds.
    """

    holds: bool
    classes: int
    margin: float
    radius: float
    stationarity: float
    excess: float
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
            f"radius {round_down(self.radius)}, stationarity {self.stationarity:.1e} "
            f"({self.excess:.2g} of its rounding)",
        ]
        if self.kinks:
            lines += ["  at the kink z = 0:", *(f"    {line}" for line in self._kinks_by_layer())]
        if self.excess > 1:
            lines.append(f"  not stationary: G_s is {self.excess:.2g} times its rounding error")
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
    directions. A float32 theta is taken for the numbers that it holds, in float64 arithmetic.
    Raises ValueError where parameters or outputs are not finite.
    """
    net, xp = theta.net, namespace(theta.vector)
    theta = theta.to(xp, np.float64)
    if not bool(xp.isfinite(theta.vector).all()):
        raise ValueError("certificate: expected finite parameters, got NaN or infinite ones")
    y = net.targets(theta, data, loss)
    features, residuals, errors, keys = [], [], [], []
    margin, radius = np.inf, np.inf
    at_kink = _KinkCounter(net)
    for rows, columns in net.chunks(theta, data.x):
        trace = list(net.layerwise(theta, columns))
        if net.leading_poolings:
            features.append(to_numpy(trace[net.leading_poolings - 1][1]))
        residuals.append(to_numpy(loss.gradient(trace[-1][1], y[:, rows])))
        rounding = _rounding(theta, columns, trace, np.float64)
        errors.append(to_numpy(rounding[-1]))
        bits = [np.zeros((1, columns.shape[1]), np.uint8)]
        for layer in net.active_layers:
            z = trace[layer - 1][0]
            margin = min(margin, float(abs(z).min()))
            at_kink.add(layer, z, rounding[layer - 1])
            bits.append(np.packbits(to_numpy(z > 0), axis=0))
        keys += [column.tobytes() for column in np.ascontiguousarray(np.concatenate(bits).T)]
        radius = _shrink(radius, theta, columns, trace, rounding)
    g = np.concatenate(residuals, axis=1)
    if not np.isfinite(g).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    errors = np.minimum(np.concatenate(errors, axis=1), ROUNDING_LIMIT * abs(data.y).max())
    x = np.concatenate(features, axis=1).T if features else data.x.reshape(len(data), -1)
    x = np.concatenate([x, np.ones((len(data), 1))], axis=1)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    classes = np.array([numbers[key] for key in keys])
    order = np.argsort(classes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
    scale, largest, excess = float((abs(g) @ abs(x)).max()), 0.0, 0.0
    for s in groups:
        G = abs(g[:, s] @ x[s])
        summing = ROUNDING * EPSILON * (1 + np.sqrt(len(s))) * abs(g[:, s])
        explained = (errors[:, s] + summing) @ abs(x[s])
        ratios = np.divide(G, explained, where=explained > 0, out=np.where(G > 0, np.inf, 0.0))
        largest, excess = max(largest, float(G.max())), max(excess, float(ratios.max()))
    kinks = at_kink.found()
    return CellCertificate(
        holds=not kinks and radius > 0 and excess <= 1,
        classes=len(groups),
        margin=margin,
        radius=0.0 if kinks else radius,
        stationarity=largest / scale if scale else 0.0,
        excess=excess,
        kinks=kinks,
    )


def _rounding(theta: Parameters, columns: Array, trace: list, dtype: type) -> list[Array]:
    """Return for each layer an estimate of the rounding errors of z^l in `dtype`, (n_l, N).

    |W^l| (delta^{l-1} + c |o^{l-1}|) + c |b^l|, with the errors delta of the layer below and c a
    few units in the last place; c is no bound for sums of very many terms, hence an estimate.
    """
    net, c = theta.net, ROUNDING * float(np.finfo(dtype).eps)
    xp, slope = namespace(columns), theta.net.activation.slope
    found, reach = [], c * abs(columns)
    for layer, (z, o) in enumerate(trace, start=1):
        errors = abs(theta.W[layer]) @ reach
        if layer in theta.b:
            by_map = errors.reshape(len(theta.b[layer]), -1)
            by_map += c * abs(theta.b[layer])[:, None]
        found.append(errors)
        if net.is_active(layer):
            errors = xp.where(z > 0, errors, slope * errors)
        reach = errors + c * abs(o)
    return found


def output_rounding(theta: Parameters, x: np.ndarray) -> np.ndarray:
    """Return an estimate of the rounding errors of the outputs in theta's type, (d_y, N)."""
    errors = []
    for _, columns in theta.net.chunks(theta, x):
        trace = list(theta.net.layerwise(theta, columns))
        errors.append(to_numpy(_rounding(theta, columns, trace, theta.vector.dtype)[-1]))
    return np.concatenate(errors, axis=1).astype(np.float64)


def risk_rounding(theta: Parameters, data: TrainingSet, loss: Loss) -> float:
    """Return an estimate of the rounding error of R(theta), to first order.

    A risk that is lower by less than the sum of two of them can't be told from an equal one.
    """
    o = theta.net.forward(theta, data.x).T
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

    def add(self, layer: int, z: Array, errors: Array) -> None:
        zero = to_numpy(abs(z) <= AT_THE_KINK * errors)
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


def _shrink(radius: float, theta: Parameters, columns: Array, trace: list, rounding: list) -> float:
    """Return the largest rho <= radius found to keep the patterns of these samples too."""
    margins = [float(abs(trace[layer - 1][0]).min()) for layer in theta.net.active_layers]
    high = min([radius, *margins])  # a bias alone moves z by rho
    if high in (0, np.inf) or _keeps_patterns(high, theta, columns, trace, rounding):
        return high
    low = high / 2
    while not _keeps_patterns(low, theta, columns, trace, rounding):
        high, low = low, low / 2
        if low < 1e-300:
            return 0.0
    while high - low > RADIUS_ACCURACY * high:
        middle = (low + high) / 2
        if _keeps_patterns(middle, theta, columns, trace, rounding):
            low = middle
        else:
            high = middle
    return low


def _keeps_patterns(
    rho: float, theta: Parameters, columns: Array, trace: list, rounding: list
) -> bool:
    """Return whether no z can change its sign for any parameters within max-norm distance rho.

    Per sample, with a = |o^{l-1}| and |change of o^{l-1}| <= d, z moves by at most
    e = |W| d + rho S (a + d) + rho, S the support of the trainable entries. The rounding
    errors of z are added, and a relative 1e-9 of e for those of this very computation.
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
            if not bool((e * (1 + 1e-9) + rounding[layer - 1] < abs(z)).all()):
                return False
            e = xp.where(z > 0, e, slope * e)
        below, d = o, e
    return True
