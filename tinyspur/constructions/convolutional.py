"""[CNN] A point of equal risk that shows theta to be spurious.

`split_data` finds the threshold eta (Lemmas 2 and 3), `equal_risk_point` builds theta' (Lemmas 4
and 9), `lower_point` moves one bias of it (Lemmas 5 and 10). theta is built in `embedding`.

Layers count from 1, as in the paper; maps, locations, outputs and samples from 0. The two
convolutions of the pair are layers L - 2 and L - 1, the dense layer above them is layer L.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize

from ..backend import namespace, to_numpy
from ..certificates import CellCertificate, Escape, measure_escape
from ..fitting import AssumptionError
from ..losses import Loss
from ..matrices import ConvolutionMatrix
from ..network import Parameters, TrainingSet
from .embedding import check_variant, layer_output
from .relays import RelayedPair, outgoing, set_relay

SPLITS = ("steepest", "largest")
TIE = 1e-9  # values closer than this share of their range count as equal
VANISHES = 1e-12  # sums of u below this share of sum |u| count as zero
IN_THE_GAP = 0.999  # share of the way to the next value that the line search may go
LOWER = 1e-13  # a risk is lower when it is so by more than this share, well above rounding


@dataclass(frozen=True)
class DataSplit:
    """A threshold that separates samples at a location of a map ([CNN] Lemma 2, (7)).

    At `location` of `map` of `layer` (L-3), `above` samples have v > `threshold` and `below` have
    v < `threshold`; `partial_sum` is the sum of u over the former, u the derivative of the loss in
    `output`. `slope` is S(eta), the rate at which the risk changes when the output is raised at
    every location and sample with v > eta. The values around the threshold, over all locations,
    are `gap`; `lowest` is the least value of the map.
    """

    layer: int
    map: int
    location: int
    output: int
    threshold: float
    above: int
    below: int
    partial_sum: float
    slope: float
    gap: tuple[float, float]
    lowest: float

    def as_dict(self) -> dict:
        """Return what the report of a run holds."""
        keys = ["layer", "map", "location", "output", "threshold", "above", "below", "partial_sum"]
        return {key: getattr(self, key) for key in keys}

    def __str__(self) -> str:
        return (
            f"split at layer {self.layer} map {self.map} location {self.location}, output "
            f"{self.output}: eta {self.threshold:.9g} in a gap of {self.gap[1] - self.gap[0]:.3g}, "
            f"{self.above} samples above, {self.below} below, sum of u {self.partial_sum:.6g}, "
            f"slope S(eta) {self.slope:.6g}"
        )


def split_data(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    rule: str = "steepest",
    map: int | None = None,
    output: int | None = None,
) -> DataSplit:
    """Return a threshold eta with S(eta) != 0 strictly inside a gap of the values v of a map.

    ``steepest`` takes the gap where |S| is largest; ``largest`` follows [CNN] Lemma 2, repaired:
    midway between v*, the largest over all locations of the first value whose samples' sum of u is
    not zero, and the next smaller value of the map. All relayed maps and all outputs are tried
    unless one is given. Raises ValueError for a map, an output or a rule that does not exist,
    AssumptionError where S vanishes throughout.
    """
    outputs = theta.net.shapes[-1][0]
    if rule not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {rule!r}")
    if output is not None and not 0 <= output < outputs:
        raise ValueError(f"output unit: expected 0..{outputs - 1}, got {output}")
    maps = pair.relayed if map is None else (map,)
    u = output_derivatives(theta, data, loss)
    best = None
    for m in maps:
        v, w = map_values(theta, pair, m, data.x), read_weights(theta, pair, m)
        for k in range(outputs) if output is None else (output,):
            found = (_steepest if rule == "steepest" else _largest)(v, w[k], u[k])
            if found and (best is None or found[0] > best[0]):
                best = (found[0], m, k, v, *found[1:])
    if best is None:
        raise AssumptionError(
            f"no data split: S(eta) vanishes for every threshold of the maps {tuple(maps)} and "
            f"{'every output' if output is None else f'output {output}'}"
        )
    _, m, k, v, low, high, slope, location = best
    eta = (low + high) / 2
    above = v[location] > eta
    return DataSplit(
        layer=pair.below,
        map=m,
        location=int(location),
        output=k,
        threshold=float(eta),
        above=int(above.sum()),
        below=int((~above).sum()),
        partial_sum=float(u[k][above].sum()),
        slope=float(slope),
        gap=(float(low), float(high)),
        lowest=float(v.min()),
    )


def output_derivatives(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return u = dl/do, shape (d_y, N), on the host."""
    o = namespace(theta.vector).asarray(theta.net.forward(theta, data.x).T)
    return to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss)))


