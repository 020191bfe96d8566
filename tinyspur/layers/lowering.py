"""What filters read, as matrices that lie one over the other (Cho & Brand, *MEC*, ICML 2017).

The patches of a row of the output are those of the row before, moved: each row of the input comes
once for each tap along the other directions, and serves all rows of the output that read it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.threads import scratch
from .grid import Grid, Span, on_map
from .wide_products import product


def lowered(grid: Grid, images: Array, taps: Sequence[slice], rows: slice) -> Array:
    """Return the patches of rows of the output, (rows, taps * C, columns); 0 in the padding.

    `images` is (C, *map_shape, N), taps are those in a box, columns those of one row of the output.
    The patches are valid until the same thread asks for the next ones, which overwrites them.
    """
    C, N, count = len(images), images.shape[-1], rows.stop - rows.start
    box = tuple((some.start, some.stop) for some in taps)
    plan = _plan(grid, box, rows.start, rows.stop)
    if plan.there is not None:
        return images[:, plan.there].reshape(C, count, -1).swapaxes(0, 1)
    window, widths = plan.shape[1:], grid.output_shape[1:]
    found = scratch((*plan.shape, C, *widths, N), images, "patches")
    for place in plan.padding:
        found[place] = 0
    for place, read in plan.copies:
        found[place] = images[read].swapaxes(0, 1)
    row, columns = math.prod(window) * C, math.prod(widths) * N
    size, k = found.itemsize, box[0][1] - box[0][0]
    return namespace(images).lib.stride_tricks.as_strided(
        found, (count, k * row, columns), (plan.apart * row * columns * size, columns * size, size)
    )


class _Plan(NamedTuple):
    """Where patches come from, for any images of a grid.

    `shape` is (lines, *taps along the others), and `apart` how many lines lie between the patches
    of two rows. Where the patches are rows of the images as they are, these are `there`.
    """

    shape: tuple[int, ...]
    apart: int
    there: slice | None
    padding: list[tuple]
    copies: list[tuple[tuple, tuple]]


@functools.lru_cache(maxsize=1024)
def _plan(grid: Grid, box: tuple[tuple[int, int], ...], top: int, bottom: int) -> _Plan:
    """Return the plan of the patches of the rows top..bottom - 1, for the taps in a box."""
    (low, high), *others = box
    count, k, s, step = bottom - top, high - low, grid.stride[0], grid.dilation[0]
    length, start = grid.map_shape[0], top * s + low * step - grid.before[0]
    spans = [grid.spans(axis, slice(*some)) for axis, some in enumerate(others, 1)]
    apart = lines_apart(grid, k)
    if step == 1 and s <= k:
        lines = [on_map(length, start, 1, (count - 1) * s + k)]
    else:
        lines = [on_map(length, start + n * step, s, count) for n in range(k)]
    shape = (sum(line.count for line in lines), *map(len, spans))
    widths = grid.output_shape[1:]
    if (
        k == 1
        and lines[0].whole
        and widths == grid.map_shape[1:]
        and all(some == [_all(n)] for some, n in zip(spans, widths, strict=True))
    ):
        return _Plan(shape, apart, lines[0].read, [], [])
    every, padding, copies = slice(None), [], []
    for n, line in enumerate(lines):
        first = range(shape[0])[n :: len(lines)]
        padding += [(_of(first, outside),) for outside in line.outside]
        for tap in np.ndindex(*shape[1:]):
            at = [some[j] for some, j in zip(spans, tap, strict=True)]
            if all(span.windows.start < span.windows.stop for span in (line, *at)):
                place = _of(first, line.windows), *tap, every, *(span.windows for span in at)
                copies.append((place, (every, line.read, *(span.read for span in at))))
    for axis, some in enumerate(spans):
        for j, span in enumerate(some):
            tap, before = [every] * len(spans), [every] * axis
            tap[axis] = j
            padding += [(every, *tap, every, *before, outside) for outside in span.outside]
    return _Plan(shape, apart, None, padding, copies)


def lines_apart(grid: Grid, k: int) -> int:
    """Return how many rows of the input lie between the patches of two rows of the output.

    Where these read k rows, one after the other, each row of the input comes once.
    """
    once = grid.dilation[0] == 1 and grid.stride[0] <= k
    return grid.stride[0] if once else k


def raised(grid: Grid, filters: Array, delta: Array, images: Array, rows: int) -> None:
    """Add to `images` (C, *map_shape, N) what the transposed convolution makes of `delta`.

    `delta` is (T, *output_shape, N), `filters` (T, C, *k). At most so many `rows` of images at a
    time are gathered from the rows of delta, for all taps along the others, and then scattered.
    """
    (_, C, _, *kernel), (count, *widths) = filters.shape, grid.output_shape
    columns = delta.reshape(len(delta), count, -1)
    spans = [grid.spans(axis, slice(0, n)) for axis, n in enumerate(kernel, 1)]
    for first, moved in _residues(grid, filters):
        M = moved.shape[-1] // len(delta)
        here = on_map(grid.map_shape[0], first, grid.stride[0], count + M - 1)
        for j in range(here.windows.start, here.windows.stop, rows):
            some = range(j, min(j + rows, here.windows.stop))
            share = scratch((len(some), len(moved), columns.shape[-1]), delta, "shares")
            product(moved, _rows_before(columns, some, M), share)
            share = share.reshape(len(some), *kernel, C, *widths, delta.shape[-1])
            start = first + j * grid.stride[0]
            lines = images[:, start : start + len(some) * grid.stride[0] : grid.stride[0]]
            for tap in np.ndindex(*kernel):
                places = [some[n] for some, n in zip(spans, tap, strict=True)]
                part = lines[(slice(None), slice(None), *(some.read for some in places))]
                every = (slice(None), *tap, slice(None), *(some.windows for some in places))
                part += share[every].swapaxes(0, 1)


def _residues(grid: Grid, filters: Array) -> Iterator[tuple[int, Array]]:
    """Yield rows of the input, every s-th from the first, that the same taps of filters read.

    With each the filters (taps * C, M * T): the j-th of the rows is read by rows j - M + 1 .. j of
    the output, through the taps that these have there, if any.
    """
    xp, (T, C, k, *kernel) = namespace(filters), filters.shape
    s, step = grid.stride[0], grid.dilation[0]
    for r in range(s):
        taps = [n for n in range(k) if n * step % s == r]
        if taps:
            M = taps[-1] * step // s + 1
            moved = xp.zeros((*kernel, C, M, T), dtype=filters.dtype)
            for n in taps:
                moved[..., M - 1 - n * step // s, :] = xp.moveaxis(
                    filters[:, :, n], (1, 0), (-2, -1)
                )
            yield r - grid.before[0], moved.reshape(-1, M * T)


def _rows_before(columns: Array, some: range, M: int) -> Array:
    """Return for each row the M rows up to it of columns (T, rows, n), as (rows, M * T, n)."""
    xp, (T, count, n) = namespace(columns), columns.shape
    if M == 1:
        return columns[:, some.start : some.stop].swapaxes(0, 1)
    kept = scratch((len(some) + M - 1, T, n), columns, "rows")
    here = on_map(count, some.start - M + 1, 1, len(kept))
    for outside in here.outside:
        kept[outside] = 0
    kept[here.windows] = columns[:, here.read].swapaxes(0, 1)
    size = n * kept.itemsize
    return xp.lib.stride_tricks.as_strided(
        kept, (len(some), M * T, n), (T * size, size, kept.itemsize)
    )


def _all(n: int) -> Span:
    """Return where a tap reads that reads each of n entries, one after the other."""
    return Span(slice(0, n), slice(0, n, 1), n)


def _of(numbers: range, some: slice) -> slice:
    """Return as a slice some of numbers that ascend."""
    found = numbers[some]
    return slice(found.start, found.stop, found.step)
