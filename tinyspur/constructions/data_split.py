"""[CNN] Lemmas 2 and 3: a threshold that separates samples somewhere in a map.

S(eta) = (1/N) sum_j w^j sum over {i: v_i^j > eta} of u_i is the rate at which the risk changes when
an output is raised at every location j and sample i with v_i^j > eta. Any eta strictly inside a gap
of the values v with S(eta) != 0 will do. Two rules choose one:

- ``steepest``: sort the values of all locations and samples; S is the sum from each value upwards;
  take the gap where |S| is largest. (`steepest_gap` does so without sorting all values.)
- ``largest`` ([CNN] Lemma 2, repaired): go down the values of each location to the first whose
  samples' sum of u is not zero; v* is the largest of these; take the gap between v* and the next
  smaller value of the map.

Layers count from 1, as in the paper; maps, locations, outputs and samples from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from ..certificates.rounding import enclosed_outputs, mean_rounding
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace
from ..engine.floats import gamma
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import whole_number
from ..errors import AssumptionError
from ..shown import Shown
from .relayed_pair import RelayedPair, check_relays
from .split_terms import map_values, read_weights, sums_rounding, tie_of
from .steepest_gap import steepest_gaps

SPLITS = ("steepest", "largest")


@dataclass(frozen=True, repr=False)
class DataSplit(Shown):
    """A threshold that separates samples at a location of a map ([CNN] Lemma 2, (7)).

    At `location` of `map` of `layer` (L-3), `above` samples have v > `threshold` and `below` have
    v < `threshold`; `partial_sum` is the sum of u over the former, u the derivative of the loss in
    `output`. `slope` is S(eta), the rate at which the risk changes when the output is raised at
    every location and sample with v > eta. The values around the threshold, over all locations,
    are `gap`; `lowest` is the least value of the map.
    """

    layer: int
    map: int
    location: int
    output: int
    threshold: float
    above: int
    below: int
    partial_sum: float
    slope: float
    gap: tuple[float, float]
    lowest: float

    def as_dict(self) -> dict:
        """Return what the report of a run holds."""
        keys = ["layer", "map", "location", "output", "threshold", "above", "below", "partial_sum"]
        return {key: getattr(self, key) for key in keys}

    def __str__(self) -> str:
        return (
            f"split at layer {self.layer} map {self.map} location {self.location}, output "
            f"{self.output}: eta {self.threshold:.9g} in a gap of {self.gap[1] - self.gap[0]:.3g}, "
            f"{self.above} samples above, {self.below} below, sum of u {self.partial_sum:.6g}, "
            f"slope S(eta) {self.slope:.6g}"
        )


def check_rule(rule: object) -> None:
    """Raise ValueError unless the rule of the split exists."""
    if rule not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {rule!r}")


def split_data(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    rule: str = "steepest",
    map: int | None = None,
    output: int | None = None,
    outputs: tuple[np.ndarray, np.ndarray] | None = None,
) -> DataSplit:
    """Return a threshold eta with S(eta) != 0 strictly inside a gap of the values v of a map.

    It is midway in the gap that the `rule` takes, ``steepest`` or ``largest``. All relayed maps and
    all outputs are tried unless one is given: the steepest gap of all, or the largest threshold. S
    counts as zero where its enclosure contains 0, for the values v and the weights w as computed. A
    gap is passed over, too, where all that the risk can fall by in it, |S| times half its width for
    a convex loss, is rounding: of weights that a fit leaves instead of 0, say. `outputs` are what
    `enclosed_outputs` returns for theta in float64, where it is known. Raises ValueError
    for a map, an output or a rule that does not exist, AssumptionError where no gap is left.
    """
    check_at(theta, data, loss)
    check_relays(pair, theta)
    width = theta.net.shapes[-1][0]
    check_rule(rule)
    if output is not None:
        output = whole_number("output unit", output, 0, width - 1)
    maps = pair.divisible if map is None else (map,)
    chosen = list(range(width)) if output is None else [output]
    theta = theta.to(namespace(theta.vector), np.float64)
    o, errors = enclosed_outputs(theta, data.x) if outputs is None else outputs
    y = np.ascontiguousarray(data.y.T, np.float64)
    u, losses = loss.gradient(o, y), loss.value(o, y)
    off, least = sums_rounding(loss, o, errors, y, u), mean_rounding(loss, o, y, losses, errors)
    best, highest = None, ()
    for m in maps:
        w, v = read_weights(theta, pair, m), map_values(theta, pair, m, data.x)
        zero = slope_rounding(w, u, off)
        if rule == "steepest":
            gaps = steepest_gaps(v, w[chosen], u[chosen], zero[chosen])
        else:
            gaps = largest_gaps(v, w[chosen], u[chosen], off[chosen], least)
        for k, gap in zip(chosen, gaps, strict=True):
            if gap is None:
                continue
            low, high, slope = gap
            exact = float(w[k] @ ((v > (low + high) / 2) @ u[k])) / len(data)
            if not (abs(exact) > zero[k] and abs(exact) * (high - low) / 2 > least):
                continue
            rank = (abs(slope),) if rule == "steepest" else ((low + high) / 2, abs(slope))
            if best is None or rank > highest:
                best, highest = (m, k, v, gap), rank
    if best is None:
        raise AssumptionError(
            "no data split: S(eta) vanishes, up to rounding, for every threshold of the maps "
            f"{tuple(maps)} and {'every output' if output is None else f'output {output}'}, or "
            "the risk falls in its gap by no more than rounding explains"
        )
    m, k, v, gap = best
    return split_at(pair, m, k, v, read_weights(theta, pair, m)[k], u[k], gap)


def split_at(
    pair: RelayedPair,
    m: int,
    k: int,
    v: np.ndarray,
    w: np.ndarray,
    u: np.ndarray,
    gap: tuple[float, float, float],
) -> DataSplit:
    """Return the split in the middle of a gap (low, high, S) of map m for output k.

    Its location is the one that adds most to S, of those that have samples on both sides if any.
    """
    low, high, slope = gap
    eta = (low + high) / 2
    above = v > eta
    weight = abs(w * (above @ u))
    separated = above.any(axis=1) & ~above.all(axis=1)
    location = np.where(separated, weight, -1.0).argmax() if separated.any() else weight.argmax()
    above = above[location]
    return DataSplit(
        layer=pair.below,
        map=int(m),
        location=int(location),
        output=k,
        threshold=float(eta),
        above=int(above.sum()),
        below=int((~above).sum()),
        partial_sum=float(u[above].sum()),
        slope=float(slope),
        gap=(float(low), float(high)),
        lowest=float(v.min()),
    )


def slope_rounding(w: np.ndarray, u: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Return how far any S is from the exact one at most, (d_y,), if sums of u are `off` (d_y,)."""
    locations, samples = w.shape[1], u.shape[1]
    sizes = off + gamma(locations) * abs(u).sum(axis=1)
    return abs(w).sum(axis=1) * sizes / samples * (1 + 2 * gamma(locations + samples))


