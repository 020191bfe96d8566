"""Exact linear algebra: matrices of fractions, solved with python-flint, or by Bareiss without it.

A matrix of fractions is one of integers over one denominator. Integers are int64 where they fit,
and Python's own otherwise. python-flint is the extra `exact`; without it everything works that is
small.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..errors import AssumptionError

try:
    import flint
except ImportError:
    flint = None

PRIME = 2**31 - 1  # modulo which rows are told to be independent: products fit into int64
FITS = 2**62
WORK = {True: 2.5e10, False: 2e8}  # unknowns^3 times bits, with flint and without: a minute or less
FEW = 20_000  # products up to which Python's own are as fast as flint's


class Rational(NamedTuple):
    """The fractions n / d: an array of integers n, int64 or Python's, and one denominator d > 0."""

    n: np.ndarray
    d: int

    def __getitem__(self, key: object) -> Rational:
        return Rational(self.n[key], self.d)

    @property
    def T(self) -> Rational:
        return Rational(self.n.T, self.d)

    def __matmul__(self, other: Rational) -> Rational:
        return Rational(product(self.n, other.n), self.d * other.d)

    def __add__(self, other: Rational) -> Rational:
        d = math.lcm(self.d, other.d)
        return Rational(added(times(self.n, d // self.d), times(other.n, d // other.d)), d)

    def __sub__(self, other: Rational) -> Rational:
        return self + Rational(times(other.n, -1), other.d)

    def over(self, d: int) -> np.ndarray:
        """Return the integers over the denominator `d`, a multiple of the own one."""
        return times(self.n, d // self.d)

    def reduced(self) -> Rational:
        """Return the same fractions with the least common denominator."""
        divisor = math.gcd(self.d, *map(int, self.n.flat))
        return self if divisor == 1 else Rational(self.n // divisor, self.d // divisor)

    def is_zero(self) -> bool:
        return not (self.n != 0).any()

    def largest(self) -> Fraction:
        """Return the largest size of an entry."""
        return Fraction(max(map(abs, map(int, self.n.flat)), default=0), self.d)

    def fractions(self) -> np.ndarray:
        """Return an array of Fraction."""
        found = np.empty(self.n.shape, dtype=object)
        found.ravel()[:] = [Fraction(int(n), self.d) for n in self.n.flat]
        return found


def rational(values: np.ndarray) -> Rational:
    """Return floats as the fractions that they are; the denominator is a power of 2.

    >>> rational(np.array([0.5, -3.0, 0.375]))
    Rational(n=array([  4, -24,   3]), d=8)
    """
    share, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    n = np.ldexp(share, 53).astype(np.int64)
    zeros = np.frexp((n & -n).astype(np.float64))[1] - 1  # at the end, in binary
    zeros = np.where(n == 0, 0, zeros)
    n, shift = n >> zeros, exponent - 53 + zeros
    q = -min(0, int(np.min(shift, where=n != 0, initial=0)))
    shift = np.where(n == 0, 0, shift + q)
    if int(np.max(exponent, where=n != 0, initial=0)) + q <= 61:
        return Rational(n << shift, 2**q)
    found = np.empty(n.shape, dtype=object)
    found.ravel()[:] = [int(m) << int(s) for m, s in zip(n.flat, shift.flat, strict=True)]
    return Rational(found, 2**q)


def from_fractions(values: Sequence[Fraction]) -> Rational:
    """Return a vector of fractions."""
    d = math.lcm(*(value.denominator for value in values))
    n = [value.numerator * (d // value.denominator) for value in values]
    fits = all(abs(value) < FITS for value in n)
    return Rational(np.array(n, dtype=np.int64 if fits else object), d)


def joined(parts: list[Rational], axis: int) -> Rational:
    """Return several matrices as one, side by side (axis 1) or on top of each other (axis 0)."""
    d = math.lcm(*(part.d for part in parts))
    return Rational(np.concatenate([part.over(d) for part in parts], axis=axis), d)


def size_of(n: np.ndarray) -> int:
    """Return the largest size of the integers."""
    if n.dtype == object:
        return max(map(abs, n.flat), default=0)
    return max(int(n.max(initial=0)), -int(n.min(initial=0)))


def times(n: np.ndarray, factor: int) -> np.ndarray:
    """Return the integers times another one."""
    if factor == 1:
        return n
    if n.dtype != object and max(1, size_of(n)) * abs(factor) < FITS:
        return n * factor
    return n.astype(object) * factor


def added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the sum of integers, each int64 below 2^62 or Python's."""
    if object in (a.dtype, b.dtype) or size_of(a) + size_of(b) >= FITS:
        return a.astype(object) + b.astype(object)
    return a + b


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of two matrices of integers, exactly."""
    if object not in (a.dtype, b.dtype):
        bound = size_of(a) * size_of(b) * a.shape[1]
        if bound < 2**53:  # in float64 no product and no sum is rounded
            return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
        if bound < FITS:
            return a @ b
    if flint is not None and a.shape[0] * b.size > FEW:
        return _numbers(_matrix(a) * _matrix(b))
    return a.astype(object) @ b.astype(object)


def _matrix(n: np.ndarray) -> flint.fmpz_mat:
    return flint.fmpz_mat(n.tolist())


def _numbers(matrix: flint.fmpz_mat) -> np.ndarray:
    found = np.empty((matrix.nrows(), matrix.ncols()), dtype=object)
    found.ravel()[:] = list(map(int, matrix.entries()))
    return found


def sum_of_products(a: np.ndarray, b: np.ndarray) -> int:
    """Return sum_i a_i b_i of integers."""
    if flint is None:
        return sum(int(m) * int(n) for m, n in zip(a.flat, b.flat, strict=True))
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return int(sum((flint.fmpz(m) * n for m, n in pairs), flint.fmpz(0)))


def check_work(unknowns: int, size: int) -> None:
    """Raise AssumptionError for a system that would take longer than a minute or so.

    `size` is that of its largest coefficient.
    """
    bits = max(16, size.bit_length())
    if unknowns**3 * bits > WORK[flint is not None]:
        most = int((WORK[flint is not None] / bits) ** (1 / 3))
        more = "" if flint is not None else " without python-flint, the extra exact"
        raise AssumptionError(
            f"exact: expected at most {most} unknowns with coefficients of {bits} bits{more}, "
            f"got {unknowns}; of fewer bits, as with pixels k/256 in place of k/255, more will do"
        )


def solve(A: np.ndarray, B: np.ndarray) -> Rational | None:
    """Return X with A X = B for integers A (k, k) and B (k, m), or None where A is singular.

    Raises AssumptionError for a system that is too large.
    """
    check_work(len(A), size_of(A))
    if flint is None:
        return bareiss(A, B)
    try:
        X = flint.fmpq_mat(_matrix(A)).solve(flint.fmpq_mat(_matrix(B)), algorithm="dixon")
    except ZeroDivisionError:
        return None
    n, d = X.numer_denom()
    return Rational(_numbers(n), int(d))


def bareiss(A: np.ndarray, B: np.ndarray) -> Rational | None:
    """Return X with A X = B by elimination without fractions, or None where A is singular.

    E. H. Bareiss, Sylvester's identity and multistep integer-preserving Gaussian elimination,
    Math. Comp. 22 (1968). All divisions are exact; the last pivot is the determinant.
    """
    k, M = len(A), np.hstack([A, B]).astype(object)
    before = 1
    for j in range(k):
        pivot = next((i for i in range(j, k) if M[i, j]), None)
        if pivot is None:
            return None
        M[[j, pivot]] = M[[pivot, j]]
        M[j + 1 :, j + 1 :] *= M[j, j]
        M[j + 1 :, j + 1 :] -= np.multiply.outer(M[j + 1 :, j], M[j, j + 1 :])
        M[j + 1 :, j + 1 :] //= before
        before = M[j, j]
    X = M[:, k:] * before
    for j in reversed(range(k)):
        X[j] = (X[j] - M[j, j + 1 : k] @ X[j + 1 :]) // M[j, j]
    return Rational(X, before) if before > 0 else Rational(-X, -before)


def independent_rows(A: np.ndarray) -> np.ndarray:
    """Return which rows of integers (m, n) are independent of those above them.

    Modulo a prime: those returned are independent. That the others depend on them is almost sure.
    """
    A = (A % PRIME).astype(np.int64)
    columns, chosen = A.T.copy(), []
    rows = np.flatnonzero(columns.any(axis=0))
    columns = columns[:, rows]
    for j, row in enumerate(rows):
        below = columns[len(chosen) :, j]
        pivot = int((below != 0).argmax()) if below.size else 0
        if not below.size or not below[pivot]:
            continue
        top = len(chosen)
        columns[[top, top + pivot]] = columns[[top + pivot, top]]
        inverse = pow(int(columns[top, j]), -1, PRIME)
        columns[top, j:] = columns[top, j:] * inverse % PRIME
        for i in top + 1 + np.flatnonzero(columns[top + 1 :, j]):
            columns[i, j:] = (columns[i, j:] - columns[i, j] * columns[top, j:]) % PRIME
        chosen.append(row)
    return np.array(chosen, dtype=int)


def solve_left(M: Rational, T: Rational) -> Rational | None:
    """Return V (m, k) with V M = T for M (k, k) and T (m, k), or None where M is singular.

    As long as a column of M has one entry in the rows that are left, it gives a column of V; the
    matrices of relays, and of sums over windows, need no more than that.
    """
    k, entries = len(M.n), M.n != 0
    rows, columns = np.ones(k, dtype=bool), np.ones(k, dtype=bool)
    order, counts = [], entries.sum(axis=0)
    while (single := np.flatnonzero(columns & (counts == 1))).size:
        c = int(single[0])
        r = int(np.flatnonzero(entries[:, c] & rows)[0])
        order.append((r, c))
        rows[r] = columns[c] = False
        counts = counts - entries[r]
    rest = T.n.astype(object) * M.d
    V, d = np.zeros((len(T.n), k), dtype=object), T.d
    for r, c in order:
        pivot = int(M.n[r, c])
        if any(x % pivot for x in rest[:, c]):
            rest, V, d = rest * abs(pivot), V * abs(pivot), d * abs(pivot)
        V[:, r] = rest[:, c] // pivot
        for j in np.flatnonzero(entries[r]):
            rest[:, j] = rest[:, j] - V[:, r] * int(M.n[r, j])
    if not rows.any():
        return Rational(V, d)
    X = solve(M.n[np.ix_(rows, columns)].T, rest[:, columns].T)
    if X is None:
        return None
    V = V * X.d
    V[:, rows] = X.n.T
    return Rational(V, d * X.d)


def digits(value: Fraction, count: int, rounding: str = decimal.ROUND_HALF_EVEN) -> str:
    """Return the first digits of a fraction, which may be too large or too small for a float.

    >>> digits(Fraction(1, 3), 4), digits(Fraction(2) ** 4000, 4, decimal.ROUND_CEILING)
    ('0.3333', '1.319e+1204')
    """
    context = decimal.Context(prec=count, rounding=rounding)
    found = context.divide(value.numerator, value.denominator)
    usual = not found or 1e-300 < abs(found) < 1e300
    return f"{float(found) if usual else found:.{count}g}"
