"""A factor and a shift for each map: batch normalisation as it is in evaluation mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.backend import Array, namespace, to_numpy
from ..engine.plain import plain_array
from .convolution_matrix import ConvolutionMatrix
from .layer import Layer, Shape, check_bias
from .matrix import WeightMatrix

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Scale(Layer):
    """A factor for each map, or neuron, and a shift unless `bias` is False.

    No activation comes between it and a layer with weights right below it: the activation follows
    it. So it is batch normalisation in evaluation mode, gamma (x - mean) / std + beta, with the
    factor gamma / std and the shift beta - gamma mean / std.
    """

    bias: bool = True

    type = "scale"
    precedes_activation = True

    def check(self) -> None:
        check_bias(self.bias)

    def output_shape(self, below: Shape) -> Shape:
        return below

    def weight_shape(self, below: Shape) -> Shape:
        return below[:1]

    def matrix(self, below: Shape, weights: Array) -> ScaleMatrix:
        return ScaleMatrix(weights, math.prod(below[1:]))

    @staticmethod
    def torch_classes(directions: int) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return {1: (nn.BatchNorm1d,), 2: (nn.BatchNorm2d, nn.BatchNorm1d)}[directions]

    def to_torch(self, below: Shape) -> nn.Module:
        kind = self.torch_classes(max(1, len(below) - 1))[0]
        module = kind(below[0], eps=0.0).eval()
        if not self.bias:
            module.bias = None
        return module

    @staticmethod
    def numbers_of(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors and shifts of a batch normalisation, rounded from float64."""
        parts = module.running_mean, module.running_var, module.weight, module.bias
        mean, var, gamma, beta = (
            None if part is None else part.detach().cpu().double().numpy() for part in parts
        )
        factor = (1.0 if gamma is None else gamma) / np.sqrt(var + module.eps)
        return factor, (0.0 if beta is None else beta) - factor * mean


class ScaleMatrix(WeightMatrix):
    """A diagonal matrix: `weights` (T,) holds a number for each map of so many positions.

    >>> ScaleMatrix(np.array([2.0, 3.0]), 2)
    ScaleMatrix(4 x 4, 2 maps, 4 nonzeros)
    """

    def __init__(self, weights: Array, positions: int = 1):
        weights = plain_array("scale", weights)
        if weights.ndim != 1 or not weights.size:
            raise ValueError(f"scale: expected weights (maps,), got {weights.shape}")
        self._weights = weights
        self.maps_in = self.maps_out = self.groups = len(weights)
        self.positions_in = self.positions_out = positions

    def with_weights(self, weights: Array) -> ScaleMatrix:
        return ScaleMatrix(weights, self.positions_in)

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        entries = np.repeat(to_numpy(self.weights), self.positions_in)
        csr = scipy.sparse.diags_array(entries).tocsr()
        csr.eliminate_zeros()
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> ScaleMatrix:
        return self

    @property
    def nnz(self) -> int:
        return int((self.weights != 0).sum()) * self.positions_in

    @property
    def fan_in(self) -> int:
        return 1

    @property
    def fan_out(self) -> int:
        return 1

    def gradient(self, delta: Array, o: Array) -> Array:
        return (delta * o).reshape(self.maps_in, -1).sum(axis=1)

    def gathered(self, o: Array) -> Array:
        return o[None]

    def readers(self, c: int) -> slice:
        return slice(c, c + 1)

    def outgoing(self, c: int) -> Array:
        return self.weights[c : c + 1]

    def of_map(self, c: int) -> ConvolutionMatrix:
        filters = namespace(self.weights).zeros((self.maps_in, 1, 1), dtype=self.weights.dtype)
        filters[c, 0, 0] = self.weights[c]
        return ConvolutionMatrix(filters, (self.positions_in,))

    def support_sums(self, a: Array) -> Array:
        sums = a.reshape(self.maps_in, self.positions_in, a.shape[1])
        return sums if self.groups > 1 else sums[0]

    def _details(self) -> str:
        return f", {self.maps_in} map{'s' * (self.maps_in > 1)}"

    def _product(self, o: Array) -> Array:
        maps = o.reshape(self.maps_in, self.positions_in, o.shape[1])
        return (maps * self.weights[:, None, None]).reshape(o.shape)
