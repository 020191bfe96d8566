"""[CNN] (6), (7): what S(eta) is made of, the values v of a map, the weights w, the derivatives u.

S(eta) = (1/N) sum_j w^j sum over {i: v_i^j > eta} of u_i, for one map and one output.
"""

from __future__ import annotations

import numpy as np

from ..certificates.enclosed_losses import loss_gradient
from ..certificates.enclosures import Enclosure
from ..datasets.samples import TrainingSet
from ..engine.backend import to_numpy
from ..engine.floats import gamma
from ..engine.live import Live, live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from .relayed_pair import RelayedPair, check_pair

TIE = 1e-9  # no gap narrower than this share of the values' range is used: too little is gained


def output_derivatives(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return u = dl/do, shape (d_y, N), on the host."""
    check_at(theta, data, loss)
    point = live_part(theta).point
    o = point.net.forward(point, data.x).T
    return to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss)))


def sums_rounding(
    loss: Loss, o: np.ndarray, errors: np.ndarray, y: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """Return how far a sum of computed u over any samples is from the exact one at most, (d_y,).

    `u` at float64 outputs `o` that are off by up to `errors`, (d_y, N) each, on the host. Where an
    output meets a kink of the loss, up to rounding, any subgradient will do: the one that was
    computed is taken. For a loss of a user's this is an estimate.
    """
    found = loss_gradient(loss, Enclosure(o, errors), y)
    off = abs(u - found.middle) + found.radius
    if hasattr(loss, "subgradients"):
        low, high = loss.subgradients(o, y, errors)
        off = np.where(low < high, 0.0, off)
    return (off.sum(axis=1) + gamma(len(o[0])) * abs(u).sum(axis=1)) * (1 + gamma(len(o[0])))


def map_values(theta: Parameters, pair: RelayedPair, m: int, x: np.ndarray) -> np.ndarray:
    """Return v_i^j = (W^{L-3} o^{L-4,i})(m, j), shape (P, N), on the host ([CNN] (6)).

    Where the pair does not read a convolution with biases under ReLU, but a pooling or the input,
    say, v is the map itself.
    """
    check_pair(pair, theta)
    live = live_part(theta)
    if m not in live.kept[pair.below]:
        live = Live.all(theta)
    point, m = live.point, int(np.searchsorted(live.kept[pair.below], m))
    net, P = point.net, point.net.positions(pair.below)
    if pair.biased:
        return net.filter_responses(point, pair.below, point.W[pair.below].weights[m : m + 1], x)
    rows = slice(m * P, (m + 1) * P)
    maps = net.over(point, x, lambda _, o: net.layer_output(point, o, pair.below)[rows].copy())
    return np.concatenate([to_numpy(values) for values in maps], axis=1)


def read_weights(theta: Parameters, pair: RelayedPair, m: int) -> np.ndarray:
    """Return w, what the outputs read of map m through its relay, (d_y, P), on the host.

    W^L(., relay of m), and with poolings between that matrix times what the relays make of the map.
    """
    check_pair(pair, theta)
    columns = pair.tower.columns(pair.relay_of(m))
    return pair.tower.seen(
        to_numpy(theta.W[pair.dense].weights[: theta.net.shapes[-1][0], columns])
    )


def tie_of(v: np.ndarray) -> float:
    """Return how close values of a map count as equal: a share of their range, or rounding."""
    low, high = float(v.min()), float(v.max())
    return max(TIE * (high - low), 8 * np.finfo(float).eps * max(-low, high))
