"""Residuals on a grid: exactly orthogonal to (x, 1), next to those that were asked for."""

import numpy as np
import pytest
from exact_algebra import fractions

from tinyspur.constructions.grid_targets import on_a_grid


def orthogonal(x, outputs=2, seed=0):
    """Return e (N, d_y) orthogonal to (x, 1) up to rounding."""
    e = np.random.default_rng(seed).normal(size=(len(x), outputs))
    basis = np.linalg.qr(np.c_[x - x.mean(axis=0), np.ones(len(x))])[0]
    return e - basis @ (basis.T @ e)


def grid(kind, dimension, samples=30):
    whole = np.random.default_rng(1).integers(0, {"coarse": 9}.get(kind, 256), (samples, dimension))
    shifts = {"shifted": 2.0**40, "pixels": -3.0, "parts": 0.125}
    units = {"parts": 2.0**-8, "thirds": 3.0, "large": 2.0**200}
    return shifts.get(kind, 0.0) + units.get(kind, 1.0) * whole


@pytest.mark.parametrize("kind", ["coarse", "pixels", "parts", "thirds", "large", "shifted"])
@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("size", [1e-200, 1.0, 3e7], ids=str)
def test_sums_on_a_grid_are_zero_exactly(kind, dimension, size):
    x = grid(kind, dimension)
    e = size * orthogonal(x)
    found = on_a_grid(x, e)
    exact = fractions(found)
    assert not exact.sum(axis=0).any()
    assert not (fractions(x).T @ exact).any()
    assert 0 < abs(found - e).max() <= 1e-7 * abs(e).max()


def test_a_coarse_grid_may_have_more_dimensions():
    x = grid("coarse", 6, 60)
    found = on_a_grid(x, orthogonal(x))
    assert not (fractions(np.c_[x, np.ones(60)]).T @ fractions(found)).any()


@pytest.mark.parametrize("kind", ["numbers", "many pixels", "twins", "one grid, far apart"])
def test_where_no_grid_will_do_there_is_none(kind):
    x = {
        "numbers": np.random.default_rng(0).normal(size=(30, 2)),
        "many pixels": grid("pixels", 9),
        "twins": np.tile(grid("pixels", 1), (1, 2)),
        "one grid, far apart": np.r_[grid("coarse", 2), [[2.0**50, 0]]],
    }[kind]
    e = np.random.default_rng(0).normal(size=(len(x), 1))
    assert on_a_grid(x, e) is None


def test_residuals_that_are_not_orthogonal_are_not_moved_far():
    x = grid("pixels", 2)
    assert on_a_grid(x, orthogonal(x) + 1e-3) is None
