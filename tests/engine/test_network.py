"""Networks compute what their PyTorch twins compute, and say what they are."""

import json
import re

import numpy as np
import pytest
import torch
import torch_twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import SMOOTH, close, random_theta, twin_of
from threadpoolctl import ThreadpoolController

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine import threads as engine_threads
from tinyspur.engine.activations import ELU, GELU, ReLU, Swish, Tanh
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import margins as margins_of
from tinyspur.engine.passes import steps
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Pooling

over_networks = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


WITH_KINKS = st.sampled_from([0.0, 0.01, 0.3]).map(ReLU)
WITHOUT_KINKS = st.sampled_from(SMOOTH)

OWN = SmoothActivation("own", np.sin, np.cos)  # its second derivative comes from differences


@st.composite
def networks(draw, activations=WITH_KINKS | WITHOUT_KINKS):
    """Return a network with at least one layer of weights."""
    directions = draw(st.integers(1, 2))
    sizes = st.sampled_from([1, 2, 3, 4, 6, 8])
    input_shape = (draw(st.integers(1, 3)), *(draw(sizes) for _ in range(directions)))
    layers, size = [], input_shape[1:]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "average_pool", "max_pool", "dense"]))
        if kind == "dense" or not size:
            layers.append(Dense(draw(st.integers(1, 5))))
            size = ()
        elif kind == "conv":
            stride = draw(st.sampled_from([1, 1, 2, 3]))
            layers.append(Conv(draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 5])), stride))
            size = tuple(-(-n // stride) for n in size)
        else:
            window = draw(
                st.sampled_from([w for w in (1, 2, 3, 4) if not any(n % w for n in size)])
            )
            layers.append((AveragePool if kind == "average_pool" else MaxPool)(window))
            size = tuple(n // window for n in size)
    if all(isinstance(layer, Pooling) for layer in layers) or draw(st.booleans()):
        layers.append(Dense(draw(st.integers(1, 4))))
    return Network(input_shape, layers, draw(activations))


@st.composite
def problems(draw, activations=WITH_KINKS | WITHOUT_KINKS):
    """Return a network, parameters, data and a loss."""
    net = draw(networks(activations))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, width = draw(st.integers(1, 5)), int(np.prod(net.shapes[-1]))
    x = rng.normal(size=(samples, *net.input_shape))
    kind = draw(st.sampled_from(["squared", "hard", "soft"]))
    if kind == "squared":
        loss, y = SquaredLoss(), rng.normal(size=(samples, width))
    elif kind == "hard":
        loss, y = CrossEntropy(), one_hot(rng.integers(0, width, samples), width)
    else:
        loss, y = CrossEntropy(), rng.dirichlet(np.ones(width), samples)
    return net, Parameters(net, rng.normal(size=net.size)), TrainingSet(x, y), loss


# PyTorch


@over_networks
@given(problems())
def test_outputs_are_those_of_pytorch(problem):
    _net, theta, data, _loss = problem
    close(theta.net.forward(theta, data.x), twin_of(theta)(data.x).detach(), 1e-10)


@over_networks
@given(problems())
def test_risks_are_those_of_pytorch(problem):
    net, theta, data, loss = problem
    outputs = twin_of(theta)(data.x).detach()
    expected = float(torch_twin.risk(outputs, data.y, loss.name))
    risk = net.risk(theta, data, loss)
    assert isinstance(risk, float)
    close(risk, expected, 1e-10, rounding=1e-14)
    losses = net.sample_losses(theta, data, loss)
    assert losses.shape == (len(data),)
    for i, value in enumerate(losses):
        one = torch_twin.risk(outputs[i : i + 1], data.y[i : i + 1], loss.name)
        close(value, one, 1e-10, rounding=1e-14)


@over_networks
@given(problems())
def test_gradients_are_those_of_pytorch(problem):
    net, theta, data, loss = problem
    expected = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    risk, gradient = net.risk_and_gradient(theta, data, loss)
    close(risk, net.risk(theta, data, loss), 1e-13)
    found = gradient.arrays()
    assert found.keys() == expected.keys()
    # Some gradients vanish but for rounding: the softmax does not see a shift of all outputs.
    scale = max(1, *(abs(values).max() for values in expected.values()))
    for name in expected:
        close(found[name], expected[name], 1e-10, rounding=1e-14 * scale)
    assert np.array_equal(net.gradient(theta, data, loss).vector, gradient.vector)


def torch_hessian_product(theta, direction, data, loss):
    """Return the Hessian of the risk times `direction`, by name, by double backward in PyTorch."""
    twin, v = twin_of(theta), direction.arrays()
    parameters = twin.arrays()
    risk = torch_twin.risk(twin(data.x), data.y, loss.name)
    first = torch.autograd.grad(risk, list(parameters.values()), create_graph=True)
    slope = sum((g * torch.as_tensor(v[name])).sum() for name, g in zip(v, first, strict=True))
    second = torch.autograd.grad(slope, list(parameters.values()), materialize_grads=True)
    return {name: h.numpy() for name, h in zip(parameters, second, strict=True)}


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


# The pieces agree among themselves


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


class TwiceReLU(ReLU):
    """A user's activation: 2 max(z, 0)."""

    def __call__(self, z):
        return 2 * super().__call__(z)

    def derivative(self, z):
        return 2 * super().derivative(z)


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


@over_networks
@given(problems(WITH_KINKS), st.integers(0, 2**32 - 1))
def test_the_affine_map_gives_the_outputs_as_long_as_the_pattern_stays(problem, seed):
    net, theta, data, _loss = problem
    direction = np.random.default_rng(seed).normal(size=net.input_shape)
    for x in data.x[:2]:
        F = net.affine_map(theta, x)
        assert F.shape == (int(np.prod(net.shapes[-1])), x.size + 1)
        output = net.forward(theta, x[None])[0]
        # Terms that cancel leave the rounding of the largest.
        rounding = 1e-13 * (abs(F) @ np.append(abs(x).ravel(), 1)).max()
        close(F @ np.append(x.ravel(), 1), output, 1e-12, rounding)
        patterns, step = net.patterns(theta, x[None]), 1.0
        for _ in range(60):
            moved = x + step * direction
            there = net.patterns(theta, moved[None])
            if all(np.array_equal(there[layer], patterns[layer]) for layer in patterns):
                break
            step /= 2
        else:
            raise AssertionError("no move keeps the pattern")
        expected = net.forward(theta, moved[None])[0]
        close(F @ np.append(moved.ravel(), 1), expected, 1e-12, rounding * 10)


@pytest.mark.parametrize("sigma", [ReLU(0.1), GELU()], ids=repr)
def test_the_gradient_is_the_slope_of_the_risk(sigma):
    rng = np.random.default_rng(0)
    net = Network((2, 4, 2), [Conv(2), AveragePool(2), Conv(2, 1), Dense(3)], sigma)
    x = rng.normal(size=(3, *net.input_shape))
    for loss, y in (
        (SquaredLoss(), rng.normal(size=(3, 3))),
        (CrossEntropy(), one_hot(np.array([0, 2, 1]), 3, smoothing=0.1)),
    ):
        theta, data = Parameters(net, rng.normal(size=net.size)), TrainingSet(x, y)
        step, slopes = 1e-6, []
        for i in range(net.size):
            risks = []
            for sign in (1, -1):
                moved = theta.copy()
                moved.vector[i] += sign * step
                risks.append(net.risk(moved, data, loss))
            slopes.append((risks[0] - risks[1]) / (2 * step))
        gradient = net.gradient(theta, data, loss).vector
        assert abs(gradient).max() > 0.1
        np.testing.assert_allclose(gradient, slopes, atol=1e-8 * abs(gradient).max())


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


def test_the_activation_leaves_positive_numbers_and_flattens_the_others():
    z = np.array([-2.0, 0.0, 3.0])
    assert ReLU()(z).tolist() == [0, 0, 3]
    assert ReLU().derivative(z).tolist() == [0, 0, 1]
    assert ReLU(0.5)(z).tolist() == [-1, 0, 3]
    assert ReLU(0.5).derivative(z).tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.1), GELU(), ELU(), Swish(1.7)], ids=repr)
