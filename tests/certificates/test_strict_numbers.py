"""Each number of the strict certificate is true, and near the truth, where that is known by hand.

In particular a lower point is known that is hardly farther than the radius.
"""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from strict_problems import AT_KINK, SQUARED, at_kink, exact_risk, moved

from tinyspur.certificates import strict
from tinyspur.certificates.fixed_sums import fixed_sum
from tinyspur.certificates.growth import exists
from tinyspur.certificates.stationary import find_stationary, near_kinks
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import GELU, ReLU, Tanh
from tinyspur.engine.held import Held
from tinyspur.engine.losses import AbsoluteLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Dense

LINE = Dense(1, bias=False)


def of_one_layer(activation, bias=False):
    return Network((1, 1), (Dense(1, bias=bias, activation=activation),))


def numbers(x, y):
    """Return samples of one number each."""
    return TrainingSet(np.array(x, dtype=float)[:, None, None], np.array(y, dtype=float)[:, None])


# A network, the minimum, inputs and targets, the loss; a move to a lower point, and how many times
# the radius is longer than that
LOWER = {
    # sigma(w x): w < 0 brings the other sample nearer to its target
    "pattern": (of_one_layer(ReLU()), [1], [1, -8], [1, 2], SQUARED, [-17 / 16], 1.3),
    # sigma(w x + b): the same where x = -1, from b > w on; at the kink, x = 0, R has a minimum in b
    "kink": (
        of_one_layer(ReLU(), bias=True),
        [1, 0],
        [0, 1, 2, -1],
        [-1, 2, 1.5, 100],
        SQUARED,
        [-33 / 64, 33 / 64],
        1.3,
    ),
    # a sigma(w x), of which w or a is frozen: the same beyond w = 0
    "scaling": (Network((1, 1), (LINE, LINE)), [1, 8], [1, -8], [8, 64], SQUARED, [-65 / 64, 0], 2),
    # |w| with w = 1 at the kink of the loss, 8 - 4 w for the other sample beyond w = 0
    "loss": (of_one_layer(ReLU()), [1], [1, -4], [1, 8], AbsoluteLoss(), [-21 / 16], 1.5),
    # at a kink of the loss whose multiplier is near its bound, where the rest is concave
    "concave": (
        of_one_layer(GELU()),
        [0],
        [3, -3.25, -4, 4.5],
        [0, 0.75, 0.5, 1],
        AbsoluteLoss(),
        [-0.006],
        2.5,
    ),
    # |tanh(4 w)| with w = 0 at the kink of the loss, where the Hessian is 0, and -8 tanh(w / 4)
    "vertex": (
        of_one_layer(Tanh()),
        [0],
        [4, *[1 / 4] * 8],
        [0, *[100] * 8],
        AbsoluteLoss(),
        [0.49],
        5,
    ),
    "smooth": (
        of_one_layer(GELU()),
        [-0.26600424611488205],
        [3, -3, -1, -1],
        [1.5, 1.25, -1, -1.5],
        SQUARED,
        [0.16],
        4.5,
    ),
}


@pytest.mark.parametrize("case", LOWER)
def test_a_lower_point_is_hardly_farther_than_the_radius(case):
    net, values, x, y, loss, move, times = LOWER[case]
    theta = Parameters(net, np.array(values, dtype=float))
    data = numbers(x, y)
    found = certify_strict(theta, data, loss)
    assert found.holds and found.kinks == (case in ("kink", "loss", "concave", "vertex"))
    lower = net.risk(moved(theta, np.array(move)), data, loss)
    assert lower < found.risk[0] - 1e-6
    assert found.radius < max(np.abs(move)) < times * found.radius


def at_one_sum(outputs):
    """Return a point where A sigma(w x) + b has a sum of 1, so that all but a row is looked at.

    It is (1, 0, ...) where x > 0 and (1, 1, ...) / 2 elsewhere, where targets of the first two are
    met as often. With w < 0 it is nearer to the first of them.
    """
    net = Network((1, 1), (LINE, Dense(outputs)))
    x = np.array([1 / 8, -1, -1, -(2.0**-20), -(2.0**-20)])[:, None, None]
    theta = Parameters(net, np.zeros(net.size))
    theta.W[1].weights[:] = 1
    theta.W[2].weights[:2], theta.b[2][:2] = [[4], [-4]], 0.5
    return theta, TrainingSet(x, one_hot([0, 0, 0, 1, 1], outputs))


