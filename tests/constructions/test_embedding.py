"""theta: the linear minimum, and any subnetwork under a pair of relaying convolutions."""

import math

import numpy as np
import pytest
import strict_device
import torch_twin
from construction_problems import (
    ENTROPY,
    SQUARED,
    linear_case,
    network,
    over_devices,
    over_linear,
    over_losses,
    over_seeds,
    random_embedding,
)
from shared import close, in_turn, outputs_of, random_pixels, random_theta, refuses, twin_of

from tinyspur.certificates import certify_cell
from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.embedding import (
    check_assumption_1,
    embed,
    identical_features,
    linear_minimum,
    subnetwork,
)
from tinyspur.constructions.equal_risk import equal_risk_point
from tinyspur.constructions.relays import rescale
from tinyspur.constructions.witnesses import lower_point
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.backend import select
from tinyspur.engine.losses import one_hot
from tinyspur.engine.network import Network
from tinyspur.errors import AssumptionError
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense


@in_turn(
    over_linear,
    over_losses,
    pytest.mark.parametrize("variant", ["repaired", "literal"]),
    draws=2,
)
def test_the_linear_minimum_computes_the_affine_fit(case, loss, variant):
    theta, pair, data, fit = linear_case(case, loss, variant)
    affine = data.x.reshape(len(data), -1) @ fit.weights.T + fit.bias
    tolerance = 1e-12 * max(1, abs(fit.weights).sum(axis=1).max())
    assert abs(theta.net.forward(theta, data.x) - affine).max() <= tolerance
    close(theta.net.risk(theta, data, loss), fit.risk)
    assert pair.lower == theta.net.depth - 2
    assert pair.reserved == (0, 1)
    assert theta.vector.dtype == np.float64


@in_turn(over_linear, over_losses)
def test_the_repaired_linear_minimum_is_certified(case, loss):
    theta, pair, data, _ = linear_case(case, loss)
    assert theta.net.risk(theta, data, loss) > 1e-6
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == 1
    assert certificate.margin >= 1 - 1e-12
    found = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    assert max(abs(values).max() for values in found.values()) < 1e-9
    patterns = theta.net.patterns(theta, data.x)
    for layer in range(1, theta.net.depth):
        P = theta.net.positions(layer)
        relays = {pair.relay_of(m) for m in pair.relayed} if layer >= pair.lower else pair.relayed
        for t in range(theta.net.shapes[layer][0]):
            assert (patterns[layer][:, t * P : (t + 1) * P] == (t in relays)).all()


def test_the_gradient_at_the_literal_point_is_zero_too():
    theta, _, data, _ = linear_case("three convolutions", SQUARED, "literal")
    found = torch_twin.gradients(twin_of(theta), data.x, data.y, "squared")
    assert max(abs(values).max() for values in found.values()) < 1e-12
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds
    kinks = {(kink.layer, kink.map) for kink in certificate.kinks}
    assert {(2, 0), (2, 1), (3, 0), (3, 1)} <= kinks
    assert certificate.radius == 0


@pytest.mark.parametrize("variant", ["repaired", "literal"])
def test_the_linear_minimum_does_not_depend_on_the_scale_of_the_targets(variant):
    net = network((1, 4, 4), (2, 4, 4), 2)
    data = random_pixels(net, SQUARED, 60, seed=3)
    small = TrainingSet(data.x, data.y * 2.0**-44)
    risks = [
        net.risk(linear_minimum(net, d, SQUARED, variant)[0], d, SQUARED) for d in (data, small)
    ]
    close(risks[1], risks[0] * 2.0**-88)


# theta, from any subnetwork


@in_turn(
    over_seeds,
    pytest.mark.parametrize("variant", ["repaired", "literal"]),
    pytest.mark.parametrize("maps", [(3, 5, 6), (2, 4, 6, 6), (1, 3, 3)]),
    pytest.mark.parametrize("shape", [(1, 4, 4), (2, 7)]),
    draws=3,
)
def test_an_embedded_point_has_the_outputs_of_its_subnetwork(seed, variant, maps, shape):
    theta, pair, data, phi = random_embedding(seed, maps=maps, shape=shape, variant=variant)
    expected = twin_of(phi)(data.x).detach().numpy()
    close(theta.net.forward(theta, data.x), expected)
    close(twin_of(theta)(data.x).detach().numpy(), expected)
    assert pair.relayed == tuple(range(maps[-3]))
    below = theta.net.patterns(theta, data.x)[pair.below]
    assert 0.1 < below.mean() < 0.9  # the subnetwork is not linear


@over_seeds
@pytest.mark.parametrize("maps", [(3, 6, 7), (2, 2, 4, 5)])
def test_relays_are_strictly_active_and_the_rest_of_the_pair_is_dead(seed, maps):
    theta, pair, data, _ = random_embedding(seed, maps=maps)
    before = twin_of(theta).preactivations(data.x)
    relays = {pair.relay_of(m) for m in pair.relayed}
    assert not relays & set(pair.reserved)
    for layer in (pair.lower, pair.upper):
        z = before[layer].detach().numpy().reshape(len(data), theta.net.shapes[layer][0], -1)
        for t in range(z.shape[1]):
            assert (z[:, t] >= 0.5).all() if t in relays else (z[:, t] <= -0.5).all()


