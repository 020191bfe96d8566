"""Units at the kink, and ties of max pooling, are found and named."""

from dataclasses import replace

import numpy as np
import pytest
from certificate_problems import (
    ACTIVATIONS,
    ALMOST,
    SQUARED,
    net_of,
    over_activations,
    patterns_of,
    same_patterns,
    with_budget,
)
from shared import random_point, twin_of

from tinyspur.certificates import Kink, certify_cell
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


def test_the_memory_budget_does_not_decide_what_counts_as_a_kink():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, -1.0, 1.0, 0.0]))
    x = np.array([2.0, 1 + 2.0**-52, 1e6])[:, None, None, None]
    data = TrainingSet(x, x.reshape(3, 1))
    expected = certify_cell(theta, data, SQUARED)
    assert expected.kinks == (Kink(1, 0, 1, 1),)
    assert certify_cell(with_budget(theta, 1), data, SQUARED).kinks == expected.kinks


def test_a_dense_unit_at_the_kink_is_named():
    theta, data = random_point(net_of("dense", "relu"), seed=12)
    row = theta.W[2].weights[1]
    row[...] = 0
    theta.b[2][1] = 0
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == (Kink(2, 1, 1, len(data)),)
    assert not certificate.holds
    assert (certificate.margin, certificate.radius) == (0, 0)
    assert certificate.stationarity == 0
    assert "layer 2 map 1 (1 location, 6 samples)" in str(certificate)


@pytest.mark.parametrize("budget", [1, 2**26])
def test_kinks_count_locations_and_samples_of_their_map(budget):
    net = Network((1, 3, 3), [Conv(2, 1), Dense(1)], memory_budget=budget)
    theta = Parameters(net, np.ones(net.size))
    theta.b[1][:] = 0, -7
    x = np.arange(1.0, 37).reshape(4, 1, 3, 3)
    x[0, 0, 0, :2] = 0  # locations 0 and 1
    x[2, 0, 0, 1] = 0  # location 1
    x[3, 0, 2, 2] = 7  # location 8 of the map with bias -7
    x[0, 0, 2, 0] = 7.5  # where arange gives 7
    certificate = certify_cell(theta, TrainingSet(x, np.zeros((4, 1))), SQUARED)
    assert certificate.kinks == (Kink(1, 0, 2, 2), Kink(1, 1, 1, 1))
    assert not certificate.holds


def test_a_leaky_unit_at_zero_is_a_kink_too():
    theta, data = random_point(net_of("dense", "leaky"), seed=13)
    theta.b[1][2] -= (theta.W[1] @ data.x[4].ravel() + theta.b[1])[2]
    theta.b[1][2] -= (theta.W[1] @ data.x[4].ravel() + theta.b[1])[2]
    kinks = certify_cell(theta, data, SQUARED).kinks
    assert kinks == (Kink(1, 2, 1, 1),)


def tied(inactive, activation="relu", size=2):
    """Return relays below a max pooling, and data that they fit.

    In one window of two samples the two largest entries are equal; there all are inactive or not.
    """
    net = Network((1, 6), [Conv(2, 1), MaxPool(size), Dense(2)], ACTIVATIONS[activation])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    theta.W[1].weights[...] = np.array([1.0, 2.0]).reshape(2, 1, 1)
    theta.b[1][:] = -4 if inactive else 4, 8
    x = np.arange(24.0).reshape(4, 1, 6) % 3 + np.arange(6) / 8
    x[1:3, 0, :2] = 1.5
    return theta, TrainingSet(x, net.forward(theta, x))


@over_activations
def test_equal_entries_are_a_kink_unless_both_are_inactive(activation):
    theta, data = tied(False, activation)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == (Kink(2, 0, 1, 2), Kink(2, 1, 1, 2))
    assert (certificate.margin, certificate.radius, certificate.stationarity) == (0, 0, 0)
    assert not certificate.holds
    assert "layer 2 maps 0, 1 (1 location, 2 samples)" in str(certificate)
    theta, data = tied(True, activation)
    certificate = certify_cell(theta, data, SQUARED)
    leaky = activation == "leaky"  # there an inactive entry moves too
    assert certificate.kinks == ((Kink(2, 0, 1, 2),) if leaky else ()) + (Kink(2, 1, 1, 2),)
    theta.W[1].weights[1], theta.b[1][1] = 0, -3
    certificate = certify_cell(theta, data, SQUARED)
    assert bool(certificate.kinks) == leaky


