"""Proofs that a point is a local minimum, and points nearby that refute it.

A certificate is a proof up to floating-point rounding; a search that finds nothing is evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activations import check_piecewise_linear
from .backend import Array, all_to_numpy, namespace, to_numpy
from .datasets.samples import TrainingSet
from .evidence import Evidence, gather_evidence
from .fitting import stationary_subgradient
from .layers import Dense, MaxPool
from .losses import Loss
from .network import Network
from .parameters import Parameters
from .pattern_radius import Chunk, keeps_patterns, shrink
from .rounding import AT_THE_KINK, EPSILON, ROUNDING, preactivation_rounding

ROUNDING_LIMIT = 1e-6  # share of the largest target above which an output's error is no excuse
MET = 8  # an output meets its target, at a kink of the loss, up to so many rounding errors
STATIONARITY_LIMIT = 1e-3  # |G_s| that no rounding excuses, relative to the gradients' size


@dataclass(frozen=True)
class Kink:
    """Units of one map (or one dense neuron) at the kink, up to rounding, for some sample.

    In max pooling: units for which two entries are the largest.
    """

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

    The pattern counts which z are positive and which entries max poolings select; the margin of
    these is half the gap to the next entry, and equal entries are kinks unless both are inactive.

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
    kind: str = "cell"
    evidence_only: bool = False

    def as_dict(self) -> dict:
        """Return what the report of a run holds; None is infinite: no layer has an activation."""
        keys = ("kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only")
        found = {key: getattr(self, key) for key in keys}
        return {key: None if value == np.inf else value for key, value in found.items()}

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        classes = f"{self.classes} pattern class{'es' * (self.classes > 1)}"
        if self.holds:
            return f"certified local minimum, {classes}"
        obstacle = "units at the kink" if self.kinks else f"stationarity {self.stationarity:.1e}"
        return f"not certified, {classes}, {obstacle}"

    def __str__(self) -> str:
        lines = [
            f"cell certificate: {'holds, a local minimum' if self.holds else 'does not hold'}",
            f"  pattern classes {self.classes}, margin {self.margin:.3g}, "
            f"radius {round_down(self.radius)}, stationarity {self.stationarity:.1e} "
            f"({self.excess:.2g} of its rounding)",
        ]
        if self.kinks:
            lines += ["  at the kink:", *(f"    {line}" for line in by_layer(self.kinks))]
        if self.excess > 1:
            lines.append(f"  not stationary: G_s is {self.excess:.2g} times its rounding error")
        elif self.stationarity > STATIONARITY_LIMIT:
            lines.append(
                "  not decided: the gradients themselves are no larger than rounding errors"
            )
        return "\n".join(lines)


def by_layer(kinks: tuple[Kink, ...]) -> list[str]:
    """Return a line for the maps of a layer that have equally many locations and samples."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for kink in kinks:
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
    Raises ValueError where parameters or outputs are not finite, and for a smooth activation.
    """
    net, xp = theta.net, namespace(theta.vector)
    check_piecewise_linear(net.activation, "cell certificate")
    theta = theta.to(xp, np.float64)
    if not bool(xp.isfinite(theta.vector).all()):
        raise ValueError("certificate: expected finite parameters, got NaN or infinite ones")
    y = net.targets(theta, data, loss)
    magnitudes = abs(theta)
    limit = ROUNDING_LIMIT * float(abs(data.y).max())

    def chunk(rows: slice, columns: Array) -> tuple:
        trace = list(net.layerwise(theta, columns))
        o = trace[-1][1]
        rounding = preactivation_rounding(magnitudes, columns, trace, np.float64)
        inexact = xp.minimum(rounding[-1], limit)
        parts = [loss.gradient(o, y[:, rows]), _gradient_errors(loss, o, y[:, rows], inexact)]
        if hasattr(loss, "subgradients"):
            parts += loss.subgradients(o, y[:, rows], MET * inexact)
        if net.leading_poolings:
            parts.append(trace[net.leading_poolings - 1][1])
        patterns = net.pattern(theta, columns, trace)
        keys = _packed(all_to_numpy(patterns[layer] for layer in net.pattern_layers), len(o.T))
        at = Chunk(theta, magnitudes, columns, trace, rounding)
        kept = not radius or (radius < np.inf and keeps_patterns(radius, at))  # and any below
        kinks = _at_kink(net.margins(theta, trace), rounding)
        return all_to_numpy(parts), keys, kinks, None if kept else at

    found, keys, radius, at_kink = [], [], np.inf, _KinkCounter(net)
    for parts, packed, kinks, at in net.over(theta, data.x, chunk):
        found.append(parts)
        keys += packed
        at_kink.add(*kinks)
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
    kinks, stationarity = at_kink.found(), largest / scale if scale else 0.0
    return CellCertificate(
        holds=not kinks and radius > 0 and excess <= 1 and stationarity <= STATIONARITY_LIMIT,
        classes=len(groups),
        margin=at_kink.margin,
        radius=0.0 if kinks else radius,
        stationarity=stationarity,
        excess=excess,
        kinks=kinks,
    )


@dataclass(frozen=True)
class RelayCertificate:
    """What theta inherits from its `subnetwork` where the layers from `lower` on only relay.

    The structure: on every sample each unit of these layers is strictly active or strictly
    inactive, the same for all samples. Then nearby o = V' f' + c' with f = o^{lower-1} and (V', c')
    continuous in the parameters, so R(theta') is the risk of the layers below with a free dense
    layer (V', c'), and where those are at a local minimum so is theta. This covers reserved and
    spare maps (dead), shifted copies below poolings, and maps that nothing reads: their V is 0, and
    free.

    `holds` where the structure does and the subnetwork has a cell certificate: a proof. Otherwise
    `evidence` about the subnetwork is all there is (`evidence_only`), or the structure is broken:
    `mixed` units of the relaying layers are active for some samples only, or some are in `kinks`.
    `active` and `dead` (strictly inactive) count the others, `margin` is their least |z|. `unread`
    are maps of layer lower - 1 that are not dead and that no output reads. `radius` is that of the
    cell certificate of theta, 0 where there is none. Of a loss with kinks there is no evidence.
    """

    holds: bool
    lower: int
    active: int
    dead: int
    mixed: int
    unread: tuple[int, ...]
    margin: float
    radius: float
    kinks: tuple[Kink, ...]
    subnetwork: CellCertificate
    point: Parameters
    evidence: Evidence | None
    kind: str = "relay"

    @property
    def structure(self) -> bool:
        """Return whether all layers from `lower` on are affine on the samples, and stay so."""
        return not self.kinks and not self.mixed

    @property
    def evidence_only(self) -> bool:
        """Return whether the relays are proved and the subnetwork is not."""
        return self.structure and not self.holds

    @property
    def classes(self) -> int:
        """Return the number of activation patterns of the subnetwork."""
        return self.subnetwork.classes

    @property
    def stationarity(self) -> float:
        """Return that of the subnetwork: its G_s where proved, else its relative gradient."""
        if self.evidence is None:
            return self.subnetwork.stationarity
        return self.evidence.relative_gradient

    def as_dict(self) -> dict:
        """Return what the report of a run holds; None is infinite: no layer has an activation."""
        keys = ("kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only")
        found = {key: getattr(self, key) for key in keys}
        return found | ({} if self.evidence is None else {"evidence": self.evidence.as_dict()})

    def __str__(self) -> str:
        lines = [
            f"relay certificate: {'holds, a local minimum' if self.holds else 'does not hold'}",
            f"  from layer {self.lower} on {self.active} units strictly active, {self.dead} "
            "strictly inactive, "
            f"{self.mixed} active for some samples only, margin {self.margin:.3g}",
        ]
        if self.kinks:
            lines += ["  at the kink:", *(f"    {line}" for line in by_layer(self.kinks))]
        if self.unread:
            maps = ", ".join(map(str, self.unread))
            lines.append(f"  not read, and not dead: maps {maps} of layer {self.lower - 1}")
        if self.structure and not self.holds:
            lines.append("  proved: theta is a local minimum if its subnetwork is at one")
        lines += ["  subnetwork:", *(f"    {line}" for line in str(self.subnetwork).split("\n"))]
        if self.evidence is not None:
            lines += [f"    {line}" for line in str(self.evidence).split("\n")]
        return "\n".join(lines)


def certify_relays(
    theta: Parameters, data: TrainingSet, loss: Loss, lower: int, seed: int = 0
) -> RelayCertificate:
    """Check what theta inherits from the layers below `lower`; see `RelayCertificate`.

    The subnetwork is layers 1 to lower - 1 and a dense layer with the V and c that theta has. Where
    it is not certified, `seed` goes to `gather_evidence`. Raises ValueError for a layer that does
    not exist, where parameters or outputs are not finite, and for a smooth activation.
    """
    net, xp = theta.net, namespace(theta.vector)
    check_piecewise_linear(net.activation, "relay certificate")
    if not 1 <= lower <= net.depth:
        raise ValueError(f"relays: expected a layer in 1..{net.depth}, got {lower}")
    if any(isinstance(layer, MaxPool) for layer in net.layers[lower - 1 : net.leading_poolings]):
        raise ValueError(f"relays: expected a layer above the poolings of the input, got {lower}")
    theta = theta.to(xp, np.float64)
    if not bool(xp.isfinite(theta.vector).all()):
        raise ValueError("certificate: expected finite parameters, got NaN or infinite ones")
    relaying = [layer for layer in net.pattern_layers if layer >= lower]
    at_kink = _KinkCounter(net)
    ever: dict[int, np.ndarray] = {}  # the largest pattern of each unit over the samples
    always: dict[int, np.ndarray] = {}  # the least
    live = False  # neurons of the layer below that are not 0 for some sample
    magnitudes = abs(theta)
    for _, columns in net.chunks(theta, data.x):
        trace = list(net.layerwise(theta, columns))
        rounding = preactivation_rounding(magnitudes, columns, trace, np.float64)
        margins, patterns = net.margins(theta, trace), net.pattern(theta, columns, trace)
        at_kink.add(*_at_kink({layer: margins[layer] for layer in relaying}, rounding))
        relayed = all_to_numpy(patterns[layer] for layer in relaying)
        for layer, pattern in zip(relaying, relayed, strict=True):
            high, low = pattern.max(axis=1), pattern.min(axis=1)
            ever[layer] = np.maximum(ever.get(layer, high), high)
            always[layer] = np.minimum(always.get(layer, low), low)
        features = trace[lower - 2][1] if lower > 1 else columns
        live = live | to_numpy((features != 0).any(axis=1))
    rows = to_numpy(net.affine_map(theta, data.x[0], lower - 1))
    sub = Network(
        net.input_shape,
        (*net.layers[: lower - 1], Dense(len(rows))),
        net.activation,
        net.memory_budget,
    )
    phi = sub.zeros(like=theta.vector)
    for layer in theta.b:
        if layer < lower:
            phi.W[layer].weights[...] = theta.W[layer].weights
            phi.b[layer][...] = theta.b[layer]
    phi.W[lower].weights[...] = xp.asarray(rows[:, :-1])
    phi.b[lower][...] = xp.asarray(rows[:, -1])
    maps = net.shapes[lower - 1][0]
    read = (rows[:, :-1] != 0).any(axis=0).reshape(maps, -1).any(axis=1)
    unread = np.flatnonzero(live.reshape(maps, -1).any(axis=1) & ~read)
    mixed = sum(int((ever[layer] != always[layer]).sum()) for layer in relaying)
    units = [layer for layer in relaying if net.is_active(layer)]
    kinks = at_kink.found()
    cell = certify_cell(phi, data, loss)
    structure = not kinks and not mixed
    holds = structure and cell.holds
    unproved = not holds and not hasattr(loss, "subgradients")  # a loss with kinks has no Hessian
    return RelayCertificate(
        holds=holds,
        lower=lower,
        active=sum(int(always[layer].sum()) for layer in units),
        dead=sum(int((~ever[layer]).sum()) for layer in units),
        mixed=mixed,
        unread=tuple(map(int, unread)),
        margin=at_kink.margin,
        radius=certify_cell(theta, data, loss).radius if holds else 0.0,
        kinks=kinks,
        subnetwork=cell,
        point=phi,
        evidence=gather_evidence(phi, data, loss, seed) if structure and unproved else None,
    )


def _packed(patterns: list[np.ndarray], samples: int) -> list[bytes]:
    """Return for each sample all its patterns, (n_l, N) each, as one key."""
    bits = [np.zeros((samples, 1), np.uint8)]
    for pattern in patterns:
        packed = np.packbits(pattern, axis=0) if pattern.dtype == bool else pattern
        bits.append(np.ascontiguousarray(packed.T).view(np.uint8))
    return [row.tobytes() for row in np.concatenate(bits, axis=1)]


def _gradient_errors(loss: Loss, o: Array, y: Array, errors: Array) -> Array:
    """Return what errors of the outputs make of the loss's gradient, |H| errors, to first order."""
    xp, total = namespace(o), namespace(o).zeros_like(o)
    for k in range(len(o)):
        one = xp.zeros_like(o)
        one[k] = errors[k]
        total += abs(loss.curvature(o, y, one))
    return total


def _at_kink(
    margins: dict[int, Array], rounding: list[Array]
) -> tuple[float, dict[int, np.ndarray]]:
    """Return the least margin, and for layers with units at the kink which they are, (n_l, N)."""
    ties = all_to_numpy(abs(z) <= AT_THE_KINK * rounding[n - 1] for n, z in margins.items())
    least = min(map(float, all_to_numpy(z.min() for z in margins.values())), default=np.inf)
    return least, {n: zero for n, zero in zip(margins, ties, strict=True) if zero.any()}


class _KinkCounter:
    """Collects the least margin and which units sit at the kink, over chunks of samples."""

    def __init__(self, net: Network):
        self.net, self.margin = net, np.inf
        self.locations: dict[tuple[int, int], np.ndarray] = {}
        self.samples: dict[tuple[int, int], int] = {}

    def add(self, margin: float, ties: dict[int, np.ndarray]) -> None:
        """Take in what `_at_kink` returns for a chunk."""
        self.margin = min(self.margin, margin)
        for layer, zero in ties.items():
            self._add(layer, zero)

    def _add(self, layer: int, zero: np.ndarray) -> None:
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
