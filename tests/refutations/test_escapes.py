"""Escapes: derivatives are exact at kinks, saddles are left, and nothing is found at a minimum."""

import numpy as np
import pytest
import scipy.linalg
import strict_device
import torch
import torch_twin
from shared import SMOOTH, moved, random_point, targets_for, twin_of, twin_risk

from tinyspur.certificates import certify_cell
from tinyspur.constructions.embedding import embed, linear_minimum, subnetwork
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.errors import AssumptionError
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import (
    find_escape,
    first_order_directions,
    kink_escape,
    second_order_directions,
)
from tinyspur.refutations.expansion import coordinate_rates, expand_risk, one_sided_derivative

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()
LAYOUTS = {
    "dense": ((1, 1, 3), (Dense(4), Dense(3), Dense(2))),
    "conv": ((1, 3, 3), (Conv(2), Conv(2), Dense(2))),
    "pooling": ((2, 4), (Conv(3), AveragePool(2), Conv(2, 1), Dense(3), Dense(2))),
    "max pooling": ((1, 4, 4), (Conv(2), MaxPool(2), Conv(2), MaxPool(2), Dense(2))),
    "max of averages": ((2, 8), (MaxPool(1), Conv(3), AveragePool(2), MaxPool(4), Dense(2))),
}
over_losses = pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_activations = pytest.mark.parametrize("slope", [0.0, 0.2], ids=["relu", "leaky"])


def preactivations(theta, x, layer):
    return twin_of(theta).preactivations(x)[layer].detach().numpy()


def point_of(layout, slope, loss, seed, samples=6, kinks=()):
    """Return a random point and data; in each layer of `kinks` every map has a unit with z = 0.

    Map 0 of those layers has no weights and no bias: it is at the kink for all samples.
    """
    theta, data = random_point(Network(*LAYOUTS[layout], ReLU(slope)), loss, samples, seed)
    rng = np.random.default_rng([seed, 1])
    for layer in kinks:
        theta.W[layer].weights[0], theta.b[layer][0] = 0, 0
        for t in range(1, len(theta.b[layer])):
            z = preactivations(theta, data.x, layer).reshape(samples, len(theta.b[layer]), -1)
            unit = rng.integers(samples), t, rng.integers(z.shape[2])
            theta.b[layer][t] -= z[unit]
    return theta, data


def direction_at(theta, rng):
    return Parameters(theta.net, rng.normal(size=theta.net.size))


def small_literal(loss, seed=0):
    """Return the literal theta of a CNN with a linear subnetwork, and data."""
    net = Network((1, 4, 4), [Conv(2), Conv(4), Conv(4), Dense(3)])
    rng = np.random.default_rng(seed)
    data = TrainingSet(rng.uniform(0, 1, (40, 1, 4, 4)), targets_for(loss, rng, 40, 3))
    return linear_minimum(net, data, loss, "literal")[0], data


def nonlinear_literal(seed=0, stationary="subnetwork"):
    """Return the literal theta over a random subnetwork that is stationary, and data (E2).

    The residuals are orthogonal to the derivatives of all outputs by the parameters of the
    `subnetwork`, or by those of the `whole` network, with kinks inactive.
    """
    rng = np.random.default_rng(seed)
    net = Network((1, 3, 3), [Conv(2), Conv(4), Conv(4), Dense(2)])
    x = rng.normal(size=(120, 1, 3, 3))
    phi = subnetwork(net).zeros()
    phi.vector[:] = rng.normal(size=phi.vector.size)
    phi.b[1][:] = 0  # o^{L-3} is 0 at every second location
    theta, _ = embed(net, phi, x, "literal")
    o = net.forward(theta, x)
    point = phi if stationary == "subnetwork" else theta
    derivatives = []
    for i, k in np.ndindex(o.shape):
        y = o[i : i + 1].copy()
        y[0, k] -= 1
        one = TrainingSet(x[i : i + 1], y)
        derivatives.append(point.net.gradient(point, one, SQUARED).vector)
    free = scipy.linalg.null_space(np.array(derivatives).T)
    residuals = (free @ rng.normal(size=free.shape[1])).reshape(o.shape)
    data = TrainingSet(x, o - residuals)
    assert abs(point.net.gradient(point, data, SQUARED).vector).max() < 1e-12
    return theta, data


# The derivative


