"""Rounding errors are no larger than their estimates, which follow the activation."""

import numpy as np
import pytest
from shared import SMOOTH

from tinyspur.certificates.rounding import ROUNDING, output_rounding, preactivation_rounding
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import steps
from tinyspur.layers import Dense
from tinyspur.refutations.expansion import expand_risk, through_smooth

over_smooth = pytest.mark.parametrize("sigma", SMOOTH, ids=repr)
LARGE = 1e4


def dense(sigma):
    return Network((1, 1, 8), [Dense(6), Dense(5), Dense(2)], sigma)


def parameters(net, rng, cancel):
    """Return random parameters; with `cancel` large terms of z^1 cancel near x = (1, ..., 1)."""
    theta = Parameters(net, rng.normal(size=net.size))
    if cancel:
        theta.W[1].weights[...] *= LARGE
        theta.b[1][:] -= theta.W[1].weights.sum(axis=1)
    return theta


def samples(rng):
    x = 1 + rng.normal(size=(20, 1, 1, 8)) / LARGE
    return TrainingSet(x, rng.normal(size=(20, 2)))


def shaken(theta, rng):
    """Return theta with every number changed in its last place."""
    ends = rng.choice([-np.inf, np.inf], theta.net.size)
    return Parameters(theta.net, np.nextafter(theta.vector, ends))


@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.3), *SMOOTH], ids=repr)
@pytest.mark.parametrize("cancel", [False, True])
def test_outputs_are_off_by_no_more_than_the_estimate(sigma, cancel):
    rng = np.random.default_rng(0)
    theta, x = parameters(dense(sigma), rng, cancel), samples(rng).x
    estimate, off = output_rounding(theta, x), np.zeros((2, 20))
    for _ in range(20):
        near = shaken(theta, rng)
        off = np.maximum(off, abs(near.net.forward(near, x) - theta.net.forward(theta, x)).T)
    assert (off <= estimate).all()
    assert (off >= 1e-3 * estimate).any()


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_of_relu_it_is_the_error_times_the_slope_to_the_last_bit(slope):
    rng = np.random.default_rng(0)
    theta, x = parameters(dense(ReLU(slope)), rng, True), samples(rng).x
    _, columns = next(theta.net.chunks(theta, x))
    trace, c = list(steps(theta, columns)), ROUNDING * 2.0**-52
    found, reach = preactivation_rounding(abs(theta), trace, np.float64), c * abs(columns)
    for step in trace:
        errors = abs(step.W) @ reach + c * abs(step.b)[:, None]
        assert np.array_equal(found[step.layer - 1], errors)
        reach = np.where(step.z > 0, errors, slope * errors) + c * abs(step.o)


@over_smooth
@pytest.mark.parametrize("cancel", ["neither", "theta", "direction"])
def test_the_risks_expansion_is_off_by_no_more_than_its_estimate(sigma, cancel):
    rng, shares = np.random.default_rng(1), []
    for _ in range(10):
        net, data = dense(sigma), samples(rng)
        theta, d = (parameters(net, rng, cancel == name) for name in ("theta", "direction"))
        found = expand_risk(theta, d, data, SquaredLoss())
        there = expand_risk(shaken(theta, rng), shaken(d, rng), data, SquaredLoss())
        shares += [
            abs(found.first - there.first) / found.first_rounding,
            abs(found.second - there.second) / found.second_rounding,
        ]
    assert 1e-4 < max(shares) < 1


@over_smooth
@pytest.mark.parametrize("term", range(3))
def test_what_a_smooth_activation_makes_of_an_error_is_its_first_order(sigma, term):
    rng, size = np.random.default_rng(0), 1e-6
    z = rng.normal(size=(3, 200))
    z = z[:, abs(z[0]) > 0.01]  # away from the kink of ELU
    errors = [size * (k == term) * np.ones(z.shape[1]) for k in range(3)]
    near = z + np.array(errors)
    found, estimates = through_smooth(sigma, z[0], [sigma(z[0]), *z[1:]], errors)
    there, _ = through_smooth(sigma, near[0], [sigma(near[0]), *near[1:]], errors)
    for k in range(term, 3):
        off = abs(there[k] - found[k])
        assert (off <= 1.001 * estimates[k] + 1e-11).all()
        assert estimates[k].sum() < 3 * off.sum()
