"""The cell certificate: every activation pattern is constant nearby, and stationary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import check_piecewise_linear
from ..engine.backend import Array, all_to_numpy, namespace
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import margins as margins_of
from ..engine.passes import patterns as patterns_of
from ..engine.passes import steps
from ..fitting.affine import stationary_subgradient
from .certificate import Certificate, in_float64, round_down
from .kinks import Kink, KinkCounter, at_kink, kink_lines
from .radius import Chunk, keeps_patterns, shrink
from .rounding import EPSILON, ROUNDING, preactivation_rounding

ROUNDING_LIMIT = 1e-6  # errors of outputs explain gradients only up to this share of the targets
MET = 8  # an output meets its target, a kink of the loss, up to so many rounding errors
STATIONARITY_LIMIT = 1e-3  # a larger G_s, relative to the gradients, is not 0 for any rounding


@dataclass(frozen=True)
class CellCertificate(Certificate):
    """The cell certificate: all z nonzero and G_s = 0 for every activation pattern s.

    A pattern says which z are positive and which entries max poolings select. The margin of a max
    pooling is half the gap between the selected entry and the next one; equal entries are a kink
    unless both are inactive.

    G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T with g_i the gradient of the loss in the output; at a
    kink of the loss any subgradient serves, and those with the least |G_s| are taken. Where
    poolings come first, x_i is the pooled input. Where it `holds`, R(theta) <= R(theta') for every
    theta' within max-norm distance `radius` of theta, since all patterns are constant there and l
    is convex: theta is a local minimum.

    `classes` counts the patterns, `margin` is the least |z| or half gap, `stationarity` the largest
    entry of any G_s relative to the largest of (1/N) sum_i |g_i| |(x_i, 1)|^T, `kinks` the units at
    z = 0 or with a gap of 0.
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

    kind = "cell"

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless the activation is piecewise linear."""
        check_points(None, theta)
        check_piecewise_linear(theta.net.activation, "cell certificate")

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        classes = f"{self.classes} pattern class{'es' * (self.classes > 1)}"
        if self.holds:
            return f"certified local minimum, {classes}"
        obstacle = "units at the kink" if self.kinks else f"stationarity {self.stationarity:.1e}"
        return f"not certified, {classes}, {obstacle}"

    def lines(self) -> list[str]:
        """Return classes, margin, radius and stationarity, and what is missing."""
        lines = [
            f"pattern classes {self.classes}, margin {self.margin:.3g}, "
            f"radius {round_down(self.radius)}, stationarity {self.stationarity:.1e} "
            f"({self.excess:.2g} of its rounding)",
            *kink_lines(self.kinks),
        ]
        if self.excess > 1:
            lines.append(f"not stationary: G_s is {self.excess:.2g} times its rounding error")
        elif self.stationarity > STATIONARITY_LIMIT:
            lines.append("not decided: the samples' gradients are no larger than rounding errors")
        return lines


def certify_cell(theta: Parameters, data: TrainingSet, loss: Loss) -> CellCertificate:
    """Check the cell certificate at theta; see `CellCertificate` for what it proves.

    Sufficient, not necessary, for a local minimum; holds for tied weights, pooling and flat
    directions. A float32 theta is taken for the numbers that it holds, in float64 arithmetic.
    Raises ValueError where parameters or outputs are not finite, and for a smooth activation.
    """
    check_at(theta, data, loss)
    CellCertificate.require(theta, loss)
    net, xp = theta.net, namespace(theta.vector)
    theta = in_float64(theta)
    y = net.targets(theta, data, loss)
    magnitudes = abs(theta)
    limit = ROUNDING_LIMIT * float(abs(data.y).max())

    def chunk(rows: slice, columns: Array) -> tuple:
        trace = list(steps(theta, columns))
        o = trace[-1].o
        rounding = preactivation_rounding(magnitudes, trace, np.float64)
        inexact = xp.minimum(rounding[-1], limit)
        parts = [loss.gradient(o, y[:, rows]), _gradient_errors(loss, o, y[:, rows], inexact)]
        if hasattr(loss, "subgradients"):
            parts += loss.subgradients(o, y[:, rows], MET * inexact)
        if net.leading_poolings:
            parts.append(trace[net.leading_poolings - 1].o)
        patterns = patterns_of(trace)
        keys = _packed(all_to_numpy(patterns[layer] for layer in net.pattern_layers), len(o.T))
        at = Chunk(magnitudes, trace, rounding)
        kept = not radius or (radius < np.inf and keeps_patterns(radius, at))  # and any below
        kinks = at_kink(margins_of(trace), rounding)
        return all_to_numpy(parts), keys, kinks, None if kept else at

    found, keys, radius, counter = [], [], np.inf, KinkCounter(net)
    for parts, packed, kinks, at in net.over(theta, data.x, chunk):
        found.append(parts)
        keys += packed
        counter.add(*kinks)
        radius = radius if at is None else shrink(radius, at)
    g, errors, *rest = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    if not np.isfinite(g).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    x = rest.pop().T if net.leading_poolings else data.x.reshape(len(data), -1)
    x = np.concatenate([x, np.ones((len(data), 1))], axis=1)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    classes = np.array([numbers[key] for key in keys])
    order = np.argsort(classes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
    scale, largest, excess = float((abs(g) @ abs(x)).max()), 0.0, 0.0
    terms = abs(g)
    if rest:  # any subgradients will do: the best choice in each class
        low, high = rest
        for s in groups:
            g[:, s] = stationary_subgradient(x[s], low[:, s], high[:, s])
        terms = np.maximum(abs(low), abs(high))
    for s in groups:
        G = abs(g[:, s] @ x[s])
        summing = ROUNDING * EPSILON * (1 + np.sqrt(len(s))) * terms[:, s]
        explained = (errors[:, s] + summing) @ abs(x[s])
        ratios = np.divide(G, explained, where=explained > 0, out=np.where(G > 0, np.inf, 0.0))
        largest, excess = max(largest, float(G.max())), max(excess, float(ratios.max()))
    kinks, stationarity = counter.found(), largest / scale if scale else 0.0
    return CellCertificate(
        holds=not kinks and radius > 0 and excess <= 1 and stationarity <= STATIONARITY_LIMIT,
        classes=len(groups),
        margin=counter.margin,
        radius=0.0 if kinks else radius,
        stationarity=stationarity,
        excess=excess,
        kinks=kinks,
    )


def _packed(patterns: list[np.ndarray], samples: int) -> list[bytes]:
    """Return for each sample all its patterns, (n_l, N) each, as one key."""
    bits = [np.zeros((samples, 1), np.uint8)]
    for pattern in patterns:
        packed = np.packbits(pattern, axis=0) if pattern.dtype == bool else pattern
        bits.append(np.ascontiguousarray(packed.T).view(np.uint8))
    return [row.tobytes() for row in np.concatenate(bits, axis=1)]


def _gradient_errors(loss: Loss, o: Array, y: Array, errors: Array) -> Array:
    """Return the errors that those of the outputs cause in the gradient, |H| errors."""
    xp, total = namespace(o), namespace(o).zeros_like(o)
    for k in range(len(o)):
        one = xp.zeros_like(o)
        one[k] = errors[k]
        total += abs(loss.curvature(o, y, one))
    return total
