"""Max pooling, for given inputs a matrix: the one that selects the largest entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from .layer import Shape, are_positive
from .matrix import TransposedMatrix, WeightMatrix
from .windows import Pooling, PoolingMatrix

if TYPE_CHECKING:
    from torch import nn

FEW = 16  # entries of a window that are quicker one after the other than all at once


@dataclass(frozen=True, repr=False)
class MaxPool(Pooling):
    """Max pooling; see `Pooling`. By default over windows of `size` that do not overlap.

    Of equal entries the first is selected; none of the padding is. Entries of a window are
    `dilation` apart.
    """

    dilation: int | tuple[int, ...] = 1

    type = "max_pool"
    selects = True
    more = ("dilation",)

    def check(self) -> None:
        super().check()
        if not are_positive(self.dilation):
            raise ValueError("expected positive whole numbers")

    def matrix(self, below: Shape, weights: None = None) -> MaxPoolingMatrix:
        options = self.size, self.stride, self.padding, self.ceil_mode, self.dilation
        return MaxPoolingMatrix(below[0], below[1:], *options)

    @staticmethod
    def torch_classes(directions: int) -> tuple[type[nn.Module], ...]:
        from torch import nn

        one, two = (nn.MaxPool1d, nn.AdaptiveMaxPool1d), (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
        return {1: one, 2: two}[directions]


class MaxPoolingMatrix(PoolingMatrix):
    """The largest entry of windows, with the options of `MaxPool`.

    Not linear: ``W @ o`` takes the maxima, ``W.at(o)`` is the matrix that selects them.

    >>> W = MaxPoolingMatrix(1, (4,), 2)
    >>> W.at(np.array([3.0, 1.0, 2.0, 5.0])).toarray()
    array([[1., 0., 0., 0.],
           [0., 0., 0., 1.]])
    """

    selects = True

    def at(self, o: Array) -> SelectionMatrix:
        """Return the matrix that selects the largest entries of o, the first of equal ones."""
        return SelectionMatrix(self, self.choice(o if o.ndim == 2 else o[:, None]))

    def at_limit(self, terms: list[Array], tolerances: list[Array]) -> SelectionMatrix:
        """Return the selection at terms[0] + t terms[1] + ... for t -> 0+, all (n_{l-1}, N).

        Each term decides among the entries that are equal, up to the tolerances, in all terms
        before it.
        """
        xp, choice = namespace(terms[0]), None
        left = xp.ones((self.fan_in, self.shape[0], terms[0].shape[1]), dtype=bool)
        inside = self.inside(terms[0])
        left = left if inside is None else left & inside
        for term, tolerance in zip(terms, tolerances, strict=True):
            values, slack = self.windows(term), self.windows(tolerance)
            choice = xp.where(left, values, -np.inf).argmax(axis=0)
            chosen = xp.arange(len(values))[:, None, None] == choice
            least = xp.where(chosen, values - slack, -np.inf).max(axis=0)
            left = left & (values + slack >= least)
        return SelectionMatrix(self, choice)

    def choice(self, o: Array) -> Array:
        """Return the number of the largest entry of each window, (n_l, N), counted row by row."""
        xp, shape = namespace(o), (self.maps_in, *self.grid.output_shape, o.shape[1])
        short = np.uint8 if self.fan_in <= 256 else np.intp
        if o.dtype == object or (self.tiles and self.fan_in > FEW):
            return self.windows(o, -np.inf).argmax(axis=0).astype(short)
        found = xp.empty(shape, dtype=short)
        for part, (first, *others) in self.reads(o, -np.inf):
            largest, numbers = xp.array(first, order="C"), xp.zeros(first.shape, dtype=short)
            for k, values in enumerate(others, start=1):
                xp.maximum(numbers, (values > largest) * short(k), out=numbers)
                xp.maximum(largest, values, out=largest)
            found[part] = numbers
        return found.reshape(self.shape[0], o.shape[1])

    def gaps(self, o: Array, still: Array, change: Array | float = 0) -> Array:
        """Return by how much the selected entries exceed all others of their windows, (n_l, N).

        The gap is what remains if entries change by at most `change`, (n_{l-1}, N); where it is
        negative the selection may change. It is infinite where there is no other entry, and where
        the selected entry and the others are `still`, so that they can't change.
        """
        xp, inside = namespace(o), self.inside(o)
        chosen = xp.arange(self.fan_in)[:, None, None] == self.choice(o)
        fixed = self.windows(still)
        apart = chosen | (fixed & (fixed & chosen).any(axis=0))
        apart = apart if inside is None else apart | ~inside
        best = xp.where(chosen, self.windows(o - change), -np.inf).max(axis=0)
        return best - xp.where(apart, -np.inf, self.windows(o + change)).max(axis=0)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        raise TypeError(f"{self!r} has entries only for an input o: expected W.at(o)")

    @property
    def T(self) -> TransposedMatrix:
        raise TypeError(f"{self!r} has a transpose only for an input o: expected W.at(o).T")

    @property
    def nnz(self) -> int:
        return self.shape[0]

    def _product(self, o: Array) -> Array:
        if self.tiles:
            return self.windows(o).max(axis=0)
        return self.reduced(o, namespace(o).maximum, -np.inf)


class SelectionMatrix(WeightMatrix):
    """What a max pooling is for given inputs: one 1 in each row, at the entry that is `choice`.

    `choice` (n_l, N) counts the entries of windows row by row. With N > 1 there is a matrix for
    each sample, and products take column i with the matrix of sample i.
    """

    def __init__(self, pooling: MaxPoolingMatrix, choice: Array):
        self.pooling, self.choice = pooling, choice
        self.maps_in = self.maps_out = pooling.maps_in
        self.positions_in, self.positions_out = pooling.positions_in, pooling.positions_out

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        if self.choice.shape[1] != 1:
            raise TypeError(
                f"{self!r} has entries only for one sample, got those of {self.choice.shape[1]}"
            )
        places = self.pooling.windows(np.arange(self.shape[1])[:, None])[..., 0]
        n = np.arange(self.shape[0])
        entries = (np.ones(n.size), (n, places[to_numpy(self.choice)[:, 0], n]))
        csr = scipy.sparse.csr_array(entries, shape=self.shape)
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> TransposedMatrix:
        return TransposedMatrix(self)

    def repeated(self, times: int) -> SelectionMatrix:
        return SelectionMatrix(self.pooling, self.choice.repeat(times, axis=1))

    @property
    def fan_in(self) -> int:
        return 1

    @property
    def fan_out(self) -> int:
        return self.pooling.fan_out

    @property
    def nnz(self) -> int:
        return self.shape[0]

    def _details(self) -> str:
        samples = self.choice.shape[1]
        return self.pooling._details() + f", of {samples} sample{'s' * (samples > 1)}"

    def _check(self, columns: int) -> None:
        """Raise ValueError for another number of columns than there are samples."""
        if self.choice.shape[1] not in (1, columns):
            raise ValueError(
                f"{self!r}: expected {self.choice.shape[1]} columns, one for each sample, got "
                f"{columns}"
            )

    def _chosen(self, columns: int) -> Array:
        """Return which entries of the windows are selected, (size^d, n_l, N)."""
        self._check(columns)
        taps = namespace(self.choice).arange(self.pooling.fan_in, dtype=self.choice.dtype)
        return taps[:, None, None] == self.choice

    def _product(self, o: Array) -> Array:
        return namespace(o).where(self._chosen(o.shape[1]), self.pooling.windows(o), 0).sum(axis=0)

    def adjoint(self, delta: Array) -> Array:
        W, N = self.pooling, delta.shape[1]
        self._check(N)
        if W.tiles and W.fan_in > FEW:
            return W.from_windows(namespace(delta).where(self._chosen(N), delta, 0))
        if namespace(delta) is np and not W.tiles:
            return self._scattered(delta)
        delta = delta.reshape(W.maps_in, *W.grid.output_shape, N)
        choice = self.choice.reshape(*delta.shape[:-1], -1)
        return W.shares_back(delta, lambda part, k: delta[part] * (choice[part] == k))

    def _scattered(self, delta: np.ndarray) -> np.ndarray:
        """Return the same on the host, where each entry is added to what it selects."""
        W, N = self.pooling, delta.shape[1]
        starts, steps = W.grid.flat_places()
        choice, delta = (v.reshape(W.maps_in, W.positions_out, -1) for v in (self.choice, delta))
        found = np.empty((W.maps_in, W.positions_in * N), dtype=delta.dtype)
        for part in W.parts(N):
            places = (N * steps).take(choice[part])
            places = places + (N * starts[:, None] + np.arange(N))
            sums, shares = found[part], delta[part]
            places += (np.arange(len(sums)) * sums.shape[1])[:, None, None]
            sums[...] = np.bincount(places.ravel(), shares.ravel(), sums.size).reshape(sums.shape)
        return found.reshape(self.shape[1], N)