def test_a_dead_map_of_the_subnetwork_needs_no_relay():
    theta, pair, data, phi = random_embedding(0, maps=(3, 6, 6))
    net = network((1, 4, 4), (3, 4, 4), 3)
    with refuses(AssumptionError, "too few maps"):
        embed(net, phi, data.x)
    phi.b[1][1] = -1e3
    theta, pair = embed(net, phi, data.x)
    assert pair.relayed == (0, 2)
    assert [pair.relay_of(m) for m in pair.relayed] == [2, 3]
    close(net.forward(theta, data.x), phi.net.forward(phi, data.x))
    with refuses(ValueError, "map 1 of layer 1 is not relayed; expected one of (0, 2)"):
        pair.relay_of(1)
    with refuses(ValueError, "map 1 of layer 1 is not relayed"):
        split_data(theta, pair, data, SQUARED, map=1)


@over_devices
def test_a_subnetwork_on_a_device_is_embedded_there(where):
    xp = strict_device if where == "stand-in" else select("cupy").xp
    theta, pair, data, phi = random_embedding(0)
    found, relays = embed(theta.net, phi.to(xp), data.x)
    assert relays == pair
    assert np.array_equal(found.vector.get(), theta.vector)


# Errors


@pytest.mark.parametrize("variant", ["repaired", "literal"])
@pytest.mark.parametrize(
    ("maps", "named"),
    [
        ((1, 4, 5, 5), "layer 1 has 1"),
        ((3, 1, 5, 5), "layer 2 has 1"),
        ((3, 3, 3, 5), "layer 3 has 3, expected at least 4"),
        ((3, 3, 5, 3), "layer 4 has 3, expected at least 4"),
        ((2, 2, 2, 2), "layer 3 has 2, expected at least 3"),
        ((2, 2, 1, 1), "layer 3 has 1, expected at least 3"),
    ],
)
def test_too_few_maps_are_named(maps, named, variant):
    net = network((2, 3, 3), maps, 2)
    data = random_pixels(net, SQUARED, 40, seed=0)
    with refuses(AssumptionError, "too few maps: " + named):
        linear_minimum(net, data, SQUARED, variant)


@over_losses
def test_one_sample_is_not_enough(loss):
    net = network((1, 3, 3), (1, 3, 3), 2)
    data = random_pixels(net, loss, 1, seed=0)
    with refuses(AssumptionError, "Assumption 1 needs at least two samples, got 1"):
        linear_minimum(net, data, loss)


@pytest.mark.parametrize("budget", [1, 2**26])
def test_identical_samples_are_named(budget):
    net = Network((1, 3, 3), [Conv(1), Conv(3), Conv(3), Dense(2)], memory_budget=budget)
    data = random_pixels(net, SQUARED, 30, seed=0)
    theta, _ = linear_minimum(net, data, SQUARED)
    check_assumption_1(theta, data.x)
    data.x[17] = data.x[4]
    theta, _ = linear_minimum(net, data, SQUARED)
    message = "Assumption 1 fails: samples 4 and 17 have identical features at layer 3"
    with refuses(AssumptionError, message):
        check_assumption_1(theta, data.x)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("budget", [1, 2**26])
def test_equal_features_have_equal_numbers_and_others_have_not(budget, dtype):
    net = Network((1, 3, 3), [Conv(4), Conv(5), Dense(2)], memory_budget=budget)
    rng = np.random.default_rng(0)
    copies = rng.integers(12, size=40)
    x = rng.random((12, 1, 3, 3))[copies]
    x[5, 0, 1, 1] += 1e-2
    copies[5] = 12
    theta = kaiming_start(net, 0).to(np, dtype)
    theta.b[1][:] = theta.b[2][:] = 5
    expected = copies[:, None] == copies
    for layer in (0, 1, 2):
        numbers = identical_features(theta, x, layer)
        assert ((numbers[:, None] == numbers) == expected).all()


def test_samples_that_differ_where_the_network_is_blind_are_named():
    """Distinct images whose features are the same: only the centre tap of the relays is read."""
    theta, _, data, phi = random_embedding(0)
    x = np.abs(data.x)
    phi.W[1].weights[...] = np.abs(phi.W[1].weights)
    phi.b[1][:] = 0
    x[3], x[9] = -1.0, -2.0
    theta, _ = embed(theta.net, phi, x)
    with refuses(AssumptionError, "samples 3 and 9 have identical features"):
        check_assumption_1(theta, x)


