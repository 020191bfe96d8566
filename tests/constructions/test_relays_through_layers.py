"""Relays through strides, padding, dilation, groups, scales, poolings, blocks: certified minima."""

import numpy as np
import pytest
import torch
from shared import close, refuses

from tinyspur import (
    AssumptionError,
    AveragePool,
    Conv,
    Dense,
    Groups,
    Identity,
    Network,
    ReLU,
    SquaredLoss,
    TrainingSet,
    equal_risk_point,
    exact,
    find_spurious_minimum,
    gated_minimum,
    interop,
    linear_minimum,
    lower_point,
    nontrivial_minimum,
    split_data,
)
from tinyspur.certificates import certify_cell
from tinyspur.constructions.embedding import embed, subnetwork
from tinyspur.constructions.paths import Path
from tinyspur.constructions.taps import taps_of
from tinyspur.constructions.towers import Tower
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import MaxPool, Residual, Scale

SQUARED = SquaredLoss()
P, R = AveragePool, Residual
LINE, IMAGE = (1, 6), (1, 4, 4)

# name: input shape, layers, the lower layer of the pair
KINDS = {
    "no padding": ((1, 8), [Conv(6, padding="valid"), Conv(9, padding="valid"), Dense(2)], 1),
    "padding by numbers": (
        IMAGE,
        [Conv(1, padding=2), Conv(12, 5, padding=1), Conv(27, padding=0), Dense(2)],
        2,
    ),
    "padding on one side": (
        LINE,
        [Conv(2, padding=((0, 2),)), Conv(4, padding=((3, 0),)), Conv(4), Dense(2)],
        2,
    ),
    "filters of one tap": ((2, 3, 3), [Conv(4, 1), Conv(4, 1), Conv(5, 1), Dense(2)], 1),
    "filters of two sizes": (
        IMAGE,
        [Conv(1, (3, 1)), Conv(3, (1, 5)), Conv(3, (5, 3)), Dense(2)],
        2,
    ),
    "even filters": (IMAGE, [Conv(1, 2), Conv(3, 4), Conv(3, 2), Dense(2)], 2),
    "dilation": ((1, 7), [Conv(1, dilation=2), Conv(3, dilation=3), Conv(3, 5), Dense(2)], 2),
    "strides below": ((1, 7), [Conv(2, 3, 2), Conv(4), Conv(4), Dense(2)], 2),
    "a stride that leaves an entry out": (
        (1, 8),
        [Conv(3, 3, 2, padding="valid"), Conv(5), Conv(5), Dense(2)],
        2,
    ),
    "a stride in the lower layer": ((1, 7), [Conv(1), Conv(6, 3, 2), Conv(6), Dense(2)], 2),
    "a stride in the upper layer": (IMAGE, [Conv(1), Conv(3), Conv(12, 3, 2), Dense(2)], 2),
    "a stride above": (LINE, [Conv(1), Conv(3), Conv(3), Conv(6, 4, 2), Dense(2)], 2),
    "groups": ((2, 6), [Conv(4, groups=2), Conv(8, groups=2), Conv(8, groups=2), Dense(2)], 2),
    "a filter for each map": (LINE, [Conv(2), Conv(6, groups=2), Conv(6, groups=6), Dense(2)], 2),
    "scales": (LINE, [Conv(1), Scale(), Conv(3), Scale(), Conv(3), Scale(), Dense(2)], 3),
    "scales in place of biases": (
        LINE,
        [
            Conv(1, bias=False),
            Scale(),
            Conv(3, bias=False),
            Scale(),
            Conv(3, bias=False),
            Scale(),
            Dense(3),
            Scale(),
            Dense(2),
        ],
        3,
    ),
    "a scale above a pooling": (LINE, [Conv(1), Conv(3), Conv(6), P(2), Scale(), Dense(2)], 2),
    "a scale above leaky groups": (
        LINE,
        [Conv(2), Conv(6, groups=2), Conv(8, 1, groups=2, activation=ReLU(0.2)), Scale(), Dense(2)],
        2,
    ),
    "a block above a layer without biases": (
        LINE,
        [
            Conv(1),
            Conv(3),
            Conv(3),
            Conv(4, 1, bias=False),
            R([Conv(4)], activation=ReLU()),
            Dense(2),
        ],
        2,
    ),
    "no biases under an activation": (
        LINE,
        [Conv(1), Conv(3), Conv(3, activation=Identity()), Conv(4, 1, bias=False), Dense(2)],
        2,
    ),
    "no biases above": (LINE, [Conv(1), Conv(3), Conv(3), Conv(4, bias=False), Dense(2)], 2),
    "overlapping windows": ((1, 7), [Conv(1), Conv(3), Conv(9), P(3, 2), Dense(2)], 2),
    "padded windows": (LINE, [Conv(1), Conv(3), Conv(9), P(3, 2, padding=1), Dense(2)], 2),
    "windows that count their own entries": (
        LINE,
        [Conv(1), Conv(3), Conv(9), P(3, 2, padding=1, count_include_pad=False), Dense(2)],
        2,
    ),
    "windows beyond the border": (
        (1, 5),
        [Conv(1), Conv(3), Conv(9), P(2, ceil_mode=True), Dense(2)],
        2,
    ),
    "windows of two sizes": (IMAGE, [Conv(1), Conv(3), Conv(6), P((2, 1)), Dense(2)], 2),
    "leaky layers": (
        LINE,
        [Conv(1, activation=ReLU(0.1)), Conv(4), Conv(4, activation=ReLU(0.2)), Dense(2)],
        2,
    ),
    "linear layers": (
        LINE,
        [Conv(1, activation=Identity()), Conv(3), Conv(3, activation=Identity()), Dense(2)],
        2,
    ),
    "a pooling with an activation": (
        LINE,
        [Conv(1), Conv(3), Conv(6), P(2, activation=ReLU()), Dense(2)],
        2,
    ),
    "a block": (LINE, [Conv(1), Conv(3), Conv(3), R([Conv(4), Conv(3)]), Dense(2)], 2),
    "a block of scales": (
        LINE,
        [
            Conv(1),
            Conv(3),
            Conv(3),
            R([Conv(4, bias=False), Scale(), Conv(3, bias=False), Scale()], activation=ReLU()),
            Dense(2),
        ],
        2,
    ),
    "a block with a stride": (
        LINE,
        [
            Conv(1),
            Conv(3),
            Conv(3),
            R([Conv(6, 3, 2), Conv(6)], [Conv(6, 1, 2)], activation=ReLU()),
            Dense(2),
        ],
        2,
    ),
    "a block below": (
        LINE,
        [Conv(1), R([Conv(2), Conv(1)], activation=ReLU()), Conv(3), Conv(3), Dense(2)],
        5,
    ),
}
HIDDEN = ["no padding", "a stride above", "groups", "scales in place of biases", "a block"]