def test_single_precision_stays_single(sigma):
    rng = np.random.default_rng(0)
    net = Network(
        (2, 4, 4), [MaxPool(1), Conv(3), AveragePool(2), MaxPool(2), Dense(4), Dense(2)], sigma
    )
    double = Parameters(net, rng.normal(size=net.size))
    theta = Parameters(net, double.vector.astype(np.float32))
    data = TrainingSet(rng.normal(size=(6, 2, 4, 4)), rng.dirichlet(np.ones(2), 6))
    for loss in (SquaredLoss(), CrossEntropy()):
        results = [
            net.forward(theta, data.x),
            net.sample_losses(theta, data, loss),
            net.gradient(theta, data, loss).vector,
            net.hessian_product(theta, theta, data, loss).vector,
            *([net.affine_map(theta, data.x[0])] if sigma.piecewise_linear else []),
            net.zeros(like=theta.vector).vector,
            net.zeros(dtype=np.float32).vector,
        ]
        assert [r.dtype for r in results] == [np.float32] * len(results)
        close(results[0], net.forward(double, data.x), 1e-5)
        close(results[2], net.gradient(double, data, loss).vector, 1e-5)
        close(results[3], net.hessian_product(double, double, data, loss).vector, 1e-5)


def test_whole_number_inputs_are_computed_in_the_precision_of_the_parameters():
    rng = np.random.default_rng(0)
    net = Network((1, 4, 4), [Conv(2), Dense(3)])
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.integers(0, 256, size=(3, 1, 4, 4), dtype=np.uint8)
    assert np.array_equal(net.forward(theta, x), net.forward(theta, x.astype(float)))


