"""Exact arithmetic in residual blocks: the fractions are those of the same layers one by one."""

from fractions import Fraction

import numpy as np
import pytest

import tinyspur as ts
from tinyspur.certificates.exact import ExactPoint, exact_outputs
from tinyspur.certificates.exact_cells import find_cells
from tinyspur.engine.activations import Identity, ReLU
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual

NONE = {"activation": Identity()}
FIRST, LAST = Conv(2, 1), Dense(2)
POOLINGS = [AveragePool(3, 1, 1), MaxPool(3, 1, 1), AveragePool(3), MaxPool(3)]


def points(layers, x):
    """Return a point of a network at random fractions, zero wherever `layers` has a block."""
    net, rng = Network((1, 3, 3), layers), np.random.default_rng(0)
    theta = net.zeros()
    for layer in (1, net.depth):
        theta.W[layer].weights[...] = rng.normal(size=theta.W[layer].weights.shape)
        theta.b[layer][...] = rng.normal(size=2)
    return theta, exact_outputs(theta, x)


@pytest.mark.parametrize("pooling", POOLINGS, ids=repr)
@pytest.mark.parametrize("first", [True, False], ids=["block", "shortcut"])
def test_poolings_in_blocks_are_exactly_those_elsewhere(pooling, first):
    x = np.random.default_rng(1).normal(size=(4, 1, 3, 3))
    size = 1 if pooling.stride is None else 3
    nothing = Conv(2, 3, padding="valid" if size == 1 else "same", bias=False)
    branches = ([pooling], [nothing]) if first else ([nothing], [pooling])
    block, expected = points([FIRST, Residual(*branches, **NONE), LAST], x)
    _, found = points([FIRST, pooling, LAST], x)
    assert isinstance(found[0, 0], Fraction) and (found == expected).all()
    assert np.allclose(expected.astype(float), block.net.forward(block, x), rtol=1e-13)


def test_a_kept_value_is_added_exactly():
    net = Network((1, 3), [Dense(2), Residual([Dense(2)], **NONE), Dense(1)])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    x = np.array([[[0.1, 0.2, 0.3]]])

    def exact(array):
        return np.vectorize(Fraction, otypes=[object])(array)

    W, b = ([exact(part[n]) for n in (1, 2, 4)] for part in (weights(theta), theta.b))
    o = np.maximum(W[0] @ exact(x[0, 0]) + b[0], Fraction(0))
    expected = W[2] @ (o + W[1] @ o + b[1]) + b[2]
    assert exact_outputs(theta, x)[0, 0] == expected[0]


def weights(theta):
    return {layer: theta.W[layer].weights for layer in theta.net.slots}


def test_patterns_of_cells_are_those_of_the_network():
    layers = [Conv(2), Residual([Conv(3), MaxPool(3, 1, 1), Conv(2)], [AveragePool(3, 1, 1)]), LAST]
    net = Network((1, 3, 3), layers, ReLU(0.25))
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    x = np.random.default_rng(1).normal(size=(3, 1, 3, 3))
    patterns = net.patterns(theta, x)
    for cell in find_cells(ExactPoint(theta), ts.TrainingSet(x, np.zeros((3, 2)))):
        for layer, pattern in cell.pattern.items():
            for sample in cell.samples:
                assert np.array_equal(pattern[:, 0], patterns[layer][sample])