def problem(name, samples=40):
    shape, layers, lower = KINDS[name]
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-1, 1, (samples, *shape)), rng.normal(size=(samples, 2))
    return Network(shape, layers), TrainingSet(x, y), lower


def outputs(theta, x):
    """Return what PyTorch makes of the inputs."""
    return interop.to_torch(theta)(torch.as_tensor(x)).detach().numpy()


def attacked(theta, data, radius):
    """Return by how much the risk is lower at most, at random corners of the ball of the radius."""
    rng, risk, worst = np.random.default_rng(0), theta.net.risk(theta, data, SQUARED), 0.0
    for n in range(6):
        move = rng.choice([-1, 1], theta.vector.size) * (
            rng.random(theta.vector.size) < 0.5 ** (n % 3)
        )
        near = Parameters(theta.net, theta.vector + 0.999 * radius * move)
        worst = max(worst, risk - theta.net.risk(near, data, SQUARED))
    return worst


@pytest.mark.parametrize("name", KINDS)
def test_the_spurious_minimum_goes_through(name):
    net, data, lower = problem(name)
    theta, pair = linear_minimum(net, data, SQUARED, lower=lower)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    assert found.certificate.kind == "cell" and found.certificate.holds
    assert found.verdict == "spurious local minimum"
    hats = np.hstack([data.x.reshape(len(data.x), -1), np.ones((len(data.x), 1))])
    if name == "a stride that leaves an entry out":
        hats[:, 7] = 0
    fit = hats @ np.linalg.lstsq(hats, data.y, rcond=None)[0]
    for point in (theta, found.theta_prime):
        close(outputs(point, data.x), fit, 1e-10)
        close(net.forward(point, data.x), fit, 1e-10)
    lowest = ((outputs(found.lower.theta, data.x) - data.y) ** 2).sum() / 2 / len(data.x)
    assert lowest < found.risk - found.lower.rounding
    assert attacked(theta, data, found.certificate.radius) <= found.certificate.delta
    assert found.certificate.margin == pytest.approx(1)


@pytest.mark.parametrize("name", KINDS)
def test_a_trained_subnetwork_is_carried(name):
    """Whatever the layers below the pair are: outputs are kept, and at theta' too."""
    net, data, lower = problem(name, 12)
    phi = subnetwork(net, lower, all_relayed=True).zeros()
    phi.vector[:] = np.random.default_rng(0).normal(size=phi.vector.size) * 0.5
    for layer in phi.b:
        phi.b[layer][:] = 0.3
    theta, pair = embed(net, phi, data.x, lower=lower)
    close(outputs(theta, data.x), phi.net.forward(phi, data.x), 1e-11)
    for layer, pattern in net.patterns(theta, data.x).items():  # what relays does so everywhere
        assert layer < pair.lower or (pattern == pattern[0]).all()
    split = split_data(theta, pair, data, SQUARED)
    prime = equal_risk_point(theta, pair, split)
    close(outputs(prime, data.x), phi.net.forward(phi, data.x), 1e-10)
    found = lower_point(theta, prime, pair, split, data, SQUARED)
    assert found.decrease > found.rounding


