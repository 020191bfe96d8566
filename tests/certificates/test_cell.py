"""Certificates hold where they are proofs, and nowhere else; their radius is sound and not tiny."""

import contextlib
import signal
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
import torch_twin
from shared import random_point, targets_for, twin_of

from tinyspur import datasets
from tinyspur.certificates import Kink, certify_cell
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.constructions.relays import rescale
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import kink_escape, measure_escape

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
    found = theta.net.patterns(theta, x)
    return np.concatenate([found[layer] for layer in theta.net.pattern_layers], axis=1)


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
    found = [z > 0 for z in twin.preactivations(x).values()]
    found += [windows.argmax(-1) for windows in windows_of(twin, x).values()]
    return torch.cat([pattern.flatten(1).long() for pattern in found], dim=1).numpy()


# Points with several classes: two groups of samples, each with its own optimal affine map


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
    theta, data = random_point(net_of("pooling", "relu"), seed=11)
    theta = Parameters(theta.net, np.round(1024 * theta.vector) / 1024)  # no rounding anywhere
    x = np.round(1024 * data.x) / 1024
    data = TrainingSet(x, theta.net.forward(theta, x))
    yield pytest.param(theta, data, SQUARED, id="every residual zero")
    yield from certified_max_poolings()


over_certified_points = pytest.mark.parametrize(("theta", "data", "loss"), list(certified_points()))


# The bundled images


@pytest.fixture(scope="module")
def images():
    dataset = datasets.bundled()
    return TrainingSet(dataset.pixels(), one_hot(dataset.labels, dataset.classes))


@pytest.fixture(scope="module")
def image_net():
    return Network((1, 28, 28), [Conv(4), Conv(6), Conv(6), Dense(10)])


@pytest.fixture(scope="module")
def image_minimum(images, image_net):
    """Return the repaired theta on the bundled images and its certificate."""
    theta, _ = linear_minimum(image_net, images, SQUARED)
    return theta, certify_cell(theta, images, SQUARED)


@pytest.fixture(scope="module")
def image_literal(images, image_net):
    return linear_minimum(image_net, images, SQUARED, "literal")


def test_the_repaired_minimum_of_the_images_is_certified(image_minimum):
    _, certificate = image_minimum
    assert certificate.holds
    assert certificate.classes == 1
    assert certificate.kinks == ()
    assert certificate.stationarity < 1e-11
    assert certificate.margin == 1
    assert 0.01 < certificate.radius < certificate.margin
    assert not certificate.evidence_only
    assert "holds, a local minimum" in str(certificate)


def test_the_literal_point_of_the_images_is_not_certified(images, image_literal):
    theta, pair = image_literal
    certificate = certify_cell(theta, images, SQUARED)
    assert not certificate.holds
    assert (certificate.margin, certificate.radius) == (0, 0)
    everywhere = {(kink.layer, kink.map) for kink in certificate.kinks if kink.samples == 4000}
    assert {(layer, t) for layer in (2, 3) for t in (0, 1)} <= everywhere
    assert (2, pair.relay_of(0)) not in everywhere
    assert all(kink.locations == 784 for kink in certificate.kinks)
    assert "layer 2 maps 0, 1" in str(certificate)
    assert "does not hold" in str(certificate)


def test_no_move_within_the_radius_lowers_the_risk_of_the_images(
    images, image_minimum, image_literal
):
    theta, certificate = image_minimum
    rng = np.random.default_rng(0)
    risk = theta.net.risk(theta, images, SQUARED)
    literal, _ = image_literal
    escape = kink_escape(literal, images, SQUARED)
    assert escape.decrease > 0
    corner = rng.choice([-1.0, 1.0], theta.net.size)
    on_top = Parameters(theta.net, corner.copy())
    for layer in (1, 2, 3):
        on_top.W[layer].weights[...] = 0
    away = np.sign(escape.theta.vector - literal.vector)
    for direction in (corner, on_top.vector, away):
        moved = Parameters(theta.net, theta.vector + certificate.radius * direction)
        assert theta.net.risk(moved, images, SQUARED) >= risk * (1 - 1e-12)


