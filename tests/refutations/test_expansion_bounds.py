"""The exact terms of the risk along a line are within their bounds, and these are not wide.

Exact are power series of every neuron, in fractions or in many digits.
"""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from shared import in_turn

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ELU, GELU, ReLU, Sigmoid, SiLU, Sine, Softplus, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.descent import find_descent_direction
from tinyspur.refutations.escapes import measure_escape
from tinyspur.refutations.expansion import expand_risk

NETS = {
    "dense": ((1, 1, 3), (Dense(3), Dense(2), Dense(2))),
    "max pooling": ((1, 4), (Conv(2), MaxPool(2), Dense(2))),
    "averages": ((1, 6), (MaxPool(1), Conv(2), AveragePool(3), Dense(2))),
}
LOSSES = [SquaredLoss(), AbsoluteLoss(), HuberLoss(0.5)]
SIGMAS = {
    Tanh(): mpmath.tanh,
    Sigmoid(): lambda z: 1 / (1 + mpmath.exp(-z)),
    Softplus(): lambda z: mpmath.log(1 + mpmath.exp(z)),
    SiLU(): lambda z: z / (1 + mpmath.exp(-z)),
    GELU(): lambda z: z * mpmath.ncdf(z),
    Sine(): mpmath.sin,
}


class Own(SquaredLoss):
    """A loss of a user's."""

    def __repr__(self):
        return "Own()"


def sign(values):
    """Return the sign of the first value that is not 0, or 0."""
    return next((1 if value > 0 else -1 for value in values if value), 0)


def series(theta, d, x, number, activate):
    """Return the outputs of one sample as terms of t: (3, d_y) of `number`."""
    exact = np.vectorize(lambda value: number(float(value)), otypes=[object])
    o = np.array([exact(x.ravel()), *np.full((2, x.size), number(0.0))])
    for step, W in theta.W.items():
        if W.selects:
            windows = W.windows(np.arange(W.shape[1])[:, None])[..., 0].T
            o = np.array([max([*o[:, i]] for i in window) for window in windows]).T
            continue
        if W.weights is None:  # averages
            size = round(1 / W.toarray()[W.toarray() > 0].max())
            o = (o @ exact((W.toarray().T > 0).astype(float))) / size
            continue
        A = exact(W.toarray())
        z = o @ A.T
        D, places = exact(d.W[step].toarray()), W.positions_out
        z[1:] += o[:2] @ D.T
        z[0] += exact(theta.b[step].repeat(places))
        z[1] += exact(d.b[step].repeat(places))
        o = z
        if theta.net.activation_of(step) is not None:
            o = np.array([activate(*z_k) for z_k in z.T], dtype=object).T
    return o


def relu(slope):
    def activate(*z):
        return [value * (1 if sign(z) > 0 else Fraction(slope)) for value in z]

    return activate


def smooth(f):
    def activate(z0, z1, z2):
        s, slope, half = mpmath.taylor(f, z0, 2)
        return [s, slope * z1, slope * z2 + half * z1**2]

    return activate


def elu(alpha):
    def activate(*z):
        if sign(z) > 0 and z[0] >= 0:
            return [*z]
        return [alpha * value for value in smooth(mpmath.expm1)(*z)]

    return activate


def loss_terms(loss, o, y):
    """Return the terms of order 1 and 2 of the loss of one sample."""
    if isinstance(loss, CrossEntropy):
        powers = [mpmath.exp(value) for value in o[0]]
        p = np.array([power / sum(powers) for power in powers])
        first = (p * sum(y) - y) @ o[1]
        return first, (p * sum(y) - y) @ o[2] + sum(y) * (p @ o[1] ** 2 - (p @ o[1]) ** 2) / 2
    r = np.array([o[0] - y, o[1], o[2]])
    squares = [(r0 * r1, r0 * r2 + r1**2 / 2) for r0, r1, r2 in r.T]
    linear = [(sign(terms) * terms[1], sign(terms) * terms[2]) for terms in r.T]
    if isinstance(loss, SquaredLoss):
        found = squares
    elif isinstance(loss, AbsoluteLoss):
        found = linear
    else:
        bend = Fraction(loss.delta)
        found = [
            a if abs(r0) < bend else (bend * b[0], bend * b[1])
            for r0, a, b in zip(r[0], squares, linear, strict=True)
        ]
    return sum(a for a, _ in found), sum(b for _, b in found)


def exact_terms(theta, d, data, loss, number, activate):
    found = [
        loss_terms(
            loss,
            series(theta, d, x, number, activate),
            np.array([number(float(value)) for value in y], dtype=object),
        )
        for x, y in zip(data.x, data.y, strict=True)
    ]
    return [sum(terms) / len(data) for terms in zip(*found, strict=True)]


