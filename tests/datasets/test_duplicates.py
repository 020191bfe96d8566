"""Samples that are not distinct are counted, whatever their type."""

import numpy as np
import pytest

from tinyspur.datasets.duplicates import find_duplicates, identical


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, bool])
def test_counts_are_those_of_all_pairs(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.integers(2, size=(60, 1, 2, 3)).astype(dtype), rng.integers(2, size=(60, 2))
    same = (x[:, None] == x).all(axis=(2, 3, 4)) & ~np.eye(60, dtype=bool)
    other = same & (y[:, None] != y).any(axis=2)
    found = find_duplicates(x, y)
    assert 0 < found.differing_targets < found.samples < 60
    assert found.samples == same.any(axis=1).sum()
    assert found.differing_targets == other.any(axis=1).sum()


def test_labels_serve_as_targets():
    found = find_duplicates(np.array([[1, 2], [1, 2], [3, 4], [3, 4]]), np.array([5, 5, 6, 7]))
    assert str(found) == "4 not distinct, 2 of them differ in targets"


def test_both_zeros_are_equal_and_the_next_number_is_not():
    assert identical(np.array([[0.0], [-0.0], [5e-324]])).tolist() == [0, 0, 1]