def test_the_radius_for_the_images_is_close_to_the_nearest_other_pattern(images, image_minimum):
    theta, certificate = image_minimum
    brightest = images.x.reshape(len(images), -1).sum(axis=1).argmax()
    x = images.x[[brightest]]
    assert not patterns_of(theta, x)[:, 4 * 784 : 5 * 784].any()  # the reserved map A, dead
    aligned = list(aligned_moves(theta, x, {layer: range(0, 784, 3) for layer in (1, 2, 3)}))
    assert {layer for layer, _, _ in aligned} == {1, 2, 3}
    assert all(
        same_patterns(theta, ALMOST * certificate.radius * move, x, patterns_of(theta, x))
        for _, _, move in aligned
    )
    distance = nearest_flip(theta, x, aligned)
    assert certificate.radius < distance < 10 * certificate.radius


# The radius


def aligned_moves(theta, x, units=None, each=3):
    """Yield (layer, distance, signs): the moves that bring a pre-activation fastest to zero.

    In each layer those of the `each` pre-activations, or gaps of max poolings, that the linear
    estimate |z| / |dz/dtheta|_1 of the distance puts nearest; `units` lists which ones to look at,
    by layer.
    """
    twin = twin_of(theta)
    parameters = [(int(name[1:]), values) for name, values in twin.arrays().items()]
    for layer, z in [*twin.preactivations(x).items(), *half_gaps(twin, x).items()]:
        z = z.flatten()
        if not len(z):
            continue
        z = z if units is None else z[list(units[layer])]
        below = [values for number, values in parameters if number <= layer]
        rows = torch.autograd.grad(
            z,
            below,
            grad_outputs=torch.eye(len(z), dtype=torch.float64),
            is_grads_batched=True,
            retain_graph=True,
        )
        slopes = torch.cat([row.flatten(1) for row in rows], dim=1).numpy()
        z = z.detach().numpy()
        distances = abs(z) / abs(slopes).sum(axis=1)
        for unit in distances.argsort()[:each]:
            signs = np.zeros(theta.net.size)
            signs[: slopes.shape[1]] = -np.sign(z[unit]) * np.sign(slopes[unit])
            yield layer, distances[unit], signs


def nearest_flip(theta, x, aligned):
    """Return the least distance found, by bisection along the moves, at which a pattern changes."""
    expected, nearest = patterns_of(theta, x), np.inf
    for _, distance, move in aligned:
        low, high = 0.0, min(distance, nearest)
        while high < nearest and same_patterns(theta, high * move, x, expected):
            low, high = high, 2 * high
        if high >= nearest:
            high = nearest
            if same_patterns(theta, high * move, x, expected):
                continue
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            if same_patterns(theta, middle * move, x, expected):
                low = middle
            else:
                high = middle
        nearest = high
    return nearest


@over_layouts
@over_activations
@pytest.mark.parametrize("seed", range(3))
def test_no_pattern_changes_within_the_radius(layout, activation, seed):
    theta, data = random_point(net_of(layout, activation), seed=seed)
    certificate = certify_cell(theta, data, SQUARED)
    least = min(
        float(z.detach().abs().min()) for z in twin_of(theta).preactivations(data.x).values()
    )
    assert 0 < certificate.radius <= least * (1 + 1e-12)  # a bias alone moves z so far
    expected = patterns_of(theta, data.x)
    rng = np.random.default_rng(seed)
    reach, size = ALMOST * certificate.radius, theta.net.size
    moves = [signs * sign for _, _, signs in aligned_moves(theta, data.x) for sign in (1, -1)]
    moves += list(rng.choice([-1.0, 1.0], (120, size)))
    for move in rng.uniform(-1, 1, (60, size)):
        moves.append(move / abs(move).max())
    for move in moves:
        assert abs(move).max() == 1
        assert same_patterns(theta, reach * move, data.x, expected)


