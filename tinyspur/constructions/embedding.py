"""theta: a local minimum of a subnetwork, embedded under a pair of relaying convolutions.

[CNN] Lemmas 1 and 6 to 8. The variant ``repaired`` (default) keeps every relay strictly active and
every unused map dead; ``literal`` follows the printed formulas, with biases of zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..certificates.class_fits import first_read
from ..datasets.duplicates import identical
from ..datasets.samples import TrainingSet, flattened
from ..engine.activations import ReLU
from ..engine.backend import Array, namespace, to_numpy
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import Network, check_problem
from ..engine.parameters import Parameters, check_points
from ..engine.passes import as_inputs, steps
from ..engine.plain import whole_number
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from ..layers import AveragePool, Conv, Dense, Layer, Pooling
from .relayed_pair import RelayedPair, check_printed, check_variant, first_dense, pair_tower
from .towers import MARGIN, Tower, set_constant, set_relay

EXACT_FIT = 1e-10  # residuals below this share of the targets count as zero
DIRECTIONS = 4  # along which features are compared
EQUAL = 64  # units in the last place of the largest feature that equal ones may differ by


def subnetwork(
    net: Network, lower: int | None = None, variant: str = "repaired", all_relayed: bool = False
) -> Network:
    """Return the network whose maps the pair relays: the layers below the pair and a dense layer.

    With `all_relayed` its last convolution has no more maps than the layers above can relay.
    Literal: the poolings above the pair are part of it, since the dense layer reads pooled maps
    only ([CNN] Appendix D). Raises as `pair_tower` does, and AssumptionError for too few maps.
    """
    tower = pair_tower(net, lower, variant)
    if not tower.grouped:
        tower.check_room(3, "two reserved ones and one for each map in use of the layer below")
    layers = list(net.chain[: tower.first - 1])
    n = None if tower.grouped else _last_convolution(layers)
    if all_relayed and n is not None:
        layers[n] = replace(layers[n], maps=min(layers[n].maps, tower.room - 2))
    if variant == "literal":
        above = net.chain[tower.first - 1 : tower.last]
        layers += [layer for layer in above if isinstance(layer, AveragePool)]
    layers.append(Dense(net.shapes[-1][0]))
    return Network(net.input_shape, layers, net.activation, net.memory_budget)


def linear_subnetwork(
    net: Network, data: TrainingSet, loss: Loss, variant: str = "repaired"
) -> Parameters:
    """Return the subnetwork's linear minimum: convolutions relay the input, the dense layer fits.

    Channel c goes through track c of every convolution, kept strictly active by a bias of the first
    one that the dense layer takes off again ([CNN] Lemmas 7 and 8). Before an average pooling the
    repaired variant relays shifted copies, so that every affine map of the input can be fitted;
    the literal one fits the pooled input. Poolings below the first convolution belong to the input.
    The other maps are dead in the repaired variant and exactly zero, at the kink, in the literal
    one. Raises AssumptionError for too few maps, for an affine map that fits the data exactly
    (R = 0), and where `fit_affine` finds no minimiser.
    """
    check_problem(net, data, loss)
    check_variant(variant)
    if len(data) < 2:
        raise AssumptionError(f"Assumption 1 needs at least two samples, got {len(data)}")
    if [isinstance(layer, Dense) for layer in net.chain] != [False] * (net.depth - 1) + [True]:
        raise ValueError(f"linear subnetwork: expected one dense layer, at the end, got {net}")
    first_dense(net)
    channels, *_ = net.input_shape
    tower = Tower(net, net.leading_poolings + 1, net.depth - 1, variant == "repaired")
    check_printed(tower, variant, "linear subnetwork")
    tower.check_room(channels, "one for each input channel that the linear subnetwork relays")
    x = first_features(net, data.x)
    features = x.reshape(len(x), channels, -1)
    if variant == "literal" and tower.pooled:
        features = features @ tower.matrix.T
    features = features.reshape(len(x), -1)
    fit = fit_affine(features, data.y, loss)
    o = fit.weights @ features.T + fit.bias[:, None]
    residuals = o - data.y.T if hasattr(loss, "subgradients") else loss.gradient(o, data.y.T)
    check_not_exact(residuals, features, data.y)
    phi = net.zeros()
    # Above the first convolution relays read positive values. Only those that read zeros beyond the
    # border need a bias there.
    biases = tower.biases(float(x.min()))
    for layer in list(biases)[1:]:
        if layer not in tower.padded:
            biases[layer] = 0.0
    weights = fit.weights.reshape(len(fit.bias), channels, -1)
    tower.read(phi, weights, fit.bias, biases, -MARGIN if variant == "repaired" else 0.0)
    return phi


def check_not_exact(residuals: np.ndarray, features: np.ndarray, y: np.ndarray) -> None:
    """Raise AssumptionError where all residuals vanish, up to rounding, and say what to change.

    They are those of an affine map of the features (N, d).
    """
    if abs(residuals).max() > EXACT_FIT * abs(y).max():
        return
    parameters, distinct = features.shape[1] + 1, int(identical(features).max()) + 1
    expected = "targets that no affine map gives"
    if not np.ptp(y, axis=0).any():
        expected = "targets that are not all equal"
    elif distinct <= parameters:
        expected = f"more than {parameters} samples that differ, or fewer pixels"
        if distinct < len(y):
            expected += f"; {distinct} of them differ"
    raise AssumptionError(
        f"an affine map fits all {len(y)} samples exactly, so the minimum is global (R(theta) > 0 "
        f"fails, or with soft targets R is their entropy); expected {expected}"
    )


def embed(
    net: Network,
    phi: Parameters,
    x: np.ndarray,
    variant: str = "repaired",
    lower: int | None = None,
) -> tuple[Parameters, RelayedPair]:
    """Return theta, the subnetwork's point `phi` with the pair and all above on top ([CNN] (23)).

    `phi` is a point of ``subnetwork(net, lower, variant)``. Repaired: every map below the pair that
    is not dead on the samples `x` is relayed with a positive bias, in shifted copies where poolings
    lie above, which the first dense layer undoes; the two reserved tracks and all spare maps are
    dead. Literal: relays and reserved maps have bias zero, and as many maps are relayed as there
    is room for. Dense layers above the first one only hand the outputs on, by strictly active
    units. Raises AssumptionError for too few maps.
    """
    check_points(None, phi)
    tower = pair_tower(net, lower, variant)
    x = as_inputs(net, x)
    _check_subnetwork(phi.net, net, tower.first, variant)
    theta = net.zeros(like=phi.vector)
    repaired = variant == "repaired"
    kappa, spare = (MARGIN, -MARGIN) if repaired else (0.0, 0.0)
    for layer in phi.net.slots:
        if layer < tower.first:
            for t in range(net.shapes[layer][0]):
                set_constant(theta, layer, t, spare)
            maps = slice(phi.net.shapes[layer][0])
            theta.W[layer].weights[maps] = phi.W[layer].weights
            if layer in phi.b:
                theta.b[layer][maps] = phi.b[layer]
    below = range(phi.net.shapes[tower.first - 1][0])
    blocks = to_numpy(phi.W[phi.net.depth].weights).astype(np.float64)
    blocks = blocks.reshape(len(blocks), len(below), -1)
    if repaired:
        needed = relayed = _live_maps(phi, x)
    else:
        needed = [m for m in below if blocks[:, m].any()]
        relayed = tuple(below[: tower.room - 2])
    count = len(needed) + 2 if set(needed) <= set(relayed) else max(needed) + 3
    named = ", ".join(map(str, needed))
    if tower.grouped and relayed:  # A and B are where the first map can be read
        sources = (relayed[0], relayed[0], *relayed)
        tower = Tower(net, tower.first, tower.last, tower.spread, sources=sources)
    tower.check_room(
        count, f"two reserved ones and one for each map in use of layer {tower.first - 1} ({named})"
    )
    if not relayed:
        raise AssumptionError(
            f"every map of layer {tower.first - 1} is dead: there is none to relay; expected one "
            "that some sample activates, as after another start or with smaller inputs"
        )
    lowest = _least(phi, x, tower.first - 1)
    if lowest < 0 and not repaired:
        raise AssumptionError(
            "literal theta: expected inputs >= 0 for relays of the input without biases, "
            f"got {lowest:g}"
        )
    pair = RelayedPair(tower.first, relayed, kappa - lowest, kappa, kappa, tower)
    tracks = {m: pair.relay_of(m) for m in relayed}
    weights, offset = blocks[:, list(relayed)], phi.b[phi.net.depth]
    tower.read(theta, weights, offset, pair.biases, spare, tracks)
    if not repaired:  # (23): in the layers above every map hands on the map of the same number
        for layer in list(tower.taps)[1:]:
            for t in range(min(net.shapes[layer][0], net.shapes[layer - 1][0])):
                set_relay(theta, layer, t, t)
    if pair.dense < net.depth:
        carry_outputs(theta, pair.dense, phi.net.forward(phi, x))
    return theta, pair


def carry_outputs(theta: Parameters, layer: int, outputs: Array) -> None:
    """Make the dense layers above `layer` hand on its first d_y neurons, in place.

    A bias keeps them strictly active where the `outputs` (N, d_y) on the samples may lie; the last
    layer takes it off. Spare neurons are dead.
    """
    net, d_y = theta.net, outputs.shape[1]
    high = MARGIN + 2 * float(abs(outputs).max())
    theta.b[layer][:d_y] += high
    theta.b[layer][d_y:] = -MARGIN
    for above in range(layer + 1, net.depth + 1):
        weights = theta.W[above].weights
        if weights.ndim == 1:  # a scale
            weights[...] = 1
            continue
        for k in range(d_y):
            weights[k, k] = 1
        theta.b[above][d_y:] = -MARGIN
    theta.b[net.depth][:] = -high


def linear_minimum(
    net: Network,
    data: TrainingSet,
    loss: Loss,
    variant: str = "repaired",
    lower: int | None = None,
) -> tuple[Parameters, RelayedPair]:
    """Return theta with the linear subnetwork, in float64 on the host, and its relays.

    All convolutions hand the image on and the first dense layer is the optimal affine fit ([CNN]
    Lemmas 1 and 6 to 8); two maps of each convolution of the pair are reserved for theta'. `lower`
    is the first layer of this pair, the topmost one by default. The `variant` ``repaired`` is a
    local minimum; ``literal``, as the paper prints it, is none (E1).

    Raises ValueError for a network without a pair of convolutions or with an activation of the
    outputs, AssumptionError for too few maps, for an affine map that fits the data exactly and
    where no optimal fit exists.
    """
    check_problem(net, data, loss)
    phi = linear_subnetwork(subnetwork(net, lower, variant), data, loss, variant)
    return embed(net, phi, data.x, variant, lower)


def first_features(net: Network, x: np.ndarray) -> np.ndarray:
    """Return what the first layer with parameters reads, (N, n): the input, pooled if so.

    There are zeros where it reads nothing.
    """
    theta, layer = net.zeros(), net.leading_poolings
    features, read = flattened(as_inputs(net, x)), first_read(net)
    if layer:
        found = net.over(theta, x, lambda _, o: net.layer_output(theta, o, layer).T)
        features = np.concatenate(list(found))
    return features if read is None else np.where(read, features, 0)


def _last_convolution(layers: Sequence[Layer]) -> int | None:
    """Return the index of the last convolution, if only poolings are above it, or None."""
    for n in reversed(range(len(layers))):
        if isinstance(layers[n], Conv):
            return n
        if not isinstance(layers[n], Pooling):
            return None
    return None


def _least(phi: Parameters, x: np.ndarray, layer: int) -> float:
    """Return the least value of o^layer on the samples, or 0; above ReLU it is not looked for."""
    if layer <= phi.net.leading_poolings:
        return min(0.0, float(x.min()))
    n = layer
    while isinstance(phi.net.chain[n - 1], Pooling) and not phi.net.is_active(n):
        n -= 1
    if phi.net.activation_of(n) == ReLU():
        return 0.0
    rows = math.prod(phi.net.shapes[layer])
    return min(
        0.0,
        *phi.net.over(phi, x, lambda _, o: float(phi.net.layer_output(phi, o, layer)[:rows].min())),
    )


def _check_subnetwork(phi: Network, net: Network, lower: int, variant: str) -> None:
    """Raise ValueError unless `phi` is the subnetwork up to the maps of its last convolution."""
    expected = subnetwork(net, lower, variant)
    layers, n = list(phi.layers), _last_convolution(expected.layers[:-1])
    if n is not None and len(layers) > n and isinstance(layers[n], Conv):
        layers[n] = replace(layers[n], maps=max(layers[n].maps, expected.layers[n].maps))
    found = (phi.input_shape, tuple(layers), phi.activation)
    if found != (expected.input_shape, expected.layers, expected.activation):
        raise ValueError(f"embed: expected a point of {expected}, got one of {phi}")


def _live_maps(phi: Parameters, x: np.ndarray) -> tuple[int, ...]:
    """Return the maps below the dense layer that are not dead on the samples.

    They are maps of the last convolution, since a pooling above it keeps their number; without a
    layer that has weights, all channels.
    """
    net, n = phi.net, _last_convolution(phi.net.layers[:-1])
    below = net.depth - 1
    if below <= net.leading_poolings:
        return tuple(range(net.input_shape[0]))
    if n is None or net.activation_of(n + 1) != ReLU():

        def used(_: slice, columns: Array) -> np.ndarray:
            o = net.layer_output(phi, columns, below)
            return to_numpy((o.reshape(net.shapes[below][0], -1) != 0).any(axis=1))

        return tuple(int(t) for t in np.flatnonzero(np.any(list(net.over(phi, x, used)), axis=0)))
    live = live_part(phi)
    maps = len(live.kept[n + 1])

    def chunk(_: slice, columns: Array) -> np.ndarray:
        step = next(itertools.islice(steps(live.point, columns), n, None))
        return to_numpy(step.z.reshape(maps, -1).max(axis=1))

    highest = np.max(list(live.point.net.over(live.point, x, chunk)), axis=0)
    return tuple(int(t) for t in live.kept[n + 1][highest >= 0])


def identical_features(theta: Parameters, x: np.ndarray, layer: int) -> np.ndarray:
    """Return for each sample x a number, the same for samples whose features o^layer are equal.

    The input, layer 0, is compared exactly. Features are compared along a few random directions,
    and are equal where they differ by no more than rounding, in theta's type, of the largest one.
    """
    if layer == 0:
        return identical(x)
    point = live_part(theta).point  # the other features are 0
    net, rng, xp = point.net, np.random.default_rng(0), namespace(point.vector)
    directions = rng.standard_normal((DIRECTIONS, math.prod(net.shapes[layer])))
    along = xp.asarray(directions)

    def chunk(_: slice, columns: Array) -> tuple[np.ndarray, float]:
        features = net.layer_output(point, columns, layer)
        return to_numpy(along @ features), float(abs(features).max())

    shadows, sizes = zip(*net.over(point, x, chunk), strict=True)
    size = max(sizes)
    near = np.finfo(theta.vector.dtype).eps * EQUAL * size * np.linalg.norm(directions, axis=1)
    groups = []
    for shadow, least in zip(np.concatenate(shadows, axis=1), near, strict=True):
        order = np.argsort(shadow)
        starts = np.diff(shadow[order], prepend=shadow[order[0]]) > least
        groups.append(np.cumsum(starts)[np.argsort(order)])
    return identical(np.stack(groups, axis=1))


def check_assumption_1(theta: Parameters, x: np.ndarray, layer: int | None = None) -> None:
    """Raise AssumptionError unless o^layer differs between all samples ([CNN] Assumption 1).

    `layer` is L-1 by default; give the upper one of the pair where the pair lies further down. The
    paper's existence proof needs it; the construction does not, and does not call this.
    """
    check_points(None, theta)
    x = as_inputs(theta.net, x)
    depth = theta.net.depth
    layer = depth - 1 if layer is None else whole_number("layer", layer, 0, depth)
    numbers = identical_features(theta, x, layer)
    _, firsts = np.unique(numbers, return_index=True)
    twins = np.setdiff1d(np.arange(len(x)), firsts)
    if twins.size:
        i, j = firsts[numbers[twins[0]]], twins[0]
        raise AssumptionError(
            f"Assumption 1 fails: samples {i} and {j} have identical features at layer {layer}"
        )
