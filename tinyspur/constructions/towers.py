"""Towers of layers that hand maps on, up to a dense layer that reads them.

A relay of map c is a map with an identity filter: it reads the centre tap of c and nothing else.
With a positive bias on a nonnegative map it is strictly active, and the layer above has to take the
bias off again. Below an average pooling of size k a relay is k^d maps, shifted copies, whose pooled
values are all the box sums of the map: an invertible linear function of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..engine.activations import ReLU, check_piecewise_linear
from ..engine.backend import Array, namespace
from ..engine.network import Network, check_usual
from ..engine.parameters import Parameters, check_points
from ..errors import AssumptionError
from ..layers import AveragePool, Conv

MARGIN = 1.0  # least |z| of relays and of dead maps


def set_relay(
    theta: Parameters,
    layer: int,
    source: int,
    target: int,
    bias: float,
    sign: int = 1,
    shift: tuple[int, ...] | None = None,
) -> None:
    """Make map `target` of a convolution sigma(sign * o_source + bias), in place.

    With a `shift` position p reads position p + shift, zero beyond the border.
    """
    filters, tap = theta.W[layer].weights, theta.W[layer].centre
    if shift is not None:
        tap = tuple(c + s for c, s in zip(tap, shift, strict=True))
    filters[target] = 0
    filters[(target, source, *tap)] = sign
    theta.b[layer][target] = bias


def set_constant(theta: Parameters, layer: int, target: int, bias: float) -> None:
    """Make map `target` of a convolution sigma(bias), in place: dead where the bias is negative."""
    theta.W[layer].weights[target] = 0
    theta.b[layer][target] = bias


class Tower:
    """How relays carry one map through the layers `first` to `last`, convolutions and poolings.

    A track consists of the maps that carry one map of layer ``first - 1`` up: ``copies[l]`` maps of
    layer l, numbered track by track from `offset` on. With `spread` a convolution below poolings of
    total size k holds k shifted copies in each direction. Without it there is one copy, and the
    poolings keep only its means. Raises AssumptionError where a filter is too small to hold the
    copies, ValueError for a layer that can't relay, such as a max pooling, since no copies
    determine the map below it, and for a smooth activation.
    """

    def __init__(self, net: Network, first: int, last: int, spread: bool = True, offset: int = 0):
        check_usual(net, "construction", first, last)
        check_piecewise_linear(net.activations, "construction")
        for layer in range(first, last + 1):
            if not net.chain[layer - 1].relays(net.shapes[layer - 1]):
                raise ValueError(
                    "construction: expected layers that can relay a map, got "
                    f"{net.chain[layer - 1]} as layer {layer}"
                )
        self.net, self.first, self.last = net, first, last
        self.spread, self.offset = spread, offset
        self.shifts = {
            layer: _shifts(net, layer, spread)
            for layer in range(first, last + 1)
            if isinstance(net.chain[layer - 1], Conv)
        }
        self.copies, copies = {first - 1: 1}, 1
        for layer in range(first, last + 1):
            copies *= len(self.shifts.get(layer, "1"))
            self.copies[layer] = copies

    @property
    def pooled(self) -> bool:
        """Return whether there is a pooling among the layers."""
        return len(self.shifts) < self.last + 1 - self.first

    @property
    def room(self) -> int:
        """Return how many tracks the convolutions have maps for."""
        return min(
            (self.net.shapes[layer][0] - self.offset) // self.copies[layer] for layer in self.shifts
        )

    def check_room(self, tracks: int, purpose: str) -> None:
        """Raise AssumptionError unless every convolution has maps for so many tracks."""
        for layer in self.shifts:
            maps, copies = self.net.shapes[layer][0], self.copies[layer]
            if maps < (needed := self.offset + tracks * copies):
                shifted = f" in {copies} shifted copies each" if copies > 1 else ""
                raise AssumptionError(
                    f"too few maps: layer {layer} has {maps}, expected at least "
                    f"{needed}: {purpose}{shifted}"
                )

    def maps(self, layer: int, track: int) -> slice:
        """Return the maps of a layer that belong to a track; below `first` a track is a map."""
        copies, offset = self.copies[layer], 0 if layer < self.first else self.offset
        return slice(offset + track * copies, offset + (track + 1) * copies)

    def columns(self, track: int) -> slice:
        """Return the neurons of layer `last` that belong to a track."""
        maps, P = self.maps(self.last, track), self.net.positions(self.last)
        return slice(maps.start * P, maps.stop * P)

    def relay(
        self, theta: Parameters, layer: int, source: int, target: int, bias: float, sign: int = 1
    ) -> None:
        """Make track `target` of a convolution relay track `source` of the layer below it."""
        read, write = self.maps(layer - 1, source), self.maps(layer, target)
        pairs = itertools.product(range(read.start, read.stop), self.shifts[layer])
        for copy, (m, shift) in zip(range(write.start, write.stop), pairs, strict=True):
            set_relay(theta, layer, m, copy, bias, sign, shift)

    def biases(self, lowest: float) -> dict[int, float]:
        """Return the biases that keep relays at z >= MARGIN, for maps whose least value is given.

        Only the first convolution reads the maps themselves; those above read what is positive.
        """
        biases = dict.fromkeys(self.shifts, MARGIN)
        if biases:
            biases[self.first] = MARGIN - min(0.0, lowest)
        return biases

    def read(
        self,
        theta: Parameters,
        weights: np.ndarray,
        offset: Array,
        biases: dict[int, float],
        spare: float = -MARGIN,
        tracks: dict[int, int] | None = None,
    ) -> None:
        """Let the dense layer above compute an affine function of the maps below, in place.

        Its first n neurons become sum_c weights[:, c] @ (the c-th map) + offset, for `weights`
        (n, C, P) and `offset` (n,). `tracks` names the maps of layer ``first - 1`` and the track
        of each; by default they are the first C maps, each in the track of its number. They go up
        through relays with `biases`, which the dense layer takes off again; every other map of the
        convolutions is sigma(`spare`). With `spread` the weights are those of the map's entries,
        without it those of what the poolings make of the map.
        """
        if tracks is None:
            tracks = {c: c for c in range(weights.shape[1])}
        for layer in self.shifts:
            for t in range(self.net.shapes[layer][0]):
                set_constant(theta, layer, t, spare)
            for m, track in tracks.items():
                source = m if layer == self.first else track
                self.relay(theta, layer, source, track, biases[layer])
        weights = self.unseen(weights) if self.spread else weights
        constants, dense = self.constants(biases), self.last + 1
        read, b = theta.W[dense].weights[: len(weights)], theta.b[dense][: len(weights)]
        xp = namespace(theta.vector)
        b[:] = xp.asarray(offset, dtype=b.dtype)
        for c, track in enumerate(tracks.values()):
            read[:, self.columns(track)] = xp.asarray(weights[:, c], dtype=read.dtype)
            b -= xp.asarray(weights[:, c] @ constants, dtype=b.dtype)

    @cached_property
    def matrix(self) -> np.ndarray:
        """Return the matrix (n, P) from the map to the track's neurons."""
        return self._run(np.eye(self.net.positions(self.first - 1)), {})

    def seen(self, weights: np.ndarray) -> np.ndarray:
        """Return the weights (..., P) on the map that `weights` (..., n) on the neurons come to."""
        return weights @ self.matrix if self.pooled else weights

    def unseen(self, weights: np.ndarray) -> np.ndarray:
        """Return the weights (..., n) on the neurons that come to `weights` (..., P) on the map."""
        if not self.pooled:
            return weights
        flat = weights.reshape(-1, weights.shape[-1])
        return np.linalg.solve(self.matrix.T, flat.T).T.reshape(weights.shape)

    def constants(self, biases: dict[int, float]) -> np.ndarray:
        """Return what biases of the convolutions add to the track's neurons, shape (n,)."""
        return self._run(np.zeros((self.net.positions(self.first - 1), 1)), biases)[:, 0]

    def _run(self, columns: np.ndarray, biases: dict[int, float]) -> np.ndarray:
        """Return the track's neurons for columns of a map, every unit being active."""
        layers = [
            replace(self.net.chain[layer - 1], maps=self.copies[layer])
            if layer in self.shifts
            else self.net.chain[layer - 1]
            for layer in range(self.first, self.last + 1)
        ]
        if not layers:
            return columns
        shape = (1, *self.net.shapes[self.first - 1][1:])
        alone = Network(shape, layers, ReLU(slope=1.0)).zeros()  # slope 1: sigma(z) = z
        for layer, shifts in self.shifts.items():
            sources = itertools.product(range(self.copies[layer - 1]), shifts)
            for copy, (m, shift) in enumerate(sources):
                bias = biases.get(layer, 0.0)
                set_relay(alone, layer - self.first + 1, m, copy, bias, shift=shift)
        return alone.net.layer_output(alone, columns, len(layers))


