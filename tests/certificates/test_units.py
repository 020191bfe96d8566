"""A minimum is proved in any units of the data, the inputs and the network's own units."""

import numpy as np
import pytest
from settled_points import SETTLED
from shared import in_turn
from strict_problems import SQUARED, noisy_teacher

from tinyspur.certificates.sizes import balance, parameter_sizes
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Tanh
from tinyspur.engine.held_steps import steps
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import Dense

NET = Network((1, 3), (Dense(3), Dense(1)))
ALL, FIRST = np.ones(3), np.array([1.0, 0, 0])


@pytest.fixture(scope="module")
def minimum():
    data = noisy_teacher(NET, 60, 2)
    found = settle(kaiming_start(NET, 2), data, SQUARED)
    assert found.holds and len(found.kinks) == 2
    return found.theta, data


def in_units(minimum, inputs=(1, 1, 1), units=(1, 1, 1), outputs=1):
    """Return the same point and data with inputs, hidden units and outputs times these factors."""
    theta, data = minimum
    inputs, units = (np.array(part, dtype=float) for part in (inputs, units))
    W = theta.W[1].weights * units[:, None] / inputs
    A = theta.W[2].weights * outputs / units
    parts = [W, theta.b[1] * units, A, theta.b[2] * outputs]
    vector = np.concatenate([part.ravel() for part in parts])
    return Parameters(NET, vector), TrainingSet(data.x * inputs, data.y * outputs)


def sizes_of(theta, data):
    return parameter_sizes(theta, steps(theta, data.x[:, 0].T))


@in_turn(
    pytest.mark.parametrize("power", [-60, -30, 30, 60]),
    pytest.mark.parametrize(
        "which",
        [{"inputs": ALL}, {"inputs": FIRST}, {"outputs": 1}, {"units": FIRST}, {"units": ALL}],
        ids=["all inputs", "one input", "outputs", "one unit", "all units"],
    ),
)
def test_a_minimum_is_proved_in_any_units(minimum, which, power):
    theta, data = in_units(minimum, **{key: 2.0 ** (power * value) for key, value in which.items()})
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and (found.kinks, found.free, found.frozen) == (2, 13, 3)
    assert found.radius > 0 and found.eigenvalue > 0


def test_a_minimum_of_two_hidden_layers_is_proved_in_any_units():
    net = Network((1, 2), (Dense(3), Dense(2), Dense(1)))
    data = noisy_teacher(net, 20, 1)
    point = Parameters(net, SETTLED["two hidden layers"])
    found = certify_strict(point, data, SQUARED)
    assert found.holds and found.kinks
    for factor in (2.0**-40, 2.0**40):
        theta = point.copy()
        theta.W[1].weights, theta.b[1] = theta.W[1].weights * factor, theta.b[1] * factor
        theta.W[2].weights = theta.W[2].weights / factor
        again = certify_strict(theta, data, SQUARED)
        assert again.holds and again.kinks == found.kinks
        assert again.free == found.free


def test_smooth_networks_are_proved_in_any_units_of_inputs_and_outputs():
    net = Network((1, 2), (Dense(2), Dense(1)), Tanh())
    data = noisy_teacher(net, 20, 0)
    theta = Parameters(net, SETTLED["smooth"])
    found, factor = certify_strict(theta, data, SQUARED), 2.0**30
    theta.W[1].weights = theta.W[1].weights / factor
    theta.W[2].weights, theta.b[2] = theta.W[2].weights / factor, theta.b[2] / factor
    data = TrainingSet(data.x * factor, data.y / factor)
    with np.errstate(invalid="raise", divide="raise"):
        again = certify_strict(theta, data, SQUARED)
    assert found.holds and again.holds and again.free == found.free


def test_flat_directions_are_counted_in_any_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 1, 3))
    x[:, 0, 2] = x[:, 0, 0] + x[:, 0, 1]
    net, y = Network((1, 3), (Dense(1),)), rng.normal(size=(12, 1))
    start = settle(kaiming_start(net), TrainingSet(x, y), SQUARED).theta
    for power in (0, 30):
        factors = np.array([2.0**power, 1, 1])
        theta = Parameters(net, start.vector / np.append(factors, 1))
        found = certify_strict(theta, TrainingSet(x * factors, y), SQUARED)
        assert not found.holds and found.obstacle == "1 flat direction that no symmetry explains"


def test_sizes_move_along_with_the_units(minimum):
    before, unscaled = sizes_of(*minimum), in_units(minimum)[0]
    assert (unscaled.vector == minimum[0].vector).all()
    inputs, units, outputs = [2.0**20, 1, 2.0**-9], [1, 2.0**40, 2.0**-3], 2.0**7
    after = sizes_of(*in_units(minimum, inputs, units, outputs))
    assert (after.W[1].weights == before.W[1].weights * np.array(units)[:, None] / inputs).all()
    assert (after.b[1] == before.b[1] * units).all()
    assert (after.W[2].weights == before.W[2].weights * outputs / units).all()


def test_a_balanced_matrix_has_rows_of_about_one():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(9, 9))
    powers = 2.0 ** rng.integers(-30, 31, 9)
    A = (A + A.T) * powers * powers[:, None]
    A[4] = A[:, 4] = 0
    d = balance(A)
    assert d[4] == 1 and (np.frexp(d)[0] == 0.5).all()
    rows = abs(A * d * d[:, None]).max(axis=1)
    assert ((rows > 0.25) & (rows < 4) | (np.arange(9) == 4)).all()
