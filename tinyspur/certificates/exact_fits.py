"""Exact local minima of the squared loss, for points whose cells are settled by affine fits.

A stored point is next to one of fractions that is exactly a local minimum: all layers but a dense
one stay as they are stored, and the weights of that one are solved for, so that in every pattern
class the outputs are those of an optimal affine fit. Then all is checked in fractions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.losses import Loss, SquaredLoss
from ..engine.network import Network, check_at
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.rational import Rational, digits, independent_rows, joined, solve, solve_left
from ..layers import Dense
from .cell import check_relu
from .certificate import in_float64
from .exact import ExactPoint, on_pattern
from .exact_cells import Cell, find_cells, same_cell, samples_of

NEAR = Fraction(1, 10**4)  # of the largest weight of the layer: what a stored minimum is off by


class ExactMinimum(NamedTuple):
    """An exact local minimum `point`, the layer that differs from the stored one, by `distance`."""

    point: ExactPoint
    layer: int
    classes: int
    risk: Fraction
    distance: Fraction


def check_exact(theta: Parameters, data: TrainingSet, loss: Loss) -> Parameters:
    """Return theta in float64 on the host, or raise ValueError where there are no exact points."""
    check_at(theta, data, loss)
    if type(loss) is not SquaredLoss:
        raise ValueError(
            f"exact: expected the squared loss, got {loss.name}: its minima are no fractions"
        )
    check_relu(theta, "exact")
    return in_float64(theta, np)


def exact_minimum(theta: Parameters, data: TrainingSet, loss: Loss) -> ExactMinimum:
    """Return the exact local minimum next to a stored point, with one dense layer solved for.

    Raises AssumptionError where there is none: units at the kink, outputs that no weights of a
    dense layer make optimal in every class, other patterns there, or numbers that are too long;
    ValueError for another loss or a smooth activation.
    """
    theta = check_exact(theta, data, loss)
    layers = enumerate(theta.net.chain, 1)
    dense = [n for n, layer in layers if isinstance(layer, Dense) and layer.bias]
    cells = find_cells(ExactPoint(theta), data)
    fits = [fit_class(*samples_of(theta, data, cell)) for cell in cells]
    nearest = None
    for layer in reversed(dense):
        own = _by_outputs(theta, cells, fits, layer)
        own = _by_inputs(theta, cells, fits, layer) if own is None else own
        if own is None:
            continue
        stored = ExactPoint(theta).dense(layer)
        distance = (own - stored).largest()
        if distance <= NEAR * stored.largest():
            point = ExactPoint(theta, {layer: own.reduced()})
            risk = check_minimum(point, layer, data, cells, fits)
            return ExactMinimum(point, layer, len(cells), risk, distance)
        nearest = distance if nearest is None else min(nearest, distance)
    got = f"one at distance {digits(nearest, 2)} from it" if nearest else "one with no such layer"
    raise AssumptionError(
        "exact: expected a point next to one where the weights of a dense layer make the outputs "
        f"the optimal affine fit in {_classes(len(cells))}, got {got}"
    )


def _is_last(net: Network, layer: int) -> bool:
    """Return whether the outputs are z of this layer, with no pattern."""
    return layer == net.depth and not net.is_active(layer)


def _classes(number: int) -> str:
    return f"each of {number} pattern classes" if number > 1 else "its one pattern class"


# Pattern classes


class ClassFit(NamedTuple):
    """The optimal affine fit of a class: o = F z, z the columns `kept` of (x, 1), which are
    independent, and (x, 1) = `basis` z for its samples; `gram` is sum_i z_i (x_i, 1)^T, `targets`
    sum_i y_i (x_i, 1)^T.
    """

    F: Rational
    kept: np.ndarray
    basis: Rational
    gram: Rational
    targets: Rational
    squares: Fraction


def fit_class(hats: Rational, y: Rational) -> ClassFit:
    """Return the optimal affine fit of targets y (N, d_y) to features (x, 1), (N, n + 1).

    Columns that depend on others are left out: constant ones, copies, and whatever else does.
    """
    kept, basis = _distinct(hats)
    gram = hats[:, kept].T @ hats[:, kept]
    some = np.sort(len(kept) - 1 - independent_rows(gram.n[::-1, ::-1]))  # the constant first
    if len(some) < len(kept):
        others = np.setdiff1d(np.arange(len(kept)), some)
        square = gram.n[np.ix_(some, some)]
        shares = solve(square, gram.n[np.ix_(some, others)])
        whole = np.zeros((len(kept), len(some)), dtype=object)
        whole[some, np.arange(len(some))] = shares.d
        whole[others] = shares.n.T
        kept, basis = kept[some], basis @ Rational(whole, shares.d)
        gram = Rational(square, gram.d)
        if not (hats[:, kept] @ basis.T - hats).is_zero():  # a prime divides a minor
            raise AssumptionError("exact: expected features whose rank is known, got others")
    z = hats[:, kept]
    targets = y.T @ hats
    X = solve(gram.n, targets.n[:, kept].T)
    # (gram.n / d^2) F^T = targets.n^T / (d d_y)
    F = Rational(X.n.T * hats.d, X.d * y.d)
    squares = Fraction(sum(int(v) ** 2 for v in y.n.flat), y.d**2)
    return ClassFit(F, kept, basis, z.T @ hats, targets, squares)


def _distinct(hats: Rational) -> tuple[np.ndarray, Rational]:
    """Return the columns but constant ones and copies, and the matrix that makes all of these.

    The last column, of ones, is kept.
    """
    n = hats.n
    last, place, kept = n.shape[1] - 1, {}, []
    constant = (n == n[0]).all(axis=0).astype(bool)
    keys = {}
    for j in np.flatnonzero(~constant):
        column = n[:, j]
        key = tuple(column) if column.dtype == object else column.tobytes()
        if key not in keys:
            keys[key] = len(kept)
            kept.append(int(j))
        place[int(j)] = keys[key]
    basis = np.zeros((last + 1, len(kept) + 1), dtype=n.dtype)
    for j, k in place.items():
        basis[j, k] = hats.d
    basis[constant, -1] = n[0, constant]
    return np.array([*kept, last]), Rational(basis, hats.d)


# Weights of one layer


def _by_outputs(
    theta: Parameters, cells: list[Cell], fits: list[ClassFit], layer: int
) -> Rational | None:
    """Return [W, b] of a layer above which all patterns agree, or None.

    With U from z^layer to the outputs, o = U W h + c where h = M_s z. U W M_s = F_s - c.
    """
    U, constants = _above(theta, cells[0], layer)
    for cell in cells[1:]:
        other, c = _above(theta, cell, layer)
        if not ((U - other).is_zero() and (constants - c).is_zero()):
            return None
    point = ExactPoint(theta)
    first = theta.net.leading_poolings + 1
    parts = [
        on_pattern(point, cell.pattern, fit.basis, first, layer - 1)
        for cell, fit in zip(cells, fits, strict=True)
    ]
    M = joined(parts, axis=1)
    T = joined([fit.F - constants @ fit.basis[-1:] for fit in fits], axis=1)
    W = point.dense(layer)
    X = _solve_rows(U @ W, M, T)
    if X is None or _is_last(theta.net, layer):
        return X
    found = _solve_rows(W.T, U.T, X.T)
    return None if found is None else found.T


def _by_inputs(
    theta: Parameters, cells: list[Cell], fits: list[ClassFit], layer: int
) -> Rational | None:
    """Return [W, b] of a layer below which all patterns agree, or None.

    With h = M (x, 1) it is U_s W M (x, 1) + c_s = F_s z on class s. Fits that are not unique are
    changed in the columns that are kept only.
    """
    for n in range(theta.net.leading_poolings + 1, layer):
        if any((c.pattern[n] != cells[0].pattern[n]).any() for c in cells if n in c.pattern):
            return None
    if any(cell.dead for cell in cells):
        return None
    point, n = ExactPoint(theta), fits[0].basis.n.shape[0]
    first = theta.net.leading_poolings + 1
    identity = Rational(np.eye(n, dtype=np.int64), 1)
    M = on_pattern(point, cells[0].pattern, identity, first, layer - 1)
    W = point.dense(layer)
    stored, rows, targets = W @ M, [], []
    for cell, fit in zip(cells, fits, strict=True):
        U, constants = _above(theta, cell, layer)
        given = U @ stored
        change = fit.F - constants @ fit.basis[-1:] - given @ fit.basis
        d = Rational(np.zeros(given.n.shape, dtype=object), change.d)
        d.n[:, fit.kept] = change.n
        rows.append(U)
        targets.append(given + d)
    Y = _solve_rows(stored.T, joined(rows, axis=0).T, joined(targets, axis=0).T)
    return None if Y is None else _solve_rows(W, M, Y.T)


def _above(theta: Parameters, cell: Cell, layer: int) -> tuple[Rational, Rational]:
    """Return U and the constants (d_y, 1) of o = U z^layer + c on the pattern of a class."""
    net, point = theta.net, ExactPoint(theta)
    slopes = on_slopes(net, cell, layer)
    v = Rational(np.diag(np.append(slopes.n, slopes.d)), slopes.d)
    found = on_pattern(point, cell.pattern, v, layer + 1, net.depth)
    return found[:-1, :-1], found[:-1, -1:]


def on_slopes(net, cell: Cell, layer: int) -> Rational:
    """Return the slopes of a layer on the pattern of a class, (n_l,)."""
    sigma = net.activation_of(layer)
    if sigma is None:
        return Rational(np.ones(net.shapes[layer], dtype=np.int64), 1)
    slope = Fraction(sigma.slope)
    active = cell.pattern[layer][:, 0]
    return Rational(np.where(active, slope.denominator, slope.numerator), slope.denominator)


def _solve_rows(W: Rational, M: Rational, T: Rational) -> Rational | None:
    """Return W with W M = T, changed in as few columns as there are independent columns of M.

    None where there is no such W.
    """
    rows = np.flatnonzero((M.n != 0).any(axis=1))
    some = np.arange(M.n.shape[1])
    if len(rows) != len(some):
        rows = independent_rows(M.n)
    if len(rows) < len(some):
        some = independent_rows(M.n[rows].T)
    if len(rows) != len(some):
        return None
    others = np.setdiff1d(np.arange(len(M.n)), rows)
    others = others[(M.n[others] != 0).any(axis=1)]
    rest = T - W[:, others] @ M[others] if others.size else T
    V = solve_left(M[np.ix_(rows, some)], rest[:, some])
    if V is None:
        return None
    kept = np.setdiff1d(np.arange(len(M.n)), rows)
    found = Rational(np.zeros(W.n.shape, dtype=object), 1)
    parts = joined([W[:, kept], V], axis=1)
    found.n[:, np.concatenate([kept, rows])] = parts.n
    found = Rational(found.n, parts.d)
    if len(some) < M.n.shape[1] and not (found @ M - T).is_zero():
        return None
    return found


# The check


def check_minimum(
    point: ExactPoint, layer: int, data: TrainingSet, cells: list[Cell], fits: list[ClassFit]
) -> Fraction:
    """Return the risk of a point that is exactly a local minimum, or raise AssumptionError.

    Checked are, in fractions: no unit at the kink, the same pattern classes, and
    G_s = sum_i (F z_i - y_i) (x_i, 1)^T = 0 in each for the network's own map F on it. Then the
    squares of the residuals of a class sum up to |Y|^2 - <F, Y Z^T>.
    """
    net, total = point.theta.net, Fraction(0)
    now = cells if _is_last(net, layer) else find_cells(point, data)
    same = len(cells) == len(now) and all(map(same_cell, cells, now))
    if not same:
        raise AssumptionError(
            "exact: expected the patterns of the stored point, got others: the exact minimum of "
            "its cell is outside"
        )
    for cell, fit in zip(cells, fits, strict=True):
        first = net.leading_poolings + 1
        F = on_pattern(point, cell.pattern, fit.basis, first, net.depth)[:-1]
        if not (F @ fit.gram - fit.targets).is_zero():
            raise AssumptionError("exact: expected G_s = 0 in every class, got another")
        Z = fit.targets[:, fit.kept]
        total += fit.squares - Fraction(
            sum(int(a) * int(b) for a, b in zip(F.n.flat, Z.n.flat, strict=True)), F.d * Z.d
        )
    return total / (2 * len(data))
