"""Rescaling keeps every output."""

import numpy as np
import pytest
from construction_problems import SQUARED, linear_case
from shared import close, refuses

from tinyspur.certificates import certify_cell
from tinyspur.constructions.relays import outgoing, rescale
from tinyspur.constructions.witnesses import revive
from tinyspur.engine.activations import ReLU
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense

RESCALED = [
    Network((1, 4, 4), [Conv(2), AveragePool(2), Conv(3, 1), Dense(4), Dense(2)], ReLU(0.1)),
    Network((2, 6), [Conv(3), Conv(2), AveragePool(3), Dense(2)]),
    Network((1, 4, 4), [Conv(2), AveragePool(2), AveragePool(2), Dense(3), Dense(1)]),
]


@pytest.mark.parametrize("net", RESCALED, ids=repr)
@pytest.mark.parametrize("factor", [1e-3, 3.0])
def test_rescaling_keeps_every_output(net, factor):
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(7, *net.input_shape))
    before, outputs = theta.vector.copy(), net.forward(theta, x)
    for layer in net.active_layers:
        for target in (None, *range(theta.W[layer].maps_out)):
            point = rescale(theta, layer, factor, target)
            close(net.forward(point, x), outputs)
            chosen = slice(None) if target is None else target
            close(point.W[layer].weights[chosen], factor * theta.W[layer].weights[chosen], 1e-15)
            close(point.b[layer][chosen], factor * theta.b[layer][chosen], 1e-15)
            others = [t for t in range(theta.W[layer].maps_out) if target not in (None, t)]
            assert np.array_equal(point.W[layer].weights[others], theta.W[layer].weights[others])
            # What reads the layer is divided; the other way round gives theta back.
            close(rescale(point, layer, 1 / factor, target).vector, theta.vector, 1e-14)
            close(
                outgoing(point, layer, target or 0)[0],
                outgoing(theta, layer, target or 0)[0] / factor,
                1e-14,
            )
    assert np.array_equal(theta.vector, before)


def test_rescaling_a_spurious_minimum_gives_another():
    theta, pair, data, _ = linear_case("three convolutions", SQUARED)
    risk = theta.net.risk(theta, data, SQUARED)
    for layer in theta.net.active_layers:
        other = rescale(theta, layer, 5.0)
        assert certify_cell(other, data, SQUARED).holds
        close(other.net.risk(other, data, SQUARED), risk)
        assert revive(other, data, SQUARED, pair.upper, 0).decrease > 0


@pytest.mark.parametrize("factor", [0, -1.0, np.nan, np.inf])
def test_rescaling_needs_a_positive_factor(factor):
    theta = RESCALED[0].zeros()
    with refuses(ValueError, f"rescale: expected a finite factor > 0, got {factor}"):
        rescale(theta, 1, factor)


@pytest.mark.parametrize("layer", [0, 2, 5, 6])
def test_rescaling_needs_a_layer_with_an_activation(layer):
    with refuses(ValueError, f"rescale: expected a layer in (1, 3, 4), got {layer}"):
        rescale(RESCALED[0].zeros(), layer, 2.0)
