"""The strict certificate: what it proves holds, in exact arithmetic; what is missing is refused."""

import itertools
import warnings
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import strict_device
from exact_algebra import solved
from settled_points import SETTLED
from strict_problems import (
    AT_KINK,
    SQUARED,
    at_kink,
    corners,
    exact_risk,
    kinks_feeding_kinks,
    moved,
    with_background,
)

from tinyspur.certificates import certify, certify_strict, round_down
from tinyspur.certificates.growth import exists
from tinyspur.certificates.stationary import find_stationary, near_kinks
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import GELU, SMOOTH, ReLU, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual
from tinyspur.refutations.descent import find_descent_direction

BELOW = 1 - 1e-9


def test_a_minimum_at_a_kink_is_certified_and_its_exact_risk_enclosed():
    theta, data = at_kink()
    found = certify_strict(moved(theta, 1e-9 * np.array([1, -1, 0, 1])), data, SQUARED)
    assert found.holds and found.proves == "P1" and found.kinks == found.held == 1
    assert (found.free, found.frozen, found.idle) == (3, 1, 0)
    assert Fraction(found.risk[0]) <= AT_KINK <= Fraction(found.risk[1])
    assert found.risk[1] - found.risk[0] < 1e-13
    assert 0.9e-9 < found.distance < 4e-9 and found.radius > 1e-3
    assert found.delta < 1e-8


@pytest.mark.parametrize("slope", [0.0, 0.125])
def test_no_point_within_the_radius_is_lower_in_exact_arithmetic(slope):
    theta, data = at_kink(slope=slope)
    theta = settle(theta, data, SQUARED).theta if slope else theta
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and found.kinks == 1
    least = Fraction(found.risk[0]) if slope else AT_KINK
    for near in corners(theta, found.radius * BELOW, 24):
        assert exact_risk(near, data) >= least
    towards = settle(moved(theta, [0.3, 0.2, 0, 0.1]), data, SQUARED).theta.vector - theta.vector
    for d in (towards, -towards, *np.eye(4)):
        reach = found.radius * BELOW / max(abs(d).max(), 1e-9)
        assert exact_risk(moved(theta, reach * d), data) >= least


def test_equal_kinks_count_as_one_of_all_samples_and_positions():
    theta, data = at_kink(repeats=3)
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and (found.kinks, found.held) == (1, 3)
    theta, data = with_background()
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and (found.kinks, found.held) == (1, 13)
    assert Fraction(found.risk[0]) <= AT_KINK <= Fraction(found.risk[1])
    for near in corners(theta, found.radius * BELOW, 16):
        assert exact_risk(near, data) >= AT_KINK


def test_kinks_that_feed_kinks_are_certified_and_nothing_near_is_lower():
    theta, data = kinks_feeding_kinks()
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and found.kinks == 4 and 0 < found.inside < 0.01
    assert found.radius > 20 * found.distance
    for near in corners(theta, found.radius * BELOW, 12):
        assert exact_risk(near, data) >= Fraction(found.risk[0])


