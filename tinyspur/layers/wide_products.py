"""Matrix products for convolutions: few rows, very many columns."""

from __future__ import annotations

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.threads import blas, scratch

SMALL = 10**6  # multiplications up to which OpenBLAS takes its AVX-512 kernels for small matrices
SHORTEST = {8: 256, 4: 64}  # columns, by the bytes of a number: fewer cost more than they save
FEW = 8  # rows below which OpenBLAS without AVX-512 sums columns faster row by row
BLOCK = 2**19  # bytes of columns that all of these rows meet while they are in the caches


def product(A: Array, B: Array, out: Array) -> None:
    """Write A @ B to `out`, for each of a stack of B (..., k, n) or for one; A is (m, k)."""
    B, out = _split(_parts(len(A), B), B, out)
    namespace(B).matmul(A, B, out=out)


def padded(A: Array, B: Array) -> Array:
    """Return A (m, k) for products with B, with rows of zeros below where that costs no time.

    OpenBLAS's kernels for AVX2 take as long for 3 rows as for 4, and in float64 longer for 6 rows
    than for 8.
    """
    rows, double = len(A), B.dtype == np.float64
    if (rows % 4 == 3 or (double and rows % 8 == 6)) and _without_avx512(B):
        return np.pad(A, ((0, -rows % 4), (0, 0)))
    return A


def add_outer(A: Array, B: Array, total: Array) -> None:
    """Add A @ B.T to `total` (m, k), for all of a stack of A (..., m, n) and of B (..., k, n)."""
    vectors = A.shape[-2] < FEW and _without_avx512(B)
    A, B = _split(_parts(A.shape[-2], B, vectors), A, B)
    found = scratch((*A.shape[:-1], B.shape[-2]), B, "products")
    if vectors:
        np.matmul(B[..., None, :, :], A[..., None], out=found[..., None])
    else:
        namespace(B).matmul(A, B.swapaxes(-1, -2), out=found)
    one = found.size == total.size
    total += found.reshape(total.shape) if one else found.sum(axis=tuple(range(found.ndim - 2)))


def _without_avx512(B: Array) -> bool:
    """Return whether products are on the host, by OpenBLAS's kernels for AVX2."""
    return namespace(B) is np and blas().get("architecture") in ("Haswell", "Zen")


def _parts(rows: int, B: Array, vectors: bool = False) -> int:
    """Return into how many products of equally many columns it is cheapest to split this one."""
    k, columns = B.shape[-2:]
    if vectors:
        parts = -(-k * columns * B.itemsize // BLOCK)
    else:
        parts = 1 if _without_avx512(B) else -(-rows * k * columns // SMALL)
    if namespace(B) is not np or not 1 < parts <= columns // SHORTEST[B.itemsize]:
        return 1
    return next((n for n in range(parts, 2 * parts) if columns % n == 0), 1)


def _split(parts: int, *matrices: Array) -> tuple[Array, ...]:
    """Return the columns of each X (..., rows, parts * size) as a view (..., parts, rows, size)."""
    if parts == 1:
        return matrices
    return tuple(X.reshape(*X.shape[:-1], parts, -1).swapaxes(-3, -2) for X in matrices)
