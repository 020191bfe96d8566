"""Near a certified point there is an exact local minimum, no farther than the bound."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from certificate_problems import ENTROPY, SQUARED, gate, two_groups

from tinyspur.certificates import certify_cell
from tinyspur.certificates.assumptions import least_curvature
from tinyspur.certificates.nearby import Matrix, distinct_columns, enclose_fit, through_inverse
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


def solve(A, B):
    """Return the exact solution X of A X = B by elimination, all lists of fractions."""
    rows = [[*a, *b] for a, b in zip(A, B, strict=True)]
    n = len(rows)
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(n):
            if i != k and rows[i][k]:
                factor = rows[i][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[n:] for row in rows]


def exact_fit(x, y):
    """Return the exact least-squares fit (n + 1, d_y) of stored numbers."""
    hats = [[*map(Fraction, row.tolist()), Fraction(1)] for row in x]
    targets = [list(map(Fraction, row.tolist())) for row in y]
    n, d = len(hats[0]), len(targets[0])
    A = [[sum(h[i] * h[j] for h in hats) for j in range(n)] for i in range(n)]
    B = [
        [sum(h[i] * t[k] for h, t in zip(hats, targets, strict=True)) for k in range(d)]
        for i in range(n)
    ]
    return solve(A, B)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_the_exact_fit_of_one_layer_is_within_the_distance(seed, spread):
    rng = np.random.default_rng(seed)
    x, y = 1 + spread * rng.normal(size=(15, 3)), rng.normal(size=(15, 2))
    fit = fit_affine(x, y, SQUARED)
    theta = Parameters(
        Network((1, 1, 3), [Dense(2)]), np.concatenate([fit.weights.ravel(), fit.bias])
    )
    certificate = certify_cell(theta, TrainingSet(x.reshape(15, 1, 1, 3), y), SQUARED)
    assert certificate.holds
    exact = exact_fit(x, y)
    stored = [*fit.weights.T.tolist(), fit.bias.tolist()]
    off = max(
        abs(a - Fraction(b))
        for row, s in zip(exact, stored, strict=True)
        for a, b in zip(row, s, strict=True)
    )
    assert 0 < off <= Fraction(certificate.distance)
    assert certificate.distance < 1e-9 / spread**2
    assert "an exact local minimum is within" in str(certificate)


def exact_softmax_fit(x, y, F):
    """Return the softmax regression of stored numbers by Newton's method with 40 digits.

    It has the same shifts of all outputs as the fit F (n + 1, d_y) that it begins with.
    """
    hats = mpmath.matrix(np.column_stack([x, np.ones(len(x))]).tolist())
    n, d, N = hats.cols, y.shape[1], len(x)
    F = mpmath.matrix(F)
    for _ in range(6):
        gradient, H = mpmath.zeros(n * d, 1), mpmath.zeros(n * d, n * d)
        for i in range(N):
            o = [sum(hats[i, j] * F[j, k] for j in range(n)) for k in range(d)]
            p = [mpmath.exp(v - max(o)) for v in o]
            p = [v / sum(p) for v in p]
            whole = sum(mpmath.mpf(float(v)) for v in y[i])
            for k in range(d):
                for j in range(n):
                    g = whole * p[k] - mpmath.mpf(float(y[i, k]))
                    gradient[j * d + k] += g * hats[i, j]
                    for q in range(d):
                        bend = whole * p[k] * ((k == q) - p[q]) * hats[i, j]
                        for m in range(n):
                            H[j * d + k, m * d + q] += bend * hats[i, m]
        for j in range(n):  # shifts of all outputs, which change nothing, stay as they are
            for k in range(d):
                for q in range(d):
                    H[j * d + k, j * d + q] += 1
        step = mpmath.lu_solve(H, gradient)
        F = F - mpmath.matrix([[step[j * d + k] for k in range(d)] for j in range(n)])
    assert max(abs(v) for v in gradient) < mpmath.mpf(10) ** -30
    return F


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_softmax_regression_of_one_layer_is_within_the_distance(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(15, 2)), rng.dirichlet(np.ones(3), 15)
    fit = fit_affine(x, y, ENTROPY)
    theta = Parameters(
        Network((1, 1, 2), [Dense(3)]), np.concatenate([fit.weights.ravel(), fit.bias])
    )
    certificate = certify_cell(theta, TrainingSet(x.reshape(15, 1, 1, 2), y), ENTROPY)
    assert certificate.holds
    stored = [*fit.weights.T.tolist(), fit.bias.tolist()]
    with mpmath.workdps(40):
        exact = exact_softmax_fit(x, y, stored)
        off = max(abs(v) for v in exact - mpmath.matrix(stored))
        assert 0 < off <= certificate.distance
    assert certificate.distance < 1e-9


def test_a_softmax_regression_far_out_has_no_minimum_nearby():
    x = np.array([[255.0, 0, 0], [0, 255, 0], [0, 0, 1], [0, 0, 1]])
    g, y = np.full((2, 4), 1e-16), np.eye(2)[[0, 1, 0, 1]]
    hats = np.column_stack([x[:, :2], np.ones(4)])  # the third pixel is a combination of these
    for height in (0.01, 0.1, 1.0):
        o = height * np.array([[1.0, -1, 0], [-1, 1, 0]]) @ x.T
        curvatures = least_curvature(ENTROPY, o, y.T)
        found = enclose_fit(hats, g @ hats, curvatures)
        assert (found is None) == (height > 0.05)


def test_features_that_depend_on_each_other_up_to_rounding_have_no_minimum_nearby():
    """Degrees Celsius and Fahrenheit: the exact optimum has weights of 1e14."""
    rng = np.random.default_rng(0)
    celsius = rng.uniform(-10, 30, 40)
    x, y = np.column_stack([celsius, 1.8 * celsius + 32]), rng.normal(size=(40, 1))
    fit = fit_affine(x, y, SQUARED)
    theta = Parameters(Network((1, 1, 2), [Dense(1)]), np.append(fit.weights, fit.bias))
    certificate = certify_cell(theta, TrainingSet(x.reshape(40, 1, 1, 2), y), SQUARED)
    assert certificate.distance == np.inf
    assert certificate.bounds()["distance"] is None
    assert max(abs(float(row[0])) for row in exact_fit(x, y)) > 1e10


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=repr)
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gates_are_near_an_exact_minimum(depth, loss):
    data = two_groups(np.random.default_rng(depth), loss)
    certificate = certify_cell(gate(data, loss, depth)[0], data, loss)
    assert certificate.classes == 2
    assert certificate.distance < 1e-8


@pytest.mark.parametrize(
    "layers",
    [
        [Conv(4), Conv(4), Conv(4), Dense(2)],
        [Conv(8), AveragePool(2), Conv(8), Conv(8), Dense(2)],
        [MaxPool(2), Conv(4), Conv(4), Conv(4), Dense(2)],
    ],
    ids=str,
)
def test_linear_minima_are_near_an_exact_one(layers):
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.uniform(size=(60, 1, 4, 4)), rng.normal(size=(60, 2)))
    theta, _ = linear_minimum(Network((1, 4, 4), layers), data, SQUARED)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.distance < min(1e-7, certificate.radius / 2)


def test_constant_and_equal_pixels_are_no_obstacle():
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(50, 1, 3, 3))
    x[:, 0, 0, 0] = 0.25  # constant
    x[:, 0, 2, 2] = 0  # black
    x[:, 0, 1, 1] = x[:, 0, 0, 1]  # a copy
    data = TrainingSet(x, rng.normal(size=(50, 2)))
    net = Network((1, 3, 3), [Conv(3), Conv(3), Conv(3), Dense(2)])
    theta, _ = linear_minimum(net, data, SQUARED)
    assert certify_cell(theta, data, SQUARED).distance < 1e-8


def test_all_columns_are_made_of_the_distinct_ones():
    rng = np.random.default_rng(2)
    hats = rng.normal(size=(9, 6))
    hats[:, 1], hats[:, 3], hats[:, 4], hats[:, -1] = 7, hats[:, 0], 0, 1
    kept, basis = distinct_columns(hats)
    assert len(kept) == 3
    assert np.array_equal(hats[:, kept] @ basis.T, hats)


def test_a_gram_matrix_that_may_be_singular_encloses_nothing():
    x = np.column_stack([np.arange(5.0), 3 * np.arange(5.0) + 1, np.ones(5)])
    assert enclose_fit(x, np.ones((1, 3))) is None
    assert enclose_fit(x[:, [0, 2]], np.ones((1, 2))) is not None


def test_a_product_is_within_its_enclosure():
    rng = np.random.default_rng(3)
    A, B = (10.0 ** rng.uniform(-8, 8, s) * rng.normal(size=s) for s in [(4, 30), (30, 3)])
    found = Matrix(A, 0 * A) @ Matrix(B, 0 * B)
    for i in range(4):
        for j in range(3):
            exact = sum(Fraction(a) * Fraction(b) for a, b in zip(A[i], B[:, j], strict=True))
            assert abs(exact - Fraction(found.middle[i, j])) <= Fraction(found.radius[i, j])


def test_a_bound_through_a_left_inverse_is_one():
    rng = np.random.default_rng(4)
    M, D = rng.normal(size=(7, 3)), rng.uniform(size=(2, 3))
    M[2] = 0
    bound = through_inverse(D, Matrix(M, 1e-9 * abs(M)))
    assert bound.shape == (2, 7)
    for _ in range(20):
        near = M * (1 + 1e-9 * rng.uniform(-1, 1, M.shape))
        change = D * rng.choice([-1, 1], D.shape) @ np.linalg.pinv(near)
        assert (abs(change) <= bound).all()
    M[:, 2] = M[:, 1]
    assert through_inverse(D, Matrix(M, 0 * M)) is None
    assert through_inverse(D, Matrix(M[:2], 0 * M[:2])) is None
