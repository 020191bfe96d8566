"""What the kinds of layers have in common: the contract that a kind fulfils in one file.

A kind is a frozen dataclass of its options, and next to it the weight matrix that it stands for.
It knows its name in a spec, which shapes it makes of which, the shape of its weights, its matrix,
and its module in PyTorch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, fields
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
    """One kind of layer; its options are whole numbers, where it says so one for each direction.

    `activation` is the one that follows this layer, `Identity()` for none; by default it is the
    network's after every convolution and dense layer but the last layer, and none after others.
    Shapes are those of one sample: (maps, *map_shape), or (neurons,) above a dense layer.
    """

    activation: Activation | None = None

    type: ClassVar[str]
    """Its name in a spec."""
    trainable: ClassVar[bool] = True
    """Whether it has weights."""
    activated: ClassVar[bool] = True
    """Whether the network's activation follows it, unless it is the last layer."""
    bias = False
    """Whether it has biases, one for each map or neuron."""
    precedes_activation: ClassVar[bool] = False
    """Whether the activation of a layer with weights right below comes after this one instead."""
    always: ClassVar[tuple[str, ...]] = ()
    """Options that its description has even where they are the usual ones."""
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
        for name, value in vars(self).items():
            object.__setattr__(self, name, shortest(value))

    def __repr__(self) -> str:
        """Return it with the options that are not the usual ones, and with all that have none."""
        given = (f"{name}={value!r}" for name, value in self._shown().items())
        return f"{type(self).__name__}({', '.join(given)})"

    def _shown(self) -> dict:
        """Return the options that are not the usual ones, and all that have none; activation last.

        Without the usual ones descriptions are as they were before there were others.
        """
        activation, *options = fields(self)
        return {
            field.name: getattr(self, field.name)
            for field in (*options, activation)
            if not _is_usual(field, getattr(self, field.name)) or field.name in self.always
        }

    @property
    def keeps_constants(self) -> bool:
        """Return whether a layer without weights makes of a constant map that constant."""
        return not self.trainable

    @property
    def spec(self) -> dict:
        """Return the JSON description of the layer, such as {"type": "dense", "width": 2}."""
        return {"type": self.type, **{name: _json(v) for name, v in self._shown().items()}}

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for options that no layer of this kind has."""

    @abstractmethod
    def output_shape(self, below: Shape) -> Shape:
        """Return the shape that the layer makes of the shape below it, or raise ValueError."""

    def weight_shape(self, below: Shape) -> Shape | None:
        """Return the shape of the weights, as in PyTorch: (maps or neurons, ...); or None."""
        return None

    @abstractmethod
    def matrix(self, below: Shape, weights: Array | None) -> WeightMatrix:
        """Return the weight matrix with these weights, for inputs of this shape."""

    @abstractmethod
    def to_torch(self, below: Shape) -> nn.Module:
        """Return PyTorch's module, its weights and biases still without numbers.

        Where it is several in a row the last one has the numbers.
        """


def is_positive(n: object, least: int = 1) -> bool:
    """Return whether `n` is a whole number above 0, or of `least` or more."""
    found = whole(n)
    return found is not None and found >= least


def are_positive(option: object, least: int = 1) -> bool:
    """Return whether an option is such a number, or one for each direction."""
    if isinstance(option, tuple):
        return bool(option) and all(is_positive(n, least) for n in option)
    return is_positive(option, least)


def shortest(option: object) -> object:
    """Return whole numbers as Python's, and one for each direction as one where they are equal.

    >>> shortest([3, 3]), shortest((1, 2)), shortest(((1, 1), (0, 1)))
    (3, (1, 2), (1, (0, 1)))
    """
    if not isinstance(option, list | tuple):
        found = whole(option)
        return option if found is None else found
    parts = tuple(map(shortest, option))
    equal = parts and all(type(part) is int and part == parts[0] for part in parts)
    return parts[0] if equal else parts


def each(name: str, option: object, directions: int) -> tuple:
    """Return an option for each direction, or raise ValueError."""
    if not isinstance(option, tuple):
        return (option,) * directions
    if len(option) != directions:
        raise ValueError(f"expected {name} for {directions} directions, got {option}")
    return option


def _is_usual(field: Field, value: object) -> bool:
    return type(value) is type(field.default) and value == field.default


def _json(option: object) -> object:
    """Return an option as JSON has it."""
    if isinstance(option, tuple):
        return list(map(_json, option))
    return option.spec if isinstance(option, Layer | Activation) else option


def check_bias(bias: object) -> None:
    """Raise ValueError for an option `bias` that is neither True nor False."""
    if not isinstance(bias, bool):
        raise ValueError(f"expected bias True or False, got {bias!r}")


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
