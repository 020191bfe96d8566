"""Passes: steps, Hessian products, patterns and margins are exact, in chunks of any size."""

import re

import numpy as np
import pytest
import torch
import torch_twin
from hypothesis import given
from hypothesis import strategies as st
from network_problems import over_networks, problems, torch_hessian_product
from shared import close, random_theta, twin_of
from threadpoolctl import ThreadpoolController

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine import threads as engine_threads
from tinyspur.engine.activations import GELU, Identity, ReLU, Tanh
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import margins as margins_of
from tinyspur.engine.passes import steps
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, convolution_matrix

# Steps


def test_layers_are_weight_matrix_bias_and_activation():
    rng = np.random.default_rng(0)
    net = Network((2, 4), [Conv(3), AveragePool(2), Dense(4), Dense(2)], ReLU(0.2))
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(5, 2, 4))
    o = x.reshape(5, -1).T
    for layer, *_, z, after, _ in steps(theta, o.copy()):
        o = theta.W[layer].toarray() @ o
        if layer != 2:
            o = o + np.repeat(theta.b[layer], net.positions(layer))[:, None]
        close(z, o, 1e-13)
        if net.is_active(layer):
            o = np.maximum(o, 0.2 * o)
        close(after, o, 1e-13)
    assert net.active_layers == (1, 3)


class TwiceReLU(ReLU):
    """A user's activation: 2 max(z, 0)."""

    def __call__(self, z):
        return 2 * super().__call__(z)

    def derivative(self, z):
        return 2 * super().derivative(z)


class Composed(SquaredLoss):
    """A user's loss, that runs passes of another network before it answers."""

    def __init__(self, run):
        self.run = run

    def gradient(self, o, y):
        self.run()
        return super().gradient(o, y)

    def curvature(self, o, y, d):
        self.run()
        return super().curvature(o, y, d)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.1), Tanh()], ids=repr)
def test_a_loss_may_run_passes(sigma, workers, monkeypatch):
    monkeypatch.setattr(engine_threads, "WORKERS", workers)
    rng = np.random.default_rng(0)
    nets = [Network((1, 6), [Conv(n), Conv(3), Conv(4), Dense(1)], sigma, 3000) for n in (2, 3)]
    (theta, v, data), (phi, w, other) = (
        (
            Parameters(net, rng.normal(size=net.size)),
            Parameters(net, rng.normal(size=net.size)),
            TrainingSet(rng.normal(size=(30, 1, 6)), rng.normal(size=30)),
        )
        for net in nets
    )

    def run():
        nets[1].risk_and_gradient(phi, other, SquaredLoss())
        nets[1].hessian_product(phi, w, other, SquaredLoss())

    found, known = (
        (
            nets[0].gradient(theta, data, loss).vector,
            nets[0].hessian_product(theta, v, data, loss).vector,
        )
        for loss in (Composed(run), SquaredLoss())
    )
    assert np.array_equal(found, known)


@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.1), TwiceReLU(), Tanh()], ids=repr)
def test_passes_that_overwrite_compute_what_the_layers_do(sigma):
    net = Network((2, 4, 4), [Conv(3), MaxPool(2), Conv(2), AveragePool(2), Dense(3)], sigma)
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(20, 2, 4, 4)), rng.normal(size=(20, 3)))
    kept = theta.vector.copy(), data.x.copy(), data.y.copy()
    ((_, columns),) = net.chunks(theta, data.x)
    o = list(steps(theta, columns))[-1].o.T
    assert np.array_equal(net.forward(theta, data.x), o)
    risk, gradient = net.risk_and_gradient(theta, data, SquaredLoss())
    close(risk, ((o - data.y) ** 2).sum() / 40, 1e-13)
    step = 1e-6 * random_theta(net, 3).vector
    ends = [
        net.risk(Parameters(net, theta.vector + s * step), data, SquaredLoss()) for s in (1, -1)
    ]
    assert abs((ends[0] - ends[1]) / 2 - gradient.vector @ step) <= 1e-12
    for before, after in zip(kept, (theta.vector, data.x, data.y), strict=True):
        assert np.array_equal(before, after)


