"""The exact value is never outside an enclosure, and enclosures are not absurdly wide."""

import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
import scipy.linalg
import strict_device
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyspur.certificates import enclosed_algebra
from tinyspur.certificates.enclosed_algebra import (
    doubled_product,
    doubled_residual,
    enclose_inverse,
    largest_eigenvalue,
    least_eigenvalue,
    positive_bound,
    positive_definite,
    solve,
    spectral_bound,
)
from tinyspur.certificates.enclosures import Enclosure, between, concatenate, exact, product
from tinyspur.layers.dense import DenseMatrix

few = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-2, 2),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-310, 2.0**-1022, 1e-160, 1e160, 1.7e308, 1 + 2.0**-52]),
)
RADII = st.sampled_from([0.0, 5e-324, 1e-300, 1e-20, 2.0**-53, 1e-3, 1.0, 1e300])


def matrices(rows, columns):
    """Draw numbers of any size; often rows or columns that nearly cancel."""
    return hnp.arrays(np.float64, (rows, columns), elements=NUMBERS)


@st.composite
def operands(draw, inner=True):
    """Draw two matrices that can be multiplied, or are of one shape, and their radii."""
    m, n, k = (draw(st.integers(1, 4)) for _ in range(3))
    shapes = [(m, n), (n, k)] if inner else [(m, n), (m, n)]
    return [
        Enclosure(draw(matrices(*shape)), draw(hnp.arrays(np.float64, shape, elements=RADII)))
        for shape in shapes
    ]


def fractions(values):
    found = np.empty(np.shape(values), dtype=object)
    found.flat = [Fraction(float(v)) for v in np.ravel(values)]
    return found


def points(E, seed=0):
    """Return exact values inside: the middle, the two ends, and some between."""
    t = np.random.default_rng(seed).integers(-4, 5, size=E.shape)
    middle, radius = fractions(E.middle), fractions(E.radius)
    return [middle, middle - radius, middle + radius, middle + radius * fractions(t / 4)]


def assert_inside(values, E):
    assert np.shape(values) == E.shape
    for value, middle, radius in zip(
        np.ravel(values), E.middle.ravel(), E.radius.ravel(), strict=True
    ):
        assert math.isfinite(middle) and radius >= 0
        assert radius == math.inf or abs(Fraction(value) - Fraction(middle)) <= Fraction(radius)


@few
@given(operands(inner=False))
def test_sums_products_and_squares_of_numbers_inside_are_inside(pair):
    A, B = pair
    for a, b in zip(points(A, 0), points(B, 1), strict=True):
        assert_inside(a + b, A + B)
        assert_inside(a - b, A - B)
        assert_inside(a * b, A * B)
        assert_inside(a * a, A**2)
        assert_inside(a.sum(axis=0), A.sum(axis=0))
        assert_inside(abs(a).max(axis=1), abs(A).max(axis=1))
        assert_inside(1 - 3 * a, 1 - 3 * A)


@few
@given(operands(inner=False))
def test_quotients_of_numbers_inside_are_inside_and_unknown_where_the_divisor_may_be_0(pair):
    A, B = pair
    E, one = A / B, 1 / B
    sure = [abs(v) > r for v, r in zip(fractions(B.middle).flat, B.radius.flat, strict=True)]
    assert not np.isfinite(E.radius.ravel()[~np.array(sure)]).any()
    for a, b in zip(points(A, 0), points(B, 1), strict=True):
        safe = np.where(np.array(sure).reshape(b.shape), b, Fraction(1))
        for values, found in ((a / safe, E), (1 / safe, one)):
            assert_inside(values.ravel()[sure], found.reshape(-1)[np.array(sure)])


@few
@given(operands(inner=False))
def test_bounds_are_bounds_and_those_of_exact_numbers_are_these(pair):
    A = pair[0]
    for a in points(A):
        for value, low, high, size in zip(
            a.flat, A.low.flat, A.high.flat, A.magnitude.flat, strict=True
        ):
            assert low == -math.inf or Fraction(low) <= value
            assert high == math.inf or value <= Fraction(high)
            assert size == math.inf or abs(value) <= Fraction(size)
        assert_inside(a, between(A.low, A.high))
    E = exact(A.middle)
    assert np.array_equal(E.low, A.middle) and np.array_equal(E.high, A.middle)