@over_layouts
@over_activations
@over_losses
def test_the_derivative_at_kinks_is_the_limit_of_difference_quotients(layout, slope, loss):
    kinks = list(Network(*LAYOUTS[layout]).active_layers)
    rng, bends = np.random.default_rng(1), []
    for seed in range(3):
        theta, data = point_of(layout, slope, loss, seed, kinks=kinks)
        assert len(certify_cell(theta, data, loss).kinks) >= 2 * len(kinks)
        before, derivatives = twin_risk(theta, data, loss), []
        direction = direction_at(theta, rng)
        for sign in (1, -1):
            d = moved(theta.net.zeros(), (sign, direction))
            found = expand_risk(theta, d, data, loss)
            assert one_sided_derivative(theta, d, data, loss) == found.first
            quotients = [
                (twin_risk(moved(theta, (t, d)), data, loss) - before) / t for t in (1e-6, 2e-6)
            ]
            assert found.first == pytest.approx(2 * quotients[0] - quotients[1], abs=1e-7)
            for t in (1e-4,):
                rest = twin_risk(moved(theta, (t, d)), data, loss) - before - found.first * t
                assert found.second == pytest.approx(rest / t**2, rel=0.05, abs=0.05)
            derivatives.append(found.first)
        bends.append(abs(sum(derivatives)))
    assert max(bends) > 1e-2  # a gradient would give derivatives that cancel


@over_layouts
@over_activations
@over_losses
def test_the_derivative_at_smooth_points_is_the_gradients(layout, slope, loss):
    theta, data = point_of(layout, slope, loss, 5)
    twin = twin_of(theta)
    gradient = torch_twin.gradients(twin, data.x, data.y, loss.name)
    for seed in range(3):
        d = direction_at(theta, np.random.default_rng(seed))
        expected = sum((gradient[name] * part).sum() for name, part in d.arrays().items())
        assert one_sided_derivative(theta, d, data, loss) == pytest.approx(expected, rel=1e-12)


def test_a_unit_that_rounding_alone_moves_off_the_kink_is_at_the_kink():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([0.1, -0.3, 2.0, 0.0]))  # relu(0.1 x - 0.3) * 2
    data = TrainingSet(np.full((1, 1, 1, 1), 3.0), np.array([[-5.0]]))
    assert 0 < 0.1 * 3 - 0.3 < 1e-16
    for move, expected in ((0.25, 0.25 * 2 * 5), (-0.25, 0.0)):
        direction = net.zeros()
        direction.b[1][0] = move
        assert one_sided_derivative(theta, direction, data, SQUARED) == pytest.approx(expected)


@over_layouts
def test_the_derivative_is_exact_where_outputs_meet_their_targets(layout):
    loss, rng = AbsoluteLoss(), np.random.default_rng(2)
    for seed in range(3):
        kinks = Network(*LAYOUTS[layout]).active_layers[:1]
        theta, data = point_of(layout, 0.0, SQUARED, seed, kinks=kinks)
        y = data.y.copy()
        y[:4] = theta.net.forward(theta, data.x)[:4]
        data = TrainingSet(data.x, y)
        d = direction_at(theta, rng)
        o, near = (theta.net.forward(p, data.x) for p in (theta, moved(theta, (1e-7, d))))
        quotient = (abs(near - y).sum() - abs(o - y).sum()) / 1e-7 / len(data)
        assert one_sided_derivative(theta, d, data, loss) == pytest.approx(quotient, abs=1e-4)


def test_nothing_falls_at_a_certified_point_of_the_absolute_loss():
    for seed in range(5):
        theta, data = certified_linear("conv", AbsoluteLoss(), seed)
        radius = certify_cell(theta, data, AbsoluteLoss()).radius
        assert radius > 0
        rng = np.random.default_rng(seed)
        for _ in range(5):
            found = expand_risk(theta, direction_at(theta, rng), data, AbsoluteLoss())
            assert found.first >= -found.first_rounding
        assert find_escape(theta, data, AbsoluteLoss(), radius, 2, 15, seed) is None


def test_the_derivative_does_not_depend_on_the_chunks():
    theta, data = point_of("conv", 0.0, SQUARED, 0, samples=9, kinks=(1, 2))
    small = Network(theta.net.input_shape, theta.net.layers, memory_budget=2000)
    assert len(list(small.chunks(Parameters(small, theta.vector), data.x))) > 2
    direction = direction_at(theta, np.random.default_rng(0))
    found = expand_risk(
        Parameters(small, theta.vector), Parameters(small, direction.vector), data, SQUARED
    )
    assert found == pytest.approx(expand_risk(theta, direction, data, SQUARED), rel=1e-12)
    rates = coordinate_rates(Parameters(small, theta.vector), data, SQUARED)
    for part, expected in zip(rates, coordinate_rates(theta, data, SQUARED), strict=True):
        assert part.vector == pytest.approx(expected.vector, rel=1e-11, abs=1e-13)


def test_the_derivative_in_float32_is_that_of_the_same_numbers():
    theta, data = point_of("conv", 0.0, SQUARED, 0)
    single, d = theta.to(np, np.float32), direction_at(theta, np.random.default_rng(0))
    double = single.to(np, np.float64)
    assert one_sided_derivative(single, d, data, SQUARED) == one_sided_derivative(
        double, d, data, SQUARED
    )


