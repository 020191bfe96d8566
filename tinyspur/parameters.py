"""The numbers of a network: one vector, and its weights and biases layer by layer."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .backend import Array, to_numpy
from .layers import AveragePool, Conv, Pooling
from .matrices import ConvolutionMatrix, DenseMatrix, WeightMatrix
from .pooling import AveragePoolingMatrix, MaxPoolingMatrix

if TYPE_CHECKING:
    from .network import Network


class Parameters:
    """One point theta: a contiguous `vector` with views `W[l]` and `b[l]`, l = 1..L.

    `W[l]` is the weight matrix of layer l, pooling included; `W[l].weights` (PyTorch's shape) and
    `b[l]` (one number for each map or neuron) are views of the vector, so writing to them changes
    the point.
    """

    def __init__(self, net: Network, vector: Array):
        if vector.shape != (net.size,):
            raise ValueError(f"parameters: expected a vector ({net.size},), got {vector.shape}")
        self.net, self.vector = net, vector
        self.W: dict[int, WeightMatrix] = _ByLayer(net)
        self.b: dict[int, Array] = _ByLayer(net)
        for number, layer in enumerate(net.layers, start=1):
            maps, *size = net.shapes[number - 1]
            if isinstance(layer, Pooling):
                kind = AveragePoolingMatrix if isinstance(layer, AveragePool) else MaxPoolingMatrix
                self.W[number] = kind(maps, tuple(size), layer.size)
                continue
            start, shape, biases = net._slots[number]
            stop = start + math.prod(shape)
            weights = vector[start:stop].reshape(shape)
            self.b[number] = vector[stop : stop + biases]
            if isinstance(layer, Conv):
                self.W[number] = ConvolutionMatrix(weights, tuple(size))
            else:
                self.W[number] = DenseMatrix(weights, maps_in=maps)

    def __repr__(self) -> str:
        return f"Parameters({self.net}, {self.vector.dtype})"

    def __reduce__(self) -> tuple:
        return Parameters, (self.net, self.vector)  # so that a pickled point has its views again

    def copy(self) -> Parameters:
        """Return an independent copy."""
        return Parameters(self.net, self.vector.copy())

    def to(self, xp: ModuleType, dtype: type | str | None = None) -> Parameters:
        """Return a copy in the array namespace `xp` and, if given, of another `dtype`."""
        return Parameters(self.net, xp.array(to_numpy(self.vector), dtype=dtype))

    def __abs__(self) -> Parameters:
        """Return |theta|, entry by entry."""
        return Parameters(self.net, abs(self.vector))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return {"W1": ..., "b1": ...} on the host, in PyTorch's shapes."""
        named = {}
        for layer in self.b:
            named[f"W{layer}"] = to_numpy(self.W[layer].weights)
            named[f"b{layer}"] = to_numpy(self.b[layer])
        return named


class _ByLayer(dict):
    """A dictionary by layer number whose error says which layers there are."""

    def __init__(self, net: Network):
        super().__init__()
        self.net = net

    def __missing__(self, layer: int):
        if layer in range(1, self.net.depth + 1):
            raise KeyError(f"layer {layer} is a pooling: it has no biases")
        raise KeyError(f"expected a layer in 1..{self.net.depth}, got {layer!r}")