@pytest.mark.parametrize("between", [[], [AveragePool(2)], [MaxPool(2)]], ids=str)
def test_where_all_entries_are_inactive_there_is_no_gap_to_keep(between):
    net = Network((1, 8), [Conv(2), *between, MaxPool(2), Dense(1)])
    theta = Parameters(net, np.random.default_rng(1).normal(size=net.size))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8))
    theta.b[1][:] = -10, -20
    data = TrainingSet(x, theta.b[net.depth] + np.array([[-2.0], [1], [1], [1], [-1]]))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == 1
    least = min(z.abs().min().item() for z in twin_of(theta).preactivations(x).values())
    assert certificate.margin == pytest.approx(least)
    expected, reach = patterns_of(theta, x), ALMOST * certificate.radius
    for move in np.random.default_rng(2).choice([-1.0, 1.0], (200, net.size)):
        assert same_patterns(theta, reach * move, x, expected)


def test_equal_entries_up_to_rounding_are_a_kink():
    net = Network((2, 2), [Conv(1, 1), MaxPool(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    x = np.array([[[0.1, 0.3], [0.2, 0.0]]])
    assert 0 < (0.1 + 0.2) - 0.3 < 1e-16
    certificate = certify_cell(theta, TrainingSet(x, net.forward(theta, x)), SQUARED)
    assert certificate.kinks == (Kink(2, 0, 1, 1),)
    assert not certificate.holds


def test_a_descent_over_a_tie_is_not_ruled_out():
    """Stationary on either side is not enough: to swap the largest lowers the risk."""
    net = Network((1, 2), [Conv(1), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[0, 0, 1], theta.b[1][0], theta.W[3].weights[0, 0] = 1, 1, 1
    x = np.ones((2, 1, 2))
    data = TrainingSet(x, np.full((2, 1), 3.0))
    lower = theta.copy()
    lower.W[1].weights[0, 0, 0] = 1e-3
    assert net.risk(lower, data, SQUARED) < net.risk(theta, data, SQUARED)
    assert certify_cell(theta, data, SQUARED).kinks == (Kink(2, 0, 1, 2),)


def test_ties_of_leading_max_poolings_are_no_kinks():
    rng = np.random.default_rng(14)
    layers = [Conv(2), MaxPool(2), Dense(2)]
    net = Network((1, 8, 8), [MaxPool(2), *layers])
    theta = Parameters(net, rng.normal(size=net.size))
    pooled = rng.normal(size=(40, 1, 4, 4))
    x = pooled.repeat(2, axis=2).repeat(2, axis=3)  # all entries of a window are equal
    y = rng.normal(size=(40, 2))
    alone = Parameters(Network((1, 4, 4), layers), theta.vector)
    found, expected = (
        certify_cell(point, TrainingSet(images, y), SQUARED)
        for point, images in ((theta, x), (alone, pooled))
    )
    assert found.delta == pytest.approx(expected.delta, rel=1e-12)
    same = {"excess": 0, "delta": 0}  # one more layer of rounding
    assert replace(found, **same) == replace(expected, **same)
    assert found.kinks == ()


def test_a_unit_that_cancels_to_zero_across_layers_is_at_the_kink():
    # z^2 = (1e8 a + 0.1 - 1e8 a) - 0.1, zero but for rounding in the layer below.
    net = Network((1, 1, 2), [Dense(1), Dense(1), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[0] = [1e8, -1e8]
    theta.b[1][0] = 0.1
    theta.W[2].weights[0, 0] = 1.0
    theta.b[2][0] = -0.1
    a = np.random.default_rng(0).random(20)
    x = np.stack([a, a], axis=1).reshape(20, 1, 1, 2)
    data = TrainingSet(x, np.ones((20, 1)))
    certificate = certify_cell(theta, data, SQUARED)
    assert Kink(2, 0, 1, 20) in certificate.kinks
    assert not certificate.holds
