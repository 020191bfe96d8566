"""Exact sums, and residuals that are orthogonal to (x, 1): compared with fractions."""

from fractions import Fraction

import numpy as np
import pytest
from exact_algebra import fractions, pivots, solved

from tinyspur.certificates.exact_sums import centred, centred_products, means
from tinyspur.certificates.orthogonal_residuals import Residuals

ULP = Fraction(1, 2**53)
SCALES = [[1.0, 1.0], [1e150, 1e-150], [1e-160, 1e-160], [3e-310, 1e290], [2.0**-1074, 1.0]]
over_scales = pytest.mark.parametrize("scales", SCALES, ids=str)


def inputs(kind, samples=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 2))
    if kind == "nearly dependent":
        x[:, 1] = x[:, 0] + 2.0**-20 * x[:, 1]
    elif kind == "far from 0":
        x += 2.0**30
    elif kind == "twins":
        x[1:5] = x[0]
    return x


def targets(x):
    """Return y (N, 2) whose residuals are orthogonal to (x, 1) up to rounding, M definite."""
    u = np.linalg.qr(x - x.mean(axis=0))[0]
    Q = np.c_[np.ones(len(x)), u, u[:, :1] ** 2, u[:, 1:] ** 2, u[:, :1] * u[:, 1:]]
    e = np.linalg.lstsq(Q.T, np.array([0, 0, 0, 1.0, 1, 0]))[0]
    return np.c_[2.5 - e, 1e3 + 1e-3 * e]


# Exact sums


@over_scales
def test_differences_from_the_mean_are_rounded_once(scales):
    x = np.random.default_rng(0).normal(size=(7, 2)) * scales + [0, scales[1] * 2.0**40]
    x[3] = 0
    found, exact = centred(x), fractions(x)
    assert ((abs(found.floats).max(axis=0) >= 0.25) & (abs(found.floats).max(axis=0) < 1)).all()
    for (i, j), value in np.ndenumerate(exact - exact.sum(axis=0) / 7):
        got = Fraction(found.floats[i, j]) * Fraction(2) ** int(found.exponents[j])
        assert abs(got - value) <= abs(value) * ULP


@over_scales
def test_sums_of_products_and_means_are_rounded_once(scales):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2)) * scales
    X, Y, b = fractions(x), fractions(y), y[0] * [1, -3]
    sums = X.T @ (Y - Y.sum(axis=0) / 9)
    units = centred(x).exponents, centred(y).exponents
    for (j, k), got in np.ndenumerate(centred_products(x, y, *units)):
        expected = sums[j, k] / Fraction(2) ** int(units[0][j] + units[1][k])
        assert abs(Fraction(got) - expected) <= abs(expected) * ULP
    for got, value in zip(means(y, b), Y.sum(axis=0) / 9 - fractions(b), strict=True):
        assert abs(Fraction(got) - value) <= max(abs(value) * ULP, Fraction(2) ** -1074)


def test_a_sum_is_zero_only_where_it_is_so_exactly():
    x, y = np.array([[1.0], [2.0**70], [-1.0]]), np.array([[1.0], [0.0], [1.0]])
    assert centred_products(x, y - 2 / 3, np.zeros(1, int), np.zeros(1, int))[0, 0] != 0
    y = np.array([[3.0], [0.0], [-3.0]]) + 2.0**40
    x = np.array([[1.0], [2.0**-60], [1.0]])
    assert centred_products(x, y, np.zeros(1, int), np.zeros(1, int))[0, 0] == 0
    x[0] += 2.0**-52
    assert centred_products(x, y, np.zeros(1, int), np.zeros(1, int))[0, 0] == 3 * 2.0**-52
    tiny = centred_products(x, y, np.full(1, 1100), np.zeros(1, int))
    assert tiny[0, 0] == 2.0**-1074  # which is not 0


# Residuals