@over_layouts
@over_activations
@pytest.mark.parametrize("seed", range(3))
def test_the_radius_is_within_a_factor_of_the_nearest_other_pattern(layout, activation, seed):
    theta, data = random_point(net_of(layout, activation), seed=seed)
    radius = certify_cell(theta, data, SQUARED).radius
    distance = nearest_flip(theta, data.x, list(aligned_moves(theta, data.x, each=8)))
    # The entries of a gap count as if they moved apart as fast as each can alone.
    assert radius < distance < (8 if theta.net.max_layers else 5) * radius


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_radius_of_one_layer_is_exact(kernel, seed):
    rng = np.random.default_rng(seed)
    net = Network((2, 4, 4), [Conv(3, kernel), Dense(1)])
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 1)))
    radius = certify_cell(theta, data, SQUARED).radius
    # z moves by at most rho (1 + the sum of the pixels that the filter reads), and may do so.
    images = torch.tensor(abs(data.x))
    ones = torch.ones(1, 2, kernel, kernel, dtype=torch.float64)
    reach = 1 + torch.nn.functional.conv2d(images, ones, padding=kernel // 2).numpy()
    z = twin_of(theta).preactivations(data.x)[1].detach().numpy().reshape(3, 3, 4, 4)
    exact = (abs(z) / reach).min()
    assert 0.98 * exact < radius < exact


# G_s


def reference(theta, data, loss):
    """Return the number of classes and the stationarity, with PyTorch's patterns and gradients."""
    twin, leading = twin_of(theta), theta.net.leading_poolings
    classes = {}
    for i, row in enumerate(torch_patterns(twin, data.x)):
        classes.setdefault(row.tobytes(), []).append(i)
    outputs = twin(data.x).detach().requires_grad_()
    features = inputs_of(twin, data.x)[leading + 1].detach().flatten(1)
    x = torch.cat([features, torch.ones(len(data), 1)], dim=1)
    (g,) = torch.autograd.grad(
        len(data) * torch_twin.risk(outputs, data.y, loss.name), outputs, create_graph=False
    )
    scale = (g.abs().T @ x.abs()).max().item() / len(data)
    largest = 0.0
    for s in classes.values():
        F = torch.tensor(theta.net.affine_map(theta, data.x[s[0]], leading), requires_grad=True)
        affine = x[s] @ F.T
        assert torch.allclose(affine, outputs[s], rtol=0, atol=1e-11 * outputs.abs().max().item())
        risk = torch_twin.risk(affine, data.y[s], loss.name) * len(s) / len(data)
        (G,) = torch.autograd.grad(risk, F)
        largest = max(largest, G.abs().max().item())
    return len(classes), largest / scale if scale else 0.0


@over_layouts
@over_activations
@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
def test_classes_and_stationarity_are_those_of_pytorch(layout, activation, loss):
    theta, data = random_point(net_of(layout, activation), samples=25, seed=3)
    if loss is ENTROPY:
        y = np.random.default_rng(4).dirichlet(np.ones(data.y.shape[1]), len(data))
        data = TrainingSet(data.x, y)
    certificate = certify_cell(theta, data, loss)
    classes, stationarity = reference(theta, data, loss)
    assert certificate.classes == classes == len(np.unique(patterns_of(theta, data.x), axis=0))
    assert classes > 2
    assert abs(certificate.stationarity - stationarity) <= 1e-10 * stationarity
    assert stationarity > 1e-3
    assert not certificate.holds
    assert "not stationary" in str(certificate)
    twin = twin_of(theta)
    before = [*twin.preactivations(data.x).values(), *half_gaps(twin, data.x).values()]
    before = [z for z in before if z.numel()]
    margin = min(z.abs().min().item() for z in before)
    assert abs(certificate.margin - margin) <= 1e-13 * max(z.abs().max().item() for z in before)


def test_samples_of_one_class_need_not_follow_each_other():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, 0.0, 1.0, 0.0]))
    x = np.array([1.0, -1.0, 2.0, -2.0, 3.0])[:, None, None, None]
    certificate = certify_cell(theta, TrainingSet(x, np.ones((5, 1))), SQUARED)
    # g = (0, -1, 1, -1, 2): G is (8, 3) / 5 for x > 0 and (3, -2) / 5 for x < 0,
    # the scale is max(0 + 1 + 2 + 2 + 6, 5) / 5.
    assert certificate.classes == 2
    assert certificate.stationarity == pytest.approx(8 / 11, rel=1e-14)


