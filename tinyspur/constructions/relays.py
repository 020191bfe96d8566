"""Maps that hand their input on, maps that are dead, and moves that keep the function.

A relay of map c is an identity filter: its map reads the centre tap of c alone. With a positive
bias on a nonnegative map it is strictly active, and the layer above has to take the bias off again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..matrices import ConvolutionMatrix
from ..network import AveragePool, Parameters


@dataclass(frozen=True)
class RelayedPair:
    """Two consecutive convolutions, `lower` and the one above, that relay the layer below them.

    Map ``relayed[i]`` of layer ``lower - 1`` goes through map ``i + 2`` of both, with the biases
    `kappa_lower` and `kappa_upper`; the maps `reserved` = (A, B) of both contribute nothing.
    """

    lower: int
    relayed: tuple[int, ...]
    kappa_lower: float
    kappa_upper: float
    reserved: tuple[int, int] = (0, 1)

    @property
    def below(self) -> int:
        """Return the layer whose maps are relayed (L - 3)."""
        return self.lower - 1

    @property
    def upper(self) -> int:
        """Return the second convolution (L - 1)."""
        return self.lower + 1

    @property
    def dense(self) -> int:
        """Return the dense layer that reads the relays (L)."""
        return self.lower + 2

    def relay_of(self, m: int) -> int:
        """Return the map of `lower` and `upper` that relays map m, or raise ValueError."""
        if m not in self.relayed:
            raise ValueError(
                f"map {m} of layer {self.below} is not relayed; expected one of {self.relayed}"
            )
        return self.relayed.index(m) + 2


def set_relay(
    theta: Parameters, layer: int, source: int, target: int, bias: float, sign: int = 1
) -> None:
    """Make map `target` of a convolution sigma(sign * o_source + bias), in place."""
    filters = theta.W[layer].weights
    filters[target] = 0
    filters[(target, source, *theta.W[layer].centre)] = sign
    theta.b[layer][target] = bias


def set_constant(theta: Parameters, layer: int, target: int, bias: float) -> None:
    """Make map `target` of a convolution sigma(bias), in place: dead where the bias is negative."""
    theta.W[layer].weights[target] = 0
    theta.b[layer][target] = bias


def outgoing(theta: Parameters, layer: int, target: int):
    """Return the weights that read map `target` of `layer`, as a view, and their layer.

    They have shape (T, *k) below a convolution and (out, P) below a dense layer; poolings between
    are passed over. Raises ValueError where no layer with weights follows.
    """
    above = layer + 1
    while above <= theta.net.depth and isinstance(theta.net.layers[above - 1], AveragePool):
        above += 1
    if above > theta.net.depth:
        raise ValueError(f"layer {layer}: expected a layer with weights above it")
    W = theta.W[above]
    if isinstance(W, ConvolutionMatrix):
        return W.weights[:, target], above
    return W.weights[:, target * W.positions_in : (target + 1) * W.positions_in], above


def rescale(theta: Parameters, layer: int, factor: float, target: int | None = None) -> Parameters:
    """Return the point with (W^l, b^l) times `factor` > 0 and the weights above divided by it.

    With `target` only that map, or neuron of a dense layer, is rescaled. Every output is kept,
    since sigma is positively homogeneous ([CNN] Theorem 1). Raises ValueError for a factor that is
    not positive or a layer without an activation.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"rescale: expected a finite factor > 0, got {factor}")
    if layer not in theta.net.active_layers:
        raise ValueError(f"rescale: expected a layer in {theta.net.active_layers}, got {layer}")
    theta, count = theta.copy(), theta.W[layer].maps_out
    if target is not None and target not in range(count):
        raise ValueError(f"rescale: expected a map in 0..{count - 1}, got {target}")
    maps = range(count) if target is None else [target]
    for t in maps:
        theta.W[layer].weights[t] *= factor
        biases = theta.b[layer][t : t + 1]
        biases *= factor
        above, _ = outgoing(theta, layer, t)
        above /= factor
    return theta
