"""The pair of convolutions that relays what is below it, and the tracks above."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..engine.activations import ReLU
from ..engine.parameters import Parameters, check_points
from ..layers import Conv
from .paths import kind_of
from .towers import Tower


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

        Then theta' raises a bias there; else it takes the maps as they are.
        """
        net, n = self.tower.net, self.below
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
