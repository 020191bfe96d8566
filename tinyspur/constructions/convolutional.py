"""[CNN] A point of equal risk that shows theta to be spurious.

theta comes from `embedding` and the threshold eta from `data_split`; `equal_risk_point` builds
theta' (Lemmas 4 and 9) and `lower_point` moves one bias of it (Lemmas 5 and 10). The layers are
called as if the pair of convolutions were L - 2 and L - 1 and the first dense layer were L; other
layers may lie between and above (Appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from ..activations import ReLU
from ..backend import namespace, to_numpy
from ..certificates import (
    CellCertificate,
    RelayCertificate,
    certify_cell,
    certify_relays,
)
from ..escapes import Escape, kink_escape, measure_escape, random_unit
from ..fitting import AssumptionError
from ..losses import Loss
from ..parameters import Parameters
from ..rounding import risk_rounding
from ..samples import TrainingSet
from .data_split import (
    DataSplit,
    map_values,
    perturb_read_weights,
    read_weights,
    split_data,
)
from .embedding import check_assumption_1, check_variant
from .relays import outgoing
from .towers import RelayedPair

IN_THE_GAP = 0.999  # share of the way to the next value that the line search may go


def equal_risk_point(
    theta: Parameters, pair: RelayedPair, split: DataSplit, variant: str = "repaired"
) -> Parameters:
    """Return theta', where the reserved tracks A and B take over map m of `split` for its output.

    Every output of every sample is kept ([CNN] Lemma 9, (25) and (26)). Literal: the relay of m
    keeps its bias where eta >= -b, so other outputs change if the bias of m had to be raised.
    """
    check_variant(variant)
    theta, tower, eta, k = theta.copy(), pair.tower, split.threshold, split.output
    A, B = pair.reserved
    m, r, d_y = split.map, pair.relay_of(split.map), theta.net.shapes[-1][0]
    b, raised, kappa = bias_below(theta, pair, split), 0.0, pair.kappa_lower + pair.kappa_upper
    read, offset = theta.W[pair.dense].weights[:d_y], theta.b[pair.dense][:d_y]
    in_A, in_B, in_r = (tower.columns(track) for track in (A, B, r))
    w = read[k, in_r].copy()
    read[:, in_A] = 0
    read[:, in_B] = 0

    def constants(lower: float, upper: float, tracks: int = 1):
        return namespace(read).asarray(pair.constants(lower, upper, tracks), dtype=read.dtype)

    relayed = constants(pair.kappa_lower, pair.kappa_upper)
    has_bias = pair.below in theta.net.active_layers
    if has_bias:
        raised = max(b, -split.lowest)
        theta.b[pair.below][m] = raised
    if has_bias and (variant == "repaired" or eta < -b):
        theta.b[pair.lower][r] = b - raised
        theta.b[pair.upper][tower.maps(pair.upper, r)] = kappa
        before, relayed = relayed, constants(0.0, kappa)
        offset += read[:, in_r] @ (before - relayed)
    for layer in tower.shifts:
        if layer > pair.upper:
            for t in (A, B):
                tower.relay(theta, layer, t, t, pair.kappa_above)
    if eta >= -b:
        tower.relay(theta, pair.lower, m, A, eta + raised, sign=-1)
        tower.relay(theta, pair.lower, m, B, -(eta + raised))
        tower.relay(theta, pair.upper, A, A, eta + b, sign=-1)
        tower.relay(theta, pair.upper, B, B, eta + b)
        read[k, in_A] = w
        read[k, in_B] = w
        read[k, in_r] = 0
        # A + B = o_m + eta + b, and twice eta + b where a shifted copy reads beyond the border.
        lower = (0.0 if has_bias else b) - (eta + b)
        offset[k] += w @ (relayed - constants(lower, 2 * (eta + b), tracks=2))
    else:
        for t in (A, B):
            tower.relay(theta, pair.lower, m, t, -(eta + raised))
            tower.relay(theta, pair.upper, t, t, 0.0)
        read[k, in_A] = w
        read[k, in_B] = -w
        if variant == "literal":  # (26) relays v - eta and adds eta + b above
            theta.b[pair.lower][r] = -(eta + raised)
            theta.b[pair.upper][r] = eta + b
    return theta


def bias_below(theta: Parameters, pair: RelayedPair, split: DataSplit) -> float:
    """Return b, the bias of map m below the pair.

    Where the pair reads a pooling or the input there is none: then what makes the map nonnegative.
    """
    if pair.below in theta.net.active_layers:
        return float(theta.b[pair.below][split.map])
    return max(0.0, -split.lowest)


@dataclass(frozen=True)
class LowerPoint:
    """theta' with the bias of `map` of `layer` moved by `step`; `decrease` = R(theta) - `risk`.

    Rounding may account for `rounding` of the decrease.
    """

    theta: Parameters
    layer: int
    map: int
    step: float
    risk: float
    decrease: float
    rounding: float

    def __str__(self) -> str:
        return (
            f"lower point: bias of layer {self.layer} map {self.map} moved by {self.step:.6g}, "
            f"risk {self.risk:.9g}, lower by {self.decrease:.6g}"
        )


def perturbed_map(theta: Parameters, pair: RelayedPair, split: DataSplit) -> int:
    """Return which reserved map's bias in layer L-2 Lemma 10 moves: B if eta >= -b, else A.

    `theta` is the point before it was replaced by theta'.
    """
    first_case = split.threshold >= -bias_below(theta, pair, split)
    return pair.reserved[1] if first_case else pair.reserved[0]


def lower_point(
    theta: Parameters,
    theta_prime: Parameters,
    pair: RelayedPair,
    split: DataSplit,
    data: TrainingSet,
    loss: Loss,
    risk: float | None = None,
) -> LowerPoint:
    """Return theta' moved along one bias to the least risk inside the gap ([CNN] (27), (28)).

    Inside the gap the output k of sample i moves by step * sum_j w^j [v_i^j > eta], so that the
    risk is a convex function of the step, least where its derivative vanishes or at the end of the
    gap; the risk that is returned is the network's own. `risk` is what the decrease counts from,
    that of `theta` by default.
    """
    v = map_values(theta, pair, split.map, data.x)
    w = read_weights(theta, pair, split.map)[split.output]
    rate = w @ (v > split.threshold)
    o = to_numpy(theta.net.forward(theta_prime, data.x)).T.astype(np.float64)

    def slope(step: float) -> float:
        moved = o.copy()
        moved[split.output] += step * rate
        return float(loss.gradient(moved, data.y.T)[split.output] @ rate)

    end = -np.sign(split.slope) * IN_THE_GAP * (split.gap[1] - split.gap[0]) / 2
    turns = slope(0.0) * slope(end) < 0
    step = scipy.optimize.brentq(slope, 0.0, end, xtol=1e-15 * abs(end)) if turns else end
    map = perturbed_map(theta, pair, split)
    point = theta_prime.copy()
    point.b[pair.lower][map] += float(step)
    before = theta.net.risk(theta, data, loss) if risk is None else risk
    after = theta.net.risk(point, data, loss)
    rounding = risk_rounding(theta, data, loss) + risk_rounding(point, data, loss)
    return LowerPoint(point, pair.lower, map, float(step), after, before - after, rounding)


def risk_along_bias(
    found: SpuriousMinimum,
    data: TrainingSet,
    loss: Loss,
    points: int = 33,
    width: float = 3.0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[np.ndarray, np.ndarray]:
    """Return steps of the perturbed bias and the network's risk at each, starting from theta'.

    The steps, zero among them for odd `points`, reach `width` times the way to the next value.
    """
    reach = width * (found.split.gap[1] - found.split.gap[0]) / 2
    steps, risks = np.linspace(-reach, reach, points), []
    point = found.theta_prime.copy()
    bias = point.b[found.lower.layer][found.lower.map : found.lower.map + 1]
    start = float(bias[0])
    for step in progress(steps):
        bias[...] = start + float(step)
        risks.append(point.net.risk(point, data, loss))
    return steps, np.array(risks)


# Shorter witnesses


def revive(
    theta: Parameters, data: TrainingSet, loss: Loss, layer: int, map: int, seed: int = 0
) -> Escape:
    """Return a lower point that uses a dead map: any incoming weights, then its outgoing ones.

    Random incoming weights change nothing while the outgoing weights are zero; the risk falls
    along minus its derivative in those. A witness that theta is spurious for any network with a
    dead map, not a refutation of its minimality: the distance is not small. Raises AssumptionError
    for a map that some sample activates, or where the derivative vanishes.
    """
    net, rng = theta.net, np.random.default_rng(seed)
    if net.activation != ReLU():
        raise ValueError(f"revive: expected ReLU, got {net.activation}, where no map is dead")
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
    d, beta, _ = random_unit(theta, layer, data.x, rng)
    weights = revived.W[layer].weights
    weights[map] = namespace(weights).asarray(d, dtype=weights.dtype)
    revived.b[layer][map] = beta
    out, above = outgoing(revived, layer, map)
    out[...] = 0
    downhill = net.zeros(like=theta.vector)
    chosen, _ = outgoing(downhill, layer, map)
    chosen[...] = -outgoing(net.gradient(revived, data, loss), layer, map)[0]
    largest = float(abs(chosen).max())
    if largest == 0:
        raise AssumptionError(f"the risk is flat along the outgoing weights of map {map}")
    move = downhill.vector / largest

    if above == net.depth:  # the outputs are affine in the step
        y = data.y.T
        o = to_numpy(net.forward(revived, data.x)).T
        rate = to_numpy(net.forward(Parameters(net, revived.vector + move), data.x)).T - o

        def risk(step: float) -> float:
            return float(loss.value(o + step * rate, y).mean())

    else:

        def risk(step: float) -> float:
            return net.risk(Parameters(net, revived.vector + step * move), data, loss)

    step = float(scipy.optimize.minimize_scalar(risk, bracket=(0.0, 0.1 * largest)).x)
    point = Parameters(net, revived.vector + step * move)
    return measure_escape(theta, point, "revived map", step, data, loss)


@dataclass(frozen=True)
class SpuriousMinimum:
    """theta with its certificate, theta', the lower point and, where one was found, the escape."""

    theta: Parameters
    pair: RelayedPair
    risk: float
    certificate: CellCertificate | RelayCertificate
    split: DataSplit
    theta_prime: Parameters
    theta_prime_risk: float
    lower: LowerPoint
    escape: Escape | None = None

    @property
    def escapes(self) -> bool:
        """Return whether the risk falls along an escape from theta beyond rounding."""
        return self.escape is not None and self.escape.decrease > self.escape.rounding

    @property
    def verdict(self) -> str:
        """Return what was proved: a certificate and a lower point make a spurious minimum."""
        lower = self.lower.decrease > self.lower.rounding
        if self.escapes:
            return (
                "not a local minimum: the risk falls along an escape that starts at theta "
                f"(lower by {self.escape.decrease:.3g} at distance {self.escape.distance:.3g})"
            )
        if self.certificate.evidence_only:
            return "not certified: the relays are proved, for the subnetwork there is evidence only"
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


