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
from .enclosed_algebra import doubled_product, doubled_residual, least_eigenvalue
from .enclosures import QUIET, WIDER, Enclosure, concatenate, exact, sound

BLOCK = 250_000  # features that are split for doubled precision at a time, on each core
SUMMED = 16  # of these that are part of one sum
COLUMNS = 64  # of features that are split at a time, at least
FEW = 1000  # features up to which the diagonal of an inverse takes hardly any time
TOGETHER = 512  # columns of an inverse that a core works on together
HEAVIEST = 1e100  # of weights: below it squares that underflow don't count
ITERATED, ITERATIONS = 8, 4  # vectors, and how often, to come near the least eigenvalue


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
        total, width = exact(np.zeros((len(g), k))), max(COLUMNS, -(-k // SUMMED))
        for rows in self.blocks(max(1, SUMMED * BLOCK // k)):  # few: each sum rounds
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

    `gram` is A as it is summed up, with Cholesky's float `factor`. No entry of A is farther from it
    than that of `rows` @ `columns`, (k, 2) and (2, k), which also bounds what rounds where it is
    multiplied with a row of numbers up to 1. No eigenvalue of A is below `least`.
    """

    scale: np.ndarray
    gram: np.ndarray
    factor: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    least: float

    @classmethod
    def of(cls, samples: Samples, weights: np.ndarray | None = None) -> GramInverse | None:
        """Return it for weights c (N,), 1 by default; None where A is not shown to be regular.

        With lengths l of the columns, off by m, |A - fl(A)|_jk is at most gamma (l + m)_j (l + m)_k
        + m_j (l + m)_k + l_j m_k, by Cauchy and Schwarz.
        """
        if weights is not None and not weights.max() < HEAVIEST:
            return None
        roots = None if weights is None else np.sqrt(weights)[:, None]
        lengths = _lengths(samples.z, weights)
        if not (np.isfinite(lengths).all() and (lengths > 1e-100).all()):
            return None
        scale = 2.0 ** -np.round(np.log2(lengths))
        if np.ptp(np.log2(scale)) > 400:
            return None

        def scaled(rows: slice) -> np.ndarray:
            z = samples.z[rows] * scale
            return z if roots is None else z * roots[rows]

        A = gram_sum(scaled, len(samples))
        with one_thread():  # LAPACK's have so little to do between two meetings that they wait
            factor, failed = scipy.linalg.lapack.dpotrf(A.T, clean=False)
        if failed or not np.isfinite(np.diag(factor)).all():
            return None
        lengths, more = lengths * scale, np.zeros(len(A))
        if samples.inexact.any():
            more = _lengths(np.broadcast_to(samples.inexact, samples.z.shape), weights) * scale
        whole, terms = lengths + more, gram_terms(len(samples)) + 8 * (weights is not None)
        rows = np.stack([gamma(terms) * whole + more, lengths], axis=1) * WIDER
        columns = np.stack([whole, more])
        off = np.linalg.norm(rows, axis=0) @ np.linalg.norm(columns, axis=1)
        off = float(off) * (1 + 4 * gamma(len(A)))
        rows[:, 0] += gamma(len(A)) * whole * WIDER
        known = Enclosure(A, np.broadcast_to(np.zeros(1), A.shape))
        least = (least_eigenvalue(known, _near_least(factor)) - off) * (1 - EPSILON)
        return cls(scale, A, factor, rows, columns, least) if least > 0 else None

    def solve(self, G: np.ndarray) -> np.ndarray:
        """Return about G A^-1, G (d_y, k)."""
        return _solve(self.factor, (G * self.scale).T).T * self.scale

    @one_thread()
    @np.errstate(**QUIET)
    def times(self, G: Enclosure) -> Enclosure:
        """Return G A^-1, G (d_y, k).

        It differs from any X by (G - X A) A^-1, whose rows are at most as long as those of G - X A
        over `least`.
        """
        middle, radius = G.middle * self.scale, G.radius * self.scale + SMALLEST
        X, k = _solve(self.factor, middle.T).T, len(self.gram)
        left = abs(middle - X @ self.gram) * WIDER + radius + 2 * k * SMALLEST
        length = row_lengths(left + abs(X) @ self.rows @ self.columns)[:, None]
        off = length / self.least * (1 + 4 * gamma(k)) * self.scale + SMALLEST
        return sound(X * self.scale, (off + SMALLEST) * WIDER)

    def spread(self, length: np.ndarray, sharp: bool = False) -> np.ndarray:
        """Return bounds of |sum_i e_i sqrt(c_i) z_i^T A^-1|, e of `length` (d_y,): (d_y, k).

        The square of an entry is at most |e|^2 times the diagonal entry of A^-1. Unless it is to be
        `sharp` that of many features is bounded by 1 / `least`, which takes no time.
        """
        diagonal = np.full(len(self.gram), 1 / self.least)
        if sharp or len(diagonal) <= FEW:
            diagonal = np.minimum(diagonal, self._diagonal())
        return np.outer(length, self.scale * np.sqrt(diagonal)) * (1 + 8 * EPSILON) + SMALLEST

    def _diagonal(self) -> np.ndarray:
        """Return upper bounds of the diagonal of A^-1.

        For any P a column of A^-1 - P = A^-1 (I - A P) is at most as long as that of I - A P over
        `least`.
        """
        k = len(self.gram)

        @np.errstate(**QUIET)
        def some(start: int) -> np.ndarray:
            identity = np.eye(k, min(TOGETHER, k - start), -start)
            P = _solve(self.factor, identity)
            left = abs(identity - self.gram @ P) * WIDER + 2 * k * SMALLEST
            off = row_lengths((left + self.rows @ (self.columns @ abs(P))).T) * (1 + 4 * gamma(k))
            return P[range(start, start + P.shape[1]), range(P.shape[1])] + off / self.least

        found = np.concatenate(list(in_order(some, range(0, k, TOGETHER), np)))
        return np.where(found > 0, found, np.inf) * WIDER


@np.errstate(**QUIET)
def row_lengths(sizes: np.ndarray) -> np.ndarray:
    """Return upper bounds of the lengths of rows (d_y, n) of numbers >= 0, also of tiny ones."""
    largest = np.maximum(sizes.max(axis=1), SMALLEST)
    lengths = largest * np.linalg.norm(sizes / largest[:, None], axis=1)
    lengths = lengths * (1 + 2 * gamma(sizes.shape[1])) + SMALLEST
    return np.where(np.isfinite(lengths), lengths, np.inf)


def _lengths(z: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return upper bounds of the lengths of the columns of z (N, k), rows times sqrt(weights)."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij,i->j", z, z, np.ones(len(z)) if weights is None else weights)
    return np.sqrt(squares) * (1 + gamma(len(z) + 4))


@one_thread()
def _near_least(factor: np.ndarray) -> float:
    """Return about the least eigenvalue, by a few inverse iterations with Cholesky's factor."""
    V = np.random.default_rng(0).standard_normal((len(factor), ITERATED))
    for _ in range(ITERATIONS):
        V = np.linalg.qr(_solve(factor, V))[0]
    return 1 / float(np.linalg.norm(_solve(factor, V), 2))


def _solve(factor: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return about A^-1 B for Cholesky's factor of A."""
    with one_thread():
        return scipy.linalg.lapack.dpotrs(factor, B)[0]
