"""The radius of a certificate is sound and not tiny: no pattern changes within it."""

import functools

import numpy as np
import pytest
import scipy.optimize
import torch
from certificate_problems import (
    ALMOST,
    SQUARED,
    half_gaps,
    net_of,
    over_certified_points,
    over_layouts,
    over_some_certified_points,
    patterns_of,
    same_patterns,
    stationary_in_each_class,
)
from shared import in_turn, random_point, twin_of

from tinyspur.certificates import certify_cell
from tinyspur.constructions.relays import rescale
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import kink_escape


def test_no_move_within_the_radius_lowers_the_risk_of_the_images(
    images, image_minimum, image_literal
):
    theta, certificate = image_minimum
    rng = np.random.default_rng(0)
    risk = theta.net.risk(theta, images, SQUARED)
    literal, _ = image_literal
    escape = kink_escape(literal, TrainingSet(images.x[:100], images.y[:100]), SQUARED)
    assert escape.decrease > 0
    corner = rng.choice([-1.0, 1.0], theta.net.size)
    on_top = Parameters(theta.net, corner.copy())
    for layer in (1, 2, 3):
        on_top.W[layer].weights[...] = 0
    away = np.sign(escape.theta.vector - literal.vector)
    for direction in (corner, on_top.vector, away):
        moved = Parameters(theta.net, theta.vector + certificate.radius * direction)
        assert theta.net.risk(moved, images, SQUARED) >= risk * (1 - 1e-12)


def test_the_radius_for_the_images_is_close_to_the_nearest_other_pattern(images, image_minimum):
    theta, certificate = image_minimum
    brightest = images.x.reshape(len(images), -1).sum(axis=1).argmax()
    x = images.x[[brightest]]
    assert not patterns_of(theta, x)[:, 4 * 196 : 5 * 196].any()  # the reserved map A, dead
    aligned = list(aligned_moves(theta, x, {layer: range(0, 196, 3) for layer in (1, 2, 3)}))
    assert {layer for layer, _, _ in aligned} == {1, 2, 3}
    assert all(
        same_patterns(theta, ALMOST * certificate.radius * move, x, patterns_of(theta, x))
        for _, _, move in aligned
    )
    distance = nearest_flip(theta, x, aligned)
    assert certificate.radius < distance < 10 * certificate.radius


def aligned_moves(theta, x, units=None, each=3):
    """Yield (layer, distance, signs): the moves that bring a pre-activation fastest to zero.

    In each layer those of the `each` pre-activations, or gaps of max poolings, that the linear
    estimate |z| / |dz/dtheta|_1 of the distance puts nearest; `units` lists which ones to look at,
    by layer.
    """
    twin = twin_of(theta)
    parameters = [(int(name[1:]), values) for name, values in twin.arrays().items()]
    for layer, z in [*twin.preactivations(x).items(), *half_gaps(twin, x).items()]:
        z = z.flatten()
        if not len(z):
            continue
        z = z if units is None else z[list(units[layer])]
        below = [values for number, values in parameters if number <= layer]
        rows = torch.autograd.grad(
            z,
            below,
            grad_outputs=torch.eye(len(z), dtype=torch.float64),
            is_grads_batched=True,
            retain_graph=True,
        )
        slopes = torch.cat([row.flatten(1) for row in rows], dim=1).numpy()
        z = z.detach().numpy()
        distances = abs(z) / abs(slopes).sum(axis=1)
        for unit in distances.argsort()[:each]:
            signs = np.zeros(theta.net.size)
            signs[: slopes.shape[1]] = -np.sign(z[unit]) * np.sign(slopes[unit])
            yield layer, distances[unit], signs


def nearest_flip(theta, x, aligned):
    """Return the least distance found, by bisection along the moves, at which a pattern changes."""
    expected, nearest = patterns_of(theta, x), np.inf
    for _, distance, move in aligned:
        low, high = 0.0, min(distance, nearest)
        while high < nearest and same_patterns(theta, high * move, x, expected):
            low, high = high, 2 * high
        if high >= nearest:
            high = nearest
            if same_patterns(theta, high * move, x, expected):
                continue
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            if same_patterns(theta, middle * move, x, expected):
                low = middle
            else:
                high = middle
        nearest = high
    return nearest


@functools.cache
def certified(layout, activation, seed):
    """Return a random point, its data and its certificate."""
    theta, data = random_point(net_of(layout, activation), seed=seed)
    return theta, data, certify_cell(theta, data, SQUARED)


@in_turn(over_layouts, pytest.mark.parametrize(("activation", "seed"), [("relu", 0), ("leaky", 1)]))
def test_no_pattern_changes_within_the_radius(layout, activation, seed):
    theta, data, certificate = certified(layout, activation, seed)
    least = min(
        float(z.detach().abs().min()) for z in twin_of(theta).preactivations(data.x).values()
    )
    assert 0 < certificate.radius <= least * (1 + 1e-12)  # a bias alone moves z so far
    expected = patterns_of(theta, data.x)
    rng = np.random.default_rng(seed)
    reach, size = ALMOST * certificate.radius, theta.net.size
    moves = [signs * sign for _, _, signs in aligned_moves(theta, data.x) for sign in (1, -1)]
    moves += list(rng.choice([-1.0, 1.0], (8, size)))
    for move in rng.uniform(-1, 1, (4, size)):
        moves.append(move / abs(move).max())
    for move in moves:
        assert abs(move).max() == 1
        assert same_patterns(theta, reach * move, data.x, expected)


