"""Affine fits reach the least risk, and say so where there is none."""

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shared import LogCosh, in_turn

import tinyspur
from tinyspur.engine.losses import (
    AbsoluteLoss,
    CrossEntropy,
    HuberLoss,
    SquaredLoss,
    one_hot,
    softmax,
)
from tinyspur.errors import AssumptionError
from tinyspur.fitting.affine import fit_affine

IMAGES = Path(tinyspur.__file__).parent / "datasets" / "data" / "fashion_mnist_4000.npz"


def risk_of(fit, x, y, loss):
    return loss.value(fit.weights @ x.T + fit.bias[:, None], y.T).mean()


def gradient_of(fit, x, y, loss):
    """Return (1/N) sum_i g_i (x_i, 1)^T and the size of what is added up in it."""
    features = np.hstack([x, np.ones((len(x), 1))])
    g = loss.gradient(fit.weights @ x.T + fit.bias[:, None], y.T)
    return g @ features / len(x), (abs(g) @ abs(features) / len(x)).max()


# Squared loss


def regression(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    if kind == "constant column":
        x[:, 2] = 0.1
    elif kind == "constant columns of many samples":
        x = np.hstack([rng.normal(size=(1000, 3)), np.full((1000, 2), [0.1, 1 / 3])])
    elif kind == "zero column":
        x[:, 2] = 0
    elif kind == "duplicate columns":
        x = np.hstack([x, x[:, :2]])
    elif kind == "dependent columns":
        x = np.hstack([x, x @ rng.normal(size=(5, 3))])
    elif kind == "columns that add up to a constant":
        x = softmax(x.T).T
    elif kind == "fewer samples than features":
        x = rng.normal(size=(6, 20))
    elif kind == "one sample":
        x = x[:1]
    elif kind == "equal samples":
        x = np.repeat(x[:1], 10, axis=0)
    elif kind == "far from the origin":
        x = x + 100
    elif kind == "no features":
        x = x[:, :0]
    return x, rng.normal(size=(len(x), 3))


RANKS = {
    "full rank": 6,
    "constant column": 5,
    "constant columns of many samples": 4,
    "zero column": 5,
    "duplicate columns": 6,
    "dependent columns": 6,
    "columns that add up to a constant": 5,
    "fewer samples than features": 6,
    "one sample": 1,
    "equal samples": 1,
    "far from the origin": 6,
    "no features": 1,
}


@pytest.mark.parametrize("kind", RANKS)
def test_least_squares_reaches_the_risk_of_numpy(kind):
    x, y = regression(kind)
    features = np.hstack([x, np.ones((len(x), 1))])
    solution = np.linalg.lstsq(features, y, rcond=None)[0]
    expected = SquaredLoss().value((features @ solution).T, y.T).mean()
    fit = fit_affine(x, y, SquaredLoss())
    assert (fit.weights.shape, fit.bias.shape) == ((3, x.shape[1]), (3,))
    np.testing.assert_allclose(fit.risk, expected, rtol=1e-12, atol=1e-25)
    np.testing.assert_allclose(fit.risk, risk_of(fit, x, y, SquaredLoss()), rtol=1e-12)
    assert fit.steps == 0


@pytest.mark.parametrize("kind", RANKS)
def test_least_squares_leaves_no_gradient(kind):
    x, y = regression(kind)
    fit = fit_affine(x, y, SquaredLoss())
    gradient, _scale = gradient_of(fit, x, y, SquaredLoss())
    start = (abs(y).T @ np.hstack([abs(x), np.ones((len(x), 1))])).max() / len(x)
    assert abs(gradient).max() <= 1e-13 * start
    assert fit.gradient <= 1e-13 * start


@in_turn(
    pytest.mark.parametrize("kind", RANKS),
    pytest.mark.parametrize(
        "loss", [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), HuberLoss()], ids=repr
    ),
)
def test_the_rank_is_that_of_the_features(kind, loss):
    x, y = regression(kind)
    y = softmax(y.T).T
    assert np.linalg.matrix_rank(np.hstack([x, np.ones((len(x), 1))])) == RANKS[kind]
    assert fit_affine(x, y, loss).rank == RANKS[kind]


@pytest.mark.parametrize("kind", ["duplicate columns", "dependent columns", "zero column"])
def test_least_squares_takes_the_smallest_weights(kind):
    x, y = regression(kind)
    fit = fit_affine(x, y, SquaredLoss())
    smallest = np.linalg.pinv(x - x.mean(axis=0)) @ (y - y.mean(axis=0))
    np.testing.assert_allclose(fit.weights, smallest.T, atol=1e-12)