@over_losses
def test_rounding_explains_the_derivatives_at_a_certified_point(loss):
    theta, data = certified_linear("conv", loss, 0)
    for seed in range(20):
        direction = direction_at(theta, np.random.default_rng(seed))
        found = expand_risk(theta, direction, data, loss)
        assert abs(found.first) <= found.first_rounding < 1e-8
        assert found.second > -found.second_rounding > -1e-8


# Ties of max pooling

TIED = {
    "max pooling": ((2, 6), (Conv(2), MaxPool(3), Dense(2))),
    "2-D": ((1, 4, 4), (Conv(3), MaxPool(2), Conv(2), Dense(2))),
    "averages between": ((1, 8), (Conv(2), AveragePool(2), MaxPool(2), Conv(2), Dense(2))),
    "max of max": ((1, 8), (Conv(2), MaxPool(2), MaxPool(2), Dense(2))),
    "two": ((1, 8), (Conv(2), MaxPool(2), Conv(2), MaxPool(4), Dense(2))),
    "first and last": ((1, 12), (MaxPool(2), Conv(2), Conv(2), MaxPool(6))),
}


def whole_numbers(layout, slope, loss, seed):
    """Return a point, data and a direction of small whole numbers: ties and kinks of all orders."""
    rng = np.random.default_rng(seed)
    shape, layers = TIED[layout]
    net = Network(shape, layers, ReLU(slope))
    theta = Parameters(net, rng.integers(-1, 2, net.size).astype(float))
    x = rng.integers(-1, 2, (4, *shape)).astype(float)
    direction = Parameters(net, rng.integers(-1, 2, net.size).astype(float))
    return theta, TrainingSet(x, targets_for(loss, rng, 4, 2)), direction


