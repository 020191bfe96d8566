"""The engine computes on a device what it computes with NumPy, and says which of them it takes."""

import math
import sys
import types

import numpy as np
import pytest
import scipy.special
import strict_device
from shared import close, in_turn, random_set

from tinyspur.certificates import cell, certify_cell, decrease, radius
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.backend import all_to_numpy, namespace, select, special, to_numpy
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot, softmax
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import (
    AveragePool,
    AveragePoolingMatrix,
    Conv,
    ConvolutionMatrix,
    Dense,
    DenseMatrix,
    MaxPool,
    MaxPoolingMatrix,
    convolution_matrix,
)

# The choice


class NoDriverError(RuntimeError):
    """What CuPy raises without a driver, in other words."""


def fake_cupy(monkeypatch, devices):
    """Put a module in the place of CuPy that finds so many devices, or raises."""

    def count():
        if isinstance(devices, Exception):
            raise devices
        return devices

    module = types.ModuleType("cupy")
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=count))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_numpy_is_taken_when_asked_for():
    assert select("numpy") == ("numpy", np, "NumPy, as asked")


def test_numpy_is_taken_when_asked_for_although_there_is_a_device(monkeypatch):
    fake_cupy(monkeypatch, 1)
    assert select("numpy").xp is np


def test_without_cupy_numpy_is_taken_and_the_reason_said(no_cupy):
    assert select() == select("auto") == ("numpy", np, "NumPy: CuPy is not installed")


def test_cupy_that_is_not_installed_cannot_be_asked_for(no_cupy):
    with pytest.raises(ValueError, match=r"^backend 'cupy': CuPy is not installed$"):
        select("cupy")


@pytest.mark.parametrize(("devices", "counted"), [(1, "1 device found"), (2, "2 devices found")])
@pytest.mark.parametrize("name", ["auto", "cupy"])
def test_cupy_with_a_device_is_taken(monkeypatch, name, devices, counted):
    module = fake_cupy(monkeypatch, devices)
    assert select(name) == ("cupy", module, f"CuPy, {counted}")


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (0, "CuPy finds no device"),
        (NoDriverError("no driver"), "CuPy finds no device (NoDriverError)"),
    ],
    ids=["none", "raises"],
)
def test_cupy_without_a_device_is_not_taken(monkeypatch, devices, reason):
    fake_cupy(monkeypatch, devices)
    assert select("auto") == ("numpy", np, f"NumPy: {reason}")
    with pytest.raises(ValueError, match=r"^backend 'cupy': CuPy finds no device"):
        select("cupy")


@pytest.mark.parametrize("name", ["torch", "NumPy", "", None])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"got {name!r}"):
        select(name)


def test_the_namespace_of_an_array_is_where_its_type_is_from():
    assert namespace(np.zeros(2)) is np
    assert namespace(np.float64(2)) is np
    assert namespace(strict_device.zeros(2)) is strict_device


def test_special_functions_are_those_of_the_arrays_package(monkeypatch):
    module = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", module)
    assert special(np.zeros(2)) is scipy.special
    assert special(np.float64(2)) is scipy.special
    assert special(strict_device.zeros(2)) is module


def test_arrays_come_to_the_host_explicitly():
    host = np.arange(3.0)
    assert to_numpy(host) is host
    number = np.float64(2)
    assert to_numpy(number) is number
    back = to_numpy(strict_device.asarray(host))
    assert type(back) is np.ndarray
    assert np.array_equal(back, host)


# The engine on a device: each check takes the namespace of the device


def equal(actual, expected, device):
    """Whether an array on the device has the numbers of one on the host, up to rounding."""
    assert isinstance(actual, device.ndarray)
    assert actual.dtype == expected.dtype
    close(to_numpy(actual), expected, 1e-5 if actual.dtype == np.float32 else 1e-12)


