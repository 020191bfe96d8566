"""Points of many networks, certified or not, and what PyTorch says of their patterns."""

import numpy as np
import pytest
import torch
from shared import random_point, targets_for, twin_of

from tinyspur.constructions.embedding import linear_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()

ALMOST = 1 - 1e-12  # of the radius: what rounding may add to a distance

LAYOUTS = {
    "dense": ((1, 1, 3), (Dense(4), Dense(3), Dense(2))),
    "shallow": ((1, 2, 2), (Dense(5), Dense(2))),
    "conv": ((1, 4, 4), (Conv(2), Conv(2), Dense(2))),
    "wide filter": ((2, 4, 4), (Conv(2, 5), Conv(3, 1), Dense(3))),
    "pooling": ((1, 4, 4), (Conv(3), AveragePool(2), Conv(2), Dense(2))),
    "pooling and dense": ((2, 8), (Conv(2), AveragePool(2), AveragePool(2), Dense(4), Dense(2))),
    "conv on top": ((1, 6), (Conv(2), Conv(2, 1))),
    "max pooling": ((1, 4, 4), (Conv(3), MaxPool(2), Conv(2), Dense(2))),
    "max pooling of averages": ((2, 8), (Conv(2), AveragePool(2), MaxPool(2), Dense(3), Dense(2))),
    "averages of max poolings": ((1, 4, 4), (Conv(2), MaxPool(2), AveragePool(2), Dense(2))),
    "max poolings in a row": ((1, 12), (Conv(2), MaxPool(3), MaxPool(2), Conv(2), Dense(2))),
    "max pooling first": ((2, 8), (MaxPool(2), Conv(3), MaxPool(2), Dense(2))),
    "poolings first": ((1, 8, 8), (AveragePool(2), MaxPool(2), Conv(2), Conv(2), Dense(2))),
    "max pooling last": ((1, 6), (Conv(2), Conv(2), MaxPool(3))),
    "max pooling by one": ((1, 4), (Conv(2), MaxPool(1), Conv(2), MaxPool(4), Dense(2))),
}

ACTIVATIONS = {"relu": ReLU(), "leaky": ReLU(0.2)}

over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_even_layouts = pytest.mark.parametrize("layout", list(LAYOUTS)[::2])
over_odd_layouts = pytest.mark.parametrize("layout", list(LAYOUTS)[1::2])

over_activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def net_of(layout, activation):
    return Network(*LAYOUTS[layout], ACTIVATIONS[activation])


def with_budget(theta, memory_budget):
    """Return the same point of the same network under another memory budget."""
    net = theta.net
    return Parameters(
        Network(net.input_shape, net.layers, net.activation, memory_budget), theta.vector
    )


def patterns_of(theta, x):
    """Return what is active and what is the largest, one row for each sample, all layers."""
    found, net = theta.net.patterns(theta, x), theta.net
    active = {layer: found[layer] for layer in net.kinked_layers}
    return np.concatenate(counted(net, active, found, net.pattern_layers), axis=1)


def counted(net, active, patterns, layers):
    """Return the patterns of `layers`, 0 below the highest layer that is dead for a sample."""
    samples, dead = len(next(iter(patterns.values()), ())), 0
    if net.activation == ReLU():
        for layer in sorted(active):
            alive = np.asarray(active[layer]).reshape(samples, -1).any(axis=1)
            dead = np.where(alive, dead, layer)
    rows = [np.asarray(patterns[layer]).reshape(samples, -1).astype(int) for layer in layers]
    return [
        row * (dead <= layer)[:, None] if np.ndim(dead) else row
        for layer, row in zip(layers, rows, strict=True)
    ]


def dead_below(theta, x):
    """Return for which samples a whole layer of ReLU is inactive."""
    found = theta.net.patterns(theta, x)
    if theta.net.activation != ReLU():
        return np.zeros(len(x), bool)
    alive = [found[layer].any(axis=1) for layer in theta.net.kinked_layers]
    return ~np.all(alive, axis=0) if alive else np.zeros(len(x), bool)