def test_an_exact_affine_relation_is_found():
    rng = np.random.default_rng(0)
    x, W, b = rng.normal(size=(30, 4)), rng.normal(size=(2, 4)), rng.normal(size=2)
    fit = fit_affine(x, x @ W.T + b, SquaredLoss())
    np.testing.assert_allclose(fit.weights, W, atol=1e-12)
    np.testing.assert_allclose(fit.bias, b, atol=1e-12)
    assert fit.risk <= 1e-25


def test_the_fit_says_what_it_found():
    x, y = regression("zero column")
    fit = fit_affine(x, y, SquaredLoss())
    assert f"risk {fit.risk:.9g}" in str(fit)
    assert "rank 5 of 6" in str(fit)


def test_data_are_computed_in_double_precision():
    x, y = (v.astype(np.float32) for v in regression("full rank"))
    fit = fit_affine(x, y, SquaredLoss())
    assert fit.weights.dtype == np.float64
    assert fit.gradient <= 1e-13


# Absolute loss


def least_deviations(x, y):
    """Return the least mean of |o - y|, from the dual: max <u, y> with |u| <= 1 and u (x, 1) = 0.

    Centred and scaled data, which change neither, help the solver.
    """
    x = x - x.mean(axis=0)
    features = np.hstack([x / abs(x).max(initial=1e-300), np.ones((len(x), 1))])
    middle = np.median(y)
    size = abs(y - middle).max() or 1.0
    total = 0.0
    for target in ((y - middle) / size).T:
        found = scipy.optimize.linprog(
            -target, A_eq=features.T, b_eq=np.zeros(features.shape[1]), bounds=(-1, 1)
        )
        assert found.success
        total -= found.fun
    return total * size / len(x)


@pytest.mark.parametrize("kind", RANKS)
def test_least_deviations_reach_the_dual_and_meet_as_many_targets_as_there_are_dimensions(kind):
    x, y = regression(kind)
    fit = fit_affine(x, y, AbsoluteLoss())
    assert (fit.weights.shape, fit.bias.shape) == ((3, x.shape[1]), (3,))
    np.testing.assert_allclose(fit.risk, least_deviations(x, y), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(fit.risk, risk_of(fit, x, y, AbsoluteLoss()), rtol=1e-14)
    size = 1 + abs(x).max(initial=0)
    met = abs(x @ fit.weights.T + fit.bias - y) <= 1e-13 * size
    assert (met.sum(axis=0) >= RANKS[kind]).all()
    assert fit.gradient <= 1e-14 * size
    assert fit.steps == 0


def by_brute_force(x, y):
    """Return the least mean of |o - y| for one output: some optimal map meets `rank` targets."""
    features = np.hstack([x, np.ones((len(x), 1))])
    rank = np.linalg.matrix_rank(features)
    chosen = [list(rows) for rows in itertools.combinations(range(len(x)), rank)]
    maps = [
        np.linalg.lstsq(features[rows], y[rows])[0]
        for rows in chosen
        if np.linalg.matrix_rank(features[rows]) == rank
    ]
    return min(abs(features @ coefficients - y).mean() for coefficients in maps)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 8),
    features=st.integers(0, 3),
    grid=st.booleans(),
)
def test_least_deviations_are_those_of_the_best_of_all_vertices(seed, samples, features, grid):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(samples, features)), rng.normal(size=(samples, 1))
    if grid:  # ties, repeated samples, targets met beyond need, several optima
        x, y = rng.integers(-2, 3, size=x.shape).astype(float), np.round(2 * y) + 0.5
    fit = fit_affine(x, y, AbsoluteLoss())
    np.testing.assert_allclose(fit.risk, by_brute_force(x, y), rtol=1e-12, atol=1e-14)
    assert fit.gradient <= 1e-14


SCALES = {  # factor and shift of x, factor and shift of y
    "large features": (1e6, 0, 1, 0),
    "small features": (1e-6, 0, 1, 0),
    "large targets": (1, 0, 1e4, 0),
    "both large": (1e6, 0, 1e4, 0),
    "features far from 0": (1, 1e3, 1, 0),
    "targets far from 0": (1, 0, 1, 1e4),
}


