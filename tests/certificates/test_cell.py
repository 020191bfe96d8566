"""Cell certificates hold where they are proofs, and nowhere else."""

import contextlib
import signal
import warnings

import numpy as np
import pytest
import torch
import torch_twin
from certificate_problems import (
    ENTROPY,
    SQUARED,
    dead_below,
    gate,
    half_gaps,
    inputs_of,
    net_of,
    over_activations,
    over_certified_points,
    over_even_layouts,
    over_few_certified_points,
    over_layouts,
    over_odd_layouts,
    over_some_certified_points,
    patterns_of,
    torch_patterns,
    two_groups,
    with_budget,
)
from shared import in_turn, random_point, targets_for, twin_of

from tinyspur.certificates import Kink, certify_cell
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.constructions.relays import rescale
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import measure_escape


def test_the_repaired_minimum_of_the_images_is_certified(image_minimum):
    _, certificate = image_minimum
    assert certificate.holds
    assert certificate.classes == 1
    assert certificate.kinks == ()
    assert certificate.stationarity < 3e-11
    assert certificate.margin == 1
    assert 0.01 < certificate.radius < certificate.margin
    assert not certificate.evidence_only
    assert "holds, a local minimum" in str(certificate)


def test_the_literal_point_of_the_images_is_not_certified(images, image_literal):
    theta, pair = image_literal
    certificate = certify_cell(theta, images, SQUARED)
    assert not certificate.holds
    assert (certificate.margin, certificate.radius) == (0, 0)
    everywhere = {
        (kink.layer, kink.map) for kink in certificate.kinks if kink.samples == len(images)
    }
    assert {(layer, t) for layer in (2, 3) for t in (0, 1)} <= everywhere
    assert (2, pair.relay_of(0)) not in everywhere
    assert all(kink.locations == 196 for kink in certificate.kinks)
    assert "layer 2 maps 0, 1" in str(certificate)
    assert "does not hold" in str(certificate)


# G_s


def reference(theta, data, loss):
    """Return the number of classes and the stationarity, with PyTorch's patterns and gradients."""
    twin, leading = twin_of(theta), theta.net.leading_poolings
    classes = {}
    for i, row in enumerate(torch_patterns(twin, data.x)):
        classes.setdefault(row.tobytes(), []).append(i)
    outputs = twin(data.x).detach().requires_grad_()
    features = inputs_of(twin, data.x)[leading + 1].detach().flatten(1)
    x = torch.cat([features, torch.ones(len(data), 1)], dim=1)
    (g,) = torch.autograd.grad(
        len(data) * torch_twin.risk(outputs, data.y, loss.name), outputs, create_graph=False
    )
    scale = (g.abs().T @ x.abs()).max().item() / len(data)
    dead = dead_below(theta, data.x)
    largest = 0.0
    for s in classes.values():
        F = torch.tensor(theta.net.affine_map(theta, data.x[s[0]], leading), requires_grad=True)
        affine = x[s] @ F.T
        assert torch.allclose(affine, outputs[s], rtol=0, atol=1e-11 * outputs.abs().max().item())
        risk = torch_twin.risk(affine, data.y[s], loss.name) * len(s) / len(data)
        (G,) = torch.autograd.grad(risk, F)
        if dead[s[0]]:
            G = G[:, -1]
        largest = max(largest, G.abs().max().item())
    return len(classes), largest / scale if scale else 0.0


@in_turn(
    over_layouts,
    over_activations,
    pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"]),
)
def test_classes_and_stationarity_are_those_of_pytorch(layout, activation, loss):
    theta, data = random_point(net_of(layout, activation), samples=13, seed=3)
    if loss is ENTROPY:
        y = np.random.default_rng(4).dirichlet(np.ones(data.y.shape[1]), len(data))
        data = TrainingSet(data.x, y)
    certificate = certify_cell(theta, data, loss)
    classes, stationarity = reference(theta, data, loss)
    assert certificate.classes == classes == len(np.unique(patterns_of(theta, data.x), axis=0))
    assert classes > 2
    assert abs(certificate.stationarity - stationarity) <= 1e-10 * stationarity
    assert stationarity > 1e-3
    assert not certificate.holds
    assert "G_s is not 0" in str(certificate)
    twin = twin_of(theta)
    before = [*twin.preactivations(data.x).values(), *half_gaps(twin, data.x).values()]
    before = [z for z in before if z.numel()]
    margin = min(z.abs().min().item() for z in before)
    assert abs(certificate.margin - margin) <= 1e-13 * max(z.abs().max().item() for z in before)


