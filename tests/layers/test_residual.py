"""Residual blocks are matrices that carry along what is added to their output."""

import json
import re

import numpy as np
import pytest
import strict_device
import torch
import torch.nn.functional as F
from shared import close, refuses

import tinyspur as ts
from tinyspur.certificates.enclosures import Enclosure, product
from tinyspur.engine.activations import Identity, ReLU, Tanh
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import (
    AveragePool,
    BlockMatrix,
    Conv,
    Dense,
    DenseMatrix,
    IdentityMatrix,
    MaxPool,
    Residual,
    Same,
    layer_of,
)

NETWORKS = {
    "plain": ((1, 6), [Dense(4), Residual([Dense(5), Dense(4)]), Dense(2)]),
    "shortcut": ((1, 6), [Dense(4), Residual([Dense(5), Dense(3)], [Dense(3)]), Dense(2)]),
    "long shortcut": (
        (1, 6),
        [Dense(4), Residual([Dense(3)], [Dense(5, activation=ReLU()), Dense(3)]), Dense(2)],
    ),
    "convolutions": (
        (2, 4, 4),
        [
            Conv(3),
            Residual([Conv(4, stride=2), Conv(4, bias=False)], [Conv(4, 1, 2)]),
            Residual([Conv(4, groups=4), Conv(4, 1)], activation=Identity()),
            AveragePool(2),
            Dense(2),
        ],
    ),
    "poolings": (
        (2, 4, 4),
        [Conv(3), Residual([MaxPool(3, 1, 1), Conv(3)], [AveragePool(3, 1, 1)]), Dense(2)],
    ),
    "nested": (
        (1, 6),
        [
            Dense(4),
            Residual([Same(), Residual([Dense(3), Dense(4)]), Dense(4)], [Residual([Dense(4)])]),
            Dense(2),
        ],
    ),
}
NETS = {name: Network(*parts) for name, parts in NETWORKS.items()}
over_networks = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def whole(rng, *shape):
    """Return small whole numbers, some of them 0: sums come out the same in every order."""
    return rng.integers(-3, 4, size=shape).astype(np.float64)


def point(net, seed=0):
    return Parameters(net, whole(np.random.default_rng(seed), net.size))


def matrices(net, seed=0, samples=4):
    """Yield each matrix with what it reads, columns, and others as many as its rows."""
    rng = np.random.default_rng(seed + 1)
    for W in point(net, seed).W.values():
        yield W, whole(rng, W.shape[1], samples), whole(rng, W.shape[0], samples)


def dense(rows, columns, seed=0):
    return DenseMatrix(whole(np.random.default_rng(seed), rows, columns))


# Matrices


def test_the_arrangements_of_a_block_are_these_matrices():
    W, narrow, eye, zero = dense(3, 2), dense(2, 2), np.eye(2), np.zeros((3, 2))
    first, second = slice(0, 2), slice(2, 4)
    A, B = W.toarray(), narrow.toarray()
    for found, expected in (
        (BlockMatrix(W, 2, first, None, (first,)), [[A], [eye]]),
        (BlockMatrix(W, 4, first, None, (second,)), [[A, zero], [np.zeros((2, 2)), eye]]),
        (BlockMatrix(W, 4, second, None, (first,)), [[zero, A], [eye, np.zeros((2, 2))]]),
        (BlockMatrix(narrow, 4, first, second, ()), [[B, eye]]),
        (BlockMatrix(IdentityMatrix((2,)), 4, first, second, ()), [[eye, eye]]),
        (BlockMatrix(W, 2, first, None, (first, first)), [[A], [eye], [eye]]),
    ):
        assert np.array_equal(found.toarray(), np.block(expected))
        assert found.nnz == np.count_nonzero(np.block(expected))
        alone = np.zeros(found.shape)
        alone[: found.rows, found.read] = found.own_matrix.toarray()
        assert np.array_equal(found.trained.toarray(), alone)