def map_values(theta: Parameters, pair: RelayedPair, m: int, x: np.ndarray) -> np.ndarray:
    """Return v_i^j = (W^{L-3} o^{L-4,i})(m, j), shape (P, N), on the host ([CNN] (6))."""
    W = theta.W[pair.below]
    row = ConvolutionMatrix(W.weights[m : m + 1], W.map_shape)
    return np.concatenate(
        [
            to_numpy(row @ layer_output(theta, columns, pair.below - 1))
            for _, columns in theta.net.chunks(theta, x)
        ],
        axis=1,
    )


def read_weights(theta: Parameters, pair: RelayedPair, m: int) -> np.ndarray:
    """Return w = W^L(., relay of m), shape (d_y, P), on the host."""
    r, P = pair.relay_of(m), theta.net.positions(pair.upper)
    return to_numpy(theta.W[pair.dense].weights[:, r * P : (r + 1) * P])


def _steepest(v: np.ndarray, w: np.ndarray, u: np.ndarray):
    """Return (|S|, low, high, S, location) of the gap where |S| is largest, or None."""
    values, which = np.unique(v, return_inverse=True)
    contributions = np.outer(w, u)
    sums = np.bincount(which.ravel(), weights=contributions.ravel(), minlength=len(values))
    slopes = np.cumsum(sums[:0:-1])[::-1] / v.shape[1]  # S between values n and n + 1
    sizes = np.where(np.diff(values) > TIE * (values[-1] - values[0]), abs(slopes), 0)
    if not sizes.size or sizes.max() <= VANISHES * abs(contributions).sum() / v.shape[1]:
        return None
    n = int(sizes.argmax())
    low, high = values[n], values[n + 1]
    return (sizes[n],), low, high, slopes[n], _location(v, w, u, (low + high) / 2)


def _largest(v: np.ndarray, w: np.ndarray, u: np.ndarray):
    """Return (eta, low, high, S, location) by Lemma 2, repaired, or None."""
    values = np.sort(v, axis=None)[::-1]
    tie = TIE * (values[0] - values[-1])
    order = np.argsort(-v, axis=1)
    ranked = np.take_along_axis(v, order, axis=1)
    sums = np.cumsum(u[order], axis=1)
    ends = np.hstack([ranked[:, :-1] - ranked[:, 1:] > tie, np.ones((len(v), 1), bool)])
    split = ends & (abs(sums) > VANISHES * abs(u).sum()) & (abs(w) > 0)[:, None]
    first = split.argmax(axis=1)
    starts = np.where(split.any(axis=1), ranked[np.arange(len(v)), first], -np.inf)
    for high in np.unique(starts[np.isfinite(starts)])[::-1]:
        smaller = values[np.searchsorted(-values, -(high - tie), side="right") :]
        if not smaller.size:
            continue
        low = smaller[0]
        eta = (low + high) / 2
        slope = float((w * ((v > eta) @ u)).sum()) / v.shape[1]
        if abs(slope) > VANISHES * abs(w).max() * abs(u).sum() / v.shape[1]:
            return (eta, abs(slope)), low, high, slope, _location(v, w, u, eta)
    return None


def _location(v: np.ndarray, w: np.ndarray, u: np.ndarray, eta: float) -> int:
    """Return the location that contributes most to S(eta)."""
    return int(abs(w * ((v > eta) @ u)).argmax())


def equal_risk_point(
    theta: Parameters, pair: RelayedPair, split: DataSplit, variant: str = "repaired"
) -> Parameters:
    """Return theta', where the reserved maps A and B take over map m of `split` for its output.

    Every output of every sample is kept ([CNN] Lemma 9, (25) and (26)). Literal: the relay of m
    keeps its bias where eta >= -b, so other outputs change if the bias of m had to be raised.
    """
    check_variant(variant)
    theta = theta.copy()
    m, k, eta = split.map, split.output, split.threshold
    A, B = pair.reserved
    r, P = pair.relay_of(m), theta.net.positions(pair.upper)
    kappa = pair.kappa_lower + pair.kappa_upper
    b = float(theta.b[pair.below][m])
    raised = max(b, -split.lowest)
    read = theta.W[pair.dense].weights
    w = read[k, r * P : (r + 1) * P].copy()
    for t in (A, B):
        read[:, t * P : (t + 1) * P] = 0
    theta.b[pair.below][m] = raised
    if variant == "repaired" or eta < -b:
        theta.b[pair.lower][r] = -(raised - b)
        theta.b[pair.upper][r] = kappa
    if eta >= -b:
        set_relay(theta, pair.lower, m, A, eta + raised, sign=-1)
        set_relay(theta, pair.lower, m, B, -(eta + raised))
        set_relay(theta, pair.upper, A, A, eta + b, sign=-1)
        set_relay(theta, pair.upper, B, B, eta + b)
        read[k, A * P : (A + 1) * P] = w
        read[k, B * P : (B + 1) * P] = w
        read[k, r * P : (r + 1) * P] = 0
        theta.b[pair.dense][k] += (kappa - (eta + b)) * w.sum()
    else:
        for t in (A, B):
            set_relay(theta, pair.lower, m, t, -(eta + raised))
            set_relay(theta, pair.upper, t, t, 0.0)
        read[k, A * P : (A + 1) * P] = w
        read[k, B * P : (B + 1) * P] = -w
        if variant == "literal":  # (26) relays v - eta and adds eta + b above
            theta.b[pair.lower][r] = -(eta + raised)
            theta.b[pair.upper][r] = eta + b
    return theta


