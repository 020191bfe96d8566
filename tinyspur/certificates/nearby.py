"""An exact local minimum near a stored point, whose cell is settled by affine fits.

In exact arithmetic a stored point is hardly ever stationary. Here the optimal fits F*_s of all
pattern classes are enclosed, and parameters of one layer that give them are shown to exist within a
distance of the stored ones: the point with these parameters is exactly a local minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from ..engine.passes import Step, steps
from ..engine.threads import in_order
from ..layers import BlockMatrix, Dense
from .class_fits import LARGEST, ClassFit, class_fit
from .enclosed_algebra import doubled_product, two_sum
from .enclosures import QUIET, WIDER, Enclosure, concatenate, exact, inexact, product, sound
from .gram import Samples

SPARSE = 4  # entries of a row up to which, on average, a matrix is sparse
TOGETHER = 512  # columns that a core works on together
EQUATIONS = 1500  # for the weights of a layer that are solved together


class Cell(NamedTuple):
    """A pattern class: the pass of one of its samples, and its fit."""

    trace: list[Step]
    fit: ClassFit


def distance_to_minimum(
    theta: Parameters, loss: Loss, x: np.ndarray, classes: Iterable[Samples], radius: float
) -> float:
    """Return the distance within which an exact local minimum is shown to exist, or infinity.

    `x` holds a sample of each class, `classes` the features and targets of all of its samples, on
    the host as theta is; patterns are constant within `radius`, and distances of half of it or more
    are of no use. With all layers but one as they are, a dense one, outputs are affine in its W and
    b: U_s W H_s (x, 1) + const in class s, with H_s and U_s the active parts of the layers below
    and above. So U_s W H_s has to change by the changes D_s of the fits. Where all U_s agree, or
    all H_s, a right inverse of what is multiplied from the left and a left inverse of what is from
    the right bound that change; otherwise a right inverse of the linear equations for W does.
    """
    layers = enumerate(theta.net.chain, 1)
    dense = [n for n, layer in layers if isinstance(layer, Dense) and layer.bias]
    unknowns = [theta.W[n].shape[0] * (theta.W[n].shape[1] + 1) for n in dense]
    if len(x) * theta.W[theta.net.depth].shape[0] > max(unknowns, default=0):
        return np.inf
    cells = []
    for sample, samples in zip(x, classes, strict=True):
        _, columns = next(theta.net.chunks(theta, sample[None]))
        trace = list(steps(theta, columns))
        fit = class_fit(loss, _stored_map(theta, trace), samples)
        if fit is None:
            return np.inf
        cells.append(Cell(trace, fit))
    for way in (_same_above, _same_below, _equations):
        for layer in reversed(dense):
            change = way(theta, cells, layer)
            if change is not None and change.magnitude.max() < radius / 2:
                return float(change.magnitude.max())
    return np.inf


def _same_above(theta: Parameters, cells: list[Cell], layer: int) -> Enclosure | None:
    """Return the change of layer (W, b) if all classes have the same pattern from it on, or None.

    W [H_1, H_2, ...] has to change by what the layers above make the D_s of.
    """
    columns = sum(cell.fit.basis.shape[1] for cell in cells)
    rows = theta.W[layer].shape[1] + 1
    if columns > rows or rows * columns > LARGEST or not _agree(cells, layer - 1, theta.net.depth):
        return None
    D = concatenate([cell.fit.change for cell in cells], axis=1)
    if layer < theta.net.depth or theta.net.is_active(layer):
        U = _downwards(cells[0].trace, layer)
        D = through_inverse(D.T, U.T)
        if D is None:
            return None
        D = D.T
    parts = [_upwards(theta, cell.trace, cell.fit.basis, layer) for cell in cells]
    return through_inverse(D, concatenate(parts, axis=1))


def _same_below(theta: Parameters, cells: list[Cell], layer: int) -> Enclosure | None:
    """Return the change of layer (W, b) if all classes have the same pattern below it, or None.

    [U_1; U_2; ...] W has to change by the D_s, as maps of all features, through H.
    """
    first, n = theta.net.leading_poolings, cells[0].fit.basis.shape[0]
    outputs, width = len(cells) * len(cells[0].fit.change), theta.W[layer].shape[0]
    rows = theta.W[layer].shape[1] + 1
    if outputs > width or n > rows or rows * n > LARGEST or not _agree(cells, first, layer - 1):
        return None
    changes = [_of_features(cell.fit) for cell in cells]
    if any(change is None for change in changes):
        return None
    H = _upwards(theta, cells[0].trace, exact(np.eye(n)), layer)
    D = through_inverse(concatenate(changes), H)
    U = concatenate([_downwards(cell.trace, layer) for cell in cells])
    return None if D is None else through_inverse(D.T, U.T)


def _equations(theta: Parameters, cells: list[Cell], layer: int) -> Enclosure | None:
    """Return the least change of layer (W, b) with which U_s W H_s changes by D_s, or None."""
    unknowns = theta.W[layer].shape[0] * (theta.W[layer].shape[1] + 1)
    number = sum(cell.fit.change.middle.size for cell in cells)
    if number > min(unknowns, EQUATIONS) or number * unknowns > LARGEST / 10:
        return None
    parts, changes = [], []
    for cell in cells:
        U = _downwards(cell.trace, layer)  # (d_y, n_l)
        H = _upwards(theta, cell.trace, cell.fit.basis, layer)  # (n_{l-1} + 1, k)
        part = U.T.reshape(U.shape[1], 1, U.shape[0], 1) * H.reshape(1, H.shape[0], 1, H.shape[1])
        parts.append(part.reshape(unknowns, -1))
        changes.append(cell.fit.change.reshape(1, -1))
    return through_inverse(concatenate(changes, axis=1), concatenate(parts, axis=1))


def _agree(cells: list[Cell], first: int, last: int) -> bool:
    """Return whether all classes have the same pattern in the steps from `first` to `last`."""
    for cell in cells[1:]:
        for step, other in zip(cell.trace[first:last], cells[0].trace[first:last], strict=True):
            if step.W.selects and (step.matrix.choice != other.matrix.choice).any():
                return False
            if step.kinked and ((step.own_z > 0) != (other.own_z > 0)).any():
                return False
    return True


def _of_features(fit: ClassFit) -> Enclosure | None:
    """Return the change of the fit as a map of all features, 0 where others determine them."""
    if fit.kept is None:
        return through_inverse(fit.change, fit.basis)
    shape = len(fit.change), len(fit.basis)
    found = Enclosure(np.zeros(shape), np.zeros(shape))
    found.middle[:, fit.kept], found.radius[:, fit.kept] = fit.change.middle, fit.change.radius
    return found


@np.errstate(**QUIET)
def through_inverse(D: Enclosure, M: Enclosure) -> Enclosure | None:
    """Return D'' with D'' M = D, D (d, k) and M (n, k); None where none is shown to exist.

    D'' = D (Q M)^-1 Q for a float left inverse Q of M, on the rows of M that are not 0. With
    E = I - Q M and the largest column sum e of |E| below 1, D (I - E)^-1 differs from D by at most
    max |D| e / (1 - e).
    """
    used = (M.middle != 0).any(axis=1) | (M.radius != 0).any(axis=1)
    n, k = int(used.sum()), M.shape[1]
    if n < k or not np.isfinite(M.middle).all():
        return None
    if n == k and _is_sparse(M.middle) and _is_sparse(M.radius):
        middle, radius = (scipy.sparse.csr_array(part)[used] for part in (M.middle, M.radius))
        Q, e = _sparse_inverse(middle, radius)
    else:
        M = M if used.all() else M[used]
        Q = _left_inverse(M.middle)
        e = np.inf if Q is None else _error(Q, M)
    if not e < 1:
        return None
    largest = D.magnitude.max(axis=1, keepdims=True)
    more = largest * (e / (1 - e) * WIDER) + SMALLEST * (largest > 0)  # Q may be large
    change = _products(Q.T)(D.wider(more).T).T
    shape = len(D), len(used)
    found = Enclosure(np.zeros(shape), np.zeros(shape))
    found.middle[:, used], found.radius[:, used] = change.middle, change.radius
    return found


def _error(Q: np.ndarray, M: Enclosure) -> float:
    """Return a bound of the largest column sum of |I - Q M|."""
    times, identity = _products(Q), np.eye(len(Q))

    def largest_sum(columns: slice) -> float:
        E = identity[:, columns] - times(M[:, columns])
        return float(E.magnitude.sum(axis=0).max())

    sums = list(in_order(largest_sum, _columns(len(Q)), np))
    return float(np.max(sums)) * (1 + 2 * gamma(len(Q)))  # NaN where one is


def _sparse_inverse(
    middle: scipy.sparse.csr_array, radius: scipy.sparse.csr_array
) -> tuple[np.ndarray | scipy.sparse.csr_array | None, float]:
    """Return a float inverse of a matrix of few entries, or None, and the bound of `_error`."""
    try:
        factors = scipy.sparse.linalg.splu(middle.tocsc())
    except RuntimeError:  # it is singular
        return None, np.inf
    n = middle.shape[0]

    def inverted(some: slice) -> scipy.sparse.csc_array:
        return scipy.sparse.csc_array(factors.solve(np.eye(n, some.stop - some.start, -some.start)))

    few = scipy.sparse.hstack(list(in_order(inverted, _columns(n), np)), format="csr")
    terms = int(np.diff(few.indptr).max(initial=0)) + 2
    share, size = gamma(terms), abs(middle)
    size.data = size.data * share + SMALLEST
    E = abs(scipy.sparse.eye_array(n, format="csr") - few @ middle)
    off = (abs(few) @ (size + radius)).sum(axis=0) * (1 + 2 * share)
    found = E.sum(axis=0) * (1 + 2 * EPSILON) + off + 2 * n * terms * SMALLEST
    return few, float(found.max()) * (1 + 2 * gamma(n))


def _left_inverse(M: np.ndarray) -> np.ndarray | None:
    """Return a float left inverse of M (n, k), or None."""
    if len(M) == M.shape[1]:
        try:
            Q = np.linalg.inv(M)
        except np.linalg.LinAlgError:  # M is singular
            return None
        return Q if np.isfinite(Q).all() else None
    q, r = np.linalg.qr(M)
    if not (np.isfinite(r).all() and np.diag(r).all()):
        return None
    return scipy.linalg.solve_triangular(r, q.T)


def _is_sparse(M: np.ndarray) -> bool:
    return np.count_nonzero(M) <= SPARSE * len(M)


def _columns(count: int) -> list[slice]:
    """Return slices of columns that are worked on together."""
    return [slice(n, min(n + TOGETHER, count)) for n in range(0, count, TOGETHER)]


def _products(Q: np.ndarray | scipy.sparse.csr_array) -> Callable[[Enclosure], Enclosure]:
    """Return the function Q M of M; a Q of layers that only relay has few entries."""
    if not scipy.sparse.issparse(Q) and not _is_sparse(Q):
        return lambda M: exact(Q) @ M
    few = scipy.sparse.csr_array(Q)
    sizes, terms = abs(few), int(np.diff(few.indptr).max(initial=0)) + 2
    share = gamma(terms)

    def product(M: Enclosure) -> Enclosure:
        off = sizes @ inexact(abs(M.middle), M.radius, share) + 2 * terms * SMALLEST
        return sound(few @ M.middle, off * (1 + 2 * share))

    return product


# What a pattern makes of the layers


def _stored_map(theta: Parameters, trace: list[Step]) -> Enclosure:
    """Return F (d_y, n + 1) with o = F (x, 1) on the pattern of a pass of one sample."""
    v = exact(np.eye(len(trace[-1].o)))  # columns: the transpose of the map from o^l on
    constant = exact(np.zeros(len(v)))
    for step in reversed(trace[theta.net.leading_poolings :]):
        if step.activation is not None:
            v = _scaled(v, step.slopes)
        if step.b is not None:
            b = step.W.spread(step.b)
            off = (abs(b) @ v.radius) * (1 + 2 * gamma(len(b)))
            found = doubled_product(b[None], v.middle)[0]
            constant = constant + found.wider(off)
        v = _transposed_product(step, v)
    return concatenate([v.T, constant.reshape(-1, 1)], axis=1)


def _upwards(theta: Parameters, trace: list[Step], basis: Enclosure, layer: int) -> Enclosure:
    """Return (H x, 1) for the columns (x, 1) of a basis, H what is active up to o^{layer-1}."""
    parts = [basis[:, some] for some in _columns(basis.shape[1])]
    moved = in_order(lambda part: _moved_up(theta, trace, part, layer), parts, np)
    return concatenate(list(moved), axis=1)


def _moved_up(theta: Parameters, trace: list[Step], basis: Enclosure, layer: int) -> Enclosure:
    v, c = basis[:-1], basis[-1:]
    for step in trace[theta.net.leading_poolings : layer - 1]:
        v = _product(step, v)
        if step.b is not None:
            v = _with_constants(v, step.W.spread(step.b), c.middle)
        if step.activation is not None:
            v = _scaled(v, step.slopes)
    return concatenate([v, c])


def _downwards(trace: list[Step], layer: int) -> Enclosure:
    """Return the active part U from z^layer to the outputs, (d_y, n_layer), of one pattern."""
    v = exact(np.eye(len(trace[-1].o)))  # columns: the transpose of U
    for step in reversed(trace[layer:]):
        if step.activation is not None:
            v = _scaled(v, step.slopes)
        v = _transposed_product(step, v)
    if trace[layer - 1].activation is not None:
        v = _scaled(v, trace[layer - 1].slopes)
    return v.T


def _with_constants(v: Enclosure, b: np.ndarray, c: np.ndarray) -> Enclosure:
    """Return v + b c for columns of neurons: what rounds is known exactly where c is 0 or 1."""
    some = c[0] != 0
    middle, radius, factors = v.middle.copy(), v.radius.copy(), c[:, some]
    terms = b[:, None] * factors
    middle[:, some], rest = two_sum(v.middle[:, some], terms)
    off = abs(rest) + radius[:, some]
    radius[:, some] = (off + (factors != 1) * (EPSILON * abs(terms) + SMALLEST)) * WIDER
    return Enclosure(middle, radius)


def _transposed_product(step: Step, v: Enclosure) -> Enclosure:
    """Return W^T v for columns v of a step of one sample."""
    W, off = step.matrix, v.radius
    own = W.own_matrix if isinstance(W, BlockMatrix) else W
    terms = own.fan_out
    if own.weights is not None and own.weights.ndim > 1:  # the most terms of a column
        counts = np.count_nonzero(own.weights, axis=(0, *range(2, own.weights.ndim)))
        terms = max(1, int(counts.max()))
    terms += W.fan_out - own.fan_out  # identities of a residual block
    if terms > 1 or not _of_powers(step, v):
        share = gamma(terms + 2)
        off = abs(W).T @ inexact(abs(v.middle), off, share) + 2 * terms * SMALLEST
        return Enclosure(W.T @ v.middle, off * (1 + 2 * share))
    return Enclosure(W.T @ v.middle, abs(W).T @ off)


def _product(step: Step, v: Enclosure) -> Enclosure:
    """Return W v for columns v of a step of one sample."""
    W = step.matrix
    if _of_powers(step, v) and (step.W.selects or W.fan_in <= 1):
        return Enclosure(W @ v.middle, abs(W) @ v.radius)
    return product(W, v)


def _of_powers(step: Step, v: Enclosure) -> bool:
    """Return whether all entries of W are powers of two, or 0: single products round nothing."""
    weights, sizes = step.matrix.weights, abs(v.middle)
    if weights is None:
        return step.W.selects
    powers, exponents = np.frexp(weights)
    moderate = (abs(exponents) < 100).all() and sizes.min(where=sizes > 0, initial=1.0) > 1e-200
    return bool(moderate and np.isin(abs(powers), (0, 0.5)).all())


def _scaled(v: Enclosure, slopes: np.ndarray) -> Enclosure:
    """Return columns of neurons times the slopes (n, 1) of the activation."""
    if np.isin(slopes, (0, 1)).all():  # nothing rounds
        return Enclosure(slopes * v.middle, slopes * v.radius)
    off = (slopes != 1) * (slopes != 0) * (EPSILON * abs(v.middle) + SMALLEST)
    return Enclosure(slopes * v.middle, (slopes * v.radius + slopes * off) * WIDER)