def test_with_targets_of_one_sum_a_lower_point_is_hardly_farther_either():
    theta, data = at_one_sum(2)
    found, d = certify_strict(theta, data, SQUARED), np.array([-9 / 8, 0, 0, 0, 0])
    assert found.holds and found.follow
    assert exact_risk(moved(theta, d), data) < Fraction(found.risk[0])
    assert found.radius < max(abs(d)) < 1.3 * found.radius


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_with_targets_of_one_sum_rows_less_their_mean_stay_in_the_radius_without_the_last(outputs):
    theta, data = at_one_sum(outputs)
    fewer = fixed_sum(theta, data, SQUARED)
    within = certify_strict(fewer.theta, fewer.data, fewer.loss).radius
    found, move = certify_strict(theta, data, SQUARED), -np.ones(outputs)
    assert found.holds and found.follow
    move[0] = 1
    near = theta.copy()
    near.b[2][:] += found.radius * move
    projected = fixed_sum(near, data, SQUARED).projected()
    assert abs(projected.vector - fewer.theta.vector).max() < within * (1 + 1e-9)


def test_with_targets_of_one_sum_what_follows_is_within_the_distance_too():
    theta, data = at_one_sum(3)
    off = theta.copy()
    off.b[2][:] += np.array([1, 1, -2]) / 2**20
    found = certify_strict(off, data, SQUARED)
    assert found.holds and 2 / 2**20 <= found.distance < 3 / 2**20


def test_distance_and_delta_are_those_of_a_point_that_is_off_by_known_numbers():
    theta, data = at_kink()
    kinks = near_kinks(theta, data, SQUARED, 1e-9)
    for size in (2.0**-20, 2.0**-10):
        off = moved(theta, size * np.array([1, -1, 0, 1 / 2]))
        found, above = certify_strict(off, data, SQUARED, kinks), exact_risk(off, data) - AT_KINK
        assert found.holds and size <= found.distance < 1.01 * size
        assert above <= Fraction(found.delta) < above * Fraction(1.01)


def test_margin_and_stationarity_are_those_of_the_point_that_was_found():
    theta, data = at_kink()
    half = Parameters(theta.net, np.array([0.5, 0, 2, 0]))
    found = certify_strict(half, data, SQUARED)
    assert found.margin == 0.5 and found.stationarity < 1e-15


def test_stationarity_is_the_gradient_where_newtons_method_ends(monkeypatch):
    """That of (w - 1)^2 / 4 at w = 1 + 2^-10."""
    theta, data = Parameters(of_one_layer(ReLU()), np.ones(1)), numbers([1, -8], [1, 2])
    assert certify_strict(theta, data, SQUARED).stationarity == 0
    far_from_what_is_found(monkeypatch, [2.0**-10], [])
    assert certify_strict(theta, data, SQUARED).stationarity == 2.0**-11


def test_the_least_eigenvalue_is_true_where_sizes_of_parameters_are_far_apart():
    """The Hessian is ((2^80, 2^35), (2^35, 2^-9)), its determinant 2^70."""
    net = Network((1, 2), (Dense(1, bias=False),))
    x = np.array([[[2.0**40, 0]], [[2.0**40, 2.0**-4]]])
    theta = Parameters(net, np.array([2.0**-40, 2.0**4]))
    found = certify_strict(theta, TrainingSet(x, np.array([[1.0], [2]])), SQUARED)
    assert found.holds and 0.2 < found.eigenvalue * 2**10 < 1


def far_from_what_is_found(monkeypatch, theta, multipliers):
    """Let what is found in floats be off by this, as if Newton's method had not converged."""

    def off(*arguments):
        at = find_stationary(*arguments)
        return at._replace(
            theta=moved(at.theta, theta), multipliers=at.multipliers + np.array(multipliers)
        )

    monkeypatch.setattr(strict, "find_stationary", off)