# Parameters


@pytest.fixture
def net():
    return Network((2, 4, 4), [Conv(3), AveragePool(2), Conv(2, 1), Dense(5), Dense(2)])


@pytest.fixture
def theta(net):
    return Parameters(net, np.arange(float(net.size)))


SHAPES = {
    **{"W1": (3, 2, 3, 3), "b1": (3,), "W3": (2, 3, 1, 1), "b3": (2,)},
    **{"W4": (5, 8), "b4": (5,), "W5": (2, 5), "b5": (2,)},
}


def test_the_vector_holds_weights_and_biases_layer_by_layer(net, theta):
    arrays = theta.arrays()
    assert {name: values.shape for name, values in arrays.items()} == SHAPES
    laid_out = np.concatenate([values.ravel() for values in arrays.values()])
    assert np.array_equal(laid_out, theta.vector)
    assert net.size == sum(np.prod(shape) for shape in SHAPES.values())


def test_writing_weights_or_biases_changes_the_vector(theta):
    for layer in theta.b:
        for view in (theta.W[layer].weights, theta.b[layer]):
            assert np.shares_memory(view, theta.vector)
            before = theta.vector.copy()
            view[...] = -1
            assert (theta.vector != before).sum() == view.size
    assert (theta.vector == -1).all()


def test_writing_the_vector_changes_the_outputs(net, theta):
    x = np.ones((1, 2, 4, 4))
    theta.vector[:] = 0
    assert net.forward(theta, x).tolist() == [[0, 0]]
    theta.vector[-2:] = 3, 4
    assert net.forward(theta, x).tolist() == [[3, 4]]


def test_the_gradient_is_laid_out_as_the_parameters(net):
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2)))
    gradient = net.gradient(theta, data, SquaredLoss())
    assert isinstance(gradient, Parameters)
    assert gradient.net is net
    for name, values in gradient.arrays().items():
        assert values.shape == SHAPES[name]
        assert np.shares_memory(values, gradient.vector)
    product = net.hessian_product(theta, gradient, data, SquaredLoss())
    assert isinstance(product, Parameters)
    assert product.net is net
    before = theta.vector.copy()
    gradient.vector[:] = 0
    assert np.array_equal(theta.vector, before)


def test_a_copy_is_independent(theta):
    copy = theta.copy()
    assert copy.net is theta.net
    assert np.array_equal(copy.vector, theta.vector)
    copy.W[1].weights[...] = -1
    copy.b[5][...] = -1
    assert np.array_equal(theta.vector, np.arange(float(theta.net.size)))


def test_pooling_has_a_weight_matrix_and_no_biases(theta):
    assert theta.W[2].shape == (3 * 4, 3 * 16)
    assert sorted(theta.W) == [1, 2, 3, 4, 5]
    assert sorted(theta.b) == [1, 3, 4, 5]
    with pytest.raises(KeyError, match="layer 2 is a pooling"):
        theta.b[2]


@pytest.mark.parametrize("layer", [0, 6, -1, "W1"])
def test_layers_that_do_not_exist_are_named(theta, layer):
    for view in (theta.W, theta.b):
        with pytest.raises(KeyError, match=rf"1\.\.5, got {layer!r}"):
            view[layer]


@pytest.mark.parametrize("shape", [(0,), (124,), (123, 1), ()])
def test_a_vector_of_another_size_is_refused(net, shape):
    assert shape != (net.size,)
    with pytest.raises(ValueError, match=rf"vector \({net.size},\)"):
        Parameters(net, np.zeros(shape))


def test_dense_layers_know_the_maps_below_them(theta):
    assert [theta.W[layer].maps_in for layer in (4, 5)] == [2, 5]
    assert np.array_equal(theta.W[4].block(3, 1), theta.W[4].weights[3:4, 4:8])


def test_zero_parameters_are_zero(net, theta):
    for zeros in (net.zeros(), net.zeros(like=theta.vector)):
        assert zeros.vector.dtype == np.float64
        assert not zeros.vector.any()


