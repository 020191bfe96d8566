"""[CNN] (6), (7): what S(eta) is made of, the values v of a map, the weights w, the derivatives u.

S(eta) = (1/N) sum_j w^j sum over {i: v_i^j > eta} of u_i, for one map and one output.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.backend import to_numpy
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from .towers import RelayedPair, check_pair

TIE = 1e-9  # values closer than this share of their range count as equal
VANISHES = 1e-12  # sums of u below this share of sum |u| count as zero


def output_derivatives(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return u = dl/do, shape (d_y, N), on the host."""
    check_at(theta, data, loss)
    o = theta.net.forward(theta, data.x).T
    return to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss)))


def map_values(theta: Parameters, pair: RelayedPair, m: int, x: np.ndarray) -> np.ndarray:
    """Return v_i^j = (W^{L-3} o^{L-4,i})(m, j), shape (P, N), on the host ([CNN] (6)).

    Where the pair reads a pooling or the input, no bias or activation follows: there v is the map
    itself.
    """
    check_pair(pair, theta)
    net, P = theta.net, theta.net.positions(pair.below)
    if pair.below in net.active_layers:
        return net.filter_responses(theta, pair.below, theta.W[pair.below].weights[m : m + 1], x)
    maps = [
        to_numpy(net.layer_output(theta, columns, pair.below)[m * P : (m + 1) * P])
        for _, columns in net.chunks(theta, x)
    ]
    return np.concatenate(maps, axis=1)


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
