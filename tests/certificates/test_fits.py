"""Optimal fits of pattern classes are inside their enclosures, or not claimed to be."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from exact_fits import (
    exact_fit,
    exact_huber_fit,
    exact_softmax_fit,
    exact_vertex,
    fractions_of,
    solve,
)
from threadpoolctl import threadpool_limits

from tinyspur.certificates import gram
from tinyspur.certificates.class_fits import class_fit, distinct_columns, independent_columns
from tinyspur.certificates.enclosures import exact
from tinyspur.certificates.gram import GramInverse, Samples, row_lengths
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.fitting import gram_sums
from tinyspur.fitting.affine import fit_affine, stationary_subgradient

SQUARED, ENTROPY, ABSOLUTE = SquaredLoss(), CrossEntropy(), AbsoluteLoss()
EXACT = np.zeros((1, 1))


def change_of(loss, x, y, F):
    """Return the enclosed change of the map F (n + 1, d_y) of some samples, (n + 1, d_y)."""
    hats, chosen = np.column_stack([x, np.ones(len(x))]), None
    if loss is ABSOLUTE:
        near = 1e-12 * (abs(hats) @ abs(F)).T
        chosen = stationary_subgradient(hats, *loss.subgradients((hats @ F).T, y.T, near))
    samples = Samples(hats, EXACT, np.ascontiguousarray(y.T), x, chosen)
    found = class_fit(loss, exact(np.ascontiguousarray(F.T)), samples)
    return None if found is None else found.change.T


def stored(x, y, loss):
    fit = fit_affine(x, y, loss)
    return np.vstack([fit.weights.T, fit.bias])


def holds(change, F, best):
    """Return whether the exact fit is in the enclosure of F and its change."""
    shifts = [
        (abs(Fraction(m) + f - b), Fraction(r))
        for row in zip(
            change.middle.tolist(), change.radius.tolist(), fractions_of(F), best, strict=True
        )
        for m, r, f, b in zip(*row, strict=True)
    ]
    return all(off <= radius for off, radius in shifts)


@pytest.mark.parametrize("moved", [0, 1e-6, 0.1])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_least_squares_are_enclosed_wherever_one_starts(spread, moved):
    rng = np.random.default_rng(0)
    x, y = 1 + spread * rng.normal(size=(15, 3)), rng.normal(size=(15, 2))
    F = stored(x, y, SQUARED) + moved
    change, best = change_of(SQUARED, x, y, F), exact_fit(x, y)
    assert holds(change, F, best)
    assert change.radius.max() < 1e-14 * max(1, moved * 1e8) / spread**3
    assert not holds(change, F + 1e-6, best)


@pytest.mark.parametrize("loss", [SQUARED, HuberLoss(1e-150)], ids=repr)
@pytest.mark.parametrize("size", [1e-155, 1e-170, 1e-290])
def test_fits_of_tiny_targets_are_enclosed_though_their_squares_underflow(size, loss):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(15, 3)), rng.normal(size=(15, 2))
    F, y = stored(x, y, SQUARED) * size, y * size
    assert holds(change_of(loss, x, y, F), F, exact_fit(x, y))


def test_lengths_are_bounds_for_numbers_of_any_size_and_infinite_where_one_is_not_known():
    sizes = np.array([[3e-200, 4e-200], [5e-324, 5e-324], [0, 0], [3e200, 4e200], [3, 4]])
    for row, length in zip(fractions_of(sizes), row_lengths(sizes).tolist(), strict=True):
        square = sum(size**2 for size in row)
        assert square <= Fraction(length) ** 2
        assert Fraction(length) ** 2 <= square * (1 + Fraction(1e-14)) or length < 2e-323
    assert row_lengths(np.array([[np.inf, 1.0], [np.nan, 1.0]])).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("moved", [0, 1e-9])
def test_a_huber_fit_is_enclosed_on_its_piece(seed, moved):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(25, 2)), rng.normal(size=(25, 1))
    F = stored(x, y, HuberLoss(0.75)) + moved
    change, best = change_of(HuberLoss(0.75), x, y, F), exact_huber_fit(x, y, 0.75, F)
    assert holds(change, F, best)
    assert change.radius.max() < 1e-13


def test_a_huber_fit_at_its_corner_is_not_decided():
    x = np.array([[-1.0], [0.0], [1.0], [0.0]])
    y = np.array([[0.0], [1.0], [0.0], [-1.0]])  # the fit is 0, for any delta
    F = np.zeros((2, 1))
    assert change_of(HuberLoss(1.0), x, y, F) is None
    assert holds(change_of(HuberLoss(0.5), x, y, F), F, [[0], [0]])


def test_a_huber_fit_far_from_its_piece_is_not_decided():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 2)), rng.normal(size=(25, 1))
    assert change_of(HuberLoss(0.75), x, y, stored(x, y, HuberLoss(0.75)) + 1) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_vertex_is_enclosed_if_its_subgradients_show_that_it_is_optimal(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(21, 2)), rng.normal(size=(21, 1))
    F = stored(x, y, ABSOLUTE)
    r = abs(y - np.column_stack([x, np.ones(21)]) @ F)[:, 0]
    best, optimal = exact_vertex(x, y, np.flatnonzero(r < 1e-9).tolist())
    change = change_of(ABSOLUTE, x, y, F)
    assert optimal
    assert holds(change, F, best)
    assert change.magnitude.max() < 1e-14
    moved, optimal = exact_vertex(x, y, [0, 1, 2])
    assert not optimal
    assert change_of(ABSOLUTE, x, y, np.array(moved, float)) is None
    assert change_of(ABSOLUTE, x, y, F + 1e-3) is None


def test_most_targets_may_be_one_number():
    """The optimal fit is that constant: it meets more targets than there are features."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 2)), np.where(np.arange(30) % 6 == 0, 0.91, 0.01)[:, None]
    F = np.array([[1e-17], [0], [0.01 + 1e-17]])
    assert holds(change_of(ABSOLUTE, x, y, F), F, [[0], [0], [Fraction(0.01)]])


