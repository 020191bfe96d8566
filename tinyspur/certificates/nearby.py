"""An exact local minimum near a stored point, whose cell is settled by affine fits.

In exact arithmetic a stored point is hardly ever stationary. Here the optimal fits F*_s of all
pattern classes are enclosed, and parameters of one layer that give them are shown to exist within a
distance of the stored ones: the point with these parameters is exactly a local minimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.parameters import Parameters
from ..engine.passes import Step, by_map, steps
from ..layers import Dense
from .rounding import gamma

LARGEST = 2 * 10**7  # numbers of a matrix up to which it is enclosed


class Matrix(NamedTuple):
    """An enclosure: the exact matrix is within `radius` of `middle`, entry by entry."""

    middle: np.ndarray
    radius: np.ndarray

    def __matmul__(self, other: Matrix) -> Matrix:
        """Return an enclosure of the product."""
        share, size = gamma(len(other.middle)), abs(self.middle)
        off = size @ (other.radius + share * abs(other.middle))
        off += self.radius @ (abs(other.middle) + other.radius)
        return Matrix(self.middle @ other.middle, off * (1 + 2 * share))

    @property
    def T(self) -> Matrix:
        return Matrix(self.middle.T, self.radius.T)


def exact(values: np.ndarray) -> Matrix:
    """Return the enclosure of numbers that are stored as they are."""
    return Matrix(values, np.zeros_like(values))


def through_inverse(D: np.ndarray, M: Matrix) -> np.ndarray | None:
    """Return a bound of a D'' with D'' M = D' for all |D'| <= D; None where none is shown to exist.

    D'' = D' (Q M)^-1 Q for a float left inverse Q of M, on the rows of M that are not 0. With
    E = I - Q M and the largest column sum e of |E| below 1, |D' (I - E)^-1| is at most
    D + max(D) e / (1 - e).
    """
    used = (M.middle != 0).any(axis=1) | (M.radius != 0).any(axis=1)
    M = Matrix(M.middle[used], M.radius[used])
    q, r = np.linalg.qr(M.middle)
    if len(q) < len(r.T) or not np.isfinite(r).all() or not np.diag(r).all():
        return None
    Q = scipy.linalg.solve_triangular(r, q.T)
    product = exact(Q) @ M
    E = abs(np.eye(len(Q)) - product.middle) + product.radius
    e = float(E.sum(axis=0).max()) * (1 + gamma(len(E)))
    if not e < 1:
        return None
    D = D + D.max(axis=1, keepdims=True) * (e / (1 - e))
    found = np.zeros((len(D), len(used)))
    found[:, used] = (D @ abs(Q)) * (1 + 2 * gamma(len(Q) + 4))
    return found


class ClassFit(NamedTuple):
    """Of a class: which columns its features are combinations of, and how far its optimal fit is.

    With features x = `basis` z, z the `kept` columns, all outputs F x + D z, |D| <= `bound`
    (d_y, k), are those of the optimal fit.
    """

    basis: np.ndarray
    bound: np.ndarray


def enclose_inverse(z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return |P| and a share e: |v A^-1| is at most w + max(w) e, w = |v| |P|, for any row v.

    A = sum_i c_i z_i z_i^T for rows z (N, k) and `weights` c (N,), P a float inverse. With
    E = I - A P and the largest column sum d < 1 of |E|, A^-1 = P (I - E)^-1 and e = d / (1 - d).
    None where A is not shown to be regular.
    """
    weighted = weights[:, None] * z
    gram = Matrix(z.T, 0 * z.T) @ Matrix(weighted, gamma(1) * abs(weighted))
    try:
        P = np.linalg.inv(gram.middle)
    except np.linalg.LinAlgError:
        return None
    product = gram @ exact(P)
    E = abs(np.eye(len(P)) - product.middle) + product.radius
    d = float(E.sum(axis=0).max()) * (1 + gamma(len(P)))
    return (abs(P), d / (1 - d) * (1 + 1e-9)) if d < 1 else None