@over_certified_points
def test_points_with_every_class_stationary_are_certified(theta, data, loss):
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == reference(theta, data, loss)[0]
    least = min(
        float(z.detach().abs().min()) for z in twin_of(theta).preactivations(data.x).values()
    )
    assert 0 < certificate.radius <= least * (1 + 1e-12)  # a bias alone moves z so far
    gradient = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    assert max(abs(values).max() for values in gradient.values()) < 1e-9


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_two_groups_fitted_apart_are_certified_with_two_classes(loss, depth):
    data = two_groups(np.random.default_rng(depth), loss)
    theta, risk = gate(data, loss, depth)
    assert abs(theta.net.risk(theta, data, loss) - risk) < 1e-12 * risk
    assert risk > 0.01
    residuals = abs(theta.net.forward(theta, data.x) - data.y)
    for side in (data.x[:, 0, 0, 0] > 0, data.x[:, 0, 0, 0] < 0):
        assert loss is ENTROPY or residuals[side].max() > 0.1
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == 2
    assert certificate.margin >= 0.5


def test_every_residual_zero_in_many_classes_is_certified():
    theta, data = random_point(net_of("conv", "relu"), samples=30, seed=8)
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes > 5
    assert certificate.stationarity == 0


def stationary_saddle():
    """Return a point with gradient zero whose classes are not stationary one by one.

    The outgoing weights are zero and the residuals are orthogonal to the hidden features.
    """
    rng = np.random.default_rng(1)
    net = Network((1, 1, 2), [Dense(3), Dense(1)])
    theta = Parameters(net, rng.normal(size=net.size))
    theta.W[2].weights[...] = 0
    x = rng.normal(size=(20, 1, 1, 2))
    z = theta.W[1] @ x.reshape(20, 2).T + theta.b[1][:, None]
    features = np.vstack([np.maximum(z, 0), np.ones(20)])
    basis, _ = np.linalg.qr(features.T)
    residuals = rng.normal(size=20)
    residuals -= basis @ (basis.T @ residuals)
    data = TrainingSet(x, (theta.b[2] - residuals)[:, None])
    return theta, data, residuals, z


def test_a_stationary_point_is_not_certified_where_single_classes_are_not_stationary():
    theta, data, residuals, z = stationary_saddle()
    gradient = torch_twin.gradients(twin_of(theta), data.x, data.y, "squared")
    assert max(abs(values).max() for values in gradient.values()) < 1e-15
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.classes > 2
    assert certificate.kinks == () and certificate.radius > 0
    assert certificate.stationarity > 1e-2
    assert not certificate.holds
    # Rightly so: a unit and a small outgoing weight, moved together, lower the risk.
    G = (residuals * (z[0] > 0)) @ data.x.reshape(20, 2) / 20
    moved = theta.copy()
    moved.W[1].weights[0] += certificate.radius * np.sign(G)
    moved.W[2].weights[0, 0] = -1e-3 * certificate.radius
    escape = measure_escape(theta, moved, "saddle", certificate.radius, data, SQUARED)
    assert escape.distance <= certificate.radius * (1 + 1e-12)
    assert escape.decrease > 0


def test_large_weights_that_cancel_do_not_make_a_point_stationary():
    """Two equal units cancel exactly; the bias of the output lowers the risk at first order."""
    net = Network((1, 1, 1), [Dense(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 1.0, 8.0, 8.0, 2.0**44, -(2.0**44), 0.0]))
    x = np.arange(4.0).reshape(4, 1, 1, 1)
    data = TrainingSet(x, np.array([[1.0], [-1.0], [1.0], [-1.125]]))
    assert np.array_equal(net.forward(theta, x), np.zeros((4, 1)))
    lower = theta.copy()
    lower.b[2][0] = -(2.0**-6)
    assert net.risk(lower, data, SQUARED) < net.risk(theta, data, SQUARED)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == () and certificate.classes == 1
    assert not certificate.holds


# What it means


@over_certified_points
def test_no_move_within_the_radius_lowers_the_risk(theta, data, loss):
    radius = certify_cell(theta, data, loss).radius
    risk = theta.net.risk(theta, data, loss)
    floor = risk - 1e-13 * risk
    rng, size = np.random.default_rng(0), theta.net.size
    for scale in (1, 1e-2):
        for _ in range(500):
            for move in (rng.uniform(-1, 1, size), rng.choice([-1.0, 1.0], size)):
                moved = Parameters(theta.net, theta.vector + scale * radius * move)
                assert theta.net.risk(moved, data, loss) >= floor


