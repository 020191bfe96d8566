"""Points at kinks, literal ones and certified ones, and a direction at each."""

import functools

import numpy as np
import pytest
import scipy.linalg
from shared import SMOOTH, random_point, targets_for, twin_of

from tinyspur.constructions.embedding import embed, linear_minimum, subnetwork
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()
LAYOUTS = {
    "dense": ((1, 1, 3), (Dense(4), Dense(3), Dense(2))),
    "conv": ((1, 3, 3), (Conv(2), Conv(2), Dense(2))),
    "pooling": ((2, 4), (Conv(3), AveragePool(2), Conv(2, 1), Dense(3), Dense(2))),
    "max pooling": ((1, 4, 4), (Conv(2), MaxPool(2), Conv(2), MaxPool(2), Dense(2))),
    "max of averages": ((2, 8), (MaxPool(1), Conv(3), AveragePool(2), MaxPool(4), Dense(2))),
}
over_losses = pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_activations = pytest.mark.parametrize("slope", [0.0, 0.2], ids=["relu", "leaky"])
over_smooth = pytest.mark.parametrize("sigma", SMOOTH, ids=repr)


def preactivations(theta, x, layer):
    return twin_of(theta).preactivations(x)[layer].detach().numpy()


def point_of(layout, slope, loss, seed, samples=6, kinks=()):
    """Return a random point and data; in each layer of `kinks` every map has a unit with z = 0.

    Map 0 of those layers has no weights and no bias: it is at the kink for all samples.
    """
    theta, data = random_point(Network(*LAYOUTS[layout], ReLU(slope)), loss, samples, seed)
    rng = np.random.default_rng([seed, 1])
    for layer in kinks:
        theta.W[layer].weights[0], theta.b[layer][0] = 0, 0
        for t in range(1, len(theta.b[layer])):
            z = preactivations(theta, data.x, layer).reshape(samples, len(theta.b[layer]), -1)
            unit = rng.integers(samples), t, rng.integers(z.shape[2])
            theta.b[layer][t] -= z[unit]
    return theta, data


def direction_at(theta, rng):
    return Parameters(theta.net, rng.normal(size=theta.net.size))


@functools.cache
def small_literal(loss, seed=0):
    """Return the literal theta of a CNN with a linear subnetwork, and data."""
    net = Network((1, 4, 4), [Conv(2), Conv(4), Conv(4), Dense(3)])
    rng = np.random.default_rng(seed)
    data = TrainingSet(rng.uniform(0, 1, (40, 1, 4, 4)), targets_for(loss, rng, 40, 3))
    return linear_minimum(net, data, loss, "literal")[0], data


@functools.cache
def nonlinear_literal(seed=0, stationary="subnetwork"):
    """Return the literal theta over a random subnetwork that is stationary, and data (E2).

    The residuals are orthogonal to the derivatives of all outputs by the parameters of the
    `subnetwork`, or by those of the `whole` network, with kinks inactive.
    """
    rng = np.random.default_rng(seed)
    net = Network((1, 3, 3), [Conv(2), Conv(4), Conv(4), Dense(2)])
    x = rng.normal(size=(120, 1, 3, 3))
    phi = subnetwork(net).zeros()
    phi.vector[:] = rng.normal(size=phi.vector.size)
    phi.b[1][:] = 0  # o^{L-3} is 0 at every second location
    theta, _ = embed(net, phi, x, "literal")
    o = net.forward(theta, x)
    point = phi if stationary == "subnetwork" else theta
    derivatives = []
    for i, k in np.ndindex(o.shape):
        y = o[i : i + 1].copy()
        y[0, k] -= 1
        one = TrainingSet(x[i : i + 1], y)
        derivatives.append(point.net.gradient(point, one, SQUARED).vector)
    free = scipy.linalg.null_space(np.array(derivatives).T)
    residuals = (free @ rng.normal(size=free.shape[1])).reshape(o.shape)
    data = TrainingSet(x, o - residuals)
    assert abs(point.net.gradient(point, data, SQUARED).vector).max() < 1e-12
    return theta, data


def smooth_point(layout, sigma, loss, seed=0, samples=6):
    theta, data = point_of(layout, 0.0, loss, seed, samples)
    net = Network(theta.net.input_shape, theta.net.layers, sigma)
    return Parameters(net, theta.vector), data


@functools.cache
def certified_linear(kind, loss, seed):
    rng = np.random.default_rng(seed)
    shape, maps = {"conv": ((1, 3, 3), (1, 3, 3)), "channels": ((2, 5), (3, 4, 5))}[kind]
    net = Network(shape, [*(Conv(t) for t in maps), Dense(2)])
    data = TrainingSet(rng.uniform(-1, 1, (25, *shape)), targets_for(loss, rng, 25, 2))
    return linear_minimum(net, data, loss)[0], data