@dataclass(frozen=True)
class LowerPoint:
    """theta' with the bias of `map` of `layer` moved by `step`: R = `risk`, lower by `decrease`."""

    theta: Parameters
    layer: int
    map: int
    step: float
    risk: float
    decrease: float

    def __str__(self) -> str:
        return (
            f"lower point: bias of layer {self.layer} map {self.map} moved by {self.step:.6g}, "
            f"risk {self.risk:.9g}, lower by {self.decrease:.6g}"
        )


def perturbed_map(theta: Parameters, pair: RelayedPair, split: DataSplit) -> int:
    """Return which reserved map's bias in layer L-2 Lemma 10 moves: B if eta >= -b, else A.

    `theta` is the point before it was replaced by theta'.
    """
    b = float(theta.b[pair.below][split.map])
    return pair.reserved[1] if split.threshold >= -b else pair.reserved[0]


def with_bias_moved(theta: Parameters, layer: int, map: int, step: float) -> Parameters:
    """Return the point whose bias of `map` of `layer` is moved by `step`."""
    moved = theta.copy()
    moved.b[layer][map] += step
    return moved


def lower_point(
    theta: Parameters,
    theta_prime: Parameters,
    pair: RelayedPair,
    split: DataSplit,
    data: TrainingSet,
    loss: Loss,
) -> LowerPoint:
    """Return theta' moved along one bias to the least risk inside the gap ([CNN] (27), (28)).

    Inside the gap the output k of sample i moves by step * sum_j w^j [v_i^j > eta], so that the
    risk is a convex function of the step; the risk that is returned is the network's own.
    """
    v = map_values(theta, pair, split.map, data.x)
    w = read_weights(theta, pair, split.map)[split.output]
    rate = w @ (v > split.threshold)
    o = to_numpy(theta.net.forward(theta_prime, data.x)).T.astype(np.float64)

    def risk(step: float) -> float:
        moved = o.copy()
        moved[split.output] += step * rate
        return float(loss.value(moved, data.y.T).mean())

    half = IN_THE_GAP * (split.gap[1] - split.gap[0]) / 2
    bounds = (0.0, half) if split.slope < 0 else (-half, 0.0)
    found = scipy.optimize.minimize_scalar(risk, bounds=bounds, method="bounded")
    step = min((found.x, *bounds), key=risk)
    map = perturbed_map(theta, pair, split)
    point = with_bias_moved(theta_prime, pair.lower, map, float(step))
    before, after = (theta.net.risk(p, data, loss) for p in (theta, point))
    return LowerPoint(point, pair.lower, map, float(step), after, before - after)


# Shorter witnesses


def revive(
    theta: Parameters, data: TrainingSet, loss: Loss, layer: int, map: int, seed: int = 0
) -> Escape:
    """Return a lower point that uses a dead map: any incoming weights, then its outgoing ones.

    Random incoming weights change nothing while the outgoing weights are zero; the risk falls
    along minus its derivative in those. A witness that theta is spurious for any network with a
    dead map, not a refutation of its minimality: the distance is not small. The name of the `kind`
    is ``revived``. Raises AssumptionError for a map that some sample activates, or where the
    derivative vanishes.
    """
    net, rng = theta.net, np.random.default_rng(seed)
    if layer not in net.active_layers or not 0 <= map < net.shapes[layer][0]:
        raise ValueError(
            f"revive: expected a map of a layer with an activation, got {layer}, {map}"
        )
    P = net.positions(layer)
    active = net.patterns(theta, data.x)[layer][:, map * P : (map + 1) * P]
    if active.any():
        raise AssumptionError(
            f"map {map} of layer {layer} is not dead: "
            f"{active.any(axis=1).sum()} samples activate it"
        )
    revived = theta.copy()
    d, beta, _ = _random_unit(theta, layer, data.x, rng)
    weights = revived.W[layer].weights
    weights[map] = namespace(weights).asarray(d, dtype=weights.dtype)
    revived.b[layer][map] = beta
    out, _ = outgoing(revived, layer, map)
    out[...] = 0
    downhill = net.zeros(like=theta.vector)
    chosen, _ = outgoing(downhill, layer, map)
    chosen[...] = -outgoing(net.gradient(revived, data, loss), layer, map)[0]
    largest = float(abs(chosen).max())
    if largest == 0:
        raise AssumptionError(f"the risk is flat along the outgoing weights of map {map}")
    move = downhill.vector / largest

    def risk(step: float) -> float:
        return net.risk(Parameters(net, revived.vector + step * move), data, loss)

    found = scipy.optimize.minimize_scalar(
        risk, bracket=(0.0, 0.1 * largest), options={"maxiter": 12}
    )
    point = Parameters(net, revived.vector + float(found.x) * move)
    return measure_escape(theta, point, "revived", float(found.x), data, loss)


