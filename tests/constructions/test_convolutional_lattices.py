"""Convolutional lattices compute maxima of minima of their pieces, as [PWL] 6.2 prints them."""

import functools
import json
import tracemalloc

import numpy as np
import pytest
import torch
import torch_twin

from tinyspur.certificates import certify_cell
from tinyspur.constructions import convolutional_lattices
from tinyspur.constructions.convolutional_lattices import convolutional_lattice, patch_sums
from tinyspur.constructions.piecewise_linear import Groups
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine import architecture, passes
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss, one_hot
from tinyspur.errors import AssumptionError
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

SQUARED = SquaredLoss()
STACKS = {
    "convolution": [3],
    "average": [3, AveragePool(2)],
    "average between": [5, AveragePool(2), 3],
    "windows of three": [3, AveragePool(3)],
    "max": [3, MaxPool(2)],
    "max above two": [3, 3, MaxPool(2)],
    "max twice": [1, MaxPool(2), 3, MaxPool(2)],
    "max and average": [1, MaxPool(2), AveragePool(2)],
}
over_stacks = pytest.mark.parametrize("name", STACKS)


def bright_groups(layers, count, shape=None, groups=2, outputs=2):
    """Return data of images in groups of different brightness, and these groups."""
    rng = np.random.default_rng(0)
    shape = shape or ((1, 6, 6) if AveragePool(3) in layers else (1, 4, 4))
    labels = np.arange(count) % groups
    x = rng.uniform(size=(count, *shape)) + 3 * labels[:, None].repeat(np.prod(shape), 1).reshape(
        count, *shape
    )
    y = np.sin(3 * x.reshape(count, -1) @ rng.normal(size=(np.prod(shape), outputs)))
    kernel = layers[0]
    p = np.ones(shape[0] * kernel ** (len(shape) - 1))
    found = Groups.gaps(patch_sums(layers, x, p), p, groups)
    assert np.array_equal(found.labels, labels)
    return TrainingSet(x, y), found


@functools.cache
def bright_lattice(name, groups):
    """Return data, groups and their lattice."""
    outputs = 1 if name == "max" else 2
    data, found = bright_groups(STACKS[name], 24, groups=groups, outputs=outputs)
    return data, found, convolutional_lattice(STACKS[name], data, SQUARED, found)


