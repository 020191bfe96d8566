"""The kinds of layers that a network is made of, one module each, and how they fit together.

A new kind is a module with a `Layer` and its matrix, and an entry in `KINDS`.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import fields

from ..engine.activations import activation_named
from ..engine.backend import Array
from .average_pooling import AveragePool, AveragePoolingMatrix
from .convolution import Conv, ConvolutionMatrix
from .dense import Dense, DenseMatrix
from .layer import Layer, Shape, is_positive
from .matrix import TransposedMatrix, WeightMatrix
from .max_pooling import MaxPool, MaxPoolingMatrix, SelectionMatrix
from .residual import BlockMatrix, IdentityMatrix, Link, Residual, Same, chain_of
from .windows import Pooling

__all__ = [
    "KINDS",
    "AveragePool",
    "AveragePoolingMatrix",
    "BlockMatrix",
    "Conv",
    "ConvolutionMatrix",
    "Dense",
    "DenseMatrix",
    "IdentityMatrix",
    "Layer",
    "Link",
    "MaxPool",
    "MaxPoolingMatrix",
    "Pooling",
    "Residual",
    "Same",
    "SelectionMatrix",
    "Shape",
    "TransposedMatrix",
    "WeightMatrix",
    "chain_of",
    "is_positive",
    "layer_of",
    "matrix_of",
    "slots_of",
    "states_of",
]

KINDS = (Conv, AveragePool, MaxPool, Dense, Residual)


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
    if kind is Residual:
        for key in options.keys() & {"layers", "shortcut"}:
            parts = options[key]
            if not isinstance(parts, list | tuple):
                raise ValueError(f"network spec: expected {key} as a list, got {got}")
            options[key] = tuple(map(layer_of, parts))
    try:
        return kind(**options)
    except TypeError as error:
        names = ", ".join(["type", *(field.name for field in fields(kind)[1:]), "activation"])
        raise ValueError(f"network spec: expected a layer with {names}, got {got}") from error


def states_of(input_shape: Shape, chain: tuple[Layer | Link, ...]) -> tuple[tuple[Shape, ...], ...]:
    """Return the shapes of the input and of each layer's output, and of what is kept beside it.

    Raises ValueError where layers don't fit.

    >>> states_of((1, 4, 4), (Conv(2), AveragePool(2), Dense(3)))
    (((1, 4, 4),), ((2, 4, 4),), ((2, 2, 2),), ((3,),))
    """
    states = [(input_shape,)]
    for number, link in enumerate(chain, start=1):
        layer = link.layer if isinstance(link, Link) else link
        where = f"layer {number}, {layer}"
        if not isinstance(layer, (*KINDS, Same)):
            *names, last = (kind.__name__ for kind in KINDS)
            raise ValueError(f"{where}: expected {', '.join(names)} or {last}")
        if not all(map(is_positive, layer.numbers.values())):
            raise ValueError(f"{where}: expected positive whole numbers")
        try:
            states.append(_link(link).state_above(states[-1]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return tuple(states)


def slots_of(
    chain: tuple[Layer | Link, ...], states: tuple[tuple[Shape, ...], ...]
) -> dict[int, tuple[int, Shape]]:
    """Return, by layer, where its numbers start in the vector of parameters, and the shape of W.

    The biases, one for each map or neuron, follow the weights.

    >>> slots_of((Conv(2), Dense(3)), (((1, 4, 4),), ((2, 4, 4),), ((3,),)))
    {1: (0, (2, 1, 3, 3)), 2: (20, (3, 32))}
    """
    slots, start = {}, 0
    for number, (link, state) in enumerate(zip(chain, states, strict=False), start=1):
        read, *_ = _link(link).arranged(state)
        if (shape := _link(link).layer.weight_shape(read)) is not None:
            slots[number] = start, shape
            start += math.prod(shape) + shape[0]
    return slots


def matrix_of(link: Layer | Link, state: tuple[Shape, ...], weights: Array | None) -> WeightMatrix:
    """Return the matrix of a layer with these weights, for what is below it."""
    if isinstance(link, Link):
        return link.matrix(state, weights)
    return link.matrix(state[0], weights)


def _link(link: Layer | Link) -> Link:
    return link if isinstance(link, Link) else Link(link)
