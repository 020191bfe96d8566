"""The gradient of doubled precision is that of differences in 1,000 bits, but for one rounding."""

import flint
import numpy as np
import pytest
from exact_algebra import fractions
from exact_attacks import ExactRisk, arb
from shared import in_turn

from tinyspur.certificates.boxes import Box, first_order
from tinyspur.certificates.doubled_gradient import (
    Doubled,
    by_numbers,
    divided,
    doubled_gradient,
    exponential,
    multiplied,
    plus,
    product,
    quotient,
)
from tinyspur.certificates.enclosures import exact
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU, Tanh
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Scale

STEP = 2.0**-30
NETS = {
    "dense": ((1, 3), [Dense(3), Dense(2), Dense(2)]),
    "average pooling": ((1, 4, 4), [Conv(2, 2), AveragePool(3), Dense(1)]),
    "scale": ((1, 2, 3), [Conv(2, (1, 2)), Scale(), Dense(1)]),
    "activation last": ((1, 3), [Dense(3), Dense(2, activation=ReLU(0.3))]),
    "activation after a pooling, no bias": (
        (1, 6),
        [
            Conv(2, 2, activation=Identity()),
            AveragePool(2, activation=ReLU()),
            Dense(2, bias=False),
        ],
    ),
}


def problem(case, slope=0.0):
    """Return a point on a grid, samples, two held units and multipliers."""
    shape, layers = NETS[case]
    rng, net = np.random.default_rng(1), Network(shape, layers, ReLU(slope))
    x = rng.normal(size=(5, *shape))
    data = TrainingSet(x, rng.normal(size=(5, net.shapes[-1][0])))
    theta = Parameters(net, np.round(rng.normal(size=net.size) * 2**20) / 2**20)
    layer = net.active_layers[0]
    kinks = [HeldKink(layer, 0, np.array([0]), np.array([n])) for n in (1, 3)]
    return Held(net, data, SquaredLoss(), kinks), theta, np.array([0.3, -0.1])


@in_turn(pytest.mark.parametrize("case", NETS), pytest.mark.parametrize("slope", [0.0, 0.1]))
def test_it_is_that_of_differences_in_a_thousand_bits(case, slope):
    held, theta, multipliers = problem(case, slope)
    risk = ExactRisk(held.net, held.data, held.loss)
    found, values = doubled_gradient(held, theta, multipliers)
    plain = first_order(held, Box(theta, held.net.zeros(), exact(multipliers)))
    for n, e in enumerate(STEP * np.eye(held.net.size)):  # L is quadratic in each parameter
        above, below = (
            risk.held(Parameters(held.net, theta.vector + d), held.kinks, multipliers)
            for d in (e, -e)
        )
        off = abs((above - below) / arb(2 * STEP) - arb(found.middle[n]))
        assert off < arb(found.radius[n]) + arb(2) ** -900
        assert found.radius[n] <= 1.2e-16 * abs(found.middle[n]) + 1e-26
    assert (abs(values.middle - plain.values.middle) <= plain.values.radius).all()
    assert found.radius.max() < 0.1 * plain.gradient.radius.max()


def far_off(rng, shape):
    """Return numbers in (1/2, 2) that are off by up to 1/8, and the largest and least ones."""
    found = Doubled(
        rng.uniform(0.7, 1.7, shape), rng.uniform(0, 2**-20, shape), np.full(shape, 0.1)
    )
    high, low, radius = (fractions(part) for part in found)
    return found, [high + low + radius, high + low - radius]


@pytest.mark.parametrize("slices", [False, True])
def test_results_hold_what_comes_of_the_largest_and_the_least_numbers(slices):
    rng = np.random.default_rng(0)
    (a, ends_of_a), (b, ends_of_b) = (far_off(rng, (4, 4)) for _ in range(2))
    factors, matmul = rng.uniform(1, 2, (4, 4)), (lambda a, b: a @ b) if slices else np.matmul
    cases = [
        (plus(a, b), lambda a, b: a + b),
        (product(a, b), lambda a, b: a * b),
        (multiplied(matmul, a, b, 4), lambda a, b: a @ b),
        (quotient(a, b), lambda a, b: a / b),
        (by_numbers(a, factors), lambda a, _: a * fractions(factors)),
        (divided(a, 3.0), lambda a, _: a / 3),
    ]
    for found, f in cases:
        middle, radius = fractions(found.high) + fractions(found.low), fractions(found.radius)
        for some in ends_of_a:
            for other in ends_of_b:
                assert (abs(f(some, other) - middle) <= radius).all()
        enclosed = found.enclosure()
        assert (abs(fractions(enclosed.middle) - middle) + radius <= enclosed.radius).all()