def drawn(name, sigma, seed, kind):
    """Return a point, a direction and data: of whole numbers, of very different sizes, or tiny."""
    rng, (shape, layers) = np.random.default_rng(seed), NETS[name]
    net = Network(shape, layers, sigma)
    if kind == "whole":
        theta, d = (Parameters(net, rng.integers(-1, 2, net.size).astype(float)) for _ in "01")
        x = rng.integers(-1, 2, (3, *shape)).astype(float)
        return theta, d, TrainingSet(x, rng.integers(-1, 2, (3, 2)).astype(float))
    low, high = {"mixed": (-6, 6), "tiny": (-160, -140), "huge": (0, 60)}[kind]
    theta, d = (
        Parameters(net, rng.normal(size=net.size) * 10.0 ** rng.uniform(low, high, net.size))
        for _ in "01"
    )
    x = rng.normal(size=(3, *shape)) * (1e-160 if kind == "tiny" else 1)
    y = rng.normal(size=(3, 2))
    if seed % 2:  # outputs cancel, or nearly meet their targets
        theta.b[net.depth][...] -= net.forward(theta, x)[0]
        y = net.forward(theta, x)
    if seed % 3 == 1:  # a unit next to the kink
        z = theta.W[2 if name == "averages" else 1] @ (x[0].ravel())
        theta.b[2 if name == "averages" else 1][0] = -z[0]
    return theta, d, TrainingSet(x, y)


def within(exact, value, bound):
    return bound == np.inf or (value < np.inf and abs(exact - Fraction(value)) <= Fraction(bound))


@in_turn(
    pytest.mark.parametrize("kind", ["whole", "mixed", "tiny", "huge"]),
    pytest.mark.parametrize("loss", LOSSES, ids=repr),
    pytest.mark.parametrize("name", NETS),
    draws=3,
)
def test_exact_terms_are_within_the_bounds(name, loss, kind):
    known = 0
    for seed in range(8):
        slope = [0.0, 0.3][seed % 2]
        theta, d, data = drawn(name, ReLU(slope), seed, kind)
        found = expand_risk(theta, d, data, loss)
        first, second = exact_terms(theta, d, data, loss, Fraction, relu(slope))
        assert within(first, found.first, found.first_unsure)
        assert within(second, found.second, found.second_unsure)
        assert found.first_unsure >= found.first_rounding
        assert found.second_unsure >= found.second_rounding
        known += within(0, found.first_unsure, abs(first) / 10**6)
        if found.order and not found.beyond:
            falls = first if found.order == 1 or first else second
            assert falls < 0 or not found.kinked
    assert known >= 2 or kind in ("whole", "tiny")


@pytest.mark.parametrize("name", NETS)
def test_terms_of_whole_numbers_are_those_at_the_kinks(name):
    """All that rounding can't tell from a kink is at one."""
    for loss in LOSSES[:2]:
        for seed in range(8):
            theta, d, data = drawn(name, ReLU(), seed, "whole")
            found = expand_risk(theta, d, data, loss)
            first, second = exact_terms(theta, d, data, loss, Fraction, relu(0.0))
            assert within(first, found.first, found.first_rounding)
            assert within(second, found.second, found.second_rounding)
            assert max(found.first_rounding, found.second_rounding) < 1e-12


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr)
@pytest.mark.parametrize("sigma", SIGMAS, ids=repr)
def test_exact_terms_with_smooth_activations_are_within_the_bounds(sigma, loss):
    rng, shares, net = np.random.default_rng(0), [], Network(*NETS["dense"], sigma)
    with mpmath.workdps(60):
        for size in (1.0, 1.0, 30.0, 1e3, 1e-170, 1e-310):
            theta = Parameters(net, rng.normal(size=net.size))
            theta.W[1].weights[...] *= size
            theta.b[1][...] -= theta.W[1].weights.sum(axis=1) * (1 - 1e-9)
            d = Parameters(net, rng.normal(size=net.size) * min(size, 1.0))
            data = TrainingSet(
                1 + 1e-3 * rng.normal(size=(2, 1, 1, 3)), np.array([[0.25, 0.75], [0, 1]])
            )
            found = expand_risk(theta, d, data, loss)
            terms = exact_terms(theta, d, data, loss, mpmath.mpf, smooth(SIGMAS[sigma]))
            bounds = found.first_rounding, found.second_rounding
            for value, exact, bound in zip(found[:2], terms, bounds, strict=True):
                assert bound < np.inf
                assert abs(exact - mpmath.mpf(value)) <= mpmath.mpf(bound)
                shares.append(bound / float(abs(exact)) if abs(exact) > 1e-290 else 0)
    assert np.median(shares) < 1e-11


