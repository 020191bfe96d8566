"""Optimal affine fits of stored numbers, exactly or with many digits."""

from fractions import Fraction

import mpmath
import numpy as np


def solve(A, B):
    """Return the exact solution X of A X = B by elimination, all lists of fractions."""
    rows = [[*a, *b] for a, b in zip(A, B, strict=True)]
    n = len(rows)
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(n):
            if i != k and rows[i][k]:
                factor = rows[i][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[n:] for row in rows]


def fractions_of(values):
    """Return a matrix of floats as lists of fractions."""
    return [list(map(Fraction, row.tolist())) for row in np.asarray(values)]


def exact_fit(x, y):
    """Return the exact least-squares fit (n + 1, d_y) of stored numbers."""
    hats, targets = fractions_of(np.column_stack([x, np.ones(len(x))])), fractions_of(y)
    n, d = len(hats[0]), len(targets[0])
    A = [[sum(h[i] * h[j] for h in hats) for j in range(n)] for i in range(n)]
    B = [
        [sum(h[i] * t[k] for h, t in zip(hats, targets, strict=True)) for k in range(d)]
        for i in range(n)
    ]
    return solve(A, B)


def exact_residuals(x, y, F):
    """Return y - F^T (x, 1) for F (n + 1, d_y), lists of fractions (N, d_y)."""
    hats, targets = fractions_of(np.column_stack([x, np.ones(len(x))])), fractions_of(y)
    return [
        [t[k] - sum(a * f[k] for a, f in zip(h, F, strict=True)) for k in range(len(t))]
        for h, t in zip(hats, targets, strict=True)
    ]


def exact_huber_fit(x, y, delta, guess):
    """Return the exact fit (n + 1, 1) for a Huber loss, on the piece of a float guess (n + 1, 1).

    It is checked that the piece is the right one, hence that the fit is optimal.
    """
    hats, targets = fractions_of(np.column_stack([x, np.ones(len(x))])), fractions_of(y)
    n, delta = len(hats[0]), Fraction(delta)

    def sides(F):
        return [(r > delta) - (r < -delta) for (r,) in exact_residuals(x, y, F)]

    pieces = sides(fractions_of(guess))
    inside = [i for i, side in enumerate(pieces) if not side]
    A = [[sum(hats[i][a] * hats[i][b] for i in inside) for b in range(n)] for a in range(n)]
    B = [
        [
            sum(hats[i][a] * targets[i][0] for i in inside)
            + sum(delta * side * h[a] for h, side in zip(hats, pieces, strict=True))
        ]
        for a in range(n)
    ]
    F = solve(A, B)
    assert sides(F) == pieces
    return F


def exact_vertex(x, y, met):
    """Return the exact fit (n + 1, 1) that meets the targets of samples `met`, and whether it is
    optimal for the absolute loss: whether the subgradients of these are between -1 and 1.
    """
    hats = fractions_of(np.column_stack([x, np.ones(len(x))]))
    basis = [hats[i] for i in met]
    F = solve(basis, fractions_of(y[met]))
    signs = [(r > 0) - (r < 0) for (r,) in exact_residuals(x, y, F)]
    sums = [
        sum(s * h[a] for i, (s, h) in enumerate(zip(signs, hats, strict=True)) if i not in met)
        for a in range(len(hats[0]))
    ]
    dual = solve([list(column) for column in zip(*basis, strict=True)], [[s] for s in sums])
    return F, all(abs(s) <= 1 for (s,) in dual)


def exact_softmax_fit(x, y, F):
    """Return the softmax regression of stored numbers by Newton's method with 40 digits.

    It has the same shifts of all outputs as the fit F (n + 1, d_y) that it begins with.
    """
    hats = mpmath.matrix(np.column_stack([x, np.ones(len(x))]).tolist())
    n, d, N = hats.cols, y.shape[1], len(x)
    F = mpmath.matrix(F)
    for _ in range(6):
        gradient, H = mpmath.zeros(n * d, 1), mpmath.zeros(n * d, n * d)
        for i in range(N):
            o = [sum(hats[i, j] * F[j, k] for j in range(n)) for k in range(d)]
            p = [mpmath.exp(v - max(o)) for v in o]
            p = [v / sum(p) for v in p]
            whole = sum(mpmath.mpf(float(v)) for v in y[i])
            for k in range(d):
                for j in range(n):
                    g = whole * p[k] - mpmath.mpf(float(y[i, k]))
                    gradient[j * d + k] += g * hats[i, j]
                    for q in range(d):
                        bend = whole * p[k] * ((k == q) - p[q]) * hats[i, j]
                        for m in range(n):
                            H[j * d + k, m * d + q] += bend * hats[i, m]
        for j in range(n):  # shifts of all outputs, which change nothing, stay as they are
            for k in range(d):
                for q in range(d):
                    H[j * d + k, j * d + q] += 1
        step = mpmath.lu_solve(H, gradient)
        F = F - mpmath.matrix([[step[j * d + k] for k in range(d)] for j in range(n)])
    assert max(abs(v) for v in gradient) < mpmath.mpf(10) ** -30
    return F