def largest_gaps(
    v: np.ndarray, w: np.ndarray, u: np.ndarray, off: np.ndarray, worth: float = 0.0
) -> Iterator[tuple[float, float, float] | None]:
    """Yield for each output the gap below v*, as (low, high, S), by Lemma 2, repaired, or None.

    v is (P, N), w (outputs, P), u (outputs, N); sums of u up to the output's `off` count as zero,
    and an |S| that they explain. A gap is passed over where |S| times half its width is no more
    than `worth`.
    """
    tie, tops = tie_of(v), v.max(axis=1)
    ranks, sort = np.argsort(-tops), cache(lambda j: np.argsort(-v[j]))

    @lru_cache(1)  # most outputs share v*
    def gap_below(high: float) -> tuple:
        """Return the next smaller value, and the entries above the middle of the gap."""
        low = np.max(v, where=v < high - tie, initial=-np.inf)
        return low, *np.nonzero(v > (low + high) / 2)

    def firsts(w_k: np.ndarray, u_k: np.ndarray, least: float) -> Iterator[float]:
        """Yield, largest first, the first value of each location whose sum of u is not zero."""
        found, last = set(), np.inf
        for j in ranks[w_k[ranks] != 0]:  # no value of a location is above its top
            while found and max(found) >= tops[j]:
                yield (last := max(found))
                found.remove(last)
            values, sums = v[j, sort(j)], np.cumsum(u_k[sort(j)])
            ends = np.append(values[:-1] - values[1:] > tie, True)
            first = values[ends & (abs(sums) > least)][:1]
            found.update(first[first < last])
        yield from sorted(found, reverse=True)

    for w_k, u_k, least, zero in zip(w, u, off, slope_rounding(w, u, off), strict=True):
        for high in firsts(w_k, u_k, least):  # v*, and the next if S vanishes
            low, j, i = gap_below(high)
            slope = float(w_k[j] @ u_k[i]) / v.shape[1]
            gains = abs(slope) * (high - low) / 2 > worth
            if low > -np.inf and abs(slope) > zero and gains:
                yield low, high, slope
                break
        else:
            yield None