def test_of_an_even_number_of_equal_samples_any_median_will_do():
    x, F = np.full((4, 1), 3.0), np.array([[0.0], [1.5]])
    for y, off in (([0, 1, 2, 3], 0), ([2, 0, 5, 3], 0.5)):
        change = change_of(ABSOLUTE, x, np.array(y, float)[:, None], F)
        assert change.middle.item() == off


def test_of_several_optimal_vertices_the_nearest_is_taken():
    """Both 3 x + 6.5 and 3.5 have the least sum of deviations."""
    x, y = np.array([[-2.0], [-2.0], [-1.0]]), np.array([[3.5], [0.5], [3.5]])
    for F in ([[3.0], [6.5]], [[0.0], [3.5]]):
        change = change_of(ABSOLUTE, x, y, np.array(F))
        assert change.magnitude.max() < 1e-14


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("moved", [0, 1e-7])
def test_a_softmax_regression_is_enclosed(seed, moved):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(15, 2)), rng.dirichlet(np.ones(3), 15)
    F = stored(x, y, ENTROPY) + moved * rng.normal(size=(3, 3))
    change = change_of(ENTROPY, x, y, F)
    assert change.radius.max() < 1e-12
    with mpmath.workdps(40):
        best = exact_softmax_fit(x, y, F.tolist())
        off = best - mpmath.matrix(F.tolist()) - mpmath.matrix(change.middle.tolist())
        assert all(abs(a) <= r for a, r in zip(off, change.radius.ravel(), strict=True))


def test_a_softmax_regression_of_as_many_samples_as_features_meets_soft_targets():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(3), 3)
    F = rng.normal(size=(5, 3))
    change = change_of(ENTROPY, x, y, F)  # of the outputs of each sample
    o = np.column_stack([x, np.ones(3)]) @ F + change.middle
    assert np.allclose(np.exp(o) / np.exp(o).sum(axis=1)[:, None], y, rtol=1e-14)
    assert change.radius.max() < 1e-13
    assert change_of(ENTROPY, x, np.eye(3), F) is None


def test_a_softmax_regression_far_out_has_no_minimum_nearby():
    x = np.array([[255.0, 0, 0], [0, 255, 0], [0, 0, 1], [0, 0, 1]])
    y = np.eye(2)[[0, 1, 0, 1]]
    for height in (0.01, 0.1, 1.0):
        F = np.zeros((4, 2))
        F[:2] = height * np.array([[1.0, -1], [-1, 1]])
        assert change_of(ENTROPY, x, y, F) is None


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY, ABSOLUTE, HuberLoss(9.0)], ids=repr)
def test_equal_samples_with_other_targets_are_fitted_together(loss):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(3), 5)
    x, F = x[[0, 1, 2, 0, 0]], rng.normal(size=(5, 3))
    hats = np.column_stack([x, np.ones(5)])
    near = np.zeros((3, 5))
    chosen = None
    if loss is ABSOLUTE:
        chosen = stationary_subgradient(hats, *loss.subgradients((hats @ F).T, y.T, near))
    found = class_fit(loss, exact(F.T.copy()), Samples(hats, EXACT, y.T.copy(), x, chosen))
    o = (hats @ F)[:3].T + found.change.middle
    mean = np.array([y[[0, 3, 4]].mean(axis=0), y[1], y[2]]).T
    if loss is ENTROPY:
        o = np.exp(o) / np.exp(o).sum(axis=0)
    elif loss is ABSOLUTE:
        mean[:, 0] = np.median(y[[0, 3, 4]], axis=0)
    assert np.allclose(o, mean, rtol=1e-9)
    assert np.array_equal(found.basis.middle, hats[:3].T)