@over_networks
def test_products_and_transposes_are_those_of_the_csr_matrix(net):
    for W, o, delta in matrices(net):
        for n in range(o.shape[1]):
            one = W.at(o[:, [n]])
            A = one.toarray()
            assert A.shape == W.shape == one.tocsr().shape
            close((W @ o)[:, n], A @ o[:, n], 1e-14)
            close((W.at(o).T @ delta)[:, n], A.T @ delta[:, n], 1e-14)
            close(abs(one).toarray(), abs(A), 1e-14)
            close(abs(one.T).toarray(), abs(A).T, 1e-14)
            close(one.T.T.toarray(), A, 1e-14)
            assert one.nnz == np.count_nonzero(A)
            rows = np.arange(W.shape[0])[::2]
            close(one.tocsr(rows).toarray(), A[rows], 1e-14)


@over_networks
def test_gradients_and_supports_are_those_of_the_trained_entries(net):
    for W, o, delta in matrices(net):
        if W.weights is None:
            assert W.support_sums(abs(o)) is None
            continue
        T = W.trained.toarray()
        expected, ones = np.zeros_like(W.weights), W.with_weights(np.ones_like(W.weights))
        for index in np.ndindex(*W.weights.shape):
            one = np.zeros_like(W.weights)
            one[index] = 1
            expected[index] = (delta * (W.with_weights(one).trained.toarray() @ o)).sum()
        change, below = W.pullback(delta, o)
        close(change, expected, 1e-14)
        close(W.gradient(delta, o), expected, 1e-14)
        close(below, W.toarray().T @ delta, 1e-14)
        close(W.trained @ o, T @ o, 1e-14)
        close(W.trained.T @ delta, T.T @ delta, 1e-14)
        sums = ((ones.trained.toarray() != 0) @ abs(o))[: W.rows]
        sums = sums.reshape(W.maps_out, W.positions_out, -1)
        close(np.broadcast_to(W.support_sums(abs(o)), sums.shape), sums, 1e-14)


@over_networks
def test_products_of_enclosures_enclose(net):
    for W, o, _ in matrices(net):
        if W.selects:
            continue
        rng, radius = np.random.default_rng(2), np.full(o.shape, 0.25)
        reach = None if W.weights is None else W.with_weights(0.5 + 0 * W.weights).trained
        found = product(W, Enclosure(o, radius), reach)
        for _ in range(5):
            near = o + radius * rng.choice([-1.0, 1.0], o.shape)
            A = W.toarray()
            if reach is not None:
                moved = W.weights + 0.5 * rng.choice([-1.0, 1.0], W.weights.shape)
                A = W.with_weights(moved).toarray()
            assert (abs(A @ near - found.middle) <= found.radius).all()


@over_networks
def test_on_a_device_products_are_those_of_numpy(net):
    theta = point(net)
    there = theta.to(strict_device)
    for (layer, W), (_, o, delta) in zip(theta.W.items(), matrices(net), strict=True):
        columns = strict_device.asarray(o)
        close(to_numpy(there.W[layer] @ columns), W @ o)
        back = there.W[layer].at(columns).T @ strict_device.asarray(delta)
        close(to_numpy(back), W.at(o).T @ delta)


def test_blocks_and_readers_are_those_of_the_layer_itself():
    net = NETS["convolutions"]
    theta = point(net)
    shortcut, depthwise = theta.W[4], theta.W[6]
    assert shortcut.read.start > 0
    filters = shortcut.weights[:, :, 0, 0]
    for t, c in ((0, 0), (3, 2)):
        block = shortcut.block(t, c)
        assert block.shape == (4, 16) and set(np.unique(block)) <= {0.0, filters[t, c]}
    assert depthwise.groups == 4 and depthwise.readers(2) == slice(2, 3)


# Networks


def forward(layers, x, weights, sigma=torch.relu):
    """Return o = layers(x) as it is written, without the activation after the last one."""
    for number, layer in enumerate(layers):
        x = layer(x, weights)
        x = x if number == len(layers) - 1 else sigma(x)
    return x


def tensors(theta, layer):
    return torch.tensor(theta.W[layer].weights), torch.tensor(theta.b[layer])