NETWORKS = {
    "2-D": Network((2, 8, 4), [Conv(3), AveragePool(2), Conv(2, 5), Dense(5), Dense(3)]),
    "2-D, leaky": Network((1, 4, 4), [Conv(3), Conv(2, 1), AveragePool(2), Dense(3)], ReLU(0.1)),
    "1-D, leaky": Network((3, 6), [AveragePool(2), Conv(2), Dense(4), Dense(3)], ReLU(0.3)),
    "pooling last": Network((1, 6), [Conv(3), AveragePool(6)]),
    "max pooling": Network(
        (1, 8, 4), [Conv(3), MaxPool(2), Conv(3), AveragePool(2), MaxPool(1), Dense(3)]
    ),
    "max pooling first and last": Network((2, 12), [MaxPool(2), Conv(3), MaxPool(6)], ReLU(0.2)),
}


def clear_some_weights(theta):
    """Set one filter and one column of all filters to zero."""
    weights = theta.W[1].weights
    if weights.shape[0] > 2:
        weights[1] = 0
    if isinstance(theta.W[1], ConvolutionMatrix):
        weights[..., 0] = 0


@pytest.fixture(params=[(name, sparse) for name in NETWORKS for sparse in (False, True)], ids=str)
def points(request, device):
    """Return the same parameters on the host and on the device."""
    name, sparse = request.param
    net = NETWORKS[name]
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    if sparse and 1 in theta.b:
        clear_some_weights(theta)
    return theta, Parameters(net, device.asarray(theta.vector))


def training_set(net, kind):
    loss = SquaredLoss() if kind == "squared" else CrossEntropy()
    data = random_set(net.input_shape, 5, 3, loss, seed=1)
    if kind == "hard":
        data = TrainingSet(data.x, one_hot(data.y.argmax(axis=1), 3))
    return data, loss


TARGETS = ["squared", "hard", "soft"]


def test_outputs_on_a_device_are_those_of_numpy(points, device):
    host, there = points
    x = training_set(host.net, "squared")[0].x
    equal(host.net.forward(there, x), host.net.forward(host, x), device)


@pytest.mark.parametrize("kind", TARGETS)
def test_risks_and_gradients_on_a_device_are_those_of_numpy(points, kind, device):
    host, there = points
    net = host.net
    data, loss = training_set(net, kind)
    risk, gradient = net.risk_and_gradient(there, data, loss)
    expected_risk, expected = net.risk_and_gradient(host, data, loss)
    assert isinstance(risk, float)
    assert isinstance(net.risk(there, data, loss), float)
    close(risk, expected_risk)
    close(net.risk(there, data, loss), expected_risk)
    equal(gradient.vector, expected.vector, device)
    equal(net.sample_losses(there, data, loss), net.sample_losses(host, data, loss), device)
    for name, values in gradient.arrays().items():
        assert type(values) is np.ndarray
        assert values.shape == expected.arrays()[name].shape


def test_small_chunks_on_a_device_give_the_results_of_numpy(points, device):
    host, there = points
    net = host.net
    small = Network(net.input_shape, net.layers, net.activation, memory_budget=1)
    data, loss = training_set(net, "soft")
    moved = Parameters(small, there.vector)
    equal(small.forward(moved, data.x), net.forward(host, data.x), device)
    gradient = small.gradient(moved, data, loss).vector
    equal(gradient, net.gradient(host, data, loss).vector, device)


def test_patterns_of_a_device_come_to_the_host(points):
    host, there = points
    x = training_set(host.net, "squared")[0].x
    expected, patterns = host.net.patterns(host, x), host.net.patterns(there, x)
    assert patterns.keys() == expected.keys()
    for layer, pattern in patterns.items():
        assert type(pattern) is np.ndarray
        assert np.array_equal(pattern, expected[layer])


def test_affine_maps_on_a_device_are_those_of_numpy(points, device):
    host, there = points
    for x in training_set(host.net, "squared")[0].x:
        equal(host.net.affine_map(there, x), host.net.affine_map(host, x), device)