def test_data_that_an_affine_map_fits_exactly_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    few = random_pixels(net, SQUARED, 10, seed=0)
    with refuses(AssumptionError, "an affine map fits all 10 samples exactly"):
        linear_minimum(net, few, SQUARED)
    data = random_pixels(net, SQUARED, 11, seed=0)
    assert linear_minimum(net, data, SQUARED)[0].net == net
    rng = np.random.default_rng(0)
    affine = data.x.reshape(11, 9) @ rng.normal(size=(9, 2)) + 3
    with refuses(AssumptionError, "an affine map fits all 11 samples exactly"):
        linear_minimum(net, TrainingSet(data.x, affine), SQUARED)


def test_separable_classes_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    data = random_pixels(net, SQUARED, 30, seed=0)
    labels = (data.x.reshape(30, 9)[:, 2] > 0.5).astype(int)
    with refuses(AssumptionError, "softmax regression has no minimiser"):
        linear_minimum(net, TrainingSet(data.x, one_hot(labels, 2)), ENTROPY)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (
            [Conv(3), Dense(2)],
            "two consecutive convolutions, got Network(1x3x3 -> 3x",
        ),
        (
            [Conv(3), AveragePool(3), Conv(3), Dense(2)],
            "two consecutive convolutions, got Network(",
        ),
        (
            [Dense(3), Dense(2)],
            "two consecutive convolutions, got Network(1x3x3 -> 3",
        ),
        ([AveragePool(3), Dense(2)], "two consecutive convolutions, got Network("),
        ([Conv(3), Conv(3), Conv(3), Conv(2)], "a dense layer at the end, got Conv(maps=2"),
        ([Conv(3), Conv(3), AveragePool(3)], "a dense layer at the end, got AveragePool(size=3)"),
    ],
)
def test_networks_of_another_kind_are_refused(layers, named):
    net = Network((1, 3, 3), layers)
    with refuses(ValueError, "construction: expected " + named):
        subnetwork(net)
    data = random_pixels(Network((1, 3, 3), [Dense(math.prod(net.shapes[-1]))]), SQUARED, 30)
    with refuses(ValueError, "construction: expected " + named):
        linear_minimum(net, data, SQUARED)
    with refuses(ValueError, "construction: expected " + named):
        embed(net, Network((1, 3, 3), [Dense(2)]).zeros(), data.x)


def test_other_activations_are_refused():
    layers = [Conv(3), Conv(3), Conv(3), Dense(2)]
    data = random_pixels(Network((1, 4, 4), [Dense(2)]), SQUARED, 40, seed=0)
    for below in ([], [AveragePool(2)]):
        net = Network((1, 4, 4), [*below, *layers], ReLU(0.01))
        with refuses(ValueError, "construction: expected ReLU, got ReLU(slope=0.01)"):
            subnetwork(net)
        with refuses(ValueError, "construction: expected ReLU, got ReLU(slope=0.01)"):
            linear_minimum(net, data, SQUARED)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    data = random_pixels(network((1, 3, 3), (1, 3, 3), 2), SQUARED, 20, seed=0)
    x = data.x.copy()
    x[6, 0, 1, 1] = value
    with refuses(ValueError, "x has NaN or infinite values in 1 of 20 samples, the first is"):
        TrainingSet(x, data.y)


STRIDED = Network((2, 7, 6), [Conv(3, 3, 2), Conv(4, 3, 2), Conv(6), Conv(7), Dense(2)])


@pytest.mark.parametrize("all_relayed", [False, True])
def test_a_subnetwork_keeps_its_strides_and_theta_has_its_outputs(all_relayed):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2, 7, 6)), rng.normal(size=(30, 2))
    below = subnetwork(STRIDED, all_relayed=all_relayed)
    assert below.layers == (Conv(3, 3, 2), Conv(4, 3, 2), Dense(2))
    phi = random_theta(below)
    theta, pair = embed(STRIDED, phi, x)
    close(theta.net.forward(theta, x), outputs_of(phi, x), 1e-12)
    data = TrainingSet(x, y)
    split = split_data(theta, pair, data, SQUARED)
    prime = equal_risk_point(theta, pair, split)
    close(outputs_of(prime, x), outputs_of(phi, x), 1e-11)
    lower = lower_point(theta, prime, pair, split, data, SQUARED)
    assert lower.decrease > lower.rounding
    for layer in theta.net.active_layers:
        close(outputs_of(rescale(theta, layer, 8.0), x), outputs_of(phi, x), 1e-11)


def test_a_stride_among_the_layers_that_relay_takes_shifted_copies():
    net = Network((2, 7, 6), [Conv(3), Conv(4), Conv(6), Conv(7, 3, 2), Dense(2)])
    few = "too few maps: layer 4 has 7, expected at least 12: two reserved ones and one for each"
    with refuses(AssumptionError, few):
        subnetwork(net, lower=2)
    with refuses(AssumptionError, "layer 2, Conv(maps=3, kernel=1, stride=2), keeps too little"):
        layers = [Conv(3, 1, 2), *STRIDED.layers[2:]]
        data = random_pixels(STRIDED, SQUARED, 40, seed=0)
        unread = Network((2, 7, 6), [Conv(3), *layers])
        linear_minimum(unread, data, SQUARED)
