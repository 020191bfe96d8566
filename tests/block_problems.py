"""Networks with layers of all kinds, and units held at arbitrary places of them."""

from dataclasses import replace

import numpy as np

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU, Tanh
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual, Scale

NONE, RELU = Identity(), ReLU()

KINDS = {
    "identity block": ((1, 2), [Dense(3), Residual([Dense(4), Dense(3)]), Dense(2)]),
    "projected block": ((1, 3), [Dense(3), Residual([Dense(3), Dense(2)], [Dense(2)]), Dense(2)]),
    "convolutional blocks": (
        (1, 4, 4),
        [
            Conv(2),
            Residual([Conv(2), Conv(2)], activation=RELU),
            Residual([Conv(2, 3, 2), Conv(2)], [Conv(2, 1, 2)], activation=RELU),
            AveragePool(2),
            Dense(2),
        ],
    ),
    "one layer in a block": ((1, 2), [Dense(3), Residual([Dense(3)], activation=RELU), Dense(2)]),
    "block in a block": (
        (1, 6),
        [Conv(2), Residual([Conv(2), Residual([Conv(2)]), Conv(2)], activation=RELU), Dense(2)],
    ),
    "pooling in a block": (
        (2, 4, 4),
        [Conv(2), Residual([Conv(3), MaxPool(2), Conv(2, 1)], [MaxPool(2)]), Dense(2)],
    ),
    "scales in a block": (
        (1, 6),
        [
            Conv(2, bias=False),
            Scale(),
            Residual([Conv(2), Scale(activation=NONE)], [Conv(2, 1), Scale()], activation=RELU),
            Dense(2),
        ],
    ),
    "block last": ((1, 3), [Dense(4), Residual([Dense(3), Dense(2)], [Dense(2)])]),
    "activation after poolings": (
        (1, 8),
        [
            Conv(2, activation=NONE),
            AveragePool(2, activation=RELU),
            Conv(3),
            MaxPool(2, activation=RELU),
            Dense(2),
        ],
    ),
    "activation last": ((1, 3), [Dense(4), Dense(2, activation=RELU)]),
    "deep linear": ((1, 3), [Dense(2, activation=NONE), Dense(2, activation=NONE), Dense(2)]),
    "several activations": ((1, 3), [Dense(3), Dense(3, activation=Tanh()), Dense(3), Dense(2)]),
    "scale": ((2, 5), [Conv(3), Scale(), MaxPool(3, 2), Dense(3), Scale(), Dense(2)]),
    "overlapping windows": ((1, 6, 6), [Conv(2, 3, 2), MaxPool(2, 1), Dense(2)]),
    "strides and groups": (
        (2, 7),
        [
            Conv(4, 3, stride=2, padding=1, bias=False),
            Conv(4, 2, padding="valid", dilation=2, groups=2),
            MaxPool(2, 1, padding=1),
            Dense(2, bias=False),
        ],
    ),
}


def network(kind, slope=0.0):
    """Return a network; its activations with kinks have this slope."""
    shape, layers = KINDS[kind]
    return Network(shape, [_sloped(layer, ReLU(slope)) for layer in layers], ReLU(slope))


def _sloped(layer, sigma):
    changed = {"activation": sigma} if layer.activation == RELU else {}
    if isinstance(layer, Residual):
        for name in ("layers", "shortcut"):
            changed[name] = tuple(_sloped(part, sigma) for part in getattr(layer, name))
    return replace(layer, **changed)


def problem(kind, slope=0.0, loss=None, samples=6, seed=0, kinks=True):
    """Return a random point and the passes in which units of all layers are held."""
    rng, loss = np.random.default_rng(seed), loss or SquaredLoss()
    net = network(kind, slope)
    width = int(np.prod(net.shapes[-1]))
    soft = isinstance(loss, CrossEntropy)
    y = rng.dirichlet(np.ones(width), samples) if soft else rng.normal(size=(samples, width))
    data = TrainingSet(rng.normal(size=(samples, *net.input_shape)), y)
    theta = Parameters(net, rng.normal(size=net.size))
    held = Held(net, data, loss)
    return theta, held.at_kinks(some_kinks(held, theta) if kinks else ())


def some_kinks(held, theta):
    """Return kinks of each layer that has any: the last unit, a pair of a pooling, an output."""
    net, kinks = held.net, []
    for n in net.bent_layers:
        P, maps = net.positions(n), net.shapes[n][0]
        kinks.append(HeldKink(n, maps - 1, np.array([maps * P - 1]), np.array([n % 3])))
    for n in net.max_layers:
        W = theta.W[n]
        windows = W.inner.windows(np.arange(W.shape[1])[W.read, None], -1)[:, :, 0]
        first, second = [u for u in range(windows.shape[1]) if (windows[:, u] >= 0).sum() > 1][:2]
        common = max([-1, *np.intersect1d(windows[:, first], windows[:, second])])
        for unit in (first, second):  # ties of windows that overlap have one entry in common
            a = common if common >= 0 else windows[:, unit].max()
            b = max(entry for entry in windows[:, unit] if entry != a)
            map_, pair = unit // net.positions(n), np.array([[a, b]])
            kinks.append(HeldKink(n, map_, np.array([unit]), np.array([4]), pair))
    if isinstance(held.loss, AbsoluteLoss):
        kinks.append(HeldKink(net.depth + 1, 0, np.array([0]), np.array([5])))
    return kinks


def at_its_kinks(theta, held):
    """Return a point near theta at which v_K = 0."""
    for _ in range(30):
        off = held.forward(theta)[1]
        theta = Parameters(theta.net, theta.vector - np.linalg.pinv(held.jacobian(theta)) @ off)
        if abs(off).max(initial=0) < 1e-14:
            return theta
    raise AssertionError("no point at the kinks was found")