def test_samples_of_one_class_need_not_follow_each_other():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, 0.0, 1.0, 0.0]))
    x = np.array([1.0, -1.0, 2.0, -2.0, 3.0])[:, None, None, None]
    certificate = certify_cell(theta, TrainingSet(x, np.ones((5, 1))), SQUARED)
    # g = (0, -1, 1, -1, 2): G is (8, 3) / 5 for x > 0 and (3, -2) / 5 for x < 0,
    # the scale is max(0 + 1 + 2 + 2 + 6, 5) / 5.
    assert certificate.classes == 2
    assert certificate.stationarity == pytest.approx(8 / 11, rel=1e-14)


@over_certified_points
def test_no_point_is_lower_than_one_with_every_class_stationary(theta, data, loss):
    certificate = certify_cell(theta, data, loss)
    assert certificate.proves
    assert certificate.delta <= 1e-6 * theta.net.risk(theta, data, loss)
    assert certificate.classes == reference(theta, data, loss)[0]
    least = min(
        float(z.detach().abs().min()) for z in twin_of(theta).preactivations(data.x).values()
    )
    assert 0 < certificate.radius <= least * (1 + 1e-12)  # a bias alone moves z so far
    gradient = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    assert max(abs(values).max() for values in gradient.values()) < 1e-9


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_two_groups_fitted_apart_are_certified_with_two_classes(loss, depth):
    data = two_groups(np.random.default_rng(depth), loss)
    theta, risk = gate(data, loss, depth)
    assert abs(theta.net.risk(theta, data, loss) - risk) < 1e-12 * risk
    assert risk > 0.01
    residuals = abs(theta.net.forward(theta, data.x) - data.y)
    for side in (data.x[:, 0, 0, 0] > 0, data.x[:, 0, 0, 0] < 0):
        assert loss is ENTROPY or residuals[side].max() > 0.1
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == 2
    assert certificate.margin >= 0.5


def met(layout, decimals):
    """Return a random point and data that its outputs meet, of numbers with so many decimals."""
    theta, data = random_point(net_of(layout, "relu"), samples=30, seed=8)
    theta = Parameters(theta.net, np.round(theta.vector * 2.0**decimals) / 2.0**decimals)
    x = np.round(data.x * 2.0**decimals) / 2.0**decimals
    return theta, TrainingSet(x, theta.net.forward(theta, x))


@pytest.mark.parametrize("loss", [SQUARED, AbsoluteLoss(), HuberLoss(0.1)])
def test_a_risk_of_exactly_0_is_a_global_minimum_kinks_or_not(loss):
    theta, data = met("pooling", 10)
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds and certificate.zero
    assert (certificate.delta, certificate.radius) == (0, np.inf)
    assert "global minimum" in certificate.words
    x = np.linspace(-1, 1, 9)[:, None, None, None]
    absolute = Parameters(
        Network((1, 1, 1), [Dense(2), Dense(1)]), np.array([1.0, -1, 0, 0, 1, 1, 0])
    )
    certificate = certify_cell(absolute, TrainingSet(x, abs(x[:, 0, 0])), loss)
    assert certificate.holds and certificate.kinks


def test_a_risk_that_may_be_0_up_to_rounding_is_not_called_a_minimum():
    theta, data = met("conv", 52)
    assert theta.net.risk(theta, data, SQUARED) == 0
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds and certificate.proves == "P2"
    assert certificate.classes > 5
    assert certificate.stationarity == 0
    assert 0 < certificate.delta < 1e-20
    assert 0 < certificate.distance < 1e-6 * certificate.radius
    assert "the minimum nearby may be lower by more than 1e-06 R" in certificate.words


