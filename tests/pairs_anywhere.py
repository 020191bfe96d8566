"""Networks with a pair of convolutions anywhere, and points of them, by name."""

import functools
import itertools

import numpy as np
import pytest
import torch
from shared import random_pixels, twin_of

from tinyspur import (
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Network,
    SquaredLoss,
    embed,
    linear_minimum,
    subnetwork,
)
from tinyspur.layers import MaxPool

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()
PIXELS, NEGATIVE = 0.0, -2.0  # the least value of the inputs; the largest is 1
P, M = AveragePool, MaxPool

# name: (input shape, layers, the first layer of the pair)
CASES = {
    "top": ((1, 4, 4), [Conv(3), Conv(5), Conv(5), Dense(3)], None),
    "first": ((2, 3, 4), [Conv(4), Conv(5), Conv(4), Dense(3)], 1),
    "convolutions above": ((1, 4, 4), [Conv(2), Conv(4), Conv(5), Conv(4), Conv(4), Dense(2)], 2),
    "dense layers above": (
        (1, 4, 4),
        [Conv(2), Conv(4), Conv(4), Dense(6), Dense(3), Dense(4), Dense(3)],
        None,
    ),
    "one output": ((1, 3, 4), [Conv(2), Conv(4), Conv(4), Dense(4), Dense(2), Dense(1)], None),
    "pool above": ((1, 4, 4), [Conv(2), Conv(5), Conv(17), P(2), Dense(3)], None),
    "convolution and pool above": (
        (1, 4, 4),
        [Conv(2), Conv(4), Conv(4), Conv(18), P(2), Dense(3)],
        2,
    ),
    "pool, convolutions and dense layers above": (
        (2, 4, 2),
        [Conv(2), Conv(4), Conv(16), P(2), Conv(16), Conv(17), Dense(4), Dense(3)],
        2,
    ),
    "two pools above": ((1, 4, 8), [Conv(2), Conv(3), Conv(12), P(2), Conv(49), P(2), Dense(3)], 2),
    "two pools in a row above": (
        (1, 8, 8),
        [Conv(1, 7), Conv(3, 5), Conv(48, 7), P(2), P(2), Dense(3)],
        None,
    ),
    "pools of 2 and 3 in a row": (
        (1, 12),
        [Conv(2), Conv(4), Conv(24, 7), P(3), P(2), Dense(2)],
        2,
    ),
    "copies above the first convolution": (
        (1, 4, 4),
        [Conv(1), Conv(4), P(2), Conv(6), Conv(6), Dense(3)],
        None,
    ),
    "pool below": ((1, 4, 4), [Conv(4), P(2), Conv(4), Conv(6), Conv(6), Dense(3)], None),
    "two pools in a row below": (
        (1, 4, 4),
        [Conv(16, 5), P(2), P(2), Conv(18), Conv(18), Dense(3)],
        None,
    ),
    "pools below and above": (
        (1, 8, 8),
        [Conv(4), P(2), Conv(4), Conv(6), Conv(24), P(2), Conv(24), Dense(7), Dense(5), Dense(3)],
        4,
    ),
    "pools below and above, two channels": (
        (2, 8),
        [Conv(4), P(2), Conv(5), Conv(6), Conv(12), P(2), Dense(3)],
        4,
    ),
    "pair reads the input": ((2, 4, 4), [Conv(5), Conv(16), P(2), Dense(3)], None),
    "pair reads a pooling": ((1, 4, 4), [Conv(4), P(2), Conv(6), Conv(6), Dense(3)], None),
    "pair reads a pooling, pool above": (
        (1, 8),
        [Conv(2), P(2), Conv(4), Conv(8), P(2), Dense(2)],
        3,
    ),
    "leading pool": ((1, 8, 8), [P(2), Conv(3), Conv(6), Conv(6), Dense(3)], None),
    "leading pools of 2 and 3": ((2, 12), [P(2), P(3), Conv(2), Conv(4), Conv(4), Dense(2)], None),
    "pair reads a leading pool": (
        (1, 8, 8),
        [P(2), Conv(4), Conv(16), P(2), Dense(4), Dense(3)],
        None,
    ),
    "1-D, pool of 3": ((1, 9), [Conv(3), Conv(5), Conv(15), P(3), Dense(3)], None),
    "1-D, pool of 3, filters of 5": (
        (2, 9),
        [Conv(3, 5), Conv(5, 3), Conv(15, 5), P(3), Dense(3)],
        2,
    ),
    "filters of 1, 3, 5 and 7": (
        (1, 4, 6),
        [Conv(2, 5), Conv(4, 1), Conv(4, 7), Conv(16, 3), P(2), Dense(3)],
        2,
    ),
    "leading max pool": ((2, 8, 8), [M(2), Conv(4), Conv(6), Conv(6), Dense(3)], None),
    "leading pools of both kinds": ((1, 12), [M(2), P(3), Conv(2), Conv(4), Conv(4), Dense(2)], 4),
    "pair reads a leading max pool": ((1, 8, 8), [M(2), Conv(4), Conv(16), P(2), Dense(3)], None),
    "colour": ((3, 8, 8), [Conv(3), Conv(5), Conv(20), P(2), Dense(4), Dense(3)], None),
}
BELOW = {  # max poolings that no convolution can relay, so that there is no linear minimum
    "max pool below": ((1, 4, 4), [Conv(4), M(2), Conv(4), Conv(6), Conv(6), Dense(3)], None),
    "pair reads a max pool": ((1, 8), [Conv(4), M(2), Conv(6), Conv(12), P(2), Dense(3)], None),
}
POOLED = [  # a pooling above a convolution
    name
    for name, (_, layers, _) in CASES.items()
    if any(isinstance(b, P) and isinstance(a, Conv) for a, b in itertools.pairwise(layers))
]
RULES = ("steepest", "largest")