@over_certified_points
def test_descent_within_the_radius_does_not_lower_the_risk(theta, data, loss):
    radius = certify_cell(theta, data, loss).radius
    risk = theta.net.risk(theta, data, loss)
    rng, net = np.random.default_rng(0), theta.net

    def risk_and_gradient(move):
        value, gradient = net.risk_and_gradient(
            Parameters(net, theta.vector + radius * move), data, loss
        )
        return value, radius * gradient.vector

    for _ in range(4):
        start = rng.choice([-1.0, 1.0], net.size)
        found = scipy.optimize.minimize(
            risk_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-1, 1)] * net.size,
            options={"ftol": 0, "gtol": 0, "maxiter": 100},
        )
        assert found.fun >= risk - 1e-13 * risk
        assert found.fun <= risk_and_gradient(start)[0]


# Invariance


def summary(certificate):
    return certificate.holds, certificate.classes, certificate.kinks


@over_layouts
@over_activations
def test_the_memory_budget_does_not_matter(layout, activation):
    theta, data = random_point(net_of(layout, activation), samples=9, seed=6)
    expected = certify_cell(theta, data, SQUARED)
    for budget in (1, 10_000):
        found = certify_cell(with_budget(theta, budget), data, SQUARED)
        assert summary(found) == summary(expected)
        assert found.margin == pytest.approx(expected.margin, rel=1e-9)
        assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-9)
        assert found.radius == pytest.approx(expected.radius, rel=0.02)


@over_certified_points
def test_the_memory_budget_does_not_matter_where_the_certificate_holds(theta, data, loss):
    found = certify_cell(with_budget(theta, 1), data, loss)
    assert found.holds
    assert found.radius == pytest.approx(certify_cell(theta, data, loss).radius, rel=0.02)


def test_the_memory_budget_does_not_decide_what_counts_as_a_kink():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1.0, -1.0, 1.0, 0.0]))
    x = np.array([2.0, 1 + 1e-13, 1e6])[:, None, None, None]
    data = TrainingSet(x, x.reshape(3, 1))
    expected = certify_cell(theta, data, SQUARED)
    assert expected.kinks == (Kink(1, 0, 1, 1),)
    assert certify_cell(with_budget(theta, 1), data, SQUARED).kinks == expected.kinks


def permuted(data, seed=0):
    order = np.random.default_rng(seed).permutation(len(data))
    return TrainingSet(data.x[order], data.y[order])


@over_certified_points
def test_the_order_of_the_samples_does_not_matter_where_it_holds(theta, data, loss):
    expected, found = (certify_cell(theta, d, loss) for d in (data, permuted(data)))
    assert summary(found) == summary(expected)
    assert found.holds
    assert found.margin == pytest.approx(expected.margin, rel=1e-12)
    assert found.radius == pytest.approx(expected.radius, rel=1e-9)


@over_layouts
def test_the_order_of_the_samples_does_not_matter(layout):
    theta, data = random_point(net_of(layout, "relu"), samples=20, seed=7)
    expected, found = (certify_cell(theta, d, SQUARED) for d in (data, permuted(data)))
    assert summary(found) == summary(expected)
    assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-10)


def rescaled_points(theta):
    """Yield points with the same outputs: each layer, and one map of each layer, rescaled."""
    layers = theta.net.layers
    last = max(n for n, layer in enumerate(layers, 1) if isinstance(layer, Conv | Dense))
    for layer in (layer for layer in theta.net.active_layers if layer < last):
        for factor in (0.25, 8.0):
            yield rescale(theta, layer, factor)
            yield rescale(theta, layer, factor, target=theta.W[layer].maps_out - 1)


@over_certified_points
def test_rescaling_keeps_the_certificate(theta, data, loss):
    expected = certify_cell(theta, data, loss)
    for point in rescaled_points(theta):
        found = certify_cell(point, data, loss)
        assert summary(found) == summary(expected)
        assert found.holds
        assert found.radius > 0