def test_gradients_are_pulled_back_through_convolutions_without_activations(monkeypatch):
    """Row by row, where nothing lies between them that has memory of its own."""
    monkeypatch.setattr(convolution_matrix, "STRIP_BYTES", 1)
    rng = np.random.default_rng(1)
    linear = [Conv(maps, activation=Identity()) for maps in (3, 4, 3, 3)]
    net = Network((2, 5), [*linear[:2], MaxPool(1), *linear[2:], Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    x, y = rng.normal(size=(6, 2, 5)), rng.normal(size=(6, 2))
    outputs = [x.reshape(6, -1).T]
    for layer in range(1, net.depth + 1):
        z = theta.W[layer].toarray() @ outputs[-1] if layer != 3 else outputs[-1]
        own = theta.b.get(layer)
        outputs.append(z if own is None else z + np.repeat(own, net.positions(layer))[:, None])
    found, delta = net.gradient(theta, TrainingSet(x, y), SquaredLoss()), (outputs[-1] - y.T) / 6
    for layer in range(net.depth, 0, -1):
        if layer != 3:
            W, below = theta.W[layer], outputs[layer - 1]
            close(found.b[layer], delta.reshape(W.maps_out, -1).sum(axis=1))
            close(found.W[layer].weights, W.gradient(delta, below))
            delta = W.toarray().T @ delta


def test_an_activation_of_the_users_may_keep_what_it_is_given_and_run_passes():
    small = Network((1, 6), [Conv(2), Conv(3), Dense(1)], Tanh())
    other, kept = kaiming_start(small, 1), []

    def gate(z):
        kept.append((z, z.copy()))
        shift = float(small.forward(other, np.ones((2, 1, 6))).mean())
        return np.sin(z) + shift

    def slope(z):
        return np.cos(z)

    net = Network((1, 6), [Conv(2), Conv(2), Conv(3), Dense(2)], SmoothActivation("g", gate, slope))
    theta, x = kaiming_start(net, 0), np.random.default_rng(0).normal(size=(5, 1, 6))
    kept.clear()
    outputs = list(steps(theta, x.reshape(5, -1).T.copy()))[-1].o
    assert np.array_equal(net.forward(theta, x), outputs.T)
    assert len(kept) == 6
    for z, before in kept:
        assert np.array_equal(z, before)


# Hessian products


@over_networks
@given(problems(), st.integers(0, 2**32 - 1))
def test_hessian_products_are_those_of_pytorch(problem, seed):
    net, theta, data, loss = problem
    direction = random_theta(net, seed)
    expected = torch_hessian_product(theta, direction, data, loss)
    found = net.hessian_product(theta, direction, data, loss).arrays()
    assert found.keys() == expected.keys()
    # As with gradients, what cancels leaves rounding; here two derivatives of the largest terms.
    scale = max(1, *(abs(values).max() for values in expected.values()))
    for name in expected:
        close(found[name], expected[name], 1e-10, rounding=1e-13 * scale)


@over_networks
@given(problems(), st.integers(0, 2**32 - 1))
def test_the_hessian_is_symmetric_and_its_product_linear(problem, seed):
    net, theta, data, loss = problem
    u, v = random_theta(net, seed), random_theta(net, seed + 1)
    before = [point.vector.copy() for point in (theta, u, v)]
    Hu, Hv = (net.hessian_product(theta, w, data, loss).vector for w in (u, v))
    size = max(1, abs(Hu).max() * abs(v.vector).sum(), abs(Hv).max() * abs(u.vector).sum())
    assert abs(u.vector @ Hv - v.vector @ Hu) <= 1e-12 * size
    both = Parameters(net, 2 * u.vector - v.vector)
    close(net.hessian_product(theta, both, data, loss).vector, 2 * Hu - Hv, 1e-12, 1e-13 * size)
    for point, vector in zip((theta, u, v), before, strict=True):
        assert np.array_equal(point.vector, vector)


OWN = SmoothActivation("own", np.sin, np.cos)  # its second derivative comes from differences


@pytest.mark.parametrize("sigma", [ReLU(0.1), GELU(), OWN], ids=repr)
def test_the_hessian_product_is_the_slope_of_the_gradient(sigma):
    rng = np.random.default_rng(0)
    for input_shape, layers in (
        ((2, 4, 2), [Conv(2), AveragePool(2), Conv(2, 1), Dense(3)]),
        ((1, 8), [AveragePool(2), Conv(2), Dense(3), Dense(3)]),
        ((1, 3), [Dense(3)]),
    ):
        net = Network(input_shape, layers, sigma)
        theta, x = Parameters(net, rng.normal(size=net.size)), rng.normal(size=(3, *input_shape))
        for loss, y in (
            (SquaredLoss(), rng.normal(size=(3, 3))),
            (CrossEntropy(), one_hot(np.array([0, 2, 1]), 3, smoothing=0.1)),
        ):
            data, direction, step = TrainingSet(x, y), random_theta(net, 1), 1e-6
            ends = []
            for sign in (1, -1):
                moved = Parameters(net, theta.vector + sign * step * direction.vector)
                ends.append(net.gradient(moved, data, loss).vector)
            slope = (ends[0] - ends[1]) / (2 * step)
            product = net.hessian_product(theta, direction, data, loss).vector
            assert abs(product).max() > 0.01
            np.testing.assert_allclose(product, slope, atol=1e-8 * abs(product).max())


@pytest.mark.parametrize("other", [[Conv(2, 1), Dense(3)], [Conv(2), Dense(3), Dense(3)]])
def test_a_direction_of_another_network_is_refused(other):
    net, other = Network((1, 4), [Conv(2), Dense(3)]), Network((1, 4), other)
    data = TrainingSet(np.zeros((2, 1, 4)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=re.escape(f"of {net}, got {other}")):
        net.hessian_product(net.zeros(), other.zeros(), data, SquaredLoss())


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr)
@pytest.mark.parametrize("budget", [1, 2**20])
def test_hessian_products_on_a_device_are_those_of_numpy(device, budget, loss):
    rng = np.random.default_rng(0)
    for input_shape, layers, slope in (
        ((2, 8, 4), [Conv(3), AveragePool(2), Conv(2, 5), Dense(5), Dense(3)], 0.0),
        ((3, 6), [AveragePool(2), Conv(2), Dense(4), Dense(3)], 0.3),
        ((1, 6), [Conv(3), AveragePool(6)], 0.1),
        ((1, 8), [MaxPool(2), Conv(3), MaxPool(2), Conv(3), MaxPool(2)], 0.0),
    ):
        net = Network(input_shape, layers, ReLU(slope), memory_budget=budget)
        theta, v = random_theta(net, 0), random_theta(net, 1)
        data = TrainingSet(rng.normal(size=(5, *input_shape)), rng.dirichlet(np.ones(3), 5))
        expected = net.hessian_product(theta, v, data, loss).vector
        product = net.hessian_product(theta.to(device), v.to(device), data, loss).vector
        assert isinstance(product, device.ndarray)
        close(to_numpy(product), expected, 1e-12)


# Patterns and margins


@over_networks
@given(problems())
def test_patterns_are_the_signs_of_pytorchs_preactivations(problem):
    net, theta, data, _loss = problem
    before = twin_of(theta).preactivations(data.x)
    patterns = net.patterns(theta, data.x)
    assert net.active_layers == tuple(before)
    poolings = [n for n, layer in enumerate(net.layers, 1) if isinstance(layer, MaxPool)]
    kinked = before if net.activation.piecewise_linear else ()
    assert list(patterns) == sorted([*kinked, *poolings])
    for layer, pattern in patterns.items():
        if layer in poolings:
            continue
        assert (pattern.dtype, pattern.shape) == (bool, tuple(before[layer].shape))
        assert np.array_equal(pattern, before[layer].detach().numpy() > 0)


@pytest.mark.parametrize("shape", [(2, 6), (2, 4, 6), (1, 3, 3)], ids=str)
def test_max_pooling_selects_the_entries_that_pytorch_selects(shape):
    rng = np.random.default_rng(0)
    net = Network(shape, [MaxPool(2 if shape[-1] == 6 else 3), Dense(2)])
    x = rng.integers(0, 3, (50, *shape)).astype(float)  # with many ties: the first entry counts
    choice = net.patterns(net.zeros(), x)[1]
    pool = {2: torch.nn.functional.max_pool1d, 3: torch.nn.functional.max_pool2d}[len(shape)]
    pooled, flat = pool(torch.as_tensor(x), net.layers[0].size, return_indices=True)
    W = net.zeros().W[1]
    for i in range(len(x)):
        S = W.at(x[i].ravel())
        assert np.array_equal(S @ x[i].ravel(), W @ x[i].ravel())
        assert np.array_equal(W @ x[i].ravel(), pooled[i].ravel())
        assert np.array_equal(S.toarray().argmax(axis=1), _places(flat[i], shape))
        assert np.array_equal(S.choice[:, 0], choice[i])
        assert (S.toarray().sum(axis=1) == 1).all()


def _places(flat, shape):
    """Return PyTorch's indices within maps as neurons."""
    maps = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return (flat.numpy() + maps * int(np.prod(shape[1:]))).ravel()


def test_a_kink_counts_as_inactive_as_in_pytorch():
    for slope in (0.0, 0.25):
        net = Network((1, 3), [Conv(2, 1), Dense(1)], ReLU(slope))
        theta = Parameters(net, np.arange(1.0, net.size + 1))
        theta.b[1][:] = 0
        data = TrainingSet(np.array([[[0.0, 1.0, -1.0]]]), np.array([[1.0]]))
        assert net.patterns(theta, data.x)[1].tolist() == [[False, True, False] * 2]
        expected = torch_twin.gradients(twin_of(theta), data.x, data.y, "squared")
        for name, values in net.gradient(theta, data, SquaredLoss()).arrays().items():
            close(values, expected[name], 1e-14)
        direction = random_theta(net, 0)
        expected = torch_hessian_product(theta, direction, data, SquaredLoss())
        product = net.hessian_product(theta, direction, data, SquaredLoss())
        for name, values in product.arrays().items():
            close(values, expected[name], 1e-14)


def test_margins_tell_how_far_a_pattern_is_from_changing():
    net = Network((1, 4), [Conv(2, 1), AveragePool(1), MaxPool(2), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[:, 0, 0], theta.b[1][:] = [1, -1], [0, 2]
    o = np.array([[3.0], [1.0], [-1.0], [-2.0]])
    margins = margins_of(list(steps(theta, o)))
    assert list(margins) == [1, 3, 4]
    assert margins[1].ravel().tolist() == [3, 1, 1, 2, 1, 1, 3, 4]
    assert margins[3].ravel().tolist() == [1, np.inf, 0.5, 0.5]  # two inactive ones: no gap
    assert margins[4].ravel().tolist() == [1.5, 1.5]
    leaky = Parameters(Network(net.input_shape, net.layers, ReLU(0.5)), theta.vector)
    margins = margins_of(list(steps(leaky, o)))
    assert margins[3].ravel().tolist() == [1, 0.25, 0.75, 0.5]
    assert margins[4].ravel().tolist() == [1.75, 1.5]


# Samples in chunks


@over_networks
@given(problems())
def test_the_memory_budget_changes_nothing(problem):
    net, theta, data, loss = problem
    risk, gradient = net.risk_and_gradient(theta, data, loss)
    activations = 2 * 8 * sum(int(np.prod(shape)) for shape in net.shapes)
    for budget in (1, 2 * activations):
        small = Network(net.input_shape, net.layers, net.activation, memory_budget=budget)
        point = Parameters(small, theta.vector)
        chunks = [rows for rows, _ in small.chunks(point, data.x)]
        sizes = [rows.stop - rows.start for rows in chunks]
        assert [n for rows in chunks for n in range(len(data))[rows]] == list(range(len(data)))
        assert max(sizes) <= max(1, budget // activations)
        assert max(sizes) - min(sizes) <= 1  # so that all cores have as much to do
        assert len(sizes).bit_count() == 1 or len(sizes) == len(data)
        close(small.forward(point, data.x), net.forward(theta, data.x), 1e-13)
        again = small.risk_and_gradient(point, data, loss)
        close(again[0], risk, 1e-13, rounding=1e-15)
        close(again[1].vector, gradient.vector, 1e-13)
        direction = random_theta(net, 0)
        product = net.hessian_product(theta, direction, data, loss).vector
        close(small.hessian_product(point, direction, data, loss).vector, product, 1e-12, 1e-13)
        close(small.risk(point, data, loss), risk, 1e-13, rounding=1e-15)
        for layer, pattern in small.patterns(point, data.x).items():
            assert np.array_equal(pattern, net.patterns(theta, data.x)[layer])


@pytest.mark.parametrize("sigma", [ReLU(), Tanh()], ids=str)
def test_the_number_of_threads_changes_no_bit(sigma, monkeypatch):
    rng, layers = np.random.default_rng(0), [Conv(6), MaxPool(2), Conv(5), Dense(7), Dense(3)]
    net = Network((2, 8, 8), layers, sigma, memory_budget=60_000)
    theta, direction = random_theta(net, 1), random_theta(net, 2)
    data = TrainingSet(rng.normal(size=(23, 2, 8, 8)), rng.dirichlet(np.ones(3), 23))
    assert len(list(net.chunks(theta, data.x))) == 8
    found = []
    for workers in (1, 2, 3, 8):
        monkeypatch.setattr(engine_threads, "WORKERS", workers)
        loss = CrossEntropy()
        risk, gradient = net.risk_and_gradient(theta, data, loss)
        found.append(
            [
                np.float64(risk),
                gradient.vector,
                net.forward(theta, data.x),
                net.sample_losses(theta, data, loss),
                net.hessian_product(theta, direction, data, loss).vector,
                net.filter_responses(theta, 3, theta.W[3].weights, data.x),
                *net.patterns(theta, data.x).values(),
            ]
        )
    for other in found[1:]:
        assert [a.tobytes() for a in other] == [a.tobytes() for a in found[0]]


def test_the_number_of_blas_threads_changes_no_bit():
    rng, net = np.random.default_rng(0), Network((1, 28, 28), [Conv(4), Conv(6), Dense(10)])
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.uniform(size=(30, 1, 28, 28)), rng.normal(size=(30, 10)))
    assert len(list(net.chunks(theta, data.x))) == 1
    found = set()
    for threads in (1, 2, 4):
        with ThreadpoolController().limit(limits=threads, user_api="blas"):
            risk, gradient = net.risk_and_gradient(theta, data, SquaredLoss())
        found.add((risk, gradient.vector.tobytes()))
    assert len(found) == 1


def test_the_memory_budget_bounds_the_activations_of_a_pass():
    layers, rng = [Conv(4), AveragePool(2), Dense(3)], np.random.default_rng(0)
    net = Network((1, 8, 8), layers, memory_budget=20_000)
    theta = Parameters(net, rng.normal(size=net.size))
    held = []
    for _, columns in net.chunks(theta, rng.normal(size=(30, 1, 8, 8))):
        pairs = [(step.z, step.o) for step in steps(theta, columns)]
        arrays = [columns, *(array for pair in pairs for array in pair)]
        held.append(sum(array.nbytes for array in {id(a): a for a in arrays}.values()))
    assert 1 < len(held) < 30
    assert max(held) <= 20_000


def test_a_function_that_holds_more_gets_smaller_chunks():
    layers, rng = [Conv(4), AveragePool(2), Dense(3)], np.random.default_rng(0)
    net = Network((1, 8, 8), layers, memory_budget=60_000)
    theta, x = Parameters(net, rng.normal(size=net.size)), rng.normal(size=(30, 1, 8, 8))

    def sizes(held):
        found = list(net.over(theta, x, lambda rows, columns: (rows, columns.shape[1]), held))
        assert [rows.start for rows, _ in found[1:]] == [rows.stop for rows, _ in found[:-1]]
        return [size for _, size in found]

    one, three = sizes(1), sizes(3)
    assert sum(one) == sum(three) == 30 and 1 < max(three) <= max(one) / 2