@in_turn(
    pytest.mark.parametrize("name", SCALES),
    pytest.mark.parametrize("loss", [AbsoluteLoss(), HuberLoss(), HuberLoss(0.1)], ids=repr),
)
def test_scales_and_shifts_change_no_robust_fit(name, loss):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    fx, sx, fy, sy = SCALES[name]
    scaled = HuberLoss(loss.delta * fy) if isinstance(loss, HuberLoss) else loss
    degree = 2 if isinstance(loss, HuberLoss) else 1
    plain, fit = fit_affine(x, y, loss), fit_affine(fx * x + sx, fy * y + sy, scaled)
    np.testing.assert_allclose(fit.risk, fy**degree * plain.risk, rtol=1e-11)
    np.testing.assert_allclose(fit.weights, plain.weights * fy / fx, atol=1e-8 * fy / fx)
    assert fit.gradient <= 1e-12 * max(1.0, abs(fx * x + sx).max()) * fy ** (degree - 1)


@pytest.mark.parametrize(("factor", "shift"), [(1e-8, 0), (1e-10, 0), (1, 1e9)])
def test_small_targets_and_those_far_from_zero_have_the_least_deviations_too(factor, shift):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 4)), factor * rng.normal(size=(50, 2)) + shift
    fit = fit_affine(x, y, AbsoluteLoss())
    np.testing.assert_allclose(fit.risk, least_deviations(x, y), rtol=1e-6)


def test_a_target_zero_that_is_met_counts_as_met():
    x, y = np.array([[2.0, 3, -3, -2, 1, 1, 0]]).T, np.array([[-2.0, 1, 0, -1, 3, 0, 0]]).T
    fit = fit_affine(x, y, AbsoluteLoss())
    np.testing.assert_allclose(fit.risk, by_brute_force(x, y), rtol=1e-12)
    assert fit.gradient <= 1e-14


def test_without_features_the_least_deviations_are_from_the_median():
    y = np.array([[1.0, 1], [2, 2], [10, 10], [3, 3], [50, 4], [9, 9]])
    fit = fit_affine(np.ones((5, 2)), y[:5], AbsoluteLoss())
    assert fit.weights.tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(fit.bias, [3, 3], rtol=1e-15)
    fit = fit_affine(np.ones((6, 2)), y, AbsoluteLoss())
    assert ((fit.bias >= [3, 3]) & (fit.bias <= [9, 4])).all()
    assert fit.risk == pytest.approx(
        (2 + 1 + 7 + 0 + 47 + 6 + 3 + 2 + 6 + 1 + 0 + 5) / 6, rel=1e-15
    )


def test_a_sample_twice_counts_twice():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    often = rng.integers(1, 4, size=20)
    fit = fit_affine(np.repeat(x, often, axis=0), np.repeat(y, often, axis=0), AbsoluteLoss())
    losses = AbsoluteLoss().value(fit.weights @ x.T + fit.bias[:, None], y.T)
    np.testing.assert_allclose(fit.risk, (often * losses).sum() / often.sum(), rtol=1e-13)
    expected = least_deviations(np.repeat(x, often, axis=0), np.repeat(y, often, axis=0))
    np.testing.assert_allclose(fit.risk, expected, rtol=1e-12)


def test_outliers_that_move_further_out_leave_the_least_deviations():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    fit = fit_affine(x, y, AbsoluteLoss())
    residuals = y - x @ fit.weights.T - fit.bias
    moved = y + 1e3 * np.sign(residuals) * (abs(residuals) > 1e-9) * rng.uniform(size=y.shape)
    again = fit_affine(x, moved, AbsoluteLoss())
    np.testing.assert_allclose(again.weights, fit.weights, atol=1e-11)
    np.testing.assert_allclose(again.bias, fit.bias, atol=1e-11)


# Huber loss, and losses that a user supplies


class SmoothQuantile(LogCosh):
    """0.3 r + log(1 + exp(-r)): about the loss whose minimiser is a quantile."""

    name = "smooth quantile"

    def value(self, o, y):
        return (0.3 * (o - y) + np.logaddexp(0, y - o)).sum(axis=0)

    def gradient(self, o, y):
        return 0.3 - scipy.special.expit(y - o)

    def curvature(self, o, y, d):
        return d * scipy.special.expit(y - o) * scipy.special.expit(o - y)