def _shifts(net: Network, layer: int, spread: bool) -> list[tuple[int, ...]]:
    """Return the shifts of the copies that convolution `layer` holds of each map.

    In each direction there are as many consecutive shifts as the poolings above are wide, beginning
    with 0 if the filters reach far enough. The sums over the windows determine the map: if all of
    them vanish, the map, continued by zeros, has the width as a period, hence is zero.
    """
    size, axes = 1, len(net.input_shape) - 1
    for above in net.chain[layer:] if spread else ():
        if not isinstance(above, AveragePool):
            break
        size *= above.size
    radius = net.chain[layer - 1].kernel // 2
    start = min(0, radius + 1 - size)
    if start < -radius:
        raise AssumptionError(
            f"filters too small: layer {layer} has filters of size {2 * radius + 1}, expected at "
            f"least {size + 1 - size % 2}, to shift the map before it is pooled by {size}"
        )
    return list(itertools.product(range(start, start + size), repeat=axes))


@dataclass(frozen=True)
class RelayedPair:
    """Two consecutive convolutions, `lower` and the one above, that relay the layer below them.

    Map ``relayed[i]`` of layer ``lower - 1`` goes through track ``i + 2`` of the `tower`, from
    `lower` up to the first dense layer; a track is one map of each layer, or several copies where
    poolings follow. The biases of the relays are `kappa_lower`, `kappa_upper` and, in all layers
    above the pair, `kappa_above`. The tracks `reserved` = (A, B) contribute nothing.
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
        return self.lower + 1

    @property
    def dense(self) -> int:
        """Return the dense layer that reads the relays (L): the first one."""
        return self.tower.last + 1

    def relay_of(self, m: int) -> int:
        """Return the track that relays map m, or raise ValueError."""
        if m not in self.relayed:
            raise ValueError(
                f"map {m} of layer {self.below} is not relayed; expected one of {self.relayed}"
            )
        return self.relayed.index(m) + 2

    @property
    def biases(self) -> dict[int, float]:
        """Return the biases of the relays, by layer."""
        biases = dict.fromkeys(self.tower.shifts, self.kappa_above)
        return biases | {self.lower: self.kappa_lower, self.upper: self.kappa_upper}

    def constants(self, lower: float, upper: float, tracks: int = 1) -> np.ndarray:
        """Return what biases of the pair, and those above it of so many `tracks`, add, (n,)."""
        biases = dict.fromkeys(self.tower.shifts, tracks * self.kappa_above)
        return self.tower.constants(biases | {self.lower: lower, self.upper: upper})


def check_pair(pair: object, *points: Parameters) -> None:
    """Raise ValueError for what is no pair, and for points of another network than that of it."""
    if not isinstance(pair, RelayedPair):
        raise ValueError(
            "pair: expected the RelayedPair that linear_minimum or embed returned, "
            f"got a {type(pair).__name__}"
        )
    check_points(pair.tower.net, *points)
