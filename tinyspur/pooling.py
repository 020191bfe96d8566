"""Weight matrices of pooling layers, and what max pooling is at given inputs.

Average pooling is one matrix. Max pooling is one only for given inputs: its `at(o)` is the matrix
of zeros and ones that selects the largest entries. Both follow the contract of `matrices`.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse

from .backend import Array, namespace, to_numpy
from .matrices import WeightMatrix


class _PoolingMatrix(WeightMatrix):
    """What poolings share: windows of `size` in each direction that do not overlap."""

    def __init__(self, maps: int, map_shape: tuple[int, ...], size: int):
        if size < 1 or any(n % size for n in map_shape):
            raise ValueError(
                f"pooling: expected a size that divides the maps {tuple(map_shape)}, got {size}"
            )
        self.map_shape, self.size = tuple(map_shape), size
        self.maps_in = self.maps_out = maps
        self.positions_in = math.prod(map_shape)
        self.positions_out = self.positions_in // size ** len(map_shape)
        self._split = [m for n in self.map_shape for m in (n // size, size)]

    def _details(self) -> str:
        return f", {self.maps_in} map{'s' * (self.maps_in > 1)}, size {self.size}"

    def _windows(self, o: Array) -> Array:
        """Return the entries of all windows, (size^d, n_l, N), row by row in each."""
        axes = len(self._split)
        order = (*range(2, axes + 1, 2), 0, *range(1, axes, 2), axes + 1)
        if o.ndim != 2 or o.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r}: expected columns ({self.shape[1]}, N), got {o.shape}")
        windows = o.reshape(self.maps_in, *self._split, o.shape[1]).transpose(order)
        return windows.reshape(self.size ** len(self.map_shape), self.shape[0], o.shape[1])

    def _from_windows(self, windows: Array) -> Array:
        """Return the columns (n_{l-1}, N) whose windows these are."""
        sizes, coarse = self._split[1::2], self._split[::2]
        d = len(sizes)
        mixed = [axis for k in range(d) for axis in (d + 1 + k, k)]
        fine = windows.reshape(*sizes, self.maps_in, *coarse, windows.shape[-1])
        fine = fine.transpose(d, *mixed, 2 * d + 1)
        return fine.reshape(self.shape[1], windows.shape[-1])


class AveragePoolingMatrix(_PoolingMatrix):
    """The mean over windows of `size` in each direction that do not overlap ([CNN] (3), (11))."""

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        places = self._windows(np.arange(self.shape[1])[:, None])[..., 0]  # (size^d, n_l)
        i = np.broadcast_to(np.arange(self.shape[0]), places.shape).ravel()
        values = np.full(i.size, 1 / len(places))
        csr = scipy.sparse.csr_array((values, (i, places.ravel())), shape=self.shape)
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> TransposedMatrix:
        return TransposedMatrix(self)

    @property
    def nnz(self) -> int:
        return self.shape[1]

    def _product(self, o: Array) -> Array:
        axes = tuple(range(2, len(self._split) + 1, 2))
        return o.reshape(self.maps_in, *self._split, -1).mean(axis=axes).reshape(self.shape[0], -1)

    def _adjoint(self, delta: Array) -> Array:
        share = delta / self.size ** len(self.map_shape)
        window = (self.size ** len(self.map_shape), *delta.shape)
        return self._from_windows(namespace(delta).broadcast_to(share, window))


class MaxPoolingMatrix(_PoolingMatrix):
    """The largest entry of windows of `size` in each direction that do not overlap.

    Not linear: ``W @ o`` takes the maxima, ``W.at(o)`` is the matrix that selects them.

    >>> W = MaxPoolingMatrix(1, (4,), 2)
    >>> W.at(np.array([3.0, 1.0, 2.0, 5.0])).toarray()
    array([[1., 0., 0., 0.],
           [0., 0., 0., 1.]])
    """

    selects = True

    def at(self, o: Array) -> SelectionMatrix:
        """Return the selection of the largest entries of o; of equal ones the first is taken."""
        return SelectionMatrix(self, self.choice(o if o.ndim == 2 else o[:, None]))

    def at_limit(self, terms: list[Array], tolerances: list[Array]) -> SelectionMatrix:
        """Return the selection at terms[0] + t terms[1] + ... for t -> 0+, all (n_{l-1}, N).

        A term decides among the entries that those before it leave equal, up to the tolerances.
        """
        xp, choice = namespace(terms[0]), None
        left = xp.ones(self._windows(terms[0]).shape, dtype=bool)
        for term, tolerance in zip(terms, tolerances, strict=True):
            values, slack = self._windows(term), self._windows(tolerance)
            choice = xp.where(left, values, -np.inf).argmax(axis=0)
            chosen = xp.arange(len(values))[:, None, None] == choice
            least = xp.where(chosen, values - slack, -np.inf).max(axis=0)
            left = left & (values + slack >= least)
        return SelectionMatrix(self, choice)

    def choice(self, o: Array) -> Array:
        """Return which entry of its window is the largest, (n_l, N), counted row by row."""
        return self._windows(o).argmax(axis=0)

    def gaps(self, o: Array, still: Array, change: Array | float = 0) -> Array:
        """Return by how much the selected entries exceed all others of their windows, (n_l, N).

        What is left of it where entries change by at most `change`, shape (n_{l-1}, N); a negative
        gap may close. No gap is needed, and it is infinite, where there is no other entry or where
        the selected entry and the others are `still`: they don't change at all.
        """
        xp, windows = namespace(o), self._windows(o)
        chosen = xp.arange(len(windows))[:, None, None] == windows.argmax(axis=0)
        fixed = self._windows(still)
        apart = chosen | (fixed & (fixed & chosen).any(axis=0))
        best = xp.where(chosen, self._windows(o - change), -np.inf).max(axis=0)
        return best - xp.where(apart, -np.inf, self._windows(o + change)).max(axis=0)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        raise TypeError(f"{self!r} has entries only for an input o: expected W.at(o)")

    @property
    def T(self) -> TransposedMatrix:
        raise TypeError(f"{self!r} has a transpose only for an input o: expected W.at(o).T")

    @property
    def nnz(self) -> int:
        return self.shape[0]

    def _product(self, o: Array) -> Array:
        return self._windows(o).max(axis=0)


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
        places = self.pooling._windows(np.arange(self.shape[1])[:, None])[..., 0]
        n = np.arange(self.shape[0])
        entries = (np.ones(n.size), (n, places[to_numpy(self.choice)[:, 0], n]))
        csr = scipy.sparse.csr_array(entries, shape=self.shape)
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> TransposedMatrix:
        return TransposedMatrix(self)

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
        return namespace(o).where(self._chosen(o.shape[1]), self.pooling._windows(o), 0).sum(axis=0)

    def _adjoint(self, delta: Array) -> Array:
        chosen = self._chosen(delta.shape[1])
        return self.pooling._from_windows(namespace(delta).where(chosen, delta, 0))


class TransposedMatrix(WeightMatrix):
    """The transpose of an average pooling or a selection."""

    def __init__(self, matrix: AveragePoolingMatrix | SelectionMatrix):
        self.matrix = matrix
        self.maps_in, self.maps_out = matrix.maps_out, matrix.maps_in
        self.positions_in, self.positions_out = matrix.positions_out, matrix.positions_in

    @property
    def T(self) -> WeightMatrix:
        return self.matrix

    @property
    def nnz(self) -> int:
        return self.matrix.nnz

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        csr = self.matrix.tocsr().T.tocsr()
        return csr if rows is None else csr[rows]

    def _product(self, o: Array) -> Array:
        return self.matrix._adjoint(o)