def enclose_fit(
    hats: np.ndarray, sums: np.ndarray, curvatures: np.ndarray | None = None
) -> ClassFit | None:
    """Return how far the optimal fit of features (N, n + 1) is from a given one, or None.

    `sums` (d_y, n + 1) bounds |sum_i g_i x_i^T| there. Columns that are constant, or copies of
    another, are combinations of the rest; the last one holds ones. None where the Gram matrix of
    the rest is not shown to be regular.

    With the squared loss the optimal fit is less by G A^-1, G those sums and A the Gram matrix. The
    cross-entropy has least `curvatures` c_i (N,), orthogonal to shifts of all outputs. With A the
    Gram matrix that c weighs and s^2 = tr G A^-1 G^T the loss rises on the ellipsoid tr D A D^T =
    16 s^2 where its moves of the outputs, at most rho = 4 s / sqrt(min c), change no curvature by
    more than exp(-2 rho) > 1/2: the optimal fit is inside.
    """
    kept, basis = distinct_columns(hats)
    if len(kept) > len(hats):
        return None
    scale = 2.0 ** -np.round(np.log2(np.linalg.norm(hats[:, kept], axis=0)))
    weights = np.ones(len(hats)) if curvatures is None else curvatures
    found = enclose_inverse(hats[:, kept] * scale, weights)  # scaled by powers of 2, hence exactly
    if found is None:
        return None
    P, e = found
    G = sums[:, kept] * scale
    D = G @ P * (1 + 2 * gamma(len(P)))
    D = D + D.max(axis=1, keepdims=True) * e
    if curvatures is not None:
        s = 4 * math.sqrt(float((D * G).sum())) * (1 + 1e-9)
        if not s < 0.34 * math.sqrt(float(curvatures.min())):
            return None
        D = np.tile(s * np.sqrt(np.diag(P) + P.max(axis=1) * e), (len(G), 1)) * (1 + 1e-9)
    return ClassFit(basis, D * scale)