def stationary_saddle():
    """Return a point with gradient zero whose classes are not stationary one by one.

    The outgoing weights are zero and the residuals are orthogonal to the hidden features.
    """
    rng = np.random.default_rng(1)
    net = Network((1, 1, 2), [Dense(3), Dense(1)])
    theta = Parameters(net, rng.normal(size=net.size))
    theta.W[2].weights[...] = 0
    x = rng.normal(size=(20, 1, 1, 2))
    z = theta.W[1] @ x.reshape(20, 2).T + theta.b[1][:, None]
    features = np.vstack([np.maximum(z, 0), np.ones(20)])
    basis, _ = np.linalg.qr(features.T)
    residuals = rng.normal(size=20)
    residuals -= basis @ (basis.T @ residuals)
    data = TrainingSet(x, (theta.b[2] - residuals)[:, None])
    return theta, data, residuals, z


def test_a_stationary_point_is_not_certified_where_single_classes_are_not_stationary():
    theta, data, residuals, z = stationary_saddle()
    gradient = torch_twin.gradients(twin_of(theta), data.x, data.y, "squared")
    assert max(abs(values).max() for values in gradient.values()) < 1e-15
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.classes > 2
    assert certificate.kinks == () and certificate.radius > 0
    assert certificate.stationarity > 1e-2
    assert not certificate.holds
    # Rightly so: a unit and a small outgoing weight, moved together, lower the risk.
    G = (residuals * (z[0] > 0)) @ data.x.reshape(20, 2) / 20
    moved = theta.copy()
    moved.W[1].weights[0] += certificate.radius * np.sign(G)
    moved.W[2].weights[0, 0] = -1e-3 * certificate.radius
    escape = measure_escape(theta, moved, "saddle", certificate.radius, data, SQUARED)
    assert escape.distance <= certificate.radius * (1 + 1e-12)
    assert escape.decrease > 0


def test_where_large_weights_cancel_delta_says_how_much_lower_the_minimum_is():
    """Two equal units cancel exactly; the bias of the output lowers the risk at first order."""
    net = Network((1, 1, 1), [Dense(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 1.0, 8.0, 8.0, 2.0**44, -(2.0**44), 0.0]))
    x = np.arange(4.0).reshape(4, 1, 1, 1)
    data = TrainingSet(x, np.array([[1.0], [-1.0], [1.0], [-1.125]]))
    assert np.array_equal(net.forward(theta, x), np.zeros((4, 1)))
    lower = theta.copy()
    lower.b[2][0] = -(2.0**-6)
    decrease = net.risk(theta, data, SQUARED) - net.risk(lower, data, SQUARED)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == () and certificate.classes == 1
    assert not certificate.holds and certificate.proves == "P2"
    assert 1e-15 < certificate.distance < 1e-12
    assert certificate.radius > 2**-6 and certificate.delta >= decrease > 1e-6


# Invariance


def summary(certificate):
    return certificate.holds, certificate.classes, certificate.kinks


@in_turn(over_layouts, over_activations)
def test_the_memory_budget_does_not_matter(layout, activation):
    theta, data = random_point(net_of(layout, activation), samples=4, seed=6)
    expected = certify_cell(theta, data, SQUARED)
    found = certify_cell(with_budget(theta, 1), data, SQUARED)
    assert summary(found) == summary(expected)
    assert found.margin == pytest.approx(expected.margin, rel=1e-9)
    assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-9)
    assert found.radius == pytest.approx(expected.radius, rel=0.02)


@over_few_certified_points
def test_the_memory_budget_does_not_matter_where_the_certificate_holds(theta, data, loss):
    found = certify_cell(with_budget(theta, 1), data, loss)
    assert found.proves
    assert found.radius == pytest.approx(certify_cell(theta, data, loss).radius, rel=0.02)


