"""The risk along a direction: derivatives are exact at kinks and ties, rounding errors known."""

import numpy as np
import pytest
import torch
import torch_twin
from escape_problems import (
    LAYOUTS,
    SQUARED,
    certified_linear,
    direction_at,
    nonlinear_literal,
    over_activations,
    over_layouts,
    over_losses,
    over_smooth,
    point_of,
    smooth_point,
)
from rounding_problems import dense, parameters, samples, shaken
from shared import in_turn, moved, targets_for, twin_of, twin_risk

from tinyspur.certificates import certify_cell
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import AbsoluteLoss, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import (
    find_escape,
    first_order_directions,
    second_order_directions,
)
from tinyspur.refutations.expansion import (
    coordinate_rates,
    expand_risk,
    one_sided_derivative,
)

# The derivative


@in_turn(
    over_layouts,
    over_activations,
    over_losses,
)
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


@in_turn(
    over_layouts,
    over_activations,
    over_losses,
    draws=2,
)
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
    for seed in range(2):
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
    expected = expand_risk(theta, direction, data, SQUARED)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-12)
    assert found[2:] == pytest.approx(expected[2:], rel=0.1)  # sums of fewer terms
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


@in_turn(
    pytest.mark.parametrize("layout", TIED),
    pytest.mark.parametrize("slope", [0.0, 0.25], ids=["relu", "leaky"]),
    over_losses,
    draws=2,
)
def test_the_expansion_at_ties_is_that_of_small_steps(layout, slope, loss):
    for seed in range(3):
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


# Smooth activations


@in_turn(
    over_layouts,
    over_losses,
    over_smooth,
    draws=2,
)
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
        assert 1e-15 * size < rounding < 1e-8 * (1 + size)


@in_turn(
    over_smooth,
    pytest.mark.parametrize("cancel", ["neither", "theta", "direction"]),
)
def test_the_risks_expansion_is_off_by_no_more_than_its_bound(sigma, cancel):
    rng, shares = np.random.default_rng(1), []
    for _ in range(6):
        net, data = dense(sigma), samples(rng)
        theta, d = (parameters(net, rng, cancel == name) for name in ("theta", "direction"))
        found = expand_risk(theta, d, data, SquaredLoss())
        there = expand_risk(shaken(theta, rng), shaken(d, rng), data, SquaredLoss())
        shares += [
            abs(found.first - there.first) / found.first_rounding,
            abs(found.second - there.second) / found.second_rounding,
        ]
    assert 1e-4 < max(shares) < 1


# Coordinates


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


@in_turn(
    over_layouts,
    over_activations,
    over_losses,
)
def test_coordinate_rates_are_one_sided_derivatives(layout, slope, loss):
    for kinked in Network(*LAYOUTS[layout]).active_layers:
        theta, data = point_of(layout, slope, loss, 3, kinks=[kinked])
        up, down = coordinate_rates(theta, data, loss)
        highest = max(kink.layer for kink in certify_cell(theta, data, loss).kinks)
        above = theta.net.zeros()  # of max poolings with a tie, which a map of zeros gives
        for layer in (layer for layer in theta.b if layer >= highest):
            above.W[layer].weights[...] = above.b[layer][...] = 1
        entries = np.flatnonzero(above.vector)
        for j in np.random.default_rng(kinked).permutation(entries)[:6]:
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


def test_at_a_corner_of_the_huber_loss_the_second_term_is_not_known_to_be_zero():
    theta = Network((1, 1, 1), [Dense(1)]).zeros()
    data = TrainingSet(np.zeros((2, 1, 1, 1)), np.array([[1.0], [-1.0]]))
    up = Parameters(theta.net, np.array([0.0, 1.0]))
    found = expand_risk(theta, up, data, HuberLoss(1.0))
    t = 2.0**-6
    risks = [HuberLoss(1.0).value(np.full((1, 2), s), data.y.T).mean() for s in (0.0, t)]
    assert risks[1] - risks[0] == t**2 / 4
    assert abs(found.second - 1 / 4) <= found.second_rounding
