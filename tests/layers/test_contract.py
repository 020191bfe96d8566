"""What every kind of layer owes the engine, for every kind, in all the shapes that matter.

A new kind adds its layers to `LAYERS` and is held to all of it.
"""

import itertools
import json
import math

import numpy as np
import pytest
import strict_device
import torch
import torch_twin
from certificate_problems import patterns_of, same_patterns
from shared import in_turn

import tinyspur as ts
from tinyspur import interop
from tinyspur.certificates import certify_cell
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import (
    KINDS,
    AveragePool,
    Conv,
    Dense,
    Layer,
    MaxPool,
    Residual,
    Same,
    Scale,
    layer_of,
)
from tinyspur.refutations.evidence import rescaling_tangents

LAYERS = [  # a layer and the shape below it
    (Conv(3), (2, 4, 5)),
    (Conv(2, 1), (3, 4, 4)),
    (Conv(1, 5), (1, 3, 4)),
    (Conv(2, 7), (2, 3)),
    (Conv(4), (1, 1, 1)),
    (Conv(3, stride=2), (2, 4, 5)),
    (Conv(2, 1, 2), (3, 4, 4)),
    (Conv(2, 5, 3), (1, 7, 4)),
    (Conv(2, 3, 2), (2, 9)),
    (Conv(2, 3, 9), (2, 4, 3)),
    (Conv(2, 5, padding="valid"), (2, 6, 5)),
    (Conv(2, 2), (2, 3, 4)),
    (Conv(2, 4, stride=2, padding=1), (2, 6, 4)),
    (Conv(2, 2, stride=(2, 1), padding=((0, 2), 1)), (1, 3, 4)),
    (Conv(2, 3, dilation=2), (2, 5, 4)),
    (Conv(2, (2, 3), (2, 1), (1, 0), (1, 2)), (2, 4, 6)),
    (Conv(4, 3, groups=2), (2, 4, 3)),
    (Conv(3, 3, stride=2, groups=3, bias=False), (3, 4, 5)),
    (Conv(2, 4, padding=2, dilation=2, bias=False), (1, 7)),
    (Conv(2, 1, padding=1), (2, 2, 3)),
    (AveragePool(2), (3, 4, 6)),
    (AveragePool(3, 2, 1), (2, 4, 5)),
    (AveragePool(3, 2, 1, count_include_pad=False), (2, 4, 5)),
    (AveragePool((2, 3), (1, 2), ceil_mode=True), (1, 3, 6)),
    (AveragePool(2), (2, 5)),
    (MaxPool(3, 2, 1), (2, 4, 5)),
    (MaxPool((1, 2), ceil_mode=True), (2, 2, 5)),
    (MaxPool(2, 1, dilation=2), (2, 4, 3)),
    (MaxPool(4, 3, 2), (2, 7)),
    (AveragePool(3), (2, 9)),
    (AveragePool(1), (1, 2, 2)),
    (MaxPool(2), (3, 4, 6)),
    (MaxPool(3), (2, 9)),
    (MaxPool(1), (1, 2, 2)),
    (Dense(4), (2, 3, 2)),
    (Dense(3), (5,)),
    (Dense(1), (1, 4)),
    (Dense(3, bias=False), (2, 2, 2)),
    (Scale(), (3, 2, 3)),
    (Scale(bias=False), (2, 4)),
    (Scale(), (4,)),
    (Scale(), (1, 2, 2)),
]
over_layers = pytest.mark.parametrize(
    ("layer", "below"), LAYERS, ids=[f"{layer} on {below}" for layer, below in LAYERS]
)
over_activations = pytest.mark.parametrize(
    "sigma", [ts.ReLU(), ts.ReLU(0.2), ts.Tanh()], ids=["relu", "leaky", "tanh"]
)


def whole(rng, *shape):
    """Return small whole numbers, some of them 0: a wrong entry is off by much."""
    return rng.integers(-3, 4, size=shape).astype(np.float64)


def same(found, expected):
    """Whether two arrays are equal up to the rounding of a mean of small whole numbers."""
    found, expected = np.asarray(found), np.asarray(expected)
    return found.shape == expected.shape and abs(found - expected).max(initial=0) <= 1e-13


def matrix_of(layer, below, seed=0):
    shape = layer.weight_shape(below)
    weights = None if shape is None else whole(np.random.default_rng(seed), *shape)
    return layer.matrix(below, weights)


def at(W, columns, n):
    """Return the matrix that W is for sample n alone."""
    return W.at(columns[:, [n]])


def network(layer, below, sigma):
    """Return a network with the layer in the middle: something moves below it and reads it."""
    if layer.spatial and len(below) > 1:
        first = [Conv(below[0], 1)] if below[0] > 1 else [Conv(1, 3)]
        last = [Conv(2), Dense(2)]
        return Network((2, *below[1:]), [*first, layer, *last], sigma)
    return Network((1, 6), [Dense(math.prod(below)), layer, Dense(2)], sigma)


