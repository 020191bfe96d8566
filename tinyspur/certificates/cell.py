"""The cell certificate: every activation pattern is constant nearby, and stationary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.backend import Array, all_to_numpy
from ..engine.floats import EPSILON, QUIET, SMALLEST, gamma
from ..engine.live import Live, live_part
from ..engine.losses import KNOWN, AbsoluteLoss, HuberLoss, Loss, SquaredLoss, gradient_at
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import margins as margins_of
from ..engine.passes import patterns as patterns_of
from ..engine.passes import steps
from ..engine.threads import in_order
from ..fitting.affine import stationary_subgradient
from .assumptions import assumed, check_loss
from .certificate import Certificate, in_float64, round_down, round_up
from .class_fits import first_read, pooled_parts
from .decrease import SHARE, Classes
from .exact import meets_targets
from .gram import Samples
from .kinks import Kink, KinkCounter, at_kink, kink_lines
from .nearby import distance_to_minimum
from .radius import Chunk, highest_dead_layer, keeps_patterns, shrink
from .rounding import gradient_rounding, mean_rounding, preactivation_rounding

CHOSEN = 1e-12  # of subgradients: up to this share of the largest sum a better choice may exist
BLOCK = 1000  # samples whose |features| are in memory at a time
ZERO_AT_TARGETS = (SquaredLoss, AbsoluteLoss, HuberLoss)


@dataclass(frozen=True, repr=False)
class CellCertificate(Certificate):
    """The cell certificate: all z nonzero and G_s = 0 for every activation pattern s.

    A pattern says which z are positive and which entries max poolings select. The margin of a max
    pooling is half the gap between the selected entry and the next one; equal entries are a kink
    unless both are inactive. Where a whole layer is strictly inactive for a sample, what is below
    it does not count, and of G_s only the column of the constants.

    G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T with g_i the gradient of the loss in the output; at a
    kink of the loss any subgradient serves, and those with the least |G_s| are taken. Where
    poolings come first, x_i is the pooled input. Within max-norm distance `radius` of theta all
    patterns are constant, o_i = F_s (x_i, 1) and l is convex, so that R(theta) - R(theta') <=
    sum_s <G_s, F_s - F'_s> <= `delta`: it is 0 where every G_s is, and theta a local minimum.

    An entry of G_s can be 0 where the bound of its rounding error allows it; `excess` is the
    largest ratio of an entry to its bound. The certificate `holds` where this is at most 1 and a
    point with the same patterns, whose G_s are exactly 0, is shown to exist within `distance` of
    theta, less than half the radius (P1). That is a local minimum, no point within `radius` of
    theta is lower than it, and it is lower than theta by at most `delta`, itself at most the share
    `SHARE` of the risk. It holds too where the risk is exactly 0. Without such a point `radius` is
    where `delta` reaches that share (P2): a choice of one pair, each radius has its delta.

    `classes` counts the patterns, `margin` is the least |z| or half gap, `stationarity` the largest
    entry of any G_s relative to the largest of (1/N) sum_i |g_i| |(x_i, 1)|^T, `kinks` the units at
    z = 0 or with a gap of 0, `obstacle` what is missing, `assumes` what is not proved.
    """

    holds: bool
    classes: int
    margin: float
    radius: float
    stationarity: float
    excess: float
    kinks: tuple[Kink, ...]
    delta: float = 0.0
    distance: float = math.inf
    assumes: str = ""
    obstacle: str = ""
    zero: bool = False

    kind = "cell"

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless the activation is ReLU or leaky ReLU."""
        check_points(None, theta)
        check_relu(theta, "cell certificate")

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        classes = f"{self.classes} pattern class{'es' * (self.classes > 1)}"
        if self.zero:
            return "certified global minimum, the risk is exactly 0"
        assumes = f", if {self.assumes}" if self.assumes else ""
        if self.holds:
            return f"certified local minimum, {classes}{assumes}"
        if self.proves:
            within, delta = round_down(self.radius), round_up(self.delta)
            found = f"no point within {within} is lower by more than {delta}, {classes}{assumes}"
            return f"not certified, {found}; {self.obstacle}"
        return f"not certified, {classes}, {self.obstacle}"

    @property
    def proves(self) -> str:
        """Return "P1", "P2" or "": which of the statements about theta is proved."""
        return "" if self.excess > 1 and self.distance == math.inf else super().proves

    def lines(self) -> list[str]:
        """Return classes, margin, radius and stationarity, and what is missing."""
        lines = [
            f"pattern classes {self.classes}, margin {self.margin:.3g}, "
            f"radius {round_down(self.radius)}, stationarity {self.stationarity:.1e} "
            f"({self.excess:.2g} times its rounding error)",
            *kink_lines(self.kinks),
        ]
        if self.zero:
            lines.append("the risk is exactly 0, and no risk is negative: a global minimum")
        else:
            lines += self.bound_lines()
        return lines if self.holds else [*lines, *self.obstacle.split("; ")]


def check_relu(theta: Parameters, purpose: str) -> None:
    """Raise ValueError unless all activations are ReLU or leaky ReLU, no class of a user's."""
    for sigma in theta.net.activations:
        if type(sigma) is not ReLU:
            raise ValueError(
                f"{purpose}: expected a piecewise linear activation, ReLU or leaky ReLU, "
                f"got {sigma}"
            )


@np.errstate(**QUIET)
def certify_cell(theta: Parameters, data: TrainingSet, loss: Loss) -> CellCertificate:
    """Check the cell certificate at theta; see `CellCertificate` for what it proves.

    Sufficient, not necessary, for a local minimum; holds for tied weights, pooling and flat
    directions. A float32 theta is taken for the numbers that it holds, in float64 arithmetic.
    Raises ValueError where parameters or outputs are not finite, and for a smooth activation;
    AssumptionError for a loss of a user's that is seen not to be convex, or not to have the
    derivatives that it returns.
    """
    check_at(theta, data, loss)
    CellCertificate.require(theta, loss)
    live = live_part(in_float64(theta))  # has the same G_s
    seen = _look(live, data, loss)
    if seen.dead.any():  # maps below a dead layer may be activated within the radius, all of them
        live = Live.all(live.whole)
        seen = _look(live, data, loss)
    theta = live.point
    check_loss(loss, seen.o, data.y.T)
    found = _class_gradients(seen, data, loss)
    cells = Classes.of(theta, data.x[[s[0] for s in seen.groups]], found.bounds, found.slack)
    losses = loss.value(seen.o, data.y.T)
    risk = float(losses.mean())
    rounding = mean_rounding(loss, seen.o, data.y.T, losses, seen.inexact_o)
    kinks = tuple(
        replace(kink, map=int(live.kept[kink.layer][kink.map])) for kink in seen.counter.found()
    )
    radius = 0.0 if kinks else seen.radius
    common = {
        "classes": len(seen.groups),
        "margin": seen.counter.margin,
        "stationarity": found.stationarity,
        "excess": found.excess,
        "kinks": kinks,
        "assumes": assumed(loss),
    }
    if risk <= rounding and type(loss) in ZERO_AT_TARGETS and meets_targets(theta, data):
        return CellCertificate(holds=True, radius=math.inf, zero=True, distance=0.0, **common)
    if not theta.net.size:  # there is no other point
        return CellCertificate(holds=True, radius=math.inf, distance=0.0, **common)
    distance, delta, reached, host = math.inf, math.inf, radius, theta.to(np)
    if radius > 0:
        distance = _distance(host, seen, found, data, loss)
    if distance < radius / 2:
        delta = cells.decrease(theta, distance)
    else:
        distance = math.inf
    tolerated = SHARE * (risk - rounding)
    holds = distance < math.inf and found.excess <= 1 and delta <= tolerated
    if radius > 0 and distance == math.inf:
        if found.excess <= 1 and tolerated > 0:
            reached, delta = cells.reach(theta, radius, tolerated)
        elif radius < math.inf:
            delta = cells.decrease(theta, radius)
    if reached <= EPSILON * live.whole.norm(np.inf):  # no other point is so near
        reached = 0.0
    if type(loss) in KNOWN:  # no risk is negative
        delta = min(delta, risk + rounding + 2 * SMALLEST)
    return CellCertificate(
        holds=holds,
        radius=reached,
        delta=delta,
        distance=distance,
        obstacle="" if holds else "; ".join(_obstacles(kinks, radius, distance, found, loss)),
        **common,
    )


def _obstacles(
    kinks: tuple[Kink, ...], radius: float, distance: float, found: _ClassGradients, loss: Loss
) -> Iterator[str]:
    """Yield what is missing for a certificate."""
    if kinks:
        yield "units at the kink"
    elif not radius:
        yield "not decided: rounding errors may change a pattern at any distance"
    if found.excess > 1:
        yield f"G_s is not 0: {found.where}"
    elif distance < math.inf:
        yield f"not decided: the minimum nearby may be lower by more than {SHARE:g} R"
    elif radius > 0 and type(loss) in KNOWN:
        yield "not decided: no exact optimal fit of every class was shown to be near"
    elif radius > 0:
        yield "not decided: whether an exact optimal fit is near, for a loss of a user's"


def _distance(
    theta: Parameters, seen: _Seen, found: _ClassGradients, data: TrainingSet, loss: Loss
) -> float:
    """Return how far an exact local minimum is, at most; infinite where that is not shown.

    `theta` is on the host.
    """
    inexact, classes = seen.inexact.any(), []
    for s in seen.groups:
        hats, y = seen.features(s), np.ascontiguousarray(data.y[s].T, np.float64)
        off = seen.inexact[s] if inexact else np.zeros((1, 1))
        inputs = pooled_parts(theta.net, data.x[s]) if inexact else hats
        classes.append(Samples(hats, off, y, inputs, found.g[:, s]))
    x = data.x[[s[0] for s in seen.groups]]
    return distance_to_minimum(theta, loss, x, classes, seen.radius)


class _Seen(NamedTuple):
    """What passes over all samples show, on the host.

    Outputs o and gradients g (d_y, N) with bounds of the errors of both, the least and the greatest
    subgradient where the loss has kinks, features (N, n + 1) with a 1 at the end and bounds of
    their errors (0 for inputs), the samples of each class, the layers below which nothing counts
    for each sample, the radius and the kinks.
    """

    o: np.ndarray
    inexact_o: np.ndarray
    g: np.ndarray
    errors: np.ndarray
    subgradients: list[np.ndarray]
    hats: np.ndarray
    inexact: np.ndarray
    groups: list[np.ndarray]
    dead: np.ndarray
    radius: float
    counter: KinkCounter

    def features(self, s: np.ndarray) -> np.ndarray:
        """Return (x_i, 1) of the samples of a class, or (0, 1) below a dead layer."""
        hats = self.hats[s] if len(s) < len(self.hats) or self.dead[s[0]] else self.hats
        if self.dead[s[0]]:
            hats[:, :-1] = 0
        return hats


def _look(live: Live, data: TrainingSet, loss: Loss) -> _Seen:
    theta, idle = live.point, live.idle
    net, magnitudes = theta.net, abs(theta)
    y, first = net.targets(theta, data, loss), net.leading_poolings

    def chunk(rows: slice, columns: Array) -> tuple:
        trace = list(steps(theta, columns))
        rounding = preactivation_rounding(magnitudes, trace, np.float64)
        o, cut = trace[-1].o, highest_dead_layer(trace, rounding)
        parts = [o, rounding[-1], gradient_at(loss, o, y[:, rows])]
        parts.append(gradient_rounding(loss, o, y[:, rows], rounding[-1]))
        if first:
            parts += [trace[first - 1].o, rounding[first - 1]]
        if hasattr(loss, "subgradients"):
            parts += loss.subgradients(o, y[:, rows], rounding[-1])
        patterns = patterns_of(trace)
        at = Chunk(magnitudes, trace, rounding, cut, margins_of(trace), idle)
        counts = at.counted
        shown = all_to_numpy([cut[None], *(patterns[n] * some for n, some in counts.items())])
        kept = not radius or (radius < np.inf and keeps_patterns(radius, at))  # and any below
        kinks = at_kink(at.margins, rounding, counts)
        return all_to_numpy(parts), shown[0][0], _packed(shown), kinks, None if kept else at

    radius = min((-bias for bias in idle.values()), default=np.inf)
    found, keys, dead, counter = [], [], [], KinkCounter(net, radius)
    for parts, cut, packed, kinks, at in net.over(theta, data.x, chunk):
        found.append(parts)
        keys += packed
        dead.append(cut)
        counter.add(*kinks)
        radius = radius if at is None else shrink(radius, at)
    joined = [np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]
    o, inexact_o, g, errors, *rest = joined
    if not np.isfinite(g).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    x, inexact = data.x.reshape(len(data), -1), np.zeros((len(data), 1))
    if first:
        x, inexact, *rest = rest[0].T, np.pad(rest[1].T, ((0, 0), (0, 1))), *rest[2:]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    classes = np.array([numbers[key] for key in keys])
    order = np.argsort(classes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
    dead, hats = np.concatenate(dead), _with_ones(x, first_read(net))
    return _Seen(o, inexact_o, g, errors, rest, hats, inexact, groups, dead, radius, counter)


def _with_ones(x: np.ndarray, read: np.ndarray | None) -> np.ndarray:
    """Return features (N, n) with a 1 at the end, and 0 for those that nothing reads."""
    hats = np.empty((len(x), x.shape[1] + 1))

    def fill(start: int) -> None:
        rows = slice(start, start + BLOCK)
        hats[rows, :-1] = x[rows] if read is None else np.where(read, x[rows], 0)
        hats[rows, -1] = 1

    for _ in in_order(fill, range(0, len(x), BLOCK), np):
        pass
    return hats


class _ClassGradients(NamedTuple):
    """What is known of all G_s.

    The largest entry relative to the gradients, the largest ratio to a bound of its rounding error
    and `where` that is; bounds of all |G_s|, (S, d_y, n + 1); by how much a choice of subgradients
    lowers the risk at most; the gradients (d_y, N), of the loss with kinks those that were chosen.
    """

    stationarity: float
    excess: float
    where: str
    bounds: np.ndarray
    slack: float
    g: np.ndarray


def _class_gradients(seen: _Seen, data: TrainingSet, loss: Loss) -> _ClassGradients:
    g, errors, slack = seen.g.copy(), seen.errors, 0.0
    scale = float(_summed_sizes(g, seen.hats).max())
    if seen.subgradients:  # any will do: the best choice in each class
        low, high = seen.subgradients
        slack = float(((high - low) * (abs(seen.o - data.y.T) + seen.inexact_o)).sum()) / len(data)
        errors = np.where(low < high, 0, errors)
    largest, worst, bounds = 0.0, (0.0, ""), []
    for s in seen.groups:
        hats = seen.features(s)
        if seen.subgradients:
            g[:, s] = stationary_subgradient(hats, low[:, s], high[:, s])
        G, terms = _summed(g[:, s], hats)
        sizes, off = np.split(_summed_sizes(np.concatenate([g[:, s], errors[:, s]]), hats), 2)
        off = off + gamma(terms) * sizes + abs(g[:, s]) @ seen.inexact[s]
        G, off = abs(G), off * (1 + gamma(len(s) + 2))
        if seen.subgradients:  # another choice may be better than the one that was found
            off = off + CHOSEN * _summed_sizes(np.maximum(abs(low), abs(high))[:, s], hats)
        ratios = np.divide(G, off, where=off > 0, out=np.where(G > 0, np.inf, 0.0))
        largest = max(largest, float(G.max()))
        name = f"the class of sample {s[0]} ({len(s)} sample{'s' * (len(s) > 1)})"
        if ratios.max() > worst[0]:
            k, j = np.unravel_index(ratios.argmax(), ratios.shape)
            column = "the constant" if j == hats.shape[1] - 1 else f"feature {j}"
            share, times = G[k, j] / scale if scale else 0.0, float(ratios[k, j])
            said = f"{share:.2g} of the gradients, {times:.2g} times its rounding error, in {name}"
            worst = times, f"{said}, output {k}, {column}"
        bounds.append((G + off) / len(data))
    stationarity = largest / scale if scale else 0.0
    return _ClassGradients(stationarity, *worst, np.array(bounds), slack, g)


def _summed(g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return g @ x (d_y, n), summed by blocks, and how many terms its rounding is that of."""
    size = math.isqrt(len(x))
    whole = len(x) // size * size
    blocks = g[:, :whole].reshape(len(g), -1, size).swapaxes(0, 1)
    blocks = blocks @ x[:whole].reshape(-1, size, x.shape[1])
    return blocks.sum(axis=0) + g[:, whole:] @ x[whole:], 2 * size + len(blocks) + 2


def _summed_sizes(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return |g| @ |x| (d_y, n), summed by blocks."""

    def part(start: int) -> np.ndarray:
        rows = slice(start, start + BLOCK)
        return abs(g[:, rows]) @ abs(x[rows])

    return sum(in_order(part, range(0, len(x), BLOCK), np))


def _packed(patterns: list[np.ndarray]) -> list[bytes]:
    """Return for each sample all its patterns, (n_l, N) each, as one key."""
    bits = []
    for pattern in patterns:
        rows = np.ascontiguousarray(pattern.T)
        bits.append(np.packbits(rows, axis=1) if pattern.dtype == bool else rows.view(np.uint8))
    return [row.tobytes() for row in np.concatenate(bits, axis=1)]
