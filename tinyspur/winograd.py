"""Convolutions with filters of height 3 by two thirds of the multiplications.

Two rows of the output are four products of combinations of four rows of the input with
combinations of the three rows of a filter (Winograd 1980, F(2, 3)):

    y_0 = m_0 + m_1 + m_2,  y_1 = m_1 - m_2 - m_3,
    m_0 = g_0 (d_0 - d_2),  m_1 = (g_0 + g_1 + g_2)/2 (d_1 + d_2),
    m_3 = g_2 (d_1 - d_3),  m_2 = (g_0 - g_1 + g_2)/2 (d_2 - d_1).

Rounding is that of the largest of the four rows, not of each sum's own terms: what is exactly zero
by the direct way may not be here, so certificates, in double precision, don't use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .backend import Array, namespace
from .products import STRIP_BYTES, scratch


def convolution(
    filters: Array, padded: Array, delta: Array | None = None, multiply: bool = True
) -> tuple[Array | None, Array | None]:
    """Return y (T, H * ... * N), unless told not to, and for a delta the derivative of <delta, y>.

    y is the convolution of images (C, H, ..., N), H even, that are `padded` with zeros, with
    `filters` (T, C, 3, ...), which the derivative is in; delta has the shape of y.
    """
    xp, (T, C, _, *window) = namespace(padded), filters.shape
    pairs, width = _rows(padded, window)
    out = gradient = None
    if multiply:
        g = xp.moveaxis(filters, (2, 1), (0, -1)).reshape(3, T, -1)
        ends, middle = (g[0] + g[2]) / 2, g[1] / 2
        U = xp.stack([g[0], ends + middle, ends - middle, g[2]])
        out = xp.empty((T, pairs, 2, width), dtype=padded.dtype)
    if delta is not None:
        delta = delta.reshape(T, pairs, 2, width)
        G = xp.zeros((4, T, math.prod(window) * C), dtype=padded.dtype)
    for V, rows in _combinations(padded, window, T):
        shape = (4, T, rows.stop - rows.start, width)
        if multiply:
            m = scratch(shape, padded, "products")
            xp.matmul(U, V, out=m.reshape(4, T, -1))
            upper, lower = out[:, rows, 0], out[:, rows, 1]
            xp.add(m[0], m[1], out=upper)
            upper += m[2]
            xp.subtract(m[1], m[2], out=lower)
            lower -= m[3]
        if delta is not None:
            d = scratch(shape, padded, "products")
            upper, lower = delta[:, rows, 0], delta[:, rows, 1]
            d[0], d[3] = upper, lower  # the latter with the opposite sign
            xp.add(upper, lower, out=d[1])
            xp.subtract(upper, lower, out=d[2])
            G += d.reshape(4, T, -1) @ V.swapaxes(1, 2)
    if delta is not None:
        ends, middle = (G[1] + G[2]) / 2, (G[1] - G[2]) / 2
        g = xp.stack([G[0] + ends, middle, ends - G[3]])
        gradient = xp.moveaxis(g.reshape(3, T, *window, C), (0, -1), (2, 1))
    return out.reshape(T, -1) if multiply else None, gradient


def _rows(padded: Array, window: tuple[int, ...]) -> tuple[int, int]:
    """Return the pairs of rows of the output, and the columns of each row."""
    size = (n - k + 1 for n, k in zip(padded.shape[2:-1], window, strict=True))
    return padded.shape[1] // 2 - 1, math.prod(size) * padded.shape[-1]


def _combinations(padded: Array, window: tuple, maps: int) -> Iterator[tuple[Array, slice]]:
    """Yield the combinations (4, taps * C, columns) of rows for some pairs of rows, and these.

    The next ones, in the same thread, overwrite them.
    """
    xp, step = namespace(padded), padded.strides
    pairs, width = _rows(padded, window)
    size = tuple(n - k + 1 for n, k in zip(padded.shape[2:-1], window, strict=True))
    shape = (*window, len(padded), pairs, *size, padded.shape[-1])
    d = [
        xp.lib.stride_tricks.as_strided(
            padded[:, row:], shape, (*step[2:-1], step[0], 2 * step[1], *step[2:])
        )
        for row in range(4)
    ]
    taps = math.prod(window) * len(padded)
    height = max(1, STRIP_BYTES // (4 * (taps + maps) * width * padded.itemsize))
    for top in range(0, pairs, height):
        rows = slice(top, min(pairs, top + height))
        d0, d1, d2, d3 = (x[(slice(None),) * (len(window) + 1) + (rows,)] for x in d)
        V = scratch((4, *d0.shape), padded, "patches")
        xp.subtract(d0, d2, out=V[0])
        xp.add(d1, d2, out=V[1])
        xp.subtract(d2, d1, out=V[2])
        xp.subtract(d1, d3, out=V[3])
        yield V.reshape(4, taps, -1), rows
