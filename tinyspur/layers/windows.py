"""What poolings share: their options and windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..engine.backend import Array, namespace
from .grid import Grid
from .layer import Layer, Shape, are_positive, each, expect_options, maps_of, shortest
from .matrix import WeightMatrix

PART = 2**19  # numbers of maps that are pooled at a time: threads seldom wait for one another


@dataclass(frozen=True, repr=False)
class Pooling(Layer):
    """A layer without parameters over windows of `size`, with the options of PyTorch's.

    `size`, `stride` and `padding` are one number, or a tuple with one for each direction. The
    `stride` is `size`, unless given; padding is at most half of the size. With `ceil_mode` there is
    a last window that reaches out of the padded map, if one begins on the map.
    """

    size: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: int | tuple[int, ...] = 0
    ceil_mode: bool = False

    trainable = False
    activated = False
    more: ClassVar[tuple[str, ...]] = ()
    """Further options that PyTorch's modules have by the same names."""

    def __post_init__(self):
        super().__post_init__()
        if _as_tuple(self.stride, self.size) == _as_tuple(self.size, self.stride):
            object.__setattr__(self, "stride", None)

    def check(self) -> None:
        counts = [self.size, *([] if self.stride is None else [self.stride])]
        if not all(map(are_positive, counts)):
            raise ValueError("expected positive whole numbers")
        if not are_positive(self.padding, 0) or not isinstance(self.ceil_mode, bool):
            raise ValueError("expected padding of whole numbers of 0 or more, ceil_mode a bool")

    def grid(self, below: Shape) -> Grid:
        """Return the windows on maps of this shape, or raise ValueError."""
        dilation = getattr(self, "dilation", 1)
        options = self.size, self.stride, self.padding, self.ceil_mode, dilation
        return grid_of(maps_of(below)[1], *options)

    def output_shape(self, below: Shape) -> Shape:
        return (below[0], *self.grid(below).output_shape)

    def to_torch(self, below: Shape):
        kind = self.torch_classes(len(below) - 1)[0]
        options = {name: getattr(self, name) for name in ("ceil_mode", *self.more)}
        return kind(self.size, self.stride, self.padding, **options)

    @classmethod
    def from_torch(cls, given: object, below: Shape) -> Pooling:
        """Return the layer that a call of PyTorch's with these arguments is, or ValueError."""
        _, lengths = maps_of(below)
        if hasattr(given, "output_size"):  # adaptive: windows that divide the maps
            expect_options(given, return_indices=False)
            wanted = each("output_size", shortest(given.output_size), len(lengths))
            wanted = [n if m is None else m for n, m in zip(lengths, wanted, strict=True)]
            if any(n % m for n, m in zip(lengths, wanted, strict=True)):
                raise ValueError(f"expected an output_size that divides the maps {lengths}")
            return cls(tuple(n // m for n, m in zip(lengths, wanted, strict=True)))
        expect_options(given, return_indices=False, divisor_override=None)
        options = given.kernel_size, given.stride, given.padding, given.ceil_mode
        return cls(*options, **{name: getattr(given, name) for name in cls.more})


def _as_tuple(option: object, other: object) -> object:
    """Return an option with as many numbers as another one, if that has several."""
    alone = type(option) is int and isinstance(other, tuple)
    return (option,) * len(other) if alone else option


class PoolingMatrix(WeightMatrix):
    """What poolings share: the windows of a `grid` on each map."""

    def __init__(
        self,
        maps: int,
        map_shape: tuple[int, ...],
        size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        dilation: int | tuple[int, ...] = 1,
    ):
        try:
            grid = grid_of(tuple(map_shape), size, stride, padding, ceil_mode, dilation)
        except ValueError as error:
            raise ValueError(f"pooling: {error}") from None
        self.grid, self.map_shape, self.size = grid, grid.map_shape, shortest(grid.size)
        self.maps_in = self.maps_out = maps
        self.positions_in = math.prod(grid.map_shape)
        self.positions_out = math.prod(grid.output_shape)
        self.tiles = grid.tiles
        self.split = [m for n, k in zip(grid.output_shape, grid.size, strict=True) for m in (n, k)]

    @property
    def fan_in(self) -> int:
        """Return the number of entries of a window."""
        return math.prod(self.grid.size)

    @property
    def fan_out(self) -> int:
        """Return how many windows read an entry at most."""
        return self.grid.overlap

    def is_like(self, other: WeightMatrix) -> bool:
        """Return whether `other` has the same maps and windows."""
        return super().is_like(other) and self.grid == other.grid

    def _details(self) -> str:
        grid = self.grid
        found = f", {self.maps_in} map{'s' * (self.maps_in > 1)}, size {self.size}"
        found += f", stride {shortest(grid.stride)}" * (grid.stride != grid.size)
        found += f", padding {shortest(grid.before)}" * any(grid.before)
        return found + f", dilation {shortest(grid.dilation)}" * (set(grid.dilation) != {1})

    def gathered(self, o: Array) -> Array:
        read = self.grid.read(o.reshape(1, *self.map_shape, o.shape[1]))
        return (
            namespace(o).array(read, order="C").reshape(self.fan_in, self.positions_out, o.shape[1])
        )

    def windows(self, o: Array, fill: float | None = None) -> Array:
        """Return the entries of all windows, (size^d, n_l, N), row by row in each.

        In the padding is `fill`, without it the first entry of the window that is on the map.
        """
        if o.ndim != 2 or o.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r}: expected columns ({self.shape[1]}, N), got {o.shape}")
        if self.tiles:
            axes = len(self.split)
            order = (*range(2, axes + 1, 2), 0, *range(1, axes, 2), axes + 1)
            windows = o.reshape(self.maps_in, *self.split, o.shape[1]).transpose(order)
            return windows.reshape(self.fan_in, self.shape[0], o.shape[1])
        images = o.reshape(self.maps_in, *self.map_shape, o.shape[1])
        read = self.grid.read(images, fill=0 if fill is None else fill)
        windows = (
            namespace(o).array(read, order="C").reshape(self.fan_in, self.shape[0], o.shape[1])
        )
        inside = self.inside(o)
        if fill is not None or inside is None:
            return windows
        xp = namespace(o)
        first = xp.take_along_axis(windows, self._first(inside)[None, :, None], axis=0)
        return xp.where(inside, windows, first)

    def inside(self, like: Array) -> Array | None:
        """Return which entries of windows are on the map, (size^d, n_l, 1); None where all are."""
        spans = zip(*self.grid, strict=True)
        if all(
            low == 0 and (count - 1) * s + (k - 1) * step < n
            for n, count, k, s, low, _, step in spans
        ):
            return None
        ones = namespace(like).ones((self.maps_in, *self.map_shape, 1), dtype=bool)
        read = namespace(like).array(self.grid.read(ones, fill=False), order="C")
        return read.reshape(self.fan_in, self.shape[0], 1)

    @property
    def first_taps(self) -> np.ndarray:
        """Return the number of the first entry of each window that is on the map, (n_l,)."""
        inside = self.inside(np.zeros(0))
        return np.zeros(self.shape[0], int) if inside is None else self._first(inside)

    @staticmethod
    def _first(inside: Array) -> Array:
        return inside[:, :, 0].argmax(axis=0)

    def from_windows(self, windows: Array) -> Array:
        """Return the columns (n_{l-1}, N) whose windows these are; sums where windows overlap."""
        N = windows.shape[-1]
        if self.tiles:
            sizes, coarse = self.split[1::2], self.split[::2]
            d = len(sizes)
            mixed = [axis for k in range(d) for axis in (d + 1 + k, k)]
            fine = windows.reshape(*sizes, self.maps_in, *coarse, N)
            return fine.transpose(d, *mixed, 2 * d + 1).reshape(self.shape[1], N)
        windows = windows.reshape(self.fan_in, self.maps_in, *self.grid.output_shape, N)
        return self.shares_back(windows, lambda part, tap: windows[tap, part])

    def parts(self, N: int) -> list[slice]:
        """Return the maps in parts that fit into a cache with N samples."""
        size = max(1, PART // (self.positions_in * max(N, 1)))
        return [slice(n, n + size) for n in range(0, self.maps_in, size)]

    def reads(self, o: Array, fill: float = 0) -> Iterator[tuple[slice, list[Array]]]:
        """Yield parts of the maps of o, and what each tap reads of them, (maps, *output, N)."""
        images = o.reshape(self.maps_in, *self.map_shape, o.shape[1])
        for part in self.parts(o.shape[1]):
            moved = self.grid.read(images[part], fill=fill)
            yield part, [moved[tap] for tap in np.ndindex(*self.grid.size)]

    def reduced(self, o: Array, operation: Callable, fill: float = 0) -> Array:
        """Return sums or maxima over all windows of o, (n_l, N); see `Grid.reduced`."""
        N = o.shape[1]
        images = o.reshape(self.maps_in, *self.map_shape, N)
        shape = (self.maps_in, *self.grid.output_shape, N)
        found = namespace(o).empty(shape, dtype=o.dtype)
        for part in self.parts(N):
            found[part] = self.grid.reduced(images[part], operation, fill)
        return found.reshape(self.shape[0], N)

    def shares_back(self, like: Array, share: Callable[[slice, int], Array]) -> Array:
        """Return the sums (n_{l-1}, N) of what each tap of the windows hands back to what it reads.

        `share` returns that of a part of the maps and a tap, (maps, *output, N).
        """
        N = like.shape[-1]
        found = namespace(like).empty((self.maps_in, self.positions_in, N), dtype=like.dtype)
        for part in self.parts(N):
            images = found[part]
            padded, moved = self.grid.zeros(like, len(images), N)
            for k, tap in enumerate(np.ndindex(*self.grid.size)):
                place = moved[tap]
                place += share(part, k)
            images[...] = self.grid.inner(padded).reshape(images.shape)
        return found.reshape(self.shape[1], N)


def grid_of(
    map_shape: Shape,
    size: object,
    stride: object = None,
    padding: object = 0,
    ceil_mode: bool = False,
    dilation: object = 1,
) -> Grid:
    """Return the windows of a pooling, or raise ValueError."""
    if not are_positive(shortest(padding), 0):
        raise ValueError(f"expected padding of whole numbers of 0 or more, got {padding!r}")
    grid = Grid.of(
        map_shape, size, size if stride is None else stride, padding, dilation, ceil_mode
    )
    if any(low > k // 2 for low, k in zip(grid.before, grid.size, strict=True)):
        raise ValueError(f"expected padding of half the size at most, got {padding}")
    for n, count, k, s, low, _, step in zip(*grid, strict=True):
        places = np.arange(count)[:, None] * s + np.arange(k) * step - low
        if not ((places >= 0) & (places < n)).any(axis=1).all():
            raise ValueError("expected windows each of which has an entry of the map")
    return grid
