"""Escapes: saddles are left, at first or second order, and nothing is found at a minimum."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import strict_device
import torch
from escape_problems import (
    ENTROPY,
    SQUARED,
    certified_linear,
    nonlinear_literal,
    over_activations,
    over_layouts,
    over_losses,
    point_of,
    preactivations,
    small_literal,
    smooth_point,
)
from shared import SMOOTH, in_turn, moved, targets_for, twin_risk

from tinyspur.certificates import certify_cell
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.constructions.relays import outgoing as outgoing_of
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.errors import AssumptionError
from tinyspur.layers import Conv, Dense, MaxPool, Residual
from tinyspur.refutations.descent import find_descent_direction
from tinyspur.refutations.escapes import (
    find_escape,
    first_order_directions,
    kink_escape,
    measure_escape,
    second_order_directions,
)
from tinyspur.refutations.expansion import coordinate_rates, expand_risk, one_sided_derivative

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


DEPTHWISE = [Conv(3), Conv(3, groups=3), Dense(2)]
BLOCK = [Conv(3), Residual([Conv(4), Conv(3)]), Dense(2)]
SHORTCUT = [Conv(3), Residual([Conv(3)], [Conv(4, 1, activation=ReLU()), Conv(3, 1)]), Dense(2)]
IN_BLOCKS = pytest.mark.parametrize(
    ("layers", "layer"), [(DEPTHWISE, 2), (BLOCK, 2), (SHORTCUT, 3)], ids=["groups", "block", "cut"]
)


def with_a_map_at_the_kink(layers, layer, outgoing):
    net, rng = Network((2, 3, 3), layers), np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size) / 2)
    theta.W[layer].weights[1], theta.b[layer][1] = 0, 0
    out, _ = outgoing_of(theta, layer, 1)
    out[...] = out * outgoing
    data = TrainingSet(rng.normal(size=(6, 2, 3, 3)), rng.normal(size=(6, 2)))
    return theta, data


@IN_BLOCKS
def test_an_unused_map_of_a_block_or_a_group_is_left_at_second_order(layers, layer):
    theta, data = with_a_map_at_the_kink(layers, layer, 0)
    direction, rate = next(second_order_directions(theta, data, SQUARED))
    before = theta.net.risk(theta, data, SQUARED)
    for step in (1e-3, 1e-4):
        after = theta.net.risk(moved(theta, (step, direction)), data, SQUARED)
        assert (after - before) / step**2 == pytest.approx(rate, rel=100 * step, abs=1e-6)
    assert kink_escape(theta, data, SQUARED, 1e-3).decrease > 0


@IN_BLOCKS
def test_a_map_at_the_kink_of_a_block_or_a_group_is_left_at_first_order(layers, layer):
    theta, data = with_a_map_at_the_kink(layers, layer, 1)
    found = list(first_order_directions(theta, data, SQUARED))
    before = theta.net.risk(theta, data, SQUARED)
    for direction, rate in found:
        unit = moved(theta, (1e-7 / abs(direction.vector).max(), direction))
        slope = (theta.net.risk(unit, data, SQUARED) - before) * abs(direction.vector).max() / 1e-7
        assert slope == pytest.approx(rate, rel=1e-4)
    assert found
    if layer == 3:
        assert find_escape(theta, data, SQUARED, 1e-3, 1, 3).decrease > 0


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


@in_turn(
    pytest.mark.parametrize("stationary", ["subnetwork", "whole"]),
    pytest.mark.parametrize("seed", range(2)),
)
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


def test_smooth_points_have_no_kink_to_leave():
    theta, data = point_of("conv", 0.0, SQUARED, 0)
    assert list(first_order_directions(theta, data, SQUARED)) == []
    assert list(second_order_directions(theta, data, SQUARED)) == []


# Any escape within a radius


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


@in_turn(
    pytest.mark.parametrize("kind", CERTIFIED),
    pytest.mark.parametrize("dtype", [np.float64, np.float32]),
)
def test_within_the_radius_of_a_certified_point_nothing_is_found(kind, dtype):
    make, loss = CERTIFIED[kind]
    for seed in range(2 if dtype is np.float64 else 1):
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


@pytest.mark.parametrize(
    ("sigma", "dtype"), [*((s, np.float64) for s in SMOOTH), (Tanh(), np.float32)], ids=repr
)
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


@in_turn(
    over_layouts,
    pytest.mark.parametrize(("loss", "dtype"), [(SQUARED, np.float64), (ENTROPY, np.float32)]),
)
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
        found = [find_escape(theta, data, SQUARED, 0.1, 2, 3, seed) for seed in (3, 3, 4)]
        assert (found[0].theta.vector == found[1].theta.vector).all()
        assert (found[0].theta.vector != found[2].theta.vector).any()


def test_escapes_from_the_kink_stay_in_the_ball():
    points = {"second": small_literal(SQUARED), "first": nonlinear_literal(0, "whole")}
    for order, (theta, data) in points.items():
        for radius in (2e-5, 7e-5) if order == "second" else (5e-5,):
            escape = find_escape(theta, data, SQUARED, radius, starts=1, iterations=1)
            assert escape.kind == f"kink, {order} order"
            assert 0.2 * radius < escape.distance <= radius


def test_no_escape_leaves_the_ball_not_even_by_rounding():
    """The largest change is compared in fractions, for small weights that the radius dwarfs."""
    for seed in range(20):
        net, rng = Network((1, 1), [Dense(1)]), np.random.default_rng(seed)
        theta = Parameters(net, 0.03 * rng.normal(size=2))
        theta.vector[0] = (theta.vector[0], -0.02, 1e-20 - 0.02)[seed % 3]
        data = TrainingSet(np.ones((1, 1, 1)), np.ones((1, 1)))
        escape = find_escape(theta, data, SQUARED, 0.02, starts=1)
        moved = zip(escape.theta.vector.tolist(), theta.vector.tolist(), strict=True)
        changes = [abs(Fraction(a) - Fraction(b)) for a, b in moved]
        assert Fraction(0.0199) < max(changes) <= Fraction(0.02)


def test_a_device_finds_the_same_escapes():
    theta, data = small_literal(SQUARED)
    on_host = find_escape(theta, data, SQUARED, 1e-2, 1, 1)
    on_device = find_escape(theta.to(strict_device), data, SQUARED, 1e-2, 1, 1)
    assert on_device.kind == on_host.kind
    assert isinstance(on_device.theta.vector, strict_device.ndarray)
    assert on_device.theta.vector.get() == pytest.approx(on_host.theta.vector, abs=1e-9)


def test_a_device_finds_the_same_directions():
    theta, data = nonlinear_literal()
    device = theta.to(strict_device)
    one, other = (kink_escape(point, data, SQUARED) for point in (theta, device))
    assert other.derivative == pytest.approx(one.derivative, rel=1e-9)
    for (d, rate), (_, expected) in zip(
        itertools.islice(first_order_directions(device, data, SQUARED), 4),
        itertools.islice(first_order_directions(theta, data, SQUARED), 4),
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
    for name in ("starts", "iterations"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number, 1 or more, got 0"):
            find_escape(theta, data, SQUARED, 1.0, **{name: 0})
    other, _ = point_of("conv", 0.0, SQUARED, 0)
    with pytest.raises(ValueError, match="expected points and directions of Network"):
        one_sided_derivative(theta, other, data, SQUARED)
    theta.vector[3] = np.nan
    with pytest.raises(ValueError, match="expected finite parameters, got NaN"):
        find_escape(theta, data, SQUARED, 1.0)


# What is proved for every distance, and what is seen from some on


def one_unit(bias, inputs, targets):
    """Return sigma(w x + bias), w = 1, and data."""
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, bias, 1.0, 0.0]))
    x = np.array(inputs)[:, None, None, None]
    return theta, TrainingSet(x, np.array(targets)[:, None])


@pytest.mark.parametrize("distance", [2.0**-45, 2.0**-30])
def test_a_minimum_next_to_the_kink_is_not_refuted(distance):
    """Strictly dead on all samples: a local minimum, although the risk falls from there on."""
    theta, data = one_unit(-distance, [-1.0, -0.5, 0.0], [-0.5, -0.5, 1.0])
    lower = theta.copy()
    lower.b[1][0] = 0.1
    assert theta.net.risk(lower, data, SQUARED) < theta.net.risk(theta, data, SQUARED)
    assert certify_cell(theta, data, SQUARED).holds
    escape = measure_escape(theta, lower, "by hand", 0.1, data, SQUARED)
    assert find_descent_direction(theta, data, SQUARED, escape) is None


def test_where_the_sign_of_a_unit_is_not_known_the_risk_falls_from_some_distance_on():
    theta, data = one_unit(0.0, [-1.0, -0.5, 0.0], [-0.5, -0.5, 1.0])
    exact = find_descent_direction(theta, data, SQUARED)
    assert exact.beyond == 0 and exact.order == 1
    assert "t -> 0" in str(exact)
    net = Network((1, 1, 2), [Dense(1), Dense(1)])  # z = 0.1 + 0.2 - 0.3 is no 0 in either sense
    theta = Parameters(net, np.array([0.1, 0.2, -0.3, 1.0, 0.0]))
    x = np.array([[-9.0, 0], [-5, 0], [1, 1]]).reshape(3, 1, 1, 2)
    data = TrainingSet(x, data.y)
    z = 0.1 + 0.2 - 0.3
    assert 0 < z < 1e-16
    found = find_descent_direction(theta, data, SQUARED)
    assert found.beyond >= abs(z)
    assert found.beyond < 1e-14
    assert f"from {found.beyond:.1g} on" in str(found)


def test_a_decrease_that_rounding_may_explain_is_no_lower_point():
    """The mean of very many losses, of which some are a little lower and others a little higher."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2**17, 1, 1, 1))
    theta = Parameters(Network((1, 1, 1), [Dense(1)]), np.zeros(2))
    data = TrainingSet(x, 1e3 + rng.normal(size=(2**17, 1)))
    for step in 2.0 ** np.arange(-60, -30, 3):
        near = Parameters(theta.net, np.array([0.0, -step]))  # away from the targets: higher
        escape = measure_escape(theta, near, "by hand", step, data, SQUARED)
        assert escape.decrease <= escape.rounding
    near = Parameters(theta.net, np.array([0.0, 2.0**-20]))
    escape = measure_escape(theta, near, "by hand", step, data, SQUARED)
    assert escape.decrease > escape.rounding
