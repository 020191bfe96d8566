"""Rounding errors are never larger than their bounds, and these follow the activation."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from rounding_problems import dense, parameters, samples, shaken
from shared import SMOOTH, in_turn

from tinyspur.certificates.exact import exact_outputs
from tinyspur.certificates.rounding import (
    gamma,
    gradient_rounding,
    output_rounding,
    preactivation_rounding,
    risk_rounding,
)
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import steps
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.3), *SMOOTH], ids=repr)
@pytest.mark.parametrize("cancel", [False, True])
def test_outputs_of_points_next_to_each_other_differ_by_about_the_bound(sigma, cancel):
    rng = np.random.default_rng(0)
    theta, x = parameters(dense(sigma), rng, cancel), samples(rng).x
    bound, off = output_rounding(theta, x), np.zeros((2, 20))
    for _ in range(20):
        near = shaken(theta, rng)
        off = np.maximum(off, abs(near.net.forward(near, x) - theta.net.forward(theta, x)).T)
    assert (off <= bound).all()
    assert (off >= 1e-3 * bound).any()


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_of_relu_it_is_the_error_times_the_slope_where_the_sign_is_known(slope):
    rng = np.random.default_rng(0)
    theta, x = parameters(dense(ReLU(slope)), rng, True), samples(rng).x
    _, columns = next(theta.net.chunks(theta, x))
    trace = list(steps(theta, columns))
    found = preactivation_rounding(abs(theta), trace, np.float64)
    reach = 0 * columns
    for step in trace:
        c = gamma(step.W.shape[1] + 2)
        errors = abs(step.W) @ (reach + c * abs(step.below)) + c * abs(step.b)[:, None]
        assert np.allclose(found[step.layer - 1], errors, rtol=1e-4, atol=0)
        away = abs(step.z) > errors
        assert away.any()
        reach = np.where(step.z > 0, errors, slope * errors) + (step.z < 0) * slope * (
            4 * 2.0**-52 * abs(slope * step.z)
        )
        reach = np.where(away, reach, errors)


NETS = {
    "dense": Network((1, 1, 5), [Dense(4), Dense(3), Dense(2)]),
    "leaky": Network((1, 1, 5), [Dense(4), Dense(3), Dense(2)], ReLU(0.3)),
    "conv": Network((1, 4, 4), [Conv(2), AveragePool(2), Conv(2), MaxPool(2), Dense(2)]),
    "poolings first": Network((1, 4, 4), [AveragePool(2), MaxPool(2), Dense(3), Dense(2)]),
}


def drawn(net, seed):
    """Return a point and inputs whose numbers are of very different sizes, and cancel."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers([-300, -40, -8, 0], [0, 40, 8, 70])[seed % 4]
    spread = 10.0 ** rng.uniform(-6, 6, net.size)
    theta = Parameters(net, rng.normal(size=net.size) * spread)
    theta.W[net.depth].weights[...] *= scale
    theta.b[net.depth][...] *= scale
    x = rng.normal(size=(4, *net.input_shape))
    if seed % 3 == 0:
        o = net.forward(theta, x)
        theta.b[net.depth][...] -= o[0]  # the first sample's outputs cancel
    return theta, x


@in_turn(pytest.mark.parametrize("name", NETS), pytest.mark.parametrize("seed", range(12)), draws=2)
def test_exact_outputs_are_within_the_bound(name, seed):
    theta, x = drawn(NETS[name], seed)
    exact, bound = exact_outputs(theta, x), output_rounding(theta, x).T
    computed = theta.net.forward(theta, x)
    for value, found, limit in zip(exact.flat, computed.flat, bound.flat, strict=True):
        assert abs(value - Fraction(float(found))) <= Fraction(float(limit))


def test_bounds_are_not_absurdly_wide():
    ratios = []
    for seed in range(40):
        theta, x = drawn(NETS["dense"], seed)
        exact, computed = exact_outputs(theta, x), theta.net.forward(theta, x)
        off = [abs(v - Fraction(float(c))) for v, c in zip(exact.flat, computed.flat, strict=True)]
        bound = output_rounding(theta, x).T
        ratios += [b / float(v) for b, v in zip(bound.flat, off, strict=True) if v]
    assert np.median(ratios) < 50


