"""Convex quadratic programs in a box."""

from __future__ import annotations

import numpy as np
import scipy.linalg

STEPS = 200  # far more than are usual: about ten
RIDGES = (0.0, 1e-13, 1e-10, 1e-7, 1e-4, 1e-1, 1e2)  # times the largest entry of the diagonal
SHARES = (1.0, 1 / 4, 1 / 16)  # of a step that are tried


def minimise_in_box(
    M: np.ndarray, q: np.ndarray, low: np.ndarray, high: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return an x in low <= x <= high with the least x^T M x / 2 - q^T x, M positive semidefinite.

    By projected Newton steps (Bertsekas 1982) from `start`: variables at a bound that the slope
    holds there stay, the others take a Newton step that is cut off at the bounds. Where M is
    singular, or the step does not lead down, a multiple of the identity is added.
    """
    x, size = np.clip(start, low, high), np.diag(M).max(initial=0.0)
    for _ in range(STEPS):
        slope = M @ x - q
        held = ((x <= low) & (slope >= 0)) | ((x >= high) & (slope <= 0))
        free = np.flatnonzero(~held)
        noise = 8 * np.spacing(1.0) * (abs(M[free]) @ abs(x) + abs(q[free]))
        if not (abs(slope[free]) > noise).any():
            break
        lower = _lower(M, slope, free, low, high, x, size)
        if lower is None:
            break
        x = lower
    return x


def _lower(
    M: np.ndarray,
    slope: np.ndarray,
    free: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    x: np.ndarray,
    size: float,
) -> np.ndarray | None:
    """Return a point where the function is lower by a share of what its slope says, or None."""
    inner = M[np.ix_(free, free)]
    for ridge in RIDGES:
        try:
            factor = scipy.linalg.cho_factor(
                inner + ridge * size * np.eye(len(free)), check_finite=False
            )
        except scipy.linalg.LinAlgError:
            continue
        step = np.zeros_like(x)
        step[free] = -scipy.linalg.cho_solve(factor, slope[free], check_finite=False)
        for share in SHARES:
            moved = np.clip(x + share * step, low, high)
            change = moved - x
            along = -(slope @ change)
            if along - change @ (M @ change) / 2 > 1e-4 * along > 0:
                return moved
    return None