@few
@given(operands())
def test_matrix_products_of_numbers_inside_are_inside(pair):
    A, B = pair
    E, row = A @ B, A[0] @ B
    for a, b in zip(points(A, 0), points(B, 1), strict=True):
        assert_inside(a @ b, E)
        assert_inside(a[0] @ b, row)
        assert_inside(a @ b[:, 0], A @ B[:, 0])
    assert_inside(fractions(A.middle) @ points(B)[1], A.middle @ B)


@few
@given(operands())
def test_products_and_residuals_of_doubled_precision_hold_for_numbers_of_any_size(pair):
    A, B = pair[0].middle, pair[1].middle
    product = fractions(A) @ fractions(B)
    assert_inside(product, doubled_product(A, B))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        y = np.nan_to_num(A @ B, posinf=1.0, neginf=-1.0)
    assert_inside(fractions(y) - product, doubled_residual(y, A, B))


def test_shares_of_subnormal_numbers_count_where_they_meet_large_ones():
    rng = np.random.default_rng(0)
    A, B = 1e300 * rng.uniform(1, 2, (4, 3)), 1e-320 * rng.uniform(1, 2, (3, 4))
    for E in (A @ exact(B), exact(B) @ A, product(DenseMatrix(A), exact(B))):
        large, small = (B, A) if E.shape == (3, 3) else (A, B)
        assert_inside(fractions(large) @ fractions(small), E)
        assert E.radius.max() < 1e-22


def scaled(rng, shape, spread):
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-spread, spread, size=shape)


@pytest.mark.parametrize("spread", [0, 3, 100])
def test_enclosures_of_products_are_not_absurdly_wide(spread):
    rng, plain, doubled = np.random.default_rng(0), [], []
    for _ in range(20):
        A, B = scaled(rng, (3, 5), spread), scaled(rng, (5, 3), spread)
        product = fractions(A) @ fractions(B)
        for E, ratios in ((exact(A) @ B, plain), (doubled_product(A, B), doubled)):
            for value, middle, radius in zip(
                product.flat, E.middle.flat, E.radius.flat, strict=True
            ):
                off = abs(value - Fraction(middle))
                ratios += [radius / float(off)] if off else []
    assert np.median(plain) < 50
    assert np.median(doubled) < 8 or spread == 100  # sizes that no balance makes alike


def test_doubled_residuals_of_solved_equations_are_as_exact_as_their_numbers():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(30, 300)), rng.normal(size=(300, 4))
    y = A @ B
    E = doubled_residual(y, A, B)
    assert_inside(fractions(y) - fractions(A) @ fractions(B), E)
    assert np.median(E.radius / abs(E.middle)) < 1e-7
    A[:, 0] *= 1e8  # a product of columns and rows that balance
    B[0] *= 1e-8
    assert np.median(doubled_residual(A @ B, A, B).radius) < 1e-22


def test_what_overflows_is_not_known_and_the_rest_is():
    A = exact(np.array([[1e300, 1.0], [1.0, 1.0]]))
    for E in (A @ A, doubled_product(A.middle, A.middle), A * A, A + A * 1e10):
        assert np.isfinite(E.middle).all()
        assert E.radius[0, 0] == math.inf or E.middle[0, 0] > 1e300
        assert np.isfinite(E.radius[1, 1])
    unknown = exact(np.array([np.nan, np.inf, 1.0]))
    assert unknown.radius.tolist() == [math.inf, math.inf, 0.0]
    assert (unknown * 0).radius[0] == math.inf
    for number in (np.nan, np.inf):
        for A, B in (([[number, 1.0]], [[0.0], [1.0]]), ([[0.0, 1.0]], [[number], [1.0]])):
            assert doubled_product(np.array(A), np.array(B)).radius == math.inf


def test_zeros_stay_exact():
    zero, A = np.zeros((3, 2)), np.array([[1e200, 5e-324], [1.0, -3.0]])
    for E in (zero @ exact(A), exact(zero) * 3, exact(zero).sum(axis=0), doubled_product(zero, A)):
        assert not E.middle.any() and not E.radius.any()
    assert (exact(A) + 0).radius[1].max() < 1e-15


def test_only_numbers_that_float64_holds_are_exact():
    assert exact(np.float32([0.1])).middle[0] == float(np.float32(0.1))
    with pytest.raises(ValueError, match=r"exact: expected floats of up to 64 bits, got int64"):
        exact(np.array([2**60 + 1]))
    with pytest.raises(ValueError, match=r"enclosure: expected a number that float64 holds"):
        exact(np.ones(2)) * (2**60 + 1)


# Inverses, solutions, eigenvalues