def problem(layer, below, sigma, samples=5, seed=0):
    net, rng = network(layer, below, sigma), np.random.default_rng(seed)
    theta = Parameters(net, rng.normal(size=net.size) / 2)
    x = rng.normal(size=(samples, *net.input_shape))
    return theta, ts.TrainingSet(x, rng.normal(size=(samples, 2)))


def test_every_kind_is_held_to_the_contract():
    assert {type(layer) for layer, _ in LAYERS} | {Residual, Same} == set(
        KINDS
    )  # see test_residual
    assert all(issubclass(kind, Layer) for kind in KINDS)
    assert len({kind.type for kind in KINDS}) == len(KINDS)


@over_layers
def test_the_spec_comes_back_and_is_plain_json(layer, below):
    spec = json.loads(json.dumps(layer.spec))
    assert layer_of(spec) == layer
    assert spec["type"] == layer.type


@over_layers
def test_shapes_fit_the_matrix_and_the_weights(layer, below):
    W, out = matrix_of(layer, below), layer.output_shape(below)
    assert W.shape == (math.prod(out), math.prod(below))
    assert W.maps_out * W.positions_out == math.prod(out)
    assert (W.maps_in, W.positions_in) == (below[0], math.prod(below[1:]))
    assert (W.weights is not None) == layer.trainable == (layer.weight_shape(below) is not None)
    assert W.selects == layer.selects
    if layer.trainable:
        assert W.maps_out == layer.weight_shape(below)[0] == out[0]


@over_layers
def test_products_and_transposes_are_those_of_the_csr_matrix(layer, below):
    rng, W = np.random.default_rng(1), matrix_of(layer, below)
    o, delta = whole(rng, W.shape[1], 6), whole(rng, W.shape[0], 6)
    for n in range(6):
        one, csr = at(W, o, n), at(W, o, n).tocsr()
        assert same((W @ o)[:, n], csr @ o[:, n])
        assert same((W.at(o) @ o)[:, n], csr @ o[:, n])
        assert same((W.at(o).T @ delta)[:, n], csr.T @ delta[:, n])
        assert same(one.T.toarray(), csr.toarray().T)
        assert same(one.T.T.toarray(), csr.toarray())
        assert same(abs(one).toarray(), abs(csr.toarray()))
        assert same(abs(one.T).toarray(), abs(csr.toarray()).T)
        assert same(abs(one.T) @ delta[:, n], abs(csr).T @ delta[:, n])
        assert one.nnz == csr.count_nonzero()


def test_a_scale_starts_as_the_identity():
    net = Network((2, 3), [Conv(4), Scale(), Dense(2)])
    theta = ts.kaiming_start(net)
    assert theta.W[2].weights.tolist() == [1] * 4 and not theta.b[2].any()
    assert (theta.W[1].weights != 0).all()


@over_layers
def test_the_dot_test_holds(layer, below):
    rng, W = np.random.default_rng(2), matrix_of(layer, below)
    o, delta = whole(rng, W.shape[1], 4), whole(rng, W.shape[0], 4)
    assert same(((W @ o) * delta).sum(), (o * (W.at(o).T @ delta)).sum())


@over_layers
def test_entries_rows_and_blocks_are_those_of_the_array(layer, below):
    W = matrix_of(layer, below)
    W = at(W, whole(np.random.default_rng(3), W.shape[1], 1), 0)
    A = W.toarray()
    p, q = W.positions_out, W.positions_in
    for t, c in itertools.product(range(W.maps_out), range(W.maps_in)):
        assert same(W.block(t, c), A[t * p : (t + 1) * p, c * q : (c + 1) * q])
    assert same(W[0, :], A[0])
    assert same(W[:, -1], A[:, -1])
    assert W[0, 0] == A[0, 0]


@over_layers
def test_support_sums_and_gradients_are_those_of_the_entries(layer, below):
    if not layer.trainable:
        W = matrix_of(layer, below)
        assert W.support_sums(np.ones((W.shape[1], 1))) is None
        with pytest.raises(TypeError, match="has no weights"):
            W.gradient(np.ones((W.shape[0], 1)), np.ones((W.shape[1], 1)))
        with pytest.raises(TypeError, match="has no weights"):
            W.outgoing(0)
        return
    rng, W = np.random.default_rng(4), matrix_of(layer, below)
    o, delta = whole(rng, W.shape[1], 3), whole(rng, W.shape[0], 3)
    ones = W.with_weights(np.ones_like(W.weights))
    support = (ones.toarray() != 0).astype(float)
    for c in range(W.maps_in):
        columns = slice(c * W.positions_in, (c + 1) * W.positions_in)
        assert same(W.of_map(c).toarray(), W.toarray()[:, columns])
        reads = ones.toarray().reshape(W.maps_out, -1, W.shape[1])[:, :, columns].any(axis=(1, 2))
        assert np.flatnonzero(reads).tolist() == list(range(W.maps_out))[W.readers(c)]
    sums = (support @ abs(o)).reshape(W.maps_out, W.positions_out, -1)
    assert same(np.broadcast_to(W.support_sums(abs(o)), sums.shape), sums)
    expected = np.zeros_like(W.weights)
    for index in np.ndindex(*W.weights.shape):
        one = np.zeros_like(W.weights)
        one[index] = 1
        expected[index] = (delta * (W.with_weights(one).toarray() @ o)).sum()
    gradient, back = W.pullback(delta, o)
    assert same(W.gradient(delta, o), expected)
    assert same(gradient, expected)
    assert same(back, W.toarray().T @ delta)