def tied(theta, data):
    """Return (window, sample) where two entries that are not 0 agree, by one sum for each unit."""
    [[*filters], biases] = theta.W[1].weights, theta.b[1]
    found = set()
    for sample, [x] in enumerate(data.x):
        x = [0.0, *x, 0.0]
        for t, ([w], b) in enumerate(zip(filters, biases, strict=True)):
            o = [max(0.0, sum(w * x[p : p + 3]) + b) for p in range(len(x) - 2)]
            for p in range(0, len(o), 2):
                if o[p] > 1e-9 and abs(o[p] - o[p + 1]) < 1e-9:
                    found.add((t * (len(o) // 2) + p // 2, sample))
    return found


def test_ties_of_max_poolings_are_kinks_too_and_found_without_help():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1, 4))
    data = TrainingSet(x, np.sin(2 * x[:, 0, :1]) + x[:, 0, 1:2])
    net = Network((1, 4), (Conv(2), MaxPool(2), Dense(1)))
    theta = Parameters(net, SETTLED["ties of max poolings"])
    ties = {
        place
        for kink in near_kinks(theta, data, SQUARED, 1e-9)
        if kink.pairs is not None
        for place in zip(kink.units.tolist(), kink.samples.tolist(), strict=True)
    }
    assert len(ties) > 2 and ties == tied(theta, data)
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and found.kinks == 5
    for near in corners(theta, found.radius * BELOW, 30):
        assert net.risk(near, data, SQUARED) >= found.risk[0] * (1 - 1e-14)


def test_ties_of_averages_and_targets_that_are_met_are_found():
    rng = np.random.default_rng(5)
    x, loss = rng.normal(size=(20, 1, 8)), AbsoluteLoss()
    data = TrainingSet(x, np.sin(2 * x[:, 0, :1]) + x[:, 0, 1:2])
    net = Network((1, 8), (Conv(2), AveragePool(2), MaxPool(2), Dense(1)))
    theta = Parameters(net, SETTLED["ties of averages"])
    found = certify_strict(theta, data, loss)
    assert {kink.layer for kink in near_kinks(theta, data, loss, 1e-9)} == {1, 3, 5}
    assert found.holds and found.kinks == 11


def test_an_exact_smooth_minimum_of_relu_is_enclosed():
    x, y = np.array([-2.0, -1, 1, 2, 3]), np.array([1.0, 0, 3, 5, 6])
    data = TrainingSet(x[:, None, None], y[:, None])
    line = [Fraction(3, 2), Fraction(5, 3)]  # of y through the last three, 14/3 at their mean 2
    off = [Fraction(1, 2), Fraction(-1, 2)]  # of the others from their mean
    off += [
        line[0] * int(a - 2) + Fraction(14, 3) - int(b) for a, b in zip(x[2:], y[2:], strict=True)
    ]
    risk = sum(e**2 for e in off) / 10
    net = Network((1, 1), (Dense(1), Dense(1)))
    theta = Parameters(net, np.array([1.5, 14 / 3 - 3 - 0.5, 1.0, 0.5]))
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and found.kinks == 0 and found.classes == 2
    assert Fraction(found.risk[0]) <= risk <= Fraction(found.risk[1])
    for near in corners(theta, found.radius * BELOW, 24):
        assert exact_risk(near, data) >= risk


@pytest.mark.parametrize("sigma", [Tanh(), SMOOTH[0](), SMOOTH[4]()], ids=str)
def test_smooth_networks_have_certified_minima_without_kinks(sigma):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 1, 2))
    y = np.tanh(x[:, 0, :1] - 0.5) + 0.3 * rng.normal(size=(40, 1))
    data, net = TrainingSet(x, y), Network((1, 2), (Dense(1), Dense(1)), sigma)
    theta = settle(kaiming_start(net, seed=1), data, SQUARED, seconds=2).theta
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and (found.kinks, found.frozen) == (0, 0) and found.eigenvalue > 1e-5
    for near in corners(theta, found.radius * BELOW, 30):
        assert net.risk(near, data, SQUARED) >= found.risk[0] * (1 - 1e-14)


@pytest.mark.parametrize("soft", [False, True])
def test_the_shift_of_all_outputs_of_a_softmax_is_frozen(soft):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 1, 2))
    y = rng.dirichlet(np.ones(3), 30) if soft else one_hot(rng.integers(0, 3, 30), 3)
    data, net = TrainingSet(x, y), Network((1, 2), (Dense(3),))
    found = certify_strict(
        settle(kaiming_start(net), data, CrossEntropy()).theta, data, CrossEntropy()
    )
    assert found.holds and (found.free, found.frozen) == (6, 3)


