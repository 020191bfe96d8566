"""What a certificate takes from a user's loss or activation is checked, and said to be assumed."""

from dataclasses import dataclass

import numpy as np
import pytest

from tinyspur.certificates import certify, certify_cell, certify_curvature
from tinyspur.certificates.assumptions import check_loss
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.losses import (
    KNOWN,
    AbsoluteLoss,
    HuberLoss,
    SquaredLoss,
    softmax,
)
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.errors import AssumptionError
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import Dense
from tinyspur.refutations.descent import find_descent_direction
from tinyspur.refutations.evidence import gather_evidence


class Loss:
    """A loss of r = o - y, from functions of r."""

    def __init__(self, name, value, slope, bend):
        self.name, self.parts = name, (value, slope, bend)

    def value(self, o, y):
        return self.parts[0](o - y).sum(axis=0)

    def gradient(self, o, y):
        return self.parts[1](o - y)

    def curvature(self, o, y, d):
        return self.parts[2](o - y) * d

    def check_targets(self, y):
        pass

    def __repr__(self):
        return self.name


def cosh():
    return Loss("cosh", lambda r: np.cosh(r) - 1, np.sinh, np.cosh)


def logistic():
    return Loss(
        "log-cosh",
        lambda r: np.logaddexp(r, -r) - np.log(2),
        np.tanh,
        lambda r: 1 / np.cosh(np.clip(r, -300, 300)) ** 2,
    )


CONVEX = [
    cosh(),
    logistic(),
    Loss("quartic", lambda r: r**4, lambda r: 4 * r**3, lambda r: 12 * r**2),
]

WRONG = {
    "concave": Loss("concave", lambda r: -(r**2), lambda r: -2 * r, lambda r: -2 + 0 * r),
    "double well": Loss(
        "double well",
        lambda r: (r**2 - 1) ** 2,
        lambda r: 4 * r * (r**2 - 1),
        lambda r: 12 * r**2 - 4,
    ),
    "Welsch": Loss(
        "Welsch",
        lambda r: 1 - np.exp(-(r**2)),
        lambda r: 2 * r * np.exp(-(r**2)),
        lambda r: (2 - 4 * r**2) * np.exp(-(r**2)),
    ),
    "gradient of another": Loss("half", lambda r: r**2, lambda r: r, lambda r: 1 + 0 * r),
    "curvature of another": Loss("bent", lambda r: r**2, lambda r: 2 * r, lambda r: 1 + 0 * r),
    "gradient off by a constant": Loss(
        "off", lambda r: r**2, lambda r: 2 * r + 1, lambda r: 2 + 0 * r
    ),
}


class LargestResidual(Loss):
    """max_k |r_k| with a box of subgradients, which is larger than those that it has at a tie."""

    def __init__(self):
        self.name = "largest residual"

    def value(self, o, y):
        return abs(o - y).max(axis=0)

    def gradient(self, o, y):
        r = o - y
        return (
            np.sign(r) * (abs(r) == abs(r).max(axis=0)) / (abs(r) == abs(r).max(axis=0)).sum(axis=0)
        )

    def subgradients(self, o, y, errors):
        r = o - y
        met = abs(r) >= abs(r).max(axis=0) - errors
        return np.where(met, np.minimum(np.sign(r), 0), 0.0), np.where(
            met, np.maximum(np.sign(r), 0), 0.0
        )

    def curvature(self, o, y, d):
        return 0 * d


def outputs(seed=0, d_y=2, samples=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(d_y, samples)), rng.normal(size=(d_y, samples))


@pytest.mark.parametrize("loss", [*CONVEX, *(kind() for kind in KNOWN)], ids=repr)
@pytest.mark.parametrize("size", [1e-3, 1.0, 5.0])
def test_convex_losses_pass(loss, size):
    o, y = outputs()
    y = softmax(y)
    check_loss(loss, size * o, y)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("samples", [1, 40])
def test_what_is_not_convex_or_not_a_gradient_is_named(name, samples):
    o, y = outputs(1, 1, samples)
    with pytest.raises(AssumptionError, match=rf"loss {WRONG[name]}: expected .* got a diff"):
        check_loss(WRONG[name], o, y)


def test_a_gradient_that_is_wrong_for_one_of_many_samples_is_named():
    class Odd(SquaredLoss):
        def gradient(self, o, y):
            return np.where(y > 50, 0, o - y)

    o, y = outputs(2, 1, 5000)
    y[0, 777] = 60
    with pytest.raises(AssumptionError, match=r"at sample 777$"):
        check_loss(Odd(), o, y)


def test_a_box_that_is_larger_than_the_subgradients_is_named():
    o, y = outputs()
    o[1] = y[1] + (o[0] - y[0])  # both residuals are the largest
    with pytest.raises(AssumptionError, match="largest residual: expected l"):
        check_loss(LargestResidual(), o, y)


class Absolute(AbsoluteLoss):
    """The same loss as a class of a user's."""


