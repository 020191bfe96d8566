"""Within the proved radius no attack finds a lower point; judged with 1,000 bits."""

import numpy as np
import pytest
from exact_attacks import arb, attack
from strict_problems import at_kink, noisy_teacher

from tinyspur.certificates.stationary import near_kinks
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.members import move_along
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual, Scale

ATTACKS = 12
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


@pytest.mark.parametrize("case", CASES)
def test_attacks_find_nothing_lower(case):
    found, data, loss = settled(case)
    assert found.holds
    check_attacks(found, data, loss)


LAYERS = {  # and the seeds of data and start
    "scale": ((1, 4), [Conv(2, bias=False), Scale(), AveragePool(4), Dense(1)], 0),
    "activation after an average pooling": (
        (1, 4),
        [Conv(2, activation=Identity()), AveragePool(2, activation=ReLU()), Dense(1)],
        1,
    ),
    "activation after a max pooling": (
        (1, 4),
        [Conv(2, activation=Identity()), MaxPool(2, activation=ReLU()), Dense(1)],
        1,
    ),
    "activation last": ((1, 2), [Dense(3), Dense(1, activation=ReLU(0.1))], 0),
    "linear layer": ((1, 3), [Dense(2, activation=Identity()), Dense(2), Dense(1)], 0),
    "overlapping windows": ((1, 5), [Conv(1), MaxPool(2, 1), Dense(1)], 1),
    "groups": (
        (2, 7),
        [
            Conv(2, 3, stride=2, padding=1, groups=2, bias=False),
            Conv(2, 2, padding="valid", dilation=2),
            Dense(1),
        ],
        1,
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_attacks_find_nothing_lower_in_networks_of_other_layers(case):
    shape, layers, seed = LAYERS[case]
    net = Network(shape, layers)
    data, loss = noisy_teacher(net, 60, seed), SquaredLoss()
    found = settle(kaiming_start(net, seed), data, loss)
    assert found.holds and found.kinks
    check_attacks(found, data, loss, 8)


NEAR = {  # a network and its slope, the seed of its data, and a point that is near a minimum
    "residual": (
        ((1, 2), [Dense(2), Residual([Dense(2), Dense(2)]), Dense(2)], ReLU(0.1)),
        2,
        """0.27 -0.40 -1.14 -3.31 0.24 2.65 1.29 1.62 -1.06 0.37 -0.10 -0.38 0.22 -1.00 -0.47 -0.63
        -0.94 0.93 -1.16 2.38 1.01 2.89 -3.01 -3.61""",
    ),
    "residual, with a stride and a shortcut": (
        (
            (1, 4),
            [Conv(1), Residual([Conv(2, 3, 2), Conv(1, 1)], [Conv(1, 1, 2)]), Dense(1)],
            ReLU(0.1),
        ),
        0,
        """0.45 -2.78 0.98 -0.64 -1.92 -0.94 -1.25 2.45 2.46 0.48 -0.60 -1.41 -3.20 -1.99 -0.24
        -0.70 -0.24 -2.08 -1.88 1.70""",
    ),
    "as LeNet": (
        (
            (1, 6, 6),
            [Conv(1, 3, padding="valid"), MaxPool(2), Conv(2, 2, padding="valid"), Dense(1)],
            ReLU(),
        ),
        2,
        """0.54 1.77 0.79 -0.86 -0.45 0.68 -0.02 0.99 -1.53 0.05 1.16 1.02 -0.88 -0.11 -0.56 -0.59
        0.12 0.45 1.51 -0.15 -0.70 -0.70 1.28""",
    ),
}


@pytest.mark.parametrize("case", NEAR)
def test_residual_networks_and_lenets_settle_at_kinks_and_attacks_find_nothing_lower(case):
    network, seed, numbers = NEAR[case]
    net = Network(*network)
    data, loss = noisy_teacher(net, 150 if case == "as LeNet" else 80, seed), SquaredLoss()
    start = Parameters(net, np.array(numbers.split(), dtype=float))
    found = settle(start, data, loss)
    assert found.holds and found.kinks and found.family.kinds["scaling"] >= 3
    check_attacks(found, data, loss, 8)


def check_attacks(found, data, loss, count=ATTACKS):
    """Check that no attack finds a lower point, and that the risk is in its interval."""
    lowest, risk = attack(found.theta, found.kinks, data, loss, found.radius, count)
    assert lowest > -1e-22
    low, high = found.risk_interval
    assert arb(low) <= risk <= arb(high)


def test_attacks_find_nothing_lower_around_other_members_of_a_family():
    found, data, loss = settled("cross-entropy")
    member = move_along(found, data, loss, distance=3)
    assert member.moved > 1
    radius = member.certificate.radius
    assert attack(member.theta, member.kinks, data, loss, radius, ATTACKS)[0] > -1e-22


def test_attacks_find_what_is_lower_where_a_multiplier_is_beyond_its_bound():
    """At the kink the residual is 0.9, 6 C = 0.9 < 6 lambda = 1: R falls as the bias grows."""
    theta, data = at_kink()
    e = np.array([0.1, 0, 0.9, -1, -1, 1])[:, None]
    data = TrainingSet(data.x, np.maximum(data.x[:, 0], 0) - e)
    kinks = near_kinks(theta, data, SquaredLoss(), 1e-9)
    assert not certify_strict(theta, data, SquaredLoss(), kinks).holds
    assert attack(theta, kinks, data, SquaredLoss(), 1e-3, ATTACKS)[0] < -1e-6