def test_parameters_on_a_device_share_their_vector(points, device):
    host, there = points
    before = host.vector.copy()
    copy = there.copy()
    for layer in there.b:
        there.b[layer][...] = 7
        there.W[layer].weights[...] = 7
    assert (to_numpy(there.vector) == 7).all()
    equal(copy.vector, before, device)
    zeros = there.net.zeros(like=there.vector)
    equal(zeros.vector, np.zeros(there.net.size), device)


# Transfers: as many for a deep network as for a shallow one


def test_arrays_of_a_type_come_to_the_host_together(device):
    host = [np.arange(6.0).reshape(2, 3), np.array([[True], [False]]), np.array(2.5), np.arange(2)]
    assert [id(x) for x in all_to_numpy(host)] == [id(x) for x in host]
    there = [device.asarray(x) for x in host]
    with strict_device.transfers() as count:
        found = all_to_numpy(there)
    assert count.to_host == (3 if device is strict_device else 0)
    for actual, expected in zip(found, host, strict=True):
        assert type(actual) is np.ndarray
        assert actual.dtype == expected.dtype
        assert np.array_equal(actual, expected)
    assert all_to_numpy([]) == []


POOLINGS = {"no pooling": [], "average": [AveragePool(2)], "max": [MaxPool(2)]}


def deep_point(convolutions, pooling, activation, cleared, budget):
    """Return a point of so many convolutions, which have zeros of every kind if `cleared`."""
    layers = [Conv(4), *POOLINGS[pooling]] * convolutions
    net = Network((2, 256), [*layers, Dense(3)], activation, budget)
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    if cleared:
        *convolved, _ = theta.b
        for layer in convolved:
            weights = theta.W[layer].weights
            weights[0] = weights[:, 1] = weights[..., 0] = 0
        theta.W[convolved[-1]].weights[...] = 0
    return theta


def kinds_of_patterns(net):
    return bool(net.kinked_layers) + bool(net.max_layers)


@in_turn(
    pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=str),
    pytest.mark.parametrize("pooling", POOLINGS),
    pytest.mark.parametrize("cleared", [False, True], ids=["", "zeros"]),
    draws=2,
)
def test_deep_networks_on_a_device_are_those_of_numpy(cleared, pooling, activation, device):
    host = deep_point(8, pooling, activation, cleared, 2**26)
    net, there = host.net, host.to(device)
    data, loss = training_set(net, "soft")
    equal(net.forward(there, data.x), net.forward(host, data.x), device)
    gradient = net.gradient(there, data, loss).vector
    equal(gradient, net.gradient(host, data, loss).vector, device)
    product = net.hessian_product(there, there, data, loss).vector
    equal(product, net.hessian_product(host, host, data, loss).vector, device)


@in_turn(
    pytest.mark.parametrize("cleared", [False, True], ids=["", "zeros"]),
    pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=str),
    pytest.mark.parametrize("pooling", POOLINGS),
    pytest.mark.parametrize("convolutions", [2, 4, 8]),
    pytest.mark.parametrize("kind", ["squared", "soft"]),
    pytest.mark.parametrize(
        ("budget", "chunks"), [(2**26, 1), (1, 5)], ids=["one chunk", "chunks"]
    ),
    draws=3,
)
def test_transfers_grow_with_chunks_and_not_with_layers(
    budget, chunks, kind, convolutions, pooling, activation, cleared
):
    theta = deep_point(convolutions, pooling, activation, cleared, budget).to(strict_device)
    net = theta.net
    data, loss = training_set(net, kind)
    for pass_over, sent, read in (
        (lambda: net.forward(theta, data.x), chunks, 0),
        (lambda: net.sample_losses(theta, data, loss), chunks + 1, 0),
        (lambda: net.risk(theta, data, loss), chunks + 1, 1),
        (lambda: net.risk_and_gradient(theta, data, loss), chunks + 1, chunks),
        (lambda: net.hessian_product(theta, theta, data, loss), chunks + 1, 0),
        (lambda: net.patterns(theta, data.x), chunks, chunks * kinds_of_patterns(net)),
    ):
        with strict_device.transfers() as count:
            pass_over()
        assert (count.to_device, count.to_host) == (sent, read)