def exact_solution(A, B):
    """Return A^-1 B by Gaussian elimination in fractions, or None."""
    rows, n = [[*a, *b] for a, b in zip(A.tolist(), B.tolist(), strict=True)], len(A)
    for k in range(n):
        pivot = next((i for i in range(k, n) if rows[i][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(n):
            if i != k:
                factor = rows[i][k]
                rows[i] = [v - factor * w for v, w in zip(rows[i], rows[k], strict=True)]
    return np.array([row[n:] for row in rows], dtype=object)


@pytest.mark.parametrize("radius", [0.0, 1e-12, 1e-3])
def test_inverses_and_solutions_of_all_matrices_inside_are_inside(radius):
    rng, narrow, shown = np.random.default_rng(0), [], 0
    for trial in range(12):
        n = 1 + trial % 4
        A = Enclosure(scaled(rng, (n, n), 2), np.full((n, n), radius))
        B = Enclosure(rng.normal(size=(n, 2)), np.full((n, 2), radius))
        inverse, solution = enclose_inverse(A), solve(A, B)
        assert (inverse is None) == (solution is None)
        shown += inverse is not None
        for a, b in zip(points(A, 0), points(B, 1), strict=True):
            if inverse is not None:
                assert_inside(exact_solution(a, fractions(np.eye(n))), inverse)
                assert_inside(exact_solution(a, b), solution)
        if not radius:
            narrow.append((solution.radius / abs(solution.middle)).max())
    assert shown >= (12 if radius < 1e-3 else 3)
    assert np.median(narrow) < 1e-15 if narrow else True


def test_matrices_that_may_be_singular_have_no_enclosed_inverse():
    singular = np.array([[1.0, 2.0], [2.0, 4.0]])
    near = np.array([[1.0, 2.0], [2.0, 4.0 + 2.0**-30]])
    for A in (exact(singular), exact(0 * singular), Enclosure(near, np.full((2, 2), 1e-9))):
        assert enclose_inverse(A) is None
        assert solve(A, exact(singular)) is None
    for radius, known in ((0.99, True), (1.01, False), (1.5, False)):  # around 1
        A = Enclosure(np.ones((1, 1)), np.full((1, 1), radius))
        assert (enclose_inverse(A) is not None) == (solve(A, A) is not None) == known
    assert solve(exact(near), exact(singular)) is not None


def definite(A):
    """Return whether a symmetric matrix of fractions is positive definite, by elimination."""
    A = A.copy()
    for k in range(len(A)):
        if A[k, k] <= 0:
            return False
        A[k + 1 :, k + 1 :] -= np.outer(A[k + 1 :, k], A[k, k + 1 :]) / A[k, k]
    return True


@pytest.mark.parametrize("radius", [0.0, 1e-9])
def test_bounds_of_eigenvalues_are_bounds_and_close(radius):
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 8):
        Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        middle = (Q * 10.0 ** rng.uniform(-6, 0, size=n)) @ Q.T
        middle = (middle + middle.T) / 2
        A = Enclosure(middle, np.full((n, n), radius))
        low, high = least_eigenvalue(A), largest_eigenvalue(A)
        identity = fractions(np.eye(n))
        worst = fractions(middle) - Fraction(radius)  # one of the matrices inside
        for a in (fractions(middle), worst, fractions(middle) + Fraction(radius)):
            assert definite(a - identity * (Fraction(low) - Fraction(1e-300)))
            assert definite(identity * (Fraction(high) + Fraction(1e-300)) - a)
        slack = Fraction(2 * n * radius + 1e-13)
        assert not definite(fractions(middle) - identity * (Fraction(low) + slack))
        assert not definite(identity * (Fraction(high) - slack) - fractions(middle))


def test_definiteness_is_shown_for_entries_of_any_size_and_never_for_what_is_singular():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(20, 6)) * 10.0 ** np.array([-100, -30, -3, 0, 20, 90])
    A = exact(B.T) @ B
    A = Enclosure((A.middle + A.middle.T) / 2, A.radius * 2)
    assert positive_definite(A)
    least = B[:, 0] @ B[:, 0]
    assert not positive_definite(A - np.diag([2 * least, 0, 0, 0, 0, 0]))
    v = np.array([1.0, -2.0, 3.0])
    assert not positive_definite(exact(np.outer(v, v)))
    assert not positive_definite(exact(np.diag([1.0, 0.0])))
    assert not positive_definite(Enclosure(np.eye(2), np.full((2, 2), 0.5)))
    assert positive_definite(Enclosure(np.eye(2), np.full((2, 2), 0.49)))
    assert least_eigenvalue(Enclosure(np.eye(2), np.full((2, 2), np.inf))) == -math.inf


def test_a_bound_of_spectral_norms_holds_for_subnormal_entries():
    assert spectral_bound(np.zeros((3, 3))) == 0
    for D in (np.full((2, 2), 1e-318), np.array([[1e-318, 5e-324], [5e-324, 0.0]])):
        bound, D = Fraction(spectral_bound(D)), fractions(D)
        assert bound >= D[0, 0] and (bound - D[0, 0]) * (bound - D[1, 1]) >= D[0, 1] ** 2


def test_a_positive_bound_is_found_of_badly_scaled_matrices_too():
    correlated, sizes = np.array([[1.0, 0.5], [0.5, 1]]), np.array([2.0**30, 2.0**-20])
    A = correlated * sizes[:, None] * sizes
    A = Enclosure(A, 0.1 * abs(A))  # all of them have a determinant and a diagonal above 0
    assert least_eigenvalue(A) <= 0 and positive_definite(A)
    a, b, c = Fraction(A.low[0, 0]), Fraction(A.high[0, 1]), Fraction(A.low[1, 1])
    most = 2 * (a * c - b**2) / (a + c)  # the least eigenvalue of one: no more than 2 det / trace
    assert 0 < positive_bound(A) <= most
    assert positive_bound(exact(correlated)) == least_eigenvalue(exact(correlated)) > 0.499
    assert positive_bound(exact(-correlated)) == positive_bound(exact(np.ones((2, 2)))) == 0


@pytest.mark.parametrize("shift", [0.5, -3.0, 1e-3])
def test_what_a_factor_misses_is_bounded_block_by_block(shift, monkeypatch):
    """In rationals, for the factor that LAPACK finds."""
    B = np.random.default_rng(0).normal(size=(9, 7)) * 10.0 ** np.array([-3, -2, -1, 0, 0, 0, 1])
    A = B.T @ B + np.eye(7)
    R = fractions(scipy.linalg.lapack.dpotrf(A - shift * np.eye(7))[0])
    missed = fractions(A) - R.T.dot(R) - fractions(np.eye(7)) * Fraction(shift)
    least, found = np.linalg.norm(missed.astype(float), 2) * (1 - 1e-9), []
    for rows in (3, 512):
        monkeypatch.setattr(enclosed_algebra, "TOGETHER", rows)
        found.append(enclosed_algebra._off_factored(exact(A), shift))
        wider = enclosed_algebra._off_factored(Enclosure(A, np.full((7, 7), 1e-9)), shift)
        assert 7e-9 * (1 - 1e-9) < wider < 7.1e-9  # for a change of 1e-9 in all entries
    assert 0 < least <= min(found) and max(found) < 1e-14 * np.trace(A)


def test_a_least_eigenvalue_near_which_one_is_told_is_below_all_and_within_a_tenth():
    B = np.random.default_rng(1).normal(size=(12, 8))
    A, least = B.T @ B, np.linalg.eigvalsh(B.T @ B)[0]
    assert (
        least_eigenvalue(exact(A)) * (1 - 1e-9) > least_eigenvalue(exact(A), least) > 0.89 * least
    )
    told = least_eigenvalue(exact(A), 1.5 * least)  # too much: the next shift is tried
    assert 0 < told < 0.5 * least
    assert not least_eigenvalue(exact(A - 2 * least * np.eye(8)), least) > 0


def test_a_device_gives_what_the_host_gives():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    both = (lambda v: exact(v), lambda v: exact(strict_device.asarray(v)))
    operations = [
        lambda a, b: a @ b,
        lambda a, b: a.middle @ b[:, 0],
        lambda a, b: (a + a * 2 - a / 3 + 1.5) / (a**2 + 1),
        lambda a, b: (1 - a.middle * a).sum(axis=0),
        lambda a, b: doubled_product(a.middle, b.middle),
        lambda a, b: doubled_residual((a @ b).middle, a.middle, b.middle),
        lambda a, b: enclose_inverse(a[:4]),
        lambda a, b: solve(a[:4], b),
        lambda a, b: between(a.low, (a + 1).high),
        lambda a, b: concatenate([a, a.reshape(5, 4)]),
    ]
    for operation in operations:
        host, device = (operation(as_array(A), as_array(B)) for as_array in both)
        assert np.array_equal(host.middle, device.middle.get())
        assert np.array_equal(host.radius, device.radius.get())
    for operation in (least_eigenvalue, positive_definite, largest_eigenvalue):
        host, device = (operation(as_array(A).T @ as_array(A)) for as_array in both)
        assert host == device