@in_turn(over_layouts, pytest.mark.parametrize(("activation", "seed"), [("relu", 0), ("leaky", 1)]))
def test_the_radius_is_within_a_factor_of_the_nearest_other_pattern(layout, activation, seed):
    theta, data, certificate = certified(layout, activation, seed)
    radius = certificate.radius
    distance = nearest_flip(theta, data.x, list(aligned_moves(theta, data.x, each=4)))
    # The entries of a gap count as if they moved apart as fast as each can alone.
    assert radius < distance < (8 if theta.net.max_layers else 5) * radius


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_radius_of_one_layer_is_exact(kernel, seed):
    rng = np.random.default_rng(seed)
    net = Network((2, 4, 4), [Conv(3, kernel), Dense(1)])
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 1)))
    radius = certify_cell(theta, data, SQUARED).radius
    # z moves by at most rho (1 + the sum of the pixels that the filter reads), and may do so.
    images = torch.tensor(abs(data.x))
    ones = torch.ones(1, 2, kernel, kernel, dtype=torch.float64)
    reach = 1 + torch.nn.functional.conv2d(images, ones, padding=kernel // 2).numpy()
    z = twin_of(theta).preactivations(data.x)[1].detach().numpy().reshape(3, 3, 4, 4)
    exact = (abs(z) / reach).min()
    assert 0.98 * exact < radius < exact


@over_certified_points
def test_no_move_within_the_radius_lowers_the_risk(theta, data, loss):
    radius = certify_cell(theta, data, loss).radius
    risk = theta.net.risk(theta, data, loss)
    floor = risk - 1e-13 * risk
    rng, size = np.random.default_rng(0), theta.net.size
    for scale in (1, 1e-2):
        for _ in range(8):
            for move in (rng.uniform(-1, 1, size), rng.choice([-1.0, 1.0], size)):
                moved = Parameters(theta.net, theta.vector + scale * radius * move)
                assert theta.net.risk(moved, data, loss) >= floor


@over_some_certified_points
def test_descent_within_the_radius_does_not_lower_the_risk(theta, data, loss):
    radius = certify_cell(theta, data, loss).radius
    risk = theta.net.risk(theta, data, loss)
    rng, net = np.random.default_rng(0), theta.net

    def risk_and_gradient(move):
        value, gradient = net.risk_and_gradient(
            Parameters(net, theta.vector + radius * move), data, loss
        )
        return value, radius * gradient.vector

    for _ in range(1):
        start = rng.choice([-1.0, 1.0], net.size)
        found = scipy.optimize.minimize(
            risk_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-1, 1)] * net.size,
            options={"ftol": 0, "gtol": 0, "maxiter": 25},
        )
        assert found.fun >= risk - 1e-13 * risk
        assert found.fun <= risk_and_gradient(start)[0]


def test_below_a_dead_layer_a_slope_above_1_counts_too():
    """The layer below may move four times as much as its inputs, and what is dead comes alive."""
    net = Network((1, 1), [Dense(1, activation=ReLU(4.0)), Dense(1), Dense(1)])
    theta, move, data = net.zeros(), net.zeros(), TrainingSet(np.ones((1, 1)), np.ones(1))
    theta.W[1].weights[...], theta.b[1][...], theta.W[2].weights[...] = 1, -2, 1  # z is -1 and -4
    move.W[1].weights[...], move.b[1][...], move.W[2].weights[...], move.b[2][...] = 1, 1, -1, 1
    radius, expected = certify_cell(theta, data, SQUARED).radius, patterns_of(theta, data.x)
    assert same_patterns(theta, ALMOST * radius * move.vector, data.x, expected)
    assert radius > 0.1


def test_scaling_of_the_first_layer_scales_the_margin():
    theta, data = random_point(net_of("shallow", "relu"), seed=10)
    before = certify_cell(theta, data, SQUARED)
    after = certify_cell(rescale(theta, 1, 4.0), data, SQUARED)
    assert after.margin == 4 * before.margin
    assert after.radius == pytest.approx(4 * before.radius, rel=0.02)


def test_the_radius_is_printed_no_larger_than_it_is():
    theta, data = random_point(net_of("dense", "relu"), seed=0)
    certificate = certify_cell(theta, data, SQUARED)
    printed = float(str(certificate).split("radius ")[1].split(",")[0])
    assert 0.99 * certificate.radius <= printed <= certificate.radius


def test_a_network_that_begins_with_a_pooling_gets_a_certificate():
    rng = np.random.default_rng(14)
    net = Network((1, 4, 4), [AveragePool(2), Conv(2), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(3, 1, 4, 4)).repeat(20, axis=0)
    data = stationary_in_each_class(theta, x + 0.01 * rng.normal(size=x.shape), rng)
    x = data.x
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.proves
    assert certificate.classes == len(np.unique(patterns_of(theta, x), axis=0))
    distance = nearest_flip(theta, x, list(aligned_moves(theta, x)))
    assert certificate.radius < distance < 10 * certificate.radius


@pytest.mark.parametrize("bias", [False, True])
def test_windows_choose_where_no_unit_has_a_kink(bias):
    """A filter -1 selects the smallest pixel, which is not affine in the pixels and lowers R."""
    net = Network((1, 3), [Conv(1, 1, bias=bias, activation=Identity()), MaxPool(3), Dense(1)])
    theta = Parameters(net, np.array([1.0, *[0.0] * bias, 0, 2]))
    x = np.array([[5.0, 0, 0], [5, 0, 1], [5, 1, 0], [5, 1, 1]])[:, None]
    data = TrainingSet(x, np.array([3.0, 1, 1, 3]))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.proves and certificate.classes == 1 and certificate.delta < 1e-6
    lower = theta.copy()
    lower.W[1].weights[...], lower.W[3].weights[...] = -1, -0.5
    assert net.risk(lower, data, SQUARED) < net.risk(theta, data, SQUARED) - 0.05
    distance = abs(lower.vector - theta.vector).max()
    assert 0.3 < certificate.radius < 1 < distance  # from 1 on a filter may be 0
