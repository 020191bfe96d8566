"""Moves that keep the function: what reads a map, how it is rescaled, how scales are folded in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..engine.activations import check_piecewise_linear
from ..engine.backend import Array, namespace
from ..engine.network import Network
from ..engine.parameters import Parameters, check_points
from ..engine.plain import real, whole
from ..layers import Conv, Dense, Layer, Residual, Scale, chain_of


def outgoing(theta: Parameters, layer: int, target: int):
    """Return the weights that read map `target` of `layer`, as a view, and their layer.

    They have shape (T, *k) below a convolution, those of one group alone where there are groups,
    and (out, P) below a dense layer; poolings between are passed over. Raises ValueError for a map
    whose reader has not to scale with it, see `Parameters.reader`.
    """
    above = theta.reader(layer)
    return theta.W[above].outgoing(target), above


def rescale(theta: Parameters, layer: int, factor: float, target: int | None = None) -> Parameters:
    """Return the point with (W^l, b^l) times `factor` > 0 and the weights above divided by it.

    With `target` only that map, or neuron of a dense layer, is rescaled. Every output is kept,
    since sigma is positively homogeneous ([CNN] Theorem 1). Raises ValueError for a factor that is
    not positive, a layer without weights or activation, a smooth activation, and a layer without
    one reader that scales with it, see `Parameters.reader`.
    """
    check_points(None, theta)
    if not 0 < real(factor) < math.inf:
        raise ValueError(f"rescale: expected a finite factor > 0, got {factor!r}")
    layer, factor, some = whole(layer), real(factor), whole(target)
    layers = tuple(n for n in theta.net.active_layers if n in theta.net.slots)
    if layer not in layers:
        raise ValueError(f"rescale: expected a layer in {layers}, got {layer}")
    check_piecewise_linear([theta.net.activation_of(layer)], "rescale")
    theta, count = theta.copy(), theta.W[layer].maps_out
    if target is not None and some not in range(count):
        raise ValueError(f"rescale: expected a map in 0..{count - 1}, got {target!r}")
    maps = range(count) if target is None else [some]
    for t in maps:
        theta.W[layer].weights[t] *= factor
        if layer in theta.b:
            biases = theta.b[layer][t : t + 1]
            biases *= factor
        above, _ = outgoing(theta, layer, t)
        above /= factor
    return theta


def fold_scales(theta: Parameters) -> Parameters:
    """Return the point of the network in which each scale is part of the layer right below it.

    That layer's weights are multiplied by the factors, and its biases too, plus the shifts, so that
    every output is kept, up to rounding. Scales that follow an activation, a pooling or a sum stay.
    The parameters are others, and so are distances between points: a certified radius of one
    network is none of the other. But (W, b, f, s) -> (f W, f b + s) is continuous, and open where
    no factor f is 0, so there a point is a local minimum if and only if the folded one is.
    """
    check_points(None, theta)
    net, numbers = theta.net, iter(range(1, theta.net.depth + 1))
    folded = list(_folded(theta, net.layers, numbers))
    layers = [layer for layer, _ in folded]
    vector = [np.ravel(part) for _, parts in folded for part in parts]
    other = Network(net.input_shape, layers, net.activation, net.memory_budget)
    xp = namespace(theta.vector)
    return Parameters(other, xp.concatenate([theta.vector[:0], *map(xp.asarray, vector)]))


def _folded(
    theta: Parameters, layers: Sequence[Layer], numbers: Iterator[int]
) -> Iterator[tuple[Layer, list[Array]]]:
    """Yield layers with scales folded in, and the numbers of each."""
    waiting: tuple[Layer, list[Array]] | None = None
    for layer in layers:
        if isinstance(layer, Residual):
            parts = [list(_folded(theta, part, numbers)) for part in (layer.layers, layer.shortcut)]
            next(numbers)  # the sum
            block, shortcut = (tuple(kind for kind, _ in part) for part in parts)
            own = [number for part in parts for _, found in part for number in found]
            layer, below = replace(layer, layers=block, shortcut=shortcut), None
        else:
            number, *_ = [next(numbers) for _ in chain_of([layer])]
            W, b = theta.W[number].weights, theta.b.get(number)
            own = [part for part in (W, b) if part is not None]
            below = waiting[0] if waiting else None
        silent = below is not None and theta.net.activation_of(number - 1) is None
        if isinstance(layer, Scale) and isinstance(below, Conv | Dense) and silent:
            weights, *biases = waiting[1]
            shift = [] if b is None else [b]
            biases = [sum([*(W * bias for bias in biases), *shift])] if biases or shift else []
            weights = weights * W.reshape(-1, *(1,) * (weights.ndim - 1))
            below = replace(below, bias=bool(biases), activation=layer.activation)
            waiting = below, [weights, *biases]
            continue
        if waiting:
            yield waiting
        waiting = layer, own
    if waiting:
        yield waiting
