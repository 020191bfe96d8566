"""Moves of one map that keep the function: what reads a map, and how it is rescaled."""

from __future__ import annotations

import math

from ..engine.activations import check_piecewise_linear
from ..engine.parameters import Parameters, check_points


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
    if not 0 < factor < math.inf:
        raise ValueError(f"rescale: expected a finite factor > 0, got {factor}")
    layers = tuple(n for n in theta.net.active_layers if n in theta.net.slots)
    if layer not in layers:
        raise ValueError(f"rescale: expected a layer in {layers}, got {layer}")
    check_piecewise_linear([theta.net.activation_of(layer)], "rescale")
    theta, count = theta.copy(), theta.W[layer].maps_out
    if target is not None and target not in range(count):
        raise ValueError(f"rescale: expected a map in 0..{count - 1}, got {target}")
    maps = range(count) if target is None else [target]
    for t in maps:
        theta.W[layer].weights[t] *= factor
        if layer in theta.b:
            biases = theta.b[layer][t : t + 1]
            biases *= factor
        above, _ = outgoing(theta, layer, t)
        above /= factor
    return theta
