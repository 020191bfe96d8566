"""Verified linear algebra: products of doubled precision, inverses, solutions, eigenvalues.

Inverses and Cholesky factors come from LAPACK and need not be accurate: what is proved is proved
from enclosures of products with them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from ..engine.backend import Array, namespace, to_numpy
from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.threads import in_order, one_thread
from .enclosures import QUIET, WIDER, Enclosure, exact, sound

REFINEMENTS = 2  # of a solution, with residuals of doubled precision
ATTEMPTS = 8  # at a shift below an eigenvalue, each one eight times as far
NEAR = 0.1  # share of an eigenvalue that is about known by which the first shift is below it
TOGETHER = 512  # rows that a core works on together
ZERO = -9999  # the exponent of 0
MODERATE = 400  # exponents up to which products of two powers of two are far from the largest


# Products of doubled precision


@np.errstate(**QUIET)
def doubled_product(A: Array, B: Array) -> Enclosure:
    """Return an enclosure of A @ B, A (m, n) and B (n, k), as if computed in about twice the bits.

    Its radius is u |A B| and 2^-96 n times sums of sizes in A's rows and B's columns. A and B are
    scaled by powers of two and split into slices of so few bits that all products of two slices are
    exact in float64 (Ozaki, Ogita, Oishi & Rump, Numerical Algorithms 59, 2012).
    """
    high, low, off = in_two(A, B)
    middle = high + low
    return sound(middle, (off + EPSILON / 2 * abs(middle)) * WIDER)


@np.errstate(**QUIET)
def doubled_residual(y: Array, A: Array, B: Array) -> Enclosure:
    """Return an enclosure of y - A @ B with the accuracy of `doubled_product`."""
    high, low, off = in_two(A, B)
    first, second = two_sum(y, -high)
    rest = second - low
    middle = first + rest
    off = off + EPSILON / 2 * abs(rest) + EPSILON / 2 * abs(middle)
    return sound(middle, off * WIDER)


def in_two(A: Array, B: Array) -> tuple[Array, Array, Array]:
    """Return two arrays whose sum is A @ B up to the third."""
    xp, n = namespace(A), A.shape[1]
    size_A, size_B = abs(A).max(axis=0), abs(B).max(axis=1)
    most_A, most_B = _exponents(size_A), _exponents(size_B)
    used = ((size_A > 0) & (size_B > 0)) | ~xp.isfinite(size_A + size_B)
    if xp is not np or not used.all():  # what is multiplied with zeros alone does not count
        A, B = xp.where(used, A, 0.0), xp.where(used[:, None], B, 0.0)
    inner = xp.where(used, (most_B - most_A) // 2, 0)  # balances the terms of sums
    rows, columns = _row_exponents(A, inner), _row_exponents(B.T, -inner)
    somewhere = (A != 0).any(axis=1)[:, None] & (B != 0).any(axis=0)
    A = _shifted(A, -rows, inner)  # no entry is larger than 1
    B = _shifted(B, -inner, -columns)
    bits = (55 - math.ceil(math.log2(n))) // 2  # n products of slices sum to at most 2^53 units
    (A1, A2, A3), (B1, B2, B3) = slices(A, bits), slices(B, bits)
    high, low = two_sum(A1 @ B1, A1 @ B2)
    size = abs(low)
    for part in (A2 @ B1, A2 @ B2):
        high, more = two_sum(high, part)
        low, size = low + more, size + abs(more)
    rest = (A1 + A2) @ B3 + A3 @ B
    low, size = low + rest, size + abs(rest)
    terms = abs(A).sum(axis=1)[:, None] * abs(B3).max(axis=0)
    terms = terms + abs(A3).max(axis=1)[:, None] * abs(B).sum(axis=0)
    off = 2 * gamma(n) * terms + 4 * EPSILON * size + 8 * n * SMALLEST
    back = xp.clip(rows[:, None] + columns, ZERO, -ZERO)
    off = (xp.ldexp(off, back) + 4 * SMALLEST) * somewhere
    return xp.ldexp(high, back), xp.ldexp(low, back), off


def _row_exponents(A: Array, shifts: Array) -> Array:
    """Return e with |A| 2^shifts < 2^e for each row of A (m, n)."""
    sizes, largest = abs(A), 2.0**MODERATE
    if namespace(A) is np and np.abs(shifts).max(initial=0) <= MODERATE:
        most = sizes.max(axis=1)
        if (((1 / largest <= most) & (most <= largest)) | (most == 0)).all():
            sizes *= np.ldexp(1.0, shifts)
            return _exponents(sizes.max(axis=1))
    return (_exponents(A) + shifts).max(axis=1)


def _shifted(A: Array, rows: Array, columns: Array) -> Array:
    """Return A times 2^rows and 2^columns, rounded once where that underflows."""
    xp = namespace(A)
    if xp is not np or np.abs(rows).max() + np.abs(columns).max() > 2 * MODERATE:
        return xp.ldexp(A, rows[:, None] + columns)
    powers = np.empty_like(A)  # in the same order
    np.multiply(np.ldexp(1.0, rows)[:, None], np.ldexp(1.0, columns), out=powers)
    return np.multiply(A, powers, out=powers)


def _exponents(A: Array) -> Array:
    """Return e with |A| < 2^e, entry by entry."""
    xp = namespace(A)
    return xp.where(A == 0, ZERO, xp.frexp(A)[1])


def slices(A: Array, bits: int) -> tuple[Array, Array, Array]:
    """Return A, |A| <= 1, as a sum of three, the first two multiples of 2^(1 - bits) and 2^(1 -
    2 bits) by at most 2^(bits - 1).
    """
    first, rest = _split(A, 1.5 * 2.0 ** (53 - bits))  # whose last place is 2^(1 - bits)
    return first, *_split(rest, 1.5 * 2.0 ** (53 - 2 * bits), out=rest)


def _split(A: Array, shift: float, out: Array | None = None) -> tuple[Array, Array]:
    """Return A rounded to multiples of the last place of a number, and what is left of it."""
    part = A + shift
    part -= shift
    return part, namespace(A).subtract(A, part, out=out)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


# Inverses and solutions


def enclose_inverse(A: Enclosure) -> Enclosure | None:
    """Return an enclosure of the inverses of all matrices in A (n, n), or None.

    With E = I - P A for a float inverse P and the largest row sum e < 1 of |E|, A^-1 - P is
    (I - E)^-1 E P, at most |E| |P| + e / (1 - e) times the largest of each column of |E| |P|.
    None where this does not show that all of them are regular.
    """
    P = _float_inverse(A)
    if P is None:
        return None
    E = exact(_identity(P)) - exact(P) @ A
    return _corrected(exact(P), E, E @ exact(P))


def solve(A: Enclosure, B: Enclosure) -> Enclosure | None:
    """Return an enclosure of A^-1 B, A (n, n) and B (n, k), for all matrices in A and B, or None.

    X + A^-1 (B - A X) for an X that is refined with residuals of doubled precision, and A^-1 as in
    `enclose_inverse`; None in the same cases.
    """
    P = _float_inverse(A)
    if P is None:
        return None
    E = exact(_identity(P)) - exact(P) @ A
    X = P @ B.middle
    for _ in range(REFINEMENTS):
        X = X + P @ doubled_residual(B.middle, A.middle, X).middle
    off_A, off_B = (Enclosure(0 * M.middle, M.radius) for M in (A, B))
    residual = doubled_residual(B.middle, A.middle, X) + off_B - off_A @ exact(X)
    return _corrected(exact(X), E, exact(P) @ residual)


def _corrected(X: Enclosure, E: Enclosure, step: Enclosure) -> Enclosure | None:
    """Return X + (I - E)^-1 step, at most |step| + e / (1 - e) times its largest in each column."""
    e = float(to_numpy(E.magnitude.sum(axis=1).max())) * (1 + 2 * gamma(len(E)))
    if not e < 1:
        return None
    more = step.magnitude.max(axis=0) * (e / (1 - e) * WIDER)
    found = X + step
    return sound(found.middle, (found.radius + more) * WIDER)


def _float_inverse(A: Enclosure) -> Array | None:
    """Return an approximate inverse of the middle (n, n), or None."""
    xp, middle = namespace(A.middle), to_numpy(A.middle)
    try:
        P = np.linalg.inv(middle)
    except np.linalg.LinAlgError:
        return None
    return xp.asarray(P) if np.isfinite(P).all() else None


def _identity(P: Array) -> Array:
    return namespace(P).eye(len(P))


# Eigenvalues of symmetric matrices


def positive_definite(A: Enclosure) -> bool:
    """Return whether all symmetric matrices in A (n, n) are proved to be positive definite.

    As they are, or with rows and columns scaled by powers of two, which doesn't change it, so that
    diagonal entries of very different sizes do no harm.
    """
    A = _on_host(A)
    scale = _scale(A)
    if scale is None or not np.isfinite(A.radius).all():
        return False
    for scaled in (A, A * scale[:, None] * scale):
        diagonal = np.diag(scaled.middle)
        shift = 1.01 * spectral_bound(scaled.radius) + 3 * gamma(len(A)) * float(diagonal.sum())
        rest = _off_factored(scaled, shift)
        if rest is not None and rest < shift:
            return True
    return False


def least_eigenvalue(A: Enclosure, near: float | None = None) -> float:
    """Return a proved lower bound of all eigenvalues of all symmetric matrices in A (n, n).

    A - s I = R^T R + D for a shift s and a float Cholesky factor R, hence no eigenvalue is below
    s - |D|_2, D enclosed (the residual in place of the bound of Rump, BIT 46, 2006). The shift is
    taken just below the least eigenvalue that LAPACK finds, or, where `near` is about that of a
    positive definite A, up to a tenth below it. -inf where nothing is shown.
    """
    A = _on_host(A)
    if not np.isfinite(A.radius).all():
        return -math.inf
    if near is None:
        eigenvalues = np.linalg.eigvalsh(A.middle)
        near, step = float(eigenvalues[0]), 4 * gamma(len(A)) * float(abs(eigenvalues).max())
    else:
        step = NEAR * near + EPSILON * float(np.trace(A.middle))
    for _ in range(ATTEMPTS):
        shift = near - step
        rest = _off_factored(A, shift)
        if rest is not None:
            return float((exact(np.array(shift)) - exact(np.array(rest))).low)
        step *= 8
    return -math.inf


def positive_bound(A: Enclosure) -> float:
    """Return a proved bound > 0 below all eigenvalues of all matrices in A (n, n), or 0.

    Where A as it is doesn't show one, that of S A S divided by the largest s^2, for the scaling S
    of `positive_definite`: x^T A x >= m |S^-1 x|^2 if no eigenvalue of S A S is below m > 0.
    """
    A = _on_host(A)
    found, scale = least_eigenvalue(A), _scale(A)
    if found > 0 or scale is None:
        return max(0.0, found)
    return max(0.0, least_eigenvalue(A * scale[:, None] * scale)) / float(scale.max()) ** 2


def _scale(A: Enclosure) -> np.ndarray | None:
    """Return powers of two that make the diagonal about 1, None unless it is positive."""
    diagonal = np.diag(A.middle)
    return np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2)) if (diagonal > 0).all() else None


@np.errstate(**QUIET)
def _off_factored(A: Enclosure, shift: float) -> float | None:
    """Return a bound of |A - shift I - R^T R|_2 for a float Cholesky factor R, None without one.

    The rounding errors of R^T R are bounded by Cauchy's inequality.
    """
    n, diagonal = len(A), np.arange(len(A))
    shifted = A.middle.copy()
    shifted[diagonal, diagonal] -= shift
    with one_thread():  # see `in_order`
        R, failed = scipy.linalg.lapack.dpotrf(shifted.T, overwrite_a=True)
    if failed or not np.isfinite(np.diag(R)).all():
        return None
    share, D = gamma(n + 2), np.empty((n, n))
    lengths = np.sqrt(np.einsum("ij,ij->j", R, R)) * (1 + 2 * share) + SMALLEST**0.5

    @np.errstate(**QUIET)
    def enter(start: int) -> None:
        rows, end = slice(start, start + TOGETHER), min(start + TOGETHER, n)
        some = A.middle[rows, start:] - R[:end, rows].T @ R[:end, start:]  # R is 0 below that
        some[diagonal[: end - start], diagonal[: end - start]] -= shift
        off = share * lengths[rows, None] * lengths[start:] + 4 * n * SMALLEST
        off = (abs(some) + A.radius[rows, start:] + off) * (1 + 8 * EPSILON)
        D[rows, start:], D[end:, rows] = off, off[:, end - start :].T

    for _ in in_order(enter, range(0, n, TOGETHER), np):
        pass
    D[diagonal, diagonal] += 2 * EPSILON * abs(shift)
    return spectral_bound(D)


def largest_eigenvalue(A: Enclosure) -> float:
    """Return a proved upper bound of all eigenvalues of all symmetric matrices in A (n, n)."""
    return -least_eigenvalue(-A)


def spectral_bound(D: np.ndarray) -> float:
    """Return an upper bound of the spectral norms of symmetric matrices of entries up to D.

    It is at most max_i (D v)_i / v_i for any v > 0 (Collatz and Wielandt): v is that of a few power
    iterations. D itself need not be symmetric.
    """
    v = np.ones(len(D))
    for _ in range(3):
        v = D @ v
        if not 0 < v.min() <= v.max() < math.inf:
            return float(D.sum(axis=1).max()) * (1 + 2 * gamma(len(D)))
        v = v / v.max() + 1e-3
    tiny = 1000 * len(D) * SMALLEST  # no v is below 1 / 1000
    return float((D @ v / v).max()) * (1 + 2 * gamma(len(D))) + tiny


def _on_host(A: Enclosure) -> Enclosure:
    return Enclosure(to_numpy(A.middle), to_numpy(A.radius))
