"""Rounding errors are no larger than their estimates, which follow the activation."""

import numpy as np
import pytest
from rounding_problems import dense, parameters, samples, shaken
from shared import SMOOTH

from tinyspur.certificates.rounding import ROUNDING, output_rounding, preactivation_rounding
from tinyspur.engine.activations import ReLU
from tinyspur.engine.passes import steps


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