def permuted(data, seed=0):
    order = np.random.default_rng(seed).permutation(len(data))
    return TrainingSet(data.x[order], data.y[order])


@over_some_certified_points
def test_the_order_of_the_samples_does_not_matter_where_it_holds(theta, data, loss):
    expected, found = (certify_cell(theta, d, loss) for d in (data, permuted(data)))
    assert summary(found) == summary(expected)
    assert found.proves == expected.proves != ""
    assert found.margin == pytest.approx(expected.margin, rel=1e-12)
    assert found.radius == pytest.approx(expected.radius, rel=1e-9)


@over_even_layouts
def test_the_order_of_the_samples_does_not_matter(layout):
    theta, data = random_point(net_of(layout, "relu"), samples=9, seed=7)
    expected, found = (certify_cell(theta, d, SQUARED) for d in (data, permuted(data)))
    assert summary(found) == summary(expected)
    assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-10)


def rescaled_points(theta):
    """Return points with the same outputs: all layers, and one map of each layer, rescaled."""
    layers, wholly, partly = theta.net.layers, theta, theta
    last = max(n for n, layer in enumerate(layers, 1) if isinstance(layer, Conv | Dense))
    for n, layer in enumerate(layer for layer in theta.net.active_layers if layer < last):
        wholly = rescale(wholly, layer, 0.25 if n % 2 else 8.0)
        partly = rescale(partly, layer, 8.0, target=theta.W[layer].maps_out - 1)
    return wholly, partly


@over_some_certified_points
def test_rescaling_keeps_the_certificate(theta, data, loss):
    expected = certify_cell(theta, data, loss)
    for point in rescaled_points(theta):
        found = certify_cell(point, data, loss)
        assert summary(found) == summary(expected)
        assert found.proves == expected.proves != ""
        assert found.radius > 0


@over_odd_layouts
def test_rescaling_keeps_classes_and_stationarity(layout):
    theta, data = random_point(net_of(layout, "leaky"), samples=10, seed=9)
    expected = certify_cell(theta, data, SQUARED)
    for point in rescaled_points(theta):
        found = certify_cell(point, data, SQUARED)
        assert summary(found) == summary(expected)
        assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-10)


# What is not certified


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
def test_float32_is_not_enough_but_a_local_minimum_is_next_to_it(loss):
    rng = np.random.default_rng(2)
    y = one_hot(rng.integers(0, 3, 80), 3, smoothing=0.1)
    data = TrainingSet(rng.normal(size=(80, 1, 5, 5)), y)
    net = Network((1, 5, 5), [Conv(2), Conv(3), Conv(3), Dense(3)])
    theta, _ = linear_minimum(net, data, loss)
    certificate = certify_cell(theta, data, loss)
    rounded = theta.to(np, np.float32)
    single = certify_cell(rounded, data, loss)
    assert not single.holds and single.kinks == ()
    assert single.proves == "P2" and "G_s is not 0" in single.words
    assert "; an exact local minimum is within" in str(single)
    assert 1e-10 < single.stationarity < 1e-4
    assert single.excess > 1 and 1e3 * certificate.distance < single.distance < 0.1
    before = rounded.net.risk(rounded.to(np, np.float64), data, loss)
    assert 0 < before - theta.net.risk(theta, data, loss) <= single.delta


# Layers that hold no unit


@pytest.mark.parametrize("kind", [AveragePool, MaxPool])
def test_a_network_of_poolings_alone_has_no_patterns(kind):
    net = Network((2, 4, 4), [kind(2), kind(2)])
    data = TrainingSet(np.ones((3, 2, 4, 4)), np.zeros((3, 2)))
    certificate = certify_cell(net.zeros(), data, SQUARED)
    assert (certificate.classes, certificate.margin, certificate.radius) == (1, np.inf, np.inf)
    assert certificate.as_dict()["margin"] is None


