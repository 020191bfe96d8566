"""Traps: points that look like minima in floating-point arithmetic and are none, drawn by seed.

A certificate that holds says that no point within its radius is lower by more than `delta`. Each
trap is attacked in exact arithmetic or with many digits, where a lower point is known.
"""

import os
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.special import expit

from tinyspur.certificates import certify_cell
from tinyspur.certificates.exact import exact_outputs
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import Dense

ATTEMPTS = 40
FIRST = int(os.environ.get("TRAP_SEED", "0"))  # other traps: TRAP_SEED=1000 pytest ...

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()


def exact_risk(theta, data):
    """Return the mean squared loss as a fraction."""
    outputs, total = exact_outputs(theta, data.x), Fraction(0)
    for o, y in zip(outputs.flat, data.y.flat, strict=True):
        total += (o - Fraction(float(y))) ** 2
    return total / (2 * len(data))


def entropy_risk(theta, data):
    """Return the mean cross-entropy with 50 digits."""
    outputs, total = exact_outputs(theta, data.x), mpmath.mpf(0)
    for o, y in zip(outputs, data.y, strict=True):
        o = [mpmath.mpf(v.numerator) / v.denominator for v in o]
        lse = max(o) + mpmath.log(sum(mpmath.exp(v - max(o)) for v in o))
        total += sum(mpmath.mpf(float(b)) * (lse - a) for a, b in zip(o, y, strict=True))
    return total / len(data)


def affine(weights, bias, x, y):
    """Return a network of one affine map, and data."""
    outputs, inputs = np.shape(weights)
    net = Network((1, 1, inputs), [Dense(outputs)])
    theta = Parameters(net, np.concatenate([np.ravel(weights), bias]))
    return theta, TrainingSet(np.reshape(x, (-1, 1, 1, inputs)), y)


def relayed(theta, data, rng):
    """Return the same map behind a layer of strictly active units, and the data."""
    n, bias = theta.net.input_shape[-1], 2.0 ** rng.integers(0, 5)
    W, b = np.asarray(theta.W[1].weights), theta.b[1]
    high = bias + float(abs(data.x).max())
    net = Network(theta.net.input_shape, [Dense(n), Dense(len(b))])
    point = net.zeros()
    point.W[1].weights[...], point.b[1][...] = np.eye(n), high
    point.W[2].weights[...], point.b[2][...] = W, b - high * W.sum(axis=1)
    return point, data


def saturated(rng):
    """Return separable data, all of them or some, and a map so far out that gradients underflow.

    In a mixed set the others have labels of their own that no map tells apart.
    """
    far = 10.0 ** rng.uniform(0, 3)
    x = far * np.array([[1.0, 0, 0], [0, 1.0, 0]])[rng.integers(2, size=6)] + 0.0
    x[0], x[1] = [far, 0, 0], [0, far, 0]
    labels = (x[:, 1] > 0).astype(int)
    if rng.random() < 0.5:  # as many again that stay undecided
        x = np.vstack([x, np.tile([0.0, 0, 1], (4, 1))])
        labels = np.append(labels, [0, 1, 0, 1])
    height = rng.uniform(40, 1000) / far
    weights = np.array([[1.0, -1, 0], [-1, 1, 0]]) * height
    turned = rng.random() < 0.5
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if turned else np.eye(3)
    theta, data = affine(weights @ turn.T, np.zeros(2), x @ turn.T, np.eye(2)[labels])
    direction = theta.net.zeros()
    direction.W[1].weights[...] = np.sign(weights)
    return theta, data, None if turned else direction


@pytest.mark.parametrize("first", range(FIRST, FIRST + ATTEMPTS, ATTEMPTS))
def test_a_gradient_that_underflows_is_not_0(first):
    for seed in range(first, first + ATTEMPTS):
        theta, data, direction = saturated(np.random.default_rng(seed))
        certificate = certify_cell(theta, data, ENTROPY)
        assert not certificate.holds, seed
        assert "not decided" in certificate.words or "G_s is not 0" in certificate.words
        if (
            direction is not None and seed % 10 == 0
        ):  # no minimum exists: the risk falls along the ray
            far = Parameters(theta.net, theta.vector + direction.vector)
            with mpmath.workdps(1200):
                assert entropy_risk(far, data) < entropy_risk(theta, data)


def lowest_along(theta, data, certificate, direction):
    """Return the exact risk where the parabola along a direction is lowest within the radius."""
    d = direction.vector / abs(direction.vector).max()
    reach = min(certificate.radius, 1e6) * (1 - 1e-9)
    risks = []
    for step in (-reach, reach, *np.geomspace(reach * 1e-12, reach, 5)):
        point = Parameters(theta.net, theta.vector + step * d)
        if abs(point.vector - theta.vector).max() <= certificate.radius:
            risks.append(exact_risk(point, data))
    return min(risks)


def check_decrease(theta, data, directions):
    """Return the certificate; if it proves something, no risk is lower by more than delta."""
    certificate = certify_cell(theta, data, SQUARED)
    if certificate.proves:
        before = exact_risk(theta, data)
        for direction in directions:
            found = lowest_along(theta, data, certificate, direction)
            assert before - found <= Fraction(certificate.delta)
        shares = certificate.delta / float(before)  # from 1 on it says that no risk is negative
        near = certificate.distance < np.inf  # of a minimum, and as much higher as it is
        assert shares <= 1e-6 or (near and not certificate.holds) or shares >= 1
    return certificate


