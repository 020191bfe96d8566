"""The gap between the values of a map where |S| is largest, without sorting all of them.

S(eta) = (1/N) sum_j w^j sum over {i: v_i^j > eta} of u_i changes only where eta passes a value. The
definition: sort all P N values, add up the contributions w^j u_i from the largest value down, which
gives N S in the gap below each value, and take the gap of the largest |S|.

`steepest_gaps` finds it with one pass over the values for each output. The values lie in bins of
equal width. The sums of the contributions in each bin give N S between the bins and bound it inside
them, so that only values in bins which may hold the largest |S| have to be sorted. Nothing is lost:
a bin is left out only where its bound is no larger than an |S| that was found, or than the noise.
What differs from the definition is the rounding of sums in another order.

The bound: through a bin N S runs from its start to its end, and up and down by no more than the sum
V of the sizes of the contributions; so it stays within (|start + end| + V) / 2. Entries that are
equal move together, and V has the size of their sum only: most bins of an image have one value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..engine.threads import in_order
from .split_terms import TIE, tie_of

BINS = 2**14  # of the values of a map; at most 2^14, since keys have 16 bits
BLOCK = 2**17  # values that are looked at together: they stay in the caches


def steepest_gaps(
    v: np.ndarray, w: np.ndarray, u: np.ndarray, noise: np.ndarray
) -> Iterator[tuple[float, float, float] | None]:
    """Yield for each output the gap where |S| is largest, as (low, high, S), or None.

    v is (P, N), w (outputs, P), u (outputs, N); an |S| up to the output's `noise` counts as zero.
    Values that are closer than `tie_of(v)` have no gap between them.
    """
    bins = _Bins(v)
    yield from in_order(lambda each: _steepest(bins, *each), zip(w, u, noise, strict=True), np)


def _steepest(
    bins: _Bins, w: np.ndarray, u: np.ndarray, noise: float
) -> tuple[float, float, float] | None:
    """Return the gap of one output."""
    N, sums = len(u), bins.sums(w, u)
    equal, total = sums[..., 0].sum(axis=0), sums.sum(axis=(0, 2))
    above = np.append(np.cumsum(total[:0:-1])[::-1], 0)  # N S between a bin and the next
    # N S starts at above + total, ends at above, and goes up and down by `way` in between.
    way = abs(equal) + abs(sums[..., 1]).sum(axis=0)
    bounds = (abs(2 * above + total) + way)[bins.occupied] / 2
    found, reached = None, N * noise
    # First the bins that may exceed all |S| between bins. Some of those may be ties and no gaps:
    # then the bins that may exceed what was found.
    for least in ((1 - TIE) * abs(above[bins.occupied]).max(), 0):
        chosen = bounds > max(least, reached)
        if not chosen.any():
            continue
        bounds[chosen] = 0
        values, slopes, gaps = _inside(bins, chosen, w, u, equal, above)
        n = np.where(gaps, abs(slopes), -1).argmax()
        if gaps[n] and abs(slopes[n]) > reached:
            reached = abs(slopes[n])
            found = values[n], values[n + 1], slopes[n] / N
    return found


def _inside(
    bins: _Bins,
    chosen: np.ndarray,
    w: np.ndarray,
    u: np.ndarray,
    equal: np.ndarray,
    above: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted values of the `chosen` occupied bins, N S above each, and which have a gap.

    The value after the last one of a bin is the least of the next bin: these are sorted too.
    """
    taken, needed = np.zeros((2, BINS), bool)
    taken[bins.occupied[chosen]] = True
    needed[bins.occupied[chosen]] = needed[bins.following[chosen]] = True
    places, N = bins.strays(needed), len(u)
    # The other entries of a bin have its value: one stands for all of them.
    values = np.append(np.take(bins.v, places), bins.value[needed])
    parts = np.append(w[places // N] * u[places % N], equal[needed])
    inside = np.append(np.take(bins.keys, places) // 2, np.flatnonzero(needed))
    order = np.argsort(values)
    values, parts, inside = values[order], parts[order], inside[order]
    rest = np.append(np.cumsum(parts[::-1])[::-1], 0)  # of the parts from here on
    bin_ends = np.searchsorted(inside, inside, "right")
    slopes = above[inside] + rest[1:] - rest[bin_ends]
    gaps = np.append(np.diff(values) > bins.tie, False) & taken[inside]
    return values, slopes, gaps


class _Bins:
    """The values v (P, N) of a map in bins of equal width between the least and the largest.

    `value` (BINS,) is that of one of the entries of the bin, NaN if there is none; entries that
    differ from it are strays. `keys` (P, N) hold twice the bin of each entry, plus 1 for a stray.
    `occupied` bins have entries, and `following` are the next ones that have.
    """

    def __init__(self, v: np.ndarray):
        ends = np.array([v.min(), v.max()])
        self.v, self.tie = v, tie_of(ends)
        self.blocks = _blocks(v)
        self.keys, self.value = self._sorted_in(*ends)
        self.occupied = np.flatnonzero(~np.isnan(self.value))
        self.following = np.append(self.occupied[1:], self.occupied[-1])
        self.with_strays = [rows for rows in self.blocks if (self.keys[rows] & 1).any()]

    def _sorted_in(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys and the value of each bin."""
        keys, value = np.empty(self.v.shape, np.uint16), np.full(BINS, np.nan)
        with np.errstate(over="ignore"):
            moderate = 1e-290 < high - low < 1e290
        scale = 1.0 if moderate else max(-low, high) or 1.0
        low, high = low / scale, high / scale
        for rows in self.blocks:
            entries = self.v[rows].ravel()
            scaled = entries if scale == 1 else entries / scale  # no overflow, the same order
            inside = ((scaled - low) * ((BINS - 1) / (high - low or 1.0))).astype(np.uint16)
            own = np.take(value, inside)
            new = np.flatnonzero(np.isnan(own))
            value[inside[new]] = entries[new]
            own[new] = value[inside[new]]
            keys[rows] = (2 * inside + (own != entries)).reshape(-1, self.v.shape[1])
        return keys, value

    def sums(self, w: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Return the sums of w^j u_i, (sign, bin, stray or not): shape (2, BINS, 2)."""
        sums = np.zeros(4 * BINS)
        for rows in self.blocks:
            parts = np.outer(w[rows], u)
            inside = self.keys[rows] + np.multiply(parts > 0, 2 * BINS, dtype=np.uint16)
            sums += np.bincount(inside.ravel().astype(np.intp), parts.ravel(), 4 * BINS)
        return sums.reshape(2, BINS, 2)

    def strays(self, bins: np.ndarray) -> np.ndarray:
        """Return the places in v, row by row, of the strays of `bins`, a mask (BINS,)."""
        wanted = np.outer(bins, [False, True]).ravel()  # by key
        places = [
            np.flatnonzero(np.take(wanted, self.keys[rows])) + self.v.shape[1] * rows.start
            for rows in self.with_strays
        ]
        return np.concatenate([np.empty(0, int), *places])


def _blocks(v: np.ndarray) -> list[slice]:
    """Return slices of rows of v that are looked at together."""
    height = max(1, BLOCK // v.shape[1])
    return [slice(j, j + height) for j in range(0, len(v), height)]