def test_a_line_of_least_absolute_deviations_meets_two_targets():
    x, y = np.array([0.0, 1, 2, 4, 8]), np.array([0.0, 2, 1, 3.5, 5])
    data, net = TrainingSet(x[:, None, None], y[:, None]), Network((1, 1), (Dense(1),))
    lines = [
        ((y[j] - y[i]) / (x[j] - x[i]), y[i], x[i]) for i, j in itertools.combinations(range(5), 2)
    ]
    risks = {(w, c - w * at): abs(w * x + c - w * at - y).mean() for w, c, at in lines}
    best = min(risks, key=risks.get)
    found = certify_strict(Parameters(net, np.array(best)), data, AbsoluteLoss())
    assert found.holds and found.kinks == 2 and found.free == 2
    assert found.risk[0] <= risks[best] <= found.risk[1]
    second = sorted(risks, key=risks.get)[1]
    assert not certify_strict(Parameters(net, np.array(second)), data, AbsoluteLoss()).holds


def test_kinks_are_found_without_help_in_blocks_of_another_width_than_the_outputs():
    net = Network((1, 4), (Dense(3), Residual([Dense(4), Dense(3)]), Dense(2)), ReLU(0.1))
    theta, x = kaiming_start(net, seed=0), np.random.default_rng(0).normal(size=(30, 1, 4))
    x[7, 0] -= (
        theta.W[1].weights[1]
        * (theta.W[1].weights[1] @ x[7, 0])
        / (theta.W[1].weights[1] @ theta.W[1].weights[1])
    )
    for loss in (SQUARED, AbsoluteLoss()):
        found = near_kinks(theta, TrainingSet(x, net.forward(theta, x) + 1), loss, 1e-9)
        assert [(kink.layer, kink.map, kink.samples.tolist()) for kink in found] == [(1, 1, [7])]
    y = net.forward(theta, x) + 1
    y[3, 1] -= 1
    found = near_kinks(theta, TrainingSet(x, y), AbsoluteLoss(), 1e-9)
    assert [(kink.layer, kink.map) for kink in found] == [(1, 1), (net.depth + 1, 1)]


def test_huber_losses_are_certified_off_their_corners():
    theta, data = at_kink()
    theta = settle(theta, data, HuberLoss(1.5)).theta
    found = certify_strict(theta, data, HuberLoss(1.5))
    assert found.holds
    for near in corners(theta, found.radius * BELOW, 40):
        assert theta.net.risk(near, data, HuberLoss(1.5)) >= found.risk[0] * (1 - 1e-14)


def test_points_on_a_device_have_the_certificate_of_the_host():
    theta, data = at_kink()
    there = theta.to(strict_device)
    assert isinstance(there.vector, strict_device.ndarray)
    assert certify_strict(there, data, SQUARED) == certify_strict(theta, data, SQUARED)
    single = moved(theta, 1e-9 * np.ones(4)).to(strict_device, np.float32)
    assert certify_strict(single, data, SQUARED).holds
    assert certify(there, data, SQUARED).kind == "strict"


# How firm a minimum is


def test_the_least_eigenvalue_and_the_room_of_a_multiplier_are_below_those_by_hand():
    """With w, b, c free and a = 1: R_0 has residuals r_i = x_i w + b + c - y_i for x_i > 0, where
    the tangent space of the kink at x = 0 is b = 0; and lambda = 1 / 6, C = 2 / 6.
    """
    theta, data = at_kink()
    active, N = data.x[:, 0, 0] > 0, len(data)
    J = np.stack([np.where(active, data.x[:, 0, 0], 0), np.ones(N)])  # in w and c
    at_once = np.linalg.eigvalsh(J @ J.T / N)[0]
    found = certify_strict(theta, data, SQUARED)
    assert found.frozen == 1
    assert 0.3 * at_once < found.eigenvalue <= at_once
    assert 0.5 - 1e-9 < found.inside <= 0.5
    assert f"least eigenvalue at least {round_down(found.eigenvalue)}" in str(found)
    assert f"inside their bounds by a share of {round_down(found.inside)}" in str(found)


