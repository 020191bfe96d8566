"""Layers may name their activations: networks with several of them, and with none after some."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import close, refuses

import tinyspur as ts
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Conv, Dense, MaxPool, Residual

LAYERS = [
    Conv(2, activation=ts.Tanh()),
    Conv(3, activation=ts.Identity()),
    MaxPool(2, activation=ts.ReLU(0.1)),
    Residual([Conv(2), Conv(3, activation=ts.Sine())], activation=ts.ELU(0.5)),
    Dense(4, bias=False),
    Dense(3, activation=ts.Sigmoid()),
]
NET = Network((2, 4, 4), LAYERS)


@pytest.fixture
def theta(rng):
    return Parameters(NET, rng.normal(size=NET.size) / 2)


@pytest.fixture
def data(rng):
    return ts.TrainingSet(rng.normal(size=(5, 2, 4, 4)), rng.dirichlet([1, 1, 1], 5))


def outputs(vector, x):
    """Return what the layers compute, written out, from all numbers in one vector."""
    at = iter(torch.split(vector, [s for slot in NET.slots.values() for s in sizes(slot) if s]))
    W1, b1, W2, b2 = take(at, 1), next(at), take(at, 2), next(at)
    o = torch.tanh(F.conv2d(x, W1, b1, padding=1))
    o = F.leaky_relu(F.max_pool2d(F.conv2d(o, W2, b2, padding=1), 2), 0.1)
    inner = torch.relu(F.conv2d(o, take(at, 5), next(at), padding=1))
    inner = torch.sin(F.conv2d(inner, take(at, 6), next(at), padding=1))
    o = F.elu(o + inner, 0.5).flatten(1)
    o = torch.relu(F.linear(o, take(at, 8)))
    return torch.sigmoid(F.linear(o, take(at, 9), next(at)))


def sizes(slot):
    return int(np.prod(slot.shape)), slot.biases


def take(parts, layer):
    return next(parts).reshape(NET.slots[layer].shape)


def risk(vector, data):
    difference = outputs(vector, torch.tensor(data.x)) - torch.tensor(data.y)
    return (difference**2).sum() / (2 * len(data))


def test_the_activation_of_each_layer_is_its_own_or_the_networks():
    found = [NET.activation_of(layer) for layer in range(1, NET.depth + 1)]
    assert found == [
        *(ts.Tanh(), None, None, ts.ReLU(0.1)),  # max pooling, then its activation
        *(ts.ReLU(), ts.Sine(), ts.ELU(0.5), ts.ReLU(), ts.Sigmoid()),
    ]
    assert NET.kinked_layers == (4, 5, 8) and NET.pattern_layers == (3, 4, 5, 8)


def test_outputs_gradients_and_hessian_products_are_those_of_pytorch(theta, data, rng):
    vector = torch.tensor(theta.vector, requires_grad=True)
    close(NET.forward(theta, data.x), outputs(vector, torch.tensor(data.x)).detach().numpy())
    (first,) = torch.autograd.grad(risk(vector, data), vector, create_graph=True)
    found, gradient = NET.risk_and_gradient(theta, data, ts.SquaredLoss())
    assert found == pytest.approx(risk(vector, data).item(), rel=1e-13)
    close(gradient.vector, first.detach().numpy())
    v = Parameters(NET, rng.normal(size=NET.size))
    (second,) = torch.autograd.grad((first * torch.tensor(v.vector)).sum(), vector)
    close(NET.hessian_product(theta, v, data, ts.SquaredLoss()).vector, second.numpy())


def test_the_spec_comes_back():
    assert Network.from_spec(json.loads(json.dumps(NET.spec))) == NET
    assert NET.spec["layers"][1] == {
        "type": "conv",
        "maps": 3,
        "kernel": 3,
        "activation": {"name": "identity"},
    }


def test_identity_is_no_activation():
    linear = Network((1, 3), [Dense(4, activation=ts.Identity()), Dense(2)])
    assert linear.active_layers == () and linear.activations == ()
    theta = ts.kaiming_start(linear)
    x = np.random.default_rng(0).normal(size=(5, 1, 3))
    product = theta.W[2].toarray() @ theta.W[1].toarray()
    close(linear.forward(theta, x), x[:, 0] @ product.T)


@pytest.mark.parametrize("sigma", ["relu", ts.ReLU, max])
def test_what_is_no_activation_is_refused(sigma):
    with refuses(ValueError, "dense: expected an activation as ReLU(), Identity() for none, got"):
        Dense(2, activation=sigma)