def test_a_network_without_hidden_units_is_certified_at_its_affine_fit():
    rng = np.random.default_rng(15)
    data = TrainingSet(rng.normal(size=(12, 1, 1, 3)), rng.normal(size=(12, 2)))
    fit = fit_affine(data.x.reshape(12, 3), data.y, SQUARED)
    net = Network((1, 1, 3), [Dense(2)])
    theta = Parameters(net, np.concatenate([fit.weights.ravel(), fit.bias]))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_point_that_is_not_finite_is_refused(value):
    theta, data = random_point(net_of("dense", "relu"), seed=16)
    theta.W[1].weights[0, 0] = value
    with deadline(5), pytest.raises(ValueError, match="expected finite parameters"):
        certify_cell(theta, data, SQUARED)


@contextlib.contextmanager
def deadline(seconds):
    """Raise TimeoutError in the body after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pixel_of_any_scale_has_to_be_used_as_well_as_it_can_be():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=40)
    x = rng.random((40, 1, 2, 3))
    x[:, 0, 0, 0] = 1e-14 * (labels == 1)
    data = TrainingSet(x, one_hot(labels, 3))
    net = Network((1, 2, 3), [Conv(1), Conv(3), Conv(3), Dense(3)])
    theta, _ = linear_minimum(net, data, SQUARED)
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds
    assert certificate.excess > 1e6


def test_where_no_minimiser_exists_a_point_far_out_is_not_certified():
    rng = np.random.default_rng(0)
    x = np.zeros((105, 1, 1, 2))
    x[:100, 0, 0, 0] = rng.random(100)
    x[100:, 0, 0, 1] = 1.0
    labels = np.concatenate([rng.integers(2, size=100), np.ones(5, int)])
    data = TrainingSet(x, one_hot(labels, 2))
    net = Network((1, 1, 2), [Dense(2)])
    mixed = fit_affine(x[:100, 0, 0], data.y[:100], ENTROPY)
    theta = net.zeros()
    theta.W[1].weights[:] = mixed.weights
    theta.b[1][:] = mixed.bias
    for height in (5.0, 10.0, 14.0):
        theta.W[1].weights[:, 1] = [-height, height]
        assert not certify_cell(theta, data, ENTROPY).holds, height


# Dead layers


def dead_network(layers, seed, loss=SQUARED, depth=4):
    """Return a network with dead `layers` whose output is the best constant, and noisy data."""
    rng = np.random.default_rng(seed)
    net = Network((1, 1, 3), [*[Dense(4)] * (depth - 1), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    x, y = rng.normal(size=(40, 1, 1, 3)), targets_for(loss, rng, 40, 2)
    for layer in layers:
        theta.b[layer][...] = -1e3
    best = fit_affine(np.zeros((40, 1)), y, loss).bias
    theta.b[depth][...] += best - net.forward(theta, x[:1])[0]
    return theta, TrainingSet(x, y)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("loss", [SQUARED, ENTROPY, HuberLoss(0.5)], ids=repr)
def test_a_dead_network_at_the_best_constant_is_certified(layers, loss):
    theta, data = dead_network(layers, seed=3, loss=loss)
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == 1
    risk = theta.net.risk(theta, data, loss)
    rng = np.random.default_rng(0)
    for move in rng.choice([-1.0, 1.0], (12, theta.net.size)):
        near = Parameters(theta.net, theta.vector + certificate.radius * move)
        assert theta.net.risk(near, data, loss) >= risk * (1 - 1e-14)


def test_what_is_below_a_dead_layer_may_be_at_the_kink():
    theta, data = dead_network((2,), seed=4)
    theta.W[1].weights[1], theta.b[1][1] = 0, 0
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds and certificate.kinks == ()
    theta.b[2][...] = 1e3  # the same unit at the kink below a layer that is alive
    assert certify_cell(theta, data, SQUARED).kinks == (Kink(1, 1, 1, 40),)


@pytest.mark.parametrize("layers", [[Conv(2), MaxPool(2)], [Conv(2), AveragePool(2), MaxPool(2)]])
def test_equal_biases_above_a_dead_layer_are_no_tie(layers):
    rng = np.random.default_rng(6)
    net = Network((1, 8, 8), [Conv(3), *layers, Conv(2), MaxPool(2), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    theta.b[1][:], theta.b[2][:] = -100, [1, 2]
    x, y = rng.normal(size=(20, 1, 8, 8)), rng.normal(size=(20, 2))
    theta.b[net.depth][...] += y.mean(axis=0) - net.forward(theta, x[:1])[0]
    data = TrainingSet(x, y)
    certificate = certify_cell(theta, data, SQUARED)
    assert {kink.layer for kink in certificate.kinks} <= {net.depth - 1}  # zero padding
    alone = Network((1, 8, 8), [Conv(3), *layers, Dense(2)])
    theta = Parameters(alone, rng.normal(size=alone.size))
    theta.b[1][:], theta.b[2][:] = -100, [1, 2]
    theta.b[alone.depth][...] += y.mean(axis=0) - alone.forward(theta, x[:1])[0]
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == 1
    risk = alone.risk(theta, data, SQUARED)
    for move in rng.choice([-1.0, 1.0], (12, alone.size)):
        near = Parameters(alone, theta.vector + certificate.radius * move)
        assert alone.risk(near, data, SQUARED) >= risk * (1 - 1e-14)


def test_a_dead_network_at_another_constant_is_that_far_from_a_minimum():
    theta, data = dead_network((2,), seed=5)
    theta.b[4][0] += 1e-9
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds and 1e-10 < certificate.distance < 2e-9
    assert certificate.proves == "P2" and certificate.delta >= 1e-18 / 2
    theta.b[4][0] += 10 * certificate.radius
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds and not certificate.proves
    assert "G_s is not 0" in certificate.words
    assert "output 0, the constant" in certificate.words


def test_dead_samples_and_live_ones_are_classes_of_their_own():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, 0.0, 1.0, 0.0]))
    x = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    y = np.array([1.0, -2.0, 1.0, 1 + 1, 2 - 2, 3 + 1])  # residuals orthogonal to 1, and to (x, 1)
    certificate = certify_cell(theta, TrainingSet(x[:, None, None, None], y[:, None]), SQUARED)
    assert certificate.proves == "P2"  # three equations, and no layer has three parameters
    assert certificate.classes == 2


@pytest.mark.parametrize("distance", [2.0**-45, 1e-10, 1e-3])
def test_a_unit_that_is_dead_by_little_is_dead(distance):
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, -distance, 1.0, 0.0]))
    x = np.array([-1.0, -0.5, -0.25, 0.0])[:, None, None, None]
    data = TrainingSet(x, np.array([[1.0], [-1], [-1], [1]]))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.margin == distance
    assert 0.9 * distance < certificate.radius <= distance


@pytest.mark.parametrize("size", [1e-150, 1e-162, 1e-165, 1e-300, 5e-324])
def test_a_decrease_that_underflows_is_not_called_0(size):
    x, y = np.array([0.0, 1, 2, 3]), np.array([1.0, 0, 0, 3]) * size
    theta = Network((1, 1), [Dense(1)]).zeros()
    certificate = certify_cell(theta, TrainingSet(x[:, None, None], y[:, None]), SQUARED)
    assert not certificate.holds and certificate.delta > 0


@pytest.mark.parametrize("gap", [60, 200])
def test_where_softmax_is_nearly_flat_nothing_warns(gap):
    """The curvature is exp(-gap), and what differs from the targets is as small."""
    theta = Parameters(Network((1, 1), [Dense(2)]), np.array([2.0, 0, gap, 0]))
    x = np.array([[0.0], [1], [0], [1], [0]])
    second = np.exp(-gap - 2 * x) * np.array([[1.5], [1], [1], [0.5], [0.5]])
    data = TrainingSet(x, np.hstack([np.ones((5, 1)), second]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certify_cell(theta, data, CrossEntropy())
    assert not found.holds and found.delta < 1e-14
