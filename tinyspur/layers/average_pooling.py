"""Average pooling, which is one matrix ([CNN] (3), (11))."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace
from .layer import Shape
from .matrix import TransposedMatrix, WeightMatrix
from .windows import Pooling, PoolingMatrix

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class AveragePool(Pooling):
    """Average pooling; see `Pooling`. By default over windows of `size` that do not overlap.

    Zeros of the padding count as entries, unless `count_include_pad` is False.
    """

    count_include_pad: bool = True

    type = "average_pool"
    more = ("count_include_pad",)

    def check(self) -> None:
        super().check()
        if not isinstance(self.count_include_pad, bool):
            raise ValueError("expected count_include_pad True or False")

    @property
    def keeps_constants(self) -> bool:
        return self.padding == 0 or not self.count_include_pad

    def matrix(self, below: Shape, weights: None = None) -> AveragePoolingMatrix:
        options = self.size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        return AveragePoolingMatrix(below[0], below[1:], *options)

    @staticmethod
    def torch_classes(directions: int) -> tuple[type[nn.Module], ...]:
        from torch import nn

        one, two = (nn.AvgPool1d, nn.AdaptiveAvgPool1d), (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
        return {1: one, 2: two}[directions]


class AveragePoolingMatrix(PoolingMatrix):
    """The mean over windows ([CNN] (3), (11)), with the options of `AveragePool`.

    `divisors` is by what the sum over each window is divided, one number where all are equal, else
    (positions_out,).
    """

    def __init__(
        self,
        maps: int,
        map_shape: tuple[int, ...],
        size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        super().__init__(maps, map_shape, size, stride, padding, ceil_mode)
        counts = np.ones(1, dtype=int)
        for n, count, k, s, low, high, _ in zip(*self.grid, strict=True):
            start = np.arange(count) * s - low
            stop = np.minimum(start + k, n + high)
            if not count_include_pad:
                start, stop = np.maximum(start, 0), np.minimum(stop, n)
            counts = np.multiply.outer(counts, stop - start).ravel()
        equal = (counts == counts[0]).all()
        self.divisors: int | np.ndarray = int(counts[0]) if equal else counts

    def is_like(self, other: WeightMatrix) -> bool:
        return super().is_like(other) and np.array_equal(self.divisors, other.divisors)

    @property
    def shares(self) -> tuple[np.ndarray, int]:
        """Return whole numbers (n_l,) and one that all of them are divided by: the entries."""
        counts = np.broadcast_to(self.divisors, self.positions_out)
        common = math.lcm(*np.unique(counts).tolist())
        return np.tile(common // counts, self.maps_out), common

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        below = self.grid.neighbours()
        p, k = np.nonzero(below >= 0)
        values = (1 / np.broadcast_to(self.divisors, self.positions_out))[p]
        t = np.arange(self.maps_in)[:, None]
        i, j = (p + t * self.positions_out), below[p, k] + t * self.positions_in
        entries = np.tile(values, self.maps_in), (i.ravel(), j.ravel())
        csr = scipy.sparse.csr_array(entries, shape=self.shape)
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> TransposedMatrix:
        return TransposedMatrix(self)

    @property
    def nnz(self) -> int:
        return self.maps_in * int((self.grid.neighbours() >= 0).sum())

    def gathered(self, o: Array) -> Array:
        """Return what each position reads of one map, and where they differ minus the divisors."""
        xp, read = namespace(o), super().gathered(o)
        if isinstance(self.divisors, int):
            return read
        shape = (1, *read.shape[1:])
        counts = xp.broadcast_to(xp.asarray(-self.divisors)[:, None], shape).astype(read.dtype)
        return xp.concatenate([read, counts])

    def _product(self, o: Array) -> Array:
        if self.tiles:
            sums = o.reshape(self.maps_in, *self.split, -1)
            for axis in range(len(self.map_shape)):
                sums = sums.sum(axis=axis + 2)  # over the entries of windows along a direction
            return (sums / self.fan_in).reshape(self.shape[0], -1)
        return self._divided(self.reduced(o, namespace(o).add))

    def adjoint(self, delta: Array) -> Array:
        if self.tiles:
            window = (self.fan_in, *delta.shape)
            return self.from_windows(namespace(delta).broadcast_to(self._divided(delta), window))
        N = delta.shape[1]
        shape = (self.maps_in, *self.grid.output_shape, N)
        shares = self._divided(delta).reshape(shape)
        found = namespace(delta).empty((*shape[:1], self.positions_in, N), dtype=delta.dtype)
        for part in self.parts(N):
            found[part] = self.grid.spread(shares[part]).reshape(found[part].shape)
        return found.reshape(self.shape[1], N)

    def _divided(self, values: Array) -> Array:
        """Return values (n_l, N) by the divisors."""
        if isinstance(self.divisors, int):
            return values / self.divisors
        counts = namespace(values).asarray(self.divisors, dtype=values.dtype)[:, None]
        return (values.reshape(self.maps_in, self.positions_out, values.shape[1]) / counts).reshape(
            values.shape
        )
