"""Towers of layers that hand maps on, up to a dense layer that reads them.

A relay of map c is a map whose filter has one tap: it reads c, shifted, and nothing else. With a
positive bias on a nonnegative map it is strictly active, and the layer above has to take the bias
off again. Where one relay keeps part of the map only, below a pooling, at a stride, where filters
don't reach beyond the border, a track holds several of them, shifted copies that determine the map.
Below an average pooling of size k these are k^d maps, whose pooled values are all the box sums of
the map: an invertible linear function of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from ..engine.activations import ReLU
from ..engine.backend import Array, namespace
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..layers import Conv
from .paths import Path, instead, kind_of
from .taps import is_usual, reads_padding, taps_of

MARGIN = 1.0  # least |z| of relays and of dead maps
Maps = slice | list[int]


def set_relay(
    theta: Parameters,
    layer: int,
    source: int,
    target: int,
    sign: int = 1,
    tap: tuple[int, ...] | None = None,
) -> None:
    """Let map `target` read `sign` times one tap of map `source` of the layer below, in place.

    By default the one in the middle. A scale, or the sum of a block, reads its own map.
    """
    weights = theta.W[layer].weights
    if weights is None:
        return
    weights[target] = 0
    if weights.ndim == 1:
        weights[target] = sign
        return
    if tap is None:
        tap = middle_tap(theta, layer)
    weights[(target, source % weights.shape[1], *tap)] = sign


def middle_tap(theta: Parameters, layer: int) -> tuple[int, ...]:
    """Return the index of the tap that reads its own position where maps keep their size."""
    return tuple((k - 1) // 2 for k in theta.W[layer].weights.shape[2:])


def set_constant(theta: Parameters, layer: int, target: int, bias: float) -> None:
    """Make map `target` of a convolution sigma(bias), in place: dead where the bias is negative."""
    theta.W[layer].weights[target] = 0
    if layer in theta.b:
        theta.b[layer][target] = bias


class Tower:
    """How relays carry maps through the layers `first` to `last`, up to a dense layer.

    A track consists of the maps that carry one map of layer ``first - 1`` up: ``copies[l]`` maps of
    layer l, numbered track by track from `offset` on. ``taps[l]`` says of each copy in a layer with
    maps of its own which copy below it reads, and at which tap. With `spread` the copies determine
    the map; without it there is one, of middle taps, and poolings keep only its means.
    ``holders[l]`` is the layer whose biases keep the relays of layer l active: itself, or a scale
    above it, or the last layer of a block that is passed by. Layers below an activation that have
    none are `bare`: what they read has to be positive. Those that are `padded` need their biases,
    since relays read zeros beyond the border.

    Where layers have groups a track is where its source can be read: ``sources[t]`` is the map of
    layer ``first - 1`` that track t begins with, by default the one of the same number.

    Raises AssumptionError where no copies determine the map, and where relays could not be kept
    strictly active; ValueError for a layer that can't relay, such as a max pooling, since no copies
    determine the map below it, and for a smooth activation.
    """

    def __init__(
        self,
        net: Network,
        first: int,
        last: int,
        spread: bool = True,
        offset: int = 0,
        sources: tuple[int, ...] | None = None,
    ):
        self.net, self.first, self.last = net, first, last
        self.spread, self.offset = spread, offset
        self.path = Path.of(net, first, last)
        self.taps = taps_of(net, self.path, spread)
        self.holders, self.bare, self.padded = self._find_biases()
        active = [n for n in self.path.layers if net.is_active(n)]
        self.unheld = [
            n for n in self.taps if n not in self.holders and n <= max(active, default=0)
        ]
        self.copies, copies = {first - 1: 1}, 1
        for layer in range(first, last + 1):
            copies = len(self.taps.get(layer, range(copies)))
            self.copies[layer] = copies
        self.grouped = any(getattr(kind_of(net, n), "groups", 1) > 1 for n in self.taps)
        if sources is None:
            sources = tuple(range(net.shapes[first - 1][0]))
        self.places = self._places(sources) if self.grouped else {}

    @property
    def pooled(self) -> bool:
        """Return whether a track's neurons are others than the entries of the map."""
        return any(kind_of(self.net, n).type == "average_pool" for n in self.path.layers) or any(
            len(reads) > 1 or self.net.shapes[n][1:] != self.net.read_shape(n)[1:]
            for n, reads in self.taps.items()
        )

    @property
    def usual(self) -> bool:
        """Return whether it consists of the layers that [CNN] has formulas for."""
        net, layers = self.net, range(self.first, self.last + 1)
        return all(
            (is_usual(kind := net.chain[n - 1]) and net.activation_of(n) == ReLU())
            or (kind_of(net, n).type == "average_pool" and kind.grid(net.shapes[n - 1]).tiles)
            for n in layers
        )

    @property
    def room(self) -> int:
        """Return how many tracks the layers have maps for."""
        if self.grouped:
            return min(len(self.places[layer]) for layer in self.taps)
        return min(
            (self.net.shapes[layer][0] - self.offset) // self.copies[layer] for layer in self.taps
        )

    def check_room(self, tracks: int, purpose: str) -> None:
        """Raise AssumptionError unless every layer has maps for so many tracks."""
        for layer in self.taps:
            maps, copies = self.net.shapes[layer][0], self.copies[layer]
            shifted = f" in {copies} shifted copies each" if copies > 1 else ""
            needed = self.offset + tracks * copies
            if self.grouped and len(self.places[layer]) < tracks:
                kind = kind_of(self.net, layer)
                raise AssumptionError(
                    f"too few maps: layer {layer}, {kind}, has {maps // kind.groups} in each "
                    f"group, where {len(self.places[layer])} of {tracks} tracks have room, "
                    f"expected room for {purpose}{shifted}"
                )
            if maps < needed:
                raise AssumptionError(
                    f"too few maps: layer {layer} has {maps}, expected at least "
                    f"{needed}: {purpose}{shifted}"
                )

    def maps(self, layer: int, track: int) -> Maps:
        """Return the maps of a layer that belong to a track; below `first` a track is a map."""
        if layer >= self.first and self.grouped:
            return self.places[layer][track]
        copies, offset = self.copies[layer], 0 if layer < self.first else self.offset
        return slice(offset + track * copies, offset + (track + 1) * copies)

    def columns(self, track: int) -> slice | np.ndarray:
        """Return the neurons of layer `last` that belong to a track."""
        maps, P = self.maps(self.last, track), self.net.positions(self.last)
        if isinstance(maps, slice):
            return slice(maps.start * P, maps.stop * P)
        return (np.array(maps)[:, None] * P + np.arange(P)).ravel()

    def relay(
        self, theta: Parameters, layer: int, source: int, target: int, bias: float, sign: int = 1
    ) -> None:
        """Make track `target` of a layer relay track `source` of the layer below it, in place."""
        read, write = self.numbers(layer - 1, source), self.numbers(layer, target)
        for n, (copy, tap) in zip(write, self.taps[layer], strict=True):
            set_relay(theta, layer, read[copy], n, sign, tap)
        if layer in self.holders:
            theta.b[self.holders[layer]][write] = bias

    def biases(self, lowest: float) -> dict[int, float]:
        """Return the biases that keep relays at z >= MARGIN, for maps whose least value is given.

        Only the first convolution reads the maps themselves; those above read what is positive.
        Raises AssumptionError where these have no biases and the maps are not positive.
        """
        biases = dict.fromkeys(self.holders, MARGIN)
        first = next(iter(biases), None)
        if self.bare and (first is None or self.bare[0] < first):
            layer = self.bare[0]
            if lowest <= 0:
                raise AssumptionError(
                    f"layer {layer}, {kind_of(self.net, layer)}, has no biases to keep relays "
                    f"active: expected some, or inputs above 0, got {lowest:g}"
                    f"{instead(self.net)}"
                )
        elif biases:
            biases[first] = MARGIN - min(0.0, lowest)
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
        self._quieten(theta, spare)
        live = False  # whether other maps are copies of relays, which the sum of a block hands on
        for layer in self.taps:
            if layer not in self.path.past:
                live = layer in self.unheld
            self._fill(theta, layer, tracks, biases.get(layer, 0.0) if live else spare)
            for m, track in tracks.items():
                source = m if layer == self.first else track
                self.relay(theta, layer, source, track, biases.get(layer, 0.0))
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
        """Return the weights (..., n) on the neurons that come to `weights` (..., P) on the map.

        The shortest ones where there are several.
        """
        if not self.pooled:
            return weights
        flat, rows = weights.reshape(-1, weights.shape[-1]), self.matrix.T
        if self.usual:
            found = np.linalg.solve(rows, flat.T)
        else:
            found = np.linalg.lstsq(rows, flat.T, rcond=None)[0]
        return found.T.reshape(*weights.shape[:-1], -1)

    def constants(self, biases: dict[int, float]) -> np.ndarray:
        """Return what biases of the convolutions add to the track's neurons, shape (n,)."""
        return self._run(np.zeros((self.net.positions(self.first - 1), 1)), biases)[:, 0]

    def _run(self, columns: np.ndarray, biases: dict[int, float]) -> np.ndarray:
        """Return the track's neurons for columns of a map, every unit being active."""
        layers, numbers = [], {}
        for n in self.path.layers:
            kind = kind_of(self.net, n)
            if n in self.taps:
                numbers[n] = len(layers) + 1
                conv = kind if isinstance(kind, Conv) else Conv(1, 1)
                options = {"groups": 1, "bias": True, "activation": None}
                layers.append(replace(conv, maps=self.copies[n], **options))
            elif kind.type == "average_pool":
                layers.append(replace(kind, activation=None))
        if not layers:
            return columns
        shape = (1, *self.net.shapes[self.first - 1][1:])
        alone = Network(shape, layers, ReLU(slope=1.0)).zeros()  # slope 1: sigma(z) = z
        for layer, n in numbers.items():
            for copy, (source, tap) in enumerate(self.taps[layer]):
                set_relay(alone, n, source, copy, tap=tap)
            alone.b[n][:] = biases.get(layer, 0.0)
        return alone.net.layer_output(alone, columns, len(layers))

    def numbers(self, layer: int, track: int) -> list[int]:
        """Return the numbers of the maps of a track."""
        maps = self.maps(layer, track)
        return list(range(maps.start, maps.stop)) if isinstance(maps, slice) else maps

    def _find_biases(self) -> tuple[dict[int, int], list[int], list[int]]:
        """Return the layer that holds the biases of each layer of relays, and the bare layers.

        And those with biases without which relays would be at the kink, beyond the border. Raises
        AssumptionError for bare layers that read zeros there, or that a block adds to.
        """
        net, bare, padded, since = self.net, [], [], {}
        holders: dict[int, int] = {}
        for n in self.path.layers:
            if n in self.taps:
                inner = [m for m in self.path.past.get(n, ()) if not self._ends_active(m)]
                own = [n] if n not in self.path.past else inner
                since[n] = next((m for m in reversed(own) if kind_of(net, m).bias), None)
            elif since and kind_of(net, n).bias and not list(since.values())[-1]:
                since[list(since)[-1]] = n
            if not net.is_active(n) and n != self.path.layers[-1]:
                continue
            held = {layer: holder for layer, holder in since.items() if holder}
            holders |= held
            if held and any(map(self.pads, since)):
                padded.append(list(held)[-1])
            for layer in since if net.is_active(n) and not held else ():
                bare.append(layer)
                if layer in self.path.past or self.pads(layer):
                    raise AssumptionError(
                        f"layer {layer}, {kind_of(net, layer)}, has no biases: expected some, to "
                        f"keep relays active{instead(net)}"
                    )
            since = {}
        return holders, bare, padded

    def pads(self, layer: int) -> bool:
        """Return whether relays of a layer read zeros beyond the border somewhere."""
        return reads_padding(self.net, layer, self.taps[layer])

    def _quieten(self, theta: Parameters, spare: float) -> None:
        """Let scales above other layers hand on what they read, and blocks passed by add nothing.

        Units of such a block that have an activation of their own are dead.
        """
        net = self.net
        for n in (*self.path.layers, *self.path.quiet):
            if n in self.taps or n not in net.slots:
                continue
            weights, quiet = theta.W[n].weights, n in self.path.quiet
            weights[...] = 1 if weights.ndim == 1 else 0
            if n in theta.b:
                theta.b[n][...] = spare if quiet and self._ends_active(n) else 0

    def _ends_active(self, n: int) -> bool:
        """Return whether an activation follows a layer of a block before its sum."""
        while not self.net.is_active(n):
            above = self.net.chain[n]
            if above.joins or above.swaps:
                return False
            n += 1
        return True

    def _fill(self, theta: Parameters, layer: int, tracks: dict[int, int], spare: float) -> None:
        """Let all maps of a layer be sigma(`spare`), in place; copies of relays in bare layers."""
        weights = theta.W[layer].weights
        if weights is not None:
            weights[...] = 0
        if layer in theta.b:
            theta.b[layer][...] = 0
        if layer in self.holders:
            theta.b[self.holders[layer]][...] = spare
        elif layer in self.unheld:
            m, track = next(iter(tracks.items()))
            read = self.numbers(layer - 1, m if layer == self.first else track)
            copy, tap = self.taps[layer][0]
            for t in range(self.net.shapes[layer][0]):
                set_relay(theta, layer, read[copy], t, tap=tap)

    def _places(self, sources: tuple[int, ...]) -> dict[int, dict[int, list[int]]]:
        """Return the maps of each track in each layer, for tracks that there is room for."""
        net, below = self.net, {t: [m] for t, m in enumerate(sources)}
        places: dict[int, dict[int, list[int]]] = {}
        for layer in range(self.first, self.last + 1):
            if layer not in self.taps or not isinstance(kind_of(net, layer), Conv):
                places[layer] = below  # each map reads its own
                continue
            maps, groups = net.shapes[layer][0], getattr(kind_of(net, layer), "groups", 1)
            size, per_group = net.read_shape(layer)[0] // groups, maps // groups
            free = [list(range(g * per_group, (g + 1) * per_group)) for g in range(groups)]
            free[0] = free[0][self.offset :]
            placed = {}
            for track, read in below.items():
                needed = [read[copy] // size for copy, _ in self.taps[layer]]
                if all(needed.count(g) <= len(free[g]) for g in needed):
                    placed[track] = [free[g].pop(0) for g in needed]
            places[layer] = below = placed
        return places
