"""What a network is made of: the shape of its input, its layers, its activation; no numbers.

Layers count from 1 to L as in the papers; layer 0 is the input.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from ..layers import (
    Layer,
    Link,
    Shape,
    Slot,
    WeightMatrix,
    chain_of,
    is_positive,
    layer_of,
    matrix_of,
    slots_of,
    states_of,
)
from ..shown import network_html
from .activations import Activation, Identity, ReLU, activation_named
from .backend import Array, namespace
from .plain import real, whole

MEMORY_BUDGET = 128 * 2**20  # bytes of activations that a thread may hold at once during a pass


@dataclass(frozen=True, repr=False)
class Architecture:
    """The layers that `Parameters` hold numbers for; see `Network`, which adds the passes."""

    input_shape: tuple[int, ...]
    layers: Sequence[Layer]
    activation: Activation | None = None
    memory_budget: int = field(default=MEMORY_BUDGET, compare=False)

    def __post_init__(self):
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        sizes = _listed("an input (C, H, W) or (C, W)", self.input_shape)
        put("input_shape", tuple(whole(n) or n for n in sizes))
        put("layers", _listed("a list of layers", self.layers))
        put("activation", ReLU() if self.activation is None else self.activation)
        if len(self.input_shape) not in (2, 3) or not all(map(is_positive, self.input_shape)):
            raise ValueError(
                "network: expected an input (C, H, W) or (C, W), for vectors (1, d), got "
                f"{self.input_shape}"
            )
        if not self.layers:
            raise ValueError("network: expected at least one layer")
        if not isinstance(self.activation, Activation):
            raise ValueError(f"network: expected an activation as ReLU(), got {self.activation!r}")
        if not real(self.memory_budget) > 0:
            raise ValueError(f"memory_budget: expected bytes > 0, got {self.memory_budget!r}")
        self.shapes  # noqa: B018 - raises for layers that don't fit
        first = min(self.slots, default=self.depth + 1)
        for number in range(1, first):
            if isinstance(self.chain[number - 1], Link) or self.is_active(number):
                raise ValueError(
                    "network: expected a layer with weights below the first activation and in "
                    f"front of the first residual block, got {self.layers[0]} first"
                )

    def __repr__(self) -> str:
        arrows = " -> ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{type(self).__name__}({arrows}, {self.size} parameters)"

    def _repr_html_(self) -> str:
        return network_html(self)

    @cached_property
    def chain(self) -> tuple[Layer | Link, ...]:
        """Return the layers 1..L one by one, those of residual blocks too."""
        return chain_of(self.layers)

    @cached_property
    def states(self) -> tuple[tuple[Shape, ...], ...]:
        """Return the shapes of the input and of each layer's output, with what a block keeps."""
        return states_of(self.input_shape, self.chain)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes of the input and of each layer's own output."""
        return tuple(state[0] for state in self.states)

    def read_shape(self, layer: int) -> Shape:
        """Return the shape of what the layer itself reads."""
        link, state = self.chain[layer - 1], self.states[layer - 1]
        return link.arranged(state)[0] if isinstance(link, Link) else state[0]

    def rows(self, layer: int) -> int:
        """Return n_l, the number of rows of o^l with what a block keeps beside it."""
        return sum(map(math.prod, self.states[layer]))

    def matrix(self, layer: int, weights: Array | None) -> WeightMatrix:
        """Return the matrix W^l with these weights."""
        return matrix_of(self.chain[layer - 1], self.states[layer - 1], weights)

    @cached_property
    def without_weights(self) -> Mapping[int, WeightMatrix]:
        """Return, by layer, the matrices that are the same at all points."""
        layers = range(1, self.depth + 1)
        return MappingProxyType({n: self.matrix(n, None) for n in layers if n not in self.slots})

    def __reduce__(self) -> tuple:
        return type(self), (self.input_shape, self.layers, self.activation, self.memory_budget)

    @cached_property
    def slots(self) -> Mapping[int, Slot]:
        """Return, by layer, where its numbers are in the vector, and the shape of its weights."""
        return MappingProxyType(slots_of(self.chain, self.states))

    @cached_property
    def size(self) -> int:
        """Return the number of parameters."""
        return max((slot.all.stop for slot in self.slots.values()), default=0)

    @property
    def depth(self) -> int:
        """Return L, the number of layers."""
        return len(self.chain)

    @property
    def spec(self) -> dict:
        """Return the JSON description that is written beside parameters."""
        return {
            "input": list(self.input_shape),
            "activation": self.activation.spec,
            "layers": [layer.spec for layer in self.layers],
        }

    @classmethod
    def from_spec(cls, spec: dict | str) -> Architecture:
        """Return what `spec` (a dictionary or its JSON) describes, or raise ValueError."""
        expected = "network spec: expected a JSON object with input, activation, layers"
        try:
            parts = json.loads(spec) if isinstance(spec, str) else spec
        except json.JSONDecodeError:
            parts = spec
        if not isinstance(parts, dict):
            raise ValueError(f"{expected}, got {reprlib.repr(parts)}")
        if parts.keys() != {"input", "activation", "layers"}:
            raise ValueError(f"{expected}, got one with {', '.join(map(str, parts)) or 'nothing'}")
        for name in ("input", "layers"):
            if not isinstance(parts[name], list | tuple):
                got = reprlib.repr(parts[name])
                raise ValueError(f"network spec: expected {name} as a list, got {got}")
        layers = list(map(layer_of, parts["layers"]))
        return cls(tuple(parts["input"]), layers, activation_named(parts["activation"]))

    def activation_of(self, layer: int) -> Activation | None:
        """Return the activation that follows `layer`, or None.

        It is the layer's own, if it names one, else the network's after every convolution and dense
        layer but the last layer; after the scale above a layer instead, if there is one.
        """
        own = self.chain[layer - 1].activation
        usual = layer < self.depth and self.chain[layer - 1].activated
        if own is None and usual and not self.chain[layer].precedes_activation:
            own = self.activation
        return None if type(own) is Identity else own

    def activation_at(self, layer: int) -> Activation | None:
        """Return the same as it acts on o^l: on the layer's own rows, if a block keeps others."""
        sigma, kept = self.activation_of(layer), self.states[layer][1:]
        return Beside(sigma, math.prod(self.shapes[layer])) if sigma and kept else sigma

    def is_active(self, layer: int) -> bool:
        """Return whether an activation follows `layer`."""
        return self.activation_of(layer) is not None

    @cached_property
    def activations(self) -> tuple[Activation, ...]:
        """Return all activations that follow some layer, each once."""
        found = []
        for sigma in map(self.activation_of, range(1, self.depth + 1)):
            if sigma is not None and sigma not in found:
                found.append(sigma)
        return tuple(found)

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Return the layers that an activation follows."""
        return tuple(layer for layer in range(1, self.depth + 1) if self.is_active(layer))

    @property
    def max_layers(self) -> tuple[int, ...]:
        """Return the max poolings whose choice depends on the parameters: all but leading ones."""
        return tuple(
            layer
            for layer in range(self.leading_poolings + 1, self.depth + 1)
            if self.chain[layer - 1].selects
        )

    @property
    def kinked_layers(self) -> tuple[int, ...]:
        """Return the layers that an activation with a kink follows."""
        return tuple(n for n in self.active_layers if self.activation_of(n).piecewise_linear)

    @cached_property
    def bent_layers(self) -> tuple[int, ...]:
        """Return the kinked layers but those where ReLU or leaky ReLU changes nothing.

        These read what ReLU gives through poolings and sums alone, which is 0 or more.
        """
        found: list[int] = []
        positive: tuple[bool, ...] = (False,)
        for layer, part in enumerate(self.chain, start=1):
            link = part if isinstance(part, Link) else Link(part)
            read, *kept = link.arranged(positive)
            own = read and not link.trainable and (kept.pop(0) if link.joins else True)
            sigma = self.activation_of(layer)
            if sigma is not None and not (own and type(sigma) is ReLU):
                own = type(sigma) is ReLU and sigma.slope == 0
                if sigma.piecewise_linear:
                    found.append(layer)
            positive = (own, *kept)
        return tuple(found)

    def bend_at(self, layer: int) -> Activation | None:
        """Return the activation as it acts on o^l, None where it changes nothing."""
        sigma = self.activation_at(layer)
        smooth = sigma is not None and not sigma.piecewise_linear
        return sigma if smooth or layer in self.bent_layers else None

    @property
    def pattern_layers(self) -> tuple[int, ...]:
        """Return the layers whose pattern depends on the parameters."""
        return tuple(sorted(self.kinked_layers + self.max_layers))

    @property
    def leading_poolings(self) -> int:
        """Return how many poolings come before the first layer with parameters."""
        return min(self.slots, default=self.depth + 1) - 1

    def positions(self, layer: int) -> int:
        """Return the number of positions of a map of `layer`; 0 is the input."""
        return math.prod(self.shapes[layer][1:])


@dataclass(frozen=True)
class Beside(Activation):
    """sigma on the first `rows` rows of z; what a residual block keeps beside them passes."""

    sigma: Activation
    rows: int

    alone = property(lambda self: self.sigma)
    name = property(lambda self: self.sigma.name)
    piecewise_linear = property(lambda self: self.sigma.piecewise_linear)
    slope = property(lambda self: self.sigma.slope)
    bounds = property(lambda self: self.sigma.bounds)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z) and what is beside."""
        return self._on_own(self.sigma, z, z.copy())

    def in_place(self, z: Array) -> Array:
        """Return the same; it may overwrite z."""
        return self._on_own(self.sigma, z, z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z), and 1 beside."""
        return self._on_own(self.sigma.derivative, z, namespace(z).ones_like(z))

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z), and 0 beside."""
        return self._on_own(self.sigma.second_derivative, z, namespace(z).zeros_like(z))

    def _on_own(self, function: Callable[[Array], Array], z: Array, found: Array) -> Array:
        found[: self.rows] = function(z[: self.rows])
        return found


def _listed(expected: str, values: object) -> tuple:
    try:
        return tuple(values)
    except TypeError:
        raise ValueError(f"network: expected {expected}, got {values!r}") from None