def test_a_block_is_its_layers_and_its_shortcut_added():
    theta, rng = point(NETS["convolutions"]), np.random.default_rng(3)
    net, x = theta.net, rng.normal(size=(5, 2, 4, 4))
    o = torch.relu(F.conv2d(torch.tensor(x), *tensors(theta, 1), padding=1))
    inner = torch.relu(F.conv2d(o, *tensors(theta, 2), stride=2, padding=1))
    inner = F.conv2d(inner, torch.tensor(theta.W[3].weights), padding=1)
    o = torch.relu(inner + F.conv2d(o, *tensors(theta, 4), stride=2))
    inner = torch.relu(F.conv2d(o, *tensors(theta, 6), padding=1, groups=4))
    o = o + F.conv2d(inner, *tensors(theta, 7))
    expected = F.linear(F.avg_pool2d(o, 2).flatten(1), *tensors(theta, 10))
    close(net.forward(theta, x), expected.numpy())


def test_nested_blocks_are_added_one_by_one():
    theta, rng = point(NETS["nested"]), np.random.default_rng(3)
    net, x = theta.net, rng.normal(size=(5, 1, 6))
    layer = {n: tensors(theta, n) for n in net.slots}
    assert list(layer) == [1, 3, 4, 6, 7, 10]
    o = torch.relu(F.linear(torch.tensor(x).flatten(1), *layer[1]))
    first = torch.relu(o)  # of Same
    inner = F.linear(torch.relu(F.linear(first, *layer[3])), *layer[4])
    block = F.linear(torch.relu(inner + first), *layer[6])
    shortcut = F.linear(o, *layer[7]) + o
    expected = F.linear(torch.relu(block + shortcut), *layer[10])
    close(net.forward(theta, x), expected.numpy())


def test_the_activation_follows_the_sum_and_not_the_last_layers_before_it():
    net = Network((1, 6), [Dense(4), Residual([Dense(5), Dense(4)], [Dense(4)]), Dense(2)], Tanh())
    sigma = [net.activation_of(layer) for layer in range(1, net.depth + 1)]
    assert sigma == [Tanh(), Tanh(), None, None, Tanh(), None]
    named = Residual(
        [Dense(5, activation=Identity()), Dense(4, activation=ReLU())], activation=Identity()
    )
    net = Network((1, 6), [Dense(4), named, Dense(2)], Tanh())
    sigma = [net.activation_of(layer) for layer in range(1, net.depth + 1)]
    assert sigma == [Tanh(), None, ReLU(), None, None]
    last = Network((1, 6), [Dense(4), Residual([Dense(4)])])
    assert [last.activation_of(layer) for layer in (1, 2, 3)] == [ReLU(), None, None]


def test_an_activation_after_max_pooling_is_a_layer_with_a_pattern_of_its_own():
    conv, rng = Conv(2, activation=Identity()), np.random.default_rng(0)
    net = Network((1, 4, 4), [conv, MaxPool(2, activation=ReLU()), Dense(2)])
    theta, x = Parameters(net, rng.normal(size=net.size)), rng.normal(size=(5, 1, 4, 4))
    assert net.depth == 4 and net.pattern_layers == (2, 3)
    z = F.max_pool2d(F.conv2d(torch.tensor(x), *tensors(theta, 1), padding=1), 2).flatten(1)
    close(net.forward(theta, x), F.linear(torch.relu(z), *tensors(theta, 4)).numpy())
    assert np.array_equal(net.patterns(theta, x)[3], (z > 0).numpy())


@over_networks
def test_the_spec_comes_back_and_is_plain_json(net):
    spec = json.loads(json.dumps(net.spec))
    assert Network.from_spec(spec) == net
    for layer in net.layers:
        assert layer_of(json.loads(json.dumps(layer.spec))) == layer