def test_inexact_features_widen_an_enclosure():
    rng = np.random.default_rng(7)
    x, y = rng.uniform(size=(20, 2)), rng.normal(size=(20, 1))
    F = stored(x, y, SQUARED)
    hats, off = np.column_stack([x, np.ones(20)]), np.zeros((20, 3))
    off[:, 0] = 1e-10
    found = class_fit(SQUARED, exact(F.T.copy()), Samples(hats, off, y.T.copy(), x))
    for _ in range(20):
        near = x + off[:, :2] * rng.choice([-1, 1], size=x.shape)
        best = exact_fit(near, y)
        assert holds(found.change.T, F, best)
    assert found.change.magnitude.max() < 1e-8


def test_all_columns_are_made_of_the_distinct_ones():
    rng = np.random.default_rng(2)
    hats = rng.normal(size=(9, 6))
    hats[:, 1], hats[:, 3], hats[:, 4], hats[:, -1] = 7, hats[:, 0], 0, 1
    kept, basis = distinct_columns(hats, EXACT)
    assert len(kept) == 3
    assert np.array_equal(hats[:, kept] @ basis.T, hats)
    inexact = np.zeros(6)
    inexact[3] = 1e-16  # then it may be no copy
    assert len(distinct_columns(hats, inexact[None])[0]) == 4


def test_a_gram_matrix_that_may_be_singular_encloses_nothing():
    x = np.column_stack([np.arange(5.0), 3 * np.arange(5.0) + 1, np.ones(5)])
    assert GramInverse.of(Samples(x, EXACT, np.ones((1, 5)), x)) is None
    assert GramInverse.of(Samples(x[:, [0, 2]], EXACT, np.ones((1, 5)), x)) is not None


def test_a_gram_matrix_of_columns_that_are_nearly_equal_is_regular():
    z = np.random.default_rng(0).normal(size=(40, 20))
    z[:, 0] = z[:, 1] + 2e-6 * np.random.default_rng(1).normal(size=len(z))
    assert GramInverse.of(Samples(z, EXACT, z.T[:1], z)) is not None


def test_weights_that_make_up_for_squares_that_underflow_are_not_decided():
    z = np.array([[1e-165], [1e-99], [2e-99]])
    samples = Samples(z, EXACT, np.ones((1, 3)), z)
    assert GramInverse.of(samples, np.array([1e90, 1, 1])) is not None
    assert GramInverse.of(samples, np.array([1e200, 1, 1])) is None


@pytest.mark.parametrize("loss", [SQUARED, ENTROPY, ABSOLUTE, HuberLoss(0.3)], ids=repr)
def test_indicators_of_all_categories_depend_on_the_constant_exactly(loss):
    rng = np.random.default_rng(0)
    x = np.column_stack([np.eye(3)[rng.integers(0, 3, 60)], rng.normal(size=(60, 2))])
    x = np.column_stack([x, x[:, 0] - 2 * x[:, 1]])
    y = rng.dirichlet(np.ones(2), 60)
    F = stored(x, y, loss)
    hats, chosen = np.column_stack([x, np.ones(60)]), None
    if loss is ABSOLUTE:
        chosen = stationary_subgradient(hats, *loss.subgradients((hats @ F).T, y.T, 1e-12))
    found = class_fit(loss, exact(F.T.copy()), Samples(hats, EXACT, y.T.copy(), x, chosen))
    assert len(found.kept) == 5 or loss is ABSOLUTE  # whose vertex is found in fractions
    assert np.array_equal(hats[:, found.kept] @ found.basis.middle.T, hats)
    assert found.change.magnitude.max() < 1e-11


def test_features_that_are_dependent_but_for_rounding_are_not_taken_to_be():
    rng = np.random.default_rng(1)
    z = np.column_stack([rng.integers(0, 9, (30, 3)).astype(float), np.ones(30)])
    z[:, 2] = z[:, 0] - 0.5 * z[:, 1]
    assert independent_columns(z, EXACT)[0].shape == (3,)
    z[4, 2] += 2.0**-40
    assert independent_columns(z, EXACT)[0].shape == (4,)


