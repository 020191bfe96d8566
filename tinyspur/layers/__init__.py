"""The kinds of layers that a network is made of, one module each, and how they fit together.

A new kind is a module with a `Layer` and its matrix, and an entry in `KINDS`.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from ..engine.activations import activation_named
from ..engine.backend import Array
from .average_pooling import AveragePool, AveragePoolingMatrix
from .convolution import Conv
from .convolution_matrix import ConvolutionMatrix
from .dense import Dense, DenseMatrix
from .layer import Layer, Shape, is_positive
from .matrix import TransposedMatrix, WeightMatrix
from .max_pooling import MaxPool, MaxPoolingMatrix, SelectionMatrix
from .residual import BlockMatrix, IdentityMatrix, Link, Residual, Same, chain_of, quiet
from .scale import Scale, ScaleMatrix
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
    "Scale",
    "ScaleMatrix",
    "SelectionMatrix",
    "Shape",
    "Slot",
    "TransposedMatrix",
    "WeightMatrix",
    "chain_of",
    "is_positive",
    "layer_of",
    "matrix_of",
    "quiet",
    "slots_of",
    "states_of",
]

KINDS = (Conv, AveragePool, MaxPool, Dense, Scale, Residual, Same)


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
        if not isinstance(layer, KINDS):
            *names, last = (kind.__name__ for kind in KINDS)
            raise ValueError(f"{where}: expected {', '.join(names)} or {last}")
        try:
            layer.check()
            states.append(_link(link).state_above(states[-1]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return tuple(states)


class Slot(NamedTuple):
    """Where the numbers of a layer are in the vector of parameters: weights, then biases.

    The weights begin at `start` and have this `shape`; `biases` is how many there are, one for each
    map or neuron, or none.
    """

    start: int
    shape: Shape
    biases: int

    @property
    def weights(self) -> slice:
        """Return the place of the weights."""
        return slice(self.start, self.start + math.prod(self.shape))

    @property
    def all(self) -> slice:
        """Return the place of weights and biases."""
        return slice(self.start, self.weights.stop + self.biases)

    def of_map(self, t: int) -> np.ndarray:
        """Return the coordinates of the weights of a map, in order, and of its bias if any."""
        K, stop = math.prod(self.shape[1:]), self.weights.stop
        bias = np.arange(stop, stop + self.biases)[t : t + 1]
        return np.append(self.start + t * K + np.arange(K), bias)


def slots_of(
    chain: tuple[Layer | Link, ...], states: tuple[tuple[Shape, ...], ...]
) -> dict[int, Slot]:
    """Return, by layer, where its numbers are in the vector of parameters.

    >>> layers = Conv(2), Dense(3, bias=False)
    >>> slots_of(layers, states_of((1, 4, 4), layers))
    {1: Slot(start=0, shape=(2, 1, 3, 3), biases=2), 2: Slot(start=20, shape=(3, 32), biases=0)}
    """
    slots, start = {}, 0
    for number, (link, state) in enumerate(zip(chain, states, strict=False), start=1):
        read, *_ = _link(link).arranged(state)
        layer = _link(link).layer
        if (shape := layer.weight_shape(read)) is not None:
            slots[number] = Slot(start, shape, shape[0] if layer.bias else 0)
            start = slots[number].all.stop
    return slots


def matrix_of(link: Layer | Link, state: tuple[Shape, ...], weights: Array | None) -> WeightMatrix:
    """Return the matrix of a layer with these weights, for what is below it."""
    if isinstance(link, Link):
        return link.matrix(state, weights)
    return link.matrix(state[0], weights)


def _link(link: Layer | Link) -> Link:
    return link if isinstance(link, Link) else Link(link)
