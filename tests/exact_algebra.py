"""Linear algebra in fractions, for comparisons."""

from fractions import Fraction

import numpy as np


def fractions(values):
    """Return an array of floats as fractions."""
    values = np.asarray(values, dtype=np.float64)
    found = [Fraction(value) for value in values.ravel().tolist()]
    return np.array([*found, None], dtype=object)[:-1].reshape(values.shape)


def solved(A, B):
    """Return A^-1 B by Gauss' elimination, fractions."""
    A, B = A.copy(), B.copy()
    for n in range(len(A)):
        pivot = next(i for i in range(n, len(A)) if A[i, n] != 0)
        A[[n, pivot]], B[[n, pivot]] = A[[pivot, n]], B[[pivot, n]]
        A[n], B[n] = A[n] / A[n, n], B[n] / A[n, n]
        for i in range(len(A)):
            if i != n:
                A[i], B[i] = A[i] - A[i, n] * A[n], B[i] - A[i, n] * B[n]
    return B


def pivots(A):
    """Return the diagonal of D in A = L D L^T, fractions; positive where A is definite."""
    A, found = A.copy(), []
    for n in range(len(A)):
        found.append(A[n, n])
        if A[n, n] == 0:
            break
        A = A - np.outer(A[:, n], A[n]) / A[n, n]
    return found
