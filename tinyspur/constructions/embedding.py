"""theta: a local minimum of a subnetwork, embedded under a pair of relaying convolutions.

[CNN] Lemmas 1 and 6 to 8. The variant ``repaired`` (default) keeps every relay strictly active and
every map without a use dead; ``literal`` follows the printed formulas, whose biases are zero.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..backend import to_numpy
from ..fitting import AssumptionError, fit_affine
from ..losses import Loss
from ..network import Conv, Dense, Network, Parameters, TrainingSet
from .relays import RelayedPair, outgoing, set_constant, set_relay

VARIANTS = ("repaired", "literal")
MARGIN = 1.0  # least |z| of relays and of dead maps
EXACT_FIT = 1e-10  # residuals below this share of the targets count as zero


def subnetwork(net: Network) -> Network:
    """Return layers 1..L-3 and the dense layer: what is left when the pair relays.

    Raises ValueError unless layers L-3 to L are three convolutions and a dense layer, with ReLU.
    """
    kinds = [type(layer) for layer in net.layers[-4:]]
    if kinds != [Conv, Conv, Conv, Dense]:
        raise ValueError(
            "construction: expected a network that ends in three convolutions and a dense layer, "
            f"got {', '.join(kind.__name__ for kind in kinds)}"
        )
    if net.activation.slope != 0:
        raise ValueError(f"construction: expected ReLU, got {net.activation}")
    layers = (*net.layers[:-3], net.layers[-1])
    return Network(net.input_shape, layers, net.activation, net.memory_budget)


def linear_subnetwork(
    net: Network, data: TrainingSet, loss: Loss, variant: str = "repaired"
) -> Parameters:
    """Return the subnetwork's linear minimum: convolutions relay the input, the dense layer fits.

    Channel c goes through map c of every convolution, kept strictly active by a bias of the first
    layer that the dense layer takes off again ([CNN] Lemmas 7 and 8). The other maps are dead in
    the repaired variant and exactly zero, at the kink, in the literal one. Raises AssumptionError
    for too few maps, for an affine map that fits the data exactly (R = 0), and where `fit_affine`
    finds no minimiser.
    """
    check_variant(variant)
    if len(data) < 2:
        raise AssumptionError(f"Assumption 1 needs at least two samples, got {len(data)}")
    channels, *_ = net.input_shape
    for layer, description in enumerate(net.layers[:-1], start=1):
        if not isinstance(description, Conv):
            raise ValueError(f"linear subnetwork: expected convolutions, layer {layer} is not one")
        if description.maps < channels:
            raise AssumptionError(
                f"too few maps: layer {layer} has {description.maps}, the linear subnetwork needs "
                f"{channels}, one for each input channel"
            )
    x = data.x.reshape(len(data), -1)
    fit = fit_affine(x, data.y, loss)
    residuals = loss.gradient(fit.weights @ x.T + fit.bias[:, None], data.y.T)
    if abs(residuals).max() <= EXACT_FIT * abs(data.y).max():
        raise AssumptionError(
            "R(theta) > 0 fails, or R is the entropy of soft targets: an affine map fits all "
            f"{len(data)} samples exactly, so the linear minimum is global; expected more samples "
            f"than the {fit.rank} dimensions of "
            "the inputs (with a 1), or other targets"
        )
    phi = net.zeros()
    bias = MARGIN - min(0.0, float(data.x.min()))
    for layer in range(1, net.depth):
        for t in range(phi.W[layer].maps_out):
            if t < channels:
                set_relay(phi, layer, t, t, bias if layer == 1 else 0.0)
            else:
                set_constant(phi, layer, t, -MARGIN if variant == "repaired" else 0.0)
    read = phi.W[net.depth].weights
    read[:, : fit.weights.shape[1]] = fit.weights
    phi.b[net.depth][:] = fit.bias - bias * fit.weights.sum(axis=1)
    return phi


def embed(
    net: Network, phi: Parameters, x: np.ndarray, variant: str = "repaired"
) -> tuple[Parameters, RelayedPair]:
    """Return theta, the subnetwork's point `phi` with the pair of convolutions on top ([CNN] (23)).

    Repaired: every map of layer L-3 that is not dead on the samples `x` is relayed with a positive
    bias, which b^L takes off; the two reserved maps and all spare ones are dead. Literal: relays
    and reserved maps have bias zero, and as many maps are relayed as there is room for. Raises
    AssumptionError for too few maps.
    """
    check_variant(variant)
    theta = net.zeros(like=phi.vector)
    lower, top = net.depth - 2, net.depth
    for layer in phi.b:
        if layer < lower:
            theta.W[layer].weights[...] = phi.W[layer].weights
            theta.b[layer][...] = phi.b[layer]
    available = min(net.shapes[lower][0], net.shapes[lower + 1][0])
    below = range(net.shapes[lower - 1][0])
    if variant == "repaired":
        kappa, needed = MARGIN, _live_maps(phi, x)
        relayed = needed
    else:
        kappa, needed = 0.0, [m for m in below if outgoing(phi, lower - 1, m)[0].any()]
        relayed = tuple(below[: max(0, available - 2)])
    if available < len(needed) + 2 or not set(needed) <= set(relayed):
        raise AssumptionError(
            f"too few maps: layers {lower} and {lower + 1} have {net.shapes[lower][0]} and "
            f"{net.shapes[lower + 1][0]}, expected at least {len(needed) + 2}: two reserved ones "
            f"and one for each map in use of layer {lower - 1} ({', '.join(map(str, needed))})"
        )
    if not relayed:
        raise AssumptionError(f"every map of layer {lower - 1} is dead: there is none to relay")
    pair = RelayedPair(lower, relayed, kappa, kappa)
    for layer in (lower, lower + 1):
        for t in range(net.shapes[layer][0]):
            set_constant(theta, layer, t, 0.0 - kappa)
    read, P = theta.W[top].weights, net.positions(lower)
    theta.b[top][...] = phi.b[phi.net.depth]
    for m in relayed:
        r = pair.relay_of(m)
        set_relay(theta, lower, m, r, kappa)
        set_relay(theta, lower + 1, r, r, kappa)
        block = outgoing(phi, phi.net.depth - 1, m)[0]
        read[:, r * P : (r + 1) * P] = block
        theta.b[top][...] -= 2 * kappa * block.sum(axis=1)
    if variant == "literal":  # (23): each map of L-1 that relays nothing else hands on map i of L-2
        for t in range(available):
            set_relay(theta, lower + 1, t, t, 0.0)
    return theta, pair


def linear_minimum(
    net: Network, data: TrainingSet, loss: Loss, variant: str = "repaired"
) -> tuple[Parameters, RelayedPair]:
    """Return theta with the linear subnetwork, in float64 on the host, and its relays."""
    phi = linear_subnetwork(subnetwork(net), data, loss, variant)
    return embed(net, phi, data.x, variant)


def check_variant(variant: str) -> None:
    """Raise ValueError unless `variant` is ``repaired`` or ``literal``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, got {variant!r}")


