"""Sums over samples in doubled precision, and inverse Gram matrices: what encloses their fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..engine.floats import EPSILON, SMALLEST, gamma
from .enclosed_algebra import doubled_product, doubled_residual
from .enclosures import WIDER, Enclosure

ROWS = 512  # of features whose products are summed at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a class: features z (N, k), what these may be off by, and targets y (d_y, N).

    `chosen` are subgradients (d_y, N) of a loss with kinks whose sums with the features are about
    0; None for another loss.
    """

    z: np.ndarray
    inexact: np.ndarray
    y: np.ndarray
    chosen: np.ndarray | None

    def __len__(self) -> int:
        return len(self.z)

    def of(self, rows: np.ndarray) -> Samples:
        """Return some of them."""
        inexact = self.inexact if len(self.inexact) == 1 else self.inexact[rows]
        chosen = None if self.chosen is None else self.chosen[:, rows]
        return Samples(self.z[rows], inexact, self.y[:, rows], chosen)

    def columns(self, kept: np.ndarray) -> Samples:
        """Return them with some of the features."""
        inexact = self.inexact[:, kept] if self.inexact.shape[1] > 1 else self.inexact
        return replace(self, z=self.z[:, kept], inexact=inexact)

    def moved(self, F: np.ndarray) -> np.ndarray | float:
        """Return by how much outputs F z may be off because features are, (d_y, N)."""
        if not self.inexact.any():
            return 0.0
        inexact = np.broadcast_to(self.inexact, self.z.shape)
        return abs(F) @ inexact.T * (1 + 2 * gamma(self.z.shape[1]))

    def outputs(self, F: np.ndarray) -> Enclosure:
        """Return F z, (d_y, N)."""
        found = doubled_product(F, self.z.T)
        return Enclosure(found.middle, (found.radius + self.moved(F)) * WIDER)

    def residuals(self, F: np.ndarray) -> Enclosure:
        """Return y - F z, (d_y, N)."""
        found = doubled_residual(self.y, F, self.z.T)
        return Enclosure(found.middle, (found.radius + self.moved(F)) * WIDER)

    def sums(self, g: np.ndarray) -> Enclosure:
        """Return sum_i g_i z_i^T, (d_y, k)."""
        found, off = doubled_product(g, self.z), 0.0
        if self.inexact.any():
            inexact = np.broadcast_to(self.inexact, self.z.shape)
            off = abs(g) @ inexact * (1 + 2 * gamma(len(self)))
        return Enclosure(found.middle, (found.radius + off) * WIDER)


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
        z, inexact = samples.z, samples.inexact
        if weights is not None:
            root = np.sqrt(weights)[:, None]
            z, inexact = root * z, root * inexact
        lengths = np.linalg.norm(z, axis=0)
        if not (np.isfinite(lengths).all() and (lengths > 1e-100).all()):
            return None
        scale = 2.0 ** -np.round(np.log2(lengths))
        if np.ptp(np.log2(scale)) > 400:
            return None
        A, z = np.zeros((z.shape[1],) * 2), z * scale  # exactly
        for start in range(0, len(z), ROWS):
            block = z[start : start + ROWS]
            A += block.T @ block
        lengths = lengths * scale * (1 + gamma(len(z)))
        more = np.zeros(len(A))
        if inexact.any():
            more = np.linalg.norm(np.broadcast_to(inexact, z.shape) * scale, axis=0)
            more = more * (1 + gamma(len(z)))
        try:
            P = np.linalg.inv(A)
        except np.linalg.LinAlgError:
            return None
        terms = min(len(z), ROWS) + -(-len(z) // ROWS) + 8 * (weights is not None)
        share, sizes = gamma(terms) + gamma(len(A)), np.abs(P)
        E = np.abs(np.eye(len(A)) - A @ P).sum(axis=0)
        E += (share * lengths.sum() + more.sum()) * ((lengths + more) @ sizes)
        E += lengths.sum() * (more @ sizes)
        d = float(E.max()) * (1 + 4 * gamma(len(A)))
        return cls(scale, P, d / (1 - d) * WIDER) if d < 1 else None

    def times(self, G: Enclosure) -> Enclosure:
        """Return G A^-1, G (d_y, k)."""
        found = Enclosure(G.middle * self.scale, G.radius * self.scale + SMALLEST) @ self.P
        more = self.share * found.magnitude.max(axis=1, keepdims=True)
        return Enclosure(found.middle * self.scale, (found.radius + more) * self.scale * WIDER)

    def spread(self, length: np.ndarray) -> np.ndarray:
        """Return bounds of |sum_i e_i sqrt(c_i) z_i^T A^-1|, e of `length` (d_y,): (d_y, k).

        The square of an entry is at most |e|^2 times the diagonal entry of A^-1.
        """
        diagonal = np.diag(self.P) + self.share * abs(self.P).max(axis=1)
        return np.outer(length, np.sqrt(diagonal) * self.scale) * (1 + 4 * EPSILON)
