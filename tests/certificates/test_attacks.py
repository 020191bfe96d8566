"""Within the proved radius no attack finds a lower point; judged with 1,000 bits."""

import numpy as np
import pytest
from exact_attacks import arb, attack
from settled_points import SETTLED
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


def at_case(case):
    """Return the point of a case, its data and its loss."""
    shape, layers, activation, loss, seed = CASES[case]
    net = Network(shape, layers, activation)
    data = noisy_teacher(net, 20, seed, type(loss) is CrossEntropy)
    return Parameters(net, SETTLED[case]), data, loss


@pytest.mark.parametrize("case", CASES)
def test_attacks_find_nothing_lower(case):
    check_attacks(*at_case(case))


LAYERS = {  # and the seeds of their data
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
    theta, data = Parameters(net, SETTLED[case]), noisy_teacher(net, 60, seed)
    assert check_attacks(theta, data, SquaredLoss(), 8).kinks


DEEPER = {  # a network and its slope, and the seed of its data
    "residual": (((1, 2), [Dense(2), Residual([Dense(2), Dense(2)]), Dense(2)], ReLU(0.1)), 2),
    "residual, with a stride and a shortcut": (
        (
            (1, 4),
            [Conv(1), Residual([Conv(2, 3, 2), Conv(1, 1)], [Conv(1, 1, 2)]), Dense(1)],
            ReLU(0.1),
        ),
        0,
    ),
    "as LeNet": (
        (
            (1, 6, 6),
            [Conv(1, 3, padding="valid"), MaxPool(2), Conv(2, 2, padding="valid"), Dense(1)],
            ReLU(),
        ),
        2,
    ),
}


@pytest.mark.parametrize("case", DEEPER)
def test_attacks_find_nothing_lower_at_kinks_of_residual_networks_and_lenets(case):
    network, seed = DEEPER[case]
    net = Network(*network)
    theta, data = (
        Parameters(net, SETTLED[case]),
        noisy_teacher(net, 150 if case == "as LeNet" else 80, seed),
    )
    proved = check_attacks(theta, data, SquaredLoss(), 8)
    assert proved.kinks and proved.family.kinds["scaling"] >= 3


def check_attacks(theta, data, loss, count=ATTACKS):
    """Check that a point is proved and no attack finds a lower one; return the proof."""
    kinks = near_kinks(theta, data, loss, 1e-9)
    proved = certify_strict(theta, data, loss, kinks)
    assert proved.holds
    lowest, risk = attack(theta, kinks, data, loss, proved.radius, count)
    assert lowest > -1e-22
    low, high = proved.risk
    assert arb(low) <= risk <= arb(high)
    return proved


def test_attacks_find_nothing_lower_around_other_members_of_a_family():
    theta, data, loss = at_case("cross-entropy")
    found = settle(theta, data, loss)
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
