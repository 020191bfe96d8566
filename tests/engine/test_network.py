"""Networks compute what their PyTorch twins compute, and refuse data that do not fit."""

import re

import numpy as np
import pytest
import torch_twin
from hypothesis import given
from hypothesis import strategies as st
from network_problems import WITH_KINKS, over_networks, problems
from shared import close, twin_of

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ELU, GELU, ReLU, Swish
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


@over_networks
@given(problems())
def test_outputs_are_those_of_pytorch(problem):
    _net, theta, data, _loss = problem
    close(theta.net.forward(theta, data.x), twin_of(theta)(data.x).detach(), 1e-10)


@over_networks
@given(problems())
def test_risks_are_those_of_pytorch(problem):
    net, theta, data, loss = problem
    outputs = twin_of(theta)(data.x).detach()
    expected = float(torch_twin.risk(outputs, data.y, loss.name))
    risk = net.risk(theta, data, loss)
    assert isinstance(risk, float)
    close(risk, expected, 1e-10, rounding=1e-14)
    losses = net.sample_losses(theta, data, loss)
    assert losses.shape == (len(data),)
    for i, value in enumerate(losses):
        one = torch_twin.risk(outputs[i : i + 1], data.y[i : i + 1], loss.name)
        close(value, one, 1e-10, rounding=1e-14)


@over_networks
@given(problems())
def test_gradients_are_those_of_pytorch(problem):
    net, theta, data, loss = problem
    expected = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    risk, gradient = net.risk_and_gradient(theta, data, loss)
    close(risk, net.risk(theta, data, loss), 1e-13)
    found = gradient.arrays()
    assert found.keys() == expected.keys()
    # Some gradients vanish but for rounding: the softmax does not see a shift of all outputs.
    scale = max(1, *(abs(values).max() for values in expected.values()))
    for name in expected:
        close(found[name], expected[name], 1e-10, rounding=1e-14 * scale)
    assert np.array_equal(net.gradient(theta, data, loss).vector, gradient.vector)


@over_networks
@given(problems(WITH_KINKS), st.integers(0, 2**32 - 1))
def test_the_affine_map_gives_the_outputs_as_long_as_the_pattern_stays(problem, seed):
    net, theta, data, _loss = problem
    direction = np.random.default_rng(seed).normal(size=net.input_shape)
    for x in data.x[:2]:
        F = net.affine_map(theta, x)
        assert F.shape == (int(np.prod(net.shapes[-1])), x.size + 1)
        output = net.forward(theta, x[None])[0]
        # Terms that cancel leave the rounding of the largest.
        rounding = 1e-13 * (abs(F) @ np.append(abs(x).ravel(), 1)).max()
        close(F @ np.append(x.ravel(), 1), output, 1e-12, rounding)
        patterns, step = net.patterns(theta, x[None]), 1.0
        for _ in range(60):
            moved = x + step * direction
            there = net.patterns(theta, moved[None])
            if all(np.array_equal(there[layer], patterns[layer]) for layer in patterns):
                break
            step /= 2
        else:
            raise AssertionError("no move keeps the pattern")
        expected = net.forward(theta, moved[None])[0]
        close(F @ np.append(moved.ravel(), 1), expected, 1e-12, rounding * 10)


@pytest.mark.parametrize("sigma", [ReLU(0.1), GELU()], ids=repr)
def test_the_gradient_is_the_slope_of_the_risk(sigma):
    rng = np.random.default_rng(0)
    net = Network((2, 4, 2), [Conv(2), AveragePool(2), Conv(2, 1), Dense(3)], sigma)
    x = rng.normal(size=(3, *net.input_shape))
    for loss, y in (
        (SquaredLoss(), rng.normal(size=(3, 3))),
        (CrossEntropy(), one_hot(np.array([0, 2, 1]), 3, smoothing=0.1)),
    ):
        theta, data = Parameters(net, rng.normal(size=net.size)), TrainingSet(x, y)
        step, slopes = 1e-6, []
        for i in range(net.size):
            risks = []
            for sign in (1, -1):
                moved = theta.copy()
                moved.vector[i] += sign * step
                risks.append(net.risk(moved, data, loss))
            slopes.append((risks[0] - risks[1]) / (2 * step))
        gradient = net.gradient(theta, data, loss).vector
        assert abs(gradient).max() > 0.1
        np.testing.assert_allclose(gradient, slopes, atol=1e-8 * abs(gradient).max())


