"""Units that sit at the kink of an activation or a max pooling, up to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..engine.architecture import Architecture
from ..engine.backend import Array, all_to_numpy, namespace


@dataclass(frozen=True)
class Kink:
    """Units of one map, or one dense neuron, that are at the kink, up to rounding, for some sample.

    In max pooling these are units whose window has two equally large entries.
    """

    layer: int
    map: int
    locations: int
    samples: int


def kink_lines(kinks: tuple[Kink, ...]) -> list[str]:
    """Return lines that name the kinks; one for maps with equally many locations and samples."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for kink in kinks:
        key = (kink.layer, kink.locations, kink.samples)
        alike.setdefault(key, []).append(str(kink.map))
    lines = ["at the kink:"] if kinks else []
    return lines + [
        f"  layer {layer} map{'s' * (len(maps) > 1)} {', '.join(maps)} "
        f"({locations} location{'s' * (locations > 1)}, {samples} sample{'s' * (samples > 1)})"
        for (layer, locations, samples), maps in alike.items()
    ]


def at_kink(
    margins: dict[int, Array], rounding: list[Array], counts: dict[int, Array] | None = None
) -> tuple[float, dict[int, np.ndarray]]:
    """Return the least margin, and which units are at the kink, (n_l, N) for layers with some.

    At the kink is what rounding can't tell from it; `counts` are the samples (N,) of each layer
    that count, all by default.
    """
    for n, some in (counts or {}).items():
        xp = namespace(some)
        if xp is not np or not some.all():
            margins = margins | {n: xp.where(some, margins[n], np.inf)}
    ties = all_to_numpy(~(z > rounding[n - 1]) for n, z in margins.items())
    least = min(map(float, all_to_numpy(z.min() for z in margins.values())), default=np.inf)
    return least, {n: zero for n, zero in zip(margins, ties, strict=True) if zero.any()}


class KinkCounter:
    """Collects the least margin and which units sit at the kink, over chunks of samples."""

    def __init__(self, net: Architecture, margin: float = np.inf):
        self.net, self.margin = net, margin
        self.locations: dict[tuple[int, int], np.ndarray] = {}
        self.samples: dict[tuple[int, int], int] = {}

    def add(self, margin: float, ties: dict[int, np.ndarray]) -> None:
        """Take in what `at_kink` returns for a chunk."""
        self.margin = min(self.margin, margin)
        for layer, zero in ties.items():
            self._add(layer, zero)

    def _add(self, layer: int, zero: np.ndarray) -> None:
        maps, *size = self.net.shapes[layer]
        own = zero[: maps * math.prod(size)].reshape(maps, -1, zero.shape[1])
        for t, units in enumerate(own):
            if units.any():
                key = (layer, t)
                self.locations[key] = self.locations.get(key, False) | units.any(axis=1)
                self.samples[key] = self.samples.get(key, 0) + int(units.any(axis=0).sum())

    def found(self) -> tuple[Kink, ...]:
        """Return the maps with units at the kink, layer by layer."""
        return tuple(
            Kink(*key, int(self.locations[key].sum()), self.samples[key])
            for key in sorted(self.locations)
        )