def test_the_least_eigenvalue_is_below_that_of_fifty_digits():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 1, 2))
    y = np.tanh(x[:, 0, :1] - 0.5) + 0.3 * rng.normal(size=(40, 1))
    data, net = TrainingSet(x, y), Network((1, 2), (Dense(1), Dense(1)), Tanh())
    theta = settle(kaiming_start(net, seed=1), data, SQUARED, seconds=2).theta
    found = certify_strict(theta, data, SQUARED)
    assert found.free == 5
    with mpmath.workdps(50):
        w1, w2, b, a, c = map(mpmath.mpf, theta.vector.tolist())
        H = mpmath.zeros(5)
        for (x1, x2), [target] in zip(x[:, 0].tolist(), y.tolist(), strict=True):
            s = mpmath.tanh(w1 * x1 + w2 * x2 + b)
            d, bend, read = 1 - s**2, -2 * s * (1 - s**2), [x1, x2, 1]
            J = mpmath.matrix([a * d * x1, a * d * x2, a * d, s, 1])
            r = a * s + c - target
            H += J * J.T / 40
            for i in range(3):
                for j in range(3):
                    H[i, j] += r * a * bend * read[i] * read[j] / 40
                H[i, 3] += r * d * read[i] / 40
                H[3, i] += r * d * read[i] / 40
        least = min(mpmath.eigsy(H, eigvals_only=True))
    assert float(least) * 0.999 < found.eigenvalue <= float(least) * (1 + 1e-9)


# What is missing


def test_without_its_kink_the_point_is_refused():
    theta, data = at_kink()
    assert not certify_strict(theta, data, SQUARED, kinks=()).holds


@pytest.mark.parametrize("target", [2.0, 0.0])
def test_a_multiplier_outside_its_bounds_is_refused(target):
    theta, data = at_kink()
    y = data.y.copy()
    y[2] = target
    data = TrainingSet(data.x, y)
    found = certify_strict(theta, data, SQUARED, near_kinks(theta, data, SQUARED, 1e-9))
    assert not found.holds and found.kinks == 1
    assert "multiplier" in found.obstacle


def test_each_coordinate_has_a_radius_of_its_own_with_the_exact_minimum_inside():
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, size=(20, 1, 2)) * np.array([256.0, 2**-8])
    data = TrainingSet(x, rng.integers(-9, 10, size=(20, 1)).astype(float))
    A = np.column_stack([x[:, 0], np.ones(20)])
    net, fit = Network((1, 2), (Dense(1),)), np.linalg.lstsq(A, data.y[:, 0], rcond=None)[0]
    proved = exists(find_stationary(Parameters(net, fit), data, SQUARED, [], True))
    exact_A, exact_y = np.vectorize(Fraction)(A), np.vectorize(Fraction)(data.y[:, 0])
    off = np.vectorize(Fraction)(proved.at.theta.vector)
    values = solved(exact_A.T @ exact_A, exact_A.T @ exact_y)
    assert all(abs(off - values) <= np.vectorize(Fraction)(proved.free_radius))
    assert proved.free_radius[0] < 0.1 * proved.free_radius[1]


def test_moved_multipliers_have_no_stationary_point_near():
    theta, data = at_kink()
    found = find_stationary(theta, data, SQUARED, near_kinks(theta, data, SQUARED, 1e-9), True)
    assert not isinstance(exists(found), str)
    off = exists(replace_multipliers(found, 1e-3))
    assert isinstance(off, str) or off.multiplier_radius.max() > 1e-3


def replace_multipliers(found, d):
    return found._replace(multipliers=found.multipliers + d)


def test_members_of_a_kink_that_are_different_functions_are_refused():
    theta, data = at_kink(repeats=2)
    [kink] = near_kinks(theta, data, SQUARED, 1e-9)
    assert certify_strict(theta, data, SQUARED, [kink]).holds
    wrong = replace(kink, units=np.zeros(3, int), samples=np.array([*kink.samples, 6]))
    found = certify_strict(theta, data, SQUARED, [wrong])
    assert not found.holds and "not the same function" in found.obstacle
    alone = replace(kink, units=kink.units[:1], samples=kink.samples[:1])
    assert not certify_strict(theta, data, SQUARED, [alone]).holds