def same_patterns(theta, move, x, expected):
    moved = Parameters(theta.net, theta.vector + move)
    return np.array_equal(patterns_of(moved, x), expected)


def inputs_of(twin, x):
    """Return what PyTorch's layers read, by their numbers."""
    x, found = torch.as_tensor(x, dtype=torch.float64), {}
    for number, (layer, options) in enumerate(
        zip(twin.layers, twin.spec["layers"], strict=True), start=1
    ):
        found[number] = x
        x = layer(x)
        if not options["type"].endswith("pool"):  # that no activation follows the last is no matter
            x = twin.activation(x)
    return found


def windows_of(twin, x):
    """Return the windows of all max poolings but leading ones, (N, n_l, size^d), by layer."""
    found, trained = {}, False
    for (number, o), options in zip(inputs_of(twin, x).items(), twin.spec["layers"], strict=True):
        trained |= not options["type"].endswith("pool")
        if trained and options["type"] == "max_pool":
            directions = range(2, o.ndim)
            for axis in directions:
                o = o.unfold(axis, options["size"], options["size"])
            found[number] = o.flatten(-len(directions)).flatten(1, -2)
    return found


def half_gaps(twin, x):
    """Return half the gaps of the largest entries to the others, by layer.

    All but those between zeros of ReLU: in random networks only inactive entries are 0.
    """
    found = {}
    for layer, windows in windows_of(twin, x).items():
        best = windows.argmax(-1, keepdim=True)
        largest = windows.gather(-1, best)
        still = (windows == 0) & (largest == 0) & ("slope" not in twin.spec["activation"])
        found[layer] = (largest - windows)[(torch.arange(windows.shape[-1]) != best) & ~still] / 2
    return found


def torch_patterns(twin, x):
    """Return what is active and what is the largest as PyTorch has it, a row for each sample."""
    active = {layer: (z > 0).numpy() for layer, z in twin.preactivations(x).items()}
    largest = {layer: w.argmax(-1).numpy() for layer, w in windows_of(twin, x).items()}
    net, patterns = Network.from_spec(twin.spec), {**active, **largest}
    return np.concatenate(counted(net, active, patterns, sorted(patterns)), axis=1)


def two_groups(rng, loss, outputs=2, d=3, each=9):
    """Return data in two groups, on the two sides of the plane x_0 = 0."""
    x = rng.normal(size=(2 * each, 1, 1, d))
    x[:, 0, 0, 0] = np.repeat([-1, 1], each) * (1 + abs(x[:, 0, 0, 0]))
    y = targets_for(loss, rng, 2 * each, outputs)
    order = rng.permutation(2 * each)
    return TrainingSet(x[order], y[order])


def gate(data, loss, depth):
    """Return F_1 on the samples with x_0 < 0 and F_2 on the others, and the least risk of the two.

    F_1 + V sigma(.) with V = F_2 - F_1 is written with the units F_1 x + C, V x + M x_0 and M x_0,
    each of which keeps its sign on either group; the layers above hand them on with bias 1.
    """
    x = data.x.reshape(len(data), -1)
    right = x[:, 0] > 0
    first, second = (fit_affine(x[s], data.y[s], loss) for s in (~right, right))
    d_y, d = first.weights.shape
    V, v = second.weights - first.weights, second.bias - first.bias
    M = 2 + 2 * (abs(x @ V.T + v).max(axis=1) / abs(x[:, 0])).max()
    C = 1 + abs(x @ first.weights.T + first.bias).max()
    width = 2 * d_y + 2
    net = Network((1, 1, d), [*[Dense(width)] * (depth - 1), Dense(d_y)])
    theta = net.zeros()
    W, b = theta.W[1].weights, theta.b[1]
    W[:d_y], b[:d_y] = first.weights, first.bias + C
    W[d_y : 2 * d_y], b[d_y : 2 * d_y] = V, v
    W[d_y : 2 * d_y + 1, 0] += M
    b[-1] = -1  # one spare unit, dead
    for layer in range(2, depth):
        theta.W[layer].weights[:-1, :-1] = np.eye(width - 1)
        theta.b[layer][:-1] = 1
        theta.b[layer][-1] = -1
    top = theta.W[depth].weights
    top[:, :d_y] = top[:, d_y : 2 * d_y] = np.eye(d_y)
    top[:, 2 * d_y] = -1
    theta.b[depth][:] = -C - (depth - 2) * top.sum(axis=1)
    shares = right.mean()
    return theta, (1 - shares) * first.risk + shares * second.risk


