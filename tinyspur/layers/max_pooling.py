"""Max pooling, for given inputs a matrix: the one that selects the largest entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from .layer import Shape
from .matrix import TransposedMatrix, WeightMatrix
from .windows import Pooling, PoolingMatrix

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class MaxPool(Pooling):
    """Max pooling over windows of `size` that do not overlap; of equal entries the first."""

    type = "max_pool"
    selects = True

    def matrix(self, below: Shape, weights: None = None) -> MaxPoolingMatrix:
        return MaxPoolingMatrix(below[0], below[1:], self.size)

    @staticmethod
    def torch_class(directions: int) -> type[nn.Module]:
        from torch import nn

        return {1: nn.MaxPool1d, 2: nn.MaxPool2d}[directions]


class MaxPoolingMatrix(PoolingMatrix):
    """The largest entry of windows of `size` in each direction that do not overlap.

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
        left = xp.ones(self.windows(terms[0]).shape, dtype=bool)
        for term, tolerance in zip(terms, tolerances, strict=True):
            values, slack = self.windows(term), self.windows(tolerance)
            choice = xp.where(left, values, -np.inf).argmax(axis=0)
            chosen = xp.arange(len(values))[:, None, None] == choice
            least = xp.where(chosen, values - slack, -np.inf).max(axis=0)
            left = left & (values + slack >= least)
        return SelectionMatrix(self, choice)

    def choice(self, o: Array) -> Array:
        """Return the number of the largest entry of each window, (n_l, N), counted row by row."""
        return self.windows(o).argmax(axis=0)

    def gaps(self, o: Array, still: Array, change: Array | float = 0) -> Array:
        """Return by how much the selected entries exceed all others of their windows, (n_l, N).

        The gap is what remains if entries change by at most `change`, (n_{l-1}, N); where it is
        negative the selection may change. It is infinite where there is no other entry, and where
        the selected entry and the others are `still`, so that they can't change.
        """
        xp, windows = namespace(o), self.windows(o)
        chosen = xp.arange(len(windows))[:, None, None] == windows.argmax(axis=0)
        fixed = self.windows(still)
        apart = chosen | (fixed & (fixed & chosen).any(axis=0))
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
        return self.windows(o).max(axis=0)


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
        return 1

    @property
    def nnz(self) -> int:
        return self.shape[0]

    def _details(self) -> str:
        samples = self.choice.shape[1]
        return self.pooling._details() + f", of {samples} sample{'s' * (samples > 1)}"

    def _chosen(self, columns: int) -> Array:
        """Return which entries of the windows are selected, (size^d, n_l, N)."""
        if self.choice.shape[1] not in (1, columns):
            raise ValueError(
                f"{self!r}: expected {self.choice.shape[1]} columns, one for each sample, got "
                f"{columns}"
            )
        entries = self.pooling.size ** len(self.pooling.map_shape)
        return namespace(self.choice).arange(entries)[:, None, None] == self.choice

    def _product(self, o: Array) -> Array:
        return namespace(o).where(self._chosen(o.shape[1]), self.pooling.windows(o), 0).sum(axis=0)

    def adjoint(self, delta: Array) -> Array:
        chosen = self._chosen(delta.shape[1])
        return self.pooling.from_windows(namespace(delta).where(chosen, delta, 0))
