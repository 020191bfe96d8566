"""What filters read, as matrices that lie one over the other (Cho & Brand, *MEC*, ICML 2017).

The patches of a row of the output are those of the row before, moved: each row of the input comes
once for each tap along the other directions, and serves all rows of the output that read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    along, *others = taps
    C, (length, *_), N = len(images), grid.map_shape, images.shape[-1]
    s, step, widths = grid.stride[0], grid.dilation[0], grid.output_shape[1:]
    count, k = rows.stop - rows.start, along.stop - along.start
    start = rows.start * s + along.start * step - grid.before[0]
    spans = [grid.spans(axis, some) for axis, some in enumerate(others, 1)]
    if (
        k == 1
        and widths == grid.map_shape[1:]
        and all(some == [_all(n)] for some, n in zip(spans, widths, strict=True))
    ):
        here = on_map(length, start, s, count)
        if here.windows == slice(0, count):  # patches are what is there already
            return images[:, here.read].reshape(C, count, -1).swapaxes(0, 1)
    apart = lines_apart(grid, k)
    if step == 1 and s <= k:
        lines = [on_map(length, start, 1, (count - 1) * s + k)]
    else:
        lines = [on_map(length, start + n * step, s, count) for n in range(k)]
    shape = (sum(line.count for line in lines), *map(len, spans), C, *widths, N)
    found = scratch(shape, images, "patches")
    for n, line in enumerate(lines):
        for tap in np.ndindex(*map(len, spans)):
            place = found[(slice(n, None, len(lines)), *tap)]
            _put(place, images, [line, *_at(spans, tap)])
    row, columns = math.prod(map(len, spans)) * C, math.prod(widths) * N
    size = found.itemsize
    return namespace(images).lib.stride_tricks.as_strided(
        found, (count, k * row, columns), (apart * row * columns * size, columns * size, size)
    )


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
                places = _at(spans, tap)
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
    _put(kept, columns, [on_map(count, some.start - M + 1, 1, len(kept))])
    size = n * kept.itemsize
    return xp.lib.stride_tricks.as_strided(
        kept, (len(some), M * T, n), (T * size, size, kept.itemsize)
    )


def _at(spans: list[list[Span]], tap: tuple[int, ...]) -> list[Span]:
    """Return where a tap reads in each direction."""
    return [some[n] for some, n in zip(spans, tap, strict=True)]


def _all(n: int) -> Span:
    """Return where a tap reads that reads each of n entries, one after the other."""
    return Span(slice(0, n), slice(0, n, 1), n)


def _put(place: Array, images: Array, spans: list[Span]) -> None:
    """Write what windows read of images (C, *map_shape, N) to place (windows, C, *windows, N)."""
    for axis, span in enumerate(spans):
        before = (slice(None),) * (axis + (axis > 0))  # maps are after the first direction
        if not span.whole:
            place[(*before, slice(0, span.windows.start))] = 0
            place[(*before, slice(span.windows.stop, None))] = 0
    rows, *others = (span.windows for span in spans)
    read = images[(slice(None), *(span.read for span in spans))]
    place[(rows, slice(None), *others)] = read.swapaxes(0, 1)
