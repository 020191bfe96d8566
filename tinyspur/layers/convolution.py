"""Convolutions with zero padding: what they are made of; see `ConvolutionMatrix`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine.backend import Array
from .convolution_matrix import ConvolutionMatrix
from .grid import Grid, is_padding, usual_padding
from .layer import Layer, Shape, are_positive, check_bias, is_positive, maps_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Conv(Layer):
    """A convolution with `maps` filters of size `kernel`, as PyTorch's.

    `kernel`, `stride`, `padding` and `dilation` are one number, or a tuple with one for each
    direction. `padding` is a number of zeros, or in a tuple a pair (before, after), or "valid" for
    none, or "same": dilation * (kernel - 1) in all, the odd one after, so that at stride 1 maps
    keep their size, and with a stride s maps of n positions become maps of ceil(n / s). With
    `groups` the maps of each group read those of one group below alone. Without `bias` it has no
    biases.
    """

    maps: int
    kernel: int | tuple[int, ...] = 3
    stride: int | tuple[int, ...] = 1
    padding: str | int | tuple = "same"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True

    type = "conv"
    always = ("kernel",)

    def __post_init__(self):
        super().__post_init__()
        usual = usual_padding(self.kernel, self.padding, self.dilation)
        object.__setattr__(self, "padding", usual)

    def check(self) -> None:
        counts = self.kernel, self.stride, self.dilation
        alone = is_positive(self.maps) and is_positive(self.groups)
        if not (alone and all(map(are_positive, counts))):
            raise ValueError("expected positive whole numbers")
        if not is_padding(self.padding):
            raise ValueError(
                'expected padding "same", "valid", or whole numbers of 0 or more, got '
                f"{self.padding!r}"
            )
        check_bias(self.bias)

    def output_shape(self, below: Shape) -> Shape:
        channels, _ = maps_of(below)
        if channels % self.groups or self.maps % self.groups:
            raise ValueError(
                f"expected groups that divide {channels} maps below and {self.maps}, got "
                f"{self.groups}"
            )
        return (self.maps, *self.grid(below).output_shape)

    def weight_shape(self, below: Shape) -> Shape:
        return (self.maps, below[0] // self.groups, *self.grid(below).size)

    def matrix(self, below: Shape, weights: Array) -> ConvolutionMatrix:
        return ConvolutionMatrix.on(self._grid(below), weights, self.groups)

    def grid(self, below: Shape) -> Grid:
        """Return where the filters lie on maps of this shape, or raise ValueError."""
        self.check()  # 2.0 would be taken for the 2 that has been asked for
        return self._grid(below)

    def _grid(self, below: Shape) -> Grid:
        _, size = maps_of(below)
        return _grid_of(size, self.kernel, self.stride, self.padding, self.dilation)

    @staticmethod
    def torch_classes(directions: int) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return ({1: nn.Conv1d, 2: nn.Conv2d}[directions],)

    def to_torch(self, below: Shape) -> nn.Module:
        from torch import nn

        grid, d = self.grid(below), len(below) - 1
        (kind,), even = self.torch_classes(d), grid.before == grid.after
        padding = grid.before if even else "same"
        around = []
        if not even and (self.padding, set(grid.stride)) != ("same", {1}):  # not PyTorch's own
            sides = [n for pair in reversed(grid.padding) for n in pair]
            around, padding = [{1: nn.ZeroPad1d, 2: nn.ZeroPad2d}[d](tuple(sides))], 0
        module = kind(
            below[0],
            self.maps,
            grid.size,
            grid.stride,
            padding,
            grid.dilation,
            self.groups,
            self.bias,
            device="meta",
        )
        return nn.Sequential(*around, module) if around else module

    @classmethod
    def from_torch(cls, given: object, below: Shape) -> Conv:
        """Return the layer that a call of PyTorch's with these arguments is, or ValueError."""
        options = given.kernel_size, given.stride, given.padding, given.dilation
        return cls(given.out_channels, *options, given.groups, given.bias is not None)


_grid_of = functools.lru_cache(maxsize=256)(Grid.of)  # each point of a network asks
