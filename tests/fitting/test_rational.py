"""Matrices of fractions: products, solutions and ranks are exact, with python-flint and without."""

from fractions import Fraction

import numpy as np
import pytest

from tinyspur.errors import AssumptionError
from tinyspur.fitting import rational as r

RNG = np.random.default_rng(0)


@pytest.fixture(params=["python-flint", "without"], autouse=True)
def library(request, monkeypatch):
    if request.param == "without":
        monkeypatch.setattr(r, "flint", None)
    else:
        assert r.flint is not None, "the extra test installs python-flint"
    monkeypatch.setattr(r, "FEW", 0)  # products of Python's integers go to flint, too


def fractions(values):
    return np.array([Fraction(float(v)) for v in np.ravel(values)]).reshape(np.shape(values))


def residual(A, X, B):
    """Return A X - B by sums of fractions, entry by entry."""
    return [
        sum(a * x for a, x in zip(row, column, strict=True)) - b
        for row, targets in zip(A, B, strict=True)
        for column, b in zip(X.T, targets, strict=True)
    ]


@pytest.mark.parametrize(
    "values",
    [[0.1, -3.0, 0.0, 0.375], [1e300, -1e-300, 5e-324, 1 / 3], [2.0**61, 1.0], [2.0**62, 0.5]],
)
def test_floats_are_the_fractions_that_they_hold(values):
    found = r.rational(np.array(values))
    assert (found.fractions() == fractions(values)).all()
    both = r.joined([found, r.rational(np.array([0.1]))], axis=0)
    assert (both.fractions() == fractions([*values, 0.1])).all()


@pytest.mark.parametrize("size", [1.0, 2.0**26, 2.0**40])
def test_products_sums_and_differences_are_exact(size):
    a, b = RNG.integers(-9, 9, (3, 4)) * size / 8, RNG.standard_normal((4, 2)) * size
    A, B = fractions(a), fractions(b)
    assert not any(residual(A, B, (r.rational(a) @ r.rational(b)).fractions()))
    assert ((r.rational(a) + r.rational(b.T[:1])).fractions() == A + B.T[:1]).all()
    assert (r.rational(a) - r.rational(a)).is_zero()
    assert not (r.rational(a) - r.rational(a + 2.0**-40 * size)).is_zero()
    long = r.Rational(r.rational(b).n.astype(object) * 6 * 7**30, r.rational(b).d * 4 * 7**30)
    assert long.reduced().d <= 2 * r.rational(b).d
    assert (long.reduced().fractions() == B * Fraction(3, 2)).all()


@pytest.mark.parametrize("size", [10, 2**70])
def test_solutions_leave_no_residual_and_singular_systems_have_none(size):
    A = np.array([[int(v) * size + 1 for v in row] for row in RNG.integers(-9, 9, (7, 7))])
    A[[0, 1]] = A[[1, 0]]
    A[0, 0] = 0  # the first pivot is another row's
    B = RNG.integers(-9, 9, (7, 2)).astype(object)
    X = r.solve(A, B)
    assert not any(residual(A, X.fractions(), B))
    A[3] = A[4] + A[5]
    assert r.solve(A, B) is None


def test_a_system_that_is_too_large_is_refused_in_words():
    with pytest.raises(AssumptionError, match=r"^exact: expected at most \d+ unknowns with"):
        r.check_work(10_000, 2**60)


def test_rows_that_depend_on_those_above_are_left_out():
    A = RNG.integers(-9, 9, (6, 5)).astype(object) * 2**80
    A[1], A[3] = 0, 3 * A[0] - A[2]
    assert r.independent_rows(A).tolist() == [0, 2, 4, 5]
    assert r.independent_rows(np.zeros((2, 3), dtype=int)).tolist() == []
    ones = np.ones((3, 2), dtype=int)
    assert r.independent_rows(ones).tolist() == [0]


@pytest.mark.parametrize("kind", ["triangular", "relays", "dense", "mixed"])
def test_systems_are_solved_from_the_left(kind):
    M = RNG.standard_normal((6, 6))
    if kind == "triangular":
        M = np.tril(M)[::-1]
    if kind == "relays":
        M = np.eye(6)[RNG.permutation(6)]
        M[:, 5] += 3
    if kind == "mixed":
        M[:, :3] = 0
        M[[4, 1, 2], [0, 1, 2]] = [3, -0.5, 7]
    M, T = r.rational(M), r.rational(RNG.standard_normal((2, 6)))
    V = r.solve_left(M, T)
    assert not any(residual(V.fractions(), M.fractions(), T.fractions()))
    M.n[:, 5] = M.n[:, 4]
    assert r.solve_left(M, T) is None
