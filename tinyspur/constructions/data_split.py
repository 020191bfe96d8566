"""[CNN] Lemmas 2 and 3: a threshold that separates samples somewhere in a map.

Layers count from 1, as in the paper; maps, locations, outputs and samples from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from ..certificates.rounding import output_rounding
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace, to_numpy
from ..engine.losses import Loss
from ..engine.parameters import Parameters, check_points
from ..errors import AssumptionError
from .towers import RelayedPair

SPLITS = ("steepest", "largest")
TIE = 1e-9  # values closer than this share of their range count as equal
HALVINGS = 12  # of a perturbation of the read weights that raises R more than it lets it fall
BINS, BLOCK = 2**14, 2**17  # of the values of a map (at most 2^14); values looked at together
VANISHES = 1e-12  # sums of u below this share of sum |u| count as zero


@dataclass(frozen=True)
class DataSplit:
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


def split_data(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    rule: str = "steepest",
    map: int | None = None,
    output: int | None = None,
) -> DataSplit:
    """Return a threshold eta with S(eta) != 0 strictly inside a gap of the values v of a map.

    ``steepest`` takes the gap where |S| is largest; ``largest`` follows [CNN] Lemma 2, repaired:
    midway between v*, the largest over all locations of the first value whose samples' sum of u is
    not zero, and the next smaller value of the map. All relayed maps and all outputs are tried
    unless one is given; an S that the rounding of the outputs explains counts as zero. Raises
    ValueError for a map, an output or a rule that does not exist, AssumptionError where S vanishes
    throughout.
    """
    check_points(pair.tower.net, theta)
    outputs = theta.net.shapes[-1][0]
    if rule not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {rule!r}")
    if output is not None and not 0 <= output < outputs:
        raise ValueError(f"output unit: expected 0..{outputs - 1}, got {output}")
    maps = pair.relayed if map is None else (map,)
    chosen = list(range(outputs)) if output is None else [output]
    theta = theta.to(namespace(theta.vector), np.float64)
    u = output_derivatives(theta, data, loss)
    errors = output_rounding(theta, data.x).sum(axis=1)
    best = None
    for m in maps:
        w, v = read_weights(theta, pair, m), map_values(theta, pair, m, data.x)
        noise = abs(w).sum(axis=1) * np.maximum(errors, VANISHES * abs(u).sum(axis=1)) / len(data)
        search = _steepest if rule == "steepest" else _largest
        gaps = search(v, w[chosen], u[chosen], noise[chosen])
        for k, gap in zip(chosen, gaps, strict=True):
            if gap and (best is None or gap[0] > best[0]):
                best = (gap[0], m, k, v, *gap[1:])
    if best is None:
        raise AssumptionError(
            "no data split: S(eta) vanishes, up to rounding, for every threshold of the maps "
            f"{tuple(maps)} and {'every output' if output is None else f'output {output}'}"
        )
    _, m, k, v, low, high, slope = best
    eta = (low + high) / 2
    above = v > eta
    weight = abs(read_weights(theta, pair, m)[k] * (above @ u[k]))
    separated = above.any(axis=1) & ~above.all(axis=1)
    location = np.where(separated, weight, -1.0).argmax() if separated.any() else weight.argmax()
    above = above[location]
    return DataSplit(
        layer=pair.below,
        map=m,
        location=int(location),
        output=k,
        threshold=float(eta),
        above=int(above.sum()),
        below=int((~above).sum()),
        partial_sum=float(u[k][above].sum()),
        slope=float(slope),
        gap=(float(low), float(high)),
        lowest=float(v.min()),
    )


def perturb_read_weights(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    rule: str = "steepest",
    output: int | None = None,
) -> Iterator[tuple[Parameters, DataSplit]]:
    """Yield points with W^L(k, .) moved by less and less, and a split of each ([CNN] Lemma 11).

    For a theta where S(eta) vanishes throughout although sums of u do not. Of all maps, outputs and
    locations j the one is taken whose sum of u over {v^j > eta}, times the gap around eta, is
    largest; its weights w move by t along the sums of all locations at that eta, so that
    |S(eta)| = t |sums|. R rises by O(t^2), since the dense layer is optimal at theta, and falls by
    t |sums| times half the gap, to first order, along the bias: t starts where the difference is
    largest and is halved from there. Raises AssumptionError where the sums of u vanish too.
    """
    check_points(pair.tower.net, theta)
    net, xp = theta.net, namespace(theta.vector)
    u = output_derivatives(theta, data, loss).astype(np.float64)
    zero = np.maximum(output_rounding(theta, data.x).sum(axis=1), VANISHES * abs(u).sum(axis=1))
    best = None
    for m in pair.relayed:
        v = map_values(theta, pair, m, data.x)
        values, order, tie = np.unique(v), np.argsort(-v, axis=1), _tie(v)
        ranked = np.take_along_axis(v, order, axis=1)
        below = values[np.maximum(np.searchsorted(values, ranked - tie) - 1, 0)]
        gaps = np.where(ranked - below > tie, ranked - below, 0)
        ends = np.hstack([ranked[:, :-1] - ranked[:, 1:] > tie, np.ones((len(v), 1), bool)])
        for k in range(len(u)) if output is None else [output]:
            sums = np.where(ends, abs(np.cumsum(u[k][order], axis=1)), 0)
            gain = np.where(sums > zero[k], sums * gaps, 0)
            j, n = np.unravel_index(gain.argmax(), gain.shape)
            if gain[j, n] > 0 and (best is None or gain[j, n] > best[0]):
                best = gain[j, n], m, k, (ranked[j, n] + below[j, n]) / 2, gaps[j, n], v
    if best is None:
        raise AssumptionError(
            "no data split: S(eta) and the sums of u vanish, up to rounding, for every threshold "
            f"of the maps {pair.relayed} and "
            f"{'every output' if output is None else f'output {output}'}"
        )
    _, m, k, eta, gap, v = best
    sums = (v > eta) @ u[k] / len(data)
    move, tower = net.zeros(), pair.tower
    along = (tower.matrix @ sums if tower.pooled else sums) / np.linalg.norm(sums)
    move.W[pair.dense].weights[k, tower.columns(pair.relay_of(m))] = along
    move.b[pair.dense][k] = -along @ pair.constants(pair.kappa_lower, pair.kappa_upper)
    direction = xp.asarray(move.vector, dtype=theta.vector.dtype)
    change = net.forward(Parameters(net, theta.vector + direction), data.x)
    change = to_numpy(change - net.forward(theta, data.x)).T.astype(np.float64)
    o = to_numpy(net.forward(theta, data.x)).T.astype(np.float64)
    bend = float((change * loss.curvature(o, data.y.T, change)).sum()) / len(data)
    slope = abs(float(tower.seen(along) @ sums))
    t = slope * gap / 2 / bend if bend > 0 else 1.0
    for _ in range(HALVINGS):
        start = Parameters(net, theta.vector + t * direction)
        yield start, split_data(start, pair, data, loss, rule, m, k)
        t /= 2


def output_derivatives(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return u = dl/do, shape (d_y, N), on the host."""
    o = theta.net.forward(theta, data.x).T
    return to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss)))


