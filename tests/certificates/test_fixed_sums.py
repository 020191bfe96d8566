"""The squared loss of targets with one sum: one output less, and what is proved of all of them."""

from fractions import Fraction

import numpy as np
import pytest
from exact_attacks import ExactRisk
from strict_problems import corners

from tinyspur.certificates.families import Family
from tinyspur.certificates.fixed_sums import fixed_sum
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import AbsoluteLoss, FixedSumLoss, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.members import move_along
from tinyspur.fitting.settle import settle
from tinyspur.layers import Conv, Dense

SQUARED = SquaredLoss()


def problem(classes=3, seed=0, samples=60, widths=(4,)):
    """Return a random point and the data of a classification."""
    rng = np.random.default_rng(seed)
    net = Network((1, 2, 2), (*map(Dense, widths), Dense(classes)), ReLU(0.1))
    x, labels = rng.normal(size=(samples, 1, 2, 2)), rng.integers(classes, size=samples)
    return Parameters(net, rng.normal(size=net.size)), TrainingSet(x, one_hot(labels, classes))


def test_the_risk_is_that_without_the_last_output_and_the_squared_sum_of_residuals():
    for classes, widths in ((2, (4,)), (3, (3, 4)), (5, (4,))):
        theta, data = problem(classes, widths=widths)
        fewer = fixed_sum(theta, data, SQUARED)
        off = theta.net.forward(theta, data.x).sum(axis=1) - 1
        lifted = fewer.lifted(fewer.theta)
        assert lifted.net.forward(lifted, data.x).sum(axis=1) == pytest.approx(1, abs=1e-13)
        risk = fewer.theta.net.risk(fewer.theta, fewer.data, fewer.loss)
        assert risk == pytest.approx(theta.net.risk(lifted, data, SQUARED), rel=1e-13)
        projected = theta.copy()
        W, b = (part[theta.net.depth] for part in (projected.W, projected.b))
        W = W.weights
        W -= W.sum(axis=0) / classes
        b -= (b.sum() - 1) / classes
        apart = (off**2).sum() / (2 * classes * len(data))
        total = theta.net.risk(projected, data, SQUARED) + apart
        assert total == pytest.approx(theta.net.risk(theta, data, SQUARED), rel=1e-13)


def test_gradient_and_hessian_are_those_of_the_risk_with_the_last_output_in_its_place():
    theta, data = problem()
    fewer = fixed_sum(theta, data, SQUARED)
    net, rng = fewer.theta.net, np.random.default_rng(1)
    d = Parameters(net, rng.normal(size=net.size))
    gradient = net.gradient(fewer.theta, fewer.data, fewer.loss).vector

    def risk(t):
        point = fewer.lifted(Parameters(net, fewer.theta.vector + t * d.vector))
        return theta.net.risk(point, data, SQUARED)

    h = 1e-4
    slope = (risk(h) - risk(-h)) / (2 * h)
    bend = (risk(h) - 2 * risk(0) + risk(-h)) / h**2
    assert gradient @ d.vector == pytest.approx(slope, rel=1e-6)
    product = net.hessian_product(fewer.theta, d, fewer.data, fewer.loss).vector
    assert product @ d.vector == pytest.approx(bend, rel=1e-5)


def test_it_is_for_targets_of_exactly_one_sum_and_a_plain_last_layer_alone():
    theta, data = problem()
    net = theta.net
    assert fixed_sum(theta, data, SQUARED).total == 1
    smoothed = TrainingSet(data.x, one_hot(data.y.argmax(axis=1), smoothing=0.1))
    total = sum(map(Fraction, smoothed.y[0].tolist()))
    assert fixed_sum(theta, smoothed, SQUARED).total == total
    other = data.y.copy()
    other[7, 1] += np.spacing(1.0)
    assert fixed_sum(theta, TrainingSet(data.x, other), SQUARED) is None
    assert fixed_sum(theta, data, AbsoluteLoss()) is None
    assert fixed_sum(theta, data, FixedSumLoss()) is None
    for last in (Dense(3, bias=False), Dense(3, activation=ReLU()), Conv(3, 2, padding="valid")):
        some = Network(net.input_shape, (Conv(2, 3), last))
        assert fixed_sum(some.zeros(), data, SQUARED) is None
    assert fixed_sum(Network((1, 2, 2), (Dense(1),)).zeros(), data_of_one(data), SQUARED) is None


def data_of_one(data):
    return TrainingSet(data.x, np.ones(len(data)))


@pytest.fixture(scope="module")
def classified():
    """Return the minimum that a network of two classes settles at, and its data.

    Its outputs read all units with opposite weights, so units are exchanged as if one read them.
    """
    rng = np.random.default_rng(3)
    net = Network((1, 3), (Dense(4), Dense(2)), ReLU(0.1))
    x = rng.normal(size=(40, 1, 3))
    labels = (x[:, 0, 0] + 0.8 * rng.normal(size=40) > 0).astype(int)
    data = TrainingSet(x, one_hot(labels, 2))
    theta = Parameters(net, rng.normal(size=net.size))
    theta.b[1][:3] += 30  # three units that are always active
    return settle(theta, data, SQUARED), data


def test_a_network_with_more_linear_units_than_its_outputs_need_is_settled_and_proved(classified):
    found, data = classified
    assert found.holds, found
    net = found.theta.net
    W, b = found.theta.W[2].weights, found.theta.b[2]
    assert abs(W.sum(axis=0)).max() < 1e-14 and abs(b.sum() - 1) < 1e-14
    certificate = found.certificate
    parts = certificate.free, certificate.frozen, certificate.idle, certificate.follow
    assert sum(parts) == net.size and certificate.follow == 5
    assert certificate.risk[0] <= net.risk(found.theta, data, SQUARED) + 1e-15
    assert "5 of the last output follow" in str(certificate)


