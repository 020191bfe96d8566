"""Curvature below convolutions, poolings and scales: certified minima, and what is refused."""

import numpy as np
import pytest
import torch
from shared import close, in_turn, refuses

from tinyspur import (
    AveragePool,
    Conv,
    Dense,
    Identity,
    Network,
    Sigmoid,
    SquaredLoss,
    Tanh,
    certify_curvature,
    interop,
    smooth_minimum,
)
from tinyspur.certificates.constant_outputs import ConstantOutputs, first_layer, output_hessians
from tinyspur.constructions.smooth import lower_point
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Residual, Scale

SQUARED = SquaredLoss()
KINDS = {
    "a convolution": ((1, 5), [Conv(2), Dense(3), Dense(1)]),
    "two convolutions": ((1, 5), [Conv(2), Conv(3, 2, padding="valid"), Dense(2)]),
    "in two directions": ((1, 2, 3), [Conv(2), Conv(2), Dense(1)]),
    "a stride that leaves an entry out": ((1, 6), [Conv(2, 3, 3), AveragePool(2), Dense(1)]),
    "a unit that nothing reads": ((1, 5), [Conv(2), AveragePool(2), Dense(3), Dense(1)]),
    "a pooling first": (
        (1, 6),
        [AveragePool(3, 1), Conv(2, 2, 2, padding="valid"), Dense(2), Dense(1)],
    ),
    "groups and scales": (
        (2, 3),
        [Conv(4, groups=2, bias=False), Scale(), AveragePool(2, 1), Dense(3), Dense(2)],
    ),
    "a block": (
        (1, 4),
        [Conv(2), Residual([Conv(3), Conv(2)], activation=Identity()), Dense(3), Dense(1)],
    ),
    "a block under an activation": (
        (1, 4),
        [Dense(3), Residual([Dense(4), Dense(3)]), Dense(2)],
    ),
    "a block with a stride": (
        (1, 4),
        [Conv(2), Residual([Conv(3, 3, 2)], [Conv(3, 1, 2)]), Dense(2)],
    ),
    "no biases below a scale": ((1, 4), [Conv(2), Conv(2, bias=False), Scale(), Dense(1)]),
}


def problem(name, sigma):
    shape, layers = KINDS[name]
    net, d = Network(shape, layers, sigma), int(np.prod(shape))
    x = np.random.default_rng(1).normal(size=(d * (d + 3) // 2 + 12, *shape))
    return net, smooth_minimum(net, x)


@in_turn(
    pytest.mark.parametrize("name", KINDS), pytest.mark.parametrize("sigma", [Tanh(), Sigmoid()])
)
def test_the_minimum_is_certified_and_attacks_find_nothing_lower(name, sigma):
    net, found = problem(name, sigma)
    certificate, theta, data = found.certificate, found.theta, found.data
    assert certificate.holds and certificate.bounded and certificate.distance < 1e-12
    assert certificate.risk == pytest.approx(1)
    o = interop.to_torch(theta)(torch.as_tensor(data.x)).detach().numpy()
    assert abs(o).max() < 1e-12  # W^1 = 0: constant
    assert abs(net.forward(theta, data.x) - o).max() < 1e-14
    rng, risk = np.random.default_rng(0), net.risk(theta, data, SQUARED)
    for n in range(20):
        move = rng.normal(size=theta.vector.size) if n % 2 else rng.choice([-1, 1], net.size)
        near = Parameters(net, theta.vector + certificate.radius * move / abs(move).max())
        assert net.risk(near, data, SQUARED) >= risk - certificate.delta - 1e-15


@pytest.mark.parametrize("name", [name for name in KINDS if "block" not in name])
def test_the_hessian_in_z_is_that_of_pytorch(name):
    net, found = problem(name, Tanh())
    theta, first = found.theta, first_layer(net)
    model = interop.to_torch(theta)
    at = ConstantOutputs(theta)
    z = (
        torch.as_tensor(np.repeat(theta.b[first], net.positions(first)))
        if first in theta.b
        else (torch.zeros(int(np.prod(net.shapes[first])), dtype=torch.float64))
    )
    hidden = list(model.children())
    start = next(n for n, part in enumerate(hidden) if getattr(part, "weight", None) is not None)

    def outputs(z):
        o = z.reshape(1, *net.shapes[first])
        for part in hidden[start + 1 :]:
            o = part(o)
        return o.ravel()

    for k, H in enumerate(output_hessians(theta)):
        close(H, torch.autograd.functional.hessian(lambda z, k=k: outputs(z)[k], z).numpy(), 1e-12)
    assert at.read.all() == (name != "a unit that nothing reads")


@pytest.mark.parametrize("name", KINDS)
def test_the_hessian_in_the_first_biases_is_that_of_differences(name):
    """The biases of the first layer move all z^1 of a map: sums of H over its positions."""
    net, found = problem(name, Tanh())
    theta, first, step = found.theta, first_layer(net), 1e-4
    if first not in theta.b:
        return
    of_map = np.kron(np.eye(net.shapes[first][0]), np.ones((1, net.positions(first))))
    x, H = found.data.x[:1], output_hessians(theta)

    def outputs(move):
        near = theta.copy()
        near.b[first][...] += move
        return net.forward(near, x)[0]

    units = np.eye(len(of_map)) * step
    for i, u in enumerate(units):
        for j, v in enumerate(units):
            second = outputs(u + v) - outputs(u - v) - outputs(v - u) + outputs(-u - v)
            expected = np.einsum("a,kab,b->k", of_map[i], H, of_map[j])
            assert abs(second / 4 / step**2 - expected).max() < 1e-5


def test_the_certificate_fails_where_a_weight_of_the_first_layer_is_not_0():
    _, found = problem("two convolutions", Tanh())
    theta = found.theta.copy()
    theta.W[1].weights[0, 0, 0] = 1e-9
    assert not certify_curvature(theta, found.data, SQUARED).holds


def test_training_finds_lower_points():
    net, found = problem("a convolution", Tanh())
    assert net.risk(lower_point(found, 1, 60), found.data, SQUARED) < found.certificate.risk


def test_two_activations_and_missing_biases_are_refused_by_the_layer():
    x = np.random.default_rng(0).normal(size=(60, 1, 4))
    for layers, words in (
        (
            [Dense(3), Dense(2, activation=Sigmoid()), Dense(1)],
            "got Sigmoid() after layer 2, Dense(",
        ),
        (
            [Conv(3), Conv(2, bias=False), Dense(1)],
            "got Conv(maps=2, kernel=3, bias=False) as layer 2",
        ),
    ):
        with refuses(ValueError, words):
            smooth_minimum(Network((1, 4), layers, Tanh()), x)