def distinct_columns(hats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return k columns of (N, n + 1), and the matrix (n + 1, k) that makes all of them of these.

    Left out are constant columns but the last one, and copies. The last one holds ones.
    """
    n = hats.shape[1] - 1
    constant = (hats == hats[0]).all(axis=0)
    _, firsts, copies = np.unique(hats, axis=1, return_index=True, return_inverse=True)
    own = np.array([firsts[c] for c in np.ravel(copies)])
    kept = np.append(np.unique(own[~constant]), n)
    basis = np.zeros((n + 1, len(kept)))
    place = {int(column): k for k, column in enumerate(kept)}
    for column in range(n + 1):
        if constant[column]:
            basis[column, -1] = hats[0, column]
        else:
            basis[column, place[int(own[column])]] = 1
    return kept, basis


class Cell(NamedTuple):
    """A pattern class: the pass of one of its samples, and its fit."""

    trace: list[Step]
    fit: ClassFit


def class_fits(
    groups: list[np.ndarray],
    hats: list[np.ndarray],
    sums: np.ndarray,
    g: np.ndarray,
    curvatures: np.ndarray | None,
) -> list[ClassFit] | None:
    """Return the fits of all classes, or None where one is not enclosed.

    From the features (N_s, n + 1) of each class, bounds of |sum_i g_i x_i^T|, (S, d_y, n + 1), and
    of |g| (d_y, N). With the squared loss, which has no `curvatures`, outputs of no more samples
    than features are fitted exactly: these samples are the columns then.
    """
    found = []
    for s, x, bound in zip(groups, hats, sums, strict=True):
        if max(x.size, x.shape[1] ** 2) > LARGEST:
            return None
        fit = enclose_fit(x, bound, None if curvatures is None else curvatures[s])
        if fit is None and curvatures is None and len(s) < x.shape[1]:
            fit = ClassFit(x.T, abs(g[:, s]))
        if fit is None:
            return None
        found.append(fit)
    return found


def distance_to_minimum(theta: Parameters, x: np.ndarray, fits: list[ClassFit]) -> float:
    """Return the distance within which an exact local minimum is shown to exist, or infinity.

    `x` holds a sample of each class, on the host as theta is. With all layers but one as they are,
    a dense one, outputs are affine in its W and b: U_s W H_s (x, 1) + const in class s, with H_s
    and U_s the active parts of the layers below and above. For the last layer W [H_1, H_2, ...] has
    to change by the changes D_s of the fits; for another one, where all patterns below it agree,
    U_s W H does. A left inverse of what is multiplied from the right and a right inverse of what is
    from the left bound that change.
    """
    cells = []
    for sample, fit in zip(x, fits, strict=True):
        _, columns = next(theta.net.chunks(theta, sample[None]))
        cells.append(Cell(list(steps(theta, columns)), fit))
    return min(_by_last_layer(theta, cells), _by_dense_layer(theta, cells))


def _by_last_layer(theta: Parameters, cells: list[Cell]) -> float:
    net = theta.net
    columns = sum(cell.fit.bound.shape[1] for cell in cells)
    rows = theta.W[net.depth].shape[1] + 1
    if not isinstance(net.layers[-1], Dense) or columns > rows or rows * columns > LARGEST:
        return np.inf
    parts = [_upwards(theta, cell.trace, cell.fit.basis, net.depth) for cell in cells]
    M = Matrix(*(np.hstack([getattr(part, name) for part in parts]) for name in Matrix._fields))
    D = np.hstack([cell.fit.bound for cell in cells])
    return _largest(through_inverse(D, M))


def _by_dense_layer(theta: Parameters, cells: list[Cell]) -> float:
    """Return the distance for the first dense layer, below which all patterns have to agree."""
    net = theta.net
    dense = [n for n, layer in enumerate(net.layers, 1) if isinstance(layer, Dense)]
    if not dense or dense[0] == net.depth or any(not _of_columns(cell.fit) for cell in cells):
        return np.inf
    first, first_cell = dense[0], cells[0]
    for cell in cells[1:]:
        for step, other in zip(cell.trace[: first - 1], first_cell.trace, strict=False):
            same = not step.W.selects or (step.matrix.choice == other.matrix.choice).all()
            if not same or (step.kinked and ((step.z > 0) != (other.z > 0)).any()):
                return np.inf
    n = cells[0].fit.basis.shape[0]
    U = [_downwards(cell.trace, first) for cell in cells]
    U = Matrix(*(np.vstack([getattr(part, name) for part in U]) for name in Matrix._fields))
    H = _upwards(theta, first_cell.trace, np.eye(n), first)
    if len(U.middle) > U.middle.shape[1] or H.middle.shape[1] > H.middle.shape[0]:
        return np.inf
    D = np.vstack([_spread(cell.fit) for cell in cells])
    D = through_inverse(D, H)
    if D is None:
        return np.inf
    return _largest(through_inverse(D.T.copy(), U.T))


def _of_columns(fit: ClassFit) -> bool:
    """Return whether the columns of the fit are features, and not samples."""
    return fit.bound.shape[1] == 1 or bool((fit.basis[-1, :-1] == 0).all())


def _spread(fit: ClassFit) -> np.ndarray:
    """Return the change of the fit in all features, 0 where they are combinations of others."""
    D = np.zeros((len(fit.bound), len(fit.basis)))
    for k, column in enumerate(fit.basis.T):
        place = len(column) - 1 if k == fit.basis.shape[1] - 1 else int(np.argmax(column == 1))
        D[:, place] = fit.bound[:, k]
    return D


def _upwards(theta: Parameters, trace: list[Step], basis: np.ndarray, layer: int) -> Matrix:
    """Return (H x, 1) for the columns (x, 1) of a basis, H what is active up to o^{layer-1}."""
    v, c = exact(basis[:-1]), basis[-1]
    for step in trace[theta.net.leading_poolings : layer - 1]:
        W, share = step.matrix, gamma(step.W.fan_in + 2)
        size = abs(W)
        off = size @ (v.radius + share * abs(v.middle))
        z = W @ v.middle
        if step.b is not None:
            maps, wide = by_map(z, step.b), by_map(off, step.b)
            tiled = np.tile(c, z.size // len(step.b) // len(c))
            maps += step.b[:, None] * tiled
            wide += share * abs(step.b)[:, None] * abs(tiled)
        off = off * (1 + 2 * share)
        if step.activation is not None:
            slopes = step.slopes
            off = slopes * off + (slopes != 1) * gamma(1) * abs(z)
            z = slopes * z
        v = Matrix(z, off)
    return Matrix(np.vstack([v.middle, c]), np.vstack([v.radius, 0 * c]))


def _downwards(trace: list[Step], layer: int) -> Matrix:
    """Return the active part U from z^layer to the outputs, (d_y, n_layer), of one pattern."""
    width = trace[-1].o.shape[0]
    v = exact(np.eye(width))  # columns: the transpose of U
    for step in reversed(trace[layer:]):
        if step.activation is not None:
            v = _scaled(v, step.slopes)
        W, share = step.matrix.T, gamma(max(step.W.shape[0], 1) + 2)
        off = abs(W) @ (v.radius + share * abs(v.middle))
        v = Matrix(W @ v.middle, off * (1 + 2 * share))
    if trace[layer - 1].activation is not None:
        v = _scaled(v, trace[layer - 1].slopes)
    return v.T


def _scaled(v: Matrix, slopes: np.ndarray) -> Matrix:
    off = slopes * v.radius + (slopes != 1) * gamma(1) * abs(v.middle)
    return Matrix(slopes * v.middle, off)


def _largest(bound: np.ndarray | None) -> float:
    return np.inf if bound is None or not np.isfinite(bound).all() else float(bound.max())
