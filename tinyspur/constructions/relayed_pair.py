"""The pair of convolutions that relays what is below it: where it may be, and its tracks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..engine.activations import ReLU
from ..engine.network import Network, check_network
from ..engine.parameters import Parameters, check_points
from ..engine.plain import whole
from ..errors import AssumptionError
from ..layers import Conv, Dense, Link, Scale
from .paths import instead, kind_of
from .taps import follows
from .towers import Tower

VARIANTS = ("repaired", "literal")


@dataclass(frozen=True)
class RelayedPair:
    """Two consecutive convolutions, `lower` and the one above, that relay the layer below them.

    Map ``relayed[i]`` of layer ``lower - 1`` goes through track ``i + 2`` of the `tower`, from
    `lower` up to the first dense layer; a track is one map of each layer, or several copies where
    one keeps part of the map only. The biases of the relays are `kappa_lower`, `kappa_upper` and,
    in all layers above the pair, `kappa_above`. The tracks `reserved` = (A, B) contribute nothing.
    """

    lower: int
    relayed: tuple[int, ...]
    kappa_lower: float
    kappa_upper: float
    kappa_above: float
    tower: Tower = field(repr=False, compare=False)
    reserved: tuple[int, int] = (0, 1)

    @property
    def below(self) -> int:
        """Return the layer whose maps are relayed (L - 3)."""
        return self.lower - 1

    @property
    def upper(self) -> int:
        """Return the second convolution (L - 1)."""
        return list(self.tower.taps)[1]

    @property
    def dense(self) -> int:
        """Return the dense layer that reads the relays (L): the first one."""
        return self.tower.last + 1

    @property
    def biased(self) -> bool:
        """Return whether the maps below are those of a convolution with biases, under ReLU.

        Then theta' raises a bias there, and ReLU above the pair cuts off what was inactive. Without
        either it takes the maps as they are.
        """
        net, n = self.tower.net, self.below
        above = next((m for m in self.tower.path.layers if m >= self.upper and net.is_active(m)), 0)
        if not above or net.activation_of(above) != ReLU():
            return False
        kind = net.chain[n - 1] if n else None
        conv = isinstance(kind, Conv) and kind.bias and kind.groups == 1
        return conv and net.activation_of(n) == ReLU()

    def relay_of(self, m: int) -> int:
        """Return the track that relays map m, or raise ValueError."""
        if m not in self.relayed:
            raise ValueError(
                f"map {m} of layer {self.below} is not relayed; expected one of {self.relayed}"
            )
        return self.relayed.index(m) + 2

    @property
    def divisible(self) -> tuple[int, ...]:
        """Return the relayed maps that A and B can read: with groups, those of their own."""
        if not self.tower.grouped:
            return self.relayed
        net, kind = self.tower.net, kind_of(self.tower.net, self.lower)
        size = net.read_shape(self.lower)[0] // kind.groups
        return tuple(m for m in self.relayed if m // size == self.relayed[0] // size)

    @property
    def biases(self) -> dict[int, float]:
        """Return the biases of the relays, by layer."""
        biases = dict.fromkeys(self.tower.holders, self.kappa_above)
        return biases | {self.lower: self.kappa_lower, self.upper: self.kappa_upper}

    def constants(self, lower: float, upper: float, tracks: int = 1) -> np.ndarray:
        """Return what biases of the pair, and those above it of so many `tracks`, add, (n,)."""
        biases = dict.fromkeys(self.tower.holders, tracks * self.kappa_above)
        return self.tower.constants(biases | {self.lower: lower, self.upper: upper})


def check_pair(pair: object, *points: Parameters) -> None:
    """Raise ValueError for what is no pair, and for points of another network than that of it."""
    if not isinstance(pair, RelayedPair):
        raise ValueError(
            "pair: expected the RelayedPair that linear_minimum or embed returned, "
            f"got a {type(pair).__name__}"
        )
    check_points(pair.tower.net, *points)


def check_relays(pair: object, theta: Parameters) -> None:
    """Raise ValueError as `check_pair` does, and for a point whose layers don't relay as it says.

    A point of other data, or one that was trained on, may do so, as long as the relays stay.
    """
    check_pair(pair, theta)
    tower, expected = pair.tower, theta.net.zeros(like=theta.vector)
    for m in pair.relayed:
        track = pair.relay_of(m)
        for n in tower.taps:
            tower.relay(expected, n, m if n == pair.lower else track, track, pair.biases.get(n, 0))
            some, holder = tower.numbers(n, track), tower.holders.get(n)
            parts = [(point.W[n].weights, point.b.get(holder)) for point in (theta, expected)]
            for found, right in zip(*parts, strict=True):
                if right is not None and bool((found[some] != right[some]).any()):
                    raise ValueError(
                        "pair: expected the point that it was returned with, got one whose layer "
                        f"{n} does not relay map {m} of layer {pair.below}"
                    )


def top_pair(net: Network) -> int:
    """Return the lower of the topmost two convolutions in a row, or ValueError.

    Of those with a ReLU between and biases in both, if there are any.
    """
    found = [n for n in range(net.depth - 1, 0, -1) if _upper(net, n) is not None]
    fit = (n for n in found if _is_fit(net, n))
    lower = next(fit, next(iter(found), None))
    if lower is None:
        raise ValueError(
            f"construction: expected two consecutive convolutions, got {net}{instead(net)}"
        )
    return lower


def _upper(net: Network, lower: int) -> int | None:
    """Return the convolution that reads the convolution `lower` alone, or a scale above it."""
    if not 0 < lower < net.depth or not isinstance(net.chain[lower - 1], Conv):
        return None
    upper = lower + 1
    while upper < net.depth and follows(net, upper) and not isinstance(net.chain[upper - 1], Link):
        upper += 1
    return upper if isinstance(net.chain[upper - 1], Conv) else None


def _is_fit(net: Network, lower: int) -> bool:
    upper = _upper(net, lower)
    scaled = upper < net.depth and follows(net, upper + 1)
    above = net.chain[upper - 1 : upper + scaled]
    biased = any(kind.bias for kind in net.chain[lower - 1 : upper - 1])
    return net.activation_of(upper - 1) == ReLU() and biased and any(kind.bias for kind in above)


def pair_tower(net: Network, lower: int | None = None, variant: str = "repaired") -> Tower:
    """Return the layers from `lower`, the topmost pair by default, up to the first dense layer.

    Raises ValueError unless `lower` and the next layer are convolutions with ReLU between them, a
    dense layer ends the network, only scales lie between dense ones, and all layers from `lower` up
    to the first dense one can relay; AssumptionError where they can't be kept active or keep too
    little of a map. Literal: for convolutions that keep the size of maps alone.
    """
    check_network(net)
    check_variant(variant)
    lower = top_pair(net) if lower is None else lower
    if whole(lower) is None:
        raise ValueError(f"construction: expected a whole number as lower, got {lower!r}")
    upper = _upper(net, lower)
    if upper is None:
        pair = net.chain[lower - 1 : lower + 1] if lower > 0 else ()
        kinds = ", ".join(type(layer).__name__ for layer in pair) or "none"
        raise ValueError(
            f"construction: expected convolutions as layers {lower} and {lower + 1}, got {kinds}"
        )
    if net.activation_of(upper - 1) != ReLU():
        sigma = net.activation_of(upper - 1) or "none"
        raise ValueError(
            f"construction: expected ReLU, got {sigma} after layer {upper - 1}, "
            f"{net.chain[upper - 2]}{instead(net)}"
        )
    tower = Tower(net, lower, first_dense(net) - 1, variant == "repaired")
    check_printed(tower, variant, "theta")
    for layer in (lower, upper):
        if layer not in tower.holders:
            raise AssumptionError(
                f"layer {layer}, {net.chain[layer - 1]}, is one of the pair: expected biases, "
                f"there or in a scale above it{instead(net)}"
            )
    neighbours = net.chain[lower - 1].grid(net.shapes[lower - 1]).neighbours()
    left = net.positions(lower - 1) - len(np.unique(neighbours[neighbours >= 0]))
    if left:
        raise AssumptionError(
            f"layer {lower}, {net.chain[lower - 1]}, leaves out {left} positions of the maps that "
            f"it reads: expected another stride or padding, or another pair as lower{instead(net)}"
        )
    return tower


def check_printed(tower: Tower, variant: str, name: str) -> None:
    """Raise ValueError for the literal variant of what [CNN] prints no formulas for."""
    if variant == "literal" and not tower.usual:
        raise ValueError(
            f"literal {name}: [CNN] prints formulas for ReLU, convolutions of odd size that keep "
            "the size of maps, and poolings whose windows cut them up, got "
            f"{tower.net.chain[tower.first - 1 : tower.last]}"
        )


def first_dense(net: Network) -> int:
    """Return the first dense layer, which reads the maps; ValueError unless the last is dense."""
    kinds = [type(layer) for layer in net.chain]
    if kinds[-1] is not Dense:
        raise ValueError(f"construction: expected a dense layer at the end, got {net.chain[-1]}")
    if net.is_active(net.depth):  # outputs are fitted as they are
        sigma = net.activation_of(net.depth)
        raise ValueError(f"construction: expected no activation of the outputs, got {sigma}")
    first = kinds.index(Dense) + 1
    for layer in range(first, net.depth + 1):
        kind = net.chain[layer - 1]
        if not isinstance(kind, Dense | Scale):
            raise ValueError(
                "construction: expected dense layers and scales above the first dense layer, got "
                f"{kind_of(net, layer)} as layer {layer}{instead(net)}"
            )
        if isinstance(kind, Dense) and not kind.bias:
            raise ValueError(
                f"construction: expected dense layers with biases, got {kind} as layer {layer}"
            )
        if net.shapes[layer][0] < net.shapes[-1][0]:
            raise AssumptionError(
                f"too few neurons: the dense layer {layer} has {net.shapes[layer][0]}, expected "
                f"at least {net.shapes[-1][0]}, one for each output"
            )
    return first


def check_variant(variant: str) -> None:
    """Raise ValueError unless `variant` is ``repaired`` or ``literal``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, got {variant!r}")