@pytest.mark.parametrize("layout", TIED)
@pytest.mark.parametrize("slope", [0.0, 0.25], ids=["relu", "leaky"])
@over_losses
def test_the_expansion_at_ties_is_that_of_small_steps(layout, slope, loss):
    for seed in range(12):
        theta, data, direction = whole_numbers(layout, slope, loss, seed)
        found = expand_risk(theta, direction, data, loss)
        before, steps = twin_risk(theta, data, loss), np.array([1.0, 2.0, 3.0, 4.0, 5.0]) * 1e-4
        risks = [twin_risk(moved(theta, (t, direction)), data, loss) - before for t in steps]
        # A smooth function of t up to the next tie: the risks are those of a polynomial.
        first, second, *_ = np.linalg.solve(steps[:, None] ** np.arange(1, 6), risks)
        assert found.first == pytest.approx(first, rel=1e-6, abs=1e-7)
        assert found.second == pytest.approx(second, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("layout", TIED)
def test_whole_numbers_are_full_of_ties(layout):
    bends = []
    for seed in range(12):
        theta, data, _ = whole_numbers(layout, 0.0, SQUARED, seed)
        kinks = certify_cell(theta, data, SQUARED).kinks
        bends.append(any(isinstance(theta.net.layers[kink.layer - 1], MaxPool) for kink in kinks))
    assert sum(bends) >= 6


def test_a_tie_takes_the_entry_that_rises_most_at_the_first_order_that_tells_them_apart():
    """Max over o = relu(w x + b): the risk is 1/2 (o - 0)^2 with o = 1 at the tie."""
    net = Network((2, 2), [Conv(1, 1), Conv(1, 1), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[0, :, 0] = 1
    theta.W[2].weights[...] = theta.W[4].weights[...] = 1
    data = TrainingSet(np.array([[[1.0, 0.0], [0.0, 1.0]]]), np.zeros((1, 1)))
    for change, order_two, first, second in (
        ((1.0, -2.0), 0.0, 1.0, 0.5),
        ((-1.0, -2.0), 0.0, -1.0, 0.5),
        ((3.0, 3.0), 0.0, 3.0, 4.5),
        ((1.0, 1.0), 1.0, 2.0, 2.0 + 1.0),
        ((1.0, 0.0), 1.0, 2.0, 2.0 + 1.0),
        ((0.0, -1.0), -1.0, -1.0, 0.5 + 0.0),
    ):
        direction = net.zeros()
        direction.W[1].weights[0, :, 0] = change
        direction.W[2].weights[...] = order_two
        found = expand_risk(theta, direction, data, SQUARED)
        assert (found.first, found.second) == (first, second)
    # Equal at first order, apart at second: W^1 and W^2 move the one, the bias the other.
    net = Network((2, 2), [Conv(2, 1), Conv(1, 1), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[..., 0] = np.eye(2)
    theta.W[2].weights[...] = theta.W[4].weights[...] = 1
    for bend in (1.0, -1.0):
        direction = net.zeros()
        direction.W[1].weights[0, 0, 0] = bend
        direction.W[2].weights[0, :, 0] = 1 - bend, 1
        found = expand_risk(theta, direction, data, SQUARED)
        assert (found.first, found.second) == (1.0, 0.5 + max(bend * (1 - bend), 0))


@pytest.mark.parametrize("slope", [0.0, 0.5], ids=["relu", "leaky"])
def test_inactive_entries_decide_nothing(slope):
    """An inactive entry is 0, without a rounding error, however large its pre-activation is."""
    net = Network((1, 2), [Conv(1, 1), MaxPool(2), Dense(1)], ReLU(slope))
    theta = Parameters(net, np.array([1.0, 0.0, 1.0, 0.0]))
    data = TrainingSet(np.array([[[-1e6, 1e-7]]]), np.array([[-1.0]]))
    assert certify_cell(theta, data, SQUARED).kinks == ()
    direction = net.zeros()
    direction.b[1][0] = -1
    slope_of_risk = net.gradient(theta, data, SQUARED).b[1][0]
    found = one_sided_derivative(theta, direction, data, SQUARED)
    assert found == pytest.approx(-slope_of_risk)
    assert found == pytest.approx(-1, rel=1e-6)


def test_a_tie_that_may_be_broken_is_left():
    """All windows have two equal entries: filters that tell them apart lower the risk."""
    rng = np.random.default_rng(0)
    net = Network((1, 4), [Conv(2), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[:, 0, 1] = 1
    theta.b[1][:] = 5
    x = rng.integers(-1, 2, (20, 1, 4)).astype(float)
    x[:, :, 1::2] = x[:, :, ::2]
    y = rng.normal(size=(20, 1))
    data = TrainingSet(x, y)
    theta.W[3].weights[...] = 1
    theta.b[3][0] = (y - net.forward(theta, x)).mean()
    escape = find_escape(theta, data, SQUARED, 1e-2, starts=2, iterations=5)
    assert twin_risk(escape.theta, data, SQUARED) < twin_risk(theta, data, SQUARED) - 1e-6
    found = list(first_order_directions(theta, data, SQUARED))
    assert any(direction.W[1].weights.any() for direction, _ in found)
    for direction, rate in found:
        t = 1e-7
        quotient = twin_risk(moved(theta, (t, direction)), data, SQUARED)
        quotient = (quotient - twin_risk(theta, data, SQUARED)) / t
        assert rate == pytest.approx(quotient, abs=1e-4)
        assert rate < 0


# Smooth activations

over_smooth = pytest.mark.parametrize("sigma", SMOOTH, ids=repr)


def smooth_point(layout, sigma, loss, seed=0, samples=6):
    theta, data = point_of(layout, 0.0, loss, seed, samples)
    net = Network(theta.net.input_shape, theta.net.layers, sigma)
    return Parameters(net, theta.vector), data


@over_layouts
@over_losses
@over_smooth
def test_both_terms_are_the_gradients_and_the_hessians_of_pytorch(layout, loss, sigma):
    theta, data = smooth_point(layout, sigma, loss)
    twin = twin_of(theta)
    parameters, d = list(twin.arrays().values()), direction_at(theta, np.random.default_rng(1))
    along = [torch.as_tensor(part) for part in d.arrays().values()]
    risk = torch_twin.risk(twin(data.x), data.y, loss.name)
    gradient = torch.autograd.grad(risk, parameters, create_graph=True)
    slope = sum((g * part).sum() for g, part in zip(gradient, along, strict=True))
    products = torch.autograd.grad(slope, parameters)
    bend = sum(float((h * part).sum()) for h, part in zip(products, along, strict=True))
    found = expand_risk(theta, d, data, loss)
    assert found.first == pytest.approx(float(slope.detach()), rel=1e-12)
    assert found.second == pytest.approx(bend / 2, rel=1e-12)
    product = theta.net.hessian_product(theta, d, data, loss).vector
    assert found.second == pytest.approx(d.vector @ product / 2, rel=1e-12)
    for rounding, size in (
        (found.first_rounding, abs(float(slope.detach()))),
        (found.second_rounding, abs(bend)),
    ):
        assert 1e-15 * size < rounding < 1e-10 * (1 + size)


def test_a_tie_of_a_max_pooling_is_a_kink_with_smooth_activations_too():
    net = Network((1, 2), [Conv(1, 1), MaxPool(2), Dense(1), Dense(1)], Tanh())
    theta = Parameters(net, np.array([0.0, 0.3, 1.0, 0.0, 1.0, 0.0]))  # tanh 0.3, at both places
    data = TrainingSet(np.array([[[1.0, -2.0]], [[0.5, 3.0]]]), np.array([[0.1], [2.0]]))
    rates = []
    for sign in (1.0, -1.0):
        d = net.zeros()
        d.W[1].weights[...] = sign
        rates.append(one_sided_derivative(theta, d, data, SQUARED))
        rise = twin_risk(moved(theta, (1e-7, d)), data, SQUARED) - twin_risk(theta, data, SQUARED)
        assert rates[-1] == pytest.approx(rise / 1e-7, abs=1e-5)
    assert abs(sum(rates)) > 0.1
    found = list(first_order_directions(theta, data, SQUARED))
    assert found
    for d, rate in found:
        fall = twin_risk(moved(theta, (1e-7, d)), data, SQUARED) - twin_risk(theta, data, SQUARED)
        assert fall / 1e-7 == pytest.approx(rate, rel=1e-3)


@over_smooth
def test_without_kinks_the_rates_are_the_gradient_and_no_kink_is_left(sigma):
    theta, data = smooth_point("pooling", sigma, SQUARED)
    gradient = theta.net.gradient(theta, data, SQUARED).vector
    up, down = coordinate_rates(theta, data, SQUARED)
    np.testing.assert_allclose(up.vector, gradient, atol=1e-13)
    np.testing.assert_allclose(down.vector, -gradient, atol=1e-13)
    unused = theta.copy()
    unused.W[1].weights[0] = unused.b[1][0] = unused.W[3].weights[:, 0] = 0
    for point in (theta, unused, theta.net.zeros()):
        assert list(first_order_directions(point, data, SQUARED)) == []
        assert list(second_order_directions(point, data, SQUARED)) == []


@over_smooth
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_point_of_a_smooth_network_is_left_and_a_saddle_too(sigma, dtype):
    theta, data = smooth_point("conv", sigma, SQUARED)
    escape = find_escape(theta.to(np, dtype), data, SQUARED, 0.1, starts=2, iterations=10)
    assert escape.decrease > escape.rounding
    lower = twin_risk(theta, data, SQUARED) - twin_risk(escape.theta, data, SQUARED)
    assert lower == pytest.approx(escape.decrease, abs=escape.rounding)
    saddle = Network((1, 1, 2), [Dense(3), Dense(1)], sigma).zeros()
    saddle.b[1][:] = 1
    x = np.random.default_rng(0).normal(size=(20, 1, 1, 2))
    data = TrainingSet(x, x[:, 0, 0, :1] + 1)
    saddle.b[2][:] = data.y.mean()
    assert find_escape(saddle, data, SQUARED, 1e-2, starts=1) is None
    escape = find_escape(saddle, data, SQUARED, 1e-2)
    assert escape.kind == "descent from a random point nearby"
    assert twin_risk(escape.theta, data, SQUARED) < twin_risk(saddle, data, SQUARED)


# Coordinates


@over_layouts
@over_activations
@over_losses
def test_coordinate_rates_are_one_sided_derivatives(layout, slope, loss):
    for kinked in Network(*LAYOUTS[layout]).active_layers:
        theta, data = point_of(layout, slope, loss, 3, kinks=[kinked])
        up, down = coordinate_rates(theta, data, loss)
        highest = max(kink.layer for kink in certify_cell(theta, data, loss).kinks)
        above = theta.net.zeros()  # of max poolings with a tie, which a map of zeros gives
        for layer in (layer for layer in theta.b if layer >= highest):
            above.W[layer].weights[...] = above.b[layer][...] = 1
        for j in np.flatnonzero(above.vector):
            for rates, sign in ((up, 1.0), (down, -1.0)):
                unit = theta.net.zeros()
                unit.vector[j] = sign
                expected = one_sided_derivative(theta, unit, data, loss)
                assert rates.vector[j] == pytest.approx(expected, rel=1e-10, abs=1e-13)
        assert abs(up.vector + down.vector).max() > 1e-3


def test_rates_through_active_kinks_are_those_of_raising_a_relay():
    theta, data = nonlinear_literal()
    up, _ = coordinate_rates(theta, data, SQUARED, active=True)
    inactive, _ = coordinate_rates(theta, data, SQUARED)
    exact = []
    for j in np.ndindex(up.W[2].weights[2:].shape):
        unit = theta.net.zeros()
        unit.W[2].weights[2:][j] = 1
        exact.append(one_sided_derivative(theta, unit, data, SQUARED))
    assert up.W[2].weights[2:].ravel() == pytest.approx(exact, abs=1e-12)
    assert abs(inactive.W[2].weights[2:].ravel() - exact).max() > 1e-3


# Escapes of second order


@over_losses
@pytest.mark.parametrize("seed", range(3))
def test_the_literal_point_is_left_at_second_order(loss, seed):
    theta, data = small_literal(loss, seed)
    for step in (1e-2, 1e-3):
        escape = kink_escape(theta, data, loss, step, seed)
        assert escape.kind == "kink, second order"
        assert escape.decrease > escape.rounding
        assert escape.decrease / step**2 == pytest.approx(-escape.derivative, rel=0.05)
        lower = twin_risk(theta, data, loss) - twin_risk(escape.theta, data, loss)
        assert lower == pytest.approx(escape.decrease, abs=1e-13)
    assert f"derivative {escape.derivative:.3g}" in str(escape)


@over_losses
def test_the_rate_of_the_literal_escape_is_that_of_theory_2_1(loss):
    theta, data = small_literal(loss)
    found = [
        (direction, rate)
        for direction, rate in second_order_directions(theta, data, loss)
        if direction.W[2].weights.any() and direction.W[4].weights.any()
    ]
    changed, derivative = found[0]
    assert abs(changed.W[1].weights).max() == abs(changed.W[3].weights).max() == 0
    (map_,) = np.flatnonzero(changed.b[2])
    ((k, entry),) = np.argwhere(changed.W[4].weights)
    assert entry // 16 == map_  # an outgoing weight of the relay of that map
    image = torch.as_tensor(data.x)
    first = torch.relu(
        torch.conv2d(
            image, torch.as_tensor(theta.W[1].weights), torch.as_tensor(theta.b[1]), padding=1
        )
    )
    z = torch.conv2d(
        first,
        torch.as_tensor(changed.W[2].weights[[map_]]),
        torch.as_tensor(changed.b[2][[map_]]),
        padding=1,
    )
    response = torch.relu(z).reshape(len(data), -1)[:, entry % 16].numpy()
    u = loss.gradient(theta.net.forward(theta, data.x).T, data.y.T)[k]
    assert derivative == pytest.approx(-abs(u @ response) / len(data), rel=1e-9)


@over_activations
def test_a_neuron_at_the_kink_is_relayed_by_kinks_above(slope):
    rng = np.random.default_rng(0)
    net = Network((1, 1, 3), [Dense(4), Dense(4), Dense(4), Dense(2)], ReLU(slope))
    theta = net.zeros()
    theta.vector[:] = rng.uniform(0.1, 1, net.size)  # on x > 0 every other neuron is active
    for layer in (1, 2, 3):
        theta.W[layer].weights[0], theta.b[layer][0] = 0, 0
    theta.W[2].weights[:, 0], theta.W[3].weights[:, 0] = 0, 0
    theta.W[2].weights[0, 0] = theta.W[3].weights[0, 0] = 1
    theta.W[4].weights[:, 0] = 0
    x = rng.uniform(0, 1, (30, 1, 1, 3))
    data = TrainingSet(x, rng.normal(size=(30, 2)))
    lower = 0
    for direction, rate in second_order_directions(theta, data, SQUARED):
        filters, weights = direction.W[1].weights, direction.W[4].weights
        if filters[0].any() and weights[:, 0].any():
            found = expand_risk(theta, direction, data, SQUARED)
            assert found.first == 0
            assert found.second == rate < 0
            for step in (1e-3, 1e-4):
                near = moved(theta, (step, direction))
                fall = twin_risk(near, data, SQUARED) - twin_risk(theta, data, SQUARED)
                assert fall / step**2 == pytest.approx(rate, rel=0.02)
            lower += 1
    assert lower


@over_losses
def test_a_literal_point_in_float32_is_left_too(loss):
    theta, data = small_literal(loss)
    single = theta.to(np, np.float32)
    escape = kink_escape(single, data, loss, 0.1)
    assert escape.theta.vector.dtype == np.float32
    assert escape.decrease > escape.rounding
    assert twin_risk(escape.theta, data, loss) < twin_risk(single, data, loss)


def test_without_an_unused_map_there_is_no_escape_of_second_order():
    theta, data = point_of("conv", 0.0, SQUARED, 0)
    with pytest.raises(AssumptionError, match=r"no escape from the kink.*got 0 with zero"):
        kink_escape(theta, data, SQUARED)


def test_at_a_global_minimum_an_unused_map_is_no_escape():
    theta, data = small_literal(SQUARED)
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    with pytest.raises(AssumptionError, match=r"no escape from the kink.*and none that does"):
        kink_escape(theta, data, SQUARED)
    assert find_escape(theta, data, SQUARED, 1e-2) is None


# Escapes of first order


@pytest.mark.parametrize("stationary", ["subnetwork", "whole"])
@pytest.mark.parametrize("seed", range(3))
def test_over_a_nonlinear_subnetwork_the_literal_point_is_left_at_first_order(seed, stationary):
    theta, data = nonlinear_literal(seed, stationary)
    found = list(first_order_directions(theta, data, SQUARED))
    before, steps = twin_risk(theta, data, SQUARED), (1e-7, 2e-7)
    for direction, derivative in found:
        one, two = (
            (twin_risk(moved(theta, (t, direction)), data, SQUARED) - before) / t for t in steps
        )
        assert derivative == pytest.approx(2 * one - two, rel=1e-4, abs=1e-6)
        assert derivative < 0
    assert min(derivative for _, derivative in found) < -0.02
    single = [d for d, _ in found if (d.vector != 0).sum() == 1]
    assert any(d.W[2].weights.any() for d in single) == (stationary == "subnetwork")
    escape = find_escape(theta, data, SQUARED, 1e-4, starts=1, iterations=1)
    assert before - twin_risk(escape.theta, data, SQUARED) > 0
    if stationary == "whole":  # descent with inactive kinks does not move
        assert escape.kind == "kink, first order"
        assert escape.derivative in [derivative for _, derivative in found]


def test_a_fall_that_no_coordinate_shows_is_found():
    net = Network((1, 1, 2), [Dense(1), Dense(1)])
    theta = net.zeros()
    theta.W[2].weights[0, 0] = 1  # relu(0 x + 0): at the kink, and read
    x = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    data = TrainingSet(x.reshape(4, 1, 1, 2), np.array([[-1.0], [-1.0], [1.0], [1.0]]))
    for rates in coordinate_rates(theta, data, SQUARED):
        assert (rates.vector == 0).all()
    for signs, derivative in (([1, 1], 0.5), ([1, -1], -0.5)):
        direction = net.zeros()
        direction.W[1].weights[0] = signs
        assert one_sided_derivative(theta, direction, data, SQUARED) == derivative
    escape = find_escape(theta, data, SQUARED, 0.1, starts=1)
    assert escape.kind == "kink, first order"
    assert escape.decrease > 1e-3


def test_smooth_points_have_no_kink_to_leave():
    theta, data = point_of("conv", 0.0, SQUARED, 0)
    assert list(first_order_directions(theta, data, SQUARED)) == []
    assert list(second_order_directions(theta, data, SQUARED)) == []


# Any escape within a radius


def certified_linear(kind, loss, seed):
    rng = np.random.default_rng(seed)
    shape, maps = {"conv": ((1, 3, 3), (1, 3, 3)), "channels": ((2, 5), (3, 4, 5))}[kind]
    net = Network(shape, [*(Conv(t) for t in maps), Dense(2)])
    data = TrainingSet(rng.uniform(-1, 1, (25, *shape)), targets_for(loss, rng, 25, 2))
    return linear_minimum(net, data, loss)[0], data


def certified_nontrivial(seed):
    rng = np.random.default_rng(seed)
    net = Network((1, 3, 3), [Conv(2), Conv(2), Dense(2)])
    data = TrainingSet(rng.uniform(0, 1, (25, 1, 3, 3)), targets_for(SQUARED, rng, 25, 2))
    return nontrivial_minimum(net, data, SQUARED, seed=seed), data


CERTIFIED = {
    "linear, squared": (lambda seed: certified_linear("conv", SQUARED, seed), SQUARED),
    "linear, cross-entropy": (lambda seed: certified_linear("conv", ENTROPY, seed), ENTROPY),
    "channels, squared": (lambda seed: certified_linear("channels", SQUARED, seed), SQUARED),
    "nontrivial": (certified_nontrivial, SQUARED),
}


@pytest.mark.parametrize("kind", CERTIFIED)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_within_the_radius_of_a_certified_point_nothing_is_found(kind, dtype):
    make, loss = CERTIFIED[kind]
    for seed in range(20 if dtype is np.float64 else 5):
        theta, data = make(seed)
        certificate = certify_cell(theta, data, loss)
        assert certificate.holds
        theta = theta.to(np, dtype)
        found = find_escape(
            theta, data, loss, certificate.radius, starts=3, iterations=15, seed=seed
        )
        assert found is None


def test_far_from_a_certified_point_there_are_lower_ones():
    theta, data = certified_linear("conv", SQUARED, 0)
    escape = find_escape(theta, data, SQUARED, 3.0)
    assert escape.decrease > 0.01
    assert escape.distance <= 3.0
    assert twin_risk(escape.theta, data, SQUARED) < twin_risk(theta, data, SQUARED) - 0.01
    assert escape.kind == "descent from a random point nearby"


def test_a_live_map_that_is_not_relayed_is_found_by_descent():
    net = Network((1, 4, 4), [Conv(2), Conv(3), Conv(3), Dense(2)])
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.uniform(0, 1, (60, 1, 4, 4)), targets_for(SQUARED, rng, 60, 2))
    theta, _ = linear_minimum(net, data, SQUARED)
    assert find_escape(theta, data, SQUARED, 1e-3) is None
    theta.W[1].weights[1] = rng.normal(size=(1, 3, 3))  # dead until now
    theta.b[1][1] -= np.median(preactivations(theta, data.x, 1)[:, 16:])
    assert theta.net.risk(theta, data, SQUARED) == pytest.approx(
        linear_minimum(net, data, SQUARED)[0].net.risk(theta, data, SQUARED)
    )
    escape = find_escape(theta, data, SQUARED, 1e-3, starts=1)
    assert escape.kind == "descent"
    assert escape.derivative is None
    assert twin_risk(escape.theta, data, SQUARED) < twin_risk(theta, data, SQUARED) - 1e-7


def strict_saddle():
    """Return a point with gradient 0 and no kink: W^1 = 0, b^1 = 1, W^2 = 0, b^2 = mean of y."""
    rng = np.random.default_rng(0)
    net = Network((1, 1, 2), [Dense(3), Dense(1)])
    theta = net.zeros()
    theta.b[1][:] = 1
    x = rng.normal(size=(20, 1, 1, 2))
    data = TrainingSet(x, x[:, 0, 0, :1] + 1)
    theta.b[2][:] = data.y.mean()
    assert abs(net.gradient(theta, data, SQUARED).vector).max() < 1e-15
    return theta, data


def test_a_strict_saddle_is_left_from_random_points_alone():
    theta, data = strict_saddle()
    assert find_escape(theta, data, SQUARED, 1e-3, starts=1) is None
    for seed in range(3):
        escape = find_escape(theta, data, SQUARED, 1e-3, seed=seed)
        assert escape.kind == "descent from a random point nearby"
        assert twin_risk(escape.theta, data, SQUARED) < twin_risk(theta, data, SQUARED)


@over_layouts
@over_losses
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_point_that_is_not_stationary_is_left_within_any_radius(layout, loss, dtype):
    theta, data = point_of(layout, 0.0, loss, 2)
    theta = theta.to(np, dtype)
    for radius in (1e-3, 0.1, 10.0):
        escape = find_escape(theta, data, loss, radius, starts=2, iterations=10)
        assert escape.theta.vector.dtype == dtype
        gap = escape.theta.vector.astype(np.float64) - theta.vector.astype(np.float64)
        assert escape.distance == abs(gap).max() <= radius
        assert escape.decrease > escape.rounding > 0
        lower = twin_risk(theta, data, loss) - twin_risk(escape.theta, data, loss)
        assert lower == pytest.approx(escape.decrease, abs=escape.rounding)


def test_same_seed_same_escape():
    for theta, data in (small_literal(SQUARED), strict_saddle()):
        found = [find_escape(theta, data, SQUARED, 0.1, 2, 5, seed) for seed in (3, 3, 4)]
        assert (found[0].theta.vector == found[1].theta.vector).all()
        assert (found[0].theta.vector != found[2].theta.vector).any()


def test_escapes_from_the_kink_stay_in_the_ball():
    points = {"second": small_literal(SQUARED), "first": nonlinear_literal(0, "whole")}
    for order, (theta, data) in points.items():
        for radius in np.random.default_rng(0).uniform(1e-5, 1e-4, 10):
            escape = find_escape(theta, data, SQUARED, radius, starts=1, iterations=1)
            assert escape.kind == f"kink, {order} order"
            assert 0.2 * radius < escape.distance <= radius


def test_a_device_finds_the_same_escapes():
    for theta, data in (small_literal(SQUARED), nonlinear_literal()):
        device = theta.to(strict_device)
        on_host = find_escape(theta, data, SQUARED, 1e-2, 2, 3)
        on_device = find_escape(device, data, SQUARED, 1e-2, 2, 3)
        assert on_device.kind == on_host.kind
        assert isinstance(on_device.theta.vector, strict_device.ndarray)
        assert on_device.theta.vector.get() == pytest.approx(on_host.theta.vector, abs=1e-9)
        one, other = (kink_escape(point, data, SQUARED) for point in (theta, device))
        assert other.derivative == pytest.approx(one.derivative, rel=1e-9)
        for (d, rate), (_, expected) in zip(
            first_order_directions(device, data, SQUARED),
            first_order_directions(theta, data, SQUARED),
            strict=True,
        ):
            assert rate == pytest.approx(expected, rel=1e-9)
            assert one_sided_derivative(device, d, data, SQUARED) == rate


# Refusals


@pytest.mark.parametrize("radius", [0, -1.0, np.inf, np.nan])
def test_a_radius_that_is_not_positive_and_finite_is_refused(radius):
    theta, data = point_of("dense", 0.0, SQUARED, 0)
    with pytest.raises(ValueError, match="radius: expected a finite number > 0, got"):
        find_escape(theta, data, SQUARED, radius)
    with pytest.raises(ValueError, match="step: expected a finite number > 0, got"):
        kink_escape(theta, data, SQUARED, radius)


def test_other_arguments_are_refused():
    theta, data = point_of("dense", 0.0, SQUARED, 0)
    for options in ({"starts": 0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="expected starts, iterations >= 1, got"):
            find_escape(theta, data, SQUARED, 1.0, **options)
    other, _ = point_of("conv", 0.0, SQUARED, 0)
    with pytest.raises(ValueError, match="expected points and directions of Network"):
        one_sided_derivative(theta, other, data, SQUARED)
    theta.vector[3] = np.nan
    with pytest.raises(ValueError, match="expected finite parameters, got NaN"):
        find_escape(theta, data, SQUARED, 1.0)