@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.1), GELU(), ELU(), Swish(1.7)], ids=repr)
def test_single_precision_stays_single(sigma):
    rng = np.random.default_rng(0)
    net = Network(
        (2, 4, 4), [MaxPool(1), Conv(3), AveragePool(2), MaxPool(2), Dense(4), Dense(2)], sigma
    )
    double = Parameters(net, rng.normal(size=net.size))
    theta = Parameters(net, double.vector.astype(np.float32))
    data = TrainingSet(rng.normal(size=(6, 2, 4, 4)), rng.dirichlet(np.ones(2), 6))
    for loss in (SquaredLoss(), CrossEntropy()):
        results = [
            net.forward(theta, data.x),
            net.sample_losses(theta, data, loss),
            net.gradient(theta, data, loss).vector,
            net.hessian_product(theta, theta, data, loss).vector,
            *([net.affine_map(theta, data.x[0])] if sigma.piecewise_linear else []),
            net.zeros(like=theta.vector).vector,
            net.zeros(dtype=np.float32).vector,
        ]
        assert [r.dtype for r in results] == [np.float32] * len(results)
        close(results[0], net.forward(double, data.x), 1e-5)
        close(results[2], net.gradient(double, data, loss).vector, 1e-5)
        close(results[3], net.hessian_product(double, double, data, loss).vector, 1e-5)


def test_whole_number_inputs_are_computed_in_the_precision_of_the_parameters():
    rng = np.random.default_rng(0)
    net = Network((1, 4, 4), [Conv(2), Dense(3)])
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.integers(0, 256, size=(3, 1, 4, 4), dtype=np.uint8)
    assert np.array_equal(net.forward(theta, x), net.forward(theta, x.astype(float)))


# Data


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 1, 4, 4), (3, 2, 4, 5), (3, 32)])
def test_inputs_of_another_shape_are_refused(net, theta, shape):
    x = np.zeros(shape)
    for compute in (net.forward, net.patterns):
        with pytest.raises(ValueError, match=re.escape(f"(N, 2, 4, 4), got {shape}")):
            compute(theta, x)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 4, 5), (32,)])
def test_an_affine_map_is_that_of_one_input(net, theta, shape):
    with pytest.raises(ValueError, match="inputs: expected"):
        net.affine_map(theta, np.zeros(shape))


@pytest.mark.parametrize("width", [1, 3])
def test_targets_of_another_width_are_refused(net, theta, width):
    data = TrainingSet(np.zeros((3, 2, 4, 4)), np.full((3, width), 1 / width))

    def product(theta, data, loss):
        return net.hessian_product(theta, theta, data, loss)

    for compute in (net.risk, net.sample_losses, net.gradient, net.risk_and_gradient, product):
        for loss in (SquaredLoss(), CrossEntropy()):
            with pytest.raises(ValueError, match=rf"\(N, 2\), got \(3, {width}\)"):
                compute(theta, data, loss)


def test_targets_that_are_no_distributions_are_refused_by_the_cross_entropy(net, theta):
    data = TrainingSet(np.zeros((3, 2, 4, 4)), np.array([[1.0, 0.0], [0.5, 0.4], [0.0, 2.0]]))
    for compute in (net.risk, net.gradient):
        with pytest.raises(ValueError, match="sample 1"):
            compute(theta, data, CrossEntropy())
    assert net.risk(theta, data, SquaredLoss()) > 0
