"""What a network is made of: the shape of its input, its layers, its activation; no numbers.

Layers count from 1 to L as in the papers; layer 0 is the input.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from ..layers import Layer, Shape, Slot, is_positive, layer_of, shapes_of, slots_of
from .activations import Activation, ReLU, activation_named
from .plain import whole

MEMORY_BUDGET = 64 * 2**20  # bytes of activations that a thread may hold at once during a pass


@dataclass(frozen=True, repr=False)
class Architecture:
    """The layers that `Parameters` hold numbers for; see `Network`, which adds the passes."""

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
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
        self.shapes  # noqa: B018 - raises for layers that don't fit

    def __repr__(self) -> str:
        arrows = " -> ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{type(self).__name__}({arrows}, {self.size} parameters)"

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes of the input and of each layer's output."""
        return shapes_of(self.input_shape, self.layers)

    def __reduce__(self) -> tuple:
        return type(self), (self.input_shape, self.layers, self.activation, self.memory_budget)

    @cached_property
    def slots(self) -> Mapping[int, Slot]:
        """Return, by layer, where its numbers are in the vector, and the shape of its weights."""
        return MappingProxyType(slots_of(self.layers, self.shapes))

    @cached_property
    def size(self) -> int:
        """Return the number of parameters."""
        return max((slot.all.stop for slot in self.slots.values()), default=0)

    @property
    def depth(self) -> int:
        """Return L, the number of layers."""
        return len(self.layers)

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

    def is_active(self, layer: int) -> bool:
        """Return whether the activation follows `layer`."""
        if layer == self.depth or not self.layers[layer - 1].trainable:
            return False
        return not self.layers[layer].precedes_activation

    def activation_of(self, layer: int) -> Activation | None:
        """Return the activation that follows `layer`, or None."""
        return self.activation if self.is_active(layer) else None

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Return the layers that the activation follows."""
        return tuple(layer for layer in range(1, self.depth + 1) if self.is_active(layer))

    @property
    def max_layers(self) -> tuple[int, ...]:
        """Return the max poolings whose choice depends on the parameters: all but leading ones."""
        return tuple(
            layer
            for layer in range(self.leading_poolings + 1, self.depth + 1)
            if self.layers[layer - 1].selects
        )

    @property
    def kinked_layers(self) -> tuple[int, ...]:
        """Return the layers that an activation with a kink follows."""
        return self.active_layers if self.activation.piecewise_linear else ()

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


def _listed(expected: str, values: object) -> tuple:
    try:
        return tuple(values)
    except TypeError:
        raise ValueError(f"network: expected {expected}, got {values!r}") from None
