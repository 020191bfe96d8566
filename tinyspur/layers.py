"""The kinds of layers that a network is made of, and how they fit. They hold no parameters."""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, fields


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


def spec_of(layer: Layer) -> dict:
    """Return the JSON description of a layer, such as {"type": "dense", "width": 2}."""
    kinds = {cls: name for name, cls in LAYER_TYPES.items()}
    return {"type": kinds[type(layer)], **asdict(layer)}


def layer_of(spec: object) -> Layer:
    """Return the layer whose `spec_of` is this, or raise ValueError."""
    options, got = dict(spec) if isinstance(spec, dict) else {}, reprlib.repr(spec)
    kind = options.pop("type", None)
    if not isinstance(kind, str) or kind not in LAYER_TYPES:
        known = ", ".join(LAYER_TYPES)
        raise ValueError(f"network spec: expected a layer with a type of {known}, got {got}")
    try:
        return LAYER_TYPES[kind](**options)
    except TypeError as error:
        names = ", ".join(["type", *(field.name for field in fields(LAYER_TYPES[kind]))])
        raise ValueError(f"network spec: expected a layer with {names}, got {got}") from error


def is_positive(n: object) -> bool:
    """Return whether `n` is a whole number above 0."""
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


def shapes_of(
    input_shape: tuple[int, ...], layers: tuple[Layer, ...]
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the input and of each layer's output, or ValueError for what can't be.

    >>> shapes_of((1, 4, 4), (Conv(2), AveragePool(2), Dense(3)))
    ((1, 4, 4), (2, 4, 4), (2, 2, 2), (3,))
    """
    shapes = [input_shape]
    for number, layer in enumerate(layers, start=1):
        maps, *size = shapes[-1]
        where = f"layer {number}, {layer}"
        if not isinstance(layer, Layer):
            raise ValueError(f"{where}: expected Conv, AveragePool, MaxPool or Dense")
        if not all(map(is_positive, asdict(layer).values())):
            raise ValueError(f"{where}: expected positive whole numbers")
        if not isinstance(layer, Dense) and not size:
            raise ValueError(f"{where}: expected maps below it, got a dense layer's output")
        if isinstance(layer, Conv):
            if layer.kernel % 2 == 0:
                raise ValueError(f"{where}: expected an odd filter size")
            shapes.append((layer.maps, *size))
        elif isinstance(layer, Pooling):
            if any(n % layer.size for n in size):
                raise ValueError(f"{where}: expected a size that divides the maps {tuple(size)}")
            shapes.append((maps, *(n // layer.size for n in size)))
        else:
            shapes.append((layer.width,))
    return tuple(shapes)


def slots_of(
    layers: tuple[Layer, ...], shapes: tuple[tuple[int, ...], ...]
) -> tuple[dict[int, tuple[int, tuple[int, ...], int]], int]:
    """Return (start, shape of W, biases) in the vector of parameters, by layer, and its length."""
    slots, start = {}, 0
    for number, layer in enumerate(layers, start=1):
        below = shapes[number - 1]
        if isinstance(layer, Conv):
            shape = (layer.maps, below[0], *(layer.kernel,) * (len(below) - 1))
        elif isinstance(layer, Dense):
            shape = (layer.width, math.prod(below))
        else:
            continue
        slots[number] = (start, shape, shape[0])
        start += math.prod(shape) + shape[0]
    return slots, start