def affine_point(loss, y=None):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 1, 1, 2))
    y = rng.normal(size=(30, 1)) if y is None else y
    fit = fit_affine(x.reshape(30, 2), y, loss)
    theta = Parameters(Network((1, 1, 2), [Dense(1)]), np.append(fit.weights, fit.bias))
    return theta, TrainingSet(x, y)


@pytest.mark.parametrize("loss", [cosh(), logistic()], ids=repr)
def test_a_certificate_that_rests_on_a_users_loss_says_so(loss):
    theta, data = affine_point(loss)
    certificate = certify_cell(theta, data, loss)
    assert certificate.proves == "P2"
    assert f"if the loss {loss} is convex" in certificate.words
    assert f"if the loss {loss} is convex" in certificate.verdict(1.0, 0.0)
    assert "not proved, and assumed" in str(certificate)


def test_a_certificate_with_a_loss_of_this_package_assumes_nothing():
    theta, data = affine_point(HuberLoss(0.3))
    certificate = certify_cell(theta, data, HuberLoss(0.3))
    assert certificate.holds and not certificate.assumes
    assert "assumed" not in str(certificate)


def test_a_subclass_of_a_known_loss_is_a_users_loss():
    theta, data = affine_point(AbsoluteLoss())
    assert "if the loss" in certify_cell(theta, data, Absolute()).words


@pytest.mark.parametrize("name", WRONG)
def test_no_point_is_certified_for_a_loss_that_is_seen_to_be_wrong(name):
    theta, data = affine_point(SquaredLoss())
    for check in (certify, certify_cell):
        with pytest.raises(AssumptionError, match="expected"):
            check(theta, data, WRONG[name])


@dataclass(frozen=True)
class Bent(ReLU):
    """ReLU with a second kink at 2."""

    def __call__(self, z):
        return np.maximum(z, 0) + np.maximum(z - 2, 0)


def test_a_subclass_of_relu_is_not_taken_for_relu():
    theta = Network((1, 1, 1), [Dense(1), Dense(1)], Bent()).zeros()
    data = TrainingSet(np.ones((2, 1, 1, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="expected a piecewise linear activation, ReLU or leaky"):
        certify_cell(theta, data, SquaredLoss())


def curved(sigma):
    """Return a point with W^1 = 0 and data whose residuals are orthogonal to (x, 1)."""
    net = Network((1, 1, 1), [Dense(1), Dense(1)], sigma)
    theta = Parameters(net, np.array([0.0, 1.3, 1.0, 0.0]))
    x = np.array([-1.0, 0, 1])[:, None, None, None]
    e = np.array([[1.0], [-2], [1]])
    return theta, TrainingSet(x, net.forward(theta, x) + np.array([[1.0], [-2], [1]]) * -e[0])


def test_a_second_derivative_that_is_wrong_between_the_points_of_the_first_check_is_found():
    def bump(z):
        return 5 * np.exp(-(((z - 1.3) / 0.05) ** 2))

    liar = SmoothActivation(
        "liar",
        np.tanh,
        lambda z: 1 - np.tanh(z) ** 2,
        lambda z: -2 * np.tanh(z) * (1 - np.tanh(z) ** 2) + bump(z),
    )
    theta, data = curved(liar)
    with pytest.raises(AssumptionError, match=r"second derivative at z = 1\.3"):
        certify_curvature(theta, data, SquaredLoss())


def test_a_certificate_with_a_users_activation_says_so():
    own = SmoothActivation("own", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
    for sigma, expected in ((own, True), (Tanh(), False)):
        theta, data = curved(sigma)
        for sign in (1, -1):
            point = Parameters(theta.net, theta.vector * np.array([1, 1, sign, 1]))
            o = point.net.forward(point, data.x)
            certificate = certify_curvature(
                point, TrainingSet(data.x, o - np.array([[1.0], [-2], [1]])), SquaredLoss()
            )
            if certificate.holds:
                assert ("has the derivatives" in certificate.words) == expected
                break
        else:
            raise AssertionError("expected one of the signs to be certified")


@pytest.mark.parametrize("look", [find_descent_direction, gather_evidence])
@pytest.mark.parametrize("name", ["gradient of another", "curvature of another"])
def test_what_speaks_against_a_minimum_has_the_derivatives_of_a_users_loss_checked(look, name):
    theta, data = affine_point(SquaredLoss())
    with pytest.raises(AssumptionError, match=rf"loss {WRONG[name]}: expected .* got a diff"):
        look(theta, data, WRONG[name])


@pytest.mark.parametrize("look", [find_descent_direction, gather_evidence])
def test_what_speaks_against_a_minimum_has_a_users_activation_checked_where_it_is_used(look):
    def bend(z):
        return np.where(abs(z - 0.7) < 0.05, 5.0, Tanh().second_derivative(z))

    sigma = SmoothActivation("bent", np.tanh, Tanh().derivative, bend)
    theta = Network((1, 1, 2), [Dense(1), Dense(1)], sigma).zeros()
    data = affine_point(SquaredLoss())[1]
    theta.b[1][...] = 0.7
    with pytest.raises(AssumptionError, match=r"expected the second derivative at z = 0\.7 to be"):
        look(theta, data, SquaredLoss())