def test_the_spec_of_a_block_names_what_is_not_usual():
    block = Residual([Dense(2)], [Same(activation=Tanh())], activation=Identity())
    assert block.spec == {
        "type": "residual",
        "layers": [{"type": "dense", "width": 2}],
        "shortcut": [{"type": "same", "activation": {"name": "tanh"}}],
        "activation": {"name": "identity"},
    }
    assert repr(block) == (
        "Residual(layers=(Dense(width=2),), shortcut=(Same(activation=Tanh()),), "
        "activation=Identity())"
    )


def test_a_block_of_max_pooling_counts_the_entries_that_it_has_for_any_input():
    net = Network((1, 4), [Conv(2), Residual([MaxPool(3, stride=1, padding=1)]), Dense(1)])
    block, o = net.zeros().W[2], np.arange(8.0)[:, None]
    assert repr(block) == "BlockMatrix(16 x 8, MaxPoolingMatrix 8 x 8, 8 carried, 16 nonzeros)"
    assert np.count_nonzero(block.at(o).toarray()) == block.nnz == block.at(o).nnz


@over_networks
def test_points_of_blocks_are_saved_and_loaded(net, tmp_path):
    theta = point(net)
    ts.save_point(tmp_path / "point.npz", theta)
    again = ts.load_point(tmp_path / "point.npz")
    assert again.net == net and again.vector.tobytes() == theta.vector.tobytes()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [Dense(4), Residual([Dense(3)]), Dense(2)],
            "layer 3, Same(): expected a sum of equal shapes, got (3,) and (4,)",
        ),
        (
            [Dense(4), Residual([Dense(3)], [Dense(5)]), Dense(2)],
            "layer 4, Same(): expected a sum of equal shapes, got (5,) and (3,)",
        ),
        (
            [Dense(4), Residual([Conv(3), Dense(4)]), Dense(2)],
            "layer 2, Conv(maps=3, kernel=3, activation=Identity()): expected maps below it",
        ),
        (
            [Residual([Same(), Dense(6)], [Dense(6)]), Dense(2)],
            "expected a layer with weights below the first activation and in front of the first",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_their_number(layers, message):
    message = message.replace("activation=Identity()", "").replace(", )", ")")
    with refuses(ValueError, message):
        Network((1, 6), layers)


@pytest.mark.parametrize("layers", [(), 3, "ab", [Dense], None])
def test_blocks_of_no_layers_are_refused(layers):
    with pytest.raises(ValueError, match="residual block: expected"):
        Residual(layers)


def test_biases_and_weights_of_a_sum_are_refused_by_its_name():
    theta = point(NETS["plain"])
    with pytest.raises(KeyError, match=re.escape("layer 4, Link(layer=Same(), ")):
        theta.b[4] = 1.0
    with refuses(ValueError, "theta.W[4]: expected no weights for a layer that has none"):
        theta.W[4] = np.eye(4)


# Rescaling


@over_networks
def test_maps_of_blocks_are_rescaled_where_outputs_stay_and_refused_elsewhere(net):
    rng = np.random.default_rng(5)
    theta = Parameters(net, rng.normal(size=net.size))
    x, rescaled = rng.normal(size=(4, *net.input_shape)), 0
    for layer in net.active_layers:
        try:
            moved = ts.rescale(theta, layer, 4.0)
        except ValueError as error:
            assert "expected one reader" in str(error) or "expected a layer in" in str(error)
        else:
            rescaled += 1
            close(net.forward(moved, x), net.forward(theta, x))
    assert rescaled == {"poolings": 0}.get(name_of(net), rescaled) and rescaled < len(NETS)


def name_of(net):
    return next(name for name, other in NETS.items() if other is net)


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(4), Residual([Dense(4, activation=ReLU())]), Dense(2)],
        [Dense(4), Same(activation=Tanh()), Dense(2)],
    ],
    ids=["added to others", "below a smooth activation"],
)
def test_evidence_has_no_rescalings_that_change_outputs(layers):
    from tinyspur.refutations.evidence import rescaling_tangents

    net, rng = Network((1, 6), layers), np.random.default_rng(6)
    theta = Parameters(net, rng.normal(size=net.size))
    assert rescaling_tangents(theta).shape == (0, net.size)
