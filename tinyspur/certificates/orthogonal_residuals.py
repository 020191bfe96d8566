"""Residuals at constant outputs, and targets next to the given ones that make them orthogonal."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ..engine.floats import EPSILON, SMALLEST, gamma
from .enclosed_algebra import least_eigenvalue
from .enclosures import QUIET, Enclosure, exact
from .exact_sums import centred, centred_products, means


class Residuals:
    """The residuals e_i = mean y* - y*_i (N, d_y) of targets y*, orthogonal to (x, 1) exactly.

    The best constant outputs are the means of the targets. What these leave is orthogonal to (x, 1)
    if y is replaced by y* = y - P y, P the projection on the span of the centred inputs u_i, which
    leaves the means as they are.

    e and u (N, d) are enclosed in units of 2^`outputs` (d_y,) and of 2^`inputs` (d,), so that the
    largest of each column is from 1/4 to 1. In these units `moved` bounds max_i |P y_i| and
    `length` the Euclidean norms of P y, both (d_y,): they are 0 where P y is 0, exactly, and
    infinite where the inputs are too nearly dependent. Targets that are all equal are `constant`.
    `means` encloses the means less the biases b of the outputs, in units of 1.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, b: np.ndarray):
        inputs, targets = centred(x), centred(y)
        self.inputs, self.outputs = inputs.exponents, targets.exponents
        self.u, self.constant = _rounded_once(inputs.floats), ~targets.floats.any(axis=0)
        self.means = _rounded_once(means(y, b))
        sums = centred_products(x, y, self.inputs, self.outputs)
        self.moved, self.length = _projection(self.u, _rounded_once(sums))
        e = _rounded_once(-targets.floats)
        self.e = Enclosure(e.middle, e.radius + self.moved * (1 + 2 * EPSILON))

    @np.errstate(**QUIET)
    def in_units(self, sizes: np.ndarray) -> np.ndarray:
        """Return upper bounds of sizes (d_y,) of targets in units of 1; only of 0 itself 0."""
        found = np.ldexp(sizes, self.outputs)
        return np.where(sizes > 0, np.nextafter(found, np.inf), found)

    def definiteness(self, k: int) -> tuple[float, float]:
        """Return a share c >= 0 and the sign s of M, so that s M - c A is positive semidefinite.

        M = sum_i e_i u_i u_i^T for output k and A = sum_i |e_i| u_i u_i^T, in coordinates T in
        which A is about the identity: c is the least eigenvalue of s T^T M T over the largest of
        T^T A T. Where the first is positive T is regular. The share is 0 where M is not shown to be
        definite.
        """
        e = self.e[:, k].reshape(-1, 1)
        T = _whitening(np.sqrt(abs(e.middle)) * self.u.middle)
        if T is None:
            return 0.0, 1.0
        V = self.u @ T
        M, A = V.T @ (e * V), V.T @ (abs(e) * V)
        sign = float(np.sign(np.trace(M.middle))) or 1.0
        least = least_eigenvalue(M * sign)
        largest = float(A.magnitude.sum(axis=1).max()) * (1 + gamma(len(T)))
        return max(0.0, least / largest * (1 - 4 * EPSILON)), sign

    def moment(self, k: int, sign: float) -> float:
        """Return the least eigenvalue of `sign` M for output k, as float64 has it."""
        u = np.ldexp(self.u.middle, self.inputs - self.inputs.max())
        M = (sign * self.e.middle[:, [k]] * u).T @ u
        with np.errstate(over="ignore"):
            unit = int(2 * self.inputs.max() + self.outputs[k])
            return float(np.ldexp(np.linalg.eigvalsh(M)[0], unit))


@np.errstate(**QUIET)
def _projection(u: Enclosure, sums: Enclosure) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds (d_y,) of max_i |P y_i| and of |P y|, from sum_i u_i y_i^T (d, d_y).

    With V = u T of columns that are about orthonormal, P y = V (V^T V)^-1 T^T (sum_i u_i y_i).
    """
    zero = ~sums.middle.any(axis=0)  # exactly
    size = np.full(len(zero), np.inf)
    T = _whitening(u.middle)
    if T is None:
        return np.where(zero, 0.0, size), np.where(zero, 0.0, size)
    V = u @ T
    off = float((V.T @ V - np.eye(len(T))).magnitude.sum(axis=1).max()) * (1 + gamma(len(T)))
    if off < 1:
        size = _lengths((exact(T.T) @ sums).magnitude) / (1 - off) * (1 + 4 * EPSILON)
    largest = float(_lengths(V.magnitude.T).max()) * (1 + 4 * EPSILON)
    length = size * ((1 + off) * (1 + 4 * EPSILON))
    return np.where(zero, 0.0, size * largest), np.where(zero, 0.0, length)


def _whitening(u: np.ndarray) -> np.ndarray | None:
    """Return a T for which the columns of u T are about orthonormal, or None."""
    if len(u) < u.shape[1]:
        return None
    R = np.linalg.qr(u, mode="r")
    if not (np.isfinite(R).all() and np.diag(R).all()):
        return None
    return scipy.linalg.solve_triangular(R, np.eye(len(R)), check_finite=False)


def _lengths(sizes: np.ndarray) -> np.ndarray:
    """Return upper bounds of the Euclidean norms of columns (n, k), given upper bounds of sizes."""
    scale = sizes.max(axis=0)
    usual = (scale > 0) & (scale < np.inf)
    shares = np.divide(sizes, scale, where=usual, out=np.ones_like(sizes))
    return scale * np.sqrt((shares**2).sum(axis=0)) * (1 + gamma(len(sizes) + 8))


def _rounded_once(values: np.ndarray) -> Enclosure:
    """Return the enclosure of numbers that were rounded to these."""
    return Enclosure(
        values, EPSILON / 2 * abs(values) * (1 + 2 * EPSILON) + SMALLEST * (values != 0)
    )
