"""Convex quadratic programs in a box."""

from __future__ import annotations

import numpy as np
import scipy.linalg

STEPS = 200  # far more than are usual: about ten


def minimise_in_box(
    M: np.ndarray, q: np.ndarray, low: np.ndarray, high: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return an x in low <= x <= high with the least x^T M x / 2 - q^T x, M positive semidefinite.

    By projected Newton steps (Bertsekas 1982) from `start`: variables at a bound that the slope
    holds there stay, the others take a Newton step that is cut off at the bounds.
    """
    x = np.clip(start, low, high)
    size = np.diag(M).max(initial=0.0)
    for _ in range(STEPS):
        slope = M @ x - q
        held = ((x <= low) & (slope >= 0)) | ((x >= high) & (slope <= 0))
        free = np.flatnonzero(~held)
        noise = 8 * np.spacing(1.0) * (abs(M[free]) @ abs(x) + abs(q[free]))
        if not (abs(slope[free]) > noise).any():
            break
        step = np.zeros_like(x)
        step[free] = -_solved(M[np.ix_(free, free)], slope[free], size)
        value, t = x @ (M @ x) / 2 - q @ x, 1.0
        while t > 1e-10:
            moved = np.clip(x + t * step, low, high)
            change = moved - x
            decrease = -(slope @ change + change @ (M @ change) / 2)
            if decrease > 1e-4 * -(slope @ change) > 0:
                break
            t /= 4
        else:
            break
        if decrease <= np.spacing(abs(value)):
            x = moved
            break
        x = moved
    return x


def _solved(M: np.ndarray, b: np.ndarray, size: float) -> np.ndarray:
    """Return M^-1 b, with a small multiple of the identity added where M is singular."""
    for ridge in (0.0, size * len(b) * 1e-15, size * 1e-8):
        try:
            factor = scipy.linalg.cho_factor(M + ridge * np.eye(len(b)), check_finite=False)
        except scipy.linalg.LinAlgError:
            continue
        return scipy.linalg.cho_solve(factor, b, check_finite=False)
    return np.linalg.lstsq(M, b, rcond=None)[0]