# Descriptions


@over_networks
@given(networks())
def test_a_description_survives_json(net):
    for spec in (net.spec, json.loads(json.dumps(net.spec)), json.dumps(net.spec)):
        again = Network.from_spec(spec)
        assert again == net
        assert hash(again) == hash(net)
        assert (again.shapes, again.layers, again.size) == (net.shapes, net.layers, net.size)
        assert again.activation == net.activation


def test_a_description_reads_as_written():
    net = Network((3, 8, 6), [Conv(6, 5), AveragePool(2), MaxPool(1), Dense(10)], ReLU(0.25))
    assert net.spec == {
        "input": [3, 8, 6],
        "activation": {"name": "leaky_relu", "slope": 0.25},
        "layers": [
            {"type": "conv", "maps": 6, "kernel": 5},
            {"type": "average_pool", "size": 2},
            {"type": "max_pool", "size": 1},
            {"type": "dense", "width": 10},
        ],
    }
    assert Network((1, 2), [Dense(1)]).spec["activation"] == {"name": "relu"}
    assert net.shapes == ((3, 8, 6), (6, 8, 6), (6, 4, 3), (6, 4, 3), (10,))
    assert (net.depth, net.positions(0), net.positions(1), net.positions(4)) == (4, 48, 48, 1)
    arrows = "3x8x6 -> 6x8x6 -> 6x4x3 -> 6x4x3 -> 10"
    assert repr(net) == f"Network({arrows}, {net.size} parameters)"


def test_the_layers_with_a_pattern_are_those_that_parameters_move():
    A, M = AveragePool(2), MaxPool(2)
    for layers, leading, active, poolings in (
        ([Conv(2), M, Conv(2), A, M, Dense(2)], 0, (1, 3), (2, 5)),
        ([M, A, Conv(2), M, Dense(2), Dense(2)], 2, (3, 5), (4,)),
        ([A, M], 2, (), ()),
        ([M, Conv(2)], 1, (), ()),
        ([Conv(2), M, M], 0, (1,), (2, 3)),
    ):
        net = Network((1, 16), layers)
        assert (net.leading_poolings, net.active_layers) == (leading, active)
        assert net.max_layers == poolings
        assert net.pattern_layers == tuple(sorted(active + poolings))


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


def test_networks_that_differ_are_not_equal():
    net = Network((1, 4), [Conv(2), Dense(1)])
    others = [
        Network((1, 5), [Conv(2), Dense(1)]),
        Network((1, 4), [Conv(2), Dense(2)]),
        Network((1, 4), [Conv(2, 1), Dense(1)]),
        Network((1, 4), [Conv(2), Dense(1)], ReLU(0.1)),
        Network((1, 4), [Conv(2), Dense(1)], Tanh()),
    ]
    assert all(net != other for other in others)
    assert net != net.spec
    assert net == Network((1, 4), [Conv(2), Dense(1)], memory_budget=1)


GOOD = {
    "input": [1, 4, 4],
    "activation": {"name": "relu"},
    "layers": [{"type": "dense", "width": 2}],
}


@pytest.mark.parametrize("missing", ["input", "activation", "layers"])
def test_a_description_without_a_part_is_refused(missing):
    parts = {key: value for key, value in GOOD.items() if key != missing}
    expected = "expected a JSON object with input, activation, layers, got one with "
    with pytest.raises(ValueError, match=f"^network spec: {expected}{', '.join(parts)}$"):
        Network.from_spec(parts)


def test_a_description_with_a_part_too_many_is_refused():
    with pytest.raises(ValueError, match=r"got one with input, activation, layers, bias$"):
        Network.from_spec({**GOOD, "bias": False})
    layer = {"type": "dense", "width": 2, "bias": False}
    with pytest.raises(ValueError, match=r"expected a layer with type, width, got \{.*'bias'"):
        Network.from_spec({**GOOD, "layers": [layer]})