@over_layouts
def test_rescaling_keeps_classes_and_stationarity(layout):
    theta, data = random_point(net_of(layout, "leaky"), samples=20, seed=9)
    expected = certify_cell(theta, data, SQUARED)
    for point in rescaled_points(theta):
        found = certify_cell(point, data, SQUARED)
        assert summary(found) == summary(expected)
        assert found.stationarity == pytest.approx(expected.stationarity, rel=1e-10)


def test_scaling_of_the_first_layer_scales_the_margin():
    theta, data = random_point(net_of("shallow", "relu"), seed=10)
    before = certify_cell(theta, data, SQUARED)
    after = certify_cell(rescale(theta, 1, 4.0), data, SQUARED)
    assert after.margin == 4 * before.margin
    assert after.radius == pytest.approx(4 * before.radius, rel=0.02)


# What is not certified


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
def test_float32_is_not_enough(loss):
    rng = np.random.default_rng(2)
    y = one_hot(rng.integers(0, 3, 80), 3, smoothing=0.1)
    data = TrainingSet(rng.normal(size=(80, 1, 5, 5)), y)
    net = Network((1, 5, 5), [Conv(2), Conv(3), Conv(3), Dense(3)])
    theta, _ = linear_minimum(net, data, loss)
    assert certify_cell(theta, data, loss).holds
    single = certify_cell(theta.to(np, np.float32), data, loss)
    assert not single.holds
    assert single.kinks == ()
    assert 1e-10 < single.stationarity < 1e-4


def test_a_dense_unit_at_the_kink_is_named():
    theta, data = random_point(net_of("dense", "relu"), seed=12)
    row = theta.W[2].weights[1]
    row[...] = 0
    theta.b[2][1] = 0
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == (Kink(2, 1, 1, len(data)),)
    assert not certificate.holds
    assert (certificate.margin, certificate.radius) == (0, 0)
    assert certificate.stationarity == 0
    assert "layer 2 map 1 (1 locations, 6 samples)" in str(certificate)


@pytest.mark.parametrize("budget", [1, 2**26])
def test_kinks_count_locations_and_samples_of_their_map(budget):
    net = Network((1, 3, 3), [Conv(2, 1), Dense(1)], memory_budget=budget)
    theta = Parameters(net, np.ones(net.size))
    theta.b[1][:] = 0, -7
    x = np.arange(1.0, 37).reshape(4, 1, 3, 3)
    x[0, 0, 0, :2] = 0  # locations 0 and 1
    x[2, 0, 0, 1] = 0  # location 1
    x[3, 0, 2, 2] = 7  # location 8 of the map with bias -7
    x[0, 0, 2, 0] = 7.5  # where arange gives 7
    certificate = certify_cell(theta, TrainingSet(x, np.zeros((4, 1))), SQUARED)
    assert certificate.kinks == (Kink(1, 0, 2, 2), Kink(1, 1, 1, 1))
    assert not certificate.holds


def test_a_leaky_unit_at_zero_is_a_kink_too():
    theta, data = random_point(net_of("dense", "leaky"), seed=13)
    theta.b[1][2] -= (theta.W[1] @ data.x[4].ravel() + theta.b[1])[2]
    theta.b[1][2] -= (theta.W[1] @ data.x[4].ravel() + theta.b[1])[2]
    kinks = certify_cell(theta, data, SQUARED).kinks
    assert kinks == (Kink(1, 2, 1, 1),)


# Ties of max pooling


def tied(inactive, activation="relu", size=2):
    """Return relays below a max pooling, and data that they fit.

    In one window of two samples the two largest entries are equal; there all are inactive or not.
    """
    net = Network((1, 6), [Conv(2, 1), MaxPool(size), Dense(2)], ACTIVATIONS[activation])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    theta.W[1].weights[...] = np.array([1.0, 2.0]).reshape(2, 1, 1)
    theta.b[1][:] = -4 if inactive else 4, 8
    x = np.arange(24.0).reshape(4, 1, 6) % 3 + np.arange(6) / 8
    x[1:3, 0, :2] = 1.5
    return theta, TrainingSet(x, net.forward(theta, x))


