"""Sums of products of features, and the least squares that rest on them."""

import numpy as np
import pytest

import tinyspur as ts
from tinyspur.engine.threads import one_thread
from tinyspur.fitting import affine
from tinyspur.fitting.gram_sums import ROWS, TOGETHER, gram_sum, gram_terms


@pytest.mark.parametrize("samples", [1, ROWS + 1, ROWS * TOGETHER * 2 + 3])
def test_gram_sums_are_those_of_all_samples_with_the_same_bits_on_one_core(samples):
    z = np.random.default_rng(0).standard_normal((samples, 5))
    found = gram_sum(lambda rows: z[rows], samples)
    assert (abs(found - z.T @ z) <= gram_terms(samples) * 1e-15 * (abs(z.T) @ abs(z))).all()
    with one_thread():
        assert np.array_equal(gram_sum(lambda rows: z[rows], samples), found)


@pytest.mark.parametrize("spread", [1.0, 1e-4, 1e-7])
def test_fits_of_scaled_and_nearly_dependent_features_are_those_of_a_qr(spread):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((300, 6)), rng.standard_normal((300, 2))
    x[:, 1] = x[:, 0] + spread * x[:, 1]
    x[:, 2], x[:, 3] = 7.0, 100 * x[:, 3]
    fit, varies = affine.fit_affine(x, y, ts.SquaredLoss()), np.arange(6) != 2
    expected = np.linalg.lstsq((x - x.mean(axis=0))[:, varies], y - y.mean(axis=0))[0].T
    np.testing.assert_allclose(fit.weights[:, varies], expected, rtol=1e-12 / spread)
    assert (
        fit.rank == 6
        and fit.gradient < 1e-12 + 1e-15 * abs(expected).max()
        and not fit.weights[:, 2].any()
    )


def test_dependent_features_are_left_to_the_qr():
    x = np.random.default_rng(0).standard_normal((50, 3))
    x[:, 2] = x[:, 0] + x[:, 1]
    varies = np.ones(3, bool)
    assert affine._by_normal_equations(x, x[:, :1], x.mean(axis=0), varies, 1e-14) is None
    fit = affine.fit_affine(x, x[:, :1], ts.SquaredLoss())
    assert fit.rank == 3 and np.allclose(fit.weights, [[2 / 3, -1 / 3, 1 / 3]])
