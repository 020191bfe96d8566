"""What certificates are made of holds for layers with every option: enclosures and fractions."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from shared import in_turn

import tinyspur as ts
from tinyspur.certificates.box_hessians import second_order
from tinyspur.certificates.boxes import Box, first_order, times
from tinyspur.certificates.enclosed_passes import enclosed_steps
from tinyspur.certificates.enclosures import Enclosure, exact, product
from tinyspur.certificates.exact import exact_outputs
from tinyspur.engine.held import Held
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Scale

NETWORKS = {
    "stride and valid": [Conv(2, 2, 2, "valid"), Conv(2, (1, 2), padding=1)],
    "dilation": [Conv(2, 2, dilation=2, padding=1), AveragePool(2, 1)],
    "groups": [Conv(2, 2, groups=2), Conv(4, 3, 2, groups=2, bias=False)],
    "depthwise, then a group of one position": [Conv(4, 3, 2, groups=2), Conv(4, 2, 2, 0, 1, 4)],
    "without biases": [Conv(2, bias=False), AveragePool(3, 2, 1), Dense(3, bias=False)],
    "average without padding": [Conv(2), AveragePool(3, 2, 1, True, False)],
    "batch normalisation": [Conv(2, 2, 2, bias=False), Scale(), Conv(2, 2), Scale(bias=False)],
    "overlapping max pooling": [Conv(2), MaxPool(3, 2, 1), Conv(2, 2, bias=False)],
    "dilated max pooling": [MaxPool(2, 1, 1), Conv(3, 2), MaxPool(2, 1, 0, False, 2)],
}
over_networks = pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)


def problem(layers, seed=0, sigma=None):
    """Return a point and data of few bits, for maps (2, 3, 4)."""
    net, rng = Network((2, 3, 4), [*layers, Dense(2)], sigma), np.random.default_rng(seed)
    theta = Parameters(net, rng.integers(-8, 9, net.size) / 8)
    x = rng.integers(-4, 5, (3, 2, 3, 4)) / 4
    return theta, ts.TrainingSet(x, rng.integers(-4, 5, (3, 2)) / 4)


def fractions(array):
    return np.vectorize(Fraction, otypes=[object])(np.asarray(array, dtype=float))


def entries(W):
    """Return a matrix as fractions; those of a mean are 1 / n."""
    return np.vectorize(lambda v: Fraction(v).limit_denominator(1000), otypes=[object])(W.toarray())


def exact_trace(theta, x):
    """Return z^l, l = 1..L, as fractions (n_l, 1), from the entries of the matrices alone."""
    o, found = fractions(x.reshape(-1, 1)), []
    for layer, W in theta.W.items():
        at = W.at(o.astype(float)[:, 0])
        o = entries(at).dot(o)
        if layer in theta.b:
            o = o + fractions(np.repeat(theta.b[layer], W.positions_out))[:, None]
        found.append(o)
        o = np.maximum(o, 0) if theta.net.is_active(layer) else o
    return found


@over_networks
def test_exact_outputs_are_those_of_the_entries(layers):
    theta, data = problem(layers)
    expected = [exact_trace(theta, x)[-1][:, 0].tolist() for x in data.x]
    assert exact_outputs(theta, data.x).tolist() == expected


@over_networks
def test_enclosures_of_a_pass_hold_the_exact_values(layers):
    theta, data = problem(layers)
    radii = Parameters(theta.net, np.full(theta.net.size, 2.0**-20))
    rng = np.random.default_rng(1)
    near = Parameters(theta.net, theta.vector + radii.vector * rng.choice([-1, 1], theta.net.size))
    for x in data.x:
        for point, around in ((theta, None), (theta, radii), (near, radii)):
            steps = enclosed_steps(theta, x.reshape(-1, 1), around)
            for step, z in zip(steps, exact_trace(point, x), strict=True):
                low, high = fractions(step.z.low), fractions(step.z.high)
                assert ((low <= z) & (z <= high)).all()


@over_networks
def test_enclosed_products_with_transposes_hold_the_exact_ones(layers):
    theta, _ = problem(layers)
    nothing, rng = theta.net.zeros(), np.random.default_rng(2)
    for layer, W in theta.W.items():
        W = W.at(rng.normal(size=W.shape[1]))
        delta = rng.normal(size=(W.shape[0], 3)) / 3
        true = entries(W).T.dot(fractions(delta))
        found = times(W.T, exact(delta), None if W.weights is None else nothing.W[layer].T)
        for one in (found, product(W.T, Enclosure(delta, abs(delta) * 2.0**-30))):
            assert ((fractions(one.low) <= true) & (true <= fractions(one.high))).all()


@in_turn(
    over_networks,
    pytest.mark.parametrize("sigma", [ts.ReLU(0.25), ts.Tanh()], ids=["leaky", "tanh"]),
)
def test_hessians_over_a_box_hold_those_of_products(layers, sigma):
    theta, data = problem(layers, sigma=sigma)
    theta.vector += np.random.default_rng(3).normal(size=theta.net.size) / 64
    net, loss = theta.net, ts.SquaredLoss()
    held = Held(net, data, loss)
    unit = net.zeros()
    columns = []
    for j in range(net.size):
        unit.vector[...] = np.arange(net.size) == j
        columns.append(net.hessian_product(theta, unit, data, loss).vector)
    expected = np.stack(columns, axis=1)
    found = held.hessian(theta, np.zeros(0))
    assert abs(found - expected).max() <= 1e-12 * abs(expected).max()
    box = Box(theta, net.zeros(), exact(np.zeros(0)))
    enclosed = second_order(held, box, np.arange(net.size)).hessian
    off = abs(enclosed.middle - expected) - enclosed.radius
    assert off.max() <= 1e-13 * abs(expected).max()
    assert enclosed.radius.max() <= 1e-9 * abs(expected).max()
    gradient = first_order(held, box).gradient
    assert abs(gradient.middle - net.gradient(theta, data, loss).vector).max() <= 1e-13


@pytest.mark.parametrize("bias", [True, False])
def test_what_reads_zeros_alone_is_at_a_kink_only_with_a_bias(bias):
    net = Network((1, 3, 4), [Conv(2, 3, 2, "valid", bias=bias), Dense(1)])
    theta, x = net.zeros(), np.zeros((2, 1, 3, 4))
    theta.W[1].weights[...] = theta.W[2].weights[...] = 1
    x[0] = 1
    data = ts.TrainingSet(x, np.array([[18.0], [0.0]]) - theta.net.forward(theta, x) * 0)
    cell = ts.certify_cell(theta, data, ts.SquaredLoss())
    assert bool(cell.kinks) == bias


@over_networks
def test_no_lower_point_is_in_the_cell_of_a_certified_minimum(layers):
    rng, loss, certified = np.random.default_rng(4), ts.SquaredLoss(), []
    for seed in range(4):
        theta, data = problem(layers, seed)
        net = theta.net
        theta.vector[net.slots[net.depth].weights] = 0  # the output is its biases: their mean fits
        theta.b[net.depth] = data.y.mean(axis=0)
        first = min(net.slots)
        if first in theta.b:
            theta.b[first] = theta.b[first] - 9.0  # dead: one class
            for layer in (layer for layer in net.active_layers if layer in theta.b):
                theta.b[layer] = theta.b[layer] - 1e-3  # above it z is b
        found = ts.certify_cell(theta, data, loss)
        best = net.risk(theta, data, loss)
        certified.append(found.holds)
        for _, scale in itertools.product(range(10), (1, 0.1)):
            move = scale * found.radius * rng.choice([-1.0, 0.0, 1.0], net.size)
            if found.holds:
                near = Parameters(net, theta.vector + move)
                assert net.risk(near, data, loss) >= best - found.delta - 1e-12
    assert all(certified) or first not in theta.b