@pytest.mark.parametrize("name", HIDDEN)
def test_gates_and_isolated_samples_go_through(name):
    net, data, _ = problem(name)
    below = [layer for layer in net.layers if not isinstance(layer, Dense)]
    scaled = [Scale()] * (name == "scales in place of biases")
    below = below[:-1] if scaled else below
    wide = Network(net.input_shape, [*below, Dense(5), *scaled, Dense(2)])
    groups = Groups.gaps(data.x, np.arange(1.0, data.x[0].size + 1), 2)
    theta = gated_minimum(wide, data, SQUARED, groups)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds and certificate.classes == 2
    assert attacked(theta, data, certificate.radius) <= certificate.delta


def test_taps_are_the_fewest_that_determine_the_map():
    for kind, shape, expected in (
        (Conv(1), (1, 6), [[1]]),
        (Conv(1, 4), (1, 6), [[1]]),
        (Conv(1, 3, padding=((0, 2),)), (1, 6), [[0]]),
        (Conv(1, 3, padding="valid"), (1, 6), [[0], [2]]),
        (Conv(1, 3, 2), (1, 6), [[1], [2]]),
        (Conv(1, 3, 2, padding="valid"), (1, 9), [[0], [1], [2]]),
        (Conv(1, 3, dilation=2), (1, 6), [[1]]),
        (Conv(1, (1, 3), padding=0), (1, 2, 4), [[0, 0], [0, 2]]),
    ):
        net = Network(shape, [kind, Dense(1)])
        found = taps_of(net, Path.of(net, 1, 1), True)
        assert sorted(list(tap) for _, tap in found[1]) == expected, kind
        read = len(np.unique(kind.grid(shape).neighbours().clip(0)))
        wide = Network(shape, [Conv(len(expected), *list(vars(kind).values())[2:]), Dense(1)])
        assert np.linalg.matrix_rank(Tower(wide, 1, 1).matrix) == read


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([Conv(3), Conv(3), Conv(3, 1, 2), Dense(2)], "layer 3, Conv(maps=3, kernel=1, stride=2)"),
        ([Conv(3), Conv(3, 1), P(2, 3), Dense(2)], "layer 2, Conv(maps=3, kernel=1), below the l"),
        ([Conv(3), Conv(3, bias=False), Dense(2)], "layer 2, Conv(maps=3, kernel=3, bias=False)"),
        ([Conv(3), Conv(3), MaxPool(2), Dense(2)], "MaxPool(size=2) as layer 3; spurious_pair("),
        (
            [Conv(3), Conv(3), R([Conv(3)], [P(1)]), Dense(2)],
            "the identity or have weights, got",
        ),
        ([Conv(3), Conv(3), R([R([Conv(3)])]), Dense(2)], "none inside of another, got layer 3"),
        ([Conv(3), Conv(3), Dense(2, bias=False)], "got Dense(width=2, bias=False) as layer 3"),
        ([Conv(3), Conv(3), Dense(4), R([Dense(4)]), Dense(2)], "above the first dense layer, got"),
        ([Conv(3), Dense(2)], "two consecutive convolutions, got Network("),
        ([Conv(3), Conv(3, groups=3), Conv(3), Dense(2)], "too few maps: layer 2, Conv(maps=3, "),
    ],
)
def test_what_cant_be_relayed_is_refused_by_the_layer(layers, words):
    net = Network((1, 6, 6), layers)
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(50, 1, 6, 6)), rng.normal(size=(50, 2)))
    with refuses((ValueError, AssumptionError), words):
        linear_minimum(net, data, SQUARED)


def test_isolated_samples_go_through_groups_strides_and_padding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2, 6)), rng.normal(size=(40, 2))
    for layers in (
        [Conv(5, 3, padding="valid"), Conv(24, 3, 2), Dense(2)],
        [Conv(6, groups=2), Scale(), Conv(8, groups=2, padding=2), P(2, 1), Dense(2)],
        [Conv(4), R([Conv(5), Conv(4)], activation=ReLU()), Dense(2)],
    ):
        net, data = Network((2, 6), layers), TrainingSet(x, y)
        theta = nontrivial_minimum(net, data, SQUARED, isolated=2)
        certificate = certify_cell(theta, data, SQUARED)
        assert certificate.holds and certificate.classes == 3
        assert attacked(theta, data, certificate.radius) <= certificate.delta


@pytest.mark.parametrize("name", ["no padding", "scales in place of biases", "a block"])
def test_all_three_points_are_fractions_too(name):
    net, data, lower = problem(name, 30)
    whole = TrainingSet(np.round(4 * data.x), np.round(2 * data.y))
    theta, pair = linear_minimum(net, whole, SQUARED, lower=lower)
    found = exact(find_spurious_minimum(theta, pair, whole, SQUARED), whole, SQUARED)
    assert found.verdict == "spurious local minimum"
    assert found.risks["theta_prime"] == found.risk > found.risks["lower"]