over_rules = pytest.mark.parametrize("rule", RULES)
# The cross-entropy in every third case; with one output it would fit the one class exactly.
PAIRS = [
    (name, ENTROPY if n % 3 == 0 and layers[-1] != Dense(1) else SQUARED)
    for n, (name, (_, layers, _)) in enumerate(CASES.items())
]


def over_points(pairs):
    """Run a test on each of these networks with its loss."""
    ids = [f"{name}-{loss.name}" for name, loss in pairs]
    return pytest.mark.parametrize(("name", "loss"), pairs, ids=ids)


over_pairs = over_points(PAIRS)
over_some_random_points = over_points([*PAIRS[::2], *zip(BELOW, (SQUARED, ENTROPY), strict=True)])
over_cases = pytest.mark.parametrize("name", CASES)
over_variants = pytest.mark.parametrize("variant", ["repaired", "literal"])


def net_of(name):
    shape, layers, _ = (CASES | BELOW)[name]
    return Network(shape, layers)


def lower_of(name):
    return (CASES | BELOW)[name][2]


def pooled_input(net, x):
    """Return what the first convolution reads, (N, n)."""
    x = torch.as_tensor(x)
    for layer in itertools.takewhile(lambda layer: isinstance(layer, P | M), net.layers):
        name = f"{'max' if isinstance(layer, M) else 'avg'}_pool{x.ndim - 2}d"
        x = getattr(torch.nn.functional, name)(x, layer.size)
    return x.flatten(1).numpy()


@functools.cache
def linear_problem(name, loss=SQUARED, low=PIXELS, variant="repaired"):
    """Return theta with the linear subnetwork, its relays and the data."""
    net = net_of(name)
    data = random_pixels(
        net, loss, 60 + pooled_input(net, np.zeros((1, *net.input_shape))).size, low=low
    )
    theta, pair = linear_minimum(net, data, loss, variant, lower_of(name))
    return theta, pair, data


@functools.cache
def random_problem(name, loss=SQUARED, low=PIXELS, variant="repaired"):
    """Return theta with a random nonlinear subnetwork, its relays, the data, the subnetwork."""
    net, lower = net_of(name), lower_of(name)
    data = random_pixels(net, loss, 12, seed=1, low=low)
    phi = subnetwork(net, lower, variant, all_relayed=True).zeros()
    rng = np.random.default_rng(2)
    phi.vector[:] = rng.normal(size=phi.vector.size)
    for layer in phi.net.active_layers:  # some samples activate a position, some don't
        z = twin_of(phi).preactivations(data.x)[layer].detach().numpy()
        responses = z.reshape(len(z), len(phi.b[layer]), -1).swapaxes(0, 1)
        for t, values in enumerate(responses):
            phi.b[layer][t] -= np.quantile(values, 0.35 + 0.3 * t / len(responses))
    theta, pair = embed(net, phi, data.x, variant, lower)
    return theta, pair, data, phi


# The twin in PyTorch


def run(theta, o, first, last):
    """Return what layers `first` to `last` of the twin make of `o` (N, maps, ...)."""
    twin = twin_of(theta)
    for number in range(first, last + 1):
        o = twin.layers[number - 1](o)
        if number in theta.net.active_layers:
            o = twin.activation(o)
    return o