def _live_maps(phi: Parameters, x: np.ndarray) -> tuple[int, ...]:
    """Return the maps below the dense layer that some sample activates or leaves at the kink."""
    layer = phi.net.depth - 1
    highest = -np.inf
    for _, columns in phi.net.chunks(phi, x):
        z, _ = next(itertools.islice(phi.net.layerwise(phi, columns), layer - 1, None))
        of_map = to_numpy(z.reshape(phi.net.shapes[layer][0], -1).max(axis=1))
        highest = np.maximum(highest, of_map)
    return tuple(int(t) for t in np.flatnonzero(highest >= 0))


def check_assumption_1(theta: Parameters, x: np.ndarray) -> None:
    """Raise AssumptionError unless o^{L-1} differs between all samples ([CNN] Assumption 1).

    Differences below 1e-12 of the largest feature count as none.
    """
    net = theta.net
    width = net.shapes[-2]
    direction = np.random.default_rng(0).standard_normal(math.prod(width))
    shadow, size = [], 0.0
    for _, columns in net.chunks(theta, x):
        features = to_numpy(net.layer_output(theta, columns, net.depth - 1))
        size = max(size, float(abs(features).max()))
        shadow.append(direction @ features)
    shadow = np.concatenate(shadow)
    order = np.argsort(shadow, kind="stable")
    near = 1e-12 * size * abs(direction).sum()
    for first, second in itertools.pairwise(order):
        if shadow[second] - shadow[first] > near:
            continue
        two = [
            to_numpy(net.layer_output(theta, columns, net.depth - 1))
            for _, columns in net.chunks(theta, x[[first, second]])
        ]
        if abs(np.diff(np.concatenate(two, axis=1))).max() <= 1e-12 * size:
            i, j = sorted((int(first), int(second)))
            raise AssumptionError(
                f"Assumption 1 fails: samples {i} and {j} have identical features at layer "
                f"{net.depth - 1}"
            )
