"""[CNN] Lemma 3: the groups of equal values at each location of a map, and their sums of u."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..certificates.rounding import enclosed_outputs
from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import whole_number
from ..shown import Shown
from .relayed_pair import RelayedPair, check_pair
from .split_terms import map_values, sums_rounding, tie_of


@dataclass(frozen=True, repr=False)
class OrderedGroups(Shown):
    """The groups of equal v at every location of a map, largest first, and their sums of u.

    For location j, ``values[j]``, ``sizes[j]`` and ``sums[j]`` hold one entry for each group
    ([CNN] section 3.2.1): the value v, the number of samples, the sum of u over them. A sum up to
    ``vanishing``, its rounding error, counts as zero. It prints as a table, a line a location.
    """

    layer: int
    map: int
    output: int
    values: tuple[np.ndarray, ...]
    sizes: tuple[np.ndarray, ...]
    sums: tuple[np.ndarray, ...]
    vanishing: float

    @property
    def first(self) -> list[int | None]:
        """Return for each location the first group whose sum of u is not zero, or None."""
        found = [np.flatnonzero(abs(sums) > self.vanishing) for sums in self.sums]
        return [int(groups[0]) if groups.size else None for groups in found]

    def table(self, locations: Iterable[int] | None = None) -> str:
        """Return the lines of the given locations, of all by default."""
        lines = [
            f"layer {self.layer} map {self.map}, output {self.output}: the first group of each "
            "location whose sum of u is not zero",
            f"{'location':>8} {'groups':>7} {'group':>6} {'v':>14} {'samples':>8} {'sum of u':>14}",
        ]
        first = self.first
        for j in range(len(self.values)) if locations is None else locations:
            line = f"{j:>8} {len(self.values[j]):>7}"
            if (n := first[j]) is None:
                line += f" {'none':>6}"
            else:
                line += (
                    f" {n:>6} {self.values[j][n]:>14.8g} {self.sizes[j][n]:>8} "
                    f"{self.sums[j][n]:>14.8g}"
                )
            lines.append(line)
        return "\n".join(lines)

    def __str__(self) -> str:
        shown = min(len(self.values), 12)
        rest = len(self.values) - shown
        return self.table(range(shown)) + (f"\n... and {rest} more locations" if rest else "")


def ordered_groups(
    theta: Parameters, pair: RelayedPair, data: TrainingSet, loss: Loss, map: int, output: int
) -> OrderedGroups:
    """Return the ordered groups of `map` of layer L-3 and their sums of u ([CNN] Lemma 3).

    Values closer than 1e-9 of the range of the map are equal. Lemma 3 says that some sum is not
    zero wherever R > 0; images of two values refute it, since at a linear minimum the normal
    equations make every sum zero. Raises ValueError for a map that is not relayed or an output
    that does not exist.
    """
    check_at(theta, data, loss)
    check_pair(pair, theta)
    outputs = theta.net.shapes[-1][0]
    output = whole_number("output unit", output, 0, outputs - 1)
    pair.relay_of(map)
    v, (o, errors) = map_values(theta, pair, map, data.x), enclosed_outputs(theta, data.x)
    y = np.ascontiguousarray(data.y.T, np.float64)
    u = loss.gradient(o, y)
    order = np.argsort(-v, axis=1, kind="stable")
    ranked = np.take_along_axis(v, order, axis=1)
    tie = tie_of(v)
    values, sizes, sums = [], [], []
    for row, samples in zip(ranked, order, strict=True):
        starts = np.concatenate([[0], np.flatnonzero(row[:-1] - row[1:] > tie) + 1])
        values.append(row[starts])
        sizes.append(np.diff(np.append(starts, len(row))))
        sums.append(np.add.reduceat(u[output][samples], starts))
    vanishing = float(sums_rounding(loss, o, errors, y, u)[output])
    return OrderedGroups(
        pair.below, map, output, tuple(values), tuple(sizes), tuple(sums), vanishing
    )
