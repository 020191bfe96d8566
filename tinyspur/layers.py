"""The kinds of layers that a network is made of. They hold no parameters."""

from __future__ import annotations

from dataclasses import dataclass


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


def is_positive(n: object) -> bool:
    """Return whether `n` is a whole number above 0."""
    return isinstance(n, int) and not isinstance(n, bool) and n > 0