class AsymmetricSquares(LogCosh):
    """Expectiles: residuals above 0 weigh nine times those below."""

    name = "asymmetric squares"

    def value(self, o, y):
        return (np.where(o > y, 0.9, 0.1) * (o - y) ** 2 / 2).sum(axis=0)

    def gradient(self, o, y):
        return np.where(o > y, 0.9, 0.1) * (o - y)

    def curvature(self, o, y, d):
        return np.where(o > y, 0.9, 0.1) * d


class SquaredHinge(LogCosh):
    """Flat where o < y: many minimisers."""

    name = "squared hinge"

    def value(self, o, y):
        return (np.maximum(o - y, 0) ** 2 / 2).sum(axis=0)

    def gradient(self, o, y):
        return np.maximum(o - y, 0)

    def curvature(self, o, y, d):
        return d * (o > y)


class Linex(LogCosh):
    """exp(r) - r - 1: overflows far above the targets."""

    name = "linex"

    def value(self, o, y):
        return (np.expm1(o - y) - (o - y)).sum(axis=0)

    def gradient(self, o, y):
        return np.expm1(o - y)

    def curvature(self, o, y, d):
        return d * np.exp(o - y)


SMOOTH = [
    *(HuberLoss(), HuberLoss(0.1), HuberLoss(10)),
    *(LogCosh(), SmoothQuantile(), AsymmetricSquares(), SquaredHinge(), Linex()),
]