def test_a_flat_direction_that_no_symmetry_explains_is_refused():
    """The sum of two inputs is rounded, so it is another input."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 1, 3))
    x[:, 0, 2] = x[:, 0, 0] + x[:, 0, 1]
    data, net = TrainingSet(x, rng.normal(size=(12, 1))), Network((1, 3), (Dense(1),))
    found = certify_strict(settle(kaiming_start(net), data, SQUARED).theta, data, SQUARED)
    assert not found.holds and found.obstacle == "1 flat direction that no symmetry explains"


def test_a_point_too_far_from_its_minimum_is_told_what_ends_the_radius_around_it():
    theta, data = at_kink()
    kinks = near_kinks(theta, data, SQUARED, 1e-9)
    found = certify_strict(moved(theta, [0.2, 0.1, 0, -0.1]), data, SQUARED, kinks)
    assert not found.holds and found.distance == np.inf
    assert found.obstacle.startswith("an exact stationary point is within 0.17, but that")
    assert found.obstacle.endswith("as the Hessian may have an eigenvalue of 0 beyond")


def test_a_saddle_is_refused():
    _, data = at_kink()  # residuals that sum to 0 at the constant 1, but not times x
    net = Network((1, 1), (Dense(1), Dense(1)), Tanh())
    theta = Parameters(net, np.array([0.0, 0.5, 0.0, 1.0]))
    assert abs(net.gradient(theta, data, SQUARED).vector).max() < 1e-16
    found = certify_strict(theta, data, SQUARED)
    assert not found.holds and "an eigenvalue of the Hessian is -" in found.obstacle


def test_other_networks_are_refused_in_words():
    theta, data = at_kink()
    steep = Parameters(Network((1, 1), theta.net.layers, ReLU(2.0)), theta.vector)
    with pytest.raises(ValueError, match="strict certificate: expected an activation"):
        certify_strict(steep, data, SQUARED)
    large = Network((1, 2), (Dense(1000), Dense(1)))
    data = TrainingSet(np.zeros((1, 1, 2)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="strict certificate: expected 1 to 3,000 parameters, got"):
        certify_strict(large.zeros(), data, SQUARED)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_numbers_too_large_for_derivatives_leave_it_undecided_and_no_direction_is_found():
    net = Network((1, 4), (Dense(3), Dense(2)))
    theta, rng = kaiming_start(net), np.random.default_rng(0)
    data = TrainingSet(1e200 * rng.normal(size=(9, 1, 4)), rng.normal(size=(9, 2)))
    found = certify_strict(theta, data, SQUARED)
    assert found.words == "not certified, derivatives are too large for floating-point numbers"
    assert not certify(theta, data, SQUARED).proves
    with pytest.raises(ValueError, match=r"^descent direction: expected finite numbers"):
        find_descent_direction(theta, data, SQUARED)


def test_certify_tries_the_strict_certificate_where_others_fail():
    theta, data = at_kink()
    found = certify(theta, data, SQUARED)
    assert found.kind == "strict" and found.holds
    assert "certified strict local minimum at 1 kink" in found.words
    assert found.as_dict()["kind"] == "strict"
    assert found.verdict(0.1, 1e-15) == "spurious local minimum"
    assert "R(theta*) is between" in str(found)
    assert replace(found, holds=False, obstacle="so it is").words == "not certified, so it is"


def test_a_proof_that_fails_far_from_any_point_warns_of_nothing():
    """GELU is so flat where two of three samples are met that what a step may be overflows."""
    net = Network((1, 1), (Dense(1, activation=GELU()),))
    theta = Parameters(net, np.array([-2.087572643121998, -1.6562773443735481]))
    x = np.array([-6.218857005976163, 1.8896841395595398, 6.536130014972614])[:, None, None]
    y = net.forward(theta, x).reshape(-1, 1) + np.array([[0.0], [0.0], [-1.1141666334334677]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certify_strict(theta, TrainingSet(x, y), AbsoluteLoss())
    assert not found.holds and "no exact stationary point was shown" in found.obstacle