def torch_pieces(layers, filters, biases, x):
    """Return the sums of the maps (n, N) that one filter each makes, by PyTorch."""
    d = x.ndim - 2
    convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[d]
    pools = {
        AveragePool: {1: torch.nn.functional.avg_pool1d, 2: torch.nn.functional.avg_pool2d}[d],
        MaxPool: {1: torch.nn.functional.max_pool1d, 2: torch.nn.functional.max_pool2d}[d],
    }
    found = []
    for w, b in zip(filters, biases, strict=True):
        maps = convolve(torch.tensor(x), torch.tensor(w[None]), padding=w.shape[-1] // 2) + b
        for layer in layers[1:]:
            if isinstance(layer, int):
                ones = torch.ones(1, 1, *[layer] * d, dtype=torch.float64)
                maps = convolve(maps, ones, padding=layer // 2)
            else:
                maps = pools[type(layer)](maps, layer.size)
        found.append(maps.flatten(1).sum(dim=1).numpy())
    return np.array(found)


def max_min(lattices, values):
    """Return max_r min_{k in S_r} of the pieces' values (n, N), lattice by lattice."""
    outputs, start = [], 0
    for lattice in lattices:
        mine = values[start : start + len(lattice.pieces)]
        outputs.append(np.max([mine[list(s)].min(axis=0) for s in lattice.sets], axis=0))
        start += len(mine)
    return np.array(outputs).T


def groups_of(stack):
    return 2 if _selects(stack) else 3


@over_stacks
def test_the_network_is_the_maximum_of_minima_of_pytorchs_pieces(name):
    stack = STACKS[name]
    data, _, lattice = bright_lattice(name, groups_of(stack))
    theta, first = lattice.theta, len(stack) + 1
    arrays = theta.arrays()
    pieces = torch_pieces(stack, arrays["W1"], arrays["b1"], data.x)
    offset = arrays[f"b{theta.net.depth}"]
    expected = max_min(lattice.lattices, pieces) + offset
    scale = abs(pieces).max()
    assert abs(theta.net.forward(theta, data.x) - expected).max() <= 1e-12 * scale
    twin = torch_twin.Twin(json.dumps(theta.net.spec)).load(arrays)
    risk = float(torch_twin.risk(twin(data.x).detach(), data.y, "squared"))
    assert risk == pytest.approx(lattice.risk, rel=1e-9)
    assert (offset == offset[0]).all()
    for layer in range(1, len(stack) + 2):  # all units below the trees are strictly active
        if layer in theta.b:
            assert (twin.preactivations(data.x)[layer] > 0).all()
    for layer, kind in enumerate(theta.net.layers, start=1):
        if layer > 1 and layer in theta.b and layer < theta.net.depth:
            assert (theta.b[layer] == 0).all()
        if 1 < layer <= first and not isinstance(kind, MaxPool | AveragePool):
            weights = theta.W[layer].weights
            blocks = weights.reshape(len(weights), len(weights), -1)
            assert (blocks == np.eye(len(weights))[:, :, None]).all()


@over_stacks
def test_every_group_is_fitted_by_its_own_piece(name):
    stack = STACKS[name]
    groups = groups_of(stack)
    data, found, lattice = bright_lattice(name, groups)
    outputs = lattice.theta.net.forward(lattice.theta, data.x)
    scale = abs(lattice.theta.b[lattice.theta.net.depth][0])
    if not _selects(stack):
        whole = convolutional_lattice(stack, data, SQUARED, _one(stack, data))
        assert lattice.risk < whole.risk  # finer groups fit better
    for r in range(1 if _selects(stack) else groups):
        inside = found.labels == r
        alone = TrainingSet(data.x[inside], data.y[inside])
        fitted = convolutional_lattice(stack, alone, SQUARED, _one(stack, alone))
        risk = 0.5 * ((outputs[inside] - alone.y) ** 2).sum(axis=1).mean()
        assert risk == pytest.approx(fitted.risk, rel=1e-9)
        if not _selects(stack):
            hats = np.hstack([_unfolded(stack, alone.x), np.ones((len(alone), 1))])
            best = hats @ np.linalg.lstsq(hats, alone.y)[0]
            assert abs(best - outputs[inside]).max() <= 1e-10 * scale


def _one(stack, data):
    p = np.ones(data.x.shape[1] * stack[0] ** (data.x.ndim - 2))
    return Groups.at(patch_sums(stack, data.x, p), p, [])


def _selects(stack):
    return any(isinstance(layer, MaxPool) for layer in stack)


def _unfolded(stack, x):
    """Return patch_sums by PyTorch: the response to every unit filter."""
    size = x.shape[1] * stack[0] ** (x.ndim - 2)
    taps = np.eye(size).reshape(size, x.shape[1], *[stack[0]] * (x.ndim - 2))
    return torch_pieces(stack, taps, np.zeros(size), x).T


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 8)], ids=str)
def test_patch_sums_are_the_responses_to_unit_filters(shape):
    x = np.random.default_rng(0).normal(size=(6, *shape))
    for stack in ([3], [3, AveragePool(2)], [1, AveragePool(2), 3]):
        np.testing.assert_allclose(patch_sums(stack, x), _unfolded(stack, x), atol=1e-12)
    w = np.random.default_rng(1).normal(size=(1, shape[0], *[3] * (len(shape) - 1)))
    stack = [3, MaxPool(2)]
    expected = torch_pieces(stack, w, np.zeros(1), x)[0]
    np.testing.assert_allclose(patch_sums(stack, x, w[0]) @ w.ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("layers", [[3, 3, MaxPool(2)], [3, MaxPool(2), 3, MaxPool(2)]], ids=str)
def test_max_poolings_select_what_they_do_where_a_large_bias_is_added(layers):
    rng, large = np.random.default_rng(0), 1e6
    x, w = rng.normal(size=(6, 2, 8, 8)), rng.normal(size=(1, 2, 3, 3))
    for b in (large, 2 * large):
        added = torch_pieces(layers, 0 * w, [b], x)[0]
        expected = torch_pieces(layers, w, [b], x)[0] - added
        np.testing.assert_allclose(patch_sums(layers, x, w) @ w.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("layers", [[3], [3, 3, MaxPool(2)]], ids=str)
def test_chunks_of_samples_change_nothing_but_rounding(layers, monkeypatch):
    data, groups = bright_groups(layers, 24, outputs=1)
    whole = convolutional_lattice(layers, data, SQUARED, groups)
    monkeypatch.setattr(passes, "CACHED", 0)
    parts = convolutional_lattice(layers, data, SQUARED, groups)
    assert parts.risk == pytest.approx(whole.risk, rel=1e-6)


def test_patches_of_many_images_keep_the_memory_budget():
    x = np.random.default_rng(0).normal(size=(1000, 1, 28, 28))
    tracemalloc.start()
    sums = patch_sums([7, MaxPool(2)], x, np.ones(49))  # of patches of 300 MB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sums.shape == (1000, 49)
    assert peak < 2 * architecture.MEMORY_BUDGET


@pytest.mark.parametrize("stack", [[3], [3, AveragePool(2)]], ids=str)
@pytest.mark.parametrize(
    "loss", [SQUARED, AbsoluteLoss(), HuberLoss(0.3), CrossEntropy()], ids=repr
)
def test_the_filters_are_optimal_and_what_is_above_them_is_not(stack, loss):
    data, groups = bright_groups(stack, 40, groups=1, outputs=3)
    if loss.name == "cross-entropy":
        data = TrainingSet(data.x, one_hot(data.y.argmax(axis=1), 3, smoothing=0.1))
    lattice = convolutional_lattice(stack, data, loss, groups)
    theta = lattice.theta
    certificate = certify_cell(theta, data, loss)
    assert not certificate.holds
    assert certificate.classes == 1
    assert not certificate.kinks
    if loss.name != "absolute":
        gradient = theta.net.gradient(theta, data, loss)
        first, rest = abs(gradient.W[1].weights).max(), abs(gradient.W[len(stack) + 1].weights)
        assert first < 1e-6 * rest.max()
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = theta.copy()
        moved.W[1].weights[...] += 1e-3 * rng.normal(size=moved.W[1].weights.shape)
        moved.b[1][...] += 1e-3 * rng.normal(size=moved.b[1].shape)
        assert theta.net.risk(moved, data, loss) >= lattice.risk - 1e-12


def test_no_small_change_of_the_filters_below_a_max_pooling_lowers_the_risk():
    stack = [3, MaxPool(2)]
    data, groups = bright_groups(stack, 30, groups=1, outputs=1)
    lattice = convolutional_lattice(stack, data, SQUARED, groups)
    theta, rng = lattice.theta, np.random.default_rng(0)
    for step in (1e-2, 1e-3, 1e-4):
        for _ in range(20):
            moved = theta.copy()
            moved.W[1].weights[...] += step * rng.normal(size=moved.W[1].weights.shape)
            moved.b[1][...] += step * rng.normal(size=moved.b[1].shape)
            assert theta.net.risk(moved, data, SQUARED) > lattice.risk - 1e-6 * lattice.risk


def test_images_of_one_direction_and_several_channels():
    stack = [3, MaxPool(2), 3]
    data, groups = bright_groups(stack, 30, shape=(2, 8), outputs=1)
    lattice = convolutional_lattice(stack, data, SQUARED, groups)
    pieces = torch_pieces(stack, lattice.theta.W[1].weights, lattice.theta.b[1], data.x)
    expected = max_min(lattice.lattices, pieces) + lattice.theta.b[lattice.theta.net.depth]
    outputs = lattice.theta.net.forward(lattice.theta, data.x)
    assert abs(outputs - expected).max() <= 1e-12 * abs(pieces).max()


def test_the_layers_are_the_stack_a_dense_layer_of_all_pieces_and_the_trees():
    stack = [3, AveragePool(2)]
    data, groups = bright_groups(stack, 30, outputs=1)
    lattice = convolutional_lattice(stack, data, SQUARED, groups)
    (f,), layers = lattice.lattices, lattice.theta.net.layers
    n = len(f.pieces)
    assert layers[:3] == (Conv(n, 3), AveragePool(2), Dense(n))
    assert lattice.theta.net.depth == len(stack) + f.depth + 1
    assert "1 output" not in str(lattice)
    assert f"output 0: {f}" in str(lattice)


def test_the_same_seed_gives_the_same_point():
    stack = [3, MaxPool(2)]
    data, groups = bright_groups(stack, 8, groups=1, outputs=1)
    first, again = (convolutional_lattice(stack, data, SQUARED, groups, seed=3) for _ in range(2))
    assert np.array_equal(first.theta.vector, again.theta.vector)


def test_what_it_does_not_fit_is_refused():
    data, groups = bright_groups([3], 20)
    with pytest.raises(ValueError, match="the size of a filter first"):
        convolutional_lattice([AveragePool(2), 3], data, SQUARED, groups)
    with pytest.raises(ValueError, match="the size of a filter first"):
        convolutional_lattice([], data, SQUARED, groups)
    with pytest.raises(ValueError, match="expected 19 samples along a filter"):
        fewer = TrainingSet(data.x[1:], data.y[1:])
        convolutional_lattice([3], fewer, SQUARED, groups)
    with pytest.raises(ValueError, match="along a filter"):
        convolutional_lattice([1], data, SQUARED, groups)
    with pytest.raises(ValueError, match="a sum over the outputs"):
        entropy = TrainingSet(data.x, one_hot(np.arange(20) % 2, 2, smoothing=0.1))
        convolutional_lattice([3, MaxPool(2)], entropy, CrossEntropy(), groups)
    with pytest.raises(ValueError, match="a filter, for the max pooling"):
        patch_sums([3, MaxPool(2)], data.x)
    with pytest.raises(ValueError, match=r"a filter \(1, 3, 3\), got \(5,\)"):
        patch_sums([3], data.x, np.ones(5))


def test_groups_that_a_max_pooling_does_not_put_in_order_are_refused(monkeypatch):
    monkeypatch.setattr(convolutional_lattices, "STARTS", 1)  # whatever the fits are
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(24, 1, 4, 4)), rng.normal(size=(24, 1)))
    p, stack = np.ones(9), [3, MaxPool(2)]
    groups = Groups.equal(patch_sums(stack, data.x, p), p, 2)
    with pytest.raises(AssumptionError, match="no steep piece cuts group"):
        convolutional_lattice(stack, data, SQUARED, groups)


@pytest.mark.parametrize("gap", [0.5, 1e-13])
def test_groups_that_almost_touch_are_refused_rather_than_fitted_badly(gap):
    rng, p = np.random.default_rng(0), np.ones(9)
    grey = np.concatenate([np.linspace(0, 1, 12), np.linspace(1 + gap, 2, 12)])
    x = np.broadcast_to(grey[:, None, None, None], (24, 1, 4, 4))
    data, phi = TrainingSet(x, rng.normal(size=(24, 1))), patch_sums([3], x)
    along = phi @ p
    groups = Groups.at(phi, p, [(along[11] + along[12]) / 2])
    assert groups.labels.tolist() == [0] * 12 + [1] * 12
    if gap > 0.1:
        lattice = convolutional_lattice([3], data, SQUARED, groups)
        outputs = lattice.theta.net.forward(lattice.theta, x)[:, 0]
        for half in (slice(0, 12), slice(12, 24)):
            expected = np.polyval(np.polyfit(grey[half], data.y[half, 0], 1), grey[half])
            np.testing.assert_allclose(outputs[half], expected, atol=1e-8)
    else:
        with pytest.raises(AssumptionError, match=r"too close along the direction|no steep piece"):
            convolutional_lattice([3], data, SQUARED, groups)