@in_turn(
    pytest.mark.parametrize("kind", ["squared", "soft"]),
    pytest.mark.parametrize("pooling", POOLINGS),
    pytest.mark.parametrize("convolutions", [2, 8]),
    pytest.mark.parametrize(
        ("budget", "chunks"), [(2**26, 1), (1, 5)], ids=["one chunk", "chunks"]
    ),
    draws=2,
)
def test_transfers_of_a_certificate_do_not_grow_with_layers(
    budget, chunks, convolutions, pooling, kind, monkeypatch
):
    theta = deep_point(convolutions, pooling, ReLU(), False, budget).to(strict_device)
    data, loss = training_set(theta.net, kind)
    tried = {"keeps_patterns": [], "shrink": []}  # the radii
    for name, radii in tried.items():
        function = getattr(radius, name)
        for module in (cell, radius):
            monkeypatch.setattr(
                module, name, lambda rho, at, f=function, r=radii: r.append(rho) or f(rho, at)
            )
    monkeypatch.setattr(decrease.Classes, "decrease", lambda *_: 0.0)  # see the next test
    with strict_device.transfers() as count:
        certify_cell(theta, data, loss)
    assert count.to_device == 5 + chunks  # theta in float64, the targets, and the bounds of G_s
    once = 5  # theta three times, its largest entry, and whether it is finite
    of_a_chunk = 5  # residuals with errors, signs, dead layers and choices, kinks, margins
    radii = sum(map(len, tried.values()))
    assert count.to_host == once + chunks * of_a_chunk + radii
    assert radii >= chunks


@pytest.mark.parametrize("pooling", POOLINGS)
def test_transfers_of_a_bound_of_decreases_do_not_grow_with_layers(pooling):
    for convolutions in (2, 8):
        theta = deep_point(convolutions, pooling, ReLU(), False, 2**26).to(strict_device)
        x = training_set(theta.net, "squared")[0].x[:3]
        bounds = np.ones((3, math.prod(theta.net.shapes[-1]), 1 + x[0].size))
        cells = decrease.Classes.of(theta, x, bounds, 0.0)
        with strict_device.transfers() as count:
            cells.decrease(theta, 1e-3)
        assert (count.to_device, count.to_host) == (1, 1)


def test_certificates_on_a_device_are_those_of_numpy(points):
    host, there = points
    data, loss = training_set(host.net, ("squared", "soft")[host.net.size % 2])
    expected, found = (certify_cell(theta, data, loss) for theta in (host, there))
    assert (found.holds, found.classes, found.kinks) == (
        expected.holds,
        expected.classes,
        expected.kinks,
    )
    for name in ("margin", "radius", "stationarity"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9)