def exact_loss(loss, o, y):
    """Return the mean loss of exact outputs (N, d_y), in 60 digits."""
    total = mpmath.mpf(0)
    for outputs, targets in zip(o, y, strict=True):
        o_k = [mpmath.mpf(v.numerator) / v.denominator for v in outputs]
        r = [a - mpmath.mpf(float(b)) for a, b in zip(o_k, targets, strict=True)]
        if isinstance(loss, SquaredLoss):
            total += sum(v * v for v in r) / 2
        elif isinstance(loss, AbsoluteLoss):
            total += sum(abs(v) for v in r)
        elif isinstance(loss, HuberLoss):
            total += sum(
                v * v / 2 if abs(v) <= loss.delta else loss.delta * (abs(v) - loss.delta / 2)
                for v in r
            )
        else:
            top = max(o_k)
            lse = mpmath.log(sum(mpmath.exp(v - top) for v in o_k)) + top
            total += sum(
                mpmath.mpf(float(b)) * (lse - a) for a, b in zip(o_k, targets, strict=True)
            )
    return total / len(o)


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), HuberLoss(0.5)])
@pytest.mark.parametrize("seed", range(8))
def test_exact_risks_are_within_the_bound(loss, seed):
    theta, x = drawn(NETS["dense"], seed)
    y = np.random.default_rng(seed).dirichlet(np.ones(2), len(x))
    data = TrainingSet(x, y)
    with mpmath.workdps(60):
        exact = exact_loss(loss, exact_outputs(theta, x), y)
        off = abs(exact - mpmath.mpf(theta.net.risk(theta, data, loss)))
        bound = risk_rounding(theta, data, loss)
    assert off <= bound
    assert bound < 1e-6 * abs(exact) or abs(exact) < 1e-6 or bound < np.inf


@pytest.mark.parametrize("height", [1e-3, 1.0, 30.0, 700.0, 800.0, 1e4])
def test_gradients_of_the_cross_entropy_are_within_the_bound(height):
    rng = np.random.default_rng(0)
    o = height * rng.normal(size=(3, 50))
    y = np.eye(3)[rng.integers(3, size=50)].T
    bound = gradient_rounding(CrossEntropy(), o, y, np.zeros_like(o))
    found = CrossEntropy().gradient(o, y)
    with mpmath.workdps(60):
        for i in range(50):
            powers = [mpmath.exp(mpmath.mpf(v)) for v in o[:, i]]
            for k in range(3):
                exact = powers[k] / sum(powers) - mpmath.mpf(y[k, i])
                assert abs(exact - mpmath.mpf(found[k, i])) <= bound[k, i]
    assert bound.max() < 1e-10


def test_errors_that_lift_a_probability_out_of_underflow_count():
    o, y = np.array([[0.0], [-790.0], [-3e5]]), np.array([[1.0], [0.0], [0.0]])
    for error, least in ((100.0, -690.0), (5e5, 0.0)):
        errors = np.array([[0.0], [error], [error]])
        bound = gradient_rounding(CrossEntropy(), o, y, errors)
        off = CrossEntropy().gradient(o + errors, y) - CrossEntropy().gradient(o, y)
        assert (abs(off) <= bound).all()
        assert bound[1, 0] >= 0.4 * np.exp(least)
    far = gradient_rounding(CrossEntropy(), o, y, np.zeros_like(o))
    assert (far < 1e-12).all()


def test_the_bound_of_a_risk_holds_where_outputs_cancel():
    rng, theta = np.random.default_rng(6), Network((1, 1, 1), [Dense(20), Dense(2)]).zeros()
    theta.b[1][...] = 2.0**30 * rng.uniform(1, 2, 20)
    theta.W[2].weights[0] = 2.0**40 * rng.uniform(-2, 2, 20)
    data = TrainingSet(np.zeros((1, 1, 1, 1)), np.array([[0.0, 1.0]]))
    for _ in range(3):
        theta.b[2][0] -= theta.net.forward(theta, data.x)[0, 0] + 2.0**19
    first, second = exact_outputs(theta, data.x)[0]
    assert theta.net.risk(theta, data, CrossEntropy()) == 0
    assert first - second > 2e4  # a bound of the exact risk from below
    assert risk_rounding(theta, data, CrossEntropy()) >= first - second


def test_of_sums_of_zeros_it_is_0_as_escapes_from_the_kink_need():
    rng, net = np.random.default_rng(0), Network((1, 4, 4), [Conv(2), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    theta.W[1].weights[1] = theta.b[1][...] = 0  # the second map has no weights
    x = rng.normal(size=(3, 1, 4, 4))
    x[0] = x[1, :, :3] = 0  # a blank image, and one whose first two rows read blank places
    _, columns = next(net.chunks(theta, x))
    found = preactivation_rounding(abs(theta), list(steps(theta, columns)), np.float64)[0]
    assert not found[16:].any() and not found[:, 0].any() and not found[:8, 1].any()
    assert found[:16, 2].all()
    theta.W[1].weights[0, 0, 0, 0] = 1e-200
    found = preactivation_rounding(abs(theta), list(steps(theta, columns)), np.float64)[0]
    assert found.all()  # products may underflow
