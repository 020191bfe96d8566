"""Convolutions with odd filters and zero padding, as matrices ([CNN] (1), (2))."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from ..engine.plain import plain_array, whole
from ..engine.threads import scratch
from .layer import Layer, Shape, expect_options, is_positive, maps_of
from .matrix import TransposedMatrix, WeightMatrix
from .wide_products import STRIP_BYTES, outer, product

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Conv(Layer):
    """A convolution with `maps` filters of odd size `kernel`, zero padding kernel // 2, biases.

    With a `stride` s it is computed at every s-th position in each direction, from the first one
    on: maps of n positions become maps of ceil(n / s).
    """

    maps: int
    kernel: int = 3
    stride: int = 1

    type = "conv"

    @property
    def shown(self) -> dict:
        """Return the options, without a stride of 1: as before there were others."""
        usual = type(self.stride) is int and self.stride == 1
        return {key: n for key, n in self.options.items() if key != "stride" or not usual}

    @property
    def relays(self) -> bool:
        return self.stride == 1

    def output_shape(self, below: Shape) -> Shape:
        _, size = maps_of(below)
        if self.kernel % 2 == 0:
            raise ValueError("expected an odd filter size")
        return (self.maps, *_coarse(size, self.stride))

    def weight_shape(self, below: Shape) -> Shape:
        channels, size = maps_of(below)
        return (self.maps, channels, *(self.kernel,) * len(size))

    def matrix(self, below: Shape, weights: Array) -> ConvolutionMatrix:
        return ConvolutionMatrix(weights, below[1:], self.stride)

    @staticmethod
    def torch_class(directions: int) -> type[nn.Module]:
        from torch import nn

        return {1: nn.Conv1d, 2: nn.Conv2d}[directions]

    def to_torch(self, below: Shape) -> nn.Module:
        kind, options = self.torch_class(len(below) - 1), {"stride": self.stride, "device": "meta"}
        return kind(below[0], self.maps, self.kernel, padding=self.kernel // 2, **options)

    @classmethod
    def from_torch(cls, module: nn.Module) -> Conv:
        (maps, _, k, *_), (stride, *_) = module.weight.shape, module.stride
        expect_options(
            module, groups=1, kernel_size=k, stride=stride, dilation=1, padding_mode="zeros"
        )
        if module.padding != "same" and (k, module.padding) != (1, "valid"):  # by words of PyTorch
            expect_options(module, padding=k // 2)
        return cls(maps, k, stride)


class ConvolutionMatrix(WeightMatrix):
    """A convolution, zero padded so that maps keep their size ([CNN] (1), (2)).

    `filters` has shape (T, C, *k) with odd k, as in PyTorch; `map_shape` is (H, W) or (W,), the
    shape of a map below. With a `stride` s the rows are those of every s-th position in each
    direction alone.
    On the host a product skips channels and maps whose weights are all zero, and taps outside the
    smallest box that holds all nonzero ones.

    >>> W = ConvolutionMatrix(np.array([[[1.0, 2.0, 3.0]]]), (5,))
    >>> W
    ConvolutionMatrix(5 x 5, 1 map from 1, filters 3, 13 nonzeros)
    >>> W[1, :]
    array([1., 2., 3., 0., 0.])
    >>> ConvolutionMatrix(W.weights, (5,), stride=2)[1, :]
    array([0., 1., 2., 3., 0.])
    """

    def __init__(self, filters: Array, map_shape: tuple[int, ...], stride: int = 1):
        filters = plain_array("convolution", filters)
        kernel = filters.shape[2:]
        if len(kernel) != len(map_shape) or not kernel or not filters.size:
            raise ValueError(
                f"convolution: expected filters (T, C{', k' * len(map_shape)}) on maps "
                f"{tuple(map_shape)}, got {filters.shape}"
            )
        if not is_positive(stride):
            raise ValueError(f"convolution: expected a stride of 1 or more, got {stride!r}")
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"convolution: expected filters of odd size, got {kernel}")
        self._weights = filters
        self.map_shape, self.stride = tuple(map_shape), whole(stride)
        self.output_map_shape = _coarse(self.map_shape, self.stride)
        self.maps_out, self.maps_in = filters.shape[:2]
        self.positions_in = math.prod(map_shape)
        self.positions_out = math.prod(self.output_map_shape)

    @property
    def filters(self) -> Array:
        """Return the filters (T, C, *k); the same array as `weights`."""
        return self.weights

    @property
    def centre(self) -> tuple[int, ...]:
        """Return the index of the middle tap of a filter."""
        return tuple(k // 2 for k in self.weights.shape[2:])

    def with_weights(self, weights: Array) -> ConvolutionMatrix:
        return ConvolutionMatrix(weights, self.map_shape, self.stride)

    def is_like(self, other: WeightMatrix) -> bool:
        """Return whether `other` has the same maps, filters and stride."""
        if type(self) is not type(other) or self.weights.shape != other.weights.shape:
            return False
        return (self.map_shape, self.stride) == (other.map_shape, other.stride)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        filters = to_numpy(self.weights).reshape(self.maps_out, self.maps_in, -1)
        neighbours = self._neighbours()
        rows = np.arange(self.shape[0]) if rows is None else np.asarray(rows)
        maps, positions = np.divmod(rows, self.positions_out)
        entries = [(np.zeros(0, filters.dtype), np.zeros(0, int), np.zeros(0, int))]
        for t in np.unique(maps):
            here = np.flatnonzero(maps == t)
            channels, taps = np.nonzero(filters[t])
            below = neighbours[positions[here]][:, taps]
            i, k = np.nonzero(below >= 0)
            values = filters[t][channels[k], taps[k]]
            entries.append((values, here[i], channels[k] * self.positions_in + below[i, k]))
        values, i, j = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        return scipy.sparse.csr_array((values, (i, j)), shape=(rows.size, self.shape[1]))

    @property
    def T(self) -> WeightMatrix:
        if self.stride > 1:
            return TransposedMatrix(self)
        axes = tuple(range(2, self.weights.ndim))
        flipped = namespace(self.weights).flip(self.weights.swapaxes(0, 1), axes)
        return ConvolutionMatrix(flipped, self.map_shape)

    @property
    def nnz(self) -> int:
        inside = (self._neighbours() >= 0).sum(axis=0)
        used = (to_numpy(self.weights) != 0).sum(axis=(0, 1)).ravel()
        return int(inside @ used)

    def gradient(self, delta: Array, o: Array) -> Array:
        return self._pass(o, delta, multiply=False)[1]

    def pullback(self, delta: Array, o: Array) -> tuple[Array, Array]:
        T = self.T
        if self.stride > 1 or T._used() != T._all():  # no convolution, or something to skip
            return super().pullback(delta, o)
        back, gradient = T._pass(delta, o)  # <delta, W @ o> = <o, W.T @ delta>
        return T.with_weights(gradient).T.weights, back

    def gathered(self, o: Array) -> Array:
        kernel, xp = self.weights.shape[2:], namespace(o)
        one = self.with_weights(self.weights[:1, :1])
        read = xp.empty((math.prod(kernel), self.positions_out * o.shape[1]), dtype=o.dtype)
        for patches, strip in one._patches(one._images(o), one._all()[2:]):
            read[:, strip] = patches
        return read.reshape(len(read), self.positions_out, -1)

    def outgoing(self, c: int) -> Array:
        return self.weights[:, c]

    def support_sums(self, a: Array) -> Array:
        xp = namespace(a)
        ones = xp.ones((1, 1, *self.weights.shape[2:]), dtype=a.dtype)
        box = ConvolutionMatrix(ones, self.map_shape, self.stride)
        return box._product(a.reshape(self.maps_in, self.positions_in, -1).sum(axis=0))

    def _details(self) -> str:
        size = "x".join(map(str, self.weights.shape[2:]))
        maps = f"{self.maps_out} map{'s' * (self.maps_out > 1)} from {self.maps_in}"
        return f", {maps}, filters {size}{f', stride {self.stride}' if self.stride > 1 else ''}"

    def adjoint(self, delta: Array) -> Array:
        """Return W.T @ delta with a stride: zeros between, then the transpose of stride 1."""
        whole = ConvolutionMatrix(self.weights, self.map_shape)
        shape = (self.maps_out, *self.map_shape, delta.shape[1])
        fine = namespace(delta).zeros(shape, dtype=delta.dtype)
        places = (slice(None, None, self.stride),) * len(self.map_shape)
        fine[(slice(None), *places)] = delta.reshape(self.maps_out, *self.output_map_shape, -1)
        return whole.T @ fine.reshape(whole.shape[0], -1)

    def brief_product(self, o: Array, use: str) -> Array:
        return self._product(o, use)

    def _product(self, o: Array, use: str | None = None) -> Array:
        maps, channels, *box = self._used()
        if (maps, channels, *box) == self._all():
            return self._pass(o, use=use)[0]
        out = self._output(o, use)
        out[...] = 0
        if box:
            filters = _flat(self.weights[maps][(slice(None), channels, *box)])
            for patches, strip in self._patches(self._images(o)[channels], box):
                out[maps, strip] = filters @ patches
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
            filters, out = _flat(self.weights), self._output(o, use)
        if delta is not None:
            delta = delta.reshape(T, -1)
            total = xp.zeros((T, math.prod(kernel) * C), dtype=o.dtype)
        for patches, strip in self._patches(self._images(o), self._all()[2:]):
            if multiply:
                product(filters, patches, out[:, strip])
            if delta is not None:
                total += outer(delta[:, strip], patches)
        return (
            out.reshape(self.shape[0], -1) if multiply else None,
            None if total is None else xp.moveaxis(total.reshape(T, *kernel, C), -1, 1),
        )

    def _output(self, o: Array, use: str | None) -> Array:
        """Return memory (T, P * N) for W @ o: new, or that of `use`."""
        xp, shape = namespace(o), (self.maps_out, self.positions_out * o.shape[1])
        dtype = xp.result_type(self.weights.dtype, o.dtype)
        return xp.empty(shape, dtype=dtype) if use is None else scratch(shape, o, use, dtype)

    def _used(self) -> tuple[slice | list[int], ...]:
        """Return the maps, the channels and the box of taps outside which all weights are zero.

        If all weights are zero, maps and channels are empty and there is no box. On a device the
        answer is everything, since looking would take a transfer.
        """
        if namespace(self.weights) is not np or self.weights.all():
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
        return o.reshape(self.maps_in, *self.map_shape, -1)

    def _patches(self, images: Array, box: Sequence[slice]) -> Iterator[tuple[Array, slice]]:
        """Yield the patches of strips of rows, and the columns of the output that they give.

        `images` is (C, *map_shape, N); the patches are (taps * C, columns) for the taps in `box`,
        so that the filters times the patches is the convolution ([CNN] (1)), one matrix product.
        The patches are valid until the same thread asks for the next strip, which overwrites them.
        """
        xp = namespace(images)
        channels, samples = images.shape[0], images.shape[-1]
        rows, *others = self.output_map_shape
        window = tuple(taps.stop - taps.start for taps in box)
        width = math.prod(others) * samples
        rows_of_patches = math.prod(window) * channels
        height = max(1, STRIP_BYTES // max(1, rows_of_patches * width * images.itemsize))
        padded = self._padded(images, box)
        channel, *steps, sample = padded.strides
        moved = xp.lib.stride_tricks.as_strided(
            padded,
            (*window, channels, *self.output_map_shape, samples),
            (*steps, channel, *(self.stride * step for step in steps), sample),
        )
        taps = (slice(None),) * (len(window) + 1)
        for top in range(0, rows, height):
            bottom = min(rows, top + height)
            patches = moved[(*taps, slice(top, bottom))]
            if math.prod(window) > 1:
                kept = scratch(patches.shape, images, "patches")
                xp.copyto(kept, patches)
                patches = kept
            strip = slice(top * width, bottom * width)
            yield patches.reshape(rows_of_patches, strip.stop - strip.start), strip

    def _padded(self, images: Array, box: Sequence[slice]) -> Array:
        """Return the images with the zeros around them that the taps in `box` read."""
        size, inside, source = [], [], []
        for n, taps, centre in zip(self.map_shape, box, self.centre, strict=True):
            first, last = taps.start - centre, taps.stop - 1 - centre  # read from p + first
            low = max(0, first)
            high = max(low, min(n, n + last))
            size.append(n + last - first)
            inside.append(slice(low - first, high - first))
            source.append(slice(low, high))
        if inside == source and size == list(self.map_shape):
            return images
        padded = scratch((len(images), *size, images.shape[-1]), images, "padded")
        for axis, part in enumerate(inside):
            before = (slice(None),) * (axis + 1)
            padded[(*before, slice(0, part.start))] = 0
            padded[(*before, slice(part.stop, None))] = 0
        padded[(slice(None), *inside)] = images[(slice(None), *source)]
        return padded

    def _neighbours(self) -> np.ndarray:
        """Return (P, K): the position that tap k reads at position p, -1 in the padding."""
        outputs = np.arange(self.positions_out)
        positions = self.stride * np.stack(np.unravel_index(outputs, self.output_map_shape))
        kernel = self.weights.shape[2:]
        taps = np.stack(np.unravel_index(np.arange(math.prod(kernel)), kernel))
        centre, size = (np.array(v)[:, None, None] for v in (self.centre, self.map_shape))
        read = positions[:, :, None] + taps[:, None, :] - centre
        inside = ((read >= 0) & (read < size)).all(axis=0)
        flat = np.ravel_multi_index(tuple(np.where(inside, read, 0)), self.map_shape)
        return np.where(inside, flat, -1)


def _coarse(size: Shape, stride: int) -> Shape:
    """Return the shape of the grid of every `stride`-th position in each direction."""
    return tuple(-(-n // stride) for n in size)


def _flat(filters: Array) -> Array:
    """Return filters (T, C, *k) as the matrix (T, taps * C) that patches are multiplied with."""
    return namespace(filters).moveaxis(filters, 1, -1).reshape(len(filters), -1)


def _index(indices) -> slice | list[int]:
    """Return ascending integers as a slice where they are consecutive: a view, not a copy."""
    indices = [int(i) for i in indices]
    consecutive = indices == list(range(indices[0], indices[-1] + 1))
    return slice(indices[0], indices[-1] + 1) if consecutive else indices
