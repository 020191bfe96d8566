"""Two minima without relays: of LeNet-5, of perceptrons, of whatever layers there are."""

import numpy as np
import pytest
import torch
from shared import close, in_turn, refuses

from tinyspur import (
    AbsoluteLoss,
    AssumptionError,
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Identity,
    Network,
    ReLU,
    SquaredLoss,
    Tanh,
    TrainingSet,
    interop,
    linear_minimum,
    one_hot,
    spurious_pair,
)
from tinyspur.constructions.isolated import constant_minimum, isolating_point
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import MaxPool, Residual, Scale

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()


def lenet(pool, **options):
    layers = [Conv(6, 5, padding="valid"), pool(2), Conv(16, 5, padding="valid"), pool(2)]
    return Network((1, 32, 32), [*layers, Dense(120), Dense(84), Dense(10)], **options)


NETWORKS = {
    "perceptron": Network((1, 4), [Dense(5), Dense(3), Dense(2)]),
    "one hidden layer": Network((1, 4), [Dense(2), Dense(2)]),
    "strides": Network((2, 7, 6), [Conv(3, 3, 3), Conv(2, 2, 2, padding="valid"), Dense(2)]),
    "groups": Network((2, 6), [Conv(4, groups=2), MaxPool(3, 2), Conv(4, 2, groups=4), Dense(2)]),
    "scales": Network(
        (1, 6),
        [
            Conv(2, bias=False),
            Scale(),
            AveragePool(2),
            Scale(),
            Dense(3, bias=False),
            Scale(),
            Dense(2),
        ],
    ),
    "a linear layer": Network(
        (1, 6), [Conv(2), Conv(3, activation=Identity()), Dense(4), Dense(2)]
    ),
    "poolings first": Network((1, 8), [MaxPool(2), Conv(2), MaxPool(2), Dense(2)]),
}


def outputs(theta, x):
    return interop.to_torch(theta)(torch.as_tensor(x)).detach().numpy()


def check(net, data, loss):
    pair = spurious_pair(net, data, loss)
    assert pair.verdict == "spurious local minimum"
    assert pair.risks[1] < pair.risks[0] - pair.rounding
    for point, groups, certificate in zip(
        (pair.coarse, pair.fine), pair.groups, pair.certificates, strict=True
    ):
        o = outputs(point, data.x)
        close(net.forward(point, data.x), o, 1e-10)
        for k in range(len(groups)):  # the best constant of each group
            inside = groups.labels == k
            if loss is SQUARED:
                assert certificate.holds and certificate.classes == len(groups)
                close(o[inside], np.tile(data.y[inside].mean(axis=0), (inside.sum(), 1)), 1e-10)
            else:
                assert np.ptp(o[inside], axis=0).max() < 1e-10
        rng, risk = np.random.default_rng(0), net.risk(point, data, loss)
        for _ in range(6 * certificate.holds):
            move = rng.choice([-1, 1], point.vector.size) * 0.999 * certificate.radius
            near = net.risk(Parameters(net, point.vector + move), data, loss)
            assert near >= risk - certificate.delta
    assert pair.groups[1].labels.sum() == 1
    return pair


@in_turn(
    pytest.mark.parametrize("name", NETWORKS),
    pytest.mark.parametrize("loss", [SQUARED, ENTROPY, AbsoluteLoss()], ids=lambda loss: loss.name),
)
def test_all_units_dead_and_one_sample_apart_are_two_minima(name, loss):
    net, rng = NETWORKS[name], np.random.default_rng(1)
    x, y = rng.normal(size=(15, *net.input_shape)), rng.normal(size=(15, 2))
    labels = one_hot(rng.integers(0, 2, 15), 2)
    pair = check(net, TrainingSet(x, labels if loss is ENTROPY else y), loss)
    if loss is ENTROPY:
        assert pair.certificates[0].holds and not pair.certificates[1].holds


@pytest.mark.parametrize("pool", [MaxPool, AveragePool])
def test_lenet_has_a_spurious_minimum(pool):
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.random((6, 1, 32, 32)), one_hot(rng.integers(0, 10, 6), 10))
    check(lenet(pool), data, SQUARED)


@pytest.mark.parametrize("net", [lenet(MaxPool), NETWORKS["perceptron"]])
def test_where_relays_cant_lead_the_words_point_to_it(net):
    rng = np.random.default_rng(0)
    data = TrainingSet(
        rng.normal(size=(9, *net.input_shape)), rng.normal(size=(9, *net.shapes[-1]))
    )
    with refuses(ValueError, "spurious_pair(net, data, loss) needs no relays"):
        linear_minimum(net, data, SQUARED)


def test_the_sample_apart_is_fitted_worst_of_those_that_a_filter_finds():
    net, x = NETWORKS["perceptron"], np.random.default_rng(0).normal(size=(30, 1, 4))
    y = np.zeros((30, 2))
    y[11] = 100.0  # inside of the others it could not be apart
    x[11] *= 3
    _, direction, threshold = isolating_point(net, TrainingSet(x, y), SQUARED)
    assert np.flatnonzero(x.reshape(30, 4) @ direction > threshold).tolist() == [11]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lenet(AveragePool, activation=Tanh()), "smooth_minimum has those of smooth activations"),
        (Network((1, 4), [Dense(3), Dense(2)], ReLU(0.1)), "expected ReLU alone"),
        (Network((1, 4), [Dense(3, bias=False), Dense(2)]), "biases in every layer"),
        (Network((1, 4), [Dense(3), Residual([Dense(3)]), Dense(2)]), "no residual blocks"),
        (Network((1, 4), [Dense(3), Residual([Dense(3)]), Dense(2)]), "takes residual blocks"),
        (Network((1, 4), [Dense(2)]), "spurious pair: expected ReLU alone"),
    ],
)
def test_networks_that_cant_be_dead_are_refused(net, words):
    rng = np.random.default_rng(0)
    data = TrainingSet(
        rng.normal(size=(9, *net.input_shape)), rng.normal(size=(9, *net.shapes[-1]))
    )
    with refuses(ValueError, words):
        constant_minimum(net, data, SQUARED)
    with refuses(ValueError, words):
        spurious_pair(net, data, SQUARED)


def test_one_sample_cant_be_told_apart():
    data = TrainingSet(np.ones((1, 1, 4)), np.ones((1, 2)))
    with refuses(AssumptionError, "spurious pair: expected two samples or more, got 1"):
        spurious_pair(NETWORKS["one hidden layer"], data, SQUARED)


def test_equal_samples_cant_be_told_apart():
    net = NETWORKS["one hidden layer"]
    data = TrainingSet(np.ones((4, 1, 4)), np.arange(8.0).reshape(4, 2))
    with refuses(AssumptionError, "of layer 1, Dense(width=2), has its largest response to one"):
        spurious_pair(net, data, SQUARED)