@over_activations
def test_equal_entries_are_a_kink_unless_both_are_inactive(activation):
    theta, data = tied(False, activation)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.kinks == (Kink(2, 0, 1, 2), Kink(2, 1, 1, 2))
    assert (certificate.margin, certificate.radius, certificate.stationarity) == (0, 0, 0)
    assert not certificate.holds
    assert "layer 2 maps 0, 1 (1 locations, 2 samples)" in str(certificate)
    theta, data = tied(True, activation)
    certificate = certify_cell(theta, data, SQUARED)
    leaky = activation == "leaky"  # there an inactive entry moves too
    assert certificate.kinks == ((Kink(2, 0, 1, 2),) if leaky else ()) + (Kink(2, 1, 1, 2),)
    theta.W[1].weights[1], theta.b[1][1] = 0, -3
    certificate = certify_cell(theta, data, SQUARED)
    assert bool(certificate.kinks) == leaky


@pytest.mark.parametrize("between", [[], [AveragePool(2)], [MaxPool(2)]], ids=str)
def test_where_all_entries_are_inactive_there_is_no_gap_to_keep(between):
    net = Network((1, 8), [Conv(2), *between, MaxPool(2), Dense(1)])
    theta = Parameters(net, np.random.default_rng(1).normal(size=net.size))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8))
    theta.b[1][:] = -10, -20
    data = TrainingSet(x, np.zeros((5, 1)) + theta.b[net.depth])
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == 1
    least = min(z.abs().min().item() for z in twin_of(theta).preactivations(x).values())
    assert certificate.margin == pytest.approx(least)
    expected, reach = patterns_of(theta, x), ALMOST * certificate.radius
    for move in np.random.default_rng(2).choice([-1.0, 1.0], (200, net.size)):
        assert same_patterns(theta, reach * move, x, expected)


