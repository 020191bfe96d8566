"""Convolutions with zero padding, as matrices ([CNN] (1), (2))."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from ..engine.plain import plain_array, whole
from ..engine.threads import scratch
from .grid import Grid
from .layer import is_positive
from .lowering import lines_apart, lowered, raised
from .matrix import TransposedMatrix, WeightMatrix
from .wide_products import add_outer, padded, product

STRIP_BYTES = 3 * 2**20  # patches that a convolution holds at once: small enough for the caches


class ConvolutionMatrix(WeightMatrix):
    """A convolution with zero padding, by default so that maps keep their size ([CNN] (1), (2)).

    `filters` has shape (T, C / groups, *k), as in PyTorch; `map_shape` is (H, W) or (W,), the shape
    of a map below. The options are those of `Conv`. With a `stride` s the rows are those of every
    s-th position in each direction alone.
    On the host a product without groups skips channels and maps whose weights are all zero, and
    taps outside the smallest box that holds all nonzero ones.

    >>> W = ConvolutionMatrix(np.array([[[1.0, 2.0, 3.0]]]), (5,))
    >>> W
    ConvolutionMatrix(5 x 5, 1 map from 1, filters 3, 13 nonzeros)
    >>> W[1, :]
    array([1., 2., 3., 0., 0.])
    >>> ConvolutionMatrix(W.weights, (5,), stride=2)[1, :]
    array([0., 1., 2., 3., 0.])
    """

    def __init__(
        self,
        filters: Array,
        map_shape: tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple = "same",
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ):
        filters = plain_array("convolution", filters)
        kernel = filters.shape[2:]
        if len(kernel) != len(map_shape) or not kernel or not filters.size:
            raise ValueError(
                f"convolution: expected filters (T, C{', k' * len(map_shape)}) on maps "
                f"{tuple(map_shape)}, got {filters.shape}"
            )
        if not is_positive(groups) or len(filters) % groups:
            raise ValueError(
                f"convolution: expected groups that divide {len(filters)} maps, got {groups!r}"
            )
        try:
            grid = Grid.of(tuple(map_shape), kernel, stride, padding, dilation)
        except ValueError as error:
            raise ValueError(f"convolution: {error}") from None
        self._put(filters, grid, whole(groups))

    @classmethod
    def on(cls, grid: Grid, filters: Array, groups: int = 1) -> ConvolutionMatrix:
        """Return the convolution with filters on the windows of a grid, whatever its padding."""
        found = cls.__new__(cls)
        found._put(plain_array("convolution", filters), grid, groups)
        return found

    def _put(self, filters: Array, grid: Grid, groups: int) -> None:
        self._weights, self.grid, self.groups = filters, grid, groups
        self.map_shape, self.output_map_shape = grid.map_shape, grid.output_shape
        self.maps_out, self.maps_in = len(filters), filters.shape[1] * groups
        self.positions_in = math.prod(self.map_shape)
        self.positions_out = math.prod(self.output_map_shape)

    @property
    def filters(self) -> Array:
        """Return the filters (T, C / groups, *k); the same array as `weights`."""
        return self.weights

    def with_weights(self, weights: Array) -> ConvolutionMatrix:
        if weights.shape[2:] != self.grid.size or len(weights) % self.groups:
            raise ValueError(
                f"convolution: expected filters (T, C, {str(self.grid.size)[1:-1]}), T a multiple "
                f"of {self.groups}, got {weights.shape}"
            )
        return ConvolutionMatrix.on(self.grid, weights, self.groups)

    def is_like(self, other: WeightMatrix) -> bool:
        """Return whether `other` has the same maps, filters and options."""
        if type(self) is not type(other) or self.weights.shape != other.weights.shape:
            return False
        return (self.grid, self.groups) == (other.grid, other.groups)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        filters = to_numpy(self.weights).reshape(self.maps_out, self.weights.shape[1], -1)
        neighbours = self.grid.neighbours()
        rows = np.arange(self.shape[0]) if rows is None else np.asarray(rows)
        maps, positions = np.divmod(rows, self.positions_out)
        entries = [(np.zeros(0, filters.dtype), np.zeros(0, int), np.zeros(0, int))]
        for t in np.unique(maps):
            here = np.flatnonzero(maps == t)
            channels, taps = np.nonzero(filters[t])
            below = neighbours[positions[here]][:, taps]
            i, k = np.nonzero(below >= 0)
            values = filters[t][channels[k], taps[k]]
            c = channels[k] + self._channels(t).start
            entries.append((values, here[i], c * self.positions_in + below[i, k]))
        values, i, j = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        return scipy.sparse.csr_array((values, (i, j)), shape=(rows.size, self.shape[1]))

    @property
    def T(self) -> WeightMatrix:
        if self._strided:
            return TransposedMatrix(self)
        filters = _turned(self.weights, self.groups)
        return ConvolutionMatrix.on(self.grid.transposed, filters, self.groups)

    @property
    def nnz(self) -> int:
        inside = (self.grid.neighbours() >= 0).sum(axis=0)
        used = (to_numpy(self.weights) != 0).sum(axis=(0, 1)).ravel()
        return int(inside @ used)

    @property
    def _strided(self) -> bool:
        return set(self.grid.stride) != {1}

    def _channels(self, t: int) -> slice:
        """Return the maps below that map t reads."""
        size = self.weights.shape[1]
        first = t * self.groups // self.maps_out * size
        return slice(first, first + size)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Yield the maps of each group, and the maps below that they read."""
        size = self.maps_out // self.groups
        for t in range(0, self.maps_out, size):
            yield slice(t, t + size), self._channels(t)

    def gradient(self, delta: Array, o: Array) -> Array:
        return self._pass(o, delta, multiply=False)[1]

    def pullback(self, delta: Array, o: Array, use: str | None = None) -> tuple[Array, Array]:
        if self._strided or self.maps_out > 2 * self.maps_in:  # patches of o are fewer
            return self.gradient(delta, o), self.adjoint(delta)
        if (T := self.T)._used() != T._all():  # some to skip
            return super().pullback(delta, o)
        back, gradient = T._pass(delta, o, use=use)  # <delta, W @ o> = <o, W.T @ delta>
        return _turned(gradient, self.groups), back

    def gathered(self, o: Array) -> Array:
        xp = namespace(o)
        read = self.grid.read(o.reshape(1, *self.map_shape, o.shape[1]))
        return xp.array(read, order="C").reshape(-1, self.positions_out, o.shape[1])

    def readers(self, c: int) -> slice:
        size = self.maps_out // self.groups
        first = c // self.weights.shape[1] * size
        return slice(first, first + size)

    def outgoing(self, c: int) -> Array:
        return self.weights[self.readers(c), c % self.weights.shape[1]]

    def of_map(self, c: int) -> ConvolutionMatrix:
        shape = (self.maps_out, 1, *self.grid.size)
        filters = namespace(self.weights).zeros(shape, dtype=self.weights.dtype)
        filters[self.readers(c), 0] = self.outgoing(c)
        return ConvolutionMatrix.on(self.grid, filters)

    def support_sums(self, a: Array) -> Array:
        xp, N = namespace(a), a.shape[1]
        ones = xp.ones((1, 1, *self.grid.size), dtype=a.dtype)
        box, G = ConvolutionMatrix.on(self.grid, ones), self.groups
        sums = a.reshape(G, -1, self.positions_in, N).sum(axis=1)
        if G == 1:
            return box._product(sums[0])
        sums = box._product(xp.moveaxis(sums, 0, 1).reshape(self.positions_in, G * N))
        sums = xp.moveaxis(sums.reshape(self.positions_out, G, N), 1, 0)
        return sums.repeat(self.maps_out // G, axis=0)

    def _details(self) -> str:
        size = "x".join(map(str, self.grid.size))
        maps = f"{self.maps_out} map{'s' * (self.maps_out > 1)} from {self.maps_in}"
        groups = f", {self.groups} groups" * (self.groups > 1)
        return f", {maps}, filters {size}{self.grid.details('same')}{groups}"

    def adjoint(self, delta: Array) -> Array:
        """Return W.T @ delta: each row of the input is gathered, each other direction scattered."""
        N = delta.shape[1]
        delta = delta.reshape(self.maps_out, *self.output_map_shape, N)
        images = namespace(delta).zeros((self.maps_in, *self.map_shape, N), dtype=delta.dtype)
        for maps, channels in self._parts():
            filters, some = self.weights[maps], delta[maps]
            row = filters[0, :, 0].size * math.prod(self.output_map_shape[1:]) * N * delta.itemsize
            raised(self.grid, filters, some, images[channels], max(1, STRIP_BYTES // max(1, row)))
        return images.reshape(self.shape[1], N)

    def brief_product(self, o: Array, use: str) -> Array:
        return self._product(o, use)

    def _product(self, o: Array, use: str | None = None) -> Array:
        maps, channels, *box = self._used()
        if (maps, channels, *box) == self._all():
            return self._pass(o, use=use)[0]
        out = self._output(o, use, self.maps_out)
        out[...] = 0
        if box:
            rows = self._by_rows(out)
            filters = _flat(self.weights[maps][(slice(None), channels, *box)])
            for patches, strip in self._patches(self._images(o)[channels], box):
                if isinstance(maps, slice):
                    product(filters, patches, rows[maps, strip].swapaxes(0, 1))
                else:
                    rows[maps, strip] = (filters @ patches).swapaxes(0, 1)
        return out.reshape(self.shape[0], -1)

    def _pass(
        self,
        o: Array,
        delta: Array | None = None,
        multiply: bool = True,
        use: str | None = None,
    ) -> tuple[Array | None, Array | None]:
        """Return W @ o, unless told not to, and for a delta the derivative of <delta, W @ o>."""
        xp, (T, C, *kernel) = namespace(o), self.weights.shape
        out = total = None
        if multiply:
            filters = _flat(self.weights) if self.groups > 1 else padded(_flat(self.weights), o)
            out = self._output(o, use, len(filters))
            rows = out.reshape(len(filters), self.output_map_shape[0], -1)
        if delta is not None:
            delta = self._by_rows(delta)
            total = xp.zeros((T, math.prod(kernel) * C), dtype=o.dtype)
        images = self._images(o)
        for maps, channels in self._parts():
            for patches, strip in self._patches(images[channels], self.grid.taps):
                if multiply:
                    written = maps if self.groups > 1 else slice(None)
                    product(filters[written], patches, rows[written, strip].swapaxes(0, 1))
                if delta is not None:
                    add_outer(delta[maps, strip].swapaxes(0, 1), patches, total[maps])
        return (
            out[: self.maps_out].reshape(self.shape[0], -1) if multiply else None,
            None if total is None else xp.moveaxis(total.reshape(T, *kernel, C), -1, 1),
        )

    def _output(self, o: Array, use: str | None, maps: int) -> Array:
        """Return memory (maps, P * N) for W @ o: new, or that of `use`."""
        xp, shape = namespace(o), (maps, self.positions_out * o.shape[1])
        dtype = xp.result_type(self.weights.dtype, o.dtype)
        return xp.empty(shape, dtype=dtype) if use is None else scratch(shape, o, use, dtype)

    def _used(self) -> tuple[slice | list[int], ...]:
        """Return the maps, the channels and the box of taps outside which all weights are zero.

        If all weights are zero, maps and channels are empty and there is no box. On a device the
        answer is everything, since looking would take a transfer.
        """
        if namespace(self.weights) is not np or self.groups > 1 or self.weights.all():
            return self._all()
        used = self.weights != 0
        maps = np.flatnonzero(used.reshape(len(used), -1).any(axis=1))
        if not maps.size:
            return [], []
        used = used.any(axis=0)  # in any map: (C, *k)
        axes = range(used.ndim)
        channels, *taps = (
            np.flatnonzero(used.any(axis=(*axes[:axis], *axes[axis + 1 :]))) for axis in axes
        )
        box = (slice(int(some[0]), int(some[-1]) + 1) for some in taps)
        return _index(maps), _index(channels), *box

    def _all(self) -> tuple[slice, ...]:
        return tuple(slice(0, n) for n in self.weights.shape)

    def _images(self, o: Array) -> Array:
        return o.reshape(self.maps_in, *self.map_shape, o.shape[1])

    def _by_rows(self, out: Array) -> Array:
        """Return the output (T, P * N) or (T * P, N) as (T, rows, columns)."""
        return out.reshape(self.maps_out, self.output_map_shape[0], -1)

    def _patches(self, images: Array, box: Sequence[slice]) -> Iterator[tuple[Array, slice]]:
        """Yield patches (rows, taps * C, columns) and the rows of the output that they give.

        `images` is (C, *map_shape, N); the taps are those in `box`. The filters times the patches
        are the convolution ([CNN] (1)).
        """
        (count, *others), k = self.output_map_shape, box[0].stop - box[0].start
        window = math.prod(taps.stop - taps.start for taps in box[1:])
        line = window * len(images) * math.prod(others) * images.shape[-1] * images.itemsize
        apart = lines_apart(self.grid, k)
        height = max(1, (STRIP_BYTES // max(1, line) - k) // apart + 1)
        for top in range(0, count, height):
            strip = slice(top, min(count, top + height))
            yield lowered(self.grid, images, box, strip), strip


def _turned(filters: Array, groups: int) -> Array:
    """Return the filters (T, C / groups, *k) of the transposed convolution, (C, T / groups, *k)."""
    (T, C, *kernel), G = filters.shape, groups
    grouped = filters.reshape(G, T // G, C, *kernel).swapaxes(1, 2)
    backward = (slice(None),) * 3 + (slice(None, None, -1),) * len(kernel)
    return grouped[backward].reshape(G * C, T // G, *kernel)


def _flat(filters: Array) -> Array:
    """Return filters (T, C, *k) as the matrix (T, taps * C) that patches are multiplied with."""
    return namespace(filters).moveaxis(filters, 1, -1).reshape(len(filters), -1)


def _index(indices) -> slice | list[int]:
    """Return ascending integers as a slice where they are consecutive: a view, not a copy."""
    indices = [int(i) for i in indices]
    consecutive = indices == list(range(indices[0], indices[-1] + 1))
    return slice(indices[0], indices[-1] + 1) if consecutive else indices