def kink_escape(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    step: float = 1e-2,
    seed: int = 0,
) -> Escape:
    """Return the escape from the literal theta, whose reserved maps sit exactly at the kink.

    The reserved map A of L-2 gets the filter eps d and the bias eps beta, and the one outgoing
    weight of L-1's map A with the largest |s| becomes -eps sign(s), where s = (1/N) sum_i u_i
    sigma(d . patch_i + beta). The risk changes by -eps^2 |s| + O(eps^4), eps = `step`: the gradient
    is zero, and yet theta is a saddle. d is the best of a few random filters.
    """
    net, A, rng = theta.net, pair.reserved[0], np.random.default_rng(seed)
    u = output_derivatives(theta, data, loss)
    trials = []
    for _ in range(8):
        d, beta, z = _random_unit(theta, pair.lower, data.x, rng)
        s = u @ np.maximum(z, 0).T / len(data)
        trials.append((abs(s).max(), d, beta, s))
    _, d, beta, s = max(trials, key=lambda trial: trial[0])
    k, j = np.unravel_index(abs(s).argmax(), s.shape)
    near = theta.copy()
    filters = near.W[pair.lower].weights
    filters[A] = namespace(filters).asarray(step * d, dtype=filters.dtype)
    near.b[pair.lower][A] = step * beta
    outgoing(near, pair.upper, A)[0][int(k), int(j)] = -step * float(np.sign(s[k, j]))
    return measure_escape(theta, near, "kink of second order", step, data, loss)


def _random_unit(
    theta: Parameters, layer: int, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return a random filter d of `layer`, beta, and z = d . patch + beta (P, N), half positive.

    A map that is active everywhere would add nothing that the affine fit does not have already.
    """
    W = theta.W[layer]
    d = rng.uniform(-1, 1, W.weights.shape[1:])
    row = W.with_weights(namespace(W.weights).asarray(d[None], dtype=W.weights.dtype))
    z = np.concatenate(
        [
            to_numpy(row @ layer_output(theta, columns, layer - 1))
            for _, columns in theta.net.chunks(theta, x)
        ],
        axis=1,
    )
    beta = -float(np.median(z))
    return d, beta, z + beta


@dataclass(frozen=True)
class SpuriousMinimum:
    """theta with its certificate, theta', the lower point and, where one was found, the escape."""

    theta: Parameters
    pair: RelayedPair
    risk: float
    certificate: CellCertificate
    split: DataSplit
    theta_prime: Parameters
    theta_prime_risk: float
    lower: LowerPoint
    escape: Escape | None = None

    @property
    def verdict(self) -> str:
        """Return what was proved: a certificate and a lower point make a spurious minimum."""
        lower = self.lower.decrease > LOWER * self.risk
        if self.escape is not None and self.escape.decrease > LOWER * self.risk:
            return (
                "not a local minimum: the risk falls along an escape that starts at theta "
                f"(lower by {self.escape.decrease:.3g} at distance {self.escape.distance:.3g})"
            )
        if not self.certificate.holds:
            return "not certified: whether theta is a local minimum is open"
        if not lower:
            return "local minimum, not shown to be spurious"
        return "spurious local minimum"

    def __str__(self) -> str:
        difference = self.theta_prime_risk - self.risk
        lines = [
            f"R(theta)  = {self.risk:.12g}",
            str(self.certificate),
            str(self.split),
            f"R(theta') = {self.theta_prime_risk:.12g}, difference {difference:.1e}",
            str(self.lower),
            *([str(self.escape)] if self.escape else []),
            f"verdict: {self.verdict}",
        ]
        return "\n".join(lines)