def test_equal_entries_up_to_rounding_are_a_kink():
    net = Network((2, 2), [Conv(1, 1), MaxPool(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    x = np.array([[[0.1, 0.3], [0.2, 0.0]]])
    assert 0 < (0.1 + 0.2) - 0.3 < 1e-16
    certificate = certify_cell(theta, TrainingSet(x, net.forward(theta, x)), SQUARED)
    assert certificate.kinks == (Kink(2, 0, 1, 1),)
    assert not certificate.holds


def test_a_descent_over_a_tie_is_not_ruled_out():
    """Stationary on either side is not enough: to swap the largest lowers the risk."""
    net = Network((1, 2), [Conv(1), MaxPool(2), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[0, 0, 1], theta.b[1][0], theta.W[3].weights[0, 0] = 1, 1, 1
    x = np.ones((2, 1, 2))
    data = TrainingSet(x, np.full((2, 1), 3.0))
    lower = theta.copy()
    lower.W[1].weights[0, 0, 0] = 1e-3
    assert net.risk(lower, data, SQUARED) < net.risk(theta, data, SQUARED)
    assert certify_cell(theta, data, SQUARED).kinks == (Kink(2, 0, 1, 2),)


# Layers that hold no unit


def test_a_network_that_begins_with_a_pooling_gets_a_certificate():
    rng = np.random.default_rng(14)
    net = Network((1, 4, 4), [AveragePool(2), Conv(2), Dense(2)])
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(5, 1, 4, 4))
    data = TrainingSet(x, net.forward(theta, x))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == len(np.unique(patterns_of(theta, x), axis=0))
    distance = nearest_flip(theta, x, list(aligned_moves(theta, x)))
    assert certificate.radius < distance < 10 * certificate.radius


def test_ties_of_leading_max_poolings_are_no_kinks():
    rng = np.random.default_rng(14)
    layers = [Conv(2), MaxPool(2), Dense(2)]
    net = Network((1, 8, 8), [MaxPool(2), *layers])
    theta = Parameters(net, rng.normal(size=net.size))
    pooled = rng.normal(size=(40, 1, 4, 4))
    x = pooled.repeat(2, axis=2).repeat(2, axis=3)  # all entries of a window are equal
    y = rng.normal(size=(40, 2))
    alone = Parameters(Network((1, 4, 4), layers), theta.vector)
    found, expected = (
        certify_cell(point, TrainingSet(images, y), SQUARED)
        for point, images in ((theta, x), (alone, pooled))
    )
    assert replace(found, excess=0) == replace(expected, excess=0)  # one more layer of rounding
    assert found.kinks == ()


@pytest.mark.parametrize("kind", [AveragePool, MaxPool])
def test_a_network_of_poolings_alone_has_no_patterns(kind):
    net = Network((2, 4, 4), [kind(2), kind(2)])
    data = TrainingSet(np.ones((3, 2, 4, 4)), np.zeros((3, 2)))
    certificate = certify_cell(net.zeros(), data, SQUARED)
    assert (certificate.classes, certificate.margin, certificate.radius) == (1, np.inf, np.inf)
    assert certificate.as_dict()["margin"] is None


def test_a_network_without_hidden_units_is_certified_at_its_affine_fit():
    rng = np.random.default_rng(15)
    data = TrainingSet(rng.normal(size=(12, 1, 1, 3)), rng.normal(size=(12, 2)))
    fit = fit_affine(data.x.reshape(12, 3), data.y, SQUARED)
    net = Network((1, 1, 3), [Dense(2)])
    theta = Parameters(net, np.concatenate([fit.weights.ravel(), fit.bias]))
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_point_that_is_not_finite_is_refused(value):
    theta, data = random_point(net_of("dense", "relu"), seed=16)
    theta.W[1].weights[0, 0] = value
    with deadline(5), pytest.raises(ValueError, match="expected finite parameters"):
        certify_cell(theta, data, SQUARED)


@contextlib.contextmanager
def deadline(seconds):
    """Raise TimeoutError in the body after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pixel_of_any_scale_has_to_be_used_as_well_as_it_can_be():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=40)
    x = rng.random((40, 1, 2, 3))
    x[:, 0, 0, 0] = 1e-14 * (labels == 1)
    data = TrainingSet(x, one_hot(labels, 3))
    net = Network((1, 2, 3), [Conv(1), Conv(3), Conv(3), Dense(3)])
    theta, _ = linear_minimum(net, data, SQUARED)
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds
    assert certificate.excess > 1e6


def test_a_unit_that_cancels_to_zero_across_layers_is_at_the_kink():
    # z^2 = (1e8 a + 0.1 - 1e8 a) - 0.1, zero but for rounding in the layer below.
    net = Network((1, 1, 2), [Dense(1), Dense(1), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[0] = [1e8, -1e8]
    theta.b[1][0] = 0.1
    theta.W[2].weights[0, 0] = 1.0
    theta.b[2][0] = -0.1
    a = np.random.default_rng(0).random(20)
    x = np.stack([a, a], axis=1).reshape(20, 1, 1, 2)
    data = TrainingSet(x, np.ones((20, 1)))
    certificate = certify_cell(theta, data, SQUARED)
    assert Kink(2, 0, 1, 20) in certificate.kinks
    assert not certificate.holds


def test_where_no_minimiser_exists_a_point_far_out_is_not_certified():
    rng = np.random.default_rng(0)
    x = np.zeros((105, 1, 1, 2))
    x[:100, 0, 0, 0] = rng.random(100)
    x[100:, 0, 0, 1] = 1.0
    labels = np.concatenate([rng.integers(2, size=100), np.ones(5, int)])
    data = TrainingSet(x, one_hot(labels, 2))
    net = Network((1, 1, 2), [Dense(2)])
    mixed = fit_affine(x[:100, 0, 0], data.y[:100], ENTROPY)
    theta = net.zeros()
    theta.W[1].weights[:] = mixed.weights
    theta.b[1][:] = mixed.bias
    for height in (5.0, 10.0, 14.0):
        theta.W[1].weights[:, 1] = [-height, height]
        assert not certify_cell(theta, data, ENTROPY).holds, height


def test_the_radius_is_printed_no_larger_than_it_is():
    theta, data = random_point(net_of("dense", "relu"), seed=0)
    certificate = certify_cell(theta, data, SQUARED)
    printed = float(str(certificate).split("radius ")[1].split(",")[0])
    assert 0.99 * certificate.radius <= printed <= certificate.radius