def by_many_starts(x, y, loss):
    """Return the least risk that SciPy finds from several starts, without second derivatives."""
    x = (x - x.mean(axis=0)) / abs(x - x.mean(axis=0)).max(initial=1e-300)
    features = np.hstack([x, np.ones((len(x), 1))])
    shape = (y.shape[1], features.shape[1])

    def risk(flat):
        o = flat.reshape(shape) @ features.T
        gradient = loss.gradient(o, y.T) @ features / len(x)
        return loss.value(o, y.T).mean(), gradient.ravel()

    starts = np.random.default_rng(0).normal(size=(3, np.prod(shape)))
    found = [
        scipy.optimize.minimize(risk, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        for start in starts
    ]
    assert np.ptp([each.fun for each in found]) < 1e-7
    return min(each.fun for each in found)


@in_turn(
    pytest.mark.parametrize("kind", [kind for kind in RANKS if kind != "no features"]),
    pytest.mark.parametrize("loss", SMOOTH, ids=lambda loss: f"{loss.name}{vars(loss) or ''}"),
)
def test_newtons_method_reaches_the_risk_of_another_method_and_leaves_no_gradient(kind, loss):
    x, y = regression(kind)
    fit = fit_affine(x, y, loss)
    np.testing.assert_allclose(fit.risk, by_many_starts(x, y, loss), rtol=0, atol=1e-10)
    np.testing.assert_allclose(fit.risk, risk_of(fit, x, y, loss), rtol=1e-12)
    gradient, _ = gradient_of(fit, x, y, loss)
    assert abs(gradient).max() <= 1e-12 * max(1.0, abs(x).max())
    assert fit.gradient == pytest.approx(abs(gradient).max(), abs=1e-15 * max(1.0, abs(x).max()))
    assert fit.rank == RANKS[kind]


@pytest.mark.filterwarnings("ignore:overflow")
def test_targets_are_reached_from_where_the_curvature_all_but_vanishes():
    x, y = regression("full rank")
    near, far = fit_affine(x, y, Linex()), fit_affine(x, y + 2000, Linex())  # exp(-2000) is 0
    np.testing.assert_allclose(far.weights, near.weights, atol=1e-10)
    np.testing.assert_allclose(far.bias, near.bias + 2000, rtol=1e-12)


def test_a_huber_loss_beyond_all_residuals_is_least_squares():
    x, y = regression("full rank")
    fit, squares = fit_affine(x, y, HuberLoss(1e3)), fit_affine(x, y, SquaredLoss())
    np.testing.assert_allclose(fit.weights, squares.weights, atol=1e-12)
    np.testing.assert_allclose(fit.bias, squares.bias, atol=1e-12)
    np.testing.assert_allclose(fit.risk, squares.risk, rtol=1e-13)


@pytest.mark.parametrize("delta", [1e-2, 1e-3])
def test_a_narrow_huber_loss_is_nearly_that_of_least_deviations(delta):
    """H = delta (|r| - delta / 2) where |r| > delta, and at most delta^2 / 2 off elsewhere."""
    x, y = regression("full rank")
    low = fit_affine(x, y, AbsoluteLoss()).risk
    found = fit_affine(x, y, HuberLoss(delta)).risk / delta
    assert low - 3 * delta / 2 <= found <= low


def test_with_all_residuals_in_the_lines_of_the_huber_loss_every_median_is_a_minimum():
    y = np.array([[0.0], [1], [10], [11]])
    fit = fit_affine(np.zeros((4, 1)), y, HuberLoss(0.1))
    assert 1.1 <= fit.bias[0] <= 9.9
    assert fit.gradient == 0
    assert fit.risk == pytest.approx(0.1 * (5 - 0.05), rel=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_an_output_in_the_lines_of_the_huber_loss_disturbs_no_other(seed):
    rng = np.random.default_rng(seed)
    x = np.tile(rng.normal(size=(30, 2)), (2, 1))  # its gradient at 0 is rounding
    y = np.hstack([np.repeat([[5.0], [-5.0]], 30, axis=0), 0.05 * rng.normal(size=(60, 1))])
    fit, alone = fit_affine(x, y, HuberLoss(0.1)), fit_affine(x, y[:, 1:], HuberLoss(0.1))
    np.testing.assert_allclose(fit.weights[1], alone.weights[0], atol=1e-12)
    assert fit.risk == pytest.approx(alone.risk + 0.1 * (5 - 0.05), rel=1e-13)
    assert fit.gradient <= 1e-16


@pytest.mark.parametrize("delta", [1e-3, 1e-4])
def test_a_huber_loss_far_narrower_than_the_residuals_has_a_fit_too(delta):
    x, y = regression("full rank")
    fit = fit_affine(x, y, HuberLoss(delta))
    low = fit_affine(x, y, AbsoluteLoss()).risk
    assert low - 3 * delta / 2 <= fit.risk / delta <= low


def test_the_targets_are_checked_by_the_users_loss():
    with pytest.raises(ValueError, match="expected targets above -100"):
        fit_affine(np.zeros((2, 1)), np.array([[0.0], [-101]]), LogCosh())


class Exponential(LogCosh):
    name = "exponential"

    def value(self, o, y):
        return np.exp(o - y).sum(axis=0)

    def gradient(self, o, y):
        return np.exp(o - y)

    def curvature(self, o, y, d):
        return d * np.exp(o - y)


class SoftPlus(LogCosh):
    name = "softplus"

    def value(self, o, y):
        return np.logaddexp(0, o - y).sum(axis=0)

    def gradient(self, o, y):
        return scipy.special.expit(o - y)

    def curvature(self, o, y, d):
        return d * scipy.special.expit(o - y) * scipy.special.expit(y - o)


class Linear(LogCosh):
    name = "linear"

    def value(self, o, y):
        return (o - y).sum(axis=0)

    def gradient(self, o, y):
        return np.ones_like(o)

    def curvature(self, o, y, d):
        return 0 * d


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("kind", ["full rank", "fewer samples than features", "one sample"])
@pytest.mark.parametrize("loss", [Exponential(), SoftPlus(), Linear()], ids=lambda loss: loss.name)
def test_a_users_loss_without_minimiser_is_refused_soon_and_in_one_line(loss, kind):
    start = time.perf_counter()
    with pytest.raises((AssumptionError, RuntimeError), match=f"{loss.name} regression") as caught:
        fit_affine(*regression(kind), loss)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value)


# Cross-entropy


def by_bfgs(x, y):
    """Return the least risk of softmax regression, found without second derivatives."""
    features = np.hstack([x, np.ones((len(x), 1))])
    shape = (y.shape[1], features.shape[1])

    def risk(flat):
        o = flat.reshape(shape) @ features.T
        value = np.logaddexp.reduce(o, axis=0) - (y.T * o).sum(axis=0)
        probabilities = np.exp(o - np.logaddexp.reduce(o, axis=0))
        return value.mean(), ((probabilities - y.T) @ features / len(x)).ravel()

    found = scipy.optimize.minimize(
        risk, np.zeros(np.prod(shape)), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    assert abs(found.jac).max() < 1e-7
    return found.fun


def classification(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3))
    labels = rng.integers(0, 3, 40)
    y = one_hot(labels, 3)
    if kind == "smoothed":
        y = one_hot(labels, 3, smoothing=0.1)
    elif kind == "distributions":
        y = rng.dirichlet(np.ones(3), 40)
    elif kind == "rank-deficient":
        x = np.hstack([x, x[:, :1], np.full((40, 1), 0.1)])
    elif kind == "fewer samples than features":
        x, y = rng.normal(size=(8, 12)), one_hot(labels[:8], 3, smoothing=0.2)
    elif kind == "separable and smoothed":
        y = one_hot(x[:, 0].argsort().argsort() * 3 // 40, 3, smoothing=0.1)
    elif kind == "nearly separable":
        labels = (x[:, 0] > 0).astype(int)
        labels[x[:, 0].argmax()] = 0
        y = one_hot(labels, 2)
    elif kind == "different scales":
        x = x * [1e-2, 1.0, 1e2]
    elif kind == "one class":
        y = np.ones((40, 1))
    return x, y


CLASSIFICATIONS = [
    *("hard", "smoothed", "distributions", "rank-deficient", "fewer samples than features"),
    *("separable and smoothed", "nearly separable", "different scales", "one class"),
]


@pytest.mark.parametrize("kind", CLASSIFICATIONS)
def test_softmax_regression_reaches_the_risk_of_another_method(kind):
    x, y = classification(kind)
    fit = fit_affine(x, y, CrossEntropy())
    scale = abs(x).max(axis=0)  # helps the other method, and changes no risk
    np.testing.assert_allclose(fit.risk, by_bfgs(x / scale, y), rtol=0, atol=1e-10)
    np.testing.assert_allclose(fit.risk, risk_of(fit, x, y, CrossEntropy()), rtol=1e-12)


@pytest.mark.parametrize("kind", CLASSIFICATIONS)
def test_softmax_regression_leaves_no_gradient(kind):
    x, y = classification(kind)
    fit = fit_affine(x, y, CrossEntropy())
    gradient, _ = gradient_of(fit, x, y, CrossEntropy())
    size = max(1.0, abs(x).max())
    assert abs(gradient).max() <= 1e-12 * size
    assert fit.gradient <= 1e-12 * size


def test_equal_features_get_the_mean_of_their_targets():
    x = np.array([[2.0, 1.0]] * 5 + [[0.0, 1.0]] * 4)
    y = one_hot(np.array([0, 0, 1, 1, 1, 0, 1, 0, 0]), 2)
    fit = fit_affine(x, y, CrossEntropy())
    p = softmax(fit.weights @ x.T + fit.bias[:, None])
    np.testing.assert_allclose(p[0], [0.4] * 5 + [0.75] * 4, atol=1e-11)


def test_two_equal_features_with_mixed_labels_are_a_coin_flip():
    fit = fit_affine(np.ones((2, 3)), one_hot(np.array([0, 1]), 2), CrossEntropy())
    np.testing.assert_allclose(fit.risk, np.log(2), rtol=1e-14)
    assert (fit.rank, fit.gradient <= 1e-12) == (1, True)


@pytest.mark.parametrize("smoothing", [0.5, 1e-1, 1e-3, 1e-6])
def test_separable_classes_have_a_minimiser_once_smoothed(smoothing):
    x, labels = np.array([[0.0], [1.0]]), np.array([0, 1])
    y = one_hot(labels, 2, smoothing)
    fit = fit_affine(x, y, CrossEntropy())
    entropy = -(y[0] * np.log(y[0])).sum()
    np.testing.assert_allclose(fit.risk, entropy, rtol=1e-9)
    assert fit.gradient <= 1e-12
    with pytest.raises(AssumptionError, match="no minimiser"):
        fit_affine(x, one_hot(labels, 2), CrossEntropy())


@pytest.mark.parametrize("shift", [0.0, 3.0, -7.0])
def test_a_shift_or_a_scale_of_the_features_changes_no_risk(shift):
    x, y = classification("hard")
    expected = fit_affine(x, y, CrossEntropy()).risk
    fit = fit_affine(2.5 * x + shift, y, CrossEntropy())
    np.testing.assert_allclose(fit.risk, expected, rtol=1e-12)


# Where there is no minimiser


def has_minimiser(x, y):
    """Return whether softmax regression has one, by a linear program.

    There is none when some affine map gives every class that a sample may have the largest output
    of the sample, and the outputs are not all equal: then the risk falls along it for ever.
    """
    features = np.hstack([x, np.ones((len(x), 1))])
    leads = []
    for f, target in zip(features, y, strict=True):
        for j in np.flatnonzero(target > 0):
            for k in range(len(target)):
                lead = np.zeros((len(target), len(f)))
                lead[j] += f
                lead[k] -= f
                leads.append(lead.ravel())
    leads = np.array(leads)
    found = scipy.optimize.linprog(
        -leads.sum(axis=0), A_ub=-leads, b_ub=np.zeros(len(leads)), bounds=(-1, 1)
    )
    assert found.success
    return -found.fun < 1e-7


def labelled(x, labels, classes=2):
    return np.array(x, dtype=float).reshape(len(labels), -1), one_hot(np.array(labels), classes)


WITHOUT_MINIMISER = {
    "two samples": labelled([0, 1], [0, 1]),
    "one sample": labelled([3], [0]),
    "equal samples of one class": labelled([1, 1, 1], [1, 1, 1]),
    "an overlap at one point": labelled([0, 0, 1], [0, 1, 1]),
    "an overlap at one point, one class to its right": labelled([-2, 0, 1, -2], [0, 0, 0, 1]),
    "an overlap of four samples at one point": labelled([0, 0, 0, 2, 0], [0, 0, 1, 1, 1]),
    "an overlap at the end": labelled([-1, -2, 2, 0, 2, -1], [1, 1, 0, 1, 1, 1]),
    "a class without samples": labelled([0, 1, 0, 1], [0, 0, 1, 1], classes=3),
    "all samples in one class of three": labelled([0, 1, 2], [1, 1, 1], classes=3),
    "one class of three apart": labelled([0, 1, 0, 1, 5, 6], [0, 0, 1, 1, 2, 2], classes=3),
    "three classes in a row": labelled([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], classes=3),
    "a line through overlaps": labelled(
        [[0, 0], [1, 0], [0, 0], [1, 0], [0, 1], [2, -1]], [0, 1, 1, 0, 0, 1]
    ),
    "targets that share two of three classes": (
        np.array([[-2.0], [-2.0]]),
        np.array([[0.5, 0, 0.5], [1, 0, 0]]),
    ),
}

WITH_MINIMISER = {
    "mixed labels everywhere": labelled([0, 0, 1, 1], [0, 1, 0, 1]),
    "labels out of order": labelled([0, 1, 2], [0, 1, 0]),
    "three classes out of order": labelled([0, 1, 2] * 2, [0, 1, 2, 1, 2, 0], classes=3),
    "equal features with the targets of three classes": (
        np.ones((2, 1)),
        np.array([[0, 2 / 3, 1 / 3], [1, 0, 0]]),
    ),
}


@pytest.mark.parametrize("name", [*WITHOUT_MINIMISER, *WITH_MINIMISER])
def test_the_examples_are_what_they_are_called(name):
    examples = {**WITHOUT_MINIMISER, **WITH_MINIMISER}
    assert has_minimiser(*examples[name]) == (name in WITH_MINIMISER)


@pytest.mark.parametrize("name", WITHOUT_MINIMISER)
def test_classes_that_a_map_separates_are_refused_within_few_steps(name):
    x, y = WITHOUT_MINIMISER[name]
    with pytest.raises(AssumptionError, match="no minimiser") as caught:
        fit_affine(x, y, CrossEntropy())
    assert int(re.search(r"after (\d+) Newton steps", str(caught.value))[1]) <= 50


@pytest.mark.parametrize("name", WITH_MINIMISER)
def test_classes_that_no_map_separates_are_fitted(name):
    x, y = WITH_MINIMISER[name]
    fit = fit_affine(x, y, CrossEntropy())
    assert fit.gradient <= 1e-12
    np.testing.assert_allclose(fit.risk, by_bfgs(x, y), rtol=0, atol=1e-10)


@st.composite
def small_problems(draw):
    """Return few samples on a coarse grid, where overlaps, ties and separations are common."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, features, classes = (
        draw(st.integers(low, high)) for low, high in ((1, 12), (1, 3), (2, 4))
    )
    x = rng.integers(-2, 3, size=(samples, features)).astype(float)
    draws = draw(st.integers(1, 3))  # 1 gives hard labels
    return x, rng.multinomial(draws, np.ones(classes) / classes, size=samples) / draws


@settings(max_examples=50, deadline=None, derandomize=True)
@given(small_problems())
@example(WITHOUT_MINIMISER["an overlap at one point"])
def test_a_fit_is_found_exactly_where_there_is_one(problem):
    x, y = problem
    try:
        fit = fit_affine(x, y, CrossEntropy())
    except AssumptionError:
        assert not has_minimiser(x, y)
    else:
        assert has_minimiser(x, y)
        assert fit.gradient <= 1e-11


# The bundled images


@pytest.fixture(scope="module")
def images():
    with np.load(IMAGES) as file:
        return file["images"].reshape(4000, 28, 28) / 255, file["labels"].astype(int)


def test_least_squares_on_the_bundled_images(images):
    x, labels = images
    fit = fit_affine(x.reshape(4000, 784), one_hot(labels, 10), SquaredLoss())
    assert f"{fit.risk:.6f}" == "0.138297"
    assert fit.rank == 784
    assert fit.gradient <= 1e-13
    assert "rank 784 of 785" in str(fit)


def test_softmax_regression_on_averages_of_the_bundled_images(images):
    x, labels = images
    averages = x.reshape(4000, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(4000, 49)
    y = one_hot(labels, 10, smoothing=0.1)
    fit = fit_affine(averages, y, CrossEntropy())
    assert f"{fit.risk:.6f}" == "0.970469"
    assert fit.gradient <= 1e-12
    assert abs(gradient_of(fit, averages, y, CrossEntropy())[0]).max() <= 1e-12
    assert fit.rank == 50


def test_the_hard_labels_of_the_bundled_images_are_separable(images):
    x, labels = (part[:1500] for part in images)
    with pytest.raises(AssumptionError, match="Smooth the labels") as caught:
        fit_affine(x.reshape(1500, 784), one_hot(labels, 10), CrossEntropy())
    assert int(re.search(r"after (\d+) Newton steps", str(caught.value))[1]) <= 50


# Errors


@pytest.mark.parametrize(
    ("x", "y"),
    [((3, 2), (4, 2)), ((3,), (3, 2)), ((3, 2), (3,)), ((0, 2), (0, 2)), ((3, 1, 2), (3, 2))],
)
@pytest.mark.parametrize(
    "loss", [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), HuberLoss()], ids=repr
)
def test_shapes_that_do_not_match_are_refused(x, y, loss):
    with pytest.raises(ValueError, match=re.escape(f"got {x} and {y}")):
        fit_affine(np.zeros(x), np.full(y, 0.5), loss)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("loss", [SquaredLoss(), AbsoluteLoss(), HuberLoss()], ids=repr)
def test_values_that_are_not_finite_are_refused(loss, wrong):
    for x, y in (([0.0, wrong], [0.0, 1.0]), ([0.0, 1.0], [0.0, wrong])):
        with pytest.raises(ValueError, match="fit: expected finite x and y"):
            fit_affine(np.array(x)[:, None], np.array(y)[:, None], loss)


FEW = np.arange(5.0)[:, None], np.array([1.0, -2.0, 0.0, 1.0, 3.0])[:, None]


def test_targets_whose_squares_are_no_numbers_are_refused():
    x, y = FEW
    with pytest.raises(
        ValueError, match=r"^fit: expected targets up to 1e\+140, got up to 3e\+200$"
    ):
        fit_affine(x, 1e200 * y, SquaredLoss())
    assert np.isfinite(fit_affine(x, 1e200 * y, AbsoluteLoss()).risk)


@pytest.mark.parametrize("loss", [SquaredLoss(), AbsoluteLoss(), HuberLoss()], ids=repr)
def test_features_whose_squares_are_no_numbers_are_refused(loss):
    x, y = FEW
    said = r"^fit: expected features up to 1e\+140, got up to 4e\+200$"
    with pytest.raises(ValueError, match=said):
        fit_affine(1e200 * x, y, loss)
    assert fit_affine(1e139 * x, y, loss).risk == pytest.approx(fit_affine(x, y, loss).risk)


@pytest.mark.parametrize("delta", [1.0, 1e-3])
def test_targets_that_a_huber_loss_tells_nothing_of_are_refused(delta):
    x, y = FEW
    said = re.escape(f"fit: expected targets up to {1e7 * delta:g}, got up to")
    for far in (1e8, 1e20, 1e80, 1e200):
        with pytest.raises(ValueError, match=f"^{said}"):
            fit_affine(x, far * delta * y, HuberLoss(delta))
    assert fit_affine(x, 3e6 * delta * y, HuberLoss(delta)).gradient < 1e-6 * delta


def test_targets_that_are_no_distributions_are_refused_by_the_cross_entropy():
    with pytest.raises(ValueError, match="sample 1") as caught:
        fit_affine(np.zeros((2, 1)), np.array([[0.5, 0.5], [0.5, 0.6]]), CrossEntropy())
    assert not isinstance(caught.value, AssumptionError)


def test_an_assumption_error_is_a_value_error():
    assert issubclass(AssumptionError, ValueError)