@over_layers
def test_outgoing_weights_are_those_that_read_a_map_as_a_view(layer, below):
    if not layer.trainable:
        return
    W = matrix_of(layer, below)
    for c in range(W.maps_in):
        expected = W.toarray()
        expected[:, c * W.positions_in : (c + 1) * W.positions_in] *= 8
        again = W.with_weights(W.weights.copy())
        outgoing = again.outgoing(c)
        outgoing *= 8
        assert same(again.toarray(), expected)


@over_layers
def test_on_a_device_products_are_those_of_numpy(layer, below):
    rng, W = np.random.default_rng(5), matrix_of(layer, below)
    o, delta = whole(rng, W.shape[1], 3), whole(rng, W.shape[0], 3)
    weights = None if W.weights is None else strict_device.asarray(W.weights)
    there, columns = layer.matrix(below, weights), strict_device.asarray(o)
    assert same(to_numpy(there @ columns), W @ o)
    back = there.at(columns).T @ strict_device.asarray(delta)
    assert same(to_numpy(back), W.at(o).T @ delta)


@in_turn(
    over_layers,
    over_activations,
)
def test_outputs_and_gradients_are_those_of_pytorch(layer, below, sigma):
    theta, data = problem(layer, below, sigma)
    twin = torch_twin.Twin(json.dumps(theta.net.spec)).load(theta.arrays())
    expected = twin(data.x).detach().numpy()
    assert np.allclose(theta.net.forward(theta, data.x), expected, rtol=1e-12, atol=1e-13)
    model = interop.to_torch(theta)
    assert np.allclose(model(torch.tensor(data.x)).detach(), expected, rtol=1e-12, atol=1e-13)
    expected = torch_twin.gradients(twin, data.x, data.y, "squared")
    found = theta.net.gradient(theta, data, ts.SquaredLoss()).arrays()
    for name, values in found.items():
        assert np.allclose(values, expected[name], rtol=1e-11, atol=1e-13)


@in_turn(
    over_layers,
    over_activations,
)
def test_a_model_comes_back_bit_for_bit(layer, below, sigma):
    theta, _ = problem(layer, below, sigma)
    again = interop.from_torch(interop.to_torch(theta), theta.net.input_shape)
    assert again.net == theta.net
    assert np.array_equal(again.vector, theta.vector)


@in_turn(
    over_layers,
    over_activations,
)
def test_the_hessian_product_is_that_of_differences(layer, below, sigma):
    theta, data = problem(layer, below, sigma)
    rng, net, loss, step = np.random.default_rng(6), theta.net, ts.SquaredLoss(), 1e-6
    v = Parameters(net, rng.normal(size=net.size))
    ends = [
        net.gradient(Parameters(net, theta.vector + s * step * v.vector), data, loss).vector
        for s in (1, -1)
    ]
    found = net.hessian_product(theta, v, data, loss).vector
    expected = (ends[0] - ends[1]) / (2 * step)
    assert abs(found - expected).max() <= 1e-6 * abs(expected).max()


@in_turn(
    over_layers,
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_rescaling_keeps_outputs_and_its_tangents_are_flat(layer, below, slope):
    theta, data = problem(layer, below, ts.ReLU(slope))
    net, before = theta.net, theta.net.forward(theta, data.x)
    for active in net.active_layers:
        for target in (None, *range(net.shapes[active][0])):
            moved = ts.rescale(theta, active, 8.0, target)
            assert np.array_equal(net.forward(moved, data.x), before)
            assert (moved.vector != theta.vector).any()
    for row in rescaling_tangents(theta).toarray():
        ends = [
            net.forward(Parameters(net, theta.vector + s * 1e-6 * row), data.x) for s in (1, -1)
        ]
        assert abs(ends[0] - ends[1]).max() <= 1e-9 * abs(before).max()


@in_turn(
    over_layers,
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_no_pattern_changes_within_the_radius(layer, below, slope):
    rng = np.random.default_rng(7)
    theta, data = problem(layer, below, ts.ReLU(slope), samples=2, seed=0)
    radius, before = certify_cell(theta, data, ts.SquaredLoss()).radius, patterns_of(theta, data.x)
    assert radius > 0
    for _ in range(5):
        move = radius * rng.choice([-1.0, 1.0], size=theta.net.size)
        assert same_patterns(theta, move, data.x, before)
