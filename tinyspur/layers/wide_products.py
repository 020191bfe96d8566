"""Matrix products for convolutions: few rows, very many columns."""

from __future__ import annotations

import numpy as np

from ..engine.backend import Array, namespace

SMALL = 10**6  # multiplications up to which OpenBLAS takes its kernels for small matrices
SHORTEST = 256  # columns below which more and smaller products cost more than they save


def product(A: Array, B: Array, out: Array) -> None:
    """Write A @ B to `out`, for each of a stack of B (..., k, n) or for one; A is (m, k)."""
    parts = _parts(len(A), B)
    if parts > 1:
        B, out = _blocks(B, parts), _blocks(out, parts)
    namespace(B).matmul(A, B, out=out)


def outer(A: Array, B: Array) -> Array:
    """Return A @ B.T, the sum over many columns of A (..., m, n) and B (..., k, n), over stacks."""
    parts = _parts(A.shape[-2], B)
    if parts > 1:
        A, B = _blocks(A, parts), _blocks(B, parts)
    found = A @ B.swapaxes(-1, -2)
    return found.sum(axis=tuple(range(found.ndim - 2))) if found.ndim > 2 else found


def _parts(rows: int, B: Array) -> int:
    """Return into how many products of equally many columns it is cheapest to split this one."""
    columns = B.shape[-1]
    parts = -(-rows * B.shape[-2] * columns // SMALL)
    if namespace(B) is not np or not 1 < parts <= columns // SHORTEST:
        return 1
    return next((n for n in range(parts, 2 * parts) if columns % n == 0), 1)


def _blocks(X: Array, parts: int) -> Array:
    """Return the columns of X (..., rows, parts * size) as a view (..., parts, rows, size)."""
    return X.reshape(*X.shape[:-1], parts, -1).swapaxes(-3, -2)
