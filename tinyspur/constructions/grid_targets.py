"""Residuals on a grid, exactly orthogonal to (x, 1) where the inputs are small integers, scaled."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from ..certificates.exact_sums import integers

BITS = 53  # integers of float64
MOVED = 1e-7  # residuals are moved by no more than this share of the largest


def on_a_grid(x: np.ndarray, e: np.ndarray) -> np.ndarray | None:
    """Return residuals next to e (N, d_y) with sum e = 0 and sum e x = 0 exactly, or None.

    x (N, d), less its first row, is taken for integers times powers of 2. With the determinant D of
    d + 1 rows of (x, 1), all residuals are first multiples of D, so that an integer change of those
    rows takes away what is left of the sums. None where that change, or D, is not small.
    """
    hats = _small_rows(x)
    if hats is None:
        return None
    _, _, order = scipy.linalg.qr(hats.T, mode="economic", pivoting=True)
    rows = order[: hats.shape[1]]
    B = hats[rows]
    determinant = abs(np.linalg.det(B))
    if not 0.5 < determinant < 2.0**BITS * MOVED:
        return None
    D = round(determinant)
    adjugate = np.rint(determinant * np.linalg.inv(B))
    whole_hats, whole_adjugate = _objects(hats), _objects(adjugate)
    if (whole_adjugate @ whole_hats[rows] != D * np.eye(len(B), dtype=int)).any():
        return None
    unit = 2.0 ** (math.frexp(abs(e).max())[1] - BITS + 1)
    multiples = _objects(np.rint(e / (unit * D)))
    found = D * multiples
    change = whole_adjugate.T @ (whole_hats.T @ multiples)
    found[rows] -= change
    if max(abs(change).flat) * unit > MOVED * abs(e).max():
        return None
    return found.astype(np.float64) * unit


def _small_rows(x: np.ndarray) -> np.ndarray | None:
    """Return (x, 1) with integers for x, smallest up to shifts and scales, or None if large."""
    columns, _ = integers(x)
    columns = columns - columns[0]
    for column in columns.T:
        column //= max(1, math.gcd(*column))
    if max(abs(columns).flat) >= 2 ** (BITS // 2):
        return None
    return np.hstack([columns.astype(np.float64), np.ones((len(x), 1))])


def _objects(values: np.ndarray) -> np.ndarray:
    """Return integers in float64 as integers of Python."""
    return np.array([[int(v) for v in row] for row in values.tolist()], dtype=object)
