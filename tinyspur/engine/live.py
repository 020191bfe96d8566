"""The same point without maps that are dead whatever they read: a smaller network, equal outputs.

The points of the constructions relay few maps, and the other ones have no weights and a negative
bias. Such a map is 0 for every input. It adds nothing to any output, has no gradient, and no step
along gradients moves it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..layers import AveragePool, Conv, Dense, Layer, MaxPool
from .activations import ReLU
from .backend import Array, namespace
from .network import Network
from .parameters import Parameters, check_points

POOLINGS = (AveragePool, MaxPool)
TINY = 1e-290  # a bias below this is not taken for negative


@dataclass(frozen=True, eq=False)
class Live:
    """A `point` of a smaller network with the outputs of the point `whole`.

    `kept` are its maps, or neurons, by their numbers in `whole`, for each layer from the input on;
    `places` (n,) is where its numbers are in the vector of `whole`.
    """

    whole: Parameters
    point: Parameters
    kept: tuple[np.ndarray, ...]
    places: Array | slice

    @classmethod
    def all(cls, theta: Parameters) -> Live:
        """Return theta with all its maps."""
        kept = tuple(np.arange(shape[0]) for shape in theta.net.shapes)
        return cls(theta, theta, kept, slice(None))

    @classmethod
    def of(cls, theta: Parameters, kept: list[np.ndarray]) -> Live:
        """Return theta with the `kept` maps alone, each layer's numbers, the input's first."""
        net = theta.net
        layers = [_with_maps(*pair) for pair in zip(net.chain, kept[1:], strict=True)]
        small = Network(net.input_shape, layers, net.activation, net.memory_budget)
        places = namespace(theta.vector).asarray(_places(net, kept))
        return cls(theta, Parameters(small, theta.vector[places]), tuple(kept), places)

    @property
    def idle(self) -> dict[int, float]:
        """Return for each layer the bias nearest to 0 of maps that are left out, all below 0.

        No other one of these is activated by a smaller move of the parameters.
        """
        if self.point is self.whole:
            return {}
        out = {n: np.delete(b, self.kept[n]) for n, b in self.whole.to(np).b.items()}
        return {n: float(b.max()) for n, b in out.items() if b.size}

    def widened(self, point: Parameters) -> Parameters:
        """Return `whole` with the numbers of another point of the smaller network in its places."""
        wide = self.whole.copy()
        wide.vector[self.places] = point.vector
        return wide


def live_part(theta: Parameters) -> Live:
    """Return theta without maps that have no weights and a negative bias under ReLU.

    A layer keeps one at least, whose bias is nearest to 0, and the last with weights all. Theta
    itself is returned where layers are of other kinds than convolutions without groups, dense ones
    and poolings, where poolings make other numbers of 0, and where numbers are not finite.
    """
    check_points(None, theta)
    net, host = theta.net, theta.to(np)
    kept, dropped = [np.arange(net.shapes[0][0])], False
    plain = all(is_plain(net, layer) for layer in range(1, net.depth + 1))
    plain = plain and bool(np.isfinite(host.vector).all())
    for layer in range(1, net.depth + 1):
        if layer not in net.slots:
            kept.append(kept[-1])
            continue
        keep = np.ones(net.shapes[layer][0], bool)
        hidden = layer < max(net.slots) and layer in theta.b
        if plain and hidden and net.activation_of(layer) == ReLU():
            keep = ~_dead(host, layer)
            if not keep.any():
                keep[host.b[layer].argmax()] = True
        dropped = dropped or not keep.all()
        kept.append(np.flatnonzero(keep))
    return Live.of(theta, kept) if dropped else Live.all(theta)


def is_plain(net: Network, layer: int) -> bool:
    """Return whether the layer hands on nothing of a map that is 0."""
    kind, sigma = net.chain[layer - 1], net.activation_of(layer)
    if type(kind) in POOLINGS:
        return sigma is None or type(sigma) is ReLU
    return type(kind) is Dense or (type(kind) is Conv and kind.groups == 1)


def _dead(theta: Parameters, layer: int) -> np.ndarray:
    """Return which maps of a layer have no weights and a negative bias."""
    weights = theta.W[layer].weights
    return (weights == 0).all(axis=tuple(range(1, weights.ndim))) & (theta.b[layer] < -TINY)


def _with_maps(layer: Layer, kept: np.ndarray) -> Layer:
    if isinstance(layer, Conv):
        return replace(layer, maps=len(kept))
    return replace(layer, width=len(kept)) if isinstance(layer, Dense) else layer


def _places(net: Network, kept: list[np.ndarray]) -> np.ndarray:
    """Return where the weights and biases of the kept maps are in the vector of all."""
    places = []
    for layer, slot in net.slots.items():
        below, maps = kept[layer - 1], net.shapes[layer - 1][0]
        weights = np.arange(slot.weights.start, slot.weights.stop).reshape(slot.shape[0], maps, -1)
        places.append(weights[kept[layer]][:, below].ravel())
        if slot.biases:
            places.append(slot.weights.stop + kept[layer])
    return np.concatenate(places)
