"""What the kinds of layers have in common: the contract that a kind fulfils in one file.

A kind is a frozen dataclass of its options, and next to it the weight matrix that it stands for.
It knows its name in a spec, which shapes it makes of which, the shape of its weights, its matrix,
and its module in PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from ..engine.activations import Activation
from ..engine.backend import Array
from ..engine.plain import whole
from .matrix import WeightMatrix

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layer(ABC):
    """One kind of layer; its options are whole numbers above 0.

    `activation` is the one that follows this layer, `Identity()` for none; by default it is the
    network's after every convolution and dense layer but the last layer, and none after others.
    Shapes are those of one sample: (maps, *map_shape), or (neurons,) above a dense layer.
    """

    activation: Activation | None = None

    type: ClassVar[str]
    """Its name in a spec."""
    trainable: ClassVar[bool] = True
    """Whether it has weights and biases."""
    activated: ClassVar[bool] = True
    """Whether the network's activation follows it, unless it is the last layer."""
    selects: ClassVar[bool] = False
    """Whether its matrix depends on what it is multiplied with."""
    spatial: ClassVar[bool] = True
    """Whether it reads maps, and not any neurons."""

    def __post_init__(self):
        if not isinstance(self.activation, Activation | None):
            raise ValueError(
                f"{self.type}: expected an activation as ReLU(), Identity() for none, got "
                f"{self.activation!r}"
            )
        for name, value in self.numbers.items():
            object.__setattr__(self, name, whole(value) or value)

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.shown.items()]
        if self.activation is not None:
            given.append(f"activation={self.activation!r}")
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def options(self) -> dict:
        """Return all options but the activation."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    @property
    def numbers(self) -> dict:
        """Return the options that are whole numbers above 0."""
        return self.options

    @property
    def shown(self) -> dict:
        """Return the options that its repr and its spec show."""
        return self.options

    @property
    def relays(self) -> bool:
        """Return whether what is on a map below can be handed on through the layer, unchanged.

        By an identity filter, or, where entries are averaged, by shifted copies of the map.
        """
        return False

    @property
    def spec(self) -> dict:
        """Return the JSON description of the layer, such as {"type": "dense", "width": 2}."""
        own = {} if self.activation is None else {"activation": self.activation.spec}
        return {"type": self.type, **self.shown, **own}

    @abstractmethod
    def output_shape(self, below: Shape) -> Shape:
        """Return the shape that the layer makes of the shape below it, or raise ValueError."""

    def weight_shape(self, below: Shape) -> Shape | None:
        """Return the shape of the weights, as in PyTorch: (maps or neurons, ...); or None."""
        return None

    @abstractmethod
    def matrix(self, below: Shape, weights: Array | None) -> WeightMatrix:
        """Return the weight matrix with these weights, for inputs of this shape."""

    @staticmethod
    @abstractmethod
    def torch_class(directions: int) -> type[nn.Module]:
        """Return PyTorch's class of such layers for maps with so many directions, 1 or 2."""

    @abstractmethod
    def to_torch(self, below: Shape) -> nn.Module:
        """Return PyTorch's module, its weights and biases still without numbers."""

    @classmethod
    @abstractmethod
    def from_torch(cls, module: nn.Module) -> Layer:
        """Return the layer that a module of `torch_class` is, or raise ValueError."""


def is_positive(n: object) -> bool:
    """Return whether `n` is a whole number above 0."""
    return (whole(n) or 0) > 0


def maps_of(shape: Shape) -> tuple[int, Shape]:
    """Return how many maps a shape has and the shape of each; ValueError for neurons alone."""
    maps, *size = shape
    if not size:
        raise ValueError("expected maps below it, got a dense layer's output")
    return maps, tuple(size)


def expect_options(module: nn.Module, **options: object) -> None:
    """Raise ValueError unless the module's options are these, in each direction."""
    for name, expected in options.items():
        found = getattr(module, name, expected)
        if isinstance(found, tuple) and len(set(found)) > 1:
            raise ValueError(f"expected the same {name} in each direction, got {found}")
        expect(name, found[0] if isinstance(found, tuple) else found, expected)


def expect(name: str, found: object, expected: object) -> None:
    """Raise ValueError unless what was found is what was expected."""
    if found != expected:
        raise ValueError(f"expected {name} {expected}, got {found}")