def find_spurious_minimum(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    variant: str = "repaired",
    rule: str = "steepest",
    output: int | None = None,
    seed: int = 0,
    stage: Callable[[str, str], AbstractContextManager] = lambda name, text: nullcontext(),
) -> SpuriousMinimum:
    """Certify theta, split the data, and build theta' and the lower point (Theorem 1).

    Where the cell certificate of theta does not hold, the relay certificate says what is left.
    `theta` and `pair` are what `embed` or `linear_minimum` returned for `variant`; `rule` and
    `output` go to `split_data`. Literal: the escape from the kink is evaluated as well. `stage` is
    entered around each part with its name and a text. Where S(eta) vanishes throughout, or gives no
    decrease beyond rounding, W^L is perturbed first (Lemma 11): R(theta') is then a little higher
    than R(theta), and the lower point is lower than theta. Raises AssumptionError where
    Assumption 1 fails or no split exists.
    """
    with stage("certificate", "certifying theta"):
        check_assumption_1(theta, data.x, pair.upper)
        risk = theta.net.risk(theta, data, loss)
        certificate = certify_cell(theta, data, loss)
        if not certificate.holds and variant == "repaired":  # then what the subnetwork hands on
            certificate = certify_relays(theta, data, loss, pair.lower, seed)
    with stage("split", "splitting the data, building theta' and the lower point"):
        best = None
        try:
            for start, split in _splits(theta, pair, data, loss, rule, output):
                prime = equal_risk_point(start, pair, split, variant)
                lower = lower_point(start, prime, pair, split, data, loss, risk)
                if best is None or lower.decrease > lower.rounding:
                    best = split, prime, lower
                if lower.decrease > lower.rounding:
                    break
        except AssumptionError:
            if best is None:
                raise
        split, prime, lower = best
        prime_risk = theta.net.risk(prime, data, loss)
    escape = None
    if variant == "literal":
        with stage("escape", "escaping from the kink"):
            escape = kink_escape(theta, data, loss, seed=seed)
    return SpuriousMinimum(theta, pair, risk, certificate, split, prime, prime_risk, lower, escape)


def _splits(theta, pair, data, loss, rule, output) -> Iterator[tuple[Parameters, DataSplit]]:
    """Yield theta with its split, if there is one, and then perturbed points with theirs."""
    try:
        split = split_data(theta, pair, data, loss, rule, output=output)
    except AssumptionError:
        split = None
    if split is not None:
        yield theta, split
    yield from perturb_read_weights(theta, pair, data, loss, rule, output)
