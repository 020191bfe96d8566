"""Exact values: numbers stored in float64 are fractions, and a network computes fractions of them.

For ReLU and leaky ReLU, and any poolings. Columns are samples, or vectors (v, c) on which a pattern
makes the network a linear map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.sparse

from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.rational import FITS, Rational, joined, rational, size_of, times
from ..layers import AveragePoolingMatrix, BlockMatrix, WeightMatrix

PRODUCTS = 200_000  # products of fractions up to which a point counts as small
LONG_PRODUCTS = 5 * 10**7  # of long integers, in a layer


@dataclass(frozen=True)
class ExactPoint:
    """A point of fractions: those that float64 `theta` on the host holds, with exceptions.

    `own` has [W, b], (n_l, n_{l-1} + 1), of dense layers, `own_biases` b of convolutions. Of layers
    without biases b is 0.
    """

    theta: Parameters
    own: Mapping[int, Rational] = field(default_factory=dict)
    own_biases: Mapping[int, Rational] = field(default_factory=dict)

    def dense(self, layer: int) -> Rational:
        """Return [W, b] of a dense layer."""
        if layer in self.own:
            return self.own[layer]
        W = self.theta.W[layer].weights
        return rational(np.hstack([W, self._stored(layer)[:, None]]))

    def times(self, layer: int, o: Rational) -> Rational:
        """Return W^l o for columns o (n_{l-1}, N)."""
        W = self.theta.W[layer]
        if layer in self.own:
            return self.own[layer][:, :-1] @ o
        own, read, kept = split(W, o)
        found = _product(own, read)
        if isinstance(W, BlockMatrix) and W.added is not None:
            found = found + o[W.added]
        return joined([found, *kept], axis=0) if kept else found

    def biases(self, layer: int) -> Rational:
        """Return b^l of each unit, (n_l, 1)."""
        if layer in self.own:
            return self.own[layer][:, -1:]
        b = self.own_biases.get(layer) or rational(self._stored(layer))
        return Rational(self.theta.W[layer].spread(b.n)[:, None], b.d)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return {"W1": ..., "b1": ...}, arrays of Fraction in PyTorch's shapes."""
        found = {}
        for layer, slot in self.theta.net.slots.items():
            if layer in self.own:
                parts = self.own[layer][:, :-1], self.own[layer][:, -1]
            else:
                b = self.own_biases.get(layer) or rational(self._stored(layer))
                parts = rational(self.theta.W[layer].weights), b
            found[f"W{layer}"] = parts[0].fractions()
            if slot.biases:
                found[f"b{layer}"] = parts[1].fractions()
        return found

    def _stored(self, layer: int) -> np.ndarray:
        """Return b^l of each map as theta has it."""
        return self.theta.b.get(layer, np.zeros(self.theta.W[layer].maps_out))


def split(W: WeightMatrix, o: Rational | np.ndarray) -> tuple[WeightMatrix, Rational, list]:
    """Return a layer's own matrix, what it reads of o, and what a residual block carries beside."""
    if isinstance(W, BlockMatrix):
        return W.own_matrix, o[W.read], [o[part] for part in W.carried]
    return W, o, []


def _product(W: WeightMatrix, o: Rational) -> Rational:
    """Return W o for columns o of a matrix that is no part of a residual block."""
    if isinstance(W, AveragePoolingMatrix):
        shares, common = W.shares
        fits = o.n.dtype != object and size_of(o.n) * W.fan_in * common < FITS
        sums = W.windows(o.n if fits else o.n.astype(object), 0).sum(axis=0)
        return Rational(sums * shares[:, None], o.d * common)
    csr = W.tocsr()
    entries = rational(csr.data)
    parts = entries.n, csr.indices, csr.indptr
    whole = scipy.sparse.csr_array(parts, shape=csr.shape) if entries.n.dtype != object else None
    if whole is not None and o.n.dtype != object:
        most = int(abs(whole.astype(np.float64)).sum(axis=1).max(initial=0)) + 1
        if most * size_of(o.n) < FITS:
            return Rational(whole @ o.n, entries.d * o.d)
    return Rational(_long_product(*parts, o.n), entries.d * o.d)


def _selected(W: WeightMatrix, o: Rational, pattern: np.ndarray | None) -> tuple:
    """Return what a max pooling selects of o, with what is carried beside it, and the pattern.

    Without a pattern it is that of the largest entries.
    """
    own, read, kept = split(W, o)
    windows = own.windows(read.n)
    pattern = _argmax(windows, own.first_taps) if pattern is None else pattern
    found = Rational(np.take_along_axis(windows, pattern[None], axis=0)[0], o.d)
    return joined([found, *kept], axis=0) if kept else found, pattern


def _long_product(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, o: np.ndarray):
    if len(data) * o.shape[1] > LONG_PRODUCTS:
        raise AssumptionError(
            f"exact: expected at most {LONG_PRODUCTS:,} products of long integers in a layer, got "
            f"{len(data) * o.shape[1]:,}; fewer samples, or values with fewer bits, need fewer"
        )
    found, o = np.zeros((len(indptr) - 1, o.shape[1]), dtype=object), o.astype(object)
    for i, (start, stop) in enumerate(itertools.pairwise(indptr)):
        for w, j in zip(data[start:stop].tolist(), indices[start:stop].tolist(), strict=True):
            found[i] += o[j] if w == 1 else o[j] * w
    return found


