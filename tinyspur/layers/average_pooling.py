"""Average pooling, which is one matrix ([CNN] (3), (11))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace
from .layer import Shape
from .matrix import TransposedMatrix
from .windows import Pooling, PoolingMatrix

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class AveragePool(Pooling):
    """Average pooling over windows of `size` that do not overlap."""

    type = "average_pool"

    @property
    def relays(self) -> bool:
        return True

    def matrix(self, below: Shape, weights: None = None) -> AveragePoolingMatrix:
        return AveragePoolingMatrix(below[0], below[1:], self.size)

    @staticmethod
    def torch_class(directions: int) -> type[nn.Module]:
        from torch import nn

        return {1: nn.AvgPool1d, 2: nn.AvgPool2d}[directions]


class AveragePoolingMatrix(PoolingMatrix):
    """The mean over windows of `size` in each direction that do not overlap ([CNN] (3), (11))."""

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        places = self.windows(np.arange(self.shape[1])[:, None])[..., 0]  # (size^d, n_l)
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
        axes = tuple(range(2, len(self.split) + 1, 2))
        return o.reshape(self.maps_in, *self.split, -1).mean(axis=axes).reshape(self.shape[0], -1)

    def adjoint(self, delta: Array) -> Array:
        share = delta / self.size ** len(self.map_shape)
        window = (self.size ** len(self.map_shape), *delta.shape)
        return self.from_windows(namespace(delta).broadcast_to(share, window))