@pytest.mark.parametrize("off", [0.0, 2.0**-1070, -(2.0**-60)])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
def test_exact_terms_at_and_next_to_the_kink_of_elu_are_within_the_bounds(alpha, off):
    """Both units are at the kink, one for x = 0 and one for x = 1, but for `off`."""
    net = Network((1, 1, 1), [Dense(2), Dense(1)], ELU(alpha))
    theta = Parameters(net, np.array([1.0, 2, off, -2 + off, 1, -3, 0]))
    data = TrainingSet(np.array([0.0, 1]).reshape(2, 1, 1, 1), np.array([[-7.0], [5]]))
    rng = np.random.default_rng(0)
    with mpmath.workdps(60):
        for _ in range(8):
            d = Parameters(net, rng.integers(-1, 2, net.size).astype(float))
            found = expand_risk(theta, d, data, SquaredLoss())
            terms = exact_terms(theta, d, data, SquaredLoss(), mpmath.mpf, elu(alpha))
            bounds = found.first_unsure, found.second_unsure
            if off == 0:
                bounds = found.first_rounding, found.second_rounding
                assert max(bounds) < 1e-12
            for value, exact, bound in zip(found[:2], terms, bounds, strict=True):
                assert abs(exact - mpmath.mpf(value)) <= mpmath.mpf(bound)


def test_the_risk_does_not_fall_at_a_minimum_along_a_line_through_the_kink_of_elu():
    """Residuals 4 and -3, sigma' there 1/2 or 1, and 1: R' is (4 - 3) / 2 and -(4 / 2 - 3) / 2."""
    net = Network((1, 1, 1), [Dense(1), Dense(1)], ELU(0.5))
    theta = Parameters(net, np.array([1.0, 0, 1, 0]))
    data = TrainingSet(np.array([0.0, 1]).reshape(2, 1, 1, 1), np.array([[-4.0], [4]]))
    for side in (1, -1):
        d = Parameters(net, np.array([0.0, side, 0, 0]))
        found = expand_risk(theta, d, data, SquaredLoss())
        assert abs(found.first - 0.5) <= found.first_rounding < 1e-12
        assert found.kinked and found.order == 0


def test_at_a_unit_whose_first_term_is_rounding_the_side_is_not_known():
    """relu(z) with z = t (0.1 * 3 - 0.3) + t^2 * 0: the sign of what rounding leaves decides."""
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([0.0, 0.0, 1.0, 0.0]))
    d = Parameters(net, np.array([0.1, -0.3, 0.0, 0.0]))
    data = TrainingSet(np.full((1, 1, 1, 1), 3.0), np.array([[1.0]]))
    found = expand_risk(theta, d, data, SquaredLoss())
    first, second = exact_terms(theta, d, data, SquaredLoss(), Fraction, relu(0.0))
    assert -1e-16 < first < 0
    assert within(first, found.first, found.first_rounding)
    assert within(second, found.second, found.second_unsure)
    assert found.unsure and found.kinked


def test_of_a_direction_that_overflows_nothing_is_known():
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    theta = Parameters(net, np.array([1e200, 0.0, 1e200, 0.0]))
    d = Parameters(net, np.array([1.0, 0.0, 1.0, 0.0]))
    data = TrainingSet(np.full((1, 1, 1, 1), 3.0), np.array([[1.0]]))
    found = expand_risk(theta, d, data, SquaredLoss())
    assert np.isnan(found.first) and found.order == 0


def test_the_rate_of_a_fall_is_never_more_than_it_is_where_a_unit_is_next_to_the_kink():
    """3 x 0.1 - 0.30000000000000004 is -3e-17, and 0 in floats: the unit stays inactive."""
    net = Network((1, 1), [Dense(1), Dense(2), Dense(1)])
    theta = Parameters(net, np.array([0.1, 0, 3, 1, -0.30000000000000004, 1, 1, 1, 0]))
    assert 3 * Fraction(0.1) < Fraction(0.30000000000000004)
    data = TrainingSet([[1.0]], [5.0])
    downhill = find_descent_direction(theta, data, SquaredLoss())
    inactive = theta.copy()
    inactive.b[2][0] = -1
    known = expand_risk(inactive, downhill.direction, data, SquaredLoss())
    assert not known.unsure and not downhill.beyond
    assert 0 < downhill.rate <= -known.first * (1 + 1e-12)
    assert downhill.at_least and "by at least" in str(downhill)


@pytest.mark.parametrize("own", ["loss", "activation", "activation of a layer", ""])
def test_what_rests_on_a_users_object_says_so(own):
    sigma = Tanh()
    if own.startswith("activation"):
        sigma = SmoothActivation("own", np.tanh, Tanh().derivative, Tanh().second_derivative)
    loss = Own() if own == "loss" else SquaredLoss()
    net = Network((1, 1, 2), [Dense(2), Dense(1)], sigma)
    if own == "activation of a layer":
        net = Network((1, 1, 2), [Dense(2, activation=sigma), Dense(1)])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    data = TrainingSet(np.ones((2, 1, 1, 2)), np.zeros((2, 1)))
    downhill = find_descent_direction(theta, data, loss)
    near = Parameters(net, theta.vector + 1e-3 * downhill.direction.vector)
    escape = measure_escape(theta, near, "line", 1e-3, data, loss)
    right = "right within the rounding errors that are estimated"
    assumed = f"{Own() if own == 'loss' else sigma} are {right}"
    for found in (downhill, escape):
        assert (assumed in str(found)) == (own != "")
