"""The kinds of layers that a network is made of, one module each, and how they fit together.

A new kind is a module with a `Layer` and its matrix, and an entry in `KINDS`.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import fields

from ..engine.activations import activation_named
from .average_pooling import AveragePool, AveragePoolingMatrix
from .convolution import Conv, ConvolutionMatrix
from .dense import Dense, DenseMatrix
from .layer import Layer, Shape, is_positive
from .matrix import TransposedMatrix, WeightMatrix
from .max_pooling import MaxPool, MaxPoolingMatrix, SelectionMatrix
from .windows import Pooling

__all__ = [
    "KINDS",
    "AveragePool",
    "AveragePoolingMatrix",
    "Conv",
    "ConvolutionMatrix",
    "Dense",
    "DenseMatrix",
    "Layer",
    "MaxPool",
    "MaxPoolingMatrix",
    "Pooling",
    "SelectionMatrix",
    "Shape",
    "TransposedMatrix",
    "WeightMatrix",
    "is_positive",
    "layer_of",
    "shapes_of",
    "slots_of",
]

KINDS = (Conv, AveragePool, MaxPool, Dense)


def layer_of(spec: object) -> Layer:
    """Return the layer whose `spec` is this, or raise ValueError."""
    options, got = dict(spec) if isinstance(spec, dict) else {}, reprlib.repr(spec)
    name, known = options.pop("type", None), {kind.type: kind for kind in KINDS}
    if not isinstance(name, str) or name not in known:
        names = ", ".join(known)
        raise ValueError(f"network spec: expected a layer with a type of {names}, got {got}")
    kind = known[name]
    if "activation" in options:
        options["activation"] = activation_named(options["activation"])
    try:
        return kind(**options)
    except TypeError as error:
        names = ", ".join(["type", *(field.name for field in fields(kind)[1:]), "activation"])
        raise ValueError(f"network spec: expected a layer with {names}, got {got}") from error


def shapes_of(input_shape: Shape, layers: tuple[Layer, ...]) -> tuple[Shape, ...]:
    """Return the shapes of the input and of each layer's output; ValueError where layers don't fit.

    >>> shapes_of((1, 4, 4), (Conv(2), AveragePool(2), Dense(3)))
    ((1, 4, 4), (2, 4, 4), (2, 2, 2), (3,))
    """
    shapes = [input_shape]
    for number, layer in enumerate(layers, start=1):
        where = f"layer {number}, {layer}"
        if not isinstance(layer, KINDS):
            *names, last = (kind.__name__ for kind in KINDS)
            raise ValueError(f"{where}: expected {', '.join(names)} or {last}")
        if not all(map(is_positive, layer.options.values())):
            raise ValueError(f"{where}: expected positive whole numbers")
        try:
            shapes.append(layer.output_shape(shapes[-1]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return tuple(shapes)


def slots_of(layers: tuple[Layer, ...], shapes: tuple[Shape, ...]) -> dict[int, tuple[int, Shape]]:
    """Return, by layer, where its numbers start in the vector of parameters, and the shape of W.

    The biases, one for each map or neuron, follow the weights.

    >>> slots_of((Conv(2), Dense(3)), ((1, 4, 4), (2, 4, 4), (3,)))
    {1: (0, (2, 1, 3, 3)), 2: (20, (3, 32))}
    """
    slots, start = {}, 0
    for number, layer in enumerate(layers, start=1):
        if (shape := layer.weight_shape(shapes[number - 1])) is not None:
            slots[number] = start, shape
            start += math.prod(shape) + shape[0]
    return slots