def test_no_point_within_the_radius_is_lower_in_exact_arithmetic(classified):
    found, data = classified
    risk = ExactRisk(found.theta.net, data, SQUARED)
    at = risk(found.theta)
    lowest = min(risk(near) for near in corners(found.theta, found.radius, 60))
    assert float(lowest - at) > -1e-25 and found.distance < 1e-12


def test_members_of_the_family_have_outputs_of_the_same_sum(classified):
    found, data = classified
    other = move_along(found, data, SQUARED, distance=0.5)
    assert other.certificate.holds and other.moved > 1e-3 and other.change < 1e-12
    sums = other.theta.net.forward(other.theta, data.x).sum(axis=1)
    assert sums == pytest.approx(1, abs=1e-12)


def test_a_point_whose_outputs_sum_to_something_else_is_not_certified(classified):
    found, data = classified
    for n in (-1, found.theta.net.slots[2].weights.stop - 1):  # a bias, and a weight
        theta = found.theta.copy()
        theta.vector[n] += 1e-3
        certificate = certify_strict(theta, data, SQUARED, found.kinks)
        assert not certificate.holds and "do not sum to what the targets do" in certificate.obstacle
    theta = found.theta.copy()
    theta.b[2][-1] = found.theta.b[2][-1] + found.radius / 4
    certificate = certify_strict(theta, data, SQUARED, found.kinks)
    assert certificate.holds and certificate.distance >= found.radius / 4
    assert certificate.radius < found.radius


def test_nothing_may_be_added_to_all_outputs_only_where_features_stay_independent(classified):
    found, data = classified
    fewer = fixed_sum(found.theta, data, SQUARED)
    own = certify_strict(fewer.theta, fewer.data, SQUARED, found.kinks).family
    family = fewer.lifted_family(own)
    assert fewer.whole_family(family, found.kinks, data, 1e-9) is not None
    assert fewer.whole_family(family, found.kinks, data, 1.0) is None  # patterns may change
    x = np.linspace(-1, 1, 9)[:, None, None]
    data = TrainingSet(x, one_hot(np.arange(9) % 2, 2))
    theta = Parameters(Network((1, 1), (Dense(1), Dense(2))), [0.5, 9, 1, -1, 0, 1])
    fewer = fixed_sum(theta, data, SQUARED)
    for distance, known in ((0.05, True), (0.6, False)):  # with the weight 0 it is constant
        assert (fewer.whole_family(Family({}), [], data, distance) is not None) == known


def test_weights_that_read_only_zeros_stay_as_they_are():
    theta, data = problem(2, widths=(3,))
    theta = Parameters(Network((1, 2, 2), (Dense(3), Dense(2))), theta.vector)
    theta.b[1][1] = -100
    found = settle(theta, data, SQUARED)
    assert (found.theta.W[2].weights[:, 1] == theta.W[2].weights[:, 1]).all()
    assert found.theta.W[2].weights[:, 1].sum() != 0
    assert found.holds and found.distance < 1e-10
    dead = (~found.theta.net.patterns(found.theta, data.x)[1].any(axis=0)).sum()
    assert dead and found.certificate.idle == 7 * dead  # five weights and biases, and two above


def test_the_family_has_what_may_be_added_to_all_outputs():
    """Outputs of two linear functions have four numbers, whatever the parameters are."""
    rng = np.random.default_rng(0)
    net, x = Network((1, 1), (Dense(3), Dense(2)), ReLU(0.1)), rng.normal(size=(30, 1, 1))
    labels = (x[:, 0, 0] + rng.normal(size=30) > 0).astype(int)
    theta, data = Parameters(net, rng.normal(size=net.size)), TrainingSet(x, one_hot(labels, 2))
    theta.b[1][:] += 10
    found = settle(theta, data, SQUARED)
    certificate = found.certificate
    assert found.holds and certificate.family.dimension == net.size - 4
    parts = certificate.free, certificate.frozen, certificate.idle, certificate.follow
    assert parts == (2, net.size - 4, 0, 2)
    slopes, biases = found.theta.W[1].weights[:, 0], found.theta.b[1]
    n = np.cross(slopes, biases)  # n h is 0
    theta = found.theta.copy()
    theta.W[2].weights[:] += n / abs(n).max()
    other = certify_strict(theta, data, SQUARED)
    assert other.holds and other.family.dimension == net.size - 4


def test_the_search_starts_where_the_risk_is_no_higher():
    theta, data = problem(3)
    fewer = fixed_sum(theta, data, SQUARED)
    projected = fewer.projected()
    before = theta.net.risk(theta, data, SQUARED)
    after = fewer.theta.net.risk(projected, fewer.data, fewer.loss)
    apart = ((theta.net.forward(theta, data.x).sum(axis=1) - 1) ** 2).mean() / (2 * 3)
    assert after == pytest.approx(before - apart, rel=1e-12)


def test_what_is_added_to_all_outputs_is_taken_off_before_the_search(classified):
    found, data = classified
    theta = found.theta.copy()
    theta.W[2].weights[:] += np.random.default_rng(0).normal(size=4)
    again = settle(theta, data, SQUARED)
    assert again.holds and again.theta.vector == pytest.approx(found.theta.vector, abs=1e-9)
