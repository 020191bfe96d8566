"""What weight matrices are: the contract that the matrix of every kind of layer fulfils.

Each is a matrix in R^{n_l x n_{l-1}}: it has a `shape`, multiplies with ``@``, transposes with
``.T``, and shows its entries with ``W[i, j]``, ``W.block(t, c)``, ``W.toarray()`` and
``W.tocsr()``. It stores filters, not entries. ``tocsr`` lists the entries one by one: it is the
definition that all products have to agree with. Neurons are numbered map by map, positions row by
row, so neuron ``t * P + p`` is position p of map t ([CNN] section 2.2, counted from 0). Entries
that are listed are on the host; products are computed where the weights are.

They calculate as matrices do: ``v @ W``, ``2 * W``, ``W + V``, ``W @ V``. Where `weights` alone
change, the result is of the same kind. Any other is a SciPy CSR array on the host.

Max pooling is a matrix only for given inputs o^{l-1}: ``W.at(o)`` is the matrix of zeros and ones
that selects the largest entries. For all other layers ``W.at(o)`` is W itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace
from ..engine.plain import number, overwrite, plain_array, plain_like, plain_on_host, whole
from ..shown import matrix_html


class WeightMatrix(ABC):
    """What the weight matrices share; see the module's docstring for the contract.

    `weights` holds the trainable numbers in PyTorch's shape, None where there are none; what is
    assigned to it is copied into this memory, which may be that of a point.
    `maps_out` maps of `positions_out` positions each are the rows, likewise for the columns.
    ``np.asarray(W)`` lists all entries; ``scipy.sparse.linalg`` takes W as a linear operator.
    """

    __array_ufunc__ = None  # leaves `array @ W`, `array + W` and `number * W` to this class
    ndim = 2

    selects = False  # whether the matrix depends on what it is multiplied with
    groups = 1  # the maps of each group read the maps of one group below alone
    read = slice(None)  # the rows of o^{l-1} that the layer itself reads; a block may have others
    _weights: Array | None = None
    maps_out: int
    maps_in: int
    positions_out: int
    positions_in: int

    @property
    def weights(self) -> Array:
        """Return the trainable numbers, or None."""
        return self._weights

    @weights.setter
    def weights(self, values: Array) -> None:
        if self._weights is None:
            raise ValueError(f"{self!r}: expected no weights")
        overwrite(f"{type(self).__name__}.weights", self._weights, values)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n_l, n_{l-1})."""
        return self.maps_out * self.positions_out, self.maps_in * self.positions_in

    @property
    def dtype(self) -> np.dtype:
        """Return the type of the weights, float64 without weights."""
        return np.dtype(np.float64) if self.weights is None else self.weights.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Return how many rows come from the layer itself: all but what a block carries along."""
        return self.shape[0]

    @property
    def inner(self) -> WeightMatrix:
        """Return the matrix of the layer itself, without what a block adds or carries along."""
        return self

    @property
    def trained(self) -> WeightMatrix:
        """Return the same without the identities of a residual block, which no weight changes."""
        return self

    def spread(self, biases: Array) -> Array:
        """Return the biases of maps, (maps,), row by row, (n_l,): 0 for what is carried along."""
        found = biases.repeat(self.positions_out)
        more = namespace(biases).zeros(self.shape[0] - self.rows, dtype=biases.dtype)
        return namespace(biases).concatenate([found, more]) if len(more) else found

    def by_map(self, values: Array) -> Array:
        """Return columns (n_l, N) as a view with a row for each map, (maps, positions * N)."""
        return values[: self.rows].reshape(self.maps_out, -1)

    def __matmul__(self, o: object) -> Array | scipy.sparse.csr_array:
        """Return W @ o for a vector (n_{l-1},) or columns (n_{l-1}, N), or CSR for a matrix."""
        if hasattr(o, "tocsr"):
            if o.shape[:1] != self.shape[1:]:
                raise ValueError(f"{self!r} @ V: expected {self.shape[1]} rows, got {o.shape}")
            return self.tocsr() @ scipy.sparse.csr_array(o.tocsr())
        o, n = plain_array("W @ o", o), self.shape[1]
        if o.ndim not in (1, 2) or o.shape[0] != n:
            raise ValueError(f"{self!r} @ o: expected o of shape ({n},) or ({n}, N), got {o.shape}")
        return self._product(o) if o.ndim == 2 else self._product(o[:, None])[:, 0]

    def __rmatmul__(self, v: Array) -> Array:
        """Return v @ W for a vector (n_l,) or rows (N, n_l)."""
        v, n = plain_array("v @ W", v), self.shape[0]
        if v.ndim not in (1, 2) or v.shape[-1] != n:
            raise ValueError(f"v @ {self!r}: expected v ({n},) or (N, {n}), got {v.shape}")
        return (self.T @ v.T).T

    def matvec(self, o: Array) -> Array:
        """Return W @ o, as SciPy's linear operators do; TypeError where W depends on o."""
        if self.selects:
            raise TypeError(f"{self!r} is linear only at an input o: expected W.at(o)")
        return self @ o

    def rmatvec(self, delta: Array) -> Array:
        """Return W.T @ delta, as SciPy's linear operators do."""
        return self.T @ delta

    matmat, rmatmat = matvec, rmatvec  # for columns

    def _in_weights(self) -> bool:
        """Return whether all entries are 0 or weights."""
        return self.weights is not None and self.trained is self

    def __mul__(self, s: float) -> WeightMatrix | scipy.sparse.csr_array:
        """Return s W for a number s: of the same kind, or CSR where not all entries are weights."""
        s = number("s * W", s)
        return self.with_weights(self.weights * s) if self._in_weights() else self.tocsr() * s

    __rmul__ = __mul__

    def __truediv__(self, s: float) -> WeightMatrix | scipy.sparse.csr_array:
        s = number("W / s", s)
        return self.with_weights(self.weights / s) if self._in_weights() else self.tocsr() / s

    def __neg__(self) -> WeightMatrix | scipy.sparse.csr_array:
        return self * -1

    def __add__(self, other: object) -> WeightMatrix | scipy.sparse.csr_array | np.ndarray:
        """Return W + V: of the same kind for one that is alike, else CSR, an array for an array."""
        if isinstance(other, WeightMatrix) and self._in_weights() and self.is_like(other):
            more = plain_like("W + V", other.weights, self.weights)
            return self.with_weights(self.weights + more)
        listed = hasattr(other, "tocsr")
        other = scipy.sparse.csr_array(other.tocsr()) if listed else plain_on_host("W + V", other)
        if other.shape != self.shape:
            raise ValueError(f"{self!r} + V: expected a matrix {self.shape}, got {other.shape}")
        return self.tocsr() + other

    __radd__ = __add__

    def __sub__(self, other: object) -> WeightMatrix | scipy.sparse.csr_array | np.ndarray:
        return self + -(other if hasattr(other, "tocsr") else plain_on_host("W - V", other))

    def __rsub__(self, other: object) -> WeightMatrix | scipy.sparse.csr_array | np.ndarray:
        return -self + other

    @property
    def fan_in(self) -> int:
        """Return how many terms an entry of W @ o has at most, on the host those that are not 0."""
        if self.weights is None:
            return self.shape[1]
        if not isinstance(self.weights, np.ndarray):
            return self.weights[0].size
        rows = self.weights.reshape(len(self.weights), -1)
        return int(np.count_nonzero(rows, axis=1).max())

    @property
    def fan_out(self) -> int:
        """Return how many terms an entry of W.T @ delta has at most."""
        return self.shape[0] if self.weights is None else self.weights[:, 0].size

    def is_like(self, other: WeightMatrix) -> bool:
        """Return whether `other` is the same matrix but for the numbers of its weights."""
        mine, its = (getattr(W.weights, "shape", W.shape) for W in (self, other))
        return type(self) is type(other) and self.shape == other.shape and mine == its

    def brief_product(self, o: Array, use: str) -> Array:
        """Return W @ o for columns (n_{l-1}, N) until this thread's next one for `use`."""
        return self._product(o)

    def at(self, o: Array) -> WeightMatrix:
        """Return the matrix that W is at o, of shape (n_{l-1},) or (n_{l-1}, N)."""
        return self

    def choice(self, o: Array) -> Array | None:
        """Return which entries of columns (n_{l-1}, N) the matrix selects; None if it is linear."""
        return None

    def gaps(self, o: Array, still: Array, change: Array | float = 0) -> Array | None:
        """Return by how much the selected entries exceed all others; None if it is linear."""
        return None

    def at_limit(self, terms: list[Array], tolerances: list[Array]) -> WeightMatrix:
        """Return the matrix that W is at terms[0] + t terms[1] + ... for t -> 0+."""
        return self

    def __getitem__(self, key: tuple) -> np.ndarray | float:
        """Return the entries at (rows, columns), each an integer, a slice or a list."""
        if not (isinstance(key, tuple) and len(key) == 2):
            raise IndexError(f"expected two indices W[i, j], got {key!r}; row i is W[i, :]")
        rows, columns = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        if columns.size < rows.size:
            entries = self.T.tocsr(columns.ravel())[:, rows.ravel()].toarray().T
        else:
            entries = self.tocsr(rows.ravel())[:, columns.ravel()].toarray()
        return entries.reshape(rows.shape + columns.shape)[()]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows, each (n_{l-1},)."""
        return (self[i, :] for i in range(len(self)))

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """Return all entries as a new array, zeros and all; see `tocsr` for those that aren't 0."""
        if copy is False:
            raise ValueError(f"{self!r}: expected copy=None or True, since its entries are listed")
        return self.toarray().astype(dtype, copy=False) if dtype is not None else self.toarray()

    def block(self, t: int, c: int) -> np.ndarray:
        """Return the (positions_out, positions_in) block that leads from map c to map t."""
        for name, index, maps in (("map", t, self.maps_out), ("channel", c, self.maps_in)):
            if whole(index) not in range(maps):
                raise IndexError(f"expected a {name} in 0..{maps - 1}, got {index!r}")
        p, q = self.positions_out, self.positions_in
        return self[t * p : (t + 1) * p, c * q : (c + 1) * q]

    def toarray(self) -> np.ndarray:
        """Return all entries as a NumPy array of shape `shape`."""
        return self.tocsr().toarray()

    @abstractmethod
    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        """Return the nonzero entries as a SciPy CSR array; of the given rows only, if given."""

    @property
    @abstractmethod
    def T(self) -> WeightMatrix:
        """Return the transpose, a weight matrix too."""

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Return the number of nonzero entries."""

    def gradient(self, delta: Array, o: Array) -> Array:
        """Return the derivative of <delta, W @ o> in `weights`, in the shape of `weights`."""
        raise TypeError(f"{type(self).__name__} has no weights")

    def pullback(self, delta: Array, o: Array, use: str | None = None) -> tuple[Array, Array]:
        """Return the derivatives of <delta, W @ o> in `weights` and in o: `gradient`, W.T @ delta.

        A convolution gathers its patches once for both. With `use` the latter may only hold until
        this thread's next one for it, and must not be the delta of that.
        """
        return self.gradient(delta, o), self.T @ delta

    def gathered(self, o: Array) -> Array:
        """Return what each position reads of one map o (positions_in, N): (K, positions_out, N).

        The K places are in the order of the weights that read a map; in the padding there are 0.
        """
        raise TypeError(f"{type(self).__name__} has no patches")

    def repeated(self, times: int) -> WeightMatrix:
        """Return the matrix for columns each of which comes so many times in a row."""
        return self

    @property
    def reads_alone(self) -> bool:
        """Return whether it reads all of the layer below, and no other layer of a block does."""
        return True

    def readers(self, c: int) -> slice:
        """Return the maps whose weights read map c of the layer below: all of them, or a group."""
        return slice(0, self.maps_out)

    def outgoing(self, c: int) -> Array:
        """Return the weights that read map c of the layer below, as a view, (readers, ...)."""
        raise TypeError(f"{type(self).__name__} has no weights")

    def of_map(self, c: int) -> WeightMatrix:
        """Return the matrix that reads map c of the layer below alone, (n_l, positions_in)."""
        raise TypeError(f"{type(self).__name__} has no weights")

    def with_weights(self, weights: Array) -> WeightMatrix:
        """Return the matrix of the same kind with other weights, or itself if it has none."""
        return self

    def __abs__(self) -> WeightMatrix:
        """Return |W|, entry by entry."""
        return self if self.weights is None else self.with_weights(abs(self.weights))

    def support_sums(self, a: Array) -> Array | None:
        """Return S @ a, shape (positions_out, N); None without weights.

        S has a 1 wherever W has a trainable entry, even if that is 0 now. Its rows are the same for
        every map, so those of one map are enough; with groups it is (maps_out, positions_out, N).
        """
        return None

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows} x {columns}{self._details()}, {self.nnz} nonzeros)"

    def _repr_html_(self) -> str:
        return matrix_html(self)

    def _details(self) -> str:
        return ""

    @abstractmethod
    def _product(self, o: Array) -> Array:
        """Return W @ o for columns (n_{l-1}, N)."""

    def adjoint(self, delta: Array) -> Array:
        """Return W.T @ delta for columns (n_l, N), where `T` is a `TransposedMatrix`."""
        raise TypeError(f"{type(self).__name__} has a transpose of its own kind")


class TransposedMatrix(WeightMatrix):
    """The transpose of a matrix that multiplies with it by its `adjoint`.

    Its weights, if any, are those of the matrix, as PyTorch's transposed convolutions have them.
    """

    def __init__(self, matrix: WeightMatrix):
        self.matrix, self._weights, self.groups = matrix, matrix.weights, matrix.groups
        self.maps_in, self.maps_out = matrix.maps_out, matrix.maps_in
        self.positions_in, self.positions_out = matrix.positions_out, matrix.positions_in

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n_l, n_{l-1})."""
        return self.matrix.shape[::-1]

    @property
    def T(self) -> WeightMatrix:
        return self.matrix

    @property
    def trained(self) -> WeightMatrix:
        return self if self.matrix.trained is self.matrix else self.matrix.trained.T

    @property
    def fan_in(self) -> int:
        return self.matrix.fan_out

    @property
    def fan_out(self) -> int:
        return self.matrix.fan_in

    @property
    def nnz(self) -> int:
        return self.matrix.nnz

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        csr = self.matrix.tocsr().T.tocsr()
        return csr if rows is None else csr[rows]

    def __abs__(self) -> WeightMatrix:
        return abs(self.matrix).T

    def is_like(self, other: WeightMatrix) -> bool:
        return type(self) is type(other) and self.matrix.is_like(other.matrix)

    def with_weights(self, weights: Array) -> WeightMatrix:
        return self if self.weights is None else self.matrix.with_weights(weights).T

    def gradient(self, delta: Array, o: Array) -> Array:
        if self.weights is None:
            return super().gradient(delta, o)
        return self.matrix.gradient(o, delta)  # <delta, W.T @ o> = <o, W @ delta>

    def outgoing(self, c: int) -> Array:
        return super().outgoing(c) if self.weights is None else self.weights[c]

    def readers(self, c: int) -> slice:
        size = self.maps_out // self.groups
        first = c * self.groups // self.maps_in * size
        return slice(first, first + size)

    def support_sums(self, a: Array) -> Array | None:
        if self.weights is None:
            return None
        ones = namespace(a).ones(self.weights.shape, dtype=a.dtype)
        sums = (self.with_weights(ones) @ a).reshape(self.maps_out, self.positions_out, -1)
        return sums[0] if self.groups == 1 else sums

    def _product(self, o: Array) -> Array:
        return self.matrix.adjoint(o)
