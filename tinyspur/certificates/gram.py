"""Sums over samples in doubled precision, and inverse Gram matrices: what encloses their fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.threads import in_order, one_thread
from ..fitting.gram_sums import gram_sum, gram_terms
from .enclosed_algebra import doubled_product, doubled_residual
from .enclosures import QUIET, WIDER, Enclosure, concatenate, exact, sound

BLOCK = 10**6  # features that are split for doubled precision at a time, on each core
TOGETHER = 4  # of these that are part of one sum
COPIED = 256  # rows of an inverse that are copied from its other triangle at a time
COLUMNS = 512  # of a product with an inverse that a core computes at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a class: features z (N, k), what these may be off by, and targets y (d_y, N).

    Features are off by the same where the `inputs` (N, ...) that they are made of are equal.
    `chosen` are subgradients (d_y, N) of a loss with kinks whose sums with the features are about
    0; None for another loss.
    """

    z: np.ndarray
    inexact: np.ndarray
    y: np.ndarray
    inputs: np.ndarray
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.z)

    def of(self, rows: np.ndarray | slice) -> Samples:
        """Return some of them."""
        inexact = self.inexact if len(self.inexact) == 1 else self.inexact[rows]
        chosen = None if self.chosen is None else self.chosen[:, rows]
        return Samples(self.z[rows], inexact, self.y[:, rows], self.inputs[rows], chosen)

    def columns(self, kept: np.ndarray) -> Samples:
        """Return them with some of the features, in ascending order."""
        if len(kept) == self.z.shape[1]:
            return self
        inexact = self.inexact[:, kept] if self.inexact.shape[1] > 1 else self.inexact
        return replace(self, z=self.z[:, kept], inexact=inexact)

    def blocks(self, rows: int) -> Iterator[slice]:
        """Yield slices of so many samples."""
        return (slice(start, start + rows) for start in range(0, len(self), rows))

    def moves(self, D: Enclosure) -> Enclosure:
        """Return D z, (d_y, N)."""
        return self._joined(lambda some: (D @ some.z.T).wider(some._moved(D.magnitude)))

    def outputs(self, F: np.ndarray) -> Enclosure:
        """Return F z, (d_y, N), in doubled precision."""
        return self._joined(lambda some: doubled_product(F, some.z.T).wider(some._moved(F)))

    def residuals(self, F: np.ndarray) -> Enclosure:
        """Return y - F z, (d_y, N), in doubled precision."""
        return self._joined(
            lambda some: doubled_residual(some.y, F, some.z.T).wider(some._moved(F))
        )

    def sums(self, g: np.ndarray) -> Enclosure:
        """Return sum_i g_i z_i^T, (d_y, k), in doubled precision."""
        k = self.z.shape[1]
        total, width = exact(np.zeros((len(g), k))), -(-k // TOGETHER)
        for rows in self.blocks(max(1, TOGETHER * BLOCK // k)):  # few: each sum rounds
            columns = [slice(n, n + width) for n in range(0, k, width)]
            parts = in_order(
                lambda some, rows=rows: doubled_product(g[:, rows], self.z[rows, some]), columns, np
            )
            total = total + concatenate(list(parts), axis=1)
        if not self.inexact.any():
            return total
        inexact = np.broadcast_to(self.inexact, self.z.shape)
        return total.wider(abs(g) @ inexact * (1 + 2 * gamma(len(self))))

    def _joined(self, function: Callable[[Samples], Enclosure]) -> Enclosure:
        parts = list(in_order(lambda rows: function(self.of(rows)), self._whole(), np))
        return parts[0] if len(parts) == 1 else concatenate(parts, axis=1)

    def _whole(self) -> Iterator[slice]:
        return self.blocks(max(1, BLOCK // self.z.shape[1]))

    def _moved(self, F: np.ndarray) -> np.ndarray | float:
        """Return by how much outputs F z may be off because features are, (d_y, N)."""
        if not self.inexact.any():
            return 0.0
        inexact = np.broadcast_to(self.inexact, self.z.shape)
        return abs(F) @ inexact.T * (1 + 2 * gamma(self.z.shape[1]))


class GramInverse(NamedTuple):
    """What bounds G A^-1 for A = sum_i c_i z_i z_i^T, features (N, k) scaled by powers of two.

    A float inverse `P`, and `share`: for any row v, v A^-1 is v P up to share max |v P|.
    """

    scale: np.ndarray
    P: np.ndarray
    share: float

    @classmethod
    def of(cls, samples: Samples, weights: np.ndarray | None = None) -> GramInverse | None:
        """Return it for weights c (N,), 1 by default; None where A is not shown to be regular.

        |A - fl(A)| is at most gamma |z_j| |z_k|, by Cauchy and Schwarz. With E = I - A P and the
        largest column sum d < 1 of |E|, A^-1 = P (I - E)^-1, and the share is d / (1 - d).
        """
        k, roots = samples.z.shape[1], np.ones((len(samples), 1))
        if weights is not None:
            roots = np.sqrt(weights)[:, None]
        lengths = _lengths(samples.z, roots)
        if not (np.isfinite(lengths).all() and (lengths > 1e-100).all()):
            return None
        scale = 2.0 ** -np.round(np.log2(lengths))
        if np.ptp(np.log2(scale)) > 400:
            return None
        A = gram_sum(lambda rows: samples.z[rows] * scale * roots[rows], len(samples))
        lengths, more = lengths * scale, np.zeros(k)
        if samples.inexact.any():
            more = _lengths(np.broadcast_to(samples.inexact, samples.z.shape), roots) * scale
        P = _inverse(A)
        if P is None:
            return None
        terms = gram_terms(len(samples)) + 8 * (weights is not None)
        share = gamma(terms) + gamma(k)
        reach = (share * lengths.sum() + more.sum()) * (lengths + more) + lengths.sum() * more

        def largest_sum(columns: slice) -> float:
            off = A @ P[:, columns]
            off[columns] -= np.eye(off.shape[1])
            return float((abs(off).sum(axis=0) + reach @ abs(P[:, columns])).max())

        blocks = (slice(n, n + COLUMNS) for n in range(0, k, COLUMNS))
        d = float(np.max(list(in_order(largest_sum, blocks, np)))) * (1 + 4 * gamma(k))  # or NaN
        return cls(scale, P, d / (1 - d) * WIDER) if d < 1 else None

    @np.errstate(**QUIET)
    def times(self, G: Enclosure) -> Enclosure:
        """Return G A^-1, G (d_y, k)."""
        found = Enclosure(G.middle * self.scale, G.radius * self.scale + SMALLEST) @ self.P
        more = self.share * found.magnitude.max(axis=1, keepdims=True) + SMALLEST
        radius = (found.radius + more) * self.scale * WIDER + 2 * SMALLEST
        return sound(found.middle * self.scale, radius)

    def spread(self, length: np.ndarray) -> np.ndarray:
        """Return bounds of |sum_i e_i sqrt(c_i) z_i^T A^-1|, e of `length` (d_y,): (d_y, k).

        The square of an entry is at most |e|^2 times the diagonal entry of A^-1.
        """
        diagonal = np.diag(self.P) + self.share * abs(self.P).max(axis=1)
        return np.outer(length, np.sqrt(diagonal) * self.scale) * (1 + 4 * EPSILON)


def _lengths(z: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Return upper bounds of the lengths of the columns of roots * z, (N, 1) and (N, k)."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij,i->j", z, z, roots[:, 0] ** 2)
    return np.sqrt(squares) * (1 + gamma(len(z) + 4))


def _inverse(A: np.ndarray) -> np.ndarray | None:
    """Return the inverse of a symmetric A by Cholesky's factors, or None; half the work of LU's.

    On one thread: LAPACK's have so little to do between two meetings that they wait for each other.
    """
    with one_thread():
        factor, failed = scipy.linalg.lapack.dpotrf(A.T, clean=False)
        if failed:
            return None
        P, failed = scipy.linalg.lapack.dpotri(factor, overwrite_c=True)
    if failed:
        return None
    P = P.T  # whose lower triangle it is
    for n in range(0, len(P), COPIED):
        some = slice(n, n + COPIED)
        P[some, n + COPIED :] = P[n + COPIED :, some].T
        corner = np.tril(P[some, some])
        P[some, some] = corner + np.tril(corner, -1).T
    return P if np.isfinite(np.diag(P)).all() else None