SIZES = [0.0, 5e-324, 1e-300, 1e-16, 0.34657359, np.log(2), 1.0, 36.7, 708.4, 744.5, 745.2, 1e300]


def test_exponentials_and_quotients_hold_thirty_digits():
    rng = np.random.default_rng(0)
    x = -np.concatenate([SIZES, 10 ** rng.uniform(-9, 3, 80)])
    low = x * rng.uniform(-(2.0**-54), 2.0**-54, len(x))
    flint.ctx.prec = 6000
    found = exponential(Doubled(x, low, 0 * x))
    b = Doubled(0.5 + abs(rng.normal(size=len(x))), 1e-17 * rng.normal(size=len(x)), 0 * x)
    ratios = quotient(found, b)
    for n in range(len(x)):
        power = (arb(x[n]) + arb(low[n])).exp()
        ratio = (arb(found.high[n]) + arb(found.low[n])) / (arb(b.high[n]) + arb(b.low[n]))
        for exactly, part in ((power, found), (ratio, ratios)):
            off = exactly - arb(part.high[n]) - arb(part.low[n])
            assert abs(off) <= arb(part.radius[n])
        assert found.radius[n] < 1e-26 * found.high[n] + 1e-300


def test_the_gradient_of_the_cross_entropy_is_that_of_a_thousand_bits():
    rng, net = np.random.default_rng(0), Network((1, 2), [Dense(4)])
    y = np.concatenate([one_hot([0, 1, 2, 3, 0], 4), one_hot([1, 2], 4, smoothing=0.1)])
    data = TrainingSet(rng.normal(size=(7, 1, 2)), y)
    theta = Parameters(net, 10 * rng.normal(size=net.size))
    theta.b[1][3] = -2000  # its share is 0 up to far below the smallest number
    found, _ = doubled_gradient(Held(net, data, CrossEntropy()), theta, np.zeros(0))
    flint.ctx.prec = 6000
    x = [[arb(v) for v in row] + [arb(1)] for row in data.x[:, 0]]
    rows = [[arb(v) for v in [*w, b]] for w, b in zip(theta.W[1].weights, theta.b[1], strict=True)]
    total = [[arb(0)] * 3 for _ in range(4)]
    for sample, targets in zip(x, data.y, strict=True):
        powers = [
            sum((a * b for a, b in zip(row, sample, strict=True)), arb(0)).exp() for row in rows
        ]
        whole = sum(powers, arb(0)) / sum((arb(t) for t in targets), arb(0))
        for k, power in enumerate(powers):
            delta = (power / whole - arb(targets[k])) / 7
            total[k] = [a + delta * b for a, b in zip(total[k], sample, strict=True)]
    expected = [v for row in total for v in row[:2]] + [row[2] for row in total]
    for n, value in enumerate(expected):
        assert abs(value - arb(found.middle[n])) <= arb(found.radius[n])
    assert (found.radius <= 1.2e-16 * abs(found.middle) + 1e-26).all()


def test_other_networks_have_none():
    shape = (1, 4)
    for layers, sigma, loss in [
        ([Dense(2), Dense(1)], Tanh(), SquaredLoss()),
        ([Dense(2), Dense(1)], ReLU(), AbsoluteLoss()),
        ([Conv(2), MaxPool(2), Dense(1)], ReLU(), SquaredLoss()),
    ]:
        net = Network(shape, layers, sigma)
        data = TrainingSet(np.ones((2, *shape)), np.zeros((2, 1)))
        assert doubled_gradient(Held(net, data, loss), net.zeros(), np.zeros(0)) is None
