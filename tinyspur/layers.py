"""What a network is made of: the kinds of layers and the activation. They hold no parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .backend import Array, namespace


@dataclass(frozen=True)
class Conv:
    """A convolution with `maps` filters of odd size `kernel`, stride 1, zero padding, biases."""

    maps: int
    kernel: int = 3


@dataclass(frozen=True)
class AveragePool:
    """Average pooling over windows of `size` that do not overlap."""

    size: int


@dataclass(frozen=True)
class MaxPool:
    """Max pooling over windows of `size` that do not overlap; of equal entries the first is it."""

    size: int


@dataclass(frozen=True)
class Dense:
    """A dense layer of `width` neurons with biases."""

    width: int


Pooling = AveragePool | MaxPool
Layer = Conv | Pooling | Dense
LAYER_TYPES = {"conv": Conv, "average_pool": AveragePool, "max_pool": MaxPool, "dense": Dense}


@dataclass(frozen=True)
class ReLU:
    """sigma(z) = z for z > 0 and `slope` * z elsewhere; slope 0 is ReLU, slope > 0 leaky ReLU.

    Raises ValueError for a slope that is negative or not finite.
    """

    slope: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.slope, float | int) and 0 <= self.slope < math.inf):
            raise ValueError(f"activation: expected a finite slope >= 0, got {self.slope!r}")

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        xp = namespace(z)
        return xp.maximum(z, 0) if self.slope == 0 else xp.where(z > 0, z, self.slope * z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z); at the kink z = 0 that of the left side, as PyTorch."""
        slopes = (z > 0).astype(z.dtype)
        return slopes if self.slope == 0 else slopes + self.slope * (1 - slopes)

    @property
    def spec(self) -> dict:
        """Return the JSON description."""
        return {"name": "leaky_relu", "slope": self.slope} if self.slope else {"name": "relu"}


def is_positive(n: object) -> bool:
    """Return whether `n` is a whole number above 0."""
    return isinstance(n, int) and not isinstance(n, bool) and n > 0