@pytest.mark.parametrize(
    "layer",
    [
        {"type": "max_pool", "size": 3},
        {"type": "dense"},
        {"type": "dense", "size": 2},
        {"type": "dense", "width": 0},
        {"type": "dense", "width": 2.5},
        {"type": "dense", "width": "2"},
        {"type": "conv", "maps": 2, "kernel": 2},
        {"type": "conv", "maps": -1, "kernel": 3},
        {"type": "average_pool", "size": 3},
        {"width": 2},
        "dense",
        None,
    ],
    ids=str,
)
def test_a_description_with_a_wrong_layer_is_refused(layer):
    with pytest.raises(ValueError, match="expected") as caught:
        Network.from_spec({**GOOD, "layers": [layer]})
    assert not re.search("Error|NoneType|object is not|argument", str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        {"input": [4]},
        {"input": [1, 1, 4, 4]},
        {"input": [1, 0, 4]},
        {"input": [1, 4.5, 4]},
        {"input": 4},
        {"input": "144"},
        {"activation": {"name": "mish"}},
        {"activation": {"slope": 0.1}},
        {"activation": {"name": "leaky_relu", "steepness": 0.1}},
        {"activation": {"name": "leaky_relu", "slope": "steep"}},
        {"activation": "relu"},
        {"layers": []},
        {"layers": 3},
    ],
    ids=str,
)
def test_a_description_with_a_wrong_part_is_refused(change):
    assert Network.from_spec(GOOD).size == 34
    with pytest.raises(ValueError, match="expected") as caught:
        Network.from_spec({**GOOD, **change})
    assert not re.search("Error|NoneType|object is not|argument", str(caught.value))


@pytest.mark.parametrize("spec", ["", "{", "[]", "null", "3", '"relu"', None, [], 3])
def test_what_is_no_description_is_refused(spec):
    expected = "^network spec: expected a JSON object with input, activation, layers, got "
    with pytest.raises(ValueError, match=expected) as caught:
        Network.from_spec(spec)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([Conv(2, 4)], r"layer 1, Conv\(maps=2, kernel=4\): expected an odd"),
        ([Conv(2), AveragePool(3)], r"layer 2, AveragePool\(size=3\): expected a size that div"),
        ([AveragePool(4)], "layer 1, .*divides"),
        ([Dense(4), Conv(2)], "layer 2, .*expected maps below it"),
        ([Dense(4), AveragePool(1)], "layer 2, .*expected maps below it"),
        ([Dense(0)], "layer 1, .*positive whole numbers"),
        ([Conv(2, -3)], "layer 1, .*positive whole numbers"),
        ([AveragePool(2.0)], "layer 1, .*positive whole numbers"),
        ([MaxPool(0)], "layer 1, .*positive whole numbers"),
        ([Conv(2), MaxPool(4)], r"layer 2, MaxPool\(size=4\): expected a size that divides"),
        ([Dense(4), MaxPool(1)], "layer 2, .*expected maps below it"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Network((1, 4, 6), layers)


@pytest.mark.parametrize("input_shape", [(), (4,), (1, 1, 4, 4), (0, 4), (1, -4)])
def test_input_shapes_other_than_maps_are_refused(input_shape):
    with pytest.raises(ValueError, match="expected an input"):
        Network(input_shape, [Dense(1)])


@pytest.mark.parametrize("slope", [-0.5, np.nan])
def test_a_slope_below_zero_is_refused(slope):
    with pytest.raises(ValueError, match="slope"):
        Network((1, 4), [Dense(2), Dense(1)], ReLU(slope))


# Data


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 1, 4, 4), (3, 2, 4, 5), (3, 32)])
def test_inputs_of_another_shape_are_refused(net, theta, shape):
    x = np.zeros(shape)
    for compute in (net.forward, net.patterns):
        with pytest.raises(ValueError, match=re.escape(f"(N, 2, 4, 4), got {shape}")):
            compute(theta, x)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 4, 5), (32,)])
def test_an_affine_map_is_that_of_one_input(net, theta, shape):
    with pytest.raises(ValueError, match="inputs: expected"):
        net.affine_map(theta, np.zeros(shape))


@pytest.mark.parametrize("width", [1, 3])
def test_targets_of_another_width_are_refused(net, theta, width):
    data = TrainingSet(np.zeros((3, 2, 4, 4)), np.full((3, width), 1 / width))

    def product(theta, data, loss):
        return net.hessian_product(theta, theta, data, loss)

    for compute in (net.risk, net.sample_losses, net.gradient, net.risk_and_gradient, product):
        for loss in (SquaredLoss(), CrossEntropy()):
            with pytest.raises(ValueError, match=rf"\(N, 2\), got \(3, {width}\)"):
                compute(theta, data, loss)


def test_targets_that_are_no_distributions_are_refused_by_the_cross_entropy(net, theta):
    data = TrainingSet(np.zeros((3, 2, 4, 4)), np.array([[1.0, 0.0], [0.5, 0.4], [0.0, 2.0]]))
    for compute in (net.risk, net.gradient):
        with pytest.raises(ValueError, match="sample 1"):
            compute(theta, data, CrossEntropy())
    assert net.risk(theta, data, SquaredLoss()) > 0


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