def map_values(theta: Parameters, pair: RelayedPair, m: int, x: np.ndarray) -> np.ndarray:
    """Return v_i^j = (W^{L-3} o^{L-4,i})(m, j), shape (P, N), on the host ([CNN] (6)).

    Below a pair that reads a pooling or the input there is no bias and no activation to come:
    there v is the map itself.
    """
    check_points(pair.tower.net, theta)
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
    columns = pair.tower.columns(pair.relay_of(m))
    return pair.tower.seen(
        to_numpy(theta.W[pair.dense].weights[: theta.net.shapes[-1][0], columns])
    )


def _tie(v: np.ndarray) -> float:
    """Return how close values of a map count as equal."""
    low, high = float(v.min()), float(v.max())
    return max(TIE * (high - low), 8 * np.finfo(float).eps * max(-low, high))


def _steepest(
    v: np.ndarray, w: np.ndarray, u: np.ndarray, noise: np.ndarray
) -> Iterator[tuple | None]:
    """Yield for each output ((|S|,), low, high, S) of the gap where |S| is largest, or None.

    v is (P, N), w (outputs, P), u (outputs, N); an |S| up to the output's `noise` counts as zero.
    Sums over bins of values bound |S|; only values in bins that may hold the largest are sorted.
    """
    ends, N = np.array([v.min(), v.max()]), v.shape[1]
    keys, value = _binned(v, *ends)
    occupied, tie = np.flatnonzero(~np.isnan(value)), _tie(ends)
    following = np.append(occupied[1:], occupied[-1])
    with_odd = [rows for rows in _blocks(v) if (keys[rows] & 1).any()]
    for w_k, u_k, zero in zip(w, u, noise, strict=True):
        sums = np.zeros(4 * BINS)  # of contributions, by sign, bin, and odd or not
        for rows in _blocks(v):
            parts = np.outer(w_k[rows], u_k)
            inside = keys[rows] + np.multiply(parts > 0, 2 * BINS, dtype=np.uint16)
            sums += np.bincount(inside.ravel().astype(np.intp), parts.ravel(), 4 * BINS)
        sums = sums.reshape(2, BINS, 2)
        usual, total = sums[..., 0].sum(axis=0), sums.sum(axis=(0, 2))
        above = np.append(np.cumsum(total[:0:-1])[::-1], 0)
        # Through a bin N S goes from above + total to above; `way` is what it goes up and down.
        way = abs(usual) + abs(sums[..., 1]).sum(axis=0)
        bounds = (abs(2 * above + total) + way)[occupied] / 2
        best, reached = None, N * zero
        # Bins that may exceed all |S| between bins; then, as those may be ties, what was found.
        for least in ((1 - TIE) * abs(above[occupied]).max(), 0):
            some = bounds > max(least, reached)
            if not some.any():
                continue
            bounds[some] = 0
            needed, taken = np.zeros((2, BINS), bool)
            taken[occupied[some]] = needed[occupied[some]] = needed[following[some]] = True
            wanted = np.outer(needed, [False, True]).ravel()
            at = [np.flatnonzero(np.take(wanted, keys[b])) + N * b.start for b in with_odd]
            at = np.concatenate([np.empty(0, int), *at])
            # Entries that are not odd have their bin's value: one stands for all of them.
            parts = np.append(w_k[at // N] * u_k[at % N], usual[needed])
            inside = np.append(np.take(keys, at) // 2, np.flatnonzero(needed))
            values = np.append(np.take(v, at), value[needed])
            up = np.argsort(values)
            values, inside, parts = values[up], inside[up], parts[up]
            rest = np.append(np.cumsum(parts[::-1])[::-1], 0)  # from here on
            slopes = above[inside] + rest[1:] - rest[np.searchsorted(inside, inside, "right")]
            gaps = np.append(np.diff(values) > tie, False) & taken[inside]
            n = np.where(gaps, abs(slopes), -1).argmax()
            if gaps[n] and abs(slopes[n]) > reached:
                reached = abs(slopes[n])
                best = (reached / N,), values[n], values[n + 1], slopes[n] / N
        yield best


def _blocks(v: np.ndarray) -> list[slice]:
    """Return slices of rows of v that are looked at together: they stay in the caches."""
    height = max(1, BLOCK // v.shape[1])
    return [slice(j, j + height) for j in range(0, len(v), height)]


def _binned(v: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return twice the bin of each entry of v, odd if it is not the value of its bin; the values.

    The bins divide low to high; each has the value of one of its entries, or NaN.
    """
    keys, value = np.empty(v.shape, np.uint16), np.full(BINS, np.nan)
    with np.errstate(over="ignore"):
        scale = 1.0 if 1e-290 < high - low < 1e290 else max(-low, high) or 1.0
    low, high = low / scale, high / scale
    for rows in _blocks(v):
        entries = v[rows].ravel()
        size = entries if scale == 1 else entries / scale  # of moderate size, in the same order
        inside = ((size - low) * ((BINS - 1) / (high - low or 1.0))).astype(np.uint16)
        own = np.take(value, inside)
        new = np.flatnonzero(np.isnan(own))
        value[inside[new]] = entries[new]
        own[new] = value[inside[new]]
        keys[rows] = (2 * inside + (own != entries)).reshape(-1, v.shape[1])
    return keys, value


def _largest(
    v: np.ndarray, w: np.ndarray, u: np.ndarray, noise: np.ndarray
) -> Iterator[tuple | None]:
    """Yield for each output ((eta, |S|), low, high, S) by Lemma 2, repaired, or None.

    v is (P, N), w (outputs, P), u (outputs, N); an |S| up to the output's `noise` counts as zero.
    """
    tie, tops = _tie(v), v.max(axis=1)
    ranks, sort = np.argsort(-tops), cache(lambda j: np.argsort(-v[j]))

    @lru_cache(1)  # most outputs share v*
    def gap(high: float) -> tuple:
        """Return the next smaller value, the threshold between, the entries above it."""
        low = np.max(v, where=v < high - tie, initial=-np.inf)
        return low, (low + high) / 2, *np.nonzero(v > (low + high) / 2)

    def firsts(w_k: np.ndarray, u_k: np.ndarray) -> Iterator[float]:
        """Yield, largest first, the first value of each location whose sum of u is not zero."""
        found, last, least = set(), np.inf, VANISHES * abs(u_k).sum()
        for j in ranks[w_k[ranks] != 0]:  # no value of a location is above its top
            while found and max(found) >= tops[j]:
                yield (last := max(found))
                found.remove(last)
            values, sums = v[j, sort(j)], np.cumsum(u_k[sort(j)])
            ends = np.append(values[:-1] - values[1:] > tie, True)
            first = values[ends & (abs(sums) > least)][:1]
            found.update(first[first < last])
        yield from sorted(found, reverse=True)

    for w_k, u_k, zero in zip(w, u, noise, strict=True):
        for high in firsts(w_k, u_k):  # v*, and the next if S vanishes
            low, eta, j, i = gap(high)
            slope = float(w_k[j] @ u_k[i]) / v.shape[1]
            if low > -np.inf and abs(slope) > zero:
                yield (eta, abs(slope)), low, high, slope
                break
        else:
            yield None


@dataclass(frozen=True)
class OrderedGroups:
    """The groups of equal v at every location of a map, largest first, and their sums of u.

    For location j, ``values[j]``, ``sizes[j]`` and ``sums[j]`` hold one entry for each group
    ([CNN] section 3.2.1): the value v, the number of samples, the sum of u over them. A sum below
    ``vanishing`` counts as zero. It prints as a table with a line for each location.
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
    outputs = theta.net.shapes[-1][0]
    if not 0 <= output < outputs:
        raise ValueError(f"output unit: expected 0..{outputs - 1}, got {output}")
    pair.relay_of(map)
    v, u = map_values(theta, pair, map, data.x), output_derivatives(theta, data, loss)[output]
    order = np.argsort(-v, axis=1, kind="stable")
    ranked = np.take_along_axis(v, order, axis=1)
    tie = _tie(v)
    values, sizes, sums = [], [], []
    for row, samples in zip(ranked, order, strict=True):
        starts = np.concatenate([[0], np.flatnonzero(row[:-1] - row[1:] > tie) + 1])
        values.append(row[starts])
        sizes.append(np.diff(np.append(starts, len(row))))
        sums.append(np.add.reduceat(u[samples], starts))
    errors = float(output_rounding(theta, data.x)[output].sum())
    vanishing = max(errors, VANISHES * float(abs(u).sum()))
    return OrderedGroups(
        pair.below, map, output, tuple(values), tuple(sizes), tuple(sums), vanishing
    )