def stationary_in_each_class(theta, x, rng):
    """Return targets whose residuals are orthogonal to (x, 1) in every pattern class."""
    o, twin = theta.net.forward(theta, x), twin_of(theta)
    features = inputs_of(twin, x)[theta.net.leading_poolings + 1].detach().flatten(1).numpy()
    residuals = rng.normal(size=o.shape)
    rows = torch_patterns(twin, x)
    for row in np.unique(rows, axis=0):
        s = (rows == row).all(axis=1)
        basis = np.linalg.svd(np.column_stack([features[s], np.ones(s.sum())]))[0]
        basis = basis[:, : features.shape[1] + 1]
        residuals[s] -= basis @ (basis.T @ residuals[s])
    return TrainingSet(x, o - residuals)


def largest_in_turn(rng, samples=120):
    """Return relays of images below a max pooling, random layers above, and images.

    The first or the last pixel of all windows of an image is the largest.
    """
    net = Network((1, 4, 4), [Conv(1), MaxPool(2), Dense(3), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    theta.W[1].weights[...], theta.b[1][...] = 0, 1
    theta.W[1].weights[0, 0, 1, 1] = 1
    theta.b[3][:] = 30, 30, -30  # active, active and dead
    x = rng.uniform(0, 1, (samples, 1, 4, 4))
    x[::2, :, ::2, ::2] += 2
    x[1::2, :, 1::2, 1::2] += 2
    return theta, x


def certified_max_poolings():
    """Yield theta, data and loss: the best affine maps of classes that argmaxes tell apart."""
    rng = np.random.default_rng(6)
    theta, x = largest_in_turn(rng)
    data = stationary_in_each_class(theta, x, rng)
    yield pytest.param(theta, data, SQUARED, id="max pooling, the largest in turn")
    for layout in (name for name in LAYOUTS if "max pool" in name):
        theta, data = random_point(net_of(layout, "leaky"), samples=3, seed=7)
        x = data.x.repeat(25, axis=0)  # three groups of samples that are close to each other
        data = stationary_in_each_class(theta, x + 0.01 * rng.normal(size=x.shape), rng)
        yield pytest.param(theta, data, SQUARED, id=layout)


def certified_points():
    """Yield theta, data and loss: points that are local minima and should be certified."""
    for seed, (loss, depth) in enumerate([(SQUARED, 2), (SQUARED, 3), (ENTROPY, 2), (ENTROPY, 4)]):
        data = two_groups(np.random.default_rng(seed), loss)
        name = f"two groups, depth {depth}, {loss.name}"
        yield pytest.param(gate(data, loss, depth)[0], data, loss, id=name)
    for loss in (SQUARED, ENTROPY):
        rng = np.random.default_rng(5)
        y = one_hot(rng.integers(0, 3, 40), 3, smoothing=0.1)
        data = TrainingSet(rng.normal(size=(40, 1, 4, 4)), y)
        net = Network((1, 4, 4), [Conv(2), Conv(3), Conv(3), Dense(3)])
        theta, _ = linear_minimum(net, data, loss)
        yield pytest.param(theta, data, loss, id=f"linear, {loss.name}")
    yield from certified_max_poolings()


CERTIFIED = list(certified_points())
over_certified_points = pytest.mark.parametrize(("theta", "data", "loss"), CERTIFIED)
over_few_certified_points = pytest.mark.parametrize(("theta", "data", "loss"), CERTIFIED[1::4])
over_some_certified_points = pytest.mark.parametrize(("theta", "data", "loss"), CERTIFIED[::2])