def cancelling(rng):
    """Return a relay with a huge bias that cancels at the output, and a constant that is wrong."""
    power, off = int(rng.integers(20, 52)), 2.0 ** -int(rng.integers(4, 30))
    net = Network((1, 1, 1), [Dense(1), Dense(1)])
    x = np.array([-1.0, -1, 1, 1]) * 2.0 ** int(rng.integers(0, 4))
    shift = 2.0 ** int(rng.integers(0, 14))
    y = shift + x + np.array([0.5, -0.5, 0.5, -0.5])
    bias = 2.0**power
    theta = Parameters(net, np.array([1.0, bias, 1.0, -bias + shift + off]))
    move = net.zeros()
    move.b[2][0] = -1
    return theta, TrainingSet(x.reshape(4, 1, 1, 1), y[:, None]), [move], off


@pytest.mark.parametrize("first", range(FIRST, FIRST + ATTEMPTS, ATTEMPTS))
def test_huge_biases_that_cancel_hide_no_gradient(first):
    for seed in range(first, first + ATTEMPTS):
        theta, data, moves, off = cancelling(np.random.default_rng(seed))
        certificate = check_decrease(theta, data, moves)
        exactly = float(theta.b[2][0] + theta.b[1][0])  # what is left of shift + off
        wrong = abs(exactly - float(np.mean(data.y)))
        if certificate.holds:  # the minimum is as far as the constant has to move
            eps = certificate.distance
            assert wrong <= eps * (2 + eps + float(theta.b[1][0])), (seed, off)
            assert certificate.delta >= wrong**2 / 2


def nearly_dependent(rng):
    """Return features that are equal up to a few of their last places, and a fit to noise."""
    n = int(rng.integers(6, 20))
    x = rng.uniform(1, 2, n)
    nudge = 2.0 ** -int(rng.integers(20, 50)) * rng.choice([-1, 1], n)
    columns = np.column_stack([x, x * rng.uniform(0.5, 2) + rng.uniform(-1, 1) + nudge])
    y = rng.normal(size=(n, 1))
    fit = fit_affine(columns, y, SQUARED)
    scale = 2.0 ** int(rng.integers(0, 26))
    theta, data = affine(fit.weights / scale, fit.bias, columns * scale, y)
    return relayed(theta, data, rng) if rng.random() < 0.5 else (theta, data)


@pytest.mark.parametrize("first", range(FIRST, FIRST + ATTEMPTS, ATTEMPTS))
def test_nearly_dependent_features_hide_no_decrease_beyond_delta(first):
    held = 0
    for seed in range(first, first + ATTEMPTS):
        rng = np.random.default_rng(seed)
        theta, data = nearly_dependent(rng)
        best = theta.net.zeros()
        best.W[theta.net.depth].weights[0] = [1, -1]
        gradient = theta.net.gradient(theta, data, SQUARED)
        directions = [best] + [gradient] * bool(gradient.vector.any())
        held += bool(check_decrease(theta, data, directions).proves)
    assert held > 8


def outlying(rng):
    """Return a point that is the fit of all samples but for an error that one target outweighs."""
    n = int(rng.integers(5, 12))
    x = rng.normal(size=(n, 2))
    y = rng.normal(size=(n, 1))
    y[0] = 10.0 ** rng.uniform(3, 14)
    x[0] = 0 if rng.random() < 0.5 else x[0]
    fit = fit_affine(x, y, SQUARED)
    wrong = 10.0 ** rng.uniform(-6, 0)
    theta, data = affine(fit.weights, fit.bias, x, y)
    theta.W[1].weights[0, 0] += wrong
    move = theta.net.zeros()
    move.W[1].weights[0, 0] = -1
    return theta, data, [move]


@pytest.mark.parametrize("first", range(FIRST, FIRST + ATTEMPTS, ATTEMPTS))
def test_outlying_targets_excuse_no_gradient_of_other_samples(first):
    for seed in range(first, first + ATTEMPTS):
        check_decrease(*outlying(np.random.default_rng(seed)))


class Softened:
    """log(1 + exp(-y o)) for targets +-1: convex, and without a minimum on separable data."""

    name = "logistic"

    def value(self, o, y):
        return np.logaddexp(0, -y * o).sum(axis=0)

    def gradient(self, o, y):
        return -y * expit(-y * o)

    def curvature(self, o, y, d):
        return d * expit(o) * expit(-o)

    def check_targets(self, y):
        pass


@pytest.mark.parametrize("first", range(FIRST, FIRST + ATTEMPTS, ATTEMPTS))
def test_users_losses_that_underflow_are_not_certified(first):
    for seed in range(first, first + ATTEMPTS):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(8, 2))
        w = rng.normal(size=(1, 2))
        y = np.sign(x @ w.T)
        w *= 10.0 ** rng.uniform(1, 4) / abs(x @ w.T).min()
        theta, data = affine(w, np.zeros(1), x, y)
        assert not certify_cell(theta, data, Softened()).holds, seed


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY, AbsoluteLoss(), HuberLoss(0.5)], ids=repr)
def test_plain_fits_are_certified_all_the_same(loss):
    held = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(30, 3)), rng.dirichlet(np.ones(2), 30)
        fit = fit_affine(x, y, loss)
        theta, data = affine(fit.weights, fit.bias, x, y)
        point, data = relayed(theta, data, rng)
        held += certify_cell(theta, data, loss).holds and certify_cell(point, data, loss).holds
    assert held == 3