@pytest.mark.parametrize("kind", ["generic", "nearly dependent", "far from 0", "twins"])
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e140], ids=str)
def test_targets_no_farther_than_the_bound_have_residuals_that_are_exactly_orthogonal(kind, scale):
    x = inputs(kind)
    y, x = targets(x), x * [scale, 1]
    left = Residuals(x, y, np.zeros(2))
    X, Y = fractions(x), fractions(y)
    u, e = X - X.sum(axis=0) / 12, Y.sum(axis=0) / 12 - Y
    change = u @ solved(u.T @ u, u.T @ e)
    e = e - change
    assert not e.sum(axis=0).any()
    assert not (X.T @ e).any()
    for k in range(2):
        unit = Fraction(2) ** int(left.outputs[k])
        bound, length = Fraction(left.moved[k]) * unit, Fraction(left.length[k]) * unit
        assert abs(change[:, k]).max() <= bound <= 100 * abs(change[:, k]).max()
        assert (change[:, k] ** 2).sum() <= length**2 <= 2 * (change[:, k] ** 2).sum()
        off = abs(fractions(left.e.middle[:, k]) * unit - e[:, k])
        assert (off <= fractions(left.e.radius[:, k]) * unit).all()
        share, sign = left.definiteness(k)
        assert sign == (1, -1)[k]
        M, A = ((w[:, None] * u).T @ u for w in (int(sign) * e[:, k], abs(e[:, k])))
        assert min(pivots(M - Fraction(share) * A)) > 0  # by LDL^T
        assert min(pivots(M - Fraction(share * (1 + 1e-3)) * A)) < 0 < share


def test_residuals_on_a_grid_that_are_orthogonal_move_no_target():
    x = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
    y = 2.0**20 - np.array([[1.0], [1], [1], [1], [-4]]) / 1024
    left = Residuals(x, y, np.array([2.0**20]))
    assert (left.moved, left.length) == (0, 0)
    assert left.means.middle == 0
    assert Residuals(x, y + 2.0**-30 * x[:, :1], np.zeros(1)).moved > 0


@pytest.mark.parametrize("below", [1, 2.0**-40, 2.0**-50, 2.0**-52])
def test_moments_are_not_shown_to_be_definite_by_rounding(below):
    x = np.array([[-1.0, -1], [1, 1], [1, -1], [-1, 1], [2, 2], [-2, -2], [0, 0]])
    e = np.array([1.0, 1, 0.5, 0.5, 0, 0, -3])
    for sign in (1, -1):
        u = x.copy()
        e[2:4] = 0.5 * below * sign  # M = diag(2, 2 below sign) in other coordinates
        e[6] = -(e[:6].sum())
        left = Residuals(u, -e[:, None], np.zeros(1))
        assert left.moved == 0
        share = left.definiteness(0)[0]
        M = (fractions(e)[:, None] * fractions(u)).T @ fractions(u)
        assert (min(pivots(M)) > 0) == (sign == 1)
        assert share == 0 if sign == -1 else share > 0


@pytest.mark.parametrize("bits", [10, 30, 45, 51, 52])
def test_moments_of_residuals_that_cancel_are_not_shown_to_be_definite_by_rounding(bits):
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1], [0, 0]])
    for off in (2.0**-bits, 0.0, -(2.0**-bits)):  # M = diag(2, 2 off) + (1, 1)(1, 1)^T - ...
        e = np.array([1.0, 1, -1, -1, 0.5, 0.5, 0.5 + off, 0.5 + off, 0])
        e[8] = -e.sum()
        left = Residuals(x, -e[:, None], np.zeros(1))
        assert left.moved == 0
        M = (fractions(e)[:, None] * fractions(x)).T @ fractions(x)
        share, sign = left.definiteness(0)
        assert sign == 1
        assert (share > 0) <= (min(pivots(M)) > 0)
        assert share > 0 or off < 2.0**-45


def test_dependent_inputs_have_no_share():
    x = inputs("generic")
    for wrong in (np.c_[x, x[:, 0]], np.c_[x, np.ones(12)], np.c_[x, x[:, 0] + 2.0**-51 * x[:, 1]]):
        left = Residuals(wrong, targets(x), np.zeros(2))
        assert left.definiteness(0)[0] == 0


def test_equal_targets_leave_nothing():
    left = Residuals(inputs("generic"), np.full((12, 1), 0.1), np.zeros(1))
    assert left.constant.all()
    assert (left.moved, left.length) == (0, 0)
