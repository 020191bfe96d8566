"""What poolings share: windows that do not overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..engine.backend import Array
from ..engine.plain import whole
from .layer import Layer, Shape, expect_options, is_positive, maps_of
from .matrix import WeightMatrix


@dataclass(frozen=True, repr=False)
class Pooling(Layer):
    """A layer without parameters over windows of `size` that do not overlap."""

    size: int

    trainable = False
    activated = False

    def output_shape(self, below: Shape) -> Shape:
        maps, size = maps_of(below)
        if any(n % self.size for n in size):
            raise ValueError(f"expected a size that divides the maps {size}")
        return (maps, *(n // self.size for n in size))

    def to_torch(self, below: Shape):
        return self.torch_class(len(below) - 1)(self.size)

    @classmethod
    def from_torch(cls, module) -> Pooling:
        kernel = module.kernel_size
        size = int(kernel[0] if isinstance(kernel, tuple) else kernel)
        expect_options(module, kernel_size=size, stride=size, padding=0, dilation=1)
        expect_options(module, ceil_mode=False, return_indices=False, divisor_override=None)
        return cls(size)


class PoolingMatrix(WeightMatrix):
    """What poolings share: windows of `size` in each direction that do not overlap."""

    def __init__(self, maps: int, map_shape: tuple[int, ...], size: int):
        if not is_positive(size) or any(n % size for n in map_shape):
            raise ValueError(
                f"pooling: expected a size that divides the maps {tuple(map_shape)}, got {size}"
            )
        self.map_shape, self.size = tuple(map_shape), whole(size)
        self.maps_in = self.maps_out = maps
        self.positions_in = math.prod(map_shape)
        self.positions_out = self.positions_in // size ** len(map_shape)
        self.split = [m for n in self.map_shape for m in (n // size, size)]

    @property
    def fan_in(self) -> int:
        """Return the number of entries of a window."""
        return self.size ** len(self.map_shape)

    @property
    def fan_out(self) -> int:
        """Return 1: windows don't overlap."""
        return 1

    def _details(self) -> str:
        return f", {self.maps_in} map{'s' * (self.maps_in > 1)}, size {self.size}"

    def windows(self, o: Array) -> Array:
        """Return the entries of all windows, (size^d, n_l, N), row by row in each."""
        axes = len(self.split)
        order = (*range(2, axes + 1, 2), 0, *range(1, axes, 2), axes + 1)
        if o.ndim != 2 or o.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r}: expected columns ({self.shape[1]}, N), got {o.shape}")
        windows = o.reshape(self.maps_in, *self.split, o.shape[1]).transpose(order)
        return windows.reshape(self.size ** len(self.map_shape), self.shape[0], o.shape[1])

    def gathered(self, o: Array) -> Array:
        return type(self)(1, self.map_shape, self.size).windows(o)

    def from_windows(self, windows: Array) -> Array:
        """Return the columns (n_{l-1}, N) whose windows these are."""
        sizes, coarse = self.split[1::2], self.split[::2]
        d = len(sizes)
        mixed = [axis for k in range(d) for axis in (d + 1 + k, k)]
        fine = windows.reshape(*sizes, self.maps_in, *coarse, windows.shape[-1])
        fine = fine.transpose(d, *mixed, 2 * d + 1)
        return fine.reshape(self.shape[1], windows.shape[-1])