class ExactStep(NamedTuple):
    """One layer of an exact pass: o = sigma(z), columns (n, N).

    `pattern` is True where z > 0, for max pooling the number of the selected entry; None where the
    layer has none.
    """

    layer: int
    z: Rational
    o: Rational
    pattern: np.ndarray | None


def exact_steps(point: ExactPoint, o: Rational, first: int, last: int) -> Iterator[ExactStep]:
    """Yield the steps of the layers first..last for columns o (n_{first-1}, N)."""
    net = point.theta.net
    for layer in range(first, last + 1):
        W, sigma, pattern = point.theta.W[layer], net.activation_of(layer), None
        if W.selects:
            o, pattern = _selected(W, o, None)
            z = o
        else:
            z = o = point.times(layer, o)
            if layer in net.slots:
                z = o = z + point.biases(layer)
            if sigma is not None:
                pattern = (z.n[: W.rows] > 0).astype(bool)
                o = activated(sigma, z, pattern)
        yield ExactStep(layer, z, o, pattern)


def _argmax(windows: np.ndarray, first: np.ndarray) -> np.ndarray:
    best = np.repeat(first[:, None], windows.shape[2], axis=1)
    for k in range(len(windows)):
        top = np.take_along_axis(windows, best[None], axis=0)[0]
        best[(windows[k] > top).astype(bool)] = k
    return best


def activated(sigma: ReLU, z: Rational, active: np.ndarray) -> Rational:
    """Return z where it is active, and the slope times z elsewhere.

    Rows beyond those that are known to be `active` or not are kept by a residual block as they are.
    """
    slope, kept = Fraction(sigma.slope), len(z.n) - len(active)
    if kept:
        active = np.concatenate([active, np.ones((kept, active.shape[1]), dtype=bool)])
    if slope == 0:
        return Rational(np.where(active, z.n, 0), z.d)
    n = np.where(active, times(z.n, slope.denominator), times(z.n, slope.numerator))
    return Rational(n, z.d * slope.denominator)


def on_pattern(
    point: ExactPoint, pattern: Mapping[int, np.ndarray], hats: Rational, first: int, last: int
) -> Rational:
    """Return (o^last, c) for columns (o^{first-1}, c), as the linear map that a pattern makes.

    The last row c says how many times biases count. `pattern` has (n_l, 1) for each layer.
    """
    net, v, c = point.theta.net, hats[:-1], hats[-1:]
    for layer in range(first, last + 1):
        W = point.theta.W[layer]
        if W.selects:
            v, _ = _selected(W, v, pattern[layer])
            continue
        v = point.times(layer, v)
        if layer in net.slots:
            v = v + point.biases(layer) @ c
        if (sigma := net.activation_of(layer)) is not None:
            v = activated(sigma, v, pattern[layer])
    return joined([v, c], axis=0)


def exact_outputs(theta: Parameters, x: np.ndarray) -> np.ndarray | None:
    """Return the outputs as fractions (N, d_y), or None where there are too many products.

    For ReLU and leaky ReLU, and any poolings; theta and x are on the host.
    """
    net = theta.net
    if any(type(sigma) is not ReLU for sigma in net.activations):
        return None
    products = sum(max(W.shape[0], 0 if W.selects else W.nnz) for W in theta.W.values())
    if products * len(x) > PRODUCTS:
        return None
    columns = rational(x.reshape(len(x), -1)).T
    for step in exact_steps(ExactPoint(theta), columns, 1, net.depth):
        columns = step.o
    return columns.T.fractions()


def meets_targets(theta: Parameters, data: TrainingSet) -> bool:
    """Return whether every output is its target exactly; False for too many products."""
    outputs = exact_outputs(theta.to(np), data.x)
    if outputs is None:
        return False
    return all(o == Fraction(float(y)) for o, y in zip(outputs.flat, data.y.flat, strict=True))


def rational_solution(A: list[list[float]], b: list[Fraction | float]) -> list[Fraction] | None:
    """Return an exact solution of A x = b by elimination, None where there is none.

    Unknowns that may be any number are 0.

    >>> rational_solution([[3, 1, 1]], [1])
    [Fraction(1, 3), Fraction(0, 1), Fraction(0, 1)]
    >>> rational_solution([[3], [1]], [1, 1])
    """
    rows = [[*map(Fraction, row), Fraction(value)] for row, value in zip(A, b, strict=True)]
    unknowns, pivots = len(A[0]), []
    for column in range(unknowns):
        done = len(pivots)
        pivot = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        rows[done] = [value / rows[done][column] for value in rows[done]]
        for i, row in enumerate(rows):
            if i != done and row[column]:
                rows[i] = [v - row[column] * p for v, p in zip(row, rows[done], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    found = [Fraction(0)] * unknowns
    for row, column in zip(rows, pivots, strict=False):
        found[column] = row[-1]
    return found