@pytest.mark.parametrize("y", [-4.0, -2.0, -1.25])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("off", [0, 2.0**-12])
def test_what_is_proved_is_true_however_far_off_the_point_in_floats_is(monkeypatch, y, sign, off):
    """Residuals are y + 1, 0, -y, -1, -1, 1, the multiplier is 1 / 6 and C_k = -y / 6."""
    theta, data = at_kink()
    data.y[:3] = [[-y - 1], [0], [y]]
    d = sign * np.array([1, -1, 0, 1 / 2]) / 2**10
    far_from_what_is_found(monkeypatch, d, [sign * off])
    found, risk = certify_strict(theta, data, SQUARED), exact_risk(theta, data)
    assert found.holds and 2.0**-10 <= found.distance < 2.0**-8
    assert Fraction(found.risk[0]) <= risk <= Fraction(found.risk[1])
    assert found.risk[1] - found.risk[0] < 1e-3
    assert 0.9 < found.inside / min(1 / abs(y), 1 - 1 / abs(y)) < 1
    J = np.stack([np.where(data.x[:, 0, 0] > 0, data.x[:, 0, 0], 0), np.ones(6)])
    assert 0.9 < found.eigenvalue / np.linalg.eigvalsh(J @ J.T / 6)[0] < 1
    assert found.margin > 0.99 and found.stationarity > 1e-5


def test_a_second_minimum_may_be_within_the_distance_but_not_within_the_radius():
    """sigma(v x_1 + w x_2) with w off by 2^-16: minima at v = 2^-20 and at v = -2^-19."""
    net, X = Network((1, 2), (Dense(1, bias=False, activation=ReLU()),)), 2.0**20
    data = TrainingSet(np.array([[[X, 0]], [[-X, 0]], [[0, 1]]]), np.array([[1.0], [2], [1]]))
    theta, other = (Parameters(net, np.array(v)) for v in ([1 / X, 1 + 2.0**-16], [-2 / X, 1]))
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and certify_strict(other, data, SQUARED).holds
    assert exact_risk(other, data) == Fraction(1, 6)
    assert Fraction(found.risk[0]) <= Fraction(2, 3) <= Fraction(found.risk[1])
    assert found.radius < 3 / X < abs(other.vector - theta.vector).max() <= found.distance


def test_a_set_that_is_repeated_has_the_same_numbers():
    """In several blocks of samples, too."""
    once, often = (certify_strict(*at_kink(repeats), SQUARED) for repeats in (1, 800))
    assert often.holds and often.held == 800
    for name in ("radius", "eigenvalue", "inside", "margin"):
        assert getattr(often, name) == pytest.approx(getattr(once, name), rel=1e-6)
    assert Fraction(often.risk[0]) <= AT_KINK <= Fraction(often.risk[1])


@pytest.mark.parametrize("mean", [0.1, 0.3, -0.7])
def test_a_minimum_that_rounding_hides_is_within_the_distance(mean):
    """With tanh w the mean of two targets; residuals of up to 2^13 are off by 1e-12."""
    net, y = of_one_layer(Tanh()), [8192 + mean, -8192 + mean]
    with mpmath.workdps(50):
        minimum = mpmath.atanh((mpmath.mpf(y[0]) + mpmath.mpf(y[1])) / 2)
        theta = Parameters(net, np.array([float(minimum) + 1e-9]))
        found = certify_strict(theta, numbers([1, 1], y), SQUARED, kinks=())
        assert found.holds and abs(minimum - theta.vector[0]) <= found.distance < 2e-9
        at = find_stationary(theta, numbers([1, 1], y), SQUARED, [], True)
        assert abs(minimum - at.theta.vector[0]) <= exists(at).free_radius[0]


def test_where_the_gradient_has_no_zero_none_is_shown_to_be_near():
    """That of (tanh w - 2)^2 / 2: at w = 2 a step of Newton's method leads to about 2.5."""
    net, x = of_one_layer(Tanh()), np.ones((1, 1, 1))
    theta = Parameters(net, np.array([2.0]))
    y = net.forward(theta, x)
    at = find_stationary(theta, TrainingSet(x, y), SQUARED, [], True)
    assert not isinstance(exists(at), str)
    held = Held(net, TrainingSet(x, np.full((1, 1), 2.0)), SQUARED)
    hessian = held.hessian(theta, np.zeros(0))
    assert isinstance(exists(at._replace(held=held, inverse=1 / hessian)), str)


@pytest.mark.filterwarnings("error")
def test_a_radius_beyond_which_numbers_overflow_gives_no_warnings():
    """All inputs are 0: the output is its bias, whatever the weights are."""
    net, x = Network((1, 1), (Dense(1, bias=False), Dense(1))), np.zeros((3, 1, 1))
    theta, data = Parameters(net, np.array([1, 1, 7 / 3])), TrainingSet(x, [[1.0], [2], [4]])
    found = certify_strict(theta, data, SQUARED)
    assert found.holds and found.radius > 1e200
    assert Fraction(found.risk[0]) <= Fraction(7, 9) <= Fraction(found.risk[1])
