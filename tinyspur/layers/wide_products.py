"""Matrix products for convolutions: few rows, very many columns."""

from __future__ import annotations

import numpy as np

from ..engine.backend import Array, namespace

STRIP_BYTES = 3 * 2**20  # patches that a convolution holds at once: small enough for the caches
KEPT_BYTES = 4 * STRIP_BYTES  # the most memory that a thread keeps for each use
SMALL = 10**6  # multiplications up to which OpenBLAS takes its kernels for small matrices
SHORTEST = 256  # columns below which more and smaller products cost more than they save


def product(A: Array, B: Array, out: Array) -> None:
    """Write A @ B to `out`; A (m, k) has few entries, B (k, n) and `out` many columns."""
    parts = _parts(A, B)
    if parts == 1:
        namespace(B).matmul(A, B, out=out)
    else:
        np.matmul(A, _blocks(B, parts), out=_blocks(out, parts))


def outer(A: Array, B: Array) -> Array:
    """Return A @ B.T, the sum over many columns of A (m, n) and B (k, n)."""
    parts = _parts(A, B)
    if parts == 1:
        return A @ B.T
    return (_blocks(A, parts) @ _blocks(B, parts).swapaxes(1, 2)).sum(axis=0)


def _parts(A: Array, B: Array) -> int:
    """Return into how many products of equally many columns it is cheapest to split this one."""
    columns = B.shape[1]
    parts = -(-len(A) * len(B) * columns // SMALL)
    if namespace(B) is not np or not 1 < parts <= columns // SHORTEST:
        return 1
    return next((n for n in range(parts, 2 * parts) if columns % n == 0), 1)


def _blocks(X: Array, parts: int) -> Array:
    """Return the columns of X (rows, parts * size) as a view (parts, rows, size)."""
    return X.reshape(len(X), parts, -1).swapaxes(0, 1)
