"""Within the proved radius no attack finds a lower point; judged with 1,000 bits."""

import numpy as np
import pytest
from exact_attacks import ExactRisk, arb, attacks
from strict_problems import at_kink, noisy_teacher

from tinyspur.certificates.stationary import find_stationary, near_kinks
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.fitting.members import move_along
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

ATTACKS = 30
CASES = {
    "two hidden layers": ((1, 2), [Dense(3), Dense(2), Dense(1)], ReLU(), SquaredLoss(), 1),
    "cross-entropy": ((1, 2), [Dense(2), Dense(2)], ReLU(0.1), CrossEntropy(), 1),
    "absolute loss": ((1, 2), [Dense(3), Dense(1)], ReLU(), AbsoluteLoss(), 4),
    "poolings": ((1, 4, 4), [Conv(2, 3, 2), AveragePool(2), Dense(1)], ReLU(), SquaredLoss(), 0),
    "max pooling": ((1, 2, 2), [Conv(2), MaxPool(2), Dense(1)], ReLU(), SquaredLoss(), 2),
    "smooth": ((1, 2), [Dense(2), Dense(1)], Tanh(), SquaredLoss(), 0),
}


def settled(case):
    shape, layers, activation, loss, seed = CASES[case]
    net = Network(shape, layers, activation)
    data = noisy_teacher(net, 20, seed, type(loss) is CrossEntropy)
    return settle(kaiming_start(net, seed), data, loss), data, loss


def attack(theta, kinks, data, loss, radius):
    """Return the least R - R(theta*) of attacks, and R(theta*).

    That is L at the stationary point in floats, which differs from it at second order.
    """
    at = find_stationary(theta, data, loss, kinks, True)
    risk = ExactRisk(theta.net, data, loss)
    least = risk.held(at.theta, at.held.kinks, at.multipliers)
    tried = [near for _, near in attacks(at, theta, data, loss, radius, ATTACKS)]
    assert len(tried) > 0.9 * ATTACKS
    assert all(abs(near.vector - theta.vector).max() < radius for near in tried)
    return min(float((risk(near) - least).mid()) for near in tried), least


@pytest.mark.parametrize("case", CASES)
def test_attacks_find_nothing_lower(case):
    found, data, loss = settled(case)
    assert found.holds
    lowest, risk = attack(found.theta, found.kinks, data, loss, found.radius)
    assert lowest > -1e-22
    low, high = found.risk_interval
    assert arb(low) <= risk <= arb(high)


def test_attacks_find_nothing_lower_around_other_members_of_a_family():
    found, data, loss = settled("cross-entropy")
    member = move_along(found, data, loss, distance=3)
    assert member.moved > 1
    radius = member.certificate.radius
    assert attack(member.theta, member.kinks, data, loss, radius)[0] > -1e-22


def test_attacks_find_what_is_lower_where_a_multiplier_is_beyond_its_bound():
    """At the kink the residual is 0.9, 6 C = 0.9 < 6 lambda = 1: R falls as the bias grows."""
    theta, data = at_kink()
    e = np.array([0.1, 0, 0.9, -1, -1, 1])[:, None]
    data = TrainingSet(data.x, np.maximum(data.x[:, 0], 0) - e)
    kinks = near_kinks(theta, data, SquaredLoss(), 1e-9)
    assert not certify_strict(theta, data, SquaredLoss(), kinks).holds
    assert attack(theta, kinks, data, SquaredLoss(), 1e-3)[0] < -1e-6
