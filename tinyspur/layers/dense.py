"""Dense layers, whose weight matrix has no structure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from ..engine.plain import plain_array
from .layer import Layer, Shape, check_bias, is_positive
from .matrix import WeightMatrix

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """A dense layer of `width` neurons, with biases unless `bias` is False."""

    width: int
    bias: bool = True

    type = "dense"
    spatial = False

    def check(self) -> None:
        check_bias(self.bias)
        if not is_positive(self.width):
            raise ValueError("expected positive whole numbers")

    def output_shape(self, below: Shape) -> Shape:
        return (self.width,)

    def weight_shape(self, below: Shape) -> Shape:
        return (self.width, math.prod(below))

    def matrix(self, below: Shape, weights: Array) -> DenseMatrix:
        return DenseMatrix(weights, maps_in=below[0])

    @staticmethod
    def torch_classes(directions: int) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return (nn.Linear,)

    def to_torch(self, below: Shape) -> nn.Module:
        (kind,) = self.torch_classes(1)
        return kind(math.prod(below), self.width, self.bias, device="meta")

    @classmethod
    def from_torch(cls, given: object, below: Shape) -> Dense:
        """Return the layer that a call of PyTorch's with these arguments is, or ValueError."""
        return cls(len(given.weight), given.bias is not None)


class DenseMatrix(WeightMatrix):
    """A matrix without structure, shape (out, in), between `maps_in` and `maps_out` maps.

    Without `maps_out` every row is a map of its own, as the neurons of a dense layer are.
    """

    def __init__(self, weights: Array, maps_in: int = 1, maps_out: int | None = None):
        weights = plain_array("dense", weights)
        maps_out = weights.shape[0] if maps_out is None and weights.ndim else maps_out
        if not weights.size or weights.ndim != 2:
            raise ValueError(f"dense: expected weights (out, in), none 0, got {weights.shape}")
        if weights.shape[0] % maps_out or weights.shape[1] % maps_in:
            raise ValueError(
                f"dense: expected weights (out, in) with out a multiple of {maps_out} and in of "
                f"{maps_in} maps, got {weights.shape}"
            )
        self._weights = weights
        self.maps_out, self.positions_out = maps_out, weights.shape[0] // maps_out
        self.maps_in, self.positions_in = maps_in, weights.shape[1] // maps_in

    def with_weights(self, weights: Array) -> DenseMatrix:
        rows = self.maps_out if weights.shape[0] == self.shape[0] else None
        return DenseMatrix(weights, self.maps_in, rows)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        entries = to_numpy(self.weights)
        return scipy.sparse.csr_array(entries if rows is None else entries[rows])

    @property
    def T(self) -> DenseMatrix:
        return DenseMatrix(self.weights.T, self.maps_out, self.maps_in)

    @property
    def nnz(self) -> int:
        return int((self.weights != 0).sum())

    def gradient(self, delta: Array, o: Array) -> Array:
        return delta @ o.T

    def gathered(self, o: Array) -> Array:
        return o[:, None]

    def outgoing(self, c: int) -> Array:
        return self.weights[:, c * self.positions_in : (c + 1) * self.positions_in]

    def of_map(self, c: int) -> DenseMatrix:
        return DenseMatrix(self.outgoing(c), maps_out=self.maps_out)

    def support_sums(self, a: Array) -> Array:
        return namespace(a).broadcast_to(a.sum(axis=0), (self.positions_out, a.shape[1]))

    def _product(self, o: Array) -> Array:
        return self.weights @ o
