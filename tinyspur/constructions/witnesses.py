"""[CNN] Points that are lower than theta: next to theta', or with a dead map that is revived.

`lower_point` moves one bias of theta' (Lemmas 5 and 10). `revive` is a shorter witness, for any
network with a dead map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize

from ..certificates.rounding import rounded_risk
from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.backend import Array, namespace, to_numpy
from ..engine.floats import QUIET
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import neurons
from ..engine.plain import generator, whole
from ..errors import TOO_LARGE, AssumptionError
from ..layers import Dense
from ..refutations.escapes import Escape, measure_escape, random_unit
from ..shown import Shown
from .data_split import DataSplit
from .equal_risk import bias_below
from .relayed_pair import RelayedPair, check_pair
from .relays import outgoing
from .split_terms import map_values, read_weights

IN_THE_GAP = 0.999  # the line search may go this share of the way to the next value


@dataclass(frozen=True, repr=False)
class LowerPoint(Shown):
    """theta' with the bias of `map` of `layer` moved by `step`; `decrease` = R(theta) - `risk`.

    Where a track has several copies of a map in `layer`, `map` is the first of those that move.
    Rounding errors may explain up to `rounding` of the decrease.
    """

    theta: Parameters
    layer: int
    map: int
    step: float
    risk: float
    decrease: float
    rounding: float

    def __str__(self) -> str:
        moved = f"bias of layer {self.layer} map {self.map} moved by {self.step:.6g}"
        if self.decrease > self.rounding:
            return f"lower point: {moved}, risk {self.risk:.9g}, lower by {self.decrease:.6g}"
        return f"no lower point: {moved}, risk {self.risk:.9g}, not lower beyond rounding"


def perturbed_map(theta: Parameters, pair: RelayedPair, split: DataSplit) -> int:
    """Return which reserved track's bias in layer L-2 Lemma 10 moves: B if eta >= -b, else A.

    `theta` is the point before it was replaced by theta'.
    """
    check_pair(pair, theta)
    first_case = split.threshold >= -bias_below(theta, pair, split)
    return pair.reserved[1] if first_case else pair.reserved[0]


def perturbed_biases(
    theta: Parameters, pair: RelayedPair, split: DataSplit
) -> tuple[int, list[int]]:
    """Return the layer and the maps whose biases Lemma 10 moves: all copies in a track of L-2."""
    track = perturbed_map(theta, pair, split)
    return pair.tower.holders[pair.lower], pair.tower.numbers(pair.lower, track)


def lower_point(
    theta: Parameters,
    theta_prime: Parameters,
    pair: RelayedPair,
    split: DataSplit,
    data: TrainingSet,
    loss: Loss,
    before: tuple[float, float] | None = None,
) -> LowerPoint:
    """Return theta' moved along one bias to the least risk inside the gap ([CNN] (27), (28)).

    Inside the gap the output k of sample i moves by step * sum_j w^j [v_i^j > eta], so that the
    risk is a convex function of the step, least where its derivative vanishes or at the end of the
    gap; the risk that is returned is the network's own. The decrease is counted from `before`, a
    risk and a bound of its error, by default those of `theta`.
    """
    check_at(theta, data, loss)
    v = map_values(theta, pair, split.map, data.x)
    w = read_weights(theta, pair, split.map)[split.output]
    rate = w @ (v > split.threshold)
    prime = live_part(theta_prime).point
    o = to_numpy(prime.net.forward(prime, data.x)).T.astype(np.float64)

    def slope(step: float) -> float:
        moved = o.copy()
        moved[split.output] += step * rate
        return float(loss.gradient(moved, data.y.T)[split.output] @ rate)

    end = -np.sign(split.slope) * IN_THE_GAP * (split.gap[1] - split.gap[0]) / 2
    turns = slope(0.0) * slope(end) < 0
    step = scipy.optimize.brentq(slope, 0.0, end, xtol=1e-15 * abs(end)) if turns else end
    layer, maps = perturbed_biases(theta, pair, split)
    point = theta_prime.copy()
    point.b[layer][maps] += float(step)
    risk, off = rounded_risk(theta, data, loss) if before is None else before
    after, off_after = rounded_risk(point, data, loss)
    return LowerPoint(point, layer, maps[0], float(step), after, risk - after, off + off_after)


@np.errstate(**QUIET)
def revive(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    layer: int,
    map: int,
    seed: int = 0,
    before: tuple[float, float] | None = None,
) -> Escape:
    """Return a lower point that uses a dead map.

    First the outgoing weights are set to zero and the incoming ones to random numbers, which
    changes no output; then the risk falls along minus its derivative in the outgoing weights.
    A witness that theta is spurious for any network with a dead
    map, not a refutation of its minimality: the distance is not small. The decrease is counted from
    `before` as in `lower_point`. Raises AssumptionError for a
    map that some sample activates, or where the derivative vanishes.
    """
    check_at(theta, data, loss)
    net = theta.net
    known = whole(layer) in net.active_layers and layer in net.slots
    if not known or whole(map) not in range(net.shapes[layer][0]):
        raise ValueError(
            "revive: expected a map of a layer with weights and an activation, got "
            f"{layer!r}, {map!r}"
        )
    if net.activation_of(layer) != ReLU():
        sigma = net.activation_of(layer)
        raise ValueError(f"revive: expected ReLU, got {sigma}, where no map is dead")
    if active := _activated(theta, data.x, layer, map):
        text = f"{active} samples activate it"
        raise AssumptionError(f"map {map} of layer {layer} is not dead: {text}")
    revived = theta.copy()
    d, beta, _ = random_unit(theta, layer, map, data.x, generator(seed))
    weights = revived.W[layer].weights
    weights[map] = namespace(weights).asarray(d, dtype=weights.dtype)
    if layer in revived.b:
        revived.b[layer][map] = beta
    out, above = outgoing(revived, layer, map)
    out[...] = 0
    live = live_part(revived)  # the gradient is 0 elsewhere
    start, small = live.point, live.point.net
    own = int(np.searchsorted(live.kept[layer], map))
    downhill = small.zeros(like=theta.vector)
    chosen, _ = outgoing(downhill, layer, own)
    affine = above == net.depth and type(net.chain[-1]) is Dense and not net.is_active(above)
    if affine:  # the outputs are, in the step
        slope, o = _read_slope(start, own, data, loss)
    else:
        slope = outgoing(small.gradient(start, data, loss), layer, own)[0]
    chosen[...] = -slope
    largest = float(abs(chosen).max())
    if not np.isfinite(largest):
        raise AssumptionError(f"revive: {TOO_LARGE}")
    if largest == 0:
        raise AssumptionError(f"the risk is flat along the outgoing weights of map {map}")
    move = downhill / largest

    if affine:
        y = data.y.T
        rate = to_numpy(small.forward(start + move, data.x)).T - o

        def risk(step: float) -> float:
            return float(loss.value(o + step * rate, y).mean())

    else:

        def risk(step: float) -> float:
            return small.risk(start + step * move, data, loss)

    step = float(scipy.optimize.minimize_scalar(risk, bracket=(0.0, 0.1 * largest)).x)
    point = live.widened(start + step * move)
    return measure_escape(theta, point, "revived map", step, data, loss, before=before)


def _read_slope(
    theta: Parameters, map: int, data: TrainingSet, loss: Loss
) -> tuple[Array, np.ndarray]:
    """Return the gradient in what the last layer reads a map with, (d_y, P), and outputs (d_y, N).

    It is (1/N) sum_i g_i o_i^T, g the gradient of the loss and o the map; outputs are on the host.
    """
    net, last = theta.net, theta.net.depth
    W, y, total = theta.W[last], net.targets(theta, data, loss), 0.0
    own = slice(map * W.positions_in, (map + 1) * W.positions_in)

    def chunk(rows: slice, columns: Array) -> tuple[Array, np.ndarray]:
        below = net.layer_output(theta, columns, last - 1)
        _, o = neurons(theta, last, W @ below)
        return loss.gradient(o, y[:, rows]) @ below[own].T, to_numpy(o)

    outputs = []
    for part, o in net.over(theta, data.x, chunk):
        total = total + part
        outputs.append(o)
    return total / len(data), np.concatenate(outputs, axis=1)


def _activated(theta: Parameters, x: np.ndarray, layer: int, map: int) -> int:
    """Return how many samples activate a map."""
    live = live_part(theta)
    if map not in live.kept[layer]:
        return 0
    point, own = live.point, int(np.searchsorted(live.kept[layer], map))
    P = point.net.positions(layer)

    def chunk(_: slice, columns: Array) -> int:
        o = point.net.layer_output(point, columns, layer)[own * P : (own + 1) * P]
        return int((o > 0).any(axis=0).sum())

    return sum(point.net.over(point, x, chunk))