def test_a_vertex_that_meets_more_targets_than_it_has_numbers_is_found_in_fractions():
    """Targets are whole numbers, so that many are met, and subgradients of -1 or 1 occur."""
    decided = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 3, (20, 2)).astype(float)
        y = rng.integers(0, 4, (20, 1)).astype(float)
        F = stored(x, y, ABSOLUTE)
        change = change_of(ABSOLUTE, x, y, F)
        if change is not None:
            decided += 1
            best = [
                [Fraction(f + m).limit_denominator(1000)]
                for f, m in zip(F[:, 0], change.middle[:, 0], strict=True)
            ]
            assert holds(change, F, best)
            hats = np.column_stack([x, np.ones(20)])
            least = abs(hats @ F - y).sum()
            for _ in range(200):  # no lower point
                near = F + 0.1 * rng.normal(size=(3, 1))
                assert abs(hats @ near - y).sum() >= least - 1e-12
    assert decided >= 10


def test_sums_over_blocks_of_samples_are_those_over_all(monkeypatch):
    rng = np.random.default_rng(8)
    z, y, g = rng.normal(size=(23, 3)), rng.normal(size=(2, 23)), rng.normal(size=(2, 23))
    F = rng.normal(size=(2, 3))
    monkeypatch.setattr(gram, "BLOCK", 15)
    monkeypatch.setattr(gram_sums, "ROWS", 4)
    samples = Samples(z, EXACT, y, z)
    sums, r = samples.sums(g), samples.residuals(F)
    assert r.shape == (2, 23)
    assert max(r.radius.max(), sums.radius.max()) < 1e-14
    for k in range(2):
        for j in range(3):
            best = sum(Fraction(a) * Fraction(b) for a, b in zip(g[k], z[:, j], strict=True))
            assert abs(best - Fraction(sums.middle[k, j])) <= Fraction(sums.radius[k, j])
        for i in range(23):
            o = sum(Fraction(a) * Fraction(b) for a, b in zip(F[k], z[i], strict=True))
            off = abs(Fraction(y[k, i]) - o - Fraction(r.middle[k, i]))
            assert off <= Fraction(r.radius[k, i])
    inverse = GramInverse.of(samples)
    G = exact(rng.normal(size=(2, 3)))
    found, A = inverse.times(G), fractions_of(z.T)
    A = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in A] for u in A]
    best = solve(A, fractions_of(G.middle.T))
    assert holds(found.T, np.zeros((3, 2)), best)


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**60])
def test_a_tiny_sum_times_an_inverse_is_enclosed(scale):
    """In rationals, for features of one kind: A is their number times the square of their size."""
    z = np.full((3, 1), scale)
    G = np.array([[5e-324], [-1e-310]])
    found = GramInverse.of(Samples(z, EXACT, np.ones((1, 3)), z)).times(exact(G))
    assert holds(found, np.zeros((2, 1)), [[Fraction(g) / (3 * Fraction(scale) ** 2)] for [g] in G])


@pytest.mark.parametrize("together", [2, 512])
@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-5])
def test_what_errors_add_is_bounded_by_the_diagonal_of_the_inverse(apart, together, monkeypatch):
    """In rationals; e = (1, 0, ...) and others of length 1 come close to the bound."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(12, 5)) * 10.0 ** np.arange(-2, 3)
    z[:, 1] = z[:, 0] * 3 + apart * z[:, 1]
    weights = rng.uniform(0.1, 2, 12)
    inverse = GramInverse.of(Samples(z, EXACT, np.ones((1, 12)), z), weights)
    Z = np.array(fractions_of(z))
    A = (Z.T * np.array(fractions_of(weights[None])[0])).dot(Z)
    identity = fractions_of(np.eye(5))
    true = np.array([solve(A.tolist(), identity)[j][j] for j in range(5)])
    monkeypatch.setattr(gram, "TOGETHER", together)
    sharp = inverse.spread(np.array([1.0, 2.0]), sharp=True)
    monkeypatch.setattr(gram, "FEW", 0)
    assert np.array_equal(inverse.spread(np.array([1.0, 2.0]), sharp=True), sharp)
    wide = inverse.spread(np.array([1.0, 2.0]))
    for j, entry in enumerate(true):
        for n, length in enumerate((1, 2)):
            square = entry * length**2
            assert square <= Fraction(sharp[n, j]) ** 2
            assert apart < 1e-4 or Fraction(sharp[n, j]) ** 2 < square * Fraction(1.001)
            assert sharp[n, j] <= wide[n, j]


def test_an_inverse_has_the_same_bits_for_any_number_of_threads():
    rng, found = np.random.default_rng(0), []
    z, G = rng.normal(size=(350, 300)), exact(rng.normal(size=(9, 300)))
    samples = Samples(z, EXACT, np.ones((1, 350)), z)
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            inverse = GramInverse.of(samples)
            times = inverse.times(G)
            found.append((inverse.factor.tobytes(), inverse.least, times.radius.tobytes()))
    assert found[0] == found[1]