def weight_matrices():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(4, 4, 3, 3))
    gaps[1] = gaps[:, [0, 2]] = gaps[..., 0, 1] = 0
    return {
        "dense": DenseMatrix(rng.normal(size=(3, 8)), maps_in=2),
        "convolution 1-D": ConvolutionMatrix(rng.normal(size=(2, 3, 5)), (6,)),
        "convolution 2-D": ConvolutionMatrix(rng.normal(size=(2, 3, 3, 1)), (4, 5)),
        "single precision": ConvolutionMatrix(
            rng.normal(size=(33, 32, 3, 3)).astype(np.float32), (4, 3)
        ),
        "convolution with gaps": ConvolutionMatrix(gaps, (3, 4)),
        "zero convolution": ConvolutionMatrix(np.zeros((2, 3, 3)), (4,)),
        "pooling 1-D": AveragePoolingMatrix(2, (6,), 3),
        "pooling 2-D": AveragePoolingMatrix(3, (4, 6), 2),
        "pooling by one": AveragePoolingMatrix(3, (2, 2), 1),
    }


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("name", weight_matrices())
@pytest.mark.parametrize("strip", [1, convolution_matrix.STRIP_BYTES])
def test_weight_matrices_on_a_device_are_those_of_numpy(
    name, transposed, strip, device, monkeypatch
):
    monkeypatch.setattr(convolution_matrix, "STRIP_BYTES", strip)
    host = weight_matrices()[name]
    there = host if host.weights is None else host.with_weights(device.asarray(host.weights))
    if transposed:
        host, there = host.T, there.T
    rng, dtype = np.random.default_rng(1), float if host.weights is None else host.weights.dtype
    o, delta = (rng.normal(size=(n, 3)).astype(dtype) for n in host.shape[::-1])
    o_there, delta_there = device.asarray(o), device.asarray(delta)
    equal(there @ o_there, host @ o, device)
    equal(there @ o_there[:, 0], host @ o[:, 0], device)
    equal(there.T @ delta_there, host.T @ delta, device)
    equal(abs(there) @ o_there, abs(host) @ o, device)
    if host.weights is not None:
        equal(there.gradient(delta_there, o_there), host.gradient(delta, o), device)
        for found, expected in zip(
            there.pullback(delta_there, o_there), host.pullback(delta, o), strict=True
        ):
            equal(found, expected, device)
        equal(there.support_sums(abs(o_there)), host.support_sums(abs(o)), device)
    assert repr(there) == repr(host)
    assert there.nnz == host.nnz
    for shown, expected in (
        (there.toarray(), host.toarray()),
        (there.tocsr().toarray(), host.toarray()),
        (there[:, [0, -1]], host[:, [0, -1]]),
        (there[0, :], host[0, :]),
        (there.block(0, 0), host.block(0, 0)),
    ):
        assert type(shown) is np.ndarray
        assert np.array_equal(shown, expected)


def test_max_poolings_on_a_device_are_those_of_numpy(device):
    W, rng = MaxPoolingMatrix(3, (4, 6), 2), np.random.default_rng(1)
    host = list(rng.integers(-1, 2, (3, 72, 5)).astype(float))
    delta, there = rng.normal(size=(18, 5)), [device.asarray(term) for term in host]
    equal(W @ there[0], W @ host[0], device)
    equal(W.choice(there[0]), W.choice(host[0]), device)
    gaps, expected = (W.gaps(o, m == 0, abs(c)) for o, m, c in (there, host))
    assert np.array_equal(to_numpy(gaps), expected)  # some are infinite
    for S, expected in (
        (W.at(there[0]), W.at(host[0])),
        (W.at_limit(there, [abs(there[0]) / 2] * 3), W.at_limit(host, [abs(host[0]) / 2] * 3)),
    ):
        equal(S.choice, expected.choice, device)
        equal(S @ there[1], expected @ host[1], device)
        equal(S.T @ device.asarray(delta), expected.T @ delta, device)
    shown = W.at(there[0][:, 0]).toarray()
    assert type(shown) is np.ndarray
    assert np.array_equal(shown, W.at(host[0][:, 0]).toarray())


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr)
def test_losses_on_a_device_are_those_of_numpy(loss, device):
    rng = np.random.default_rng(0)
    o, d, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)), rng.dirichlet(np.ones(4), 6).T
    o_there, d_there, y_there = (device.asarray(v) for v in (o, d, y))
    equal(loss.value(o_there, y_there), loss.value(o, y), device)
    equal(loss.gradient(o_there, y_there), loss.gradient(o, y), device)
    equal(loss.curvature(o_there, y_there, d_there), loss.curvature(o, y, d), device)
    equal(softmax(o_there), softmax(o), device)
    loss.check_targets(y_there)


def test_wrong_targets_on_a_device_are_named(device):
    y = device.asarray(np.array([[0.5, 0.5], [0.5, 0.6]]))
    with pytest.raises(ValueError, match=r"sample 1 has \[0\.5, 0\.6\]"):
        CrossEntropy().check_targets(y)
